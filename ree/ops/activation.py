"""How piecewise-linear and exponential activations become primitive operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ree.ops.arithmetic import Number, apply, scaled, select
from ree.ops.spec import lowers
from ree.types import DType

if TYPE_CHECKING:
    from ree.lower import Lowering, T


def clamped(ctx: Lowering, x: T, low: Number, high: Number) -> T:
    """min(max(x, low), high); NaN stays."""
    return apply(ctx, "minimum", apply(ctx, "maximum", x, low), high)


def _smooth(ctx: Lowering, op: str, x: T) -> T:
    """An elementary function, which is defined on float32 and narrower."""
    if x.dtype is DType.F64:
        raise ctx.unsupported("float64 in an elementary function", "use .float()")
    return ctx.emit(op, [x])


@lowers("aten.relu.default")
def _relu(ctx: Lowering, x: T) -> T:
    """max(x, 0): NaN stays, -0 becomes +0."""
    return apply(ctx, "maximum", x, 0)


@lowers("aten.relu6.default")
def _relu6(ctx: Lowering, x: T) -> T:
    return clamped(ctx, x, 0, 6)


@lowers("aten.hardtanh.default")
def _hardtanh(ctx: Lowering, x: T, low: Number = -1, high: Number = 1) -> T:
    return clamped(ctx, x, low, high)


@lowers("aten.threshold.default")
def _threshold(ctx: Lowering, x: T, threshold: Number, value: Number) -> T:
    return select(ctx, ctx.pointwise("le", x, threshold, dtype=x.dtype), value, x)


@lowers("aten.threshold_backward.default")
def _threshold_backward(ctx: Lowering, grad: T, x: T, threshold: Number) -> T:
    return select(ctx, ctx.pointwise("le", x, threshold, dtype=x.dtype), 0, grad)


def _above(ctx: Lowering, x: T) -> T:
    return ctx.pointwise("gt", x, 0, dtype=x.dtype)


@lowers("aten.leaky_relu.default")
def _leaky_relu(ctx: Lowering, x: T, slope: Number = 0.01) -> T:
    return select(ctx, _above(ctx, x), x, apply(ctx, "mul", x, slope))


@lowers("aten.prelu.default", "aten._prelu_kernel.default")
def _prelu(ctx: Lowering, x: T, weight: T) -> T:
    """x > 0 ? x : weight * x; one weight, or one for each channel (axis 1)."""
    if weight.rank == 1 and x.rank > 1:
        weight = ctx.reshape(weight, (weight.shape[0],) + (1,) * (x.rank - 2))
    elif weight.rank <= 1 and x.rank <= 1:
        weight = ctx.reshape(weight, ())
    return select(ctx, _above(ctx, x), x, apply(ctx, "mul", weight, x))


@lowers("aten.elu.default")
def _elu(ctx: Lowering, x: T, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> T:
    """x > 0 ? scale * x : (alpha * scale) * expm1(input_scale * x)."""
    negative = scaled(ctx, _smooth(ctx, "expm1", scaled(ctx, x, input_scale)), alpha * scale)
    return select(ctx, _above(ctx, x), scaled(ctx, x, scale), negative)


@lowers("aten.selu.default")
def _selu(ctx: Lowering, x: T) -> T:
    return _elu(ctx, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@lowers("aten.celu.default")
def _celu(ctx: Lowering, x: T, alpha: Number = 1.0) -> T:
    return _elu(ctx, x, alpha, 1, 1.0 / alpha)


@lowers("aten.hardsigmoid.default")
def _hardsigmoid(ctx: Lowering, x: T) -> T:
    return apply(ctx, "div", clamped(ctx, apply(ctx, "add", x, 3), 0, 6), 6)


@lowers("aten.hardswish.default")
def _hardswish(ctx: Lowering, x: T) -> T:
    return apply(ctx, "div", apply(ctx, "mul", x, clamped(ctx, apply(ctx, "add", x, 3), 0, 6)), 6)


@lowers("aten.hardshrink.default")
def _hardshrink(ctx: Lowering, x: T, bound: Number = 0.5) -> T:
    inside = ctx.pointwise("le", ctx.emit("abs", [x]), bound, dtype=x.dtype)
    return select(ctx, inside, 0, x)


@lowers("aten.softshrink.default")
def _softshrink(ctx: Lowering, x: T, bound: Number = 0.5) -> T:
    """x moved toward zero by `bound`, 0 inside; NaN stays."""
    above = ctx.pointwise("gt", x, bound, dtype=x.dtype)
    below = ctx.pointwise("lt", x, -bound, dtype=x.dtype)
    rest = apply(ctx, "mul", x, 0)  # 0, or NaN of NaN
    low = select(ctx, below, apply(ctx, "add", x, bound), rest)
    return select(ctx, above, apply(ctx, "sub", x, bound), low)


@lowers("aten.softsign.default")
def _softsign(ctx: Lowering, x: T) -> T:
    return apply(ctx, "div", x, apply(ctx, "add", ctx.emit("abs", [x]), 1))


@lowers("aten.glu.default")
def _glu(ctx: Lowering, x: T, dim: int = -1) -> T:
    """First half of an axis times the sigmoid of its second half."""
    axis = ctx.axis(dim, x.rank)
    half = x.shape[axis] // 2
    first, second = (ctx.emit("slice", [x], axis=axis, start=start, step=1, length=half) for start in (0, half))
    return ctx.emit("mul", [first, _smooth(ctx, "sigmoid", second)])


@lowers("aten.feature_dropout.default", "aten.alpha_dropout.default")
def _dropout(ctx: Lowering, x: T, p: float, train: bool) -> T:
    """The identity of evaluation mode."""
    if train and p != 0:
        raise ctx.unsupported("dropout in training mode", "call model.eval(), or use nn.Dropout")
    return x
