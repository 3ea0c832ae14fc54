"""BLAKE3: whole inputs, inputs in pieces, and the chaining values of subtrees, on the threads of the pool.

A *group* is 1 to 256 chunks of 1024 bytes, a power of two; its chaining value stands for it in the tree. Groups are
hashed independently, so any split over threads gives the same bytes. `kernels` names another instruction set than
that of the process (for tests).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ree_kernels import cpu
from ree_kernels.cpu import Kernels

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK_BYTES = 1024
CV_BYTES = 32
KEY_BYTES = 32
GROUP_CHUNKS_MAX = 256

GROUP_CHUNKS = 16  # groups of a hash: what is left to join at the end, alone, is a thousandth of the work
_BOX_GROUPS = 16  # of them in a box of the pool
_ALONE_BYTES_MAX = GROUP_CHUNKS_MAX * CHUNK_BYTES  # a smaller input is not worth waking threads
_PUSH_CHUNKS = 128  # groups that a Hasher takes from the pool
_PUSH_BYTES_MIN = 8 * _PUSH_CHUNKS * CHUNK_BYTES
_KEYED, _CONTEXT, _MATERIAL = 16, 32, 64


def hash(
    data: Buffer,
    length: int = 32,
    *,
    key: bytes | None = None,
    context: str | None = None,
    kernels: Kernels | None = None,
) -> bytes:
    """The first `length` bytes of the hash; keyed with 32 bytes, or derived for a context."""
    k = kernels or cpu.kernels()
    held = k.ffi.from_buffer("uint8_t[]", data)
    out = k.ffi.new("uint8_t[]", length)
    mode = _mode(k, key, context)
    if len(held) <= _ALONE_BYTES_MAX or cpu.threads() == 1:
        k.lib.ree_blake3_hash(mode, held, len(held), out, length)
    else:
        args, _cvs = _arguments(k, mode, held, GROUP_CHUNKS, 0)
        args.out, args.out_bytes = out, length
        _run(k, args, with_root=True)
    return bytes(k.ffi.buffer(out))


def chaining_values(
    data: Buffer, group_chunks: int = 1, first_chunk: int = 0, *, kernels: Kernels | None = None
) -> bytes:
    """The chaining values of the groups of an input, or of a part of it, 32 bytes each.

    first_chunk: where the part starts, at a multiple of group_chunks; a part ends with a group or with the input.
    None of them is taken for the root. Of no data there is one: that of the empty chunk.
    """
    sizes = [1 << n for n in range(GROUP_CHUNKS_MAX.bit_length())]
    if group_chunks not in sizes or first_chunk < 0 or first_chunk % group_chunks:
        raise ValueError(f"no groups of {group_chunks} chunks from chunk {first_chunk} on")
    k = kernels or cpu.kernels()
    held = k.ffi.from_buffer("uint8_t[]", data)
    args, cvs = _arguments(k, _plain(k), held, group_chunks, first_chunk)
    _run(k, args, with_root=False)
    return bytes(k.ffi.buffer(cvs))


def parents(cvs: Buffer, *, kernels: Kernels | None = None) -> bytes:
    """One level up: n chaining values become (n + 1) // 2, an odd last one as it is; none of them is the root."""
    k = kernels or cpu.kernels()
    held = k.ffi.from_buffer("uint8_t[]", cvs)
    n, rest = divmod(len(held), CV_BYTES)
    if rest:
        raise ValueError(f"chaining values of {len(held)} bytes")
    out = k.ffi.new("uint8_t[]", (n + 1) // 2 * CV_BYTES)
    k.lib.ree_blake3_parents(_plain(k), held, n, out)
    return bytes(k.ffi.buffer(out))


def parent(children: Buffer, is_root: bool = False, *, kernels: Kernels | None = None) -> bytes:
    """The chaining value over two others (64 bytes), or the hash if it is the root's."""
    k = kernels or cpu.kernels()
    held = k.ffi.from_buffer("uint8_t[]", children)
    if len(held) != 2 * CV_BYTES:
        raise ValueError(f"children of {len(held)} bytes")
    out = k.ffi.new("uint8_t[]", CV_BYTES)
    k.lib.ree_blake3_parent(_plain(k), held, is_root, out)
    return bytes(k.ffi.buffer(out))


def chunk(data: Buffer, number: int, is_root: bool = False, *, kernels: Kernels | None = None) -> bytes:
    """The chaining value of chunk `number` (at most 1024 bytes), or the hash if it is the only one."""
    k = kernels or cpu.kernels()
    held = k.ffi.from_buffer("uint8_t[]", data)
    if len(held) > CHUNK_BYTES:
        raise ValueError(f"a chunk of {len(held)} bytes")
    out = k.ffi.new("uint8_t[]", CV_BYTES)
    k.lib.ree_blake3_chunk(_plain(k), held, len(held), number, is_root, out)
    return bytes(k.ffi.buffer(out))


def opening_root(
    n_bytes: int, chunks: Sequence[int], data: Buffer, cvs: Buffer, *, kernels: Kernels | None = None
) -> bytes | None:
    """The hash of an input of which some chunks are known; None if there are too few or too many chaining values.

    chunks: their numbers, ascending; data: their bytes one after another; cvs: those of the largest subtrees without
    any of them, from left to right. ValueError: the numbers or the length of the data are wrong.
    """
    k = kernels or cpu.kernels()
    held, others = k.ffi.from_buffer("uint8_t[]", data), k.ffi.from_buffer("uint8_t[]", cvs)
    last = max(0, n_bytes - 1) // CHUNK_BYTES
    ascending = all(a < b for a, b in pairwise(chunks))
    if not chunks or not ascending or chunks[0] < 0 or chunks[-1] > last or len(others) % CV_BYTES:
        raise ValueError(f"{len(chunks)} chunks do not open an input of {n_bytes} bytes")
    tail = n_bytes - last * CHUNK_BYTES if chunks[-1] == last else CHUNK_BYTES
    if len(held) != (len(chunks) - 1) * CHUNK_BYTES + tail:
        raise ValueError(f"{len(chunks)} chunks of {len(held)} bytes")
    out = k.ffi.new("uint8_t[]", CV_BYTES)
    numbers = k.ffi.new("int64_t[]", list(chunks))
    missing = k.lib.ree_blake3_opening_root(numbers, len(chunks), held, n_bytes, others, len(others) // CV_BYTES, out)
    return None if missing else bytes(k.ffi.buffer(out))


class Hasher:
    """The hash of an input that comes in pieces of any length."""

    def __init__(self, *, key: bytes | None = None, context: str | None = None, kernels: Kernels | None = None) -> None:
        self._kernels = kernels or cpu.kernels()
        self._state = self._kernels.ffi.new("ree_blake3_hasher *")
        self._kernels.lib.ree_blake3_start(self._state, _mode(self._kernels, key, context))

    def update(self, data: Buffer) -> Hasher:
        """Append a piece; large ones are hashed on all threads of the pool."""
        k, state = self._kernels, self._state
        held = k.ffi.from_buffer("uint8_t[]", data)
        done = 0
        if len(held) >= _PUSH_BYTES_MIN and cpu.threads() > 1:
            group_bytes = _PUSH_CHUNKS * CHUNK_BYTES
            done = -(state.chunks * CHUNK_BYTES + state.open_bytes) % group_bytes
            k.lib.ree_blake3_update(state, held, done)
            whole = (len(held) - done) // group_bytes * group_bytes
            self._push(held[done : done + whole])
            done += whole
        k.lib.ree_blake3_update(state, held + done, len(held) - done)
        return self

    def _push(self, part: Any) -> None:
        k, state = self._kernels, self._state
        first = state.chunks + (state.open_bytes > 0)  # an open chunk is full here
        args, cvs = _arguments(k, k.ffi.addressof(state, "mode"), part, _PUSH_CHUNKS, first)
        _run(k, args, with_root=False)
        k.lib.ree_blake3_push(state, cvs, len(cvs) // CV_BYTES, _PUSH_CHUNKS)

    def digest(self, length: int = 32, seek: int = 0) -> bytes:
        """So many bytes of the output from byte `seek` on; more pieces may follow."""
        out = self._kernels.ffi.new("uint8_t[]", length)
        self._kernels.lib.ree_blake3_finish(self._state, seek, out, length)
        return bytes(self._kernels.ffi.buffer(out))


def _mode(k: Kernels, key: bytes | None, context: str | None) -> Any:
    if key is None and context is None:
        return _plain(k)
    mode = k.ffi.new("ree_blake3_mode *")
    if context is not None:
        if key is not None:
            raise ValueError("a key or a context, not both")
        k.lib.ree_blake3_set_mode(mode, k.ffi.NULL, _CONTEXT)
        words, flags = k.ffi.new("uint8_t[]", KEY_BYTES), _MATERIAL
        text = context.encode()
        k.lib.ree_blake3_hash(mode, text, len(text), words, KEY_BYTES)
    else:
        if key is None or len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        words, flags = k.ffi.new("uint8_t[]", key), _KEYED
    k.lib.ree_blake3_set_mode(mode, words, flags)
    return mode


@functools.cache
def _plain(k: Kernels) -> Any:
    mode = k.ffi.new("ree_blake3_mode *")
    k.lib.ree_blake3_set_mode(mode, k.ffi.NULL, 0)
    return mode


def _arguments(k: Kernels, mode: Any, held: Any, group_chunks: int, first_chunk: int) -> tuple[Any, Any]:
    """A ree_blake3_args over the bytes, and its chaining values."""
    n_groups = int(k.lib.ree_blake3_group_count(len(held), group_chunks))
    cvs = k.ffi.new("uint8_t[]", n_groups * CV_BYTES)
    args = k.ffi.new("ree_blake3_args *")
    args.data, args.n_bytes, args.cvs = held, len(held), cvs
    args.first_chunk, args.group_chunks, args.mode = first_chunk, group_chunks, mode[0]
    return args, cvs


def _run(k: Kernels, args: Any, with_root: bool) -> None:
    """Hash the groups in boxes on the pool, then the root, if wanted."""
    n_groups = int(k.lib.ree_blake3_group_count(args.n_bytes, args.group_chunks))
    if args.n_bytes <= _ALONE_BYTES_MAX and not with_root:
        k.lib.ree_blake3_groups(args, 0, 1, 0, n_groups, k.ffi.NULL)
        return
    ffi = cpu.runtime().ffi
    address = ffi.cast("void *", int(k.ffi.cast("uintptr_t", args)))
    grain = max(1, _BOX_GROUPS * GROUP_CHUNKS // args.group_chunks)
    groups = ffi.cast("ree_kernel", k.address("ree_blake3_groups"))
    steps = [(groups, address, 1, n_groups, 1, grain, 0)]
    if with_root:
        root = ffi.cast("ree_kernel", k.address("ree_blake3_root"))
        steps.append((root, address, 1, 1, 1, 1, int(k.lib.ree_blake3_root_scratch_bytes(n_groups))))
    cpu.run(ffi.new("ree_step[]", steps), len(steps))
