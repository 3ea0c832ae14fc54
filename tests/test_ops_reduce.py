"""Reductions against torch: sample calls, axes, special values, the order of long sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.aten_case import check_close, check_exact, run, samples, together

F32, F64, I64 = torch.float32, torch.float64, torch.int64
DTYPES = (F32, F64, I64, torch.int32, torch.int8, torch.uint8, torch.bool)
NAN, INF = float("nan"), float("inf")

NAMES = """
sum mean prod amax amin any all argmax argmin max/reduction_with_dim max/reduction_no_dim
min/reduction_with_dim min/reduction_no_dim var std var_mean std_mean var/unbiased std/unbiased
var_mean/unbiased std_mean/unbiased nansum count_nonzero aminmax linalg.vector_norm norm norm/inf logsumexp
""".split()


EXPONENTIAL = ("logsumexp", "norm", "linalg.vector_norm")  # use exp or pow, which f64 does not have


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_torch(name: str) -> None:
    from torch.testing._internal.common_methods_invocations import op_db

    base, _, variant = name.partition("/")
    (info,) = [o for o in op_db if o.name == base and o.variant_test_name == variant]
    calls = [
        c
        for d in DTYPES
        if d in info.dtypes and (d is not F64 or name not in EXPONENTIAL)
        for c in samples(name, d)[: 10 if d is F32 else 3]
    ]
    assert calls
    function, tensors = together(calls)
    check_close(function, *tensors, rtol=5e-6, atol=2e-6)


REDUCTIONS: dict[str, Any] = {
    "sum": lambda x, d, k: x.sum(d, k),
    "mean": lambda x, d, k: x.mean(d, k),
    "amax": lambda x, d, k: x.amax(d, k),
    "amin": lambda x, d, k: x.amin(d, k),
    "var": lambda x, d, k: x.var(d, correction=0, keepdim=k),
    "std": lambda x, d, k: x.std(d, correction=1, keepdim=k),
    "any": lambda x, d, k: torch.any(x > 0.9, d, k),
    "all": lambda x, d, k: torch.all(x > -2.0, d, k),
    "norm1": lambda x, d, k: torch.linalg.vector_norm(x, 1, d, k),
    "norm2": lambda x, d, k: torch.linalg.vector_norm(x, 2, d, k),
    "norm0": lambda x, d, k: torch.linalg.vector_norm(x, 0, d, k),
    "norm-inf": lambda x, d, k: torch.linalg.vector_norm(x, -INF, d, k),
    "logsumexp": lambda x, d, k: x.logsumexp(d, k),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axes", [(0,), (-1,), (0, 2), (2, 0, 1), (1, 2)])
def test_axes(name: str, axes: tuple[int, ...]) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    check_close(lambda t: [REDUCTIONS[name](t, axes, keepdim) for keepdim in (False, True)], x, rtol=5e-6)


def test_several_axes_reduce_in_c_order() -> None:
    x = torch.randn(4, 40, 10, generator=torch.Generator().manual_seed(2)) * 1e3
    joined, apart = run(lambda t: (t.permute(1, 0, 2).reshape(40, 40).sum(1), t.sum((0, 2))), x)
    np.testing.assert_array_equal(joined, apart)


def _sum_of_spec(values: np.ndarray) -> np.float32:
    """The order of `sum` written once more: 256 = 16 steps of 16 lanes, a halving tree, again over chunks."""
    while True:
        chunks = []
        for start in range(0, len(values), 256):
            lanes = np.zeros(16, np.float32)
            for step in range(start, min(start + 256, len(values)), 16):
                part = values[step : min(step + 16, start + 256)]
                lanes[: len(part)] += part
            for half in (8, 4, 2, 1):
                lanes = lanes[:half] + lanes[half:]
            chunks.append(lanes[0])
        values = np.array(chunks, np.float32)
        if len(values) == 1:
            return values[0]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 255, 256, 257, 4099])
def test_sum_and_mean_have_the_defined_order(length: int) -> None:
    x = torch.randn(length, generator=torch.Generator().manual_seed(length)) * 100
    total, mean = run(lambda t: (t.sum(), t.mean()), x)
    expected = _sum_of_spec(x.numpy())
    assert total == expected and mean == expected / np.float32(length)


def test_empty_reductions() -> None:
    x = torch.zeros(2, 0)
    check_exact(lambda t: (t.sum(1), t.mean(1), t.prod(1), t.any(1), t.all(1), t.sum(), t.var(1)), x)


def test_scalars_reduce_to_themselves() -> None:
    x = torch.tensor(3.5)
    check_exact(lambda t: (t.sum(), t.sum(0), t.mean(-1), t.amax(0), t.argmax(), t.prod(), t.max(0)), x)


SPECIAL = torch.tensor(
    [
        [1.0, NAN, 3.0, NAN],
        [INF, 1.0, INF, -INF],
        [-0.0, 0.0, -0.0, 0.0],
        [-INF, -INF, -INF, -INF],
        [2.0, 2.0, 1.0, 1.0],
    ]
)


@pytest.mark.parametrize("function", [torch.argmax, torch.argmin, torch.max, torch.min, torch.amax, torch.amin])
def test_extremes_of_special_values(function: Any) -> None:
    check_exact(lambda t: function(t, 1), SPECIAL)


def test_sums_of_special_values() -> None:
    check_exact(lambda t: (t.sum(1), t.mean(1), t.prod(1), t.var(1), t.nansum(1), (t != 0).any(1)), SPECIAL)


def test_logsumexp_of_infinities() -> None:
    x = torch.tensor([[-INF, -INF], [INF, 1.0], [NAN, 1.0], [1000.0, 1000.0], [-1000.0, -1000.0]])
    check_close(lambda t: t.logsumexp(1), x)


@pytest.mark.parametrize("dtype", [I64, torch.int32, torch.int8, torch.uint8, torch.bool])
def test_integer_reductions_are_exact(dtype: torch.dtype) -> None:
    x = torch.randint(0, 100, (5, 7), generator=torch.Generator().manual_seed(3)).to(dtype)
    check_exact(
        lambda t: (t.sum(), t.sum(0), t.prod(1), t.any(1), t.all(0), t.amax(1), t.amin((0, 1)), t.max(), t.min()), x
    )
    if dtype is not torch.bool:
        check_exact(lambda t: (t.argmax(1), t.argmin(), t.max(0), t.sum(1, dtype=torch.float32)), x)


def test_integer_sums_wrap() -> None:
    check_exact(lambda t: (t.sum(), t.prod()), torch.tensor([2**62, 2**62, 2**62, 3]))


def test_variance_keeps_its_accuracy_far_from_zero() -> None:
    """The two-pass form: 1e3 + small noise has the noise's variance."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(4)) + 1e3
    check_close(lambda t: t.var(), x, rtol=1e-4)
