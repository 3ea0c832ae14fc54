"""How ATen's reductions become the operators of reduce.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ree.ops.arithmetic import Number, select
from ree.ops.spec import lowers
from ree.types import DType

if TYPE_CHECKING:
    from ree.lower import Lowering, T

Axes = int | Sequence[int] | None


def reduce(ctx: Lowering, op: str, x: T, dim: Axes = None, keepdim: bool = False, **attrs: object) -> T:
    """A fold over axes as ATen names them: one, several, or all of them (None or none)."""
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        axes = tuple(range(x.rank))
    else:
        named = (dim,) if isinstance(dim, int) else dim
        axes = tuple(sorted(ctx.axis(a, x.rank) for a in named)) if x.rank else ()
    return ctx.emit(op, [x], axes=axes, keepdim=bool(keepdim), **attrs)


def _typed(op: str, *targets: str) -> None:
    """Rule of sum, mean and prod, which first cast to the output's dtype."""

    @lowers(*(f"aten.{target}" for target in targets))
    def _rule(ctx: Lowering, x: T, dim: Axes = None, keepdim: bool = False, dtype: DType | None = None) -> T:
        return reduce(ctx, op, ctx.cast(x, ctx.out.dtype), dim, keepdim)


_typed("sum", "sum.default", "sum.dim_IntList")
_typed("mean", "mean.default", "mean.dim")
_typed("prod", "prod.default", "prod.dim_int")


@lowers("aten.nansum.default")
def _nansum(ctx: Lowering, x: T, dim: Axes = None, keepdim: bool = False, dtype: DType | None = None) -> T:
    x = ctx.cast(x, ctx.out.dtype)
    return reduce(ctx, "sum", select(ctx, ctx.emit("ne", [x, x]), 0, x), dim, keepdim)


@lowers("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")
def _count_nonzero(ctx: Lowering, x: T, dim: Axes = None) -> T:
    return reduce(ctx, "sum", ctx.cast(ctx.cast(x, DType.BOOL), DType.I64), dim)


def _truth(op: str) -> None:
    @lowers(*(f"aten.{op}.{overload}" for overload in ("default", "dim", "dims")))
    def _rule(ctx: Lowering, x: T, dim: Axes = None, keepdim: bool = False) -> T:
        return ctx.cast(reduce(ctx, op, x, dim, keepdim), ctx.out.dtype)  # u8 stays u8 in torch


_truth("any")
_truth("all")


def extremum(ctx: Lowering, op: str, x: T, dim: Axes, keepdim: bool) -> T:
    """amax or amin; on bools any or all."""
    if x.dtype is DType.BOOL:
        op = {"amax": "any", "amin": "all"}[op]
    return reduce(ctx, op, x, dim, keepdim)


def position(ctx: Lowering, op: str, x: T, dim: int | None, keepdim: bool) -> T:
    """argmax or argmin; without an axis of the elements in C order."""
    x = ctx.cast(x, DType.U8) if x.dtype is DType.BOOL else x
    return reduce(ctx, op, x, dim, keepdim)


def _extremes(name: str) -> None:
    @lowers(f"aten.a{name}.default", f"aten.{name}.default")
    def _value(ctx: Lowering, x: T, dim: Axes = None, keepdim: bool = False) -> T:
        return extremum(ctx, f"a{name}", x, dim, keepdim)

    @lowers(f"aten.{name}.dim")
    def _both(ctx: Lowering, x: T, dim: int, keepdim: bool = False) -> tuple[T, T]:
        return extremum(ctx, f"a{name}", x, dim, keepdim), position(ctx, f"arg{name}", x, dim, keepdim)

    @lowers(f"aten.arg{name}.default")
    def _position(ctx: Lowering, x: T, dim: int | None = None, keepdim: bool = False) -> T:
        return position(ctx, f"arg{name}", x, dim, keepdim)


_extremes("max")
_extremes("min")


@lowers("aten.aminmax.default")
def _aminmax(ctx: Lowering, x: T, dim: int | None = None, keepdim: bool = False) -> tuple[T, T]:
    return extremum(ctx, "amin", x, dim, keepdim), extremum(ctx, "amax", x, dim, keepdim)


# -- moments ------------------------------------------------------------------------------


def _moments(name: str) -> None:
    """Rules of var and std and of their pairs with the mean, in ATen's three spellings."""

    def spread(ctx: Lowering, x: T, dim: Axes, correction: Number | None, keepdim: bool) -> T:
        var = reduce(ctx, "var", x, dim, keepdim, correction=float(1 if correction is None else correction))
        return ctx.emit("sqrt", [var]) if name == "std" else var

    @lowers(f"aten.{name}.default")
    def _default(ctx: Lowering, x: T, unbiased: bool = True) -> T:
        return spread(ctx, x, None, int(unbiased), False)

    @lowers(f"aten.{name}.dim")
    def _dim(ctx: Lowering, x: T, dim: Axes, unbiased: bool = True, keepdim: bool = False) -> T:
        return spread(ctx, x, dim, int(unbiased), keepdim)

    @lowers(f"aten.{name}.correction")
    def _correction(
        ctx: Lowering, x: T, dim: Axes = None, correction: Number | None = None, keepdim: bool = False
    ) -> T:
        return spread(ctx, x, dim, correction, keepdim)

    @lowers(f"aten.{name}_mean.default")
    def _mean_default(ctx: Lowering, x: T, unbiased: bool = True) -> tuple[T, T]:
        return spread(ctx, x, None, int(unbiased), False), reduce(ctx, "mean", x)

    @lowers(f"aten.{name}_mean.dim")
    def _mean_dim(ctx: Lowering, x: T, dim: Axes, unbiased: bool = True, keepdim: bool = False) -> tuple[T, T]:
        return spread(ctx, x, dim, int(unbiased), keepdim), reduce(ctx, "mean", x, dim, keepdim)

    @lowers(f"aten.{name}_mean.correction")
    def _mean_correction(
        ctx: Lowering, x: T, dim: Axes = None, correction: Number | None = None, keepdim: bool = False
    ) -> tuple[T, T]:
        return spread(ctx, x, dim, correction, keepdim), reduce(ctx, "mean", x, dim, keepdim)


_moments("var")
_moments("std")


# -- norms --------------------------------------------------------------------------------


@lowers("aten.linalg_vector_norm.default")
def _vector_norm(
    ctx: Lowering, x: T, ord: Number = 2, dim: Axes = None, keepdim: bool = False, dtype: DType | None = None
) -> T:
    return norm(ctx, x, ord, dim, keepdim)


@lowers(
    "aten.norm.Scalar", "aten.norm.ScalarOpt_dim", "aten.norm.ScalarOpt_dtype", "aten.norm.ScalarOpt_dim_dtype",
)  # fmt: skip
def _norm(
    ctx: Lowering, x: T, p: Number | None = 2, dim: Axes = None, keepdim: bool = False, dtype: DType | None = None
) -> T:
    return norm(ctx, x, 2 if p is None else p, dim, keepdim)


def norm(ctx: Lowering, x: T, order: Number, dim: Axes, keepdim: bool) -> T:
    """The vector norm of an order; 0 counts what is not zero, +-inf takes the extremum of |x|."""
    x = ctx.cast(x, ctx.out.dtype)
    if order == 2:
        return reduce(ctx, "norm2", x, dim, keepdim)
    if order == 1:
        return reduce(ctx, "sum_abs", x, dim, keepdim)
    if order == 0:
        return reduce(ctx, "sum", ctx.cast(ctx.cast(x, DType.BOOL), x.dtype), dim, keepdim)
    size = ctx.emit("abs", [x])
    if math.isinf(order):
        return reduce(ctx, "amax" if order > 0 else "amin", size, dim, keepdim)
    if x.dtype is DType.F64:
        raise ctx.unsupported(f"the norm of order {order} of float64", "cast to float32")
    total = reduce(ctx, "sum", ctx.pointwise("pow", size, float(order), dtype=x.dtype), dim, keepdim)
    return ctx.pointwise("pow", total, 1.0 / float(order), dtype=x.dtype)


@lowers("aten.logsumexp.default")
def _logsumexp(ctx: Lowering, x: T, dim: Axes, keepdim: bool = False) -> T:
    return reduce(ctx, "logsumexp", ctx.cast(x, ctx.out.dtype), dim, keepdim)
