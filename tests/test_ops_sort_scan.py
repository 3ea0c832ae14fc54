"""Sorting and scans: torch's samples, ties, NaN and signed zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ree.errors import ShapeError
from ree.ops.spec import operator
from ree.types import DType, TensorType
from tests.aten_case import check_close, check_exact, run, samples

NAN, INF = float("nan"), float("inf")
SPECIAL = torch.tensor(
    [[1.0, NAN, -0.0, 0.0, INF, -INF, NAN, 1.0, 0.0, -0.0], [3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 3.0, 2.0, 1.0, 0.0]]
)


@pytest.mark.parametrize("name", ["sort", "argsort", "msort", "cummax", "cummin", "median", "nanmedian"])
def test_exact_samples_of_torch(name: str) -> None:
    for dtype in (torch.float32, torch.int64):
        found = samples(name, dtype, 260)
        for call, tensors in found[:: max(1, len(found) // 4)]:
            check_exact(call, *tensors)
        assert found


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "logcumsumexp", "trapezoid", "cumulative_trapezoid"])
def test_close_samples_of_torch(name: str) -> None:
    found = samples(name, torch.float32)
    for call, tensors in found[:: max(1, len(found) // 4)]:
        check_close(call, *tensors, rtol=1e-5, atol=1e-5)
    assert found


@pytest.mark.parametrize("descending", [False, True])
def test_stable_order_of_special_values(descending: bool) -> None:
    check_exact(lambda x: torch.sort(x, stable=True, descending=descending), SPECIAL)
    check_exact(lambda x: torch.sort(x, stable=True, descending=descending), SPECIAL > 1)


@pytest.mark.parametrize("k", [0, 1, 4, 10])
@pytest.mark.parametrize("largest", [False, True])
def test_topk_is_the_head_of_the_stable_sort(k: int, largest: bool) -> None:
    values, indices = run(lambda x: torch.topk(x, k, largest=largest), SPECIAL)
    expected = torch.sort(SPECIAL, stable=True, descending=largest)
    np.testing.assert_array_equal(values, expected.values[:, :k].numpy())
    np.testing.assert_array_equal(indices, expected.indices[:, :k].numpy())


def test_selection_along_other_axes() -> None:
    torch.manual_seed(0)
    x = torch.randperm(24).reshape(2, 4, 3)
    check_exact(lambda x: torch.topk(x, 2, dim=1), x)
    check_exact(lambda x: torch.kthvalue(x, 2, dim=0, keepdim=True), x)
    check_exact(lambda x: torch.median(x.float(), 1), x)


def test_medians_and_nan() -> None:
    for row in (SPECIAL[:1], SPECIAL[1:], torch.tensor([[NAN, NAN]]), torch.tensor([[2.0, NAN, 1.0]])):
        for function in (torch.median, torch.nanmedian):
            check_exact(lambda x, f=function: f(x, 1).values, row)
            check_exact(lambda x, f=function: f(x), row)


def test_running_best_of_special_values() -> None:
    check_exact(lambda x: torch.cummax(x, 1), SPECIAL)
    check_exact(lambda x: torch.cummin(x, 1), SPECIAL)
    check_exact(lambda x: torch.cummax(x, 0), SPECIAL > 1)


def test_cumsum_is_strictly_sequential() -> None:
    x = torch.tensor([1e8, 1.0, 1.0, -1e8, 0.5])
    (result,) = run(lambda x: torch.cumsum(x, 0), x)
    total, expected = np.float32(0), []
    for value in x.numpy():
        total = np.float32(total + value)
        expected.append(total)
    np.testing.assert_array_equal(result, expected)


def test_integer_scans_wrap() -> None:
    x = torch.tensor([2**62, 2**62, 2**62, 3])
    check_exact(lambda x: torch.cumsum(x, 0), x)
    check_exact(lambda x: torch.cumprod(x, 0), x)
    check_exact(lambda x: torch.cumsum(x > 3, 0), x)


def test_wrong_k_is_refused() -> None:
    with pytest.raises(ShapeError):
        operator("argtopk").infer([TensorType((3,), DType.F32)], {"k": 4, "largest": True})
