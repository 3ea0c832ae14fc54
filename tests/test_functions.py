"""Elementary functions in the reference interpreter against correct rounding by MPFR."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import gmpy2
import numpy as np
import pytest

from ree.element import functions
from ree.element.interpret import interpret
from ree.element.program import Builder, Port, Value
from ree.types import DType

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import truth

SPECIAL = [0.0, 1.0, 0.5, 2.0, 10.0, 100.0, 1e-45, 1.1e-38, 1e-30, 1e-8, 88.7, 89.0, 104.5, 3.4028235e38, np.inf]
# inputs whose results lie nearly half way between two float32 numbers, from the exhaustive run
HARD = {
    "exp2": [0.0029695758130401373, -0.029743773862719536],
    "log": [0.011794382706284523, 9.472636222839355, 58037908.0, 1.2783783694984994e23, 5.498306075456329e28],
    "log10": [6.2845478928294454e-30],
    "log1p": [7.152559078349441e-07, 8.583093404013198e-06, 8.472636222839355, -0.0021787146106362343],
    "sin": [9830.3984375, -9830.3984375],
    "cos": [1.100467763087514e19, 1.7269983397793917e20],
    "acos": [1.5893254712295857e-08, 0.00024868646869435906],
    "atan": [0.06905200332403183],
    "asinh": [29018954.0, 6.391891847492497e22],
    "acosh": [6.391891847492497e22, 2.7491530377281646e28],
    "sinh": [0.0005589424981735647],
    "sigmoid": [3.5762786865234375e-07, 5.602836608886719e-06, -0.001117885229177773],
    "erfc": [-1.4103805369813927e-05],
}


def evaluate(function: Callable[..., Value], *arrays: np.ndarray) -> np.ndarray:
    b = Builder([Port(DType.F32, 1)] * len(arrays), 1)
    loaded = [b.load(n, b.index(0)) for n in range(len(arrays))]
    program = b.finish([function(b, *loaded)], [DType.F32])
    return interpret(program, [np.ascontiguousarray(a, dtype=np.float32) for a in arrays], arrays[0].shape)[0]


def inputs_of(name: str) -> np.ndarray:
    random = np.random.default_rng(sum(map(ord, name)))
    bits = random.integers(0, 1 << 32, 60, dtype=np.uint32).view(np.float32)
    parts = [bits, random.standard_normal(60) * 3, random.uniform(-1, 1, 30), 1 + random.standard_normal(15) * 1e-3]
    parts += [np.array(SPECIAL), -np.array(SPECIAL), np.array(HARD.get(name, []), dtype=np.float64), [np.nan]]
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.concatenate(parts).astype(np.float32)


def same(got: np.float32, want: np.float32) -> bool:
    return got.tobytes() == want.tobytes() or bool(np.isnan(got) and np.isnan(want))


@pytest.mark.parametrize("name", functions.UNIVARIATE)
def test_correctly_rounded(name: str) -> None:
    xs = inputs_of(name)
    if name in ("gelu", "gelu_tanh", "silu"):  # ties at odd subnormals, see docs/FUNCTIONS.md
        xs = xs[(np.abs(xs) >= 2.0**-125) | (xs == 0) | np.isnan(xs)]
    low, high = truth.domain(name)
    for x, got in zip(xs, evaluate(getattr(functions, name), xs), strict=True):
        want = truth.correct(name, x) if low <= x <= high else np.float32(np.nan)
        if name == "rsqrt" and x == 0:
            want = np.float32(math.copysign(math.inf, x))  # IEEE 754's rSqrt; MPFR gives +inf for both
        assert same(got, want), f"{name}({float(x)!r}) gave {got!r}, correctly rounded {want!r}"


def test_nan_is_canonical() -> None:
    odd = np.array([0x7F800001, 0xFFC00000, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)
    for name in functions.UNIVARIATE:
        assert set(evaluate(getattr(functions, name), odd).view(np.uint32)) == {0x7FC00000}, name


def grid() -> tuple[np.ndarray, np.ndarray]:
    values = np.array([0.0, 1.0, 0.5, 2.0, 3.0, 1.5, 7.0, 1e-45, 1e-38, 3.4e38, np.inf], dtype=np.float32)
    values = np.concatenate([values, -values, np.array([np.nan], dtype=np.float32)])
    x, y = np.meshgrid(values, values)
    return x.reshape(-1), y.reshape(-1)


def exact_pow(x: float, y: float) -> np.float32:
    if x == 1 or y == 0:
        return np.float32(1)
    with gmpy2.context(precision=200, emin=-100000, emax=100000):
        return truth.to_float32(gmpy2.mpfr(x) ** gmpy2.mpfr(y))


def exact_atan2(y: float, x: float) -> np.float32:
    with gmpy2.context(precision=200, emin=-100000, emax=100000):
        return truth.to_float32(gmpy2.atan2(gmpy2.mpfr(y), gmpy2.mpfr(x)))


@pytest.mark.parametrize(("function", "exact"), [(functions.pow, exact_pow), (functions.atan2, exact_atan2)])
def test_two_arguments(function: Callable[..., Value], exact: Callable[[float, float], np.float32]) -> None:
    random = np.random.default_rng(3)
    special_x, special_y = grid()
    x = np.concatenate([special_x, np.exp(random.standard_normal(200) * 3), 1 + random.standard_normal(100) * 1e-3])
    y = np.concatenate([special_y, random.standard_normal(200) * 10, random.standard_normal(100) * 2e4])
    x, y = x.astype(np.float32), y.astype(np.float32)
    for a, c, got in zip(x, y, evaluate(function, x, y), strict=True):
        want = exact(float(a), float(c))
        assert same(got, want), f"({float(a)!r}, {float(c)!r}) gave {got!r}, correctly rounded {want!r}"


def test_softplus_and_its_threshold() -> None:
    xs = np.array([-200, -20, -1, -0.0, 0, 1e-3, 1, 9.99, 10.01, 50, np.inf, -np.inf, np.nan], dtype=np.float32)
    got = evaluate(lambda b, x: functions.softplus(b, x, 2.0, 20.0), xs)
    for x, value in zip(xs.tolist(), got, strict=True):
        with gmpy2.context(precision=200, emin=-100000, emax=100000):
            exact = gmpy2.log1p(gmpy2.exp(2 * gmpy2.mpfr(x))) / 2
        want = np.float32(x) if 2 * x > 20 else truth.to_float32(exact)
        assert same(value, want), x


def test_logaddexp() -> None:
    pairs = [(0, 0), (1, -1), (1000, 999), (-1000, -1000.5), (3, 1e30), (np.inf, 1), (-np.inf, 2), (np.inf, np.inf)]
    pairs += [(-np.inf, -np.inf), (np.inf, -np.inf), (1, np.nan), (1e-30, 2e-30), (-3e38, -3e38), (25, -3.5)]
    x, y = (np.array(v, dtype=np.float32) for v in zip(*pairs, strict=True))
    for a, c, got in zip(x.tolist(), y.tolist(), evaluate(functions.logaddexp, x, y), strict=True):
        with gmpy2.context(precision=400, emin=-100000, emax=100000):
            top = max(a, c)
            gap = gmpy2.exp(-abs(gmpy2.mpfr(a) - gmpy2.mpfr(c)))
            exact = gmpy2.mpfr(top) if math.isinf(top) else gmpy2.mpfr(top) + gmpy2.log1p(gap)
        want = np.float32(np.nan) if math.isnan(a + c) and not math.isinf(top) else truth.to_float32(exact)
        if math.isnan(a) or math.isnan(c):
            want = np.float32(np.nan)
        assert same(got, want), (a, c, got, want)


def test_xlogy() -> None:
    x = np.array([0, -0.0, 0, 0, 0, 2, 2, 2, -3, np.nan, 1e-40], dtype=np.float32)
    y = np.array([0, np.inf, -1, np.nan, 3, 0, 3, -1, 0.5, 2, 1e-40], dtype=np.float32)
    got = evaluate(functions.xlogy, x, y)
    want = [0.0, 0.0, 0.0, np.nan, 0.0, -np.inf, 2 * math.log(3), np.nan, -3 * math.log(0.5), np.nan]
    assert np.array_equal(got[:-1], np.array(want, dtype=np.float32), equal_nan=True)
    assert same(got[-1], np.float32(float(x[-1]) * math.log(float(y[-1]))))
