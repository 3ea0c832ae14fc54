"""Named tensors in safetensors files, read and written without torch.

bf16 has no NumPy dtype; it is held as uint16, as in `ree.types`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ree import atomic, structure
from ree.errors import DTypeError, FormatError, InputError
from ree.types import DType

if TYPE_CHECKING:
    import numpy as np

    from ree.outline import Outline
    from ree.program import Program

BYTES_MAX = 1 << 40
NAMES_SHOWN = 6  # in an error


def read(path: Path) -> dict[str, tuple[np.ndarray, DType]]:
    """All tensors of a safetensors file, with their dtypes; FormatError if it is none."""
    import numpy as np
    from safetensors import SafetensorError, deserialize

    try:
        if path.stat().st_size > BYTES_MAX:
            raise FormatError(f"{path}: larger than {BYTES_MAX} bytes")
        entries = deserialize(path.read_bytes())
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}") from None
    except SafetensorError as error:
        raise FormatError(f"{path}: not a safetensors file ({error})") from None
    found = {}
    for name, entry in entries:
        if entry["dtype"] not in DType.__members__:
            raise FormatError(f"{path}: tensor {name!r} has dtype {entry['dtype']}, which ree does not take")
        dtype = DType[entry["dtype"]]
        found[name] = np.frombuffer(bytes(entry["data"]), dtype.numpy).reshape(entry["shape"]), dtype
    return found


def write(path: Path, tensors: Mapping[str, tuple[np.ndarray, DType]]) -> None:
    """Write a safetensors file; a file of that name is replaced only once the new one is complete."""
    import numpy as np

    header: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    for name, (array, dtype) in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        end = offset + len(data)
        header[name] = {"dtype": dtype.name, "shape": list(array.shape), "data_offsets": [offset, end]}
        parts.append(data)
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with atomic.replacing(path) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.writelines(parts)
    except OSError as error:
        raise FormatError(f"cannot write {path}: {error.strerror}") from None


def program_inputs(program: Outline, tensors: Mapping[str, tuple[np.ndarray, DType]]) -> list[np.ndarray]:
    """The program's inputs in order, by name; with one input any key does. DTypeError where one has another dtype."""
    names = program.input_names
    if len(names) == 1 and len(tensors) == 1:
        tensors = {names[0]: next(iter(tensors.values()))}
    missing = [name for name in names if name not in tensors]
    extra = sorted(name for name in tensors if name not in names)
    if missing or extra:
        faults = [f"{kind}: {_some(found)}" for kind, found in (("missing", missing), ("unknown", extra)) if found]
        raise InputError(f"the program's inputs are {_some(names)}; {', '.join(faults)}")
    for declared in program.graph.inputs:
        dtype = tensors[declared.name][1]
        if dtype is not declared.type.dtype:
            raise DTypeError(f"input {declared.name} is {dtype.value}, the program takes {declared.type.dtype.value}")
    return [tensors[name][0] for name in names]


def _some(names: Sequence[str]) -> str:
    """Names for one line of text: all, or the first of many."""
    shown = ", ".join(map(repr, names[:NAMES_SHOWN]))
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def output_names(output: Any) -> list[str]:
    """A name for each tensor of an output structure: dict keys, `out_0`, `out_1`, ... elsewhere."""
    names: list[str] = []

    def walk(part: structure.Structure, prefix: str) -> None:
        if part == structure.TENSOR:
            names.append(prefix or "out_0")
            return
        ((kind, items),) = part.items()
        if kind == "value":
            return
        for position, item in enumerate(items):
            key, child = (item[0], item[1]) if kind == "dict" else (str(position), item)
            own = key if kind == "dict" or prefix else f"out_{key}"
            walk(child, f"{prefix}.{own}" if prefix else own)

    walk(output, "")
    return names


def program_outputs(program: Program, results: Sequence[np.ndarray]) -> dict[str, tuple[np.ndarray, DType]]:
    """Results under their names, with their dtypes."""
    types = [program.graph.type_of(value) for value in program.graph.outputs]
    names = output_names(program.output_structure)
    return {name: (array, type.dtype) for name, array, type in zip(names, results, types, strict=True)}
