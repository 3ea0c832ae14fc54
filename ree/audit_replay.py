"""Recorded operator calls: saved to a folder, and run again in a process with other settings.

A folder holds calls.json (operators and their arguments) and inputs.safetensors (the memory
of every tensor argument; strides are in the JSON, since they choose torch's kernel). Run as
`python -m ree.audit_replay FOLDER OUTPUT THREADS...` it writes the outputs for every thread
count to a safetensors file; there is no pickle.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ree.errors import FormatError, UnsupportedError

_TORCH_OBJECTS = ("dtype", "layout", "memory_format", "device")


@dataclass
class Call:
    """One call of an ATen operator, with its own copies of the arguments."""

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    where: str = ""
    count: int = 1
    outputs: list[Any] = field(default_factory=list)


def resolve(target: str) -> Any:
    """The operator overload of a name such as "aten.addmm.default"."""
    import torch

    space, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, space), name), overload)


def run(call: Call) -> list[Any]:
    """The tensors that the call gives; arguments that it would write to are copied first."""
    import torch
    from torch.utils import _pytree

    def copy(value: Any) -> Any:
        return clone(value) if isinstance(value, torch.Tensor) else value

    function = resolve(call.target)
    args, kwargs = call.args, call.kwargs
    if function._schema.is_mutable:
        args, kwargs = _pytree.tree_map(copy, (args, kwargs))
    with torch.no_grad():
        result = function(*args, **kwargs)
    return [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def memory(tensor: Any) -> Any:
    """The flat tensor over all memory that this tensor's elements lie in."""
    import torch

    if tensor.numel() == 0:
        return torch.empty(0, dtype=tensor.dtype)
    length = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((length,), (1,))


def clone(tensor: Any) -> Any:
    """A copy with the same strides, also where they overlap."""
    return memory(tensor).clone().as_strided(tensor.shape, tensor.stride(), 0)


# -- folders ----------------------------------------------------------------------


def save(calls: Sequence[Call], folder: Path) -> None:
    """Write the calls; UnsupportedError if an argument is of a kind that JSON cannot hold."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    records = [
        {"target": c.target, "args": _encode(list(c.args), tensors), "kwargs": _encode(c.kwargs, tensors)}
        for c in calls
    ]
    save_file(tensors, str(folder / "inputs.safetensors"))
    (folder / "calls.json").write_text(json.dumps(records), encoding="utf-8")


def load(folder: Path) -> list[Call]:
    """Inverse of `save`."""
    from safetensors.torch import load_file

    tensors = load_file(str(folder / "inputs.safetensors"))
    records = json.loads((folder / "calls.json").read_text(encoding="utf-8"))
    return [Call(r["target"], tuple(_decode(r["args"], tensors)), dict(_decode(r["kwargs"], tensors))) for r in records]


def _encode(value: Any, tensors: dict[str, Any]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = memory(value).clone()
        return {"tensor": name, "shape": list(value.shape), "stride": list(value.stride())}
    if isinstance(value, list | tuple):
        return [_encode(item, tensors) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _encode(item, tensors) for key, item in value.items()}}
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    for kind in _TORCH_OBJECTS:
        if isinstance(value, getattr(torch, kind)):
            return {kind: str(value)}
    raise UnsupportedError(f"an argument of type {type(value).__name__} cannot be recorded")


def _decode(value: Any, tensors: dict[str, Any]) -> Any:
    import torch

    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].as_strided(value["shape"], value["stride"])
    if "dict" in value:
        return {key: _decode(item, tensors) for key, item in value["dict"].items()}
    if "float" in value:
        return float.fromhex(value["float"])
    (kind, text), *_ = value.items()
    if kind not in _TORCH_OBJECTS:
        raise FormatError(f"unknown argument kind {kind!r}")
    return torch.device(text) if kind == "device" else getattr(torch, text.removeprefix("torch."))


def replay(folder: Path, output: Path, threads: Sequence[int]) -> None:
    """Run the folder's calls under each thread count; keys of the output are "threads/call/output"."""
    import torch
    from safetensors.torch import save_file

    calls = load(folder)
    found = {}
    for count in threads:
        torch.set_num_threads(count)
        for number, call in enumerate(calls):
            for position, tensor in enumerate(run(call)):
                found[f"{count}/{number}/{position}"] = tensor.clone(memory_format=torch.contiguous_format)
    save_file(found, str(output))


if __name__ == "__main__":
    replay(Path(sys.argv[1]), Path(sys.argv[2]), [int(n) for n in sys.argv[3:]])
