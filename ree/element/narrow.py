"""Elementary functions of binary32 by binary32 arithmetic, for devices on which binary64 is slow.

Each function here gives a float-float that lies close to the exact value, and says how close. Where all that lies so
close rounds to the same number, that is the function's result, the same that its definition in binary64 gives; the
rest, one input in some ten thousand, is left to the definition (`settle`). benchmarks/exhaustive.py --narrow compares
both on all 2**32 inputs, which is what proves the bounds and the comments below (docs/FUNCTIONS.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ree.element import narrow_coefficients as table
from ree.element.float_float import (
    Pair,
    add,
    add_any,
    constant,
    divide,
    multiply,
    multiply_one,
    polynomial,
    quotient,
    reciprocal,
    scale,
    select,
    square,
)
from ree.element.program import Builder, Operand, Value, const_bits, const_value
from ree.element.real import any_two_sum, two_product, two_sum
from ree.types import Type

_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer held in the low bits
_ONE_BITS = 0x3F800000
_LEAST = 2.0**-126  # normal
_SMALL = 2.0**-100  # above, the second number of a float-float has all its bits
_INF = float("inf")


def _sum(text: str) -> tuple[float, float]:
    high, low = (float.fromhex(word) for word in text.split())
    return high, low


# constants as sums of binary32 numbers
_LOG2_E = _sum("0x1.715476p+0 0x1.4ae0cp-26")
_LOG10_E = _sum("0x1.bcb7b2p-2 -0x1.5b235ep-27")
_LN2 = _sum("0x1.62e43p-1 -0x1.05c61p-29")
# of the next two, the first number has 16 bits, so that its product with an exponent is exact
_LN2_SHORT = _sum("0x1.62e4p-1 0x1.7f7d1cp-20")
_LOG10_2_SHORT = _sum("0x1.3442p-2 -0x1.95ec1p-19")
_PI_2 = _sum("0x1.921fb6p+0 -0x1.777a5cp-25")
_PI_2_REST = float.fromhex("-0x1.ee59dap-50")
_TWO_OVER_PI = float.fromhex("0x1.45f306p-1")
# -2 u of gelu_tanh: x (c + d x**2)
_TANH_LINEAR = _sum("-0x1.988454p+0 0x1.857936p-25")
_TANH_CUBIC = _sum("-0x1.2444f2p-4 -0x1.49b16ap-29")

_BELL_SCALE = 4.0
_BELL_SHIFT = float.fromhex("0x1.42f6ccp+0")  # 1 - centre of table.BELL
_BELL_MOST = 9.0
# results round to zero below
_EXP_ZERO = -104.0
_SILU_ZERO = -120.0
_GELU_ZERO = -14.5
_GELU_TANH_ZERO = -12.0
_ERF_CENTRE = 8.0
_ERF_ONE = 3.925  # erf(x) rounds to 1 from here on
_ANGLE_MOST = 2.0**17


@dataclass(frozen=True)
class Near:
    """value (1 + d) times `times` is the function for some |d| <= bound, where `usable`.

    times: a power of two whose product with the rounded value is exact. known: (where, result) for arguments whose
    results need no value.
    """

    value: Pair
    bound: float
    usable: Value
    times: Value | None = None
    known: tuple[tuple[Value, Operand], ...] = ()


def settle(b: Builder, near: Near) -> tuple[Value, Value]:
    """(result, settled): the function rounded once, where that is settled."""
    high, low = near.value
    below = high + b.fma(high, -near.bound, low)
    above = high + b.fma(high, near.bound, low)
    result, settled = below, below.eq(above) & near.usable
    if near.times is not None:
        result = result * near.times
    for where, known in near.known:
        result, settled = b.select(where, known, result), settled | where
    return result, settled


def _at_zero(x: Value, least: float | None = None) -> tuple[tuple[Value, Operand], ...]:
    """`known` of a function that keeps a zero, whose sign a float-float may lose, and that is -0 below `least`."""
    zero = (x.eq(0.0), x)
    return (zero,) if least is None else (zero, (x < least, -0.0))


def _integer(b: Builder, shifted: Value) -> tuple[Value, Value]:
    """(n, bits with n at their low end) of _MAGIC + n."""
    return shifted - _MAGIC, b.bitcast(shifted, Type.I32)


def _power_of_two(b: Builder, bits: Value) -> Value:
    """2**n, n standing in the low bits of `bits`."""
    return b.bitcast((bits << 23) + _ONE_BITS, Type.F32)


# -- exponentials ---------------------------------------------------------------------------


def _reduce_exp(b: Builder, x: Value, x_low: Value | None = None) -> tuple[Pair, Value]:
    """(r, 2**n) with x + x_low = n ln 2 + r, |r| <= ln(2)/2; |x| < 88."""
    n, bits = _integer(b, b.fma(x, _LOG2_E[0], _MAGIC))
    high = b.fma(n, -_LN2[0], x)  # exact
    if x_low is None:
        return Pair(high, n * -_LN2[1]), _power_of_two(b, bits)
    return Pair(*two_sum(b, high, b.fma(n, -_LN2[1], x_low))), _power_of_two(b, bits)


def _exp_reduced(b: Builder, r: Pair) -> Pair:
    """e**r; the second number of r counts to the first order, in which e**r is its own derivative."""
    high, low = polynomial(b, table.EXP, r.high)
    return Pair(high, b.fma(high, r.low, low))


def _exp(b: Builder, x: Value, x_low: Value | None = None) -> Pair:
    """e**(x + x_low), for |x| < 80."""
    r, times = _reduce_exp(b, x, x_low)
    return scale(_exp_reduced(b, r), times)


def _exp_less_one(b: Builder, x: Value) -> tuple[Pair, Value]:
    """(p, 2**n) with e**x = 2**n (1 + p), p with relative accuracy."""
    r, times = _reduce_exp(b, x)
    slope = polynomial(b, table.EXP[1:], r.high)  # (e**r - 1) / r
    p, low = multiply_one(b, slope, r.high)
    return Pair(p, low + b.fma(p, r.low, r.low)), times


def exp(b: Builder, x: Value) -> Near:
    r, times = _reduce_exp(b, x)
    usable = (x > -87.0) & (x < 88.0)
    return Near(_exp_reduced(b, r), 1.25 * 2.0**-40, usable, times, ((x < _EXP_ZERO, 0.0),))


def exp2(b: Builder, x: Value) -> Near:
    n, bits = _integer(b, x + _MAGIC)
    r = multiply_one(b, constant(b, _LN2), x - n)
    usable = (x > -125.5) & (x < 127.5)
    return Near(_exp_reduced(b, r), 1.25 * 2.0**-40, usable, _power_of_two(b, bits), ((x < -150.0, 0.0),))


def expm1(b: Builder, x: Value) -> Near:
    p, times = _exp_less_one(b, b.select(x < -30.0, -30.0, x))
    whole, rest = any_two_sum(b, times, b.f32(-1.0))  # |2**n - 1| >= |2**n p|
    high, low = add(b, whole, scale(p, times))
    return Near(Pair(high, low + rest), 2.0**-38, x < 88.0, known=_at_zero(x))


def tanh(b: Builder, x: Value) -> Near:
    p, times = _exp_less_one(b, x + x)
    above = add(b, times - 1.0, scale(p, times))  # the difference is exact for n up to 24
    size = b.op("abs", x)
    known = ((size > 9.1, b.op("copysign", b.f32(1.0), x)), *_at_zero(x))
    return Near(divide(b, above, add_any(b, 2.0, above)), 2.0**-38, size < 8.4, known=known)


def _one_and_exp(b: Builder, x: Value, x_low: Value | None = None) -> Pair:
    """1 + e**(x + x_low); |x| < 80."""
    return add_any(b, 1.0, _exp(b, x, x_low))


def _at_least(b: Builder, x: Value, bound: float) -> Value:
    return b.select(x < bound, bound, x)


def sigmoid(b: Builder, x: Value) -> Near:
    value = reciprocal(b, _one_and_exp(b, _at_least(b, -x, -70.0)))
    return Near(value, 1.25 * 2.0**-40, x > -69.0, known=((x < _EXP_ZERO, 0.0),))


def silu(b: Builder, x: Value) -> Near:
    value = quotient(b, x, _one_and_exp(b, _at_least(b, -x, -70.0)))
    return Near(value, 1.25 * 2.0**-40, _not_small(b, x) & (x > -69.0), known=_at_zero(x, _SILU_ZERO))


def _not_small(b: Builder, x: Value) -> Value:
    return b.op("abs", x) > _SMALL


def gelu_tanh(b: Builder, x: Value) -> Near:
    """x / (1 + e**(-2 u)), u = sqrt(2/pi) (x + 0.044715 x**3)."""
    inside = b.select(x > 7.0, 7.0, x)
    z = Pair(*two_product(b, inside, inside))
    high, low = add_any(b, _TANH_LINEAR[0], multiply(b, z, constant(b, _TANH_CUBIC)))
    inner = multiply_one(b, Pair(high, low + _TANH_LINEAR[1]), inside)
    value = quotient(b, x, _one_and_exp(b, *inner))
    return Near(value, 1.25 * 2.0**-39, _not_small(b, x) & (x > -9.0), known=_at_zero(x, _GELU_TANH_ZERO))


def mish(b: Builder, x: Value) -> Near:
    """x w / (w + 2), w = e**x (e**x + 2)."""
    e = _exp(b, b.select(x > 30.0, 30.0, x))
    above = multiply(b, e, add_any(b, 2.0, e))
    value = multiply_one(b, divide(b, above, add_any(b, 2.0, above)), x)
    return Near(value, 1.25 * 2.0**-40, _not_small(b, x) & (x > -60.0), known=_at_zero(x))


# -- logarithms -----------------------------------------------------------------------------


def _split(b: Builder, x: Value) -> tuple[Value, Value, Value]:
    """(e, m - 1, 2**-e) with x = 2**e m, m about [sqrt(1/2), sqrt(2)); x positive, normal, below 2**127."""
    bits = b.bitcast(x, Type.I32)
    exponent = (bits - 0x3F3504F3) >> 23
    shift = exponent << 23
    m = b.bitcast(bits - shift, Type.F32)
    return b.convert(exponent, Type.F32), m - 1.0, b.bitcast(_ONE_BITS - shift, Type.F32)


def _log_near_one(b: Builder, f: Pair) -> Pair:
    """log(1 + f), f about [sqrt(1/2) - 1, sqrt(2) - 1], with relative accuracy."""
    t = divide(b, scale(f, 2.0), add(b, 2.0, f))
    return multiply(b, t, polynomial(b, table.LOG, *square(b, t)))


def _log_near_one_single(b: Builder, f: Value) -> Pair:
    """The same for a binary32 number."""
    t = quotient(b, f + f, Pair(*two_sum(b, b.f32(2.0), f)))
    return multiply(b, t, polynomial(b, table.LOG, *square(b, t)))


def _plus_exponent(b: Builder, e: Value, natural: Pair) -> Pair:
    """e ln 2 + natural; e is 0, or e ln 2 the larger one."""
    high, low = add(b, e * _LN2_SHORT[0], natural)
    return Pair(high, b.fma(e, _LN2_SHORT[1], low))


def _is_normal(x: Value) -> Value:
    return (x >= _LEAST) & (x < _INF)


def log(b: Builder, x: Value) -> Near:
    e, f, _ = _split(b, x)
    return Near(_plus_exponent(b, e, _log_near_one_single(b, f)), 1.25 * 2.0**-41, _is_normal(x))


def log2(b: Builder, x: Value) -> Near:
    e, f, _ = _split(b, x)
    rest = multiply(b, _log_near_one_single(b, f), constant(b, _LOG2_E))
    return Near(add(b, e, rest), 1.25 * 2.0**-41, _is_normal(x))


def log10(b: Builder, x: Value) -> Near:
    e, f, _ = _split(b, x)
    rest = multiply(b, _log_near_one_single(b, f), constant(b, _LOG10_E))
    high, low = add(b, e * _LOG10_2_SHORT[0], rest)
    return Near(Pair(high, b.fma(e, _LOG10_2_SHORT[1], low)), 1.25 * 2.0**-39, _is_normal(x))


def log1p(b: Builder, x: Value) -> Near:
    u, u_low = any_two_sum(b, x, b.f32(1.0))
    e, f, smaller = _split(b, u)
    value = _plus_exponent(b, e, _log_near_one(b, Pair(*two_sum(b, f, u_low * smaller))))
    return Near(value, 1.25 * 2.0**-41, (x > -1.0) & (x < 1.0 / _SMALL), known=_at_zero(x))


def has_softplus(beta: float, threshold: float) -> bool:
    """Whether `softplus` can serve: it has no beta, and compares in binary32."""
    return beta == 1.0 and const_value(const_bits(threshold, Type.F32), Type.F32) == threshold


def softplus(b: Builder, x: Value, threshold: float = 20.0) -> Near:
    """log(1 + e**x), and x itself above a threshold."""
    usable = (x > -69.0) & (x <= threshold)
    return replace(_softplus(b, x), usable=usable, known=((x > threshold, x),))


def _softplus(b: Builder, x: Value) -> Near:
    """log(1 + e**x) = max(x, 0) + log(1 + e**-|x|)."""
    e = _exp(b, _at_least(b, -b.op("abs", x), -75.0))
    large = e.high > 0.41421356  # 1 + e is 2 m, m - 1 = (e - 1) / 2
    f = select(b, large, scale(add(b, -1.0, e), 0.5), e)
    tail = _plus_exponent(b, b.select(large, b.f32(1.0), 0.0), _log_near_one(b, f))
    value = add_any(b, b.select(x > 0.0, x, 0.0), tail)
    return Near(value, 1.25 * 2.0**-40, (x > -69.0) & (x < _INF))


def log_sigmoid(b: Builder, x: Value) -> Near:
    near = _softplus(b, -x)
    return replace(near, value=Pair(-near.value.high, -near.value.low))


# -- roots ------------------------------------------------------------------------------------


def rsqrt(b: Builder, x: Value) -> Near:
    """y = 1 / sqrt(x) rounded twice, and Newton's correction y (1 - x y**2) / 2."""
    y = 1.0 / b.sqrt(x)
    high, low = two_product(b, y, y)
    rest = b.fma(-x, low, b.fma(-x, high, 1.0))
    return Near(Pair(y, rest * (y * 0.5)), 2.0**-45, (x >= _LEAST) & (x < 1.0 / _SMALL))


# -- angles -----------------------------------------------------------------------------------


def _reduce_angle(b: Builder, x: Value) -> tuple[Pair, Value, Value]:
    """(r, n, bits): x = n pi/2 + r, |r| < 1.01 pi/4, the error of r below 2**-54; |x| <= 2**17 (Cody and Waite)."""
    n, bits = _integer(b, b.fma(x, _TWO_OVER_PI, _MAGIC))
    product, product_low = two_product(b, n, -_PI_2[1])
    high, low = any_two_sum(b, b.fma(n, -_PI_2[0], x), product)  # the first difference is exact
    return Pair(high, b.fma(n, -_PI_2_REST, low + product_low)), n, bits


def _turned(b: Builder, x: Value, quarter: int) -> Near:
    """sin(x + quarter pi/2): r or 1 times a polynomial in r**2."""
    r, n, bits = _reduce_angle(b, x)
    bits = bits + quarter if quarter else bits
    odd = (bits & 1).ne(0)
    z = square(b, r)
    terms = [
        tuple(p if p == q else b.select(odd, b.f32(q), p) for p, q in zip(sine, cosine, strict=True))
        for sine, cosine in zip(table.SIN, table.COS, strict=True)
    ]
    one = Pair(b.f32(1.0), b.f32(0.0))
    size = multiply(b, select(b, odd, one, r), polynomial(b, terms, *z))
    flip = (bits & 2).ne(0)
    value = select(b, flip, Pair(-size.high, -size.low), size)
    certain = n.eq(0.0) | (b.op("abs", size.high) > 2.0**-14)  # r may be known to less where it is small
    return Near(value, 1.25 * 2.0**-42, certain & (b.op("abs", x) < _ANGLE_MOST))


def sin(b: Builder, x: Value) -> Near:
    return replace(_turned(b, x, 0), known=_at_zero(x))


def cos(b: Builder, x: Value) -> Near:
    return _turned(b, x, 1)


# -- the error function -------------------------------------------------------------------------


def erf(b: Builder, x: Value) -> Near:
    """x P(x**2)."""
    inside = b.select(x > _ERF_ONE, _ERF_ONE, b.select(x < -_ERF_ONE, -_ERF_ONE, x))
    high, low = add(b, -_ERF_CENTRE, Pair(*two_product(b, inside, inside)))
    value = multiply_one(b, polynomial(b, table.ERF, high, low), inside)
    return Near(value, 1.25 * 2.0**-39, _not_small(b, x), known=_at_zero(x))


def gelu(b: Builder, x: Value) -> Near:
    """x Phi(x) with Phi(-a) = e**(-a**2 / 2) / (a + 4) times a polynomial in (a - 4) / (a + 4)."""
    a = b.op("abs", b.select(x > _BELL_MOST, _BELL_MOST, x))
    inverse = reciprocal(b, Pair(*any_two_sum(b, a, b.f32(_BELL_SCALE))))
    u = add(b, _BELL_SHIFT, scale(inverse, -2.0 * _BELL_SCALE))
    bell = polynomial(b, table.BELL, *two_sum(b, *u))
    e = _exp(b, *two_product(b, a * -0.5, a))
    tail = multiply(b, multiply(b, bell, inverse), e)
    other = add(b, 1.0, Pair(-tail.high, -tail.low))
    value = multiply_one(b, select(b, x < 0.0, tail, other), x)
    return Near(value, 1.25 * 2.0**-39, _not_small(b, x) & (x > -_BELL_MOST), known=_at_zero(x, _GELU_ZERO))


NEAR: dict[str, Callable[[Builder, Value], Near]] = {
    "exp": exp,
    "exp2": exp2,
    "expm1": expm1,
    "log": log,
    "log2": log2,
    "log10": log10,
    "log1p": log1p,
    "sin": sin,
    "cos": cos,
    "tanh": tanh,
    "erf": erf,
    "sigmoid": sigmoid,
    "rsqrt": rsqrt,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "mish": mish,
    "log_sigmoid": log_sigmoid,
    "softplus": softplus,
}
