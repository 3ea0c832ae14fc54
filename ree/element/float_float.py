"""Arithmetic on float-floats: unrounded sums of two binary32 numbers, which hold about 46 bits.

Dekker's and Knuth's error-free sums, products by FMA, and a Horner's rule whose rounding errors are summed by a second
one (Graillat, Langlois and Louvet, 2009). Where an operation says that it wants something of its operands, its error
is larger without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ree.element.program import Builder, Operand, Value
from ree.element.real import any_two_sum, two_product, two_sum

Coefficient = tuple[Operand, ...]  # a binary32 number, or the two of a sum


class Pair(NamedTuple):
    """high + low, |low| being at most a few units in the last place of high."""

    high: Value
    low: Value


def constant(b: Builder, c: tuple[float, float]) -> Pair:
    return Pair(b.f32(c[0]), b.f32(c[1]))


def add(b: Builder, x: Operand, y: Pair) -> Pair:
    """x + y, where |x| >= |y| or x is 0."""
    high, low = two_sum(b, b.as_value(x, y.high.type), y.high)
    return Pair(high, low + y.low)


def add_any(b: Builder, x: Operand, y: Pair) -> Pair:
    """x + y."""
    high, low = any_two_sum(b, b.as_value(x, y.high.type), y.high)
    return Pair(high, low + y.low)


def scale(x: Pair, factor: Operand) -> Pair:
    """x times a power of two."""
    return Pair(x.high * factor, x.low * factor)


def multiply(b: Builder, x: Pair, y: Pair) -> Pair:
    high, low = two_product(b, x.high, y.high)
    return Pair(high, b.fma(x.high, y.low, b.fma(x.low, y.high, low)))


def multiply_one(b: Builder, x: Pair, y: Operand) -> Pair:
    """x times a binary32 number."""
    high, low = two_product(b, x.high, y)
    return Pair(high, b.fma(x.low, y, low))


def square(b: Builder, x: Pair) -> Pair:
    high, low = two_product(b, x.high, x.high)
    return Pair(high, b.fma(x.high + x.high, x.low, low))


def reciprocal(b: Builder, x: Pair) -> Pair:
    high = 1.0 / x.high
    rest = b.fma(-high, x.low, b.fma(-high, x.high, 1.0))
    return Pair(high, rest * high)


def quotient(b: Builder, x: Value, y: Pair) -> Pair:
    """A binary32 number over y."""
    inverse = 1.0 / y.high
    high = x * inverse
    rest = b.fma(-high, y.low, b.fma(-high, y.high, x))
    return Pair(high, rest * inverse)


def divide(b: Builder, x: Pair, y: Pair) -> Pair:
    inverse = 1.0 / y.high
    high = x.high * inverse
    rest = b.fma(-high, y.low, b.fma(-high, y.high, x.high) + x.low)
    return Pair(high, rest * inverse)


def select(b: Builder, condition: Value, x: Pair, y: Pair) -> Pair:
    return Pair(b.select(condition, x.high, y.high), b.select(condition, x.low, y.low))


def polynomial(b: Builder, coefficients: Sequence[Coefficient], x: Value, x_low: Value | None = None) -> Pair:
    """Horner's rule, constant term first; the coefficients that are single numbers, those of high powers, by FMA alone.

    A step s x + c gives its error exactly where (s x + c) - c is a binary32 number: tools/minimax_narrow.py sees to it.
    """
    single = [c[0] for c in coefficients if len(c) == 1]
    total = b.as_value(single[-1], x.type)
    for number in reversed(single[:-1]):
        total = b.fma(total, x, number)
    low: Value | None = None
    for c in reversed(coefficients[: len(coefficients) - len(single)]):
        step = b.fma(total, x, c[0])
        error = b.fma(total, x, c[0] - step)
        error = error if low is None else b.fma(low, x, error)
        error = error if x_low is None else b.fma(total, x_low, error)
        total, low = step, error if c[1] == 0.0 else error + c[1]
    return Pair(total, b.as_value(0.0, x.type) if low is None else low)
