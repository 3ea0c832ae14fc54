"""Traces of small fixed runs, and trace files that must be refused: tests/vectors/trace.json.

`python -m tests.trace_vectors` writes the file anew. The graphs are made by hand, so that no release of torch has a
say.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ree.commit.stages import Port, Stage
from ree.commit.tensor import header
from ree.commit.trace import Trace
from ree.lower import Lowering
from ree.program import Program
from ree.types import DType, TensorType
from tests.test_random_graphs import program_of

PATH = Path(__file__).parent / "vectors" / "trace.json"


def _values(*shape: int) -> np.ndarray:
    count = int(np.prod(shape))
    return ((np.arange(count) * 37 % 101).astype(np.float32) / 64 - np.float32(0.75)).reshape(shape)


def _product() -> tuple[Lowering, list[Any], list[np.ndarray]]:
    """A product with a weight, a softmax, and counts: results of several dtypes, a view, and parameters."""
    low = Lowering()
    x = low.input("x", TensorType((5, 300), DType.F32))
    weight = low.constant(_values(300, 7), DType.F32, "w")
    y = low.emit("matmul", [x, weight])
    positive = low.emit("gt", [y, low.full(y.shape, 0.0, DType.F32)])
    count = low.emit("sum", [low.cast(positive, DType.I64)], axes=(0,), keepdim=False)
    return low, [low.emit("softmax", [low.permute(y, (1, 0))]), count], [_values(5, 300)]


def _empty() -> tuple[Lowering, list[Any], list[np.ndarray]]:
    """A result without elements, one of rank 0, and an input of which nothing is read."""
    low = Lowering()
    x = low.input("x", TensorType((0, 4), DType.F32))
    y = low.input("y", TensorType((3,), DType.F32))
    return low, [low.emit("neg", [x]), low.emit("sum", [y], axes=(0,), keepdim=False)], [_values(0, 4), _values(3)]


def traces() -> dict[str, tuple[Program, Trace, list[np.ndarray]]]:
    found = {}
    for name, make in (("product", _product), ("empty", _empty)):
        low, outputs, arrays = make()
        program = program_of(low.finish(outputs), arrays)
        _, trace = program.run_committed(arrays, keep=True)
        found[name] = program, trace, arrays
    return found


def _port(port: Port) -> dict[str, Any]:
    layout = port.layout
    place = {"offset": layout.offset, "extents": list(layout.shape), "strides": list(layout.strides)}
    return {"kind": int(port.source.kind), "number": port.source.number, **place}


def _stage(stage: Stage, trace: Trace) -> dict[str, Any]:
    manifest = trace.manifest
    return {
        "element_program": stage.digest.hex(),
        "header": header(stage.type.dtype, stage.type.extents(), stage.order).hex(),
        "params": list(stage.params),
        "ports": [_port(port) for port in stage.ports],
        "leaf": stage.leaf.hex(),
        "data_root": manifest.roots[stage.index].hex(),
        "tensor_id": manifest.results[stage.index].hex(),
        "trace_leaf": manifest.leaf(stage.index).hex(),
    }


def file_of(trace: Trace, with_results: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        trace.save(Path(folder) / "a.trace", tensors=with_results)
        return (Path(folder) / "a.trace").read_bytes()


def _corruptions(data: bytes) -> dict[str, dict[str, Any]]:
    """Files that must be refused, as patches: bytes at an offset, then cut or followed by others."""
    root, digest = data.index(b'\\"root\\":\\"') + 11, data.index(b'"ree.digest":"') + 14
    length = int.from_bytes(data[:8], "little")

    def at(offset: int) -> str:
        return f"{data[offset] ^ 1:02x}"

    return {
        "cut in the header": {"keep": 8 + length // 2},
        "cut in the tensors": {"keep": len(data) - 1},
        "a byte more": {"append": "00"},
        "a header length beyond the file": {"offset": 0, "bytes": (1 << 40).to_bytes(8, "little").hex()},
        "another root": {"offset": root, "bytes": at(root)},
        "another digest of the manifest": {"offset": digest, "bytes": at(digest)},
        "another input": {"offset": len(data) - 1, "bytes": at(len(data) - 1)},
    }


def patched(data: bytes, patch: dict[str, Any]) -> bytes:
    changed = bytearray(data)
    if "bytes" in patch:
        new = bytes.fromhex(patch["bytes"])
        changed[patch["offset"] : patch["offset"] + len(new)] = new
    return bytes(changed[: patch.get("keep", len(changed))]) + bytes.fromhex(patch.get("append", ""))


def document() -> dict[str, Any]:
    cases = {}
    for name, (program, trace, arrays) in traces().items():
        manifest = trace.manifest
        head, data = manifest.head, file_of(trace, with_results=False)
        cases[name] = {
            "program": program.description.decode("ascii"),
            "program_id": program.program_id.hex(),
            "weights": [constant.array().tobytes().hex() for constant in program.graph.constants],
            "weight_ids": [tensor.hex() for tensor in manifest.weights],
            "inputs": [array.tobytes().hex() for array in arrays],
            "input_ids": [tensor.hex() for tensor in manifest.inputs],
            "sizes": list(manifest.sizes),
            "stages": [_stage(stage, trace) for stage in manifest.stages],
            "outputs": [{"kind": int(s.kind), "number": s.number} for s in manifest.stages.outputs],
            "list_ids": {"inputs": head.inputs.hex(), "weights": head.weights.hex(), "outputs": head.outputs.hex()},
            "tree_root": manifest.tree.root.hex(),
            "trace_root": trace.root.hex(),
            "file": data.hex(),
            "refused": _corruptions(data),
        }
    return cases


if __name__ == "__main__":
    PATH.write_text(json.dumps(document(), indent=1) + "\n", encoding="ascii")
