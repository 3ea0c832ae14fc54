"""Exponentials and logarithms in binary64: bodies of the elementary functions before their one rounding.

Every body maps f64 to f64, is branch-free, and expects an exact widened binary32 number.
A comparison with NaN is false, and selects are ordered so that NaN passes through.
"""

from __future__ import annotations

from collections.abc import Sequence

from ree.element import coefficients as table
from ree.element.program import Builder, Operand, Value
from ree.types import Type

_MAGIC = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to an integer held in the low bits
_ONE_BITS = 0x3FF0000000000000
LOG2_E = float.fromhex("0x1.71547652b82fep+0")
# ln 2 in two parts; the first has 42 bits, so its product with an exponent is exact
LN2_HI = float.fromhex("0x1.62e42fefa38p-1")
LN2_LO = float.fromhex("0x1.ef35793c7673p-45")
LOG2_E_LO = float.fromhex("0x1.777d0ffda0d24p-56")
_LOG10_2_HI = float.fromhex("0x1.34413509f78p-2")
_LOG10_2_LO = float.fromhex("0x1.fef311f12b358p-46")
_LOG10_E = float.fromhex("0x1.bcb7b1526e50ep-2")
_LOG10_E_LO = float.fromhex("0x1.95355baaafad3p-57")
_TWO_CHAINS = 8  # coefficients
_INF = float("inf")
_NAN = float("nan")


def polynomial(b: Builder, coefficients: Sequence[float], x: Value) -> Value:
    """Horner's rule with FMA; coefficients from the constant term up.

    Long ones are two chains, of the even and of the odd powers: half the latency, for one multiplication more.
    """
    if len(coefficients) < _TWO_CHAINS:
        return _horner(b, coefficients, x)
    square = x * x
    return b.fma(_horner(b, coefficients[1::2], square), x, _horner(b, coefficients[::2], square))


def _horner(b: Builder, coefficients: Sequence[float], x: Value) -> Value:
    total = b.fma(x, coefficients[-1], coefficients[-2])
    for coefficient in reversed(coefficients[:-2]):
        total = b.fma(total, x, coefficient)
    return total


def clamp(b: Builder, x: Value, low: float, high: float) -> Value:
    """x within [low, high]; NaN stays."""
    return b.select(x < low, low, b.select(x > high, high, x))


def keep_zero(b: Builder, x: Value, y: Value) -> Value:
    """y, but x itself where x is zero: odd functions keep its sign."""
    return b.select(x.eq(0.0), x, y)


def two_sum(b: Builder, large: Value, small: Value) -> tuple[Value, Value]:
    """Sum and its exact rounding error, where |large| >= |small| or large is 0 (Dekker)."""
    total = large + small
    return total, small - (total - large)


def any_two_sum(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """Sum and its exact rounding error (Knuth)."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def two_product(b: Builder, x: Value, y: Operand) -> tuple[Value, Value]:
    """Product and its exact rounding error."""
    product = x * y
    return product, b.fma(x, y, -product)


def odd_sum(b: Builder, high: Value, low: Value) -> Value:
    """high + low (|high| >= |low|) rounded to odd, so that rounding once more does no harm.

    An inexact sum becomes the neighbour with an odd last bit (Boldo and Melquiond, 2008).
    """
    total, error = two_sum(b, high, low)
    bits = b.bitcast(total, Type.I64)
    step = b.select((error > 0.0) ^ (total > 0.0), b.i64(-1), 1)
    fix = error.ne(0.0) & (bits & 1).eq(0)
    return b.bitcast(bits + b.select(fix, step, 0), Type.F64)


# -- exponentials ---------------------------------------------------------------------------


def _power_of_two(b: Builder, bits: Value) -> Value:
    """2**n, n standing in the low bits of `bits`."""
    return b.bitcast((bits << 52) + _ONE_BITS, Type.F64)


def _reduce_exp(b: Builder, x: Value) -> tuple[Value, Value]:
    """(r, bits) with x = n ln 2 + r, |r| <= ln(2)/2, n in the low bits of `bits`; |x| < 2**10."""
    shifted = b.fma(x, LOG2_E, _MAGIC)
    n = shifted - _MAGIC
    r = b.fma(n, -LN2_LO, b.fma(n, -LN2_HI, x))
    return r, b.bitcast(shifted, Type.I64)


def exp(b: Builder, x: Value) -> Value:
    r, bits = _reduce_exp(b, clamp(b, x, -110.0, 110.0))
    small = b.fma(r * r, polynomial(b, table.EXP, r), r)
    return (small + 1.0) * _power_of_two(b, bits)


def exp2(b: Builder, x: Value) -> Value:
    return exp2_parts(b, clamp(b, x, -160.0, 160.0))


def exp2_parts(b: Builder, x: Value, low: Operand = 0.0) -> Value:
    """2**(x + low) for |x| <= 200 and a small correction."""
    shifted = x + _MAGIC
    r = (x - (shifted - _MAGIC)) + low
    fraction = odd_sum(b, b.f64(1.0), r * polynomial(b, table.EXP2, r))
    return fraction * _power_of_two(b, b.bitcast(shifted, Type.I64))


def expm1_raw(b: Builder, x: Value) -> Value:
    """e**x - 1 for |x| < 700, with relative accuracy; +0 for x = -0."""
    r, bits = _reduce_exp(b, x)
    scale = _power_of_two(b, bits)
    small = b.fma(r * r, polynomial(b, table.EXP, r), r)
    return b.fma(scale, small, scale - 1.0)


def expm1(b: Builder, x: Value) -> Value:
    return keep_zero(b, x, expm1_raw(b, clamp(b, x, -110.0, 110.0)))


def _sinh_cosh_parts(b: Builder, x: Value) -> tuple[Value, Value, Value, Value]:
    """sinh r, cosh r, sinh(n ln 2), cosh(n ln 2)."""
    r, bits = _reduce_exp(b, clamp(b, x, -110.0, 110.0))
    z = r * r
    sinh_r = odd_sum(b, r, r * z * polynomial(b, table.SINH, z))
    cosh_r = b.fma(z, polynomial(b, table.COSH, z), 1.0)
    up = _power_of_two(b, bits) * 0.5
    down = _power_of_two(b, -bits) * 0.5
    return sinh_r, cosh_r, up - down, up + down


def sinh(b: Builder, x: Value) -> Value:
    sinh_r, cosh_r, sinh_n, cosh_n = _sinh_cosh_parts(b, x)
    return keep_zero(b, x, b.fma(sinh_n, cosh_r, cosh_n * sinh_r))


def cosh(b: Builder, x: Value) -> Value:
    sinh_r, cosh_r, sinh_n, cosh_n = _sinh_cosh_parts(b, x)
    return b.fma(cosh_n, cosh_r, sinh_n * sinh_r)


def tanh(b: Builder, x: Value) -> Value:
    twice = expm1_raw(b, clamp(b, x, -20.0, 20.0) * 2.0)
    return keep_zero(b, x, twice / (twice + 2.0))


def sigmoid(b: Builder, x: Value) -> Value:
    """e**x / (1 + e**x); near 0 it is 1/2 + x/4 - x**3/48, whose ties the last term breaks.

    There the distance of 1/2 + x/4 from a tie is 0 or at least 2**-25 |x|, so any factor just
    below 1/4 rounds as the cubic term does, and 1 - 2**-27 still shows in binary64.
    """
    near = b.fma(x, 0.25 * (1.0 - 2.0**-27), 0.5)
    e = exp(b, x)
    return b.select(b.op("abs", x) < 2.0**-12, near, e / (e + 1.0))


def rsqrt(b: Builder, x: Value) -> Value:
    return 1.0 / b.sqrt(x)


# -- logarithms -----------------------------------------------------------------------------


def split(b: Builder, x: Value) -> tuple[Value, Value]:
    """(e, m) with x = 2**e m, m in [sqrt(1/2), sqrt(2)); x positive, normal, finite."""
    bits = b.bitcast(x, Type.I64)
    exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
    return b.convert(exponent, Type.F64), b.bitcast(bits - (exponent << 52), Type.F64)


def _log_minus_f(b: Builder, f: Value) -> Value:
    """log(1 + f) - f, small against f: -s (f - s**2 P(s**2)) with s = f / (2 + f)."""
    s = f / (f + 2.0)
    z = s * s
    return s * b.fma(z, polynomial(b, table.LOG, z), -f)


def _log_domain(b: Builder, x: Value, y: Value) -> Value:
    """y, with -inf at 0, NaN below, inf and NaN kept."""
    y = b.select(x < _INF, y, x)
    return b.select(x > 0.0, y, b.select(x.eq(0.0), b.f64(-_INF), _NAN))


def log_positive(b: Builder, x: Value, low: Operand = 0.0) -> Value:
    """log(x) + low for a positive finite x and a small correction."""
    e, m = split(b, x)
    f = m - 1.0
    total, rest = two_sum(b, e * LN2_HI, f)
    return odd_sum(b, total, rest + (b.fma(e, LN2_LO, _log_minus_f(b, f)) + low))


def _log_scaled(b: Builder, x: Value, e_hi: float, e_lo: float, scale_hi: float, scale_lo: float) -> Value:
    """e (e_hi + e_lo) + log(m) (scale_hi + scale_lo)."""
    e, m = split(b, x)
    f = m - 1.0
    low = _log_minus_f(b, f)
    product, error = two_product(b, f, scale_hi)
    total, rest = two_sum(b, e * e_hi, product)
    return odd_sum(b, total, rest + b.fma(low, scale_hi, b.fma(f, scale_lo, b.fma(e, e_lo, error))))


def log(b: Builder, x: Value) -> Value:
    return _log_domain(b, x, log_positive(b, x))


def log2(b: Builder, x: Value) -> Value:
    return _log_domain(b, x, _log_scaled(b, x, 1.0, 0.0, LOG2_E, LOG2_E_LO))


def log10(b: Builder, x: Value) -> Value:
    return _log_domain(b, x, _log_scaled(b, x, _LOG10_2_HI, _LOG10_2_LO, _LOG10_E, _LOG10_E_LO))


def log1p(b: Builder, x: Value) -> Value:
    u = x + 1.0
    y = _log_domain(b, u, log_positive(b, u))
    return b.select(b.op("abs", x) < 2.0**-28, x, y)  # below, x - x**2/2 rounds to x; above, 1 + x is exact


def log1p_positive(b: Builder, x: Value) -> Value:
    """log(1 + x) for any finite f64 x >= 0, with relative accuracy."""
    u = x + 1.0
    small, large = b.select(x < 1.0, x, 1.0), b.select(x < 1.0, 1.0, x)
    lost = small - (u - large)
    return b.select(x < 2.0**-54, x, log_positive(b, u, lost / u))


# -- inverse hyperbolic functions -------------------------------------------------------------


def asinh(b: Builder, x: Value) -> Value:
    """Odd polynomial up to 1/2; above, log(|x| + sqrt(x**2 + 1)) with the sum in two parts."""
    a = b.op("abs", x)
    z = x * x
    near = b.fma(x * z, polynomial(b, table.ASINH, b.select(z < 0.25, z, 0.25)), x)
    square, square_low = any_two_sum(b, z, b.f64(1.0))
    root = b.sqrt(square)
    root_low = (b.fma(-root, root, square) + square_low) / (root * 2.0)
    total, rest = two_sum(b, root, a)
    far = log_positive(b, total, (rest + root_low) / total)
    far = b.select(a < _INF, far, a)
    return keep_zero(b, x, b.select(a < 0.5, near, b.op("copysign", far, x)))


def acosh(b: Builder, x: Value) -> Value:
    """log(1 + t + sqrt(t (t + 2))), t = x - 1, with the sum in two parts."""
    t = x - 1.0
    square = b.fma(x, x, -1.0)
    root = b.sqrt(square)
    root_low = b.select(square > 0.0, b.fma(-root, root, square) / (root * 2.0), 0.0)
    total, rest = any_two_sum(b, x, root)
    far = log_positive(b, total, (rest + root_low) / total)
    y = b.select(t < 2.0**-10, _log1p_near(b, t + root), far)
    return b.select(x < 1.0, _NAN, b.select(x < _INF, b.select(x.eq(1.0), 0.0, y), x))


def _log1p_near(b: Builder, a: Value) -> Value:
    """log(1 + a) for 0 <= a < 0.1, with relative accuracy."""
    return a + _log_minus_f(b, a)


def atanh(b: Builder, x: Value) -> Value:
    """Half of log((1 + |x|) / (1 - |x|)), the quotient taken inside the logarithm's own."""
    a = b.op("abs", x)
    up, down = a + 1.0, 1.0 - a
    exponent = (b.bitcast(up, Type.I64) - b.bitcast(down, Type.I64) + (1 << 51)) >> 52
    scaled = down * b.bitcast((exponent << 52) + _ONE_BITS, Type.F64)
    e = b.convert(exponent, Type.F64)
    s = b.select(exponent.eq(0), a, (up - scaled) / (up + scaled))
    z = s * s
    total, rest = two_sum(b, e * (0.5 * LN2_HI), s)
    low = b.fma(s * z * 0.5, polynomial(b, table.LOG, z), e * (0.5 * LN2_LO))
    y = b.select(a < 1.0, total + (rest + low), b.select(a.eq(1.0), b.f64(_INF), _NAN))
    return b.op("copysign", y, x)
