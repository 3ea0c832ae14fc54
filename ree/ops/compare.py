"""How ATen's comparisons, logic, selections and clamps become primitive operators."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ree.ops.arithmetic import Number, apply, select
from ree.ops.spec import lowers
from ree.types import DType

if TYPE_CHECKING:
    from ree.lower import Lowering, T


def _comparison(op: str) -> None:
    @lowers(f"aten.{op}.Tensor", f"aten.{op}.Scalar")
    def _rule(ctx: Lowering, x: T, y: T | Number) -> T:
        return ctx.pointwise(op, x, y)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _comparison(_name)


def _logic(op: str) -> None:
    @lowers(f"aten.logical_{op}.default")
    def _rule(ctx: Lowering, *args: T) -> T:
        return ctx.pointwise(op, *args, dtype=DType.BOOL)


for _name in ("and", "or", "xor", "not"):
    _logic(_name)


@lowers("aten.isnan.default")
def _isnan(ctx: Lowering, x: T) -> T:
    return ctx.emit("ne", [x, x])


def _magnitude(ctx: Lowering, x: T, op: str) -> T:
    """Comparison of |x| with infinity; integers are finite."""
    if not x.dtype.is_float:
        return ctx.full(x.shape, op == "lt", DType.BOOL)
    return ctx.pointwise(op, ctx.emit("abs", [x]), math.inf, dtype=x.dtype)


@lowers("aten.isinf.default")
def _isinf(ctx: Lowering, x: T) -> T:
    return _magnitude(ctx, x, "eq")


@lowers("aten.isfinite.default")
def _isfinite(ctx: Lowering, x: T) -> T:
    return _magnitude(ctx, x, "lt")


@lowers("aten.isposinf.default")
def _isposinf(ctx: Lowering, x: T) -> T:
    return ctx.pointwise("eq", x, math.inf, dtype=x.dtype) if x.dtype.is_float else ctx.full(x.shape, False, DType.BOOL)


@lowers("aten.isneginf.default")
def _isneginf(ctx: Lowering, x: T) -> T:
    return (
        ctx.pointwise("eq", x, -math.inf, dtype=x.dtype) if x.dtype.is_float else ctx.full(x.shape, False, DType.BOOL)
    )


@lowers("aten.signbit.default")
def _signbit(ctx: Lowering, x: T) -> T:
    """Whether the sign is minus; +1 with the sign of x tells -0 from +0."""
    if x.dtype is DType.BOOL:
        return ctx.full(x.shape, False, DType.BOOL)
    signed = ctx.pointwise("copysign", 1.0, x, dtype=x.dtype) if x.dtype.is_float else x
    return ctx.pointwise("lt", signed, 0, dtype=x.dtype)


@lowers("aten.heaviside.default")
def _heaviside(ctx: Lowering, x: T, at_zero: T) -> T:
    """0 below zero, `at_zero` at zero, 1 above; NaN counts as below, as torch has it."""
    above = ctx.cast(ctx.pointwise("gt", x, 0, dtype=x.dtype), x.dtype)
    return select(ctx, ctx.pointwise("eq", x, 0, dtype=x.dtype), at_zero, above)


# -- selection ------------------------------------------------------------------------


@lowers("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def _where(ctx: Lowering, condition: T, a: T | Number, b: T | Number) -> T:
    return select(ctx, condition, a, b)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(ctx: Lowering, x: T, mask: T, value: T | Number) -> T:
    return ctx.broadcast(select(ctx, mask, value, x), ctx.out.shape)


@lowers("aten.nan_to_num.default")
def _nan_to_num(
    ctx: Lowering, x: T, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> T:
    if not x.dtype.is_float:
        return x
    import torch

    from ree.capture import to_torch_dtype

    limits = torch.finfo(to_torch_dtype(x.dtype))
    result = select(ctx, ctx.emit("ne", [x, x]), 0.0 if nan is None else nan, x)
    for infinity, given, limit in ((math.inf, posinf, limits.max), (-math.inf, neginf, limits.min)):
        at = ctx.pointwise("eq", x, infinity, dtype=x.dtype)
        result = select(ctx, at, float(limit) if given is None else given, result)
    return result


# -- clamps ---------------------------------------------------------------------------


@lowers("aten.clamp.default", "aten.clamp.Tensor", "aten.clip.default", "aten.clip.Tensor")
def _clamp(ctx: Lowering, x: T, min: T | Number | None = None, max: T | Number | None = None) -> T:
    """min(max(x, low), high): NaN stays, and the upper bound wins where bounds cross."""
    result = ctx.cast(x, ctx.out.dtype)
    if min is not None:
        result = apply(ctx, "maximum", result, min)
    if max is not None:
        result = apply(ctx, "minimum", result, max)
    return result


@lowers("aten.clamp_min.default", "aten.clamp_min.Tensor")
def _clamp_min(ctx: Lowering, x: T, low: T | Number) -> T:
    return apply(ctx, "maximum", x, low)


@lowers("aten.clamp_max.default", "aten.clamp_max.Tensor")
def _clamp_max(ctx: Lowering, x: T, high: T | Number) -> T:
    return apply(ctx, "minimum", x, high)


def _ignoring_nan(target: str, op: str) -> None:
    """fmax and fmin: NaN only where both operands are."""

    @lowers(f"aten.{target}.default")
    def _rule(ctx: Lowering, x: T, y: T) -> T:
        both = apply(ctx, op, x, y)
        if not both.dtype.is_float:
            return both
        a, b = (ctx.broadcast(ctx.cast(v, both.dtype), both.shape) for v in (x, y))
        either = select(ctx, ctx.emit("ne", [b, b]), a, both)
        return select(ctx, ctx.emit("ne", [a, a]), b, either)


_ignoring_nan("fmax", "maximum")
_ignoring_nan("fmin", "minimum")
