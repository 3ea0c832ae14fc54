"""Scans along the last axis: running sums, products, maxima and minima, strictly in sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.index import gather
from ree.ops.spec import Attrs, lowers, operator_def
from ree.ops.view import swap_axes
from ree.types import DType, TensorType, Type


def _scan_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if ins[0].rank < 1:
        raise ShapeError("a scan needs an axis")
    if ins[0].dtype is DType.BOOL:
        raise DTypeError("a scan of bool; cast first")
    return ins[0]


def _index_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if ins[0].rank < 1:
        raise ShapeError("a scan needs an axis")
    return TensorType(ins[0].shape, DType.I64)


@operator_def(
    "cumsum", kind="scan", infer=_scan_type, doc="running sum along the last axis, from +0, in the element type"
)
def _cumsum(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    *row, last = b.indices()
    start = b.const(0, out.dtype.element)
    return b.chain(last + 1, [start], lambda k, total: [total + b.load(0, *row, k)])[0]


@operator_def(
    "cumprod", kind="scan", infer=_scan_type, doc="running product along the last axis, from 1, in the element type"
)
def _cumprod(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    *row, last = b.indices()
    start = b.const(1, out.dtype.element)
    return b.chain(last + 1, [start], lambda k, total: [total * b.load(0, *row, k)])[0]


def _running_index(b: Builder, better: Callable[[Value, Value], Value]) -> Value:
    """Index of the running best: an element takes over when it is NaN, or no NaN was seen and it is as good."""
    *row, last = b.indices()

    def step(k: Value, best: Value, index: Value) -> list[Value]:
        x = b.load(0, *row, k)
        take = better(x, best)
        if x.type.is_float:
            take = x.ne(x) | (best.eq(best) & take)
        return [b.select(take, x, best), b.select(take, k, index)]

    return b.chain(last + 1, [b.load(0, *row, b.i64(0)), b.i64(0)], step)[1]


@operator_def(
    "cummax_index",
    kind="scan",
    infer=_index_type,
    doc="index of the running maximum: the last among equals; the latest NaN once there is one",
)
def _cummax(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    is_bool = ins[0].dtype is DType.BOOL
    return _running_index(b, lambda x, best: x | ~best if is_bool else x >= best)


@operator_def(
    "cummin_index",
    kind="scan",
    infer=_index_type,
    doc="index of the running minimum: the last among equals; the latest NaN once there is one",
)
def _cummin(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    is_bool = ins[0].dtype is DType.BOOL
    return _running_index(b, lambda x, best: ~x | best if is_bool else x <= best)


def _float_scan_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if ins[0].dtype.element is not Type.F32:
        raise DTypeError(f"logcumsumexp of {ins[0]}")
    return _scan_type(ins, attrs)


@operator_def(
    "logcumsumexp",
    kind="any",
    infer=_float_scan_type,
    doc="m + log(sum of exp(x - m)) over the elements so far, m their maximum; m itself where m is infinite",
)
def _logcumsumexp(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    from ree.element import functions

    *row, last = b.indices()
    largest = b.fold_max(last + 1, lambda k: b.load(0, *row, k))
    total = b.fold_sum(last + 1, lambda k: functions.exp(b, b.load(0, *row, k) - largest))
    infinite = b.op("abs", largest).eq(math.inf)
    return b.select(infinite, largest, largest + functions.log(b, total))


# -- lowerings ------------------------------------------------------------------------------


def scan(ctx: Lowering, op: str, x: T, axis: int) -> T:
    """A scan operator along any axis."""
    if x.rank == 0:
        return ctx.reshape(scan(ctx, op, ctx.reshape(x, (1,)), 0), ())
    axis = ctx.axis(axis, x.rank)
    return swap_axes(ctx, ctx.emit(op, [swap_axes(ctx, x, axis, -1)]), axis, -1)


@lowers("aten.cumsum.default")
def _(ctx: Lowering, x: T, axis: int, *, dtype: DType | None = None) -> T:
    return scan(ctx, "cumsum", ctx.cast(x, ctx.out.dtype), axis)


@lowers("aten.cumprod.default")
def _(ctx: Lowering, x: T, axis: int, *, dtype: DType | None = None) -> T:
    return scan(ctx, "cumprod", ctx.cast(x, ctx.out.dtype), axis)


@lowers("aten.cummax.default")
def _(ctx: Lowering, x: T, axis: int) -> tuple[T, T]:
    index = scan(ctx, "cummax_index", x, axis)
    return gather(ctx, x, ctx.axis(axis, x.rank), index), index


@lowers("aten.cummin.default")
def _(ctx: Lowering, x: T, axis: int) -> tuple[T, T]:
    index = scan(ctx, "cummin_index", x, axis)
    return gather(ctx, x, ctx.axis(axis, x.rank), index), index


@lowers("aten.logcumsumexp.default")
def _(ctx: Lowering, x: T, axis: int) -> T:
    return scan(ctx, "logcumsumexp", x, axis)
