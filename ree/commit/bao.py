"""Bao: any range of an input, with what is needed to check it against the input's BLAKE3 root.

The format is that of the Bao specification (O'Connor, github.com/oconnor663/bao, docs/spec.md). An input is cut into
chunks of 1024 bytes, the leaves of a left-full binary tree: the left child of n chunks has the largest power of two
below n. Encodings begin with the input's length (8 bytes, little endian); then come nodes in pre-order, a parent as
the chaining values of its children (64 bytes), a chunk as its bytes. An *outboard* has all parents and no chunk; a
*slice* has the parents and chunks that overlap a range. A range that is empty or lies beyond the end counts as the
byte at its start, or the last: so there is always a chunk, and whoever learns where the input ends has checked its
final chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ree.errors import InputError, VerificationError
from ree.limits import TENSOR_BYTES_MAX
from ree_kernels import blake3
from ree_kernels.blake3 import CHUNK_BYTES, CV_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Reader = Callable[[int, int], Buffer]  # (offset, number of bytes) -> the input's bytes there

HEADER_BYTES = 8
PARENT_BYTES = 2 * CV_BYTES
GROUP_CHUNKS = 16


def chunk_count(n_bytes: int) -> int:
    """Leaves of the tree; the empty input is one empty chunk."""
    return max(1, -(-n_bytes // CHUNK_BYTES))


def left_chunks(n_chunks: int) -> int:
    """Chunks of the left child of a parent of so many, at least two."""
    return 1 << (n_chunks - 1).bit_length() - 1


def chunk_range(n_bytes: int, start: int, length: int) -> tuple[int, int]:
    """First and last chunk of a slice of [start, start + length)."""
    last = chunk_count(n_bytes) - 1
    return min(start // CHUNK_BYTES, last), min((start + max(length, 1) - 1) // CHUNK_BYTES, last)


def nodes(n_chunks: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Nodes that overlap chunks first..last in pre-order, each as (its first chunk, its number of chunks)."""
    waiting = [(0, n_chunks)]
    while waiting:
        start, n = waiting.pop()
        yield start, n
        if n > 1:
            middle = start + left_chunks(n)
            if last >= middle:
                waiting.append((middle, start + n - middle))
            if first < middle:
                waiting.append((start, middle - start))


def slice_bytes(n_bytes: int, start: int, length: int) -> int:
    """The length of a slice in bytes."""
    n_chunks = chunk_count(n_bytes)
    first, last = chunk_range(n_bytes, start, length)
    parents, size = 0, 2
    while size < 2 * n_chunks:
        # of the nodes of this size the last is no parent if it would have no right child
        end = min(last // size, (n_chunks - size // 2 - 1) // size)
        parents += max(0, end - first // size + 1)
        size *= 2
    data = min((last + 1) * CHUNK_BYTES, n_bytes) - first * CHUNK_BYTES
    return HEADER_BYTES + parents * PARENT_BYTES + data


def levels(cvs: bytes) -> list[bytes]:
    """Chaining values level by level, those of neighbours joined, an odd last one carried up; one at the end."""
    found = [cvs]
    while len(found[-1]) > CV_BYTES:
        found.append(blake3.parents(found[-1]))
    return found


class Outboard:
    """What is kept of an input to cut slices: the chaining values of its groups of chunks, 32 bytes each.

    cvs: of groups of group_chunks (a power of two up to 256), such as `blake3.chaining_values` gives. A slice reads
    and hashes the groups that it touches again.
    """

    def __init__(self, root: bytes, n_bytes: int, cvs: bytes, group_chunks: int = GROUP_CHUNKS) -> None:
        if len(cvs) != CV_BYTES * -(-chunk_count(n_bytes) // group_chunks):
            raise InputError(f"{len(cvs)} bytes of chaining values for an input of {n_bytes} bytes")
        self.root = root
        self.n_bytes = n_bytes
        self.group_chunks = group_chunks
        self.levels = levels(cvs)

    @classmethod
    def of(cls, data: Buffer, group_chunks: int = GROUP_CHUNKS) -> Outboard:
        """The outboard of an input in memory, which is hashed once."""
        view = _view(data)
        cvs = blake3.chaining_values(view, group_chunks)
        if len(cvs) == CV_BYTES:
            return cls(blake3.hash(view), len(view), cvs, group_chunks)
        top = cvs
        while len(top) > PARENT_BYTES:
            top = blake3.parents(top)
        return cls(blake3.parent(top, is_root=True), len(view), cvs, group_chunks)

    def encode(self, data: Buffer | Reader) -> bytes:
        """The outboard as Bao writes it."""
        source = Nodes(self, data)
        last = chunk_count(self.n_bytes) - 1
        parents = [source.parent(*node) for node in nodes(last + 1, 0, last) if node[1] > 1]
        return b"".join([_header(self.n_bytes), *parents])

    def slice(self, data: Buffer | Reader, start: int, length: int) -> bytes:
        """The slice of [start, start + length) of the input, whose bytes are `data` or come from a reader."""
        if start < 0 or length < 0:
            raise InputError(f"no range of {length} bytes from {start}")
        source = Nodes(self, data)
        parts = [_header(self.n_bytes)]
        for first, n in nodes(chunk_count(self.n_bytes), *chunk_range(self.n_bytes, start, length)):
            parts.append(source.parent(first, n) if n > 1 else source.chunk(first))
        return b"".join(parts)


class Nodes:
    """Nodes of an input's tree, by the chunks that they hold; one group of the input's bytes is held at a time."""

    def __init__(self, outboard: Outboard, data: Buffer | Reader) -> None:
        self._outboard = outboard
        self._read = data if callable(data) else _reader(_view(data), outboard.n_bytes)
        self._group = -1
        self._bytes = memoryview(b"")
        self._levels: list[bytes] = []

    def parent(self, first: int, n: int) -> bytes:
        left = left_chunks(n)
        return self.cv(first, left) + self.cv(first + left, n - left)

    def chunk(self, number: int) -> bytes:
        self._load(number // self._outboard.group_chunks)
        offset = number % self._outboard.group_chunks * CHUNK_BYTES
        return bytes(self._bytes[offset : offset + CHUNK_BYTES])

    def cv(self, first: int, n: int) -> bytes:
        """The chaining value of n chunks; it stands in the level of the power of two that holds them."""
        size, group_chunks = 1 << (n - 1).bit_length(), self._outboard.group_chunks
        group, within = divmod(first, group_chunks)
        if size < group_chunks and within == 0 and first + n == chunk_count(self._outboard.n_bytes):
            size = group_chunks  # all of the last group
        if size >= group_chunks:
            return _at(self._outboard.levels[(size // group_chunks).bit_length() - 1], first // size)
        self._load(group)
        if not self._levels:
            self._levels = levels(blake3.chaining_values(self._bytes, first_chunk=group * group_chunks))
        return _at(self._levels[size.bit_length() - 1], within // size)

    def _load(self, group: int) -> None:
        if group == self._group:
            return
        size = self._outboard.group_chunks * CHUNK_BYTES
        wanted = min(size, self._outboard.n_bytes - group * size)
        self._bytes = _view(self._read(group * size, wanted))
        if len(self._bytes) != wanted:
            raise InputError(f"{len(self._bytes)} bytes at {group * size} of the input, not {wanted}")
        self._group, self._levels = group, []


def verify_slice(root: bytes, encoded: Buffer, start: int, length: int, n_bytes: int | None = None) -> bytes:
    """The bytes [start, start + length) of the input with this root, or fewer if it ends before.

    VerificationError if `encoded` is not a slice of that range of that input. The length in its header is checked
    only as far as it matters to the result; a caller who knows the input's length gives it as n_bytes.
    """
    view = _view(encoded)
    claimed = _claimed_bytes(view, n_bytes)
    if min(start, length) < 0 or max(start, length) > TENSOR_BYTES_MAX:
        raise VerificationError(f"no range of {length} bytes from {start}")
    if len(view) != slice_bytes(claimed, start, length):
        raise VerificationError(f"a slice of {len(view)} bytes, not {slice_bytes(claimed, start, length)}")
    first, last = chunk_range(claimed, start, length)
    found = _verified_chunks(root, view, claimed, first, last)
    skip = start - first * CHUNK_BYTES
    return b"".join(found)[skip : skip + length]


def _claimed_bytes(view: memoryview, n_bytes: int | None) -> int:
    if len(view) < HEADER_BYTES:
        raise VerificationError("a slice without a header")
    claimed = int.from_bytes(view[:HEADER_BYTES], "little")
    if claimed > TENSOR_BYTES_MAX or n_bytes not in (None, claimed):
        raise VerificationError(f"a slice of an input of {claimed} bytes")
    return claimed


def _verified_chunks(root: bytes, view: memoryview, n_bytes: int, first: int, last: int) -> list[memoryview]:
    """Chunks first..last of a slice of the right length; each node is compared with what its parent says of it."""
    n_chunks = chunk_count(n_bytes)
    expected, found, offset = [root], [], HEADER_BYTES
    for start, n in nodes(n_chunks, first, last):
        wanted = expected.pop()
        if n > 1:
            node = view[offset : offset + PARENT_BYTES]
            cv = blake3.parent(node, is_root=n == n_chunks)
            middle = start + left_chunks(n)
            if last >= middle:
                expected.append(bytes(node[CV_BYTES:]))
            if first < middle:
                expected.append(bytes(node[:CV_BYTES]))
        else:
            node = view[offset : offset + min(CHUNK_BYTES, n_bytes - start * CHUNK_BYTES)]
            cv = blake3.chunk(node, start, is_root=n == n_chunks)
            found.append(node)
        if cv != wanted:
            raise VerificationError(f"chunks {start} to {start + n - 1} do not have the chaining value {wanted.hex()}")
        offset += len(node)
    return found


def _header(n_bytes: int) -> bytes:
    return n_bytes.to_bytes(HEADER_BYTES, "little")


def _at(level: bytes, index: int) -> bytes:
    return level[index * CV_BYTES : (index + 1) * CV_BYTES]


def _view(data: Buffer) -> memoryview:
    """The bytes of a contiguous buffer."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _reader(view: memoryview, n_bytes: int) -> Reader:
    if len(view) != n_bytes:
        raise InputError(f"an input of {len(view)} bytes, not {n_bytes}")
    return lambda offset, size: view[offset : offset + size]
