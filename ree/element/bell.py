"""The error function and what is built on it, in binary64."""

from __future__ import annotations

from ree.element import coefficients as table
from ree.element.program import Builder, Value
from ree.element.real import clamp, exp, odd_sum, polynomial

_ERF_ONE = 3.925  # erf(x) rounds to 1 from here on (from 3.9193)
_ERF_CENTRE = 7.75
_ERFC_ZERO = 10.2  # erfc(x) is below half of the smallest subnormal from here on (from 10.06)
_GELU_ZERO = 14.5  # x Phi(x) rounds to -0 below -14.5
_ERFC_SCALE = 4.0
GELU_NEAR = 4.5  # gelu_near holds up to here
_GELU_CENTRE = GELU_NEAR**2 / 2
_GELU_ERROR = 2.0**-47  # more than the error of Phi in gelu_near
_SQRT_HALF = 0.7071067811865476


def erf(b: Builder, x: Value) -> Value:
    """x P(x**2), one polynomial for the whole range up to 3.925."""
    inside = clamp(b, x, -_ERF_ONE, _ERF_ONE)
    return inside * polynomial(b, table.ERF, b.fma(inside, inside, -_ERF_CENTRE))


def erfc_positive(b: Builder, a: Value, square: Value) -> Value:
    """erfc(a) for 0 <= a <= 10.2 with relative accuracy; square = -a**2."""
    inverse = 1.0 / (a + _ERFC_SCALE)
    u = (a - _ERFC_SCALE) * inverse
    return exp(b, square) * (polynomial(b, table.ERFC, u) * inverse)


def erfc(b: Builder, x: Value) -> Value:
    inside = clamp(b, x, -_ERFC_ZERO, _ERFC_ZERO)
    y = erfc_positive(b, b.op("abs", inside), -(inside * inside))
    return b.select(x < 0.0, odd_sum(b, b.f64(2.0), -y), y)


def gelu_near(b: Builder, x: Value) -> tuple[Value, Value]:
    """Two numbers with x Phi(x) between them, for |x| <= GELU_NEAR: Phi as one polynomial, give or take its error.

    Where both round to the same, that is the correctly rounded result, at a fraction of the cost of `gelu`.
    """
    bell = polynomial(b, table.GELU, b.fma(x, x, -_GELU_CENTRE))
    near = x * b.fma(x, bell, 0.5 - _GELU_ERROR)
    return near, b.fma(x, 2.0 * _GELU_ERROR, near)


def gelu(b: Builder, x: Value) -> Value:
    """x Phi(x) with Phi from erfc, so that the left tail keeps its relative accuracy."""
    bounded = b.select(x < -_GELU_ZERO, -_GELU_ZERO, x)
    inside = b.select(bounded > _GELU_ZERO, _GELU_ZERO, bounded)
    a = b.op("abs", inside) * _SQRT_HALF
    tail = erfc_positive(b, a, inside * inside * -0.5) * 0.5
    return bounded * b.select(x < 0.0, tail, 1.0 - tail)
