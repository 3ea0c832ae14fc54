"""Matrix products against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ree.capture import capture, to_numpy
from ree.errors import DTypeError, ShapeError
from ree.ops.spec import operator
from ree.reference import evaluate
from ree.types import DType, TensorType
from tests.aten_case import check_close, check_exact, run, samples

NAMES = """
matmul mm mv dot vdot inner outer addmm addmv addr addbmm baddbmm nn.functional.linear einsum tensordot
linalg.multi_dot kron
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_torch(name: str) -> None:
    # the tracer leaves in-place calls where these two take vectors; see test_vectors
    matrices = name in ("matmul", "nn.functional.linear")
    tried = 0
    for dtype in (torch.float32, torch.float64, torch.int64):
        found = [s for s in samples(name, dtype) if not (matrices and 1 in [t.dim() for t in s[1][:2]])]
        for call, tensors in found[:5]:
            check_close(call, *tensors, atol=3e-5)
            tried += 1
    assert tried > 0


def _captured(model: nn.Module, *inputs: torch.Tensor) -> list[np.ndarray]:
    return evaluate(capture(model, inputs).graph, [to_numpy(i) for i in inputs])


class _MatMul(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y


@pytest.mark.parametrize(
    "shapes",
    [((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (2, 3, 4)), ((5, 2, 3), (3,)), ((2, 1, 2, 3), (4, 3, 2))],
)
def test_vectors(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(s) for s in shapes)
    (result,) = _captured(_MatMul(), x, y)
    np.testing.assert_allclose(result, (x.double() @ y.double()).numpy(), rtol=1e-6, atol=1e-6)


def test_dot_order_is_chunks_of_256_from_zero() -> None:
    """600 terms: three FMA chains, added in order; one chain over all would give other bits."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(600).astype(np.float32) for _ in range(2))
    (result,) = run(torch.mm, torch.from_numpy(a)[None, :], torch.from_numpy(b)[:, None])
    total = np.float32(0)
    single = np.float64(0)
    for start in range(0, 600, 256):
        chain = np.float32(0)
        for x, y in zip(a[start : start + 256], b[start : start + 256], strict=True):
            # the product of two f32 is exact in f64, so one more f64 rounding is all that is added here
            chain = np.float32(np.float64(x) * np.float64(y) + np.float64(chain))
        total = np.float32(total + chain)
    for x, y in zip(a, b, strict=True):
        single = np.float64(np.float32(np.float64(x) * np.float64(y) + single))
    assert result[0, 0] == total
    assert np.float32(single) != total


def test_rows_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(1)
    x, w = torch.randn(5, 40), torch.randn(40, 7)
    (whole,) = run(torch.mm, x, w)
    for row in range(5):
        (alone,) = run(torch.mm, x[row : row + 1], w)
        np.testing.assert_array_equal(alone[0], whole[row])


def test_integers_wrap() -> None:
    x = torch.tensor([[100, 100], [-128, 127]], dtype=torch.int8)
    check_exact(torch.mm, x, x)
    check_exact(torch._int_mm, x.repeat(16, 4), x.repeat(4, 4))


def test_beta_zero_leaves_the_input_out() -> None:
    bad = torch.full((2, 2), float("nan"))
    check_close(lambda c, a, b: torch.addmm(c, a, b, beta=0), bad, torch.randn(2, 3), torch.randn(3, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_round_once(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x, w = torch.randn(3, 20).to(dtype), torch.randn(20, 4).to(dtype)
    (result,) = run(torch.mm, x, w)
    expected = (x.double() @ w.double()).float().to(dtype)
    np.testing.assert_array_equal(result, to_numpy(expected))


def test_dynamic_batch() -> None:
    """One graph for every batch size: its rows equal those of a static capture."""
    from ree.graph import bind

    torch.manual_seed(3)
    model, x = nn.Linear(4, 3), torch.randn(6, 2, 4)
    graph = capture(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},)).graph
    (name,) = graph.symbols
    bound = bind(graph, {name: 6})
    (result,) = evaluate(bound, [to_numpy(x)])
    np.testing.assert_array_equal(result, _captured(model, x)[0])


def test_wrong_operands_are_refused() -> None:
    f32, i32 = TensorType((2, 3), DType.F32), TensorType((3, 2), DType.I32)
    with pytest.raises(DTypeError):
        operator("matmul").infer([f32, i32], {})
    with pytest.raises(ShapeError):
        operator("matmul").infer([f32, f32], {})
    with pytest.raises(ShapeError):
        operator("matmul").infer([f32, TensorType((1, 3, 2), DType.F32)], {})
