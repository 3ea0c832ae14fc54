"""Activation functions as single binary64 evaluations (one rounding, at the end).

torch composes these from rounded float32 steps; here each is one formula without
cancellation, which is both more accurate and cheaper than the composition.
"""

from __future__ import annotations

from ree.element.program import Builder, Value
from ree.element.real import clamp, exp, log1p_positive

_TWO_SQRT_2_PI = 1.5957691216057308  # 2 sqrt(2 / pi)
_INF = float("inf")


def silu(b: Builder, x: Value) -> Value:
    """x / (1 + e**-x); -0 at -inf."""
    return b.select(x < -200.0, b.op("copysign", b.f64(0.0), x), x / (exp(b, -x) + 1.0))


def gelu_tanh(b: Builder, x: Value) -> Value:
    """x (1 + tanh(u)) / 2 = x e**(2 u) / (1 + e**(2 u)), u = sqrt(2/pi) (x + 0.044715 x**3)."""
    inside = clamp(b, x, -30.0, 30.0)
    twice = inside * b.fma(inside * inside, _TWO_SQRT_2_PI * 0.044715, _TWO_SQRT_2_PI)
    e = exp(b, twice)
    return b.select(x < -30.0, b.op("copysign", b.f64(0.0), x), x * (e / (e + 1.0)))


def mish(b: Builder, x: Value) -> Value:
    """x tanh(log(1 + e**x)) = x (e**2x + 2 e**x) / (e**2x + 2 e**x + 2)."""
    e = exp(b, x)
    above = b.fma(e, e, e * 2.0)
    y = b.select(x > 40.0, x, (x * above) / (above + 2.0))
    return b.select(x < -200.0, b.op("copysign", b.f64(0.0), x), y)


def softplus_one(b: Builder, x: Value) -> Value:
    """log(1 + e**x) = max(x, 0) + log(1 + e**-|x|)."""
    tail = log1p_positive(b, exp(b, -b.op("abs", x)))
    return b.select(x > 0.0, x, b.select(x.eq(x), 0.0, x)) + tail


def softplus(b: Builder, x: Value, beta: float, threshold: float) -> Value:
    """log(1 + e**(beta x)) / beta, and x itself where beta x > threshold."""
    scaled = x * beta
    return b.select(scaled > threshold, x, softplus_one(b, scaled) / beta)


def log_sigmoid(b: Builder, x: Value) -> Value:
    """-log(1 + e**-x)."""
    return -softplus_one(b, -x)


def logaddexp(b: Builder, x: Value, y: Value) -> Value:
    """log(e**x + e**y) = max(x, y) + log(1 + e**-|x - y|)."""
    larger = b.max(x, y)
    gap = b.op("abs", x - y)
    sum_ = larger + log1p_positive(b, exp(b, -gap))
    return b.select(x.eq(y) & (b.op("abs", x).eq(_INF)), x, sum_)
