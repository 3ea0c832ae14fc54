"""Traces: stages mean what kernels compute, roots bind everything, and nothing but the run matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ree
from ree.commit import tensor
from ree.commit.stages import Kind, Stages
from ree.commit.trace import Trace
from ree.element.interpret import interpret
from ree.types import DType
from ree_kernels import cpu

ROOT = Path(__file__).resolve().parent.parent


class Lambda(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(24, 24) * 0.2)
        self.c = nn.Parameter(torch.randn(6, 4, 3, 3) * 0.2)
        self.e = nn.Parameter(torch.randn(11, 24))

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(self, *args)


def _attention(m: Lambda, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (F.linear(x, m.w).view(2, 9, 3, 8).transpose(1, 2) for _ in range(3))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 9, 24)


# every class of node: what it computes, and the shapes of its inputs
CASES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "product with epilogue": (lambda m, x: F.gelu(F.linear(x, m.w) + 1) * x, ((7, 24),)),
    "product read twice": (lambda m, x: (y := F.linear(x, m.w), torch.relu(y).sum(0) + y.mean(0)), ((7, 24),)),
    "batched product": (lambda m, x, y: torch.bmm(x, y).transpose(1, 2) * 2, ((3, 5, 300), (3, 300, 4))),
    "convolution": (lambda m, x: torch.relu(F.conv2d(x, m.c, padding=1)).mean((2, 3)), ((2, 4, 6, 5),)),
    "attention": (_attention, ((2, 9, 24),)),
    "norm and softmax": (lambda m, x: F.softmax(F.layer_norm(x, (24,)), -1), ((5, 24),)),
    "gather": (lambda m, x: m.e[(x.abs() * 3).long().clamp(0, 10)] + 1, ((4, 6),)),
    "sort": (lambda m, x: torch.sort(x, -1), ((4, 33),)),
    "scan and scatter": (
        lambda m, x: torch.zeros(24).index_add(0, torch.arange(6) // 2, x.cumsum(0)[:, 0]),
        ((6, 3),),
    ),
    "random": (lambda m, x: x + torch.rand_like(x), ((5, 7),)),
    "views": (lambda m, x: x.flip(1).t()[::2].reshape(-1) * torch.cat([x, x], 0)[:, 0].sum(), ((6, 8),)),
    "integers": (lambda m, x: ((x * 10).to(torch.int32) // 3, x > 0), ((3, 17),)),
    "nothing": (lambda m, x: x.sum(-1), ((0, 5),)),
}


def compiled(name: str) -> tuple[ree.Program, list[torch.Tensor]]:
    function, shapes = CASES[name]
    torch.manual_seed(1)
    inputs = [torch.randn(*shape) for shape in shapes]
    return ree.compile(Lambda(function).eval(), tuple(inputs), seed=3), inputs


def traced(name: str, keep: bool = False) -> tuple[list[np.ndarray], Trace, ree.Program]:
    program, inputs = compiled(name)
    outputs, trace = program.run(*inputs, commit=True, keep=keep)
    assert trace is not None
    return [t.numpy() for t in torch.utils._pytree.tree_leaves(outputs)], trace, program


def memory(array: np.ndarray, order: tuple[int, ...]) -> bytes:
    return np.ascontiguousarray(array.transpose(order)).tobytes()


def evaluated(stages: Stages, given: dict[Kind, list[np.ndarray]]) -> list[np.ndarray]:
    """All results by the interpreter, stage by stage, through the ports' layouts over plain bytes."""
    flat = {kind: [np.ascontiguousarray(a).reshape(-1) for a in arrays] for kind, arrays in given.items()}
    flat[Kind.RESULT] = []
    found = []
    for stage in stages:
        views = []
        for port in stage.ports:
            data, layout = flat[port.source.kind][port.source.number], port.layout
            steps = tuple(s * data.itemsize for s in layout.strides)
            views.append(np.lib.stride_tricks.as_strided(data[layout.offset :], layout.shape, steps))
        (result,) = interpret(stage.program, views, stage.type.extents(), stage.params)
        found.append(result)
        flat[Kind.RESULT].append(np.ascontiguousarray(result.transpose(stage.order)).reshape(-1))
    return found


@pytest.mark.parametrize("name", CASES)
def test_stages_mean_what_kernels_compute(name: str) -> None:
    """Each stage's program gives the tensor that the run committed to, and all together the outputs."""
    outputs, trace, program = traced(name, keep=True)
    stages = trace.manifest.stages
    _, inputs = compiled(name)
    given = {
        Kind.INPUT: [t.numpy() for t in inputs],
        Kind.CONSTANT: [c.array() for c in program.graph.constants],
    }
    for stage, want in zip(stages, evaluated(stages, given), strict=True):
        got = trace.tensors[stage.index]
        assert got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes(), stage.index
        assert trace.manifest.roots[stage.index] == blake3.blake3(memory(got, stage.order)).digest()
    for source, output in zip(stages.outputs, outputs, strict=True):
        assert trace.tensors[source.number].tobytes() == output.tobytes()


@pytest.mark.parametrize("name", CASES)
def test_kept_and_recomputed_are_the_same(name: str) -> None:
    plain, trace, _ = traced(name)
    kept, other, _ = traced(name, keep=True)
    assert trace.root == other.root and len(trace.root) == 32
    assert [a.tobytes() for a in trace.tensors.values()] == [a.tobytes() for a in other.tensors.values()]
    assert [a.tobytes() for a in plain] == [a.tobytes() for a in kept]


def test_a_trace_is_not_the_callers_to_change() -> None:
    program, (x,) = compiled("product with epilogue")
    output, trace = program.run(x, commit=True, keep=True)
    _, later = program.run(x, commit=True)
    before = [array.tobytes() for array in trace.tensors.values()]
    output.zero_()
    x.zero_()
    program.run(x, commit=True, keep=True)
    assert [array.tobytes() for array in trace.tensors.values()] == before
    assert [array.tobytes() for array in later.tensors.values()] == before
    with pytest.raises(ValueError, match="read-only"):
        trace.tensors[0][...] = 0


def test_the_root_binds_inputs_weights_program_and_sizes() -> None:
    torch.manual_seed(1)
    model, x = Lambda(CASES["product with epilogue"][0]).eval(), torch.randn(7, 24)
    batch = {0: torch.export.Dim("batch")}

    def root(dynamic: Any = None) -> bytes:
        _, trace = ree.compile(model, (x,), dynamic_shapes=dynamic).run(x, commit=True)
        return trace.root

    roots = {root()}
    roots.add(root({"args": (batch,)}))
    x[0, 0] += 1
    roots.add(root())
    with torch.no_grad():
        model.w[3, 3] += 1
    roots.add(root())
    model.function = lambda m, x: F.gelu(F.linear(x, m.w) + 2) * x
    roots.add(root())
    assert len(roots) == 5


def test_dynamic_programs_have_a_trace_for_each_size() -> None:
    torch.manual_seed(1)
    model, x = Lambda(CASES["product with epilogue"][0]).eval(), torch.randn(7, 24)
    program = ree.compile(model, (x,), dynamic_shapes={"args": ({0: torch.export.Dim("batch")},)})
    traces = [program.run(x[:n], commit=True)[1] for n in (7, 3, 7)]
    assert traces[0].root == traces[2].root != traces[1].root
    assert traces[1].manifest.sizes == (3,)
    assert traces[0].tensors[0][:3].tobytes() == traces[1].tensors[0].tobytes()


WORKER = """
import json, sys
import numpy as np
import ree
ree.threads(int(sys.argv[2]))
program = ree.load(sys.argv[1] + "/m.ree")
inputs = [np.load(f"{sys.argv[1]}/{n}.npy") for n in range(len(program.input_names))]
_, trace = program.run_committed(inputs)
print(json.dumps([trace.root.hex(), "torch" in sys.modules]))
"""


@pytest.mark.parametrize("name", ["product with epilogue", "convolution", "attention", "sort"])
def test_one_root_over_instruction_sets_threads_and_processes(name: str, tmp_path: Path) -> None:
    program, inputs = compiled(name)
    program.save(tmp_path / "m.ree")
    for n, x in enumerate(inputs):
        np.save(tmp_path / f"{n}.npy", x.numpy())
    _, trace = program.run(*inputs, commit=True)
    for isa, threads in [(isa, 1 + n) for n, isa in enumerate(cpu.supported())] + [(cpu.supported()[-1], 7)]:
        env = os.environ | {"REE_ISA": isa, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", WORKER, str(tmp_path), str(threads)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [trace.root.hex(), False], (isa, threads)


def test_tensor_ids_bind_dtype_shape_and_order() -> None:
    root = blake3.blake3(bytes(24)).digest()
    ids = {
        tensor.tensor_id(DType.F32, (2, 3), root),
        tensor.tensor_id(DType.F32, (3, 2), root),
        tensor.tensor_id(DType.F32, (6,), root),
        tensor.tensor_id(DType.F32, (1, 6), root),
        tensor.tensor_id(DType.I32, (2, 3), root),
        tensor.tensor_id(DType.F32, (2, 3), root, (1, 0)),
        tensor.tensor_id(DType.F32, (2, 3), blake3.blake3(bytes(25)).digest()),
    }
    assert len(ids) == 7
    assert tensor.tensor_id(DType.F32, (2, 3), root) == tensor.tensor_id(DType.F32, (2, 3), root, (0, 1))


def test_kept_memory_is_reused_only_when_nobody_looks_at_it() -> None:
    program, inputs = compiled("norm and softmax")
    _, first = program.run(*inputs, commit=True, keep=True)
    held = first.tensors[0]
    before = held.tobytes()
    other = [x + 1 for x in inputs]
    _, second = program.run(*other, commit=True, keep=True)
    address = second.tensors[0].ctypes.data
    assert held.tobytes() == before and held.ctypes.data != address
    expected = second.tensors[0].tobytes()
    del second
    _, third = program.run(*other, commit=True, keep=True)
    assert third.tensors[0].ctypes.data == address and third.tensors[0].tobytes() == expected
    del first
    program.run(*other, commit=True, keep=True)
    assert held.tobytes() == before


def test_what_a_committed_run_needs_lives_as_long_as_its_plan() -> None:
    """The executor's table holds addresses only: memory that nothing else names was given back, and used again."""
    program, inputs = compiled("attention")
    _, first = program.run(*inputs, commit=True)
    junk = []
    for n in range(300):
        junk += [np.full(k, 0x4141414141414141, np.uint64) for k in range(1, 40)]
        _, trace = program.run(*inputs, commit=True, keep=n % 3 == 0)
        assert trace.root == first.root
    assert junk
