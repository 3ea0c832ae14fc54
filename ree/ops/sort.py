"""Sorting: a stable argsort, the first k of it, and the ATen calls that follow from them.

The order is total: NaN is greatest, -0 equals +0, and equal elements keep their places.
"""

from __future__ import annotations

from collections.abc import Sequence

from ree.dims import Dim
from ree.element.program import Builder, Value
from ree.errors import ShapeError
from ree.lower import Lowering, T
from ree.ops.index import gather
from ree.ops.spec import Attrs, lowers, operator_def
from ree.ops.view import flatten, swap_axes, take_slice
from ree.types import DType, TensorType, Type


def _argsort_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if ins[0].rank < 1:
        raise ShapeError("a sort needs an axis")
    return TensorType(ins[0].shape, DType.I64)


def _argtopk_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    *lead, extent = _argsort_type(ins, attrs).shape
    k = attrs["k"]
    if isinstance(extent, int) and isinstance(k, int) and not 0 <= k <= extent:
        raise ShapeError(f"top {k} of {ins[0]}")
    return TensorType((*lead, k), DType.I64)


def _less(b: Builder, left: Value, right: Value) -> Value:
    """left < right in the total order."""
    if left.type is Type.BOOL:
        return ~left & right
    if left.type.is_float:
        return (left < right) | (right.ne(right) & left.eq(left))
    return left < right


def _at_rank(b: Builder, descending: bool) -> Value:
    """The index of the element that stands at the output's position of its sorted row.

    An element's rank is the number of elements that come before it; ranks are a
    permutation, so exactly one index has the rank sought.
    """
    *row, position = b.indices()
    extent = b.extent(0, len(row))

    def rank(i: Value) -> Value:
        mine = b.load(0, *row, i)

        def before(j: Value) -> Value:
            other = b.load(0, *row, j)
            less, greater = _less(b, other, mine), _less(b, mine, other)
            first, last = (greater, less) if descending else (less, greater)
            return b.convert(first | (~last & (j < i)), Type.I64)

        return b.fold_isum(extent, before)

    return b.fold_isum(extent, lambda i: b.select(rank(i).eq(position), i, b.i64(0)))


@operator_def(
    "argsort",
    kind="sort",
    infer=_argsort_type,
    doc="indices that sort the last axis, stable; NaN is greatest, -0 equals +0",
)
def _argsort(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return _at_rank(b, attrs["descending"])


@operator_def(
    "argtopk", kind="sort", infer=_argtopk_type, doc="the first k indices of argsort (descending if `largest`)"
)
def _argtopk(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return _at_rank(b, attrs["largest"])


# -- lowerings ------------------------------------------------------------------------------


def argsort(ctx: Lowering, x: T, descending: bool) -> T:
    """Indices of the sorted last axis (0-d gives 0)."""
    if x.rank == 0:
        return ctx.full((), 0, DType.I64)
    return ctx.emit("argsort", [x], descending=bool(descending))


def sort(ctx: Lowering, x: T, axis: int, descending: bool) -> tuple[T, T]:
    """Values and indices of the sorted axis."""
    axis = ctx.axis(axis, x.rank)
    last = _to_last(ctx, x, axis)
    order = argsort(ctx, last, descending)
    values = gather(ctx, last, max(x.rank - 1, 0), order)
    return _to_last(ctx, values, axis), _to_last(ctx, order, axis)


def _to_last(ctx: Lowering, x: T, axis: int) -> T:
    """The axis exchanged with the last one (its own inverse)."""
    return swap_axes(ctx, x, axis, -1)


@lowers("aten.sort.default")
def _(ctx: Lowering, x: T, axis: int = -1, descending: bool = False) -> tuple[T, T]:
    return sort(ctx, x, axis, descending)


@lowers("aten.sort.stable")
def _(ctx: Lowering, x: T, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[T, T]:
    return sort(ctx, x, dim, descending)


@lowers("aten.argsort.default")
def _(ctx: Lowering, x: T, axis: int = -1, descending: bool = False) -> T:
    return sort(ctx, x, axis, descending)[1]


@lowers("aten.argsort.stable")
def _(ctx: Lowering, x: T, *, stable: bool = True, dim: int = -1, descending: bool = False) -> T:
    return sort(ctx, x, dim, descending)[1]


@lowers("aten.msort.default")
def _(ctx: Lowering, x: T) -> T:
    return sort(ctx, x, 0, False)[0]


@lowers("aten.topk.default")
def _(ctx: Lowering, x: T, k: int | Dim, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[T, T]:
    if x.rank == 0:
        return x, ctx.full((), 0, DType.I64)
    axis = ctx.axis(dim, x.rank)
    last = _to_last(ctx, x, axis)
    order = ctx.emit("argtopk", [last], k=k, largest=bool(largest))
    values = gather(ctx, last, x.rank - 1, order)
    return _to_last(ctx, values, axis), _to_last(ctx, order, axis)


def _pick(ctx: Lowering, x: T, axis: int, position: T | int | Dim, keepdim: bool) -> tuple[T, T]:
    """Value and index at a position (one for all, or one per row) of the sorted axis."""
    axis = ctx.axis(axis, x.rank)
    values, order = sort(ctx, x, axis, False)
    if x.rank == 0:
        return values, order
    if isinstance(position, T):
        picked = [gather(ctx, t, axis, position) for t in (values, order)]
    else:
        picked = [take_slice(ctx, t, axis, position, 1) for t in (values, order)]
    shape = x.shape[:axis] + ((1,) if keepdim else ()) + x.shape[axis + 1 :]
    return ctx.reshape(picked[0], shape), ctx.reshape(picked[1], shape)


@lowers("aten.kthvalue.default")
def _(ctx: Lowering, x: T, k: int | Dim, dim: int = -1, keepdim: bool = False) -> tuple[T, T]:
    return _pick(ctx, x, dim, k - 1, keepdim)


def _median_position(ctx: Lowering, x: T, axis: int, ignore_nan: bool) -> T | int | Dim:
    """Where the lower median stands in the sorted axis; a NaN stands last and wins unless ignored."""
    extent = x.shape[axis] if x.rank else 1
    if not x.dtype.is_float or not x.rank:
        return (extent - 1) // 2
    if not isinstance(extent, int):
        raise ctx.unsupported("the median of a dynamic axis", "make this dimension static")
    nans = ctx.cast(ctx.emit("ne", [x, x]), DType.I64)
    moved = _to_last(ctx, nans, axis)
    running = ctx.emit("cumsum", [moved])
    last = take_slice(ctx, running, x.rank - 1, moved.shape[-1] - 1, 1)
    count = _to_last(ctx, last, axis)
    if ignore_nan:
        rest = ctx.pointwise("sub", extent - 1, count, dtype=DType.I64)
        return ctx.pointwise("div", rest, 2, dtype=DType.I64)  # -1 / 2 is 0: a row of NaNs gives NaN
    clean = ctx.pointwise("eq", count, 0, dtype=DType.I64)
    middle, first_nan = ctx.full(count.shape, (extent - 1) // 2, DType.I64), ctx.pointwise("sub", extent, count)
    return ctx.emit("where", [clean, middle, first_nan])


def _median(ctx: Lowering, x: T, axis: int, keepdim: bool, ignore_nan: bool) -> tuple[T, T]:
    axis = ctx.axis(axis, x.rank)
    return _pick(ctx, x, axis, _median_position(ctx, x, axis, ignore_nan), keepdim)


@lowers("aten.median.dim")
def _(ctx: Lowering, x: T, axis: int, keepdim: bool = False) -> tuple[T, T]:
    return _median(ctx, x, axis, keepdim, False)


@lowers("aten.nanmedian.dim")
def _(ctx: Lowering, x: T, axis: int, keepdim: bool = False) -> tuple[T, T]:
    return _median(ctx, x, axis, keepdim, True)


@lowers("aten.median.default")
def _(ctx: Lowering, x: T) -> T:
    return _median(ctx, flatten(ctx, x), 0, False, False)[0]


@lowers("aten.nanmedian.default")
def _(ctx: Lowering, x: T) -> T:
    return _median(ctx, flatten(ctx, x), 0, False, True)[0]
