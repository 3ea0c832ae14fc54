"""Fused multiply-add in NumPy without hardware FMA: exact, whatever processor it runs on.

Both widths add with round-to-odd before the one final rounding, which makes double
rounding harmless (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums:
proved algorithms using rounding to odd", IEEE Trans. Computers 57(4), 2008).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

_SPLIT = 134217729.0  # 2**27 + 1, Veltkamp's constant for binary64
_LARGE = 2.0**450  # operands in between take the error-free path: no overflow, no underflow
_SMALL = 2.0**-400


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 arrays (broadcast), rounded once to float32."""
    with np.errstate(all="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)  # exact: 48 bits
        return _add_odd(product, c.astype(np.float64)).astype(np.float32)


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float64 arrays (broadcast), rounded once."""
    a, b, c = (np.ascontiguousarray(v) for v in np.broadcast_arrays(a, b, c))
    with np.errstate(all="ignore"):
        plain = a * b + c
        finite = np.isfinite(a) & np.isfinite(b)
        nonzero = finite & (a != 0) & (b != 0)
        result = np.where(finite & ~np.isfinite(c), c, plain)
        usual = nonzero & _moderate(a) & _moderate(b) & (_moderate(c) | (c == 0))
        result[usual] = _fma64_usual(a[usual], b[usual], c[usual])
        rare = nonzero & ~usual & np.isfinite(c)
        result[rare] = [_fma64_exact(*abc) for abc in zip(a[rare], b[rare], c[rare], strict=True)]
    return result


def _moderate(x: np.ndarray) -> np.ndarray:
    magnitude = np.abs(x)
    return (magnitude < _LARGE) & (magnitude > _SMALL)


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a + b as its rounded value and the exact error (Knuth)."""
    total = a + b
    b_part = total - a
    a_part = total - b_part
    return total, (a - a_part) + (b - b_part)


def _two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a * b as its rounded value and the exact error (Dekker)."""

    def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = x * _SPLIT
        high = scaled - (scaled - x)
        return high, x - high

    product = a * b
    a_high, a_low = split(a)
    b_high, b_low = split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _add_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b rounded to odd: an inexact sum becomes the neighbour whose last bit is 1."""
    total, error = _two_sum(a, b)
    bits = total.view(np.int64)
    fix = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    return np.where(fix, np.where(away, bits + 1, bits - 1), bits).view(np.float64)


def _fma64_usual(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    product, product_low = _two_product(a, b)
    addend, addend_low = _two_sum(c, product_low)
    total, total_low = _two_sum(product, addend)
    return total + _add_odd(addend_low, total_low)


def _fma64_exact(a: np.float64, b: np.float64, c: np.float64) -> float:
    """Rational arithmetic for extreme exponents; a and b are finite and not zero."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return 0.0
    try:
        nearest = exact.numerator / exact.denominator  # Python rounds this once, subnormals included
    except OverflowError:
        nearest = float("inf")
        return nearest if exact > 0 else -nearest
    return nearest if nearest != 0 else (0.0 if exact > 0 else -0.0)
