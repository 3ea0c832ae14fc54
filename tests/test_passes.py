"""Weights of products lie K-major: other strides, the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ree
from ree import passes
from ree.commit.stages import Kind, Port
from ree.graph import Constant, Graph, GraphInput, Node, check
from ree.plan.planner import Planner
from ree.plan.weights import Weights
from ree.types import DType, TensorType
from tests import small_models


class Times(nn.Module):
    """A function of the input and of one weight, used as it lies."""

    def __init__(self, weight: torch.Tensor, function: Callable[..., Any] = torch.matmul) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, self.weight)


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def both(model: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> ree.Program:
    """The program with the pass; without it the outputs have the same bits, and the plan as many steps."""
    program = ree.compile(model.eval(), x)
    with monkeypatch.context() as patch:
        patch.setattr(passes, "k_major", lambda graph: graph)
        plain = ree.compile(model, x)
    found, expected = (torch.utils._pytree.tree_leaves(p(x)) for p in (program, plain))
    assert [t.numpy().tobytes() for t in found] == [t.numpy().tobytes() for t in expected]
    assert len(program.plan(()).steps) == len(plain.plan(()).steps)
    assert len(program.stages()) == len(plain.stages())
    assert [c.name for c in program.graph.constants] == [c.name for c in plain.graph.constants]
    return program


def shapes(program: ree.Program) -> list[tuple[int, ...]]:
    return [c.type.extents() for c in program.graph.constants]


def right_operands(program: ree.Program) -> list[Port]:
    """Where products read constant matrices."""
    ports = [port for stage in program.stages() for port in stage.ports]
    return [p for p in ports if p.source.kind is Kind.CONSTANT and len(p.layout.shape) == 2]


@pytest.mark.parametrize(("k", "n"), [(2, 2), (3, 5), (16, 17), (64, 300), (257, 2), (2, 1025), (300, 64)])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_matrix_lies_k_major(rows: int, k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = both(Times(weight(k, n)), weight(rows, k), monkeypatch)
    assert shapes(program) == [(n, k)]
    (port,) = right_operands(program)
    assert port.layout.shape == (k, n) and port.layout.strides == (1, k) and port.layout.offset == 0


@pytest.mark.parametrize(("k", "n"), [(1, 5), (5, 1), (1, 1)])
def test_rows_and_columns_stay(k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shapes(both(Times(weight(k, n)), weight(3, k), monkeypatch)) == [(k, n)]


STAYING: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "a view of it": (lambda x, w: x @ w.t(), (300, 20)),
    "tied": (lambda x, w: w[x.sum(1).long().abs() % 20].sum() + x @ w, (20, 300)),
    "elsewhere, too": (lambda x, w: (x @ w) + w[:1] * x[:, :1], (20, 300)),
    "on the left": (lambda x, w: w @ x.t(), (300, 20)),
    "on both sides": (lambda x, w: (w @ x.t(), x @ w), (20, 20)),
    "an output": (lambda x, w: (x @ w, w), (20, 300)),
    "a batch": (lambda x, w: x.expand(2, 4, 20) @ w, (2, 20, 300)),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_has_other_uses_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, shape = STAYING[name]
    program = both(Times(weight(*shape), function), weight(4, 20), monkeypatch)
    assert shape in shapes(program)


def test_a_matrix_of_two_products(monkeypatch: pytest.MonkeyPatch) -> None:
    program = both(Times(weight(20, 20), lambda x, w: (x @ w).relu() @ w), weight(4, 20), monkeypatch)
    assert [port.layout.strides for port in right_operands(program)] == [(1, 20), (1, 20)]
    assert len(program.graph.constants) == 1


def test_a_folded_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    program = both(Times(weight(20, 300), lambda x, w: x @ (w * 2)), weight(4, 20), monkeypatch)
    assert shapes(program) == [(300, 20)]


def product(x: TensorType, w: TensorType) -> Graph:
    """x @ a constant, as a graph."""
    data = np.random.default_rng(0).integers(-99, 99, w.extents()).astype(w.dtype.numpy)
    node = Node("matmul", (0, 1), {}, TensorType((*x.shape[:-1], w.shape[-1]), x.dtype))
    graph = Graph([GraphInput("x", x)], [Constant("w", w, data)], [node], [2])
    check(graph)
    return graph


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BOOL])
def test_dtypes(dtype: DType) -> None:
    """f32 and integers turn; products of the other floats would run slower, so theirs stay."""
    plain = product(TensorType((5, 37), dtype), TensorType((37, 70), dtype))
    turned = passes.prepare(plain)
    assert (turned.constants[0].type.shape == (70, 37)) == (dtype is DType.F32 or dtype.is_int)
    assert turned.constants[0].array().flags.c_contiguous
    x = np.random.default_rng(1).integers(-99, 99, (5, 37)).astype(dtype.numpy)
    results = []
    for graph in (plain, turned):
        plan = Planner(graph, Weights(graph.constants)).run()
        results.append(np.empty((5, 70), dtype.numpy))
        plan.run([x.ctypes.data], [results[-1].ctypes.data])
    assert results[0].tobytes() == results[1].tobytes()


def test_nothing_to_turn_is_the_same_graph() -> None:
    graph = product(TensorType((5, 37), DType.F64), TensorType((37, 70), DType.F64))
    assert passes.k_major(graph) is graph


def test_twice_is_once() -> None:
    graph = passes.prepare(product(TensorType((5, 37), DType.F32), TensorType((37, 70), DType.F32)))
    again = passes.prepare(graph)
    assert [n.op for n in again.nodes] == [n.op for n in graph.nodes] == ["permute", "matmul"]
    assert again.constants[0] is graph.constants[0]


def test_a_transformer_and_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2 holds its weights [k, n]; the embedding that is its head, too, lies K-major as it is."""
    torch.manual_seed(0)
    model, ids = small_models.gpt2().eval(), small_models.tokens(2, 9)
    program = both(model, ids, monkeypatch)
    names = {c.name: c.type.extents() for c in program.graph.constants}
    assert [shape for name, shape in names.items() if name.endswith("mlp.c_fc.weight")] == [(128, 32)] * 2
    assert (100, 32) in names.values()
    products = [p.layout for p in right_operands(program) if p.layout.shape in ((32, 96), (32, 128), (128, 32))]
    assert len(products) == 6 and all(layout.strides == (1, layout.shape[0]) for layout in products)
    program.save(tmp_path / "m.ree")
    loaded = ree.load(tmp_path / "m.ree")
    assert loaded.program_id == program.program_id
    assert loaded(ids)["logits"].numpy().tobytes() == program(ids).logits.numpy().tobytes()
    with torch.no_grad():
        torch.testing.assert_close(program(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 5), (16, 4097), (17, 3), (5000, 2), (2, 5000), (300, 301)])
def test_transposed(shape: tuple[int, int], dtype: str) -> None:
    matrix = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    for source in (matrix, matrix[::-1, 1:], np.asfortranarray(matrix)):
        found = passes.transposed(source)
        assert found.flags.c_contiguous and found.shape == source.shape[::-1] and np.array_equal(found, source.T)
