"""Programs of language models that were captured before, so that the next process traces nothing.

An entry holds the graph, and of each constant how it is made from tensors of the folder; only constants that no tensor
gives (tables of a rotary embedding, say) are kept themselves. The key is that of `ree.sources`: content of all files of
the folder, ree's own code, versions, processor. Whatever is read for a constant is held to its data root.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ree import cache, file, nesting, sources
from ree.errors import Error
from ree.graph import Constant, Data
from ree.limits import PROGRAM_ENTRY_BYTES_MAX, PROGRAMS_CACHED_BYTES_MAX
from ree.lm.quantise import Quantised
from ree.lm.shards import Shards
from ree.lm.weights import ShardData
from ree.passes import Turned
from ree.program import Program
from ree.types import DType, TensorType

_MAGIC = b"REELM001"
_LENGTH_BYTES = 8
_SHARD, _TURNED, _INT8, _HERE = "shard", "turned", "int8", "here"


def compiled(folder: Path, shards: Shards, dtype: str, compile: Callable[[], Program]) -> Program:
    """The program of a folder in a dtype: from the cache, else what `compile` gives, which is kept if it can be."""
    found = sources.of(folder, {"language model": dtype})
    if found is None:
        return compile()
    path = cache.directory() / "lm" / found.key.hex()
    content = cache.read(path, _MAGIC, found.key)
    program = None if content is None else _restored(content, shards)
    if program is not None:
        cache.mark_used(path)
        return program
    program = compile()
    entry = _entry(program)
    if entry is not None and found.have_same_content() and cache.write(path, _MAGIC, found.key, entry):
        cache.trim(path.parent, PROGRAMS_CACHED_BYTES_MAX)
    return program


# -- writing ------------------------------------------------------------------------------------


def _entry(program: Program) -> bytes | None:
    """What the cache keeps; None if a constant is neither small nor made from the folder's tensors."""
    held = bytearray()
    recipes = [_recipe(constant.data, constant.type, held) for constant in program.graph.constants]
    if len(held) > PROGRAM_ENTRY_BYTES_MAX or None in recipes:
        return None
    text = json.dumps({"program": program.description.decode("ascii"), "constants": recipes}).encode("ascii")
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + bytes(held)


def _recipe(data: np.ndarray | Data, type: TensorType, held: bytearray) -> list[Any] | None:
    kind = [type.dtype.value, list(type.extents())]
    if isinstance(data, ShardData):
        return [_SHARD, *kind, data.name]
    if isinstance(data, Turned):
        inner = _recipe(data.data, TensorType(type.shape[::-1], type.dtype), held)
        return None if inner is None else [_TURNED, *kind, inner]
    if isinstance(data, Quantised):
        inner = _recipe(data.constant.data, data.constant.type, held)
        return None if inner is None else [_INT8, *kind, inner]
    if isinstance(data, np.ndarray):
        held += np.ascontiguousarray(data).tobytes()
        return [_HERE, *kind, len(held) - data.nbytes]
    return None


# -- reading ------------------------------------------------------------------------------------


def _restored(content: bytes, shards: Shards) -> Program | None:
    """The program of an entry; None if it is not one."""
    try:
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        entry = nesting.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length])
        held = memoryview(content)[_LENGTH_BYTES + length :]
        graph, inputs, outputs = file.parse(entry["program"].encode("ascii"))
        constants = [
            replace(constant, data=file.Held(_data(recipe, shards, held), file.data_root(constant)))
            for constant, recipe in zip(graph.constants, entry["constants"], strict=True)
        ]
    except (Error, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        return None
    return Program(replace(graph, constants=constants), inputs, outputs)


def _data(recipe: list[Any], shards: Shards, held: memoryview) -> np.ndarray | Data:
    how, dtype, shape, part = recipe
    type = TensorType(tuple(int(n) for n in shape), DType(dtype))
    if how == _SHARD:
        if shards[part].shape != type.shape:
            raise ValueError(f"tensor {part} has another shape")
        return ShardData(shards, part, type)
    if how == _TURNED:
        return Turned(_lazy(_data(part, shards, held)))
    if how == _INT8:
        _, inner_dtype, inner_shape, _ = part
        inner = TensorType(tuple(int(n) for n in inner_shape), DType(inner_dtype))
        return Quantised(Constant("", inner, _data(part, shards, held)))
    if how == _HERE:
        data = np.frombuffer(held, type.dtype.numpy, type.numel(), part)
        return data.reshape(type.extents())
    raise ValueError(f"no recipe {how!r}")


def _lazy(data: np.ndarray | Data) -> Data:
    if isinstance(data, np.ndarray):
        raise TypeError("a turned constant is one of the folder's")
    return data
