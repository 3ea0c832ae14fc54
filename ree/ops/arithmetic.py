"""How ATen's arithmetic becomes primitive operators: add to remainder, rounding, bits, casts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ree.ops.spec import lowers
from ree.types import DType

if TYPE_CHECKING:
    from ree.lower import Lowering, T

Number = int | float | bool
# torch's arithmetic on bool tensors
_BOOL_FORM = {"add": "or", "mul": "and", "maximum": "or", "minimum": "and"}


def apply(ctx: Lowering, op: str, *args: T | Number) -> T:
    """The operator in the dtype that torch gives the call."""
    dtype = ctx.out.dtype
    if dtype is DType.BOOL:
        op = _BOOL_FORM.get(op, op)
    return ctx.pointwise(op, *args, dtype=dtype)


def _same_op(op: str, *targets: str) -> None:
    """Rule: the call is this operator on the same operands."""

    @lowers(*(f"aten.{target}" for target in targets))
    def _rule(ctx: Lowering, *args: T | Number) -> T:
        return apply(ctx, op, *args)


_same_op("mul", "mul.Tensor", "mul.Scalar", "multiply.Tensor", "multiply.Scalar")
_same_op("maximum", "maximum.default", "max.other")
_same_op("minimum", "minimum.default", "min.other")
_same_op("sqrt", "sqrt.default")
_same_op("copysign", "copysign.Tensor", "copysign.Scalar")
_same_op(
    "and", "bitwise_and.Tensor", "bitwise_and.Scalar", "bitwise_and.Scalar_Tensor", "__and__.Tensor", "__and__.Scalar"
)
_same_op("or", "bitwise_or.Tensor", "bitwise_or.Scalar", "bitwise_or.Scalar_Tensor", "__or__.Tensor", "__or__.Scalar")
_same_op(
    "xor", "bitwise_xor.Tensor", "bitwise_xor.Scalar", "bitwise_xor.Scalar_Tensor", "__xor__.Tensor", "__xor__.Scalar"
)
_same_op("not", "bitwise_not.default")
_same_op(
    "shl", "bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", "bitwise_left_shift.Scalar_Tensor",
    "__lshift__.Tensor", "__lshift__.Scalar",
)  # fmt: skip
_same_op(
    "shr", "bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar", "bitwise_right_shift.Scalar_Tensor",
    "__rshift__.Tensor", "__rshift__.Scalar",
)  # fmt: skip


@lowers("aten.add.Tensor", "aten.add.Scalar")
def _add(ctx: Lowering, x: T, y: T | Number, alpha: Number = 1) -> T:
    return apply(ctx, "add", x, y if alpha == 1 else scaled(ctx, y, alpha))


@lowers("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(ctx: Lowering, x: T, y: T | Number, alpha: Number = 1) -> T:
    return apply(ctx, "sub", x, y if alpha == 1 else scaled(ctx, y, alpha))


@lowers("aten.rsub.Tensor", "aten.rsub.Scalar")
def _rsub(ctx: Lowering, x: T, y: T | Number, alpha: Number = 1) -> T:
    return apply(ctx, "sub", y, x if alpha == 1 else scaled(ctx, x, alpha))


def scaled(ctx: Lowering, x: T | Number, factor: Number) -> T:
    """x * factor in the call's dtype; nothing for a factor of 1."""
    dtype = ctx.out.dtype
    tensor = ctx.full((), x, dtype) if isinstance(x, int | float) else ctx.cast(x, dtype)
    return tensor if factor == 1 else apply(ctx, "mul", tensor, factor)


@lowers("aten.neg.default", "aten.negative.default")
def _neg(ctx: Lowering, x: T) -> T:
    return apply(ctx, "neg", x)


@lowers("aten.abs.default", "aten.absolute.default")
def _abs(ctx: Lowering, x: T) -> T:
    return x if x.dtype in (DType.BOOL, DType.U8) else ctx.emit("abs", [x])


@lowers("aten.reciprocal.default")
def _reciprocal(ctx: Lowering, x: T) -> T:
    return apply(ctx, "div", 1.0, x)


@lowers("aten.square.default")
def _square(ctx: Lowering, x: T) -> T:
    return apply(ctx, "mul", x, x)


@lowers("aten.sign.default", "aten.sgn.default")
def _sign(ctx: Lowering, x: T) -> T:
    """-1, 0 or 1; 0 for NaN, as torch has it."""
    if x.dtype is DType.BOOL:
        return x
    above, below = (ctx.cast(ctx.pointwise(op, x, 0, dtype=x.dtype), x.dtype) for op in ("gt", "lt"))
    return ctx.emit("sub", [above, below])


@lowers("aten.lerp.Scalar", "aten.lerp.Tensor")
def _lerp(ctx: Lowering, start: T, end: T, weight: T | Number) -> T:
    """From the nearer end, so that weight 1 gives `end` exactly."""
    span = apply(ctx, "sub", end, start)
    near = apply(ctx, "add", start, apply(ctx, "mul", span, weight))
    far = apply(ctx, "sub", end, apply(ctx, "mul", span, apply(ctx, "sub", 1, weight)))
    low = ctx.pointwise("lt", ctx.emit("abs", [_tensor(ctx, weight)]), 0.5, dtype=ctx.out.dtype)
    return select(ctx, low, near, far)


def _tensor(ctx: Lowering, x: T | Number) -> T:
    return ctx.full((), x, ctx.out.dtype) if isinstance(x, int | float) else ctx.cast(x, ctx.out.dtype)


def select(ctx: Lowering, condition: T, a: T | Number, b: T | Number, dtype: DType | None = None) -> T:
    """condition ? a : b with broadcasting, in `dtype` (the call's output dtype if None)."""
    dtype = dtype or ctx.out.dtype
    a, b = (ctx.full((), v, dtype) if isinstance(v, int | float) else ctx.cast(v, dtype) for v in (a, b))
    shape = ctx.broadcast_shape(condition.shape, a.shape, b.shape)
    return ctx.emit("where", [ctx.broadcast(v, shape) for v in (ctx.cast(condition, DType.BOOL), a, b)])


@lowers("aten.addcmul.default")
def _addcmul(ctx: Lowering, x: T, a: T, b: T, value: Number = 1) -> T:
    return apply(ctx, "add", x, apply(ctx, "mul", scaled(ctx, a, value), b))


@lowers("aten.addcdiv.default")
def _addcdiv(ctx: Lowering, x: T, a: T, b: T, value: Number = 1) -> T:
    return apply(ctx, "add", x, apply(ctx, "div", scaled(ctx, a, value), b))


# -- division ------------------------------------------------------------------------


@lowers(
    "aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor", "aten.true_divide.Scalar",
    "aten.div.Tensor_mode", "aten.div.Scalar_mode",
)  # fmt: skip
def _div(ctx: Lowering, x: T, y: T | Number, rounding_mode: str | None = None) -> T:
    if rounding_mode == "floor":
        return _floor_divide(ctx, x, y)
    quotient = apply(ctx, "div", x, y)
    return ctx.emit("trunc", [quotient]) if rounding_mode == "trunc" and quotient.dtype.is_float else quotient


@lowers("aten.floor_divide.default", "aten.floor_divide.Scalar")
def _floor_divide(ctx: Lowering, x: T, y: T | Number) -> T:
    """Python's floor division; an integer divided by zero gives 0."""
    if ctx.out.dtype.is_float:
        return _floor_divide_float(ctx, x, y)
    quotient, rest = apply(ctx, "div", x, y), apply(ctx, "rem", x, y)
    return select(ctx, _signs_differ(ctx, rest, y), apply(ctx, "sub", quotient, 1), quotient)


def _floor_divide_float(ctx: Lowering, x: T, y: T | Number) -> T:
    """torch's steps: (x - fmod(x, y)) / y is close to an integer, which is then found."""
    rest = apply(ctx, "fmod", x, y)
    near = apply(ctx, "div", apply(ctx, "sub", x, rest), y)
    near = select(ctx, _signs_differ(ctx, rest, y), apply(ctx, "sub", near, 1), near)
    below = ctx.emit("floor", [near])
    excess = ctx.pointwise("gt", apply(ctx, "sub", near, below), 0.5, dtype=ctx.out.dtype)
    whole = select(ctx, excess, apply(ctx, "add", below, 1), below)
    exact = apply(ctx, "div", x, y)
    zero = apply(ctx, "copysign", 0, exact)
    whole = select(ctx, ctx.pointwise("eq", near, 0, dtype=ctx.out.dtype), zero, whole)
    return select(ctx, ctx.pointwise("eq", y, 0, dtype=ctx.out.dtype), exact, whole)


def _signs_differ(ctx: Lowering, rest: T, divisor: T | Number) -> T:
    """Whether a remainder is not zero and its sign is not the divisor's (false for divisor 0)."""

    def has(value: T | Number, op: str) -> T:
        return ctx.pointwise(op, value, 0, dtype=ctx.out.dtype)

    down = ctx.pointwise("and", has(rest, "lt"), has(divisor, "gt"), dtype=DType.BOOL)
    up = ctx.pointwise("and", has(rest, "gt"), has(divisor, "lt"), dtype=DType.BOOL)
    return ctx.pointwise("or", down, up, dtype=DType.BOOL)


@lowers("aten.fmod.Tensor", "aten.fmod.Scalar")
def _fmod(ctx: Lowering, x: T, y: T | Number) -> T:
    return apply(ctx, "fmod" if ctx.out.dtype.is_float else "rem", x, y)


@lowers("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def _remainder(ctx: Lowering, x: T | Number, y: T | Number) -> T:
    """Python's %: the sign of y; an integer x % 0 is x."""
    rest = apply(ctx, "fmod" if ctx.out.dtype.is_float else "rem", x, y)
    return select(ctx, _signs_differ(ctx, rest, y), apply(ctx, "add", rest, y), rest)


# -- rounding ------------------------------------------------------------------------


def _rounding(op: str) -> None:
    @lowers(f"aten.{op}.default")
    def _rule(ctx: Lowering, x: T) -> T:
        return ctx.emit(op, [x]) if x.dtype.is_float else x


for _name in ("floor", "ceil", "trunc", "round"):
    _rounding(_name)


@lowers("aten.fix.default")
def _fix(ctx: Lowering, x: T) -> T:
    return ctx.emit("trunc", [x]) if x.dtype.is_float else x


@lowers("aten.round.decimals")
def _round_decimals(ctx: Lowering, x: T, decimals: int = 0) -> T:
    """Scaled by a power of ten, rounded, scaled back."""
    if decimals == 0 or not x.dtype.is_float:
        return ctx.emit("round", [x]) if x.dtype.is_float else x
    there, back = ("mul", "div") if decimals > 0 else ("div", "mul")
    scale = float(10 ** abs(decimals))
    return apply(ctx, back, ctx.emit("round", [apply(ctx, there, x, scale)]), scale)


@lowers("aten.frac.default")
def _frac(ctx: Lowering, x: T) -> T:
    return ctx.emit("sub", [x, ctx.emit("trunc", [x])])


# -- casts and copies --------------------------------------------------------------------


@lowers(
    "aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.to.other",
    "aten.type_as.default", "prims.convert_element_type.default",
)  # fmt: skip
def _to(ctx: Lowering, x: T, *_: object, **__: object) -> T:
    """All that these calls can change of a value is its dtype, which torch states."""
    return ctx.cast(x, ctx.out.dtype)


@lowers(
    "aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default",
    "aten.contiguous.default", "aten.positive.default", "aten.alias_copy.default", "aten.detach_copy.default",
)  # fmt: skip
def _identity(ctx: Lowering, x: T, *_: object, **__: object) -> T:
    return x


@lowers("aten.copy.default")
def _copy(ctx: Lowering, x: T, source: T, non_blocking: bool = False) -> T:
    return ctx.broadcast(ctx.cast(source, x.dtype), x.shape)
