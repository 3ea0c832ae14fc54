"""The trace file: a safetensors file with what a trace's root binds, the run's inputs and, if wanted, all results.

Metadata key "ree.trace" is the manifest as canonical JSON, "ree.digest" its BLAKE3; tensors `i0`, `i1`, ... are the
inputs, `r0`, `r1`, ... the stages' results as they lie in memory. The bytes of a header follow from the manifest, so a
reader makes them anew and takes no others; a tensor is read when it is asked for, and held to the manifest
(docs/SPEC.md, "Trace files").
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, overload

import blake3
import numpy as np

from ree import atomic, file, nesting
from ree.commit.stages import Kind, Source
from ree.commit.tensor import tensor_id
from ree.commit.trace import Manifest, Trace, list_id
from ree.errors import Error, FormatError, InputError, LimitError, VerificationError
from ree.limits import HEADER_BYTES_MAX
from ree.program import Program
from ree.types import DType

VERSION = 1
ID_DIGITS_SHOWN = 16  # of a digest in an error
_NAMES = {Kind.INPUT: "i", Kind.RESULT: "r"}
_ALIGN_BYTES = 64
_NOT_RESERVED = (errno.EOPNOTSUPP, errno.EINVAL)  # of file systems that cannot reserve room


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor lies in a trace file: offset in its data; order: the axes of the shape as they lie in memory."""

    source: Source
    offset: int
    dtype: DType
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size_bytes


@dataclass(frozen=True)
class Form:
    """The form of a trace's file, which follows from its manifest and from whether the results are stored."""

    manifest: Manifest
    stored: bool

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All tensors in the order of the file."""
        stages = self.manifest.stages
        sources = [Source(Kind.INPUT, n) for n in range(len(self.manifest.inputs))]
        sources += [Source(Kind.RESULT, n) for n in range(len(stages) if self.stored else 0)]
        found, offset = [], 0
        for source in sources:
            found.append(Slot(source, offset, *stages.type_of(source)))
            offset += found[-1].size_bytes
        return tuple(found)

    @cached_property
    def header(self) -> bytes:
        """The file's first bytes: length of the JSON text, and the text, padded so that data starts aligned."""
        text = _describe(self.manifest)
        digest = blake3.blake3(text).hexdigest()
        entries: dict[str, Any] = {"__metadata__": {"ree.trace": text.decode("ascii"), "ree.digest": digest}}
        for slot in self.slots:
            name = f"{_NAMES[slot.source.kind]}{slot.source.number}"
            offsets = [slot.offset, slot.offset + slot.size_bytes]
            entries[name] = {"dtype": slot.dtype.name, "shape": slot.memory_shape, "data_offsets": offsets}
        header = json.dumps(entries, separators=(",", ":")).encode("ascii")
        header += b" " * (-(8 + len(header)) % _ALIGN_BYTES)
        return struct.pack("<Q", len(header)) + header

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return len(self.header) + sum(slot.size_bytes for slot in self.slots)


def _describe(manifest: Manifest) -> bytes:
    """The manifest as canonical JSON."""
    return file.canonical(
        {
            "version": VERSION,
            "program_id": manifest.program_id.hex(),
            "sizes": list(manifest.sizes),
            "inputs": [id.hex() for id in manifest.inputs],
            "weights": manifest.head.weights.hex(),
            "roots": [root.hex() for root in manifest.roots],
            "root": manifest.root.hex(),
        }
    )


# -- writing --------------------------------------------------------------------------


def save(trace: Trace, path: str | os.PathLike[str], tensors: bool = True) -> None:
    """Write a trace, whole or not at all; tensors: with all results. FormatError: it cannot be written."""
    target = file._path(path)
    form = Form(trace.manifest, tensors)
    if len(form.header) > HEADER_BYTES_MAX:
        raise LimitError(f"the trace's header has {len(form.header)} bytes, more than {HEADER_BYTES_MAX}")
    if tensors:
        _ = trace.tensors  # computed again now, if they were not kept
    try:
        with atomic.replacing(target) as opened:
            _reserve(opened, form.size_bytes)
            opened.write(form.header)
            for slot in form.slots:
                opened.write(trace.memory(slot.source).data)
    except OSError as error:
        raise FormatError(f"cannot write {target}: {error.strerror or error}") from None


def _reserve(opened: BinaryIO, size_bytes: int) -> None:
    """Let a full disk be seen before anything is written, where the file system can tell."""
    try:
        os.posix_fallocate(opened.fileno(), 0, size_bytes)
    except OSError as error:
        if error.errno not in _NOT_RESERVED:
            raise


# -- reading --------------------------------------------------------------------------


def load(path: str | os.PathLike[str], program: Program) -> Trace:
    """The trace in a file, if it is one of this program and is what it says; its tensors are read when asked for.

    FormatError: the file is malformed or truncated. VerificationError: it is of another program, or its root is not
    that of what it lists. What it lists may still be wrong: that is for whoever checks the run.
    """
    where = file._path(path)
    if not isinstance(program, Program):
        raise InputError(f"a Program is expected, not {type(program).__name__}")
    header, size_bytes = _read_header(where)
    try:
        entries = nesting.loads(header[8:])
        form = Form(_manifest(_description(entries), program), stored=f"{_NAMES[Kind.RESULT]}0" in entries)
        if any(extent < 0 for slot in form.slots for extent in slot.shape):
            raise FormatError("a tensor has a negative extent at these sizes")
        if header != form.header:
            raise FormatError("the header is not the one that the trace has")
        if size_bytes != form.size_bytes:
            raise FormatError(f"the file has {size_bytes} bytes, the trace {form.size_bytes} (truncated?)")
    except Error as error:
        kind = VerificationError if isinstance(error, VerificationError) else FormatError
        raise kind(f"{where}: {error}") from None
    except (*file.MALFORMED, struct.error) as error:
        raise FormatError(f"{where}: the trace is malformed ({type(error).__name__})") from None
    return _trace(where, form, program)


def _trace(where: Path, form: Form, program: Program) -> Trace:
    manifest = form.manifest

    def is_input(slot: Slot, root: bytes) -> bool:
        return tensor_id(slot.dtype, slot.shape, root) == manifest.inputs[slot.source.number]

    def is_result(slot: Slot, root: bytes) -> bool:
        return root == manifest.roots[slot.source.number]

    start, count = len(form.header), len(manifest.inputs)
    inputs = _Stored(where, start, form.slots[:count], is_input, {})  # a run takes their addresses
    if not form.stored:
        return Trace(manifest, program, inputs, lambda: program.results_of(manifest, inputs))
    results = _Stored(where, start, form.slots[count:], is_result, weakref.WeakValueDictionary())
    return Trace(manifest, program, inputs, lambda: results)


def _read_header(path: Path) -> tuple[bytes, int]:
    """Length and text of the header, and the length of the file."""
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as opened:
            prefix = opened.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(HEADER_BYTES_MAX, size_bytes - 8):
                raise FormatError(f"{path}: not a trace file (or truncated)")
            return prefix + opened.read(length), size_bytes
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from None


def _description(entries: Any) -> Any:
    """The manifest's JSON value in a header's."""
    metadata = entries.get("__metadata__", {})
    if "ree.trace" not in metadata:
        raise FormatError("not a trace file: it holds no trace")
    text = metadata["ree.trace"].encode("ascii")
    if blake3.blake3(text).hexdigest() != metadata["ree.digest"]:
        raise FormatError("the trace does not match its digest")
    return nesting.loads(text)


def _manifest(described: Any, program: Program) -> Manifest:
    """The manifest that a JSON value means for this program, if its root is the stated one."""
    if described["version"] != VERSION:
        raise FormatError(f"format version {described['version']!r} is not supported"[:100])
    if _digest(described["program_id"]) != program.program_id:
        stated, own = described["program_id"], program.program_id.hex()
        raise VerificationError(f"a trace of program {stated[:ID_DIGITS_SHOWN]}..., not of {own[:ID_DIGITS_SHOWN]}...")
    sizes = tuple(_size(value) for value in described["sizes"])
    bounds = program.graph.symbols.values()
    if len(sizes) != len(bounds) or not all(low <= n <= high for n, (low, high) in zip(sizes, bounds, strict=True)):
        raise FormatError("the sizes are not ones of the program's dynamic dimensions")
    stages = program.stages(sizes)
    inputs = tuple(_digest(value) for value in described["inputs"])
    roots = tuple(_digest(value) for value in described["roots"])
    if (len(inputs), len(roots)) != (len(program.graph.inputs), len(stages)):
        raise FormatError(
            f"{len(inputs)} inputs and {len(roots)} results, where the program has "
            f"{len(program.graph.inputs)} and {len(stages)}"
        )
    weights = program.weight_ids
    if _digest(described["weights"]) != list_id(weights):
        raise VerificationError("the weights are not the program's")
    manifest = Manifest(program.program_id, sizes, stages, inputs, weights, roots)
    if _digest(described["root"]) != manifest.root:
        raise VerificationError("the trace root is not that of the results that the trace lists")
    return manifest


def _digest(value: Any) -> bytes:
    found = bytes.fromhex(value)
    if len(found) != blake3.blake3.digest_size:
        raise FormatError("a digest is expected")
    return found


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise FormatError("a size is expected")
    return value


class _Stored(Sequence[np.ndarray]):
    """Tensors in a file as arrays of their logical shapes, each read and checked when it is asked for.

    start: of the file's data; holds: whether a tensor with this data root is the one that the trace commits to. A
    tensor is read into memory, not mapped: what was checked stays, whatever becomes of the file. held: those that were
    read; a weak mapping lets go of what nobody looks at.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        slots: Sequence[Slot],
        holds: Callable[[Slot, bytes], bool],
        held: MutableMapping[int, np.ndarray],
    ) -> None:
        self._path, self._start, self._slots, self._holds, self._held = path, start, slots, holds, held

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        slot = self._slots[index]
        data = self._held.get(slot.source.number)
        if data is None:
            self._held[slot.source.number] = data = self._read(slot)
        return data.reshape(slot.memory_shape).transpose(np.argsort(slot.order))

    def _read(self, slot: Slot) -> np.ndarray:
        count = math.prod(slot.shape)
        try:
            data = np.fromfile(self._path, slot.dtype.numpy, count, offset=self._start + slot.offset)
        except OSError as error:
            raise FormatError(f"{self._path}: {error.strerror or error}") from None
        except MemoryError:
            raise LimitError(f"no memory for a tensor of {slot.size_bytes} bytes") from None
        kind = "stage" if slot.source.kind is Kind.RESULT else "input"
        if data.size != count or not self._holds(slot, file.digest(data)):
            what = f"the tensor of {kind} {slot.source.number}"
            raise VerificationError(f"{self._path}: {what} is not the one that the trace commits to")
        data.flags.writeable = False
        return data
