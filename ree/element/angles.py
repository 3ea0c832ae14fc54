"""Trigonometric functions and their inverses in binary64, with full reduction of any binary32 argument.

Reduction: for x = +-M 2**k with a 24-bit M, a multiple of 4 may be left out of 2**k * 2/pi,
so the bits of 2/pi that matter are picked by the size of x (Payne and Hanek, 1983). They come
as four pieces; the first three have 29 bits, so that their products with x are exact.
"""

from __future__ import annotations

from ree.element import coefficients as table
from ree.element.program import Builder, Value
from ree.element.real import any_two_sum, keep_zero, odd_sum, polynomial, two_product, two_sum
from ree.types import Type

_MAGIC = 6755399441055744.0  # 1.5 * 2**52
_NAN = float("nan")
_INF = float("inf")
_PI_2 = float.fromhex("0x1.921fb54442d18p+0")
_PI_2_LO = float.fromhex("0x1.1a62633145c07p-54")
_TAN_PI_8 = 0.41421356237309503

# bits of the fraction of 2/pi after the binary point, 320 of them
_TWO_OVER_PI = int(
    "A2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561B7246E3A424DD2E0",
    16,
)
_TWO_OVER_PI_BITS = 320
_PIECE_BITS = 29
# (from this size of x on, scale s): 2/pi is taken as 2**s * (2/pi mod 4 * 2**-s)
_GROUPS = ((2.0**56, 32), (2.0**88, 64), (2.0**120, 96))


def _pieces(scale: int) -> list[float]:
    """2/pi * 2**scale mod 4, times 2**-scale, in pieces of 29, 29, 29 and 53 bits."""
    whole = _TWO_OVER_PI & ((1 << (_TWO_OVER_PI_BITS - scale + 2)) - 1)
    found = []
    position = _TWO_OVER_PI_BITS - scale + 2  # bits not yet given out
    for width in (_PIECE_BITS, _PIECE_BITS, _PIECE_BITS, 53):
        position -= width
        piece, whole = whole >> position, whole & ((1 << position) - 1)
        found.append(piece * 2.0 ** (position - _TWO_OVER_PI_BITS))
    return found


def reduce(b: Builder, x: Value) -> tuple[Value, Value, Value]:
    """(f, f_low, quadrant bits): x * 2/pi = n + f + f_low, |f| <= 1/2, n mod 4 in the low bits."""
    size = b.op("abs", x)
    pieces = [b.f64(piece) for piece in _pieces(0)]
    for start, scale in _GROUPS:
        large = size >= start
        pieces = [b.select(large, new, old) for new, old in zip(_pieces(scale), pieces, strict=True)]
    products = [x * piece for piece in pieces]
    whole = [b.op("rint", product) for product in products[:2]]
    first, second = (product - n for product, n in zip(products, whole, strict=False))
    total, rest = any_two_sum(b, first, second)
    carry = b.op("rint", total)
    total, more = any_two_sum(b, total - carry, products[2])
    carry_more = b.op("rint", total)
    f, f_low = any_two_sum(b, total - carry_more, rest + more + products[3])
    whole_mod_4 = whole[0] - b.op("rint", whole[0] * 0.25) * 4.0
    n = (whole_mod_4 + whole[1]) + (carry + carry_more)
    return f, f_low, b.bitcast(n + _MAGIC, Type.I64)


def _sin_cos(b: Builder, f: Value, f_low: Value) -> tuple[tuple[Value, Value], tuple[Value, Value]]:
    """sin and cos of pi/2 (f + f_low), each as an unrounded sum of two parts."""
    z = f * f
    angle, angle_low = two_product(b, f, _PI_2)
    cos_rest = z * polynomial(b, table.COS, z)
    angle_low = b.fma(b.fma(cos_rest, f_low, f_low), _PI_2, b.fma(f, _PI_2_LO, angle_low))
    sin_rest = b.fma(f * z, polynomial(b, table.SIN, z), angle_low)
    cos_rest = b.fma(f * f_low, -_PI_2 * _PI_2, cos_rest)
    return (angle, sin_rest), (b.f64(1.0), cos_rest)


def _turned(b: Builder, x: Value, quarter: int) -> Value:
    """sin(x + quarter pi/2)."""
    f, f_low, bits = reduce(b, x)
    (sin_high, sin_low), (cos_high, cos_low) = _sin_cos(b, f, f_low)
    bits = bits + quarter if quarter else bits
    odd = (bits & 1).ne(0)
    y = odd_sum(b, b.select(odd, cos_high, sin_high), b.select(odd, cos_low, sin_low))
    return b.select((bits & 2).ne(0), -y, y)


def sin(b: Builder, x: Value) -> Value:
    return keep_zero(b, x, _turned(b, x, 0))


def cos(b: Builder, x: Value) -> Value:
    return _turned(b, x, 1)


def tan(b: Builder, x: Value) -> Value:
    f, f_low, bits = reduce(b, x)
    (sin_high, sin_low), (cos_high, cos_low) = _sin_cos(b, f, f_low)
    sine, sine_low = two_sum(b, sin_high, sin_low)
    cosine, cosine_low = two_sum(b, cos_high, cos_low)
    odd = (bits & 1).ne(0)
    above, above_low = b.select(odd, -cosine, sine), b.select(odd, -cosine_low, sine_low)
    below, below_low = b.select(odd, sine, cosine), b.select(odd, sine_low, cosine_low)
    inverse = 1.0 / below
    quotient = above * inverse
    remainder = b.fma(-quotient, below, above) + b.fma(-quotient, below_low, above_low)
    return keep_zero(b, x, b.fma(remainder, inverse, quotient))


# -- inverses -------------------------------------------------------------------------------


def arctangent(b: Builder, above: Value, below: Value) -> tuple[Value, Value]:
    """atan(above / below) for above, below >= 0, not both 0 or infinite: an unrounded sum of two parts.

    Three ranges share one division: t = a/b, (a-b)/(a+b) plus pi/4, -b/a plus pi/2.
    """
    middle = above > below * _TAN_PI_8
    high = above * _TAN_PI_8 > below
    top = b.select(high, -below, b.select(middle, above - below, above))
    bottom = b.select(high, above, b.select(middle, above + below, below))
    offset = b.select(high, _PI_2, b.select(middle, b.f64(_PI_2 / 2), 0.0))
    offset_low = b.select(high, _PI_2_LO, b.select(middle, b.f64(_PI_2_LO / 2), 0.0))
    t = top / bottom
    z = t * t
    total, rest = two_sum(b, offset, t)
    return total, b.fma(t * z, polynomial(b, table.ATAN, z), offset_low) + rest


def atan(b: Builder, x: Value) -> Value:
    a = b.op("abs", x)
    bounded = b.select(a > 2.0**100, 2.0**100, a)
    total, rest = arctangent(b, bounded, b.f64(1.0))
    return b.op("copysign", odd_sum(b, total, rest), x)


def _arcsine_parts(b: Builder, x: Value) -> tuple[Value, Value, Value, Value]:
    """(|x| > 1/2, t, t_low, rest): asin t = t + t_low + rest; t is |x|, or sqrt((1 - |x|) / 2)."""
    a = b.op("abs", x)
    large = a > 0.5
    z = b.select(large, b.fma(a, -0.5, 0.5), a * a)
    root = b.sqrt(z)
    root_low = b.fma(-root, root, z) / b.select(root > 0.0, root * 2.0, 1.0)
    t, t_low = b.select(large, root, a), b.select(large, root_low, 0.0)
    return large, t, t_low, b.fma(t * z, polynomial(b, table.ASIN, z), t_low)


def asin(b: Builder, x: Value) -> Value:
    large, t, _, rest = _arcsine_parts(b, x)
    total, error = two_sum(b, b.f64(_PI_2), t * -2.0)
    y = b.select(large, total + (error + b.fma(rest, -2.0, _PI_2_LO)), t + rest)
    return b.op("copysign", b.select(b.op("abs", x) <= 1.0, y, _NAN), x)


def acos(b: Builder, x: Value) -> Value:
    large, t, _, rest = _arcsine_parts(b, x)
    negative = x < 0.0
    sign = b.select(negative, b.f64(-1.0), 1.0)
    # |x| <= 1/2: pi/2 - asin x; x > 1/2: 2 asin t; x < -1/2: pi - 2 asin t
    factor = b.select(large, sign * 2.0, -sign)
    offset = b.select(large, b.select(negative, b.f64(2.0 * _PI_2), 0.0), _PI_2)
    offset_low = b.select(large, b.select(negative, b.f64(2.0 * _PI_2_LO), 0.0), _PI_2_LO)
    total, error = two_sum(b, offset, t * factor)
    y = odd_sum(b, total, error + b.fma(rest, factor, offset_low))
    return b.select(b.op("abs", x) <= 1.0, y, _NAN)


def atan2(b: Builder, y: Value, x: Value) -> Value:
    """The angle of (x, y), C99 Annex F.9.1.4; the quadrant by the signs, those of zeros included."""
    above, below = b.op("abs", y), b.op("abs", x)
    both_zero = above.eq(0.0) & below.eq(0.0)
    both_infinite = above.eq(_INF) & below.eq(_INF)
    below = b.select(both_zero | both_infinite, 1.0, below)
    above = b.select(both_infinite, 1.0, above)
    total, rest = arctangent(b, above, below)
    back, error = two_sum(b, b.f64(2.0 * _PI_2), -total)
    left = b.op("copysign", b.f64(1.0), x) < 0.0
    angle = b.select(left, back + (error + (2.0 * _PI_2_LO - rest)), total + rest)
    nan = x.ne(x) | y.ne(y)
    return b.select(nan, _NAN, b.op("copysign", angle, y))
