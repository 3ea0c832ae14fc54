"""How ATen's normalisations and softmaxes become the operators of norm.py and pointwise.py.

Inference batch norm becomes one FMA by per-channel vectors that fold to constants, so that
it fuses into a convolution. Group, instance and training batch norm subtract the mean
before they scale, which loses nothing where the mean is large against the deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ree.dims import Dim
from ree.errors import ShapeError
from ree.ops.reducing import reduce
from ree.ops.spec import lowers
from ree.types import DType

if TYPE_CHECKING:
    from ree.lower import Lowering, T

Shape = tuple[int | Dim, ...]


def _rstd(ctx: Lowering, var: T, eps: float) -> T:
    shifted = ctx.pointwise("add", var, float(eps), dtype=var.dtype)
    if var.dtype is DType.F64:  # elementary functions are defined on f32
        return ctx.pointwise("div", 1.0, ctx.emit("sqrt", [shifted]), dtype=DType.F64)
    return ctx.emit("rsqrt", [shifted])


# -- layer and RMS norm ---------------------------------------------------------------------


def _rows(ctx: Lowering, x: T, normalized_shape: Sequence[int | Dim]) -> T:
    """x with its normalised trailing axes joined to one."""
    axes = len(normalized_shape)
    if axes > x.rank or tuple(x.shape[x.rank - axes :]) != tuple(normalized_shape):
        raise ShapeError(f"{ctx.target}: normalised shape {tuple(normalized_shape)} of {x.type}")
    return ctx.reshape(x, (*x.shape[: x.rank - axes], math.prod(normalized_shape)))


def _vector(ctx: Lowering, v: T | None, dtype: DType) -> list[T]:
    """An optional affine parameter as a list of none or one vector."""
    return [] if v is None else [ctx.reshape(ctx.cast(v, dtype), (math.prod(v.shape),))]


def layer_norm(ctx: Lowering, x: T, shape: Sequence[int | Dim], weight: T | None, bias: T | None, eps: float) -> T:
    rows = _rows(ctx, x, shape)
    inputs = [rows, *_vector(ctx, weight, x.dtype), *_vector(ctx, bias, x.dtype)]
    flags = {"has_weight": weight is not None, "has_bias": bias is not None}
    return ctx.reshape(ctx.emit("layer_norm", inputs, eps=float(eps), **flags), x.shape)


@lowers("aten.layer_norm.default")
def _layer_norm(
    ctx: Lowering, x: T, normalized_shape: Sequence[int | Dim], weight: T | None = None, bias: T | None = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> T:  # fmt: skip
    return layer_norm(ctx, x, normalized_shape, weight, bias, eps)


@lowers("aten.native_layer_norm.default")
def _native_layer_norm(
    ctx: Lowering, x: T, normalized_shape: Sequence[int | Dim], weight: T | None, bias: T | None, eps: float
) -> tuple[T, T, T]:
    rows = _rows(ctx, x, normalized_shape)
    shape = (*x.shape[: x.rank - len(normalized_shape)], *(1 for _ in normalized_shape))
    mean = reduce(ctx, "mean", rows, -1, True)
    rstd = _rstd(ctx, reduce(ctx, "var", rows, -1, True, correction=0.0), eps)
    out = layer_norm(ctx, x, normalized_shape, weight, bias, eps)
    return out, ctx.reshape(mean, shape), ctx.reshape(rstd, shape)


def _eps(x: T, eps: float | None) -> float:
    import torch

    from ree.capture import to_torch_dtype

    return float(torch.finfo(to_torch_dtype(x.dtype)).eps) if eps is None else float(eps)


def rms_norm(ctx: Lowering, x: T, shape: Sequence[int | Dim], weight: T | None, eps: float) -> T:
    inputs = [_rows(ctx, x, shape), *_vector(ctx, weight, x.dtype)]
    return ctx.reshape(ctx.emit("rms_norm", inputs, eps=eps, has_weight=weight is not None), x.shape)


@lowers("aten.rms_norm.default")
def _rms_norm(
    ctx: Lowering, x: T, normalized_shape: Sequence[int | Dim], weight: T | None = None, eps: float | None = None
) -> T:
    return rms_norm(ctx, x, normalized_shape, weight, _eps(x, eps))


@lowers("aten._fused_rms_norm.default")
def _fused_rms_norm(
    ctx: Lowering, x: T, normalized_shape: Sequence[int | Dim], weight: T | None, eps: float | None
) -> tuple[T, T]:
    rows = _rows(ctx, x, normalized_shape)
    shape = (*x.shape[: x.rank - len(normalized_shape)], *(1 for _ in normalized_shape))
    square = reduce(ctx, "mean", ctx.emit("mul", [rows, rows]), -1, True)
    out = rms_norm(ctx, x, normalized_shape, weight, _eps(x, eps))
    return out, ctx.reshape(_rstd(ctx, square, _eps(x, eps)), shape)


# -- batch norm ---------------------------------------------------------------------------------


def _channels(ctx: Lowering, v: T, rank: int) -> T:
    """A vector [C] as [C, 1, ...], to stand against axis 1 of `rank` axes."""
    return ctx.reshape(v, (v.shape[0],) + (1,) * (rank - 2)) if rank > 2 else v


def _affine(ctx: Lowering, y: T, weight: T | None, bias: T | None) -> T:
    """y * weight + bias with broadcasting, whatever of them there is; both in one FMA."""
    if weight is not None and bias is not None:
        return ctx.pointwise("fma", y, weight, bias, dtype=y.dtype)
    if weight is not None:
        return ctx.pointwise("mul", y, weight, dtype=y.dtype)
    return y if bias is None else ctx.pointwise("add", y, bias, dtype=y.dtype)


def batch_norm_inference(ctx: Lowering, x: T, weight: T | None, bias: T | None, mean: T, var: T, eps: float) -> T:
    """fma(x, alpha, beta), alpha = weight * rstd, beta = bias - mean * alpha."""
    alpha = _rstd(ctx, ctx.cast(var, x.dtype), eps)
    if weight is not None:
        alpha = ctx.pointwise("mul", weight, alpha, dtype=x.dtype)
    shift = ctx.pointwise("mul", mean, alpha, dtype=x.dtype)
    beta = ctx.emit("neg", [shift]) if bias is None else ctx.pointwise("sub", bias, shift, dtype=x.dtype)
    return _affine(ctx, x, _channels(ctx, alpha, x.rank), _channels(ctx, beta, x.rank))


class _Batch:
    """Training batch norm: statistics over all axes but 1, and the normalised tensor."""

    def __init__(self, ctx: Lowering, x: T, weight: T | None, bias: T | None, eps: float) -> None:
        axes = [a for a in range(x.rank) if a != 1]
        self.ctx, self.x = ctx, x
        self.count = math.prod(x.shape[a] for a in axes)
        self.mean = reduce(ctx, "mean", x, axes)
        self.var = reduce(ctx, "var", x, axes, correction=0.0)
        self.rstd = _rstd(ctx, self.var, eps)
        mean, rstd = (_channels(ctx, v, x.rank) for v in (self.mean, self.rstd))
        weight, bias = (None if v is None else _channels(ctx, v, x.rank) for v in (weight, bias))
        scaled = ctx.pointwise("mul", ctx.pointwise("sub", x, mean, dtype=x.dtype), rstd, dtype=x.dtype)
        self.out = _affine(ctx, scaled, weight, bias)

    def running(self, mean: T, var: T, momentum: float) -> tuple[T, T]:
        """(1 - momentum) * old + momentum * new, the new variance unbiased."""
        axes = [a for a in range(self.x.rank) if a != 1]
        unbiased = reduce(self.ctx, "var", self.x, axes, correction=1.0)
        return self._blend(mean, self.mean, momentum), self._blend(var, unbiased, momentum)

    def _blend(self, old: T, new: T, momentum: float) -> T:
        kept = self.ctx.pointwise("mul", old, 1.0 - momentum, dtype=old.dtype)
        return self.ctx.pointwise(
            "add", kept, self.ctx.pointwise("mul", new, momentum, dtype=old.dtype), dtype=old.dtype
        )


def _empty(ctx: Lowering, x: T) -> T:
    return ctx.full((0,), 0.0, x.dtype)


@lowers("aten._native_batch_norm_legit_no_training.default")
def _no_training(
    ctx: Lowering, x: T, weight: T | None, bias: T | None, mean: T, var: T, momentum: float, eps: float
) -> tuple[T, T, T]:
    return batch_norm_inference(ctx, x, weight, bias, mean, var, eps), _empty(ctx, x), _empty(ctx, x)


@lowers("aten.batch_norm.default")
def _batch_norm(
    ctx: Lowering, x: T, weight: T | None, bias: T | None, mean: T | None, var: T | None, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool = False,
) -> T:  # fmt: skip
    if not training and mean is not None and var is not None:
        return batch_norm_inference(ctx, x, weight, bias, mean, var, eps)
    if mean is not None:
        raise ctx.unsupported("batch norm that updates its running statistics in place", "call model.eval()")
    return _Batch(ctx, x, weight, bias, eps).out


@lowers("aten._native_batch_norm_legit.no_stats")
def _no_stats(
    ctx: Lowering, x: T, weight: T | None, bias: T | None, training: bool, momentum: float, eps: float
) -> tuple[T, T, T]:
    batch = _Batch(ctx, x, weight, bias, eps)
    return batch.out, batch.mean, batch.rstd


@lowers("aten._native_batch_norm_legit.default", "aten.native_batch_norm.default")
def _native_batch_norm(
    ctx: Lowering, x: T, weight: T | None, bias: T | None, mean: T | None, var: T | None, training: bool,
    momentum: float, eps: float,
) -> tuple[T, T, T]:  # fmt: skip
    if not training and mean is not None and var is not None:
        return _no_training(ctx, x, weight, bias, mean, var, momentum, eps)
    if mean is not None:
        raise ctx.unsupported("batch norm that updates its running statistics in place", "call model.eval()")
    return _no_stats(ctx, x, weight, bias, training, momentum, eps)


@lowers("aten._native_batch_norm_legit_functional.default")
def _functional(
    ctx: Lowering, x: T, weight: T | None, bias: T | None, mean: T, var: T, training: bool, momentum: float, eps: float
) -> tuple[T, T, T, T, T]:
    if not training:
        out, *none = _no_training(ctx, x, weight, bias, mean, var, momentum, eps)
        return out, none[0], none[1], mean, var
    batch = _Batch(ctx, x, weight, bias, eps)
    return batch.out, batch.mean, batch.rstd, *batch.running(mean, var, momentum)


@lowers("aten._batch_norm_with_update_functional.default")
def _with_update_functional(
    ctx: Lowering, x: T, weight: T | None, bias: T | None, mean: T, var: T, momentum: float, eps: float
) -> tuple[T, T, T, T, T, T]:
    """The reserved fourth output is an empty byte tensor, as on torch's CPU."""
    batch = _Batch(ctx, x, weight, bias, eps)
    reserve = ctx.full((0,), 0, DType.U8)
    return batch.out, batch.mean, batch.rstd, reserve, *batch.running(mean, var, momentum)


@lowers("aten._batch_norm_no_update.default")
def _no_update(
    ctx: Lowering, x: T, weight: T | None, bias: T | None, mean: T, var: T, momentum: float, eps: float
) -> tuple[T, T, T, T]:
    out, *none = _no_training(ctx, x, weight, bias, mean, var, momentum, eps)
    return out, none[0], none[1], ctx.full((0,), 0, DType.U8)


# -- group and instance norm -----------------------------------------------------------------------


def group_norm(ctx: Lowering, x: T, weight: T | None, bias: T | None, groups: int, eps: float) -> tuple[T, T, T]:
    """(normalised, mean [N, G], rstd [N, G]) of x [N, C, ...]."""
    batch, channels, *spatial = x.shape
    rows = ctx.reshape(x, (batch, groups, channels // groups * math.prod(spatial)))
    mean = reduce(ctx, "mean", rows, -1, True)
    rstd = _rstd(ctx, reduce(ctx, "var", rows, -1, True, correction=0.0), eps)
    scaled = ctx.pointwise("mul", ctx.pointwise("sub", rows, mean, dtype=x.dtype), rstd, dtype=x.dtype)
    vectors = (None if v is None else _channels(ctx, v, x.rank) for v in (weight, bias))
    out = _affine(ctx, ctx.reshape(scaled, x.shape), *vectors)
    return out, ctx.reshape(mean, (batch, groups)), ctx.reshape(rstd, (batch, groups))


@lowers("aten.group_norm.default")
def _group_norm(
    ctx: Lowering, x: T, num_groups: int, weight: T | None = None, bias: T | None = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> T:  # fmt: skip
    return group_norm(ctx, x, weight, bias, num_groups, eps)[0]


@lowers("aten.native_group_norm.default")
def _native_group_norm(
    ctx: Lowering, x: T, weight: T | None, bias: T | None, batch: int | Dim, channels: int | Dim, area: int | Dim,
    group: int, eps: float,
) -> tuple[T, T, T]:  # fmt: skip
    return group_norm(ctx, x, weight, bias, group, eps)


@lowers("aten.instance_norm.default")
def _instance_norm(
    ctx: Lowering, x: T, weight: T | None, bias: T | None, mean: T | None, var: T | None, use_input_stats: bool,
    momentum: float, eps: float, cudnn_enabled: bool = False,
) -> T:  # fmt: skip
    if not use_input_stats and mean is not None and var is not None:
        return batch_norm_inference(ctx, x, weight, bias, mean, var, eps)
    if mean is not None:
        raise ctx.unsupported("instance norm that updates its running statistics in place", "call model.eval()")
    channels = x.shape[1]
    if isinstance(channels, Dim):
        raise ctx.unsupported("a dynamic number of channels")
    return group_norm(ctx, x, weight, bias, channels, eps)[0]


# -- softmax --------------------------------------------------------------------------------------------


def _along(ctx: Lowering, op: str, x: T, dim: int) -> T:
    """A row operator along any axis: brought to the end and back."""
    if x.rank == 0:
        return ctx.reshape(ctx.emit(op, [ctx.reshape(x, (1,))]), ())
    axis = ctx.axis(dim, x.rank)
    order = [a for a in range(x.rank) if a != axis] + [axis]
    back = [order.index(a) for a in range(x.rank)]
    return ctx.permute(ctx.emit(op, [ctx.permute(x, order)]), back)


def _softmax_rule(op: str) -> None:
    @lowers(f"aten.{op}.int", f"aten._{op}.default")
    def _rule(ctx: Lowering, x: T, dim: int, dtype: DType | bool | None = None) -> T:
        return _along(ctx, op, ctx.cast(x, ctx.out.dtype), dim)


_softmax_rule("softmax")
_softmax_rule("log_softmax")


@lowers("aten._safe_softmax.default")
def _safe_softmax(ctx: Lowering, x: T, dim: int, dtype: DType | None = None) -> T:
    """softmax, but 0 where a whole row is -inf."""
    x = ctx.cast(x, ctx.out.dtype)
    usual = _along(ctx, "softmax", x, dim)
    masked = ctx.pointwise("eq", reduce(ctx, "amax", x, dim, True), -math.inf, dtype=x.dtype)
    zero = ctx.full(x.shape, 0.0, x.dtype)
    return ctx.emit("where", [ctx.broadcast(masked, x.shape), zero, usual])
