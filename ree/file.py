"""The `.ree` file: a safetensors file whose metadata holds the program.

Tensors `c0`, `c1`, ... are the constants; metadata key "ree" is the program as canonical
JSON, "ree.digest" its BLAKE3. Weights are read when they are needed and checked against
the digests in the program. Nothing in a file is executed or unpickled, and every length
is checked before it is used (docs/SPEC.md, "Program file").
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from ree import atomic, dims, nesting, structure
from ree.dims import Dim
from ree.errors import Error, FormatError, InputError, LimitError
from ree.graph import Constant, Data, Graph, GraphInput, Node, check
from ree.limits import HEADER_BYTES_MAX, NAME_BYTES_MAX, NESTING_MAX, NODES_MAX, RANK_MAX, TENSOR_BYTES_MAX
from ree.passes import check_outputs
from ree.types import DType, TensorType

VERSION = 1
# what Python raises when a parsed value is not what the code takes it for
MALFORMED = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError, AssertionError,
    ZeroDivisionError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FileData:
    """A constant's bytes in a file; `read` gives them, checked against their digest."""

    path: Path
    offset: int
    type: TensorType
    digest: bytes

    def read(self) -> np.ndarray:
        count = self.type.numel()
        try:
            data = np.fromfile(self.path, self.type.dtype.numpy, count, offset=self.offset)
        except OSError as error:
            raise FormatError(f"{self.path}: {error.strerror or error}") from None
        if data.size != count or digest(data) != self.digest:
            raise FormatError(f"{self.path}: a weight is truncated or altered")
        return data.reshape(self.type.extents())


@dataclass(frozen=True, slots=True)
class DataRoot:
    """A constant of which only the data root is known."""

    digest: bytes

    def read(self) -> np.ndarray:
        raise InputError("the weights of this program are not here, only their digests")


@dataclass(frozen=True, slots=True)
class Held:
    """A constant's data, held to its data root, which is known, whenever it is read."""

    data: np.ndarray | Data
    digest: bytes

    def read(self) -> np.ndarray:
        found = self.data if isinstance(self.data, np.ndarray) else self.data.read()
        if digest(found) != self.digest:
            raise FormatError("a weight is not the one that the program was compiled with: a file has changed")
        return found


def digest(data: np.ndarray) -> bytes:
    """BLAKE3 of an array's bytes in C order: the tensor's data root."""
    found: bytes = blake3.blake3(_bytes_of(data), max_threads=blake3.blake3.AUTO).digest()
    return found


def _bytes_of(data: np.ndarray) -> Any:
    """The array's bytes in C order, as a buffer without a copy where it is contiguous."""
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data


# -- writing --------------------------------------------------------------------------


def describe(graph: Graph, inputs: Any, outputs: Any, roots: Sequence[bytes] | None = None) -> dict[str, Any]:
    """The program as JSON values: everything but the constants' bytes; roots: their data roots, if known."""
    roots = [data_root(constant) for constant in graph.constants] if roots is None else roots
    return {
        "version": VERSION,
        "symbols": {name: list(bounds) for name, bounds in sorted(graph.symbols.items())},
        "inputs": [[i.name, _type_json(i.type)] for i in graph.inputs],
        "constants": [[c.name, _type_json(c.type), r.hex()] for c, r in zip(graph.constants, roots, strict=True)],
        "nodes": [
            [n.op, list(n.inputs), {k: _attr_json(v) for k, v in sorted(n.attrs.items())}, _type_json(n.type)]
            for n in graph.nodes
        ],
        "outputs": graph.outputs,
        "structure": [inputs, outputs],
    }


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _path(path: str | os.PathLike[str]) -> Path:
    try:
        found = Path(path)
    except TypeError:
        raise InputError(f"a path is expected, not {path!r}") from None
    if "\0" in str(found):
        raise InputError("a path holds a null byte")
    return found


def save(path: str | os.PathLike[str], graph: Graph, inputs: Any, outputs: Any) -> None:
    """Write a program file; a file of that name is replaced only once the new one is complete."""
    target = _path(path)
    program = canonical(describe(graph, inputs, outputs))
    header: dict[str, Any] = {
        "__metadata__": {"ree": program.decode("ascii"), "ree.digest": blake3.blake3(program).hexdigest()}
    }
    offset = 0
    for number, constant in enumerate(graph.constants):
        size = constant.type.size_bytes()
        shape = list(constant.type.shape)
        offsets = [offset, offset + size]
        header[f"c{number}"] = {"dtype": constant.type.dtype.name, "shape": shape, "data_offsets": offsets}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 64 + 56)  # data starts at a multiple of 64 bytes
    if len(text) > HEADER_BYTES_MAX:
        raise LimitError(f"the program's header has {len(text)} bytes, more than {HEADER_BYTES_MAX}")
    _write(target, text, graph.constants)


def _write(path: Path, header: bytes, constants: list[Constant]) -> None:
    try:
        with atomic.replacing(path) as file:
            file.write(struct.pack("<Q", len(header)))
            file.write(header)
            for constant in constants:
                file.write(_bytes_of(constant.array()))
    except OSError as error:
        raise FormatError(f"cannot write {path}: {error.strerror}") from None


def data_root(constant: Constant) -> bytes:
    """The data root of a constant; what comes from a file is held to it whenever it is read."""
    return constant.data.digest if isinstance(constant.data, FileData | DataRoot | Held) else digest(constant.array())


def _type_json(type: TensorType) -> list[Any]:
    return [type.dtype.value, [dims.to_json(n) for n in type.shape]]


def _attr_json(value: Any) -> Any:
    """bool, str, None and integers as they are; {"f": hex}, {"d": dim} and lists for the rest."""
    if isinstance(value, tuple | list):
        return [_attr_json(item) for item in value]
    if isinstance(value, Dim):
        return {"d": dims.to_json(value)}
    if isinstance(value, float):
        return {"f": value.hex()}
    return value


# -- reading ---------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> tuple[Graph, Any, Any]:
    """Read a program file: (graph, input structure, output structure). FormatError on anything else."""
    where = _path(path)
    try:
        size_bytes = where.stat().st_size
        with where.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(HEADER_BYTES_MAX, size_bytes - 8):
                raise FormatError(f"{where}: not a .ree file (or truncated)")
            text = file.read(length)
    except OSError as error:
        raise FormatError(f"{where}: {error.strerror}") from None
    with _malformed(f"{where}: "):
        return _parse(where, text, 8 + length, size_bytes)


def parse(description: bytes) -> tuple[Graph, Any, Any]:
    """A program without weights, from its canonical JSON (`describe`); its constants have data roots only.

    FormatError on anything else, also on other spellings of the same program.
    """
    with _malformed(""):
        found = _program(nesting.loads(description), _without_data)
        graph, inputs, outputs = found
        if canonical(describe(graph, inputs, outputs)) != description:
            raise FormatError("the program is not in its canonical form")
        return found


@contextlib.contextmanager
def _malformed(where: str) -> Iterator[None]:
    try:
        yield
    except Error as error:
        raise FormatError(f"{where}{error}") from None
    except MALFORMED as error:
        raise FormatError(f"{where}the program is malformed ({type(error).__name__})") from None


def _parse(path: Path, text: bytes, data_start: int, size_bytes: int) -> tuple[Graph, Any, Any]:
    header = nesting.loads(text)
    metadata = header.get("__metadata__", {})
    if "ree" not in metadata:
        raise FormatError("not a .ree file: it holds no program")
    program_text = metadata["ree"].encode("ascii")
    if blake3.blake3(program_text).hexdigest() != metadata["ree.digest"]:
        raise FormatError("the program does not match its digest")

    def constant(number: int, description: Any) -> Constant:
        return _constant(path, header[f"c{number}"], description, data_start, size_bytes)

    return _program(nesting.loads(program_text), constant)


def _program(program: Any, constant: Callable[[int, Any], Constant]) -> tuple[Graph, Any, Any]:
    """A program from its JSON values, checked; constant: gives the one of this number and description."""
    if program["version"] != VERSION:
        raise FormatError(f"format version {program['version']} is not supported")
    if len(program["nodes"]) > NODES_MAX:
        raise FormatError("too many nodes")
    graph = Graph(
        [GraphInput(_name(name), _type(type)) for name, type in program["inputs"]],
        [constant(n, entry) for n, entry in enumerate(program["constants"])],
        [_node(entry) for entry in program["nodes"]],
        [_int(v) for v in program["outputs"]],
        {_symbol(k): (_int(low), _int(high)) for k, (low, high) in program["symbols"].items()},
    )
    inputs, outputs = program["structure"]
    if structure.check(inputs) != len(graph.inputs) or structure.check(outputs) != len(graph.outputs):
        raise FormatError("the structures do not fit the inputs and outputs")
    check(graph)
    check_outputs(graph)
    return graph, inputs, outputs


def _without_data(number: int, description: Any) -> Constant:
    name, type_json, hex_digest = description
    type, root = _type(type_json), bytes.fromhex(hex_digest)
    if not type.is_static or len(root) != blake3.blake3.digest_size:
        raise FormatError(f"constant {number} has no data root")
    return Constant(_name(name), type, DataRoot(root))


def _constant(path: Path, entry: Mapping[str, Any], description: Any, data_start: int, size_bytes: int) -> Constant:
    name, type_json, hex_digest = description
    type = _type(type_json)
    start, end = (_int(v) for v in entry["data_offsets"])
    static = type.is_static and entry["dtype"] == type.dtype.name and entry["shape"] == list(type.shape)
    if not static or end - start != type.size_bytes() or not 0 <= start <= end <= size_bytes - data_start:
        raise FormatError(f"constant {name!r} does not fit the file")
    checksum = bytes.fromhex(hex_digest)
    return Constant(_name(name), type, FileData(path, data_start + start, type, checksum))


def _node(entry: Any) -> Node:
    op, inputs, attrs, type = entry
    return Node(_name(op), tuple(_int(v) for v in inputs), {_name(k): _attr(v) for k, v in attrs.items()}, _type(type))


def _type(entry: Any) -> TensorType:
    dtype, shape = entry
    if len(shape) > RANK_MAX:
        raise FormatError(f"a tensor of {len(shape)} axes")
    result = TensorType(tuple(dims.from_json(n) for n in shape), DType(dtype))
    if any(isinstance(n, int) and n < 0 for n in result.shape):
        raise FormatError("a negative extent")
    if result.is_static and result.size_bytes() > TENSOR_BYTES_MAX:
        raise FormatError("a tensor is too large")
    return result


def _attr(value: Any, depth: int = 0) -> Any:
    if depth > NESTING_MAX:
        raise FormatError("an attribute is nested too deeply")
    if isinstance(value, list):
        return tuple(_attr(item, depth + 1) for item in value)
    if isinstance(value, dict):
        ((kind, item),) = value.items()
        if kind == "f":
            return float.fromhex(item)
        if kind == "d":
            return dims.from_json(item)
        raise FormatError(f"unknown attribute kind {kind!r}")
    if isinstance(value, float):
        raise FormatError("a float attribute is written in hex")
    return value


def _int(value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 62:
        raise FormatError("an integer is expected")
    return value


def _symbol(value: Any) -> str:
    if not _name(value).isidentifier():
        raise FormatError("a dynamic dimension's name is not an identifier")
    return str(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > NAME_BYTES_MAX:
        raise FormatError("a name is expected")
    return value
