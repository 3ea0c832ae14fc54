"""Pointwise and creation operators against torch: sample calls, special values, long remainders."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.aten_case import check_close, check_exact, run, samples, together

F32, F64, I64 = torch.float32, torch.float64, torch.int64
DTYPES = (F32, F64, I64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)

# operators whose f32 results are torch's own, bit for bit (up to the sign of zero)
EXACT = """
add sub mul div/no_rounding_mode div/floor_rounding div/trunc_rounding floor_divide fmod remainder neg abs
sign sgn reciprocal floor ceil trunc round round/decimals_0 frac copysign bitwise_and bitwise_or bitwise_xor
bitwise_not bitwise_left_shift bitwise_right_shift __rand__ __ror__ __rxor__ eq ne lt le gt ge logical_and
logical_or logical_xor logical_not isnan isinf isfinite isposinf isneginf signbit heaviside where masked_fill
nan_to_num clamp clamp_min clamp_max fmax fmin maximum minimum max/binary min/binary nn.functional.relu
nn.functional.relu6 nn.functional.hardtanh nn.functional.threshold nn.functional.leaky_relu
nn.functional.prelu nn.functional.hardshrink nn.functional.softshrink fill full full_like zeros zeros_like
ones ones_like new_full new_zeros new_ones eye tril triu scalar_tensor clone float int bool
""".split()
CLOSE = """
sqrt rsub square lerp addcmul addcdiv round/decimals_3 round/decimals_neg_3 nn.functional.hardsigmoid
nn.functional.hardswish nn.functional.softsign nn.functional.elu nn.functional.selu nn.functional.celu
nn.functional.glu arange linspace
""".split()


def _supported(name: str) -> list[torch.dtype]:
    from torch.testing._internal.common_methods_invocations import op_db

    base, _, variant = name.partition("/")
    (info,) = [o for o in op_db if o.name == base and o.variant_test_name == variant]
    return [d for d in (F32, I64, torch.int8, torch.bool) if d in info.dtypes]


@pytest.mark.parametrize("name", EXACT + CLOSE)
def test_samples_of_torch(name: str) -> None:
    check = check_exact if name in EXACT else check_close
    calls = [c for dtype in _supported(name) for c in samples(name, dtype)[: 5 if dtype is F32 else 2]]
    assert calls
    function, tensors = together(calls)
    check(function, *tensors)


FLOATS = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -7.25, 1e-45, -1e-45, 1.1754944e-38, 1e-30, 8388609.0,
     16777216.0, 1e30, 3.4028235e38, -3.4028235e38, float("inf"), float("-inf"), float("nan")]
)  # fmt: skip
INTS = torch.tensor([0, 1, -1, 2, -2, 7, -7, 100, 127, -128, 2**31 - 1, -(2**31), 2**62, 2**63 - 1, -(2**63)])

UNARY: dict[str, Any] = {
    "neg": torch.neg, "abs": torch.abs, "sign": torch.sign, "sqrt": torch.sqrt, "reciprocal": torch.reciprocal,
    "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc, "round": torch.round, "frac": torch.frac,
    "isnan": torch.isnan, "isinf": torch.isinf, "isfinite": torch.isfinite, "signbit": torch.signbit,
    "relu": torch.relu, "nan_to_num": torch.nan_to_num, "not": torch.logical_not, "bool": lambda x: x.to(torch.bool),
    "f64": lambda x: x.double(), "clamp": lambda x: x.clamp(-1.5, 2.0), "clamp_nan": lambda x: x.clamp(min=float("nan")),  # noqa: E501
    "leaky": lambda x: torch.nn.functional.leaky_relu(x, 0.25),
    "threshold": lambda x: torch.nn.functional.threshold(x, 0.5, 9.0),
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_special_values(name: str) -> None:
    check_exact(UNARY[name], FLOATS)


BINARY: dict[str, Any] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "copysign": torch.copysign,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "floor": torch.floor_divide,
    "and": torch.logical_and,
    "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
}
REMAINDERS = {"fmod": torch.fmod, "remainder": torch.remainder}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_pairs_of_special_values(name: str, dtype: torch.dtype) -> None:
    pairs = torch.cartesian_prod(FLOATS.to(dtype), FLOATS.to(dtype))
    check_exact(BINARY[name], pairs[:, 0].contiguous(), pairs[:, 1].contiguous())


@pytest.mark.parametrize("name", REMAINDERS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_remainders_of_special_values(name: str, dtype: torch.dtype) -> None:
    """Against NumPy: torch's vectorised f32 fmod gives NaN for large quotients."""
    pairs = torch.cartesian_prod(FLOATS.to(dtype), FLOATS.to(dtype))
    x, y = (pairs[:, i].contiguous() for i in (0, 1))
    (rest,) = run(REMAINDERS[name], x, y)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(rest, getattr(np, name)(x.numpy(), y.numpy()))


@pytest.mark.parametrize("dtype", [I64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("name", ["add", "mul", "maximum", "lt", "floor", "fmod", "remainder", "trunc"])
def test_pairs_of_integers(name: str, dtype: torch.dtype) -> None:
    values = INTS.to(dtype).unique()
    pairs = torch.cartesian_prod(values, values)
    if name in ("floor", "fmod", "remainder", "trunc"):
        least = torch.iinfo(dtype).min  # MIN / -1 traps in torch, x / 0 raises
        pairs = pairs[(pairs[:, 1] != 0) & ~((pairs[:, 0] == least) & (pairs[:, 1] == -1))]
    check_exact((BINARY | REMAINDERS)[name], pairs[:, 0].contiguous(), pairs[:, 1].contiguous())


def test_integer_division_by_zero_is_defined() -> None:
    x, zero = torch.tensor([7, -7, 0]), torch.zeros(3, dtype=I64)
    quotient, truncated, rest, signed = run(
        lambda a, b: (a // b, torch.div(a, b, rounding_mode="trunc"), torch.fmod(a, b), torch.remainder(a, b)), x, zero
    )
    assert quotient.tolist() == truncated.tolist() == [0, 0, 0]
    assert rest.tolist() == signed.tolist() == [7, -7, 0]


@pytest.mark.parametrize("name", ["bitwise_left_shift", "bitwise_right_shift"])
@pytest.mark.parametrize("dtype", [I64, torch.int32, torch.int8, torch.uint8])
def test_shifts_by_any_amount(name: str, dtype: torch.dtype) -> None:
    values = torch.tensor([1, 3, 77, -5]).to(dtype)
    amounts = torch.tensor([0, 1, 7, 8, 31, 32, 63, 64, 100]).to(dtype)
    pairs = torch.cartesian_prod(values, amounts)
    check_exact(getattr(torch, name), pairs[:, 0].contiguous(), pairs[:, 1].contiguous())


@pytest.mark.parametrize("dtype", [F32, F64])
def test_float_remainder_is_exact_for_any_bits(dtype: torch.dtype) -> None:
    """All exponents, subnormals, NaN and infinity; the C library's fmod is exact too."""
    rng = np.random.default_rng(7)
    bits, count = (np.uint32, 4000) if dtype is F32 else (np.uint64, 1500)
    x, y = (
        rng.integers(0, np.iinfo(bits).max, count, dtype=bits).view(np.dtype(bits).str.replace("u", "f")) for _ in "xy"
    )
    (rest,) = run(torch.fmod, torch.from_numpy(x), torch.from_numpy(y))
    with np.errstate(all="ignore"):
        expected = np.fmod(x, y)
    np.testing.assert_array_equal(rest, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(rest)[number], np.signbit(expected)[number])


def test_maximum_orders_signed_zeros() -> None:
    x, y = torch.tensor([0.0, -0.0, -0.0]), torch.tensor([-0.0, 0.0, -0.0])
    largest, smallest = run(lambda a, b: (torch.maximum(a, b), torch.minimum(a, b)), x, y)
    assert np.signbit(largest).tolist() == [False, False, True]
    assert np.signbit(smallest).tolist() == [True, True, True]


def test_casts_between_all_dtypes() -> None:
    values = torch.tensor([0.0, 1.0, 1.7, 100.25, 127.0, 2.0**-20])
    check_exact(lambda *all: [x.to(target) for x in all for target in DTYPES], *(values.to(d) for d in DTYPES))


def test_casts_to_half_precision_round_once() -> None:
    near_tie = torch.tensor(
        [1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11 - 2.0**-40, 1 + 3 * 2.0**-11, 65519.99999, 1e300, 3e-8]
    )
    for target in (torch.float16, torch.bfloat16):
        x = near_tie.double().requires_grad_(False)
        (ours,) = run(lambda v, to=target: v.to(to).to(F64), x)
        step = x.numpy().astype(np.float16).astype(np.float64) if target is torch.float16 else _to_bf16(x.numpy())
        np.testing.assert_array_equal(ours, step)


def _to_bf16(values: np.ndarray) -> np.ndarray:
    """Nearest bf16 of positive f64 values, ties to even, by exact scaling."""
    mantissa, exponent = np.frexp(values)
    rounded = np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)
    return np.where(rounded >= 2.0**128, np.inf, rounded)


def test_promotion_follows_torch() -> None:
    operands: list[Any] = [torch.ones(2, dtype=d) for d in DTYPES] + [torch.tensor(2, dtype=d) for d in DTYPES]

    def function(*tensors: torch.Tensor) -> list[Any]:
        pairs = [(x + y, x == y, torch.where(x > 0, x, y)) for x, y in itertools.product(tensors, tensors)]
        return [pairs, [(x + n, x * n, x >= n, x / n) for x, n in itertools.product(tensors, (True, 2, 2.5))]]

    check_exact(function, *operands)


def test_alpha_scales_the_second_operand() -> None:
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [5.0]])
    check_exact(lambda a, b: (torch.add(a, b, alpha=2), torch.sub(a, b, alpha=0.5), torch.rsub(a, b, alpha=2)), x, y)
    check_exact(lambda a: (torch.add(a, 3, alpha=2), torch.sub(a, 3, alpha=4)), torch.tensor([7, 8]))


def test_uninitialised_tensors_are_zero() -> None:
    (empty, like) = run(lambda x: (torch.empty(2, 3) + x[0], torch.empty_like(x)), torch.zeros(4))
    assert not empty.any() and not like.any()


def test_arange_rounds_each_element_once() -> None:
    (ours,) = run(lambda x: torch.arange(0.0, 10.0, 0.1) + x, torch.zeros(()))
    np.testing.assert_array_equal(ours, (np.arange(100) * 0.1).astype(np.float32))


def test_linspace_ends_are_exact() -> None:
    cases = ((0.1, 0.7, 11), (-3.0, 1e10, 2), (5.0, 6.0, 1), (2.0, -9.9, 8))
    results = run(lambda x: [torch.linspace(*case) + x for case in cases], torch.zeros(()))
    for (start, end, steps), ours in zip(cases, results, strict=True):
        assert ours[0] == np.float32(start) and (steps == 1 or ours[-1] == np.float32(end))
        np.testing.assert_allclose(ours, np.linspace(start, end, steps), rtol=1e-6)
