"""Exact products of bytes on the second device: every tile, few rows, parts of k, rows of any stride."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ree
from ree.device import schedule_matmul_i8 as schedule
from ree.device.plan import DevicePlan
from ree.device.planner import DevicePlanner
from ree.device.weights import DeviceWeights
from ree.graph import Constant, Graph, GraphInput, Node, check
from ree.lm.quantise import quantise
from ree.passes import prepare
from ree.plan.weights import Weights
from ree.program import Program
from ree.types import DType, TensorType
from tests.cuda_case import kernels_of, on_device, same_outputs
from tools.emulator import device as emulator

FEW, TILE, SUM, ROWS = (f"ree_matmul_i8{end}" for end in ("_few", "", "_sum", "_rows"))
EXTREMES = np.array([-128, 127], np.int8)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """All bytes, the extreme ones often."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-128, 127, shape, np.int8, endpoint=True)
    return np.where(rng.random(shape) < 0.2, rng.choice(EXTREMES, shape), values)


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product, modulo 2^32."""
    return (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)


def run(graph: Graph, *inputs: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The one output of a graph on the device, and the kernels."""
    check(graph)
    plan: DevicePlan = DevicePlanner(graph, DeviceWeights(Weights(graph.constants), emulator.shared())).run()
    plan.compile()
    out = np.empty(graph.type_of(graph.outputs[0]).extents(), np.int32)
    plan.run([x.ctypes.data for x in inputs], [out.ctypes.data])
    return out, [step.kernel for step in plan.steps]


def product(a: np.ndarray, b: np.ndarray, columns: bool = False) -> list[str]:
    """Check a @ b; gives the kernels. columns: the constant lies as [n, k]."""
    (m, k), n = a.shape, b.shape[1]
    x, out = TensorType((m, k), DType.I8), TensorType((m, n), DType.I32)
    nodes = [Node("matmul", (0, 1), {"out": "i32"}, out)]
    constant = np.ascontiguousarray(b.T) if columns else b
    if columns:
        turned = Node("permute", (1,), {"axes": (1, 0)}, TensorType((k, n), DType.I8))
        nodes = [turned, Node("matmul", (0, 2), {"out": "i32"}, out)]
    w = Constant("w", TensorType(constant.shape, DType.I8), constant)
    found, kernels = run(Graph([GraphInput("x", x)], [w], nodes, [1 + len(nodes)]), a)
    np.testing.assert_array_equal(found, exact(a, b))
    return kernels


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("m", [1, 7, 8, 9, 16, 17, 31, 32])
def test_few_rows(m: int, columns: bool) -> None:
    for n, k in ((1, 16), (8, 64), (33, 80), (70, 1056)):
        assert product(noise(m, k), noise(k, n, seed=1), columns) == [FEW]


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("m", [3, 20])
def test_few_rows_by_columns_of_a_block(monkeypatch: pytest.MonkeyPatch, m: int, columns: int) -> None:
    monkeypatch.setattr(schedule, "choose", lambda device, m, n, k: schedule.Few(-(-m // 8), columns))
    assert product(noise(m, 656), noise(656, 41, seed=1)) == [FEW]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("tile", schedule.TILES, ids=str)
def test_tiles(monkeypatch: pytest.MonkeyPatch, tile: schedule.Tile, parts: int) -> None:
    """Rows, columns and k beyond whole tiles, an odd number of columns too; parts of k of unequal length."""
    monkeypatch.setattr(schedule, "choose", lambda device, m, n, k: (tile, parts))
    expected = [TILE] if parts == 1 else [TILE, SUM]
    for n, k in ((tile.columns + 9, 64 * 7 + 16), (tile.columns, 64), (5, 16)):
        assert product(noise(tile.rows + 3, k), noise(k, n, seed=1)) == expected


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_stages(monkeypatch: pytest.MonkeyPatch, stages: int) -> None:
    tile = schedule.TILES[2]._replace(stages=stages)
    monkeypatch.setattr(schedule, "choose", lambda device, m, n, k: (tile, 1))
    for k in (16, 64, 128, 192, 64 * 9):
        product(noise(40, k), noise(k, 24, seed=1))


def test_choices_and_edges() -> None:
    for m, n, k in ((0, 3, 4), (2, 3, 0), (40, 3, 0), (33, 1, 1), (65, 64, 2000), (40, 17, 15)):
        product(noise(m, k), noise(k, n, seed=1))


def test_sums_wrap() -> None:
    """More products of -128 and -128 than 32 bits hold."""
    k = 132_104 + 8
    for m in (1, 40):
        product(np.full((m, k), -128, np.int8), np.full((k, 1), -128, np.int8))


@pytest.mark.parametrize("m", [5, 50])
def test_rows_of_any_stride(m: int) -> None:
    for k in (1, 30, 33):
        assert product(noise(m, k), noise(k, 20, seed=1))[0] == ROWS
    a, b = noise(48, m), noise(48, 20, seed=1)
    turned = Node("permute", (0,), {"axes": (1, 0)}, TensorType((m, 48), DType.I8))
    node = Node("matmul", (2, 1), {"out": "i32"}, TensorType((m, 20), DType.I32))
    w = Constant("w", TensorType((48, 20), DType.I8), b)
    found, kernels = run(Graph([GraphInput("x", TensorType((48, m), DType.I8))], [w], [turned, node], [3]), a)
    np.testing.assert_array_equal(found, exact(a.T, b))
    assert kernels[0] == ROWS


def test_a_part_of_wider_rows_is_read_where_it_lies() -> None:
    a, b = noise(5, 96), noise(32, 20, seed=1)
    part = Node("slice", (0,), {"axis": 1, "start": 48, "step": 1, "length": 32}, TensorType((5, 32), DType.I8))
    node = Node("matmul", (2, 1), {"out": "i32"}, TensorType((5, 20), DType.I32))
    w = Constant("w", TensorType((32, 20), DType.I8), b)
    found, kernels = run(Graph([GraphInput("x", TensorType((5, 96), DType.I8))], [w], [part, node], [3]), a)
    np.testing.assert_array_equal(found, exact(a[:, 48:80], b))
    assert kernels == [FEW]


def test_a_quantised_model() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.GELU(), torch.nn.Linear(96, 70))
    x = torch.randn(40, 48)
    floats = ree.compile(model, (x,))
    program = Program(prepare(quantise(floats.graph)), floats.input_structure, floats.output_structure)
    found = on_device(program)
    same_outputs(program, found, [x])
    assert kernels_of(found).count(TILE) == 2


def test_the_choice_for_a_large_device() -> None:
    large = emulator.Emulator(multiprocessors=132)
    assert schedule.choose(large, 1, 4096, 4096) == schedule.Few(1, 1)
    assert schedule.choose(large, 32, 65536, 4096) == schedule.Few(4, 2)
    assert schedule.choose(large, 8192, 8192, 8192) == (schedule.TILES[0], 1)
    _, parts = schedule.choose(large, 128, 1024, 8192)  # type: ignore[misc]
    assert parts > 1
