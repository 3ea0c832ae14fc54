"""Programs that were compiled from files, kept so that the next process neither imports torch nor traces anything.

An entry says how to put the .ree file together again, byte for byte: its header, and for each constant either where
its bytes lie in the input's own files or the bytes themselves. So an entry of a large model is small. The input's
files are those that the key was made of, and every piece was compared with the digest in the program when the entry
was made.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from ree import atomic, cache, nesting
from ree.extents import Extent, extents, tensors
from ree.limits import PROGRAM_ENTRY_BYTES_MAX, PROGRAMS_CACHED_BYTES_MAX
from ree.sources import Sources

_MAGIC = b"REEPROG2"
_LENGTH_BYTES = 8
_STEP_BYTES = 4 << 20  # of a size that the allocator uses again instead of asking the system for new pages
# widenings to float32 that loading may have made: by the dtype's code in safetensors files, its size in bytes
_WIDENED = {"F16": 2, "BF16": 2}
_ITEM_BYTES = (1, 2, 4, 8)  # of what may be transposed
_HERE = -1  # number of the file that is the entry itself


class _StaleError(Exception):
    """The files are not those that the key was made of."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a .ree file: those of file number `file` at an offset, widened to float32 if `dtype` names a type.

    rows, cols: of the matrix that the file holds in C order and the .ree file transposed; 0 where both hold the same
    order. digest: BLAKE3 of the result in hexadecimal, for what is widened or transposed.
    """

    file: int
    offset: int
    size_bytes: int
    dtype: str = ""
    digest: str = ""
    rows: int = 0
    cols: int = 0

    @property
    def is_changed(self) -> bool:
        """Whether the .ree file has the bytes widened or transposed."""
        return bool(self.dtype or self.rows or self.cols)

    @property
    def result_bytes(self) -> int:
        """Size in the .ree file."""
        return self.size_bytes // _WIDENED[self.dtype] * 4 if self.dtype else self.size_bytes

    def item_bytes(self) -> int:
        """Size of an item of a transposed matrix; _StaleError if the sizes do not fit each other."""
        if self.rows < 1 or self.cols < 1:
            raise _StaleError
        size, rest = divmod(self.size_bytes, self.rows * self.cols)
        if rest or size not in _ITEM_BYTES or (self.dtype and size != _WIDENED[self.dtype]):
            raise _StaleError
        return size


def restore(files: Sources, output: Path) -> dict[str, Any] | None:
    """Write the .ree file that was compiled from these files; its summary, or None if the cache cannot give it."""
    path = _path(files.key)
    content = cache.read(path, _MAGIC, files.key)
    if content is None:
        return None
    try:
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        entry = nesting.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length])
        pieces = [Piece(*piece) for piece in entry["pieces"]]
        summary: dict[str, Any] = dict(entry["summary"])
        held = memoryview(content)[_LENGTH_BYTES + length :]
        with contextlib.ExitStack() as stack:
            inputs = [stack.enter_context(f.path.open("rb")) for f in files.files]
            with atomic.replacing(output) as file:
                _assemble(file, pieces, inputs, held)
                if os.fstat(file.fileno()).st_size != entry["size_bytes"] or not files.unchanged():
                    raise _StaleError
    except (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, _StaleError):
        return None
    cache.mark_used(path)
    return summary


def remember(files: Sources, output: Path, summary: dict[str, Any]) -> None:
    """Keep what was compiled from these files to the .ree file `output`; what cannot be kept is no error.

    summary: JSON values that `restore` gives back.
    """
    try:
        pieces, held = _take_apart(output, files)
        if held.size_bytes > PROGRAM_ENTRY_BYTES_MAX:
            return
        size_bytes = output.stat().st_size
        entry = {"pieces": [_values(p) for p in pieces], "summary": summary, "size_bytes": size_bytes}
        text = json.dumps(entry).encode()
        content = len(text).to_bytes(_LENGTH_BYTES, "little") + text + held.read()
        if not files.have_same_content():
            return  # somebody changed them while they were read
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, _StaleError):
        return
    path = _path(files.key)
    if cache.write(path, _MAGIC, files.key, content):
        cache.trim(path.parent, PROGRAMS_CACHED_BYTES_MAX)


def _path(key: bytes) -> Path:
    return cache.directory() / "programs" / key.hex()


def _values(piece: Piece) -> list[Any]:
    return list(asdict(piece).values())


# -- taking apart ----------------------------------------------------------------------------


class _Held:
    """Bytes of the .ree file that the entry keeps itself, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[tuple[int, int]] = []
        self.size_bytes = 0

    def add(self, offset: int, size_bytes: int) -> Piece:
        self.parts.append((offset, size_bytes))
        self.size_bytes += size_bytes
        return Piece(_HERE, self.size_bytes - size_bytes, size_bytes)

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            return b"".join(_read(file.fileno(), offset, size) for offset, size in self.parts)


def _take_apart(output: Path, files: Sources) -> tuple[list[Piece], _Held]:
    """The pieces of a .ree file, in order, and those bytes that no input file has."""
    metadata, found = tensors(output)
    constants = nesting.loads(metadata["ree"])["constants"]
    wanted = [(found[f"c{n}"], str(digest)) for n, (_, _, digest) in enumerate(constants)]
    known = _find(wanted, files)
    held = _Held(output)
    place = min((e.offset for e, _ in wanted), default=output.stat().st_size)
    pieces = [held.add(0, place)]  # the header
    for extent, digest in wanted:
        if extent.offset != place:
            raise ValueError("the constants do not follow one another")
        pieces.append(known.get(digest) or held.add(extent.offset, extent.size_bytes))
        place += extent.size_bytes
    if place != output.stat().st_size:
        raise ValueError("the file does not end with its constants")
    return pieces, held


def _find(wanted: Sequence[tuple[Extent, str]], files: Sources) -> dict[str, Piece]:
    """Pieces of the input's files that give the wanted bytes (where they lie in the .ree file, digest), by digest."""
    shapes: dict[int, set[tuple[int, ...]]] = {}
    for extent, _ in wanted:
        if extent.size_bytes:
            shapes.setdefault(extent.size_bytes, set()).add(extent.shape or ())
    digests = {digest for _, digest in wanted}
    found: dict[str, Piece] = {}
    for number, source in enumerate(files.files):
        for extent, memory in _mapped(source.path, shapes.keys()):
            for piece in _forms(number, extent, shapes):
                digest = _digest(piece, _reader(memory))
                if digest in digests:
                    found.setdefault(digest, replace(piece, digest=digest) if piece.is_changed else piece)
                    break
    return found


def _forms(number: int, extent: Extent, shapes: Mapping[int, set[tuple[int, ...]]]) -> Iterator[Piece]:
    """What the .ree file may have made of an extent of file `number`; shapes: that it has, by size in bytes."""
    plain = Piece(number, extent.offset, extent.size_bytes)
    forms = [plain, replace(plain, dtype=extent.dtype)] if extent.dtype in _WIDENED else [plain]
    forms = [form for form in forms if form.result_bytes in shapes]
    yield from forms
    for form in forms:
        for shape in sorted(shapes[form.result_bytes]):
            if len(shape) == 2 and extent.shape in (None, shape[::-1]):
                yield replace(form, rows=shape[1], cols=shape[0])


def _reader(memory: memoryview) -> Callable[[int, int], memoryview]:
    return lambda start, size: memory[start : start + size]


def _mapped(path: Path, sizes: Collection[int]) -> Iterator[tuple[Extent, memoryview]]:
    """The extents of a file that may be of use, with their bytes."""
    wanted = [e for e in extents(path) if e.size_bytes in sizes or _widened_bytes(e) in sizes]
    if not wanted:
        return
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole,
        memoryview(whole) as memory,
    ):
        for extent in wanted:
            with memory[extent.offset : extent.offset + extent.size_bytes] as part:
                yield extent, part


# -- putting together --------------------------------------------------------------------------


def _assemble(file: BinaryIO, pieces: Sequence[Piece], inputs: Sequence[BinaryIO], held: memoryview) -> None:
    """Write all pieces; _StaleError if an input does not have the bytes that it should."""
    to = file.fileno()
    place = 0
    for piece in pieces:
        if piece.file < _HERE or piece.offset < 0 or piece.size_bytes < 0 or (piece.file == _HERE and piece.is_changed):
            raise _StaleError
        if piece.file == _HERE:
            data = held[piece.offset : piece.offset + piece.size_bytes]
            if len(data) != piece.size_bytes:
                raise _StaleError
            _write(to, place, data)
        elif piece.is_changed:
            _write_changed(to, place, inputs[piece.file].fileno(), piece)
        else:
            _copy(inputs[piece.file].fileno(), piece.offset, to, place, piece.size_bytes)
        place += piece.result_bytes


def _copy(source: int, offset: int, to: int, place: int, count: int) -> None:
    """Copy bytes between files, in the kernel where it can."""
    done = 0
    with contextlib.suppress(OSError, AttributeError):  # other file systems, other systems
        while done < count:
            step = os.copy_file_range(source, to, count - done, offset + done, place + done)
            if step == 0:
                raise _StaleError
            done += step
    while done < count:
        data = _read(source, offset + done, min(_STEP_BYTES, count - done))
        _write(to, place + done, memoryview(data))
        done += len(data)


def _read(source: int, offset: int, count: int) -> bytes:
    """Exactly so many bytes; _StaleError where the file ends before."""
    parts = []
    while count > 0:
        data = os.pread(source, count, offset)
        if not data:
            raise _StaleError
        parts.append(data)
        offset, count = offset + len(data), count - len(data)
    return b"".join(parts)


def _write(to: int, place: int, data: memoryview) -> None:
    while data:
        step = os.pwrite(to, data, place)
        place, data = place + step, data[step:]


# -- widening and transposing --------------------------------------------------------------------


def _widened_bytes(extent: Extent) -> int:
    """Size in float32 of what loading may have widened; 0 for all else."""
    return extent.size_bytes // _WIDENED[extent.dtype] * 4 if extent.dtype in _WIDENED else 0


def _widened(data: Any, dtype: str) -> bytes:
    """float16 or bfloat16 numbers as float32, all little endian."""
    import numpy as np

    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)).tobytes()
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype("<f4").tobytes()
    raise ValueError(f"no widening of {dtype!r}")


def _changed(piece: Piece, read: Callable[[int, int], bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The bytes that a piece gives in the .ree file, in parts; read(start, size): those that it has in its own."""
    parts = _transposed(piece, read) if piece.rows or piece.cols else _in_order(piece, read)
    for part in parts:
        yield _widened(part, piece.dtype) if piece.dtype else part


def _in_order(piece: Piece, read: Callable[[int, int], bytes | memoryview]) -> Iterator[bytes | memoryview]:
    for start in range(0, piece.size_bytes, _STEP_BYTES):
        yield read(start, min(_STEP_BYTES, piece.size_bytes - start))


def _transposed(piece: Piece, read: Callable[[int, int], bytes | memoryview]) -> Iterator[memoryview]:
    import numpy as np

    from ree.passes import transposed

    item_bytes = piece.item_bytes()
    step = max(1, _STEP_BYTES // (piece.rows * item_bytes))
    matrix = np.frombuffer(read(0, piece.size_bytes), f"<u{item_bytes}").reshape(piece.rows, piece.cols)
    for start in range(0, piece.cols, step):
        yield transposed(matrix[:, start : start + step]).reshape(-1).view(np.uint8).data


def _digest(piece: Piece, read: Callable[[int, int], bytes | memoryview]) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    for part in _changed(piece, read):
        hasher.update(part)
    return str(hasher.hexdigest())


def _write_changed(to: int, place: int, source: int, piece: Piece) -> None:
    """Write a piece that is widened or transposed; _StaleError if its bytes are not the right ones."""
    if piece.offset + piece.size_bytes > os.fstat(source).st_size:
        raise _StaleError  # before memory is taken for it
    hasher = blake3(max_threads=blake3.AUTO)
    for part in _changed(piece, lambda start, size: _read(source, piece.offset + start, size)):
        hasher.update(part)
        _write(to, place, memoryview(part))
        place += len(part)
    if hasher.hexdigest() != piece.digest:
        raise _StaleError
