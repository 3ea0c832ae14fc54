"""x**y in binary64 for widened binary32 arguments: log2 in two parts, times y, then 2**z."""

from __future__ import annotations

from ree.element import coefficients as table
from ree.element.program import Builder, Value
from ree.element.real import LOG2_E, LOG2_E_LO, clamp, exp2_parts, polynomial, split, two_product, two_sum

_INF = float("inf")
_NAN = float("nan")


def _log2_parts(b: Builder, x: Value) -> tuple[Value, Value]:
    """log2 of a positive finite widened binary32, error below 2**-59 of it."""
    e, m = split(b, x)
    f = m - 1.0
    below = f + 2.0
    inverse = 1.0 / below
    s = f * inverse
    s_low = b.fma(-s, below, f) * inverse
    z = s * s
    rest = b.fma(s * z, polynomial(b, table.LOG, z), s_low * 2.0)
    natural, natural_low = two_sum(b, s * 2.0, rest)
    product, error = two_product(b, natural, LOG2_E)
    low = b.fma(natural_low, LOG2_E, b.fma(natural, LOG2_E_LO, error))
    total, carried = two_sum(b, e, product)
    return total, carried + low


def _magnitude(b: Builder, a: Value, y: Value) -> Value:
    """a**y for finite a > 0 and finite y."""
    high, low = _log2_parts(b, a)
    product, error = two_product(b, high, y)
    low = clamp(b, b.fma(low, y, error), -1.0, 1.0)  # that large only where the product is clamped
    return exp2_parts(b, clamp(b, product, -200.0, 200.0), low)


def pow(b: Builder, x: Value, y: Value) -> Value:
    """x**y, C99 Annex F.9.4.4: pow(x, 0) = pow(1, y) = 1 even for NaN."""
    a = b.op("abs", x)
    y_size = b.op("abs", y)
    extreme = a.eq(0.0) | a.eq(_INF) | y_size.eq(_INF)
    grows = (a > 1.0).eq(y > 0.0)
    limit = b.select(a.eq(1.0), 1.0, b.select(grows, b.f64(_INF), 0.0))
    safe_a = b.select(a.eq(0.0) | a.eq(_INF), 1.0, a)
    size = b.select(extreme, limit, _magnitude(b, safe_a, y))

    half = y * 0.5
    whole = b.op("rint", y).eq(y)
    odd = whole & b.op("rint", half).ne(half)
    negative = b.op("copysign", b.f64(1.0), x) < 0.0
    signed = b.select(negative & odd, -size, size)

    no_real = (x < 0.0) & (a < _INF) & ~whole
    nan = x.ne(x) | y.ne(y) | no_real
    one = y.eq(0.0) | x.eq(1.0)
    return b.select(one, 1.0, b.select(nan, _NAN, signed))
