"""Primitive pointwise operators: one element-program instruction (or a handful) per element.

All inputs have the output's shape and, but for `where`, one dtype: lowering casts and
broadcasts before (`Lowering.pointwise`). Compound ATen operators are lowered to several of
these (arithmetic.py, compare.py, activation.py), which fusion makes free. Integers wrap;
integer division by zero gives 0 and its remainder is the dividend: where torch raises,
nothing fails here.
"""

from __future__ import annotations

from collections.abc import Sequence

from ree.element.program import Builder, Value
from ree.errors import ShapeError
from ree.ops.spec import Attrs, operator_def
from ree.types import DType, TensorType, Type


def alike_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    """Shape rule: all inputs have one type, which is the output's."""
    for other in ins[1:]:
        if other.rank != ins[0].rank or other.dtype is not ins[0].dtype:
            raise ShapeError(f"pointwise operands {ins[0]} and {other} differ")
    return ins[0]


def _predicate_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return alike_type(ins, attrs).with_dtype(DType.BOOL)


def _cast_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return ins[0].with_dtype(DType(attrs["dtype"]))


def _where_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if ins[0].dtype is not DType.BOOL or ins[0].rank != ins[1].rank:
        raise ShapeError(f"where {ins[0]}, {ins[1]}, {ins[2]}")
    return alike_type(ins[1:], attrs)


def loads(b: Builder) -> list[Value]:
    """This element of every input."""
    return [b.load(source, *b.indices()) for source in range(len(b.inputs))]


def _instruction(name: str, instruction: str, doc: str, *, predicate: bool = False) -> None:
    """Define an operator that applies one instruction to its inputs' elements."""

    @operator_def(name, infer=_predicate_type if predicate else alike_type, doc=doc)
    def _define(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
        values = loads(b)
        if predicate and values[0].type is Type.BOOL and instruction not in ("eq", "ne"):
            values = [b.convert(value, Type.I32) for value in values]  # false < true
        return b.op(instruction, *values)


_instruction("add", "add", "a + b")
_instruction("sub", "sub", "a - b")
_instruction("mul", "mul", "a * b")
_instruction("div", "div", "a / b; integers truncate, a / 0 = 0")
_instruction("rem", "rem", "integer remainder with the sign of a; a rem 0 = a")
_instruction("fma", "fma", "a * b + c, rounded once")
_instruction("neg", "neg", "-a")
_instruction("abs", "abs", "|a|")
_instruction("sqrt", "sqrt", "square root, correctly rounded")
_instruction("minimum", "min", "smaller; NaN if either is NaN; -0 < +0")
_instruction("maximum", "max", "larger; NaN if either is NaN; -0 < +0")
_instruction("floor", "floor", "toward -inf")
_instruction("ceil", "ceil", "toward +inf")
_instruction("trunc", "trunc", "toward zero")
_instruction("round", "rint", "to the nearest integer, ties to even")
_instruction("copysign", "copysign", "|a| with the sign of b (a NaN b counts as positive)")
_instruction("and", "and", "bitwise (bool: logical) and")
_instruction("or", "or", "bitwise (bool: logical) or")
_instruction("xor", "xor", "bitwise (bool: logical) exclusive or")
_instruction("not", "not", "bitwise (bool: logical) complement")
_instruction("shl", "shl", "a << b; 0 if b is outside 0 .. bits-1")
_instruction("shr", "shr", "a >> b, arithmetic if signed; sign fill (or 0) if b is outside 0 .. bits-1")
_instruction("eq", "eq", "a == b", predicate=True)
_instruction("ne", "ne", "a != b (true with NaN)", predicate=True)
_instruction("lt", "lt", "a < b", predicate=True)
_instruction("le", "le", "a <= b", predicate=True)
_instruction("gt", "gt", "a > b", predicate=True)
_instruction("ge", "ge", "a >= b", predicate=True)


@operator_def(
    "cast",
    infer=_cast_type,
    doc="by value: floats round to nearest, float to integer truncates, "
    "saturates at the element type's range and NaN gives 0, narrow integers wrap, to bool is x != 0",
)
def _cast(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    value = b.load(0, *b.indices())
    if value.type is Type.F64 and out.dtype in (DType.F16, DType.BF16):
        return _round_to_odd(b, value)
    return b.convert(value, out.dtype.element)


def _round_to_odd(b: Builder, x: Value) -> Value:
    """f64 to f32, an inexact result with last bit 1: rounded again (to 16 bits) it is rounded once.

    Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms
    using rounding to odd" (2008).
    """
    near = b.convert(x, Type.F32)
    back = b.convert(near, Type.F64)
    bits = b.bitcast(near, Type.I32)
    toward_zero = bits - b.convert(b.op("abs", back) > b.op("abs", x), Type.I32)
    inexact = back.ne(x) & x.eq(x)
    return b.bitcast(b.select(inexact, toward_zero | 1, bits), Type.F32)


@operator_def("where", infer=_where_type, doc="c ? a : b")
def _where(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return b.select(*loads(b))


@operator_def("fmod", infer=alike_type, doc="a - trunc(a / b) * b without rounding error; NaN if b is 0 or a infinite")
def _fmod(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    x, y = loads(b)
    # ratios reach 2^277 for f32 (and narrower), 2^2098 for f64
    steps = 42 if x.type is Type.F64 else 6
    return b.convert(fmod64(b, b.convert(x, Type.F64), b.convert(y, Type.F64), steps), x.type)


FMOD_STEP_BITS = 50


def fmod64(b: Builder, x: Value, y: Value, steps: int) -> Value:
    """C's fmod of two f64, exact where |x / y| < 2**(50 * steps).

    Long division with digits of 50 bits: at each step r < 2**50 * d, so the quotient rounded
    to an integer is at most one off, and r - q * d, a multiple of the operands' last place
    below 2 * d, is exact in an FMA; a sign test repairs the digit.
    """
    divisors = [b.op("abs", y)]
    for _ in range(steps - 1):
        divisors.append(divisors[-1] * 2.0**FMOD_STEP_BITS)
    infinity = float("inf")
    rest = b.op("abs", x)
    for position, divisor in reversed(list(enumerate(divisors))):
        left = b.fma(-b.op("floor", rest / divisor), divisor, rest)
        left = b.select(left < 0.0, left + divisor, left)
        # a scaled divisor that overflowed is larger than any finite rest: its digit is 0
        rest = left if position == 0 else b.select(divisor.eq(infinity), rest, left)
    rest = b.op("copysign", rest, x)
    return b.select(b.op("abs", y).eq(infinity) & (b.op("abs", x) < infinity), x, rest)
