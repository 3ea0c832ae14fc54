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


class _Order:
    """The total order of a type's values, upwards or downwards, and its values by number.

    Numbers have as many bits as the type; a value's number grows with the order. NaN is greatest, -0 equals +0.
    """

    def __init__(self, b: Builder, type: Type, descending: bool) -> None:
        self.b, self.type, self.descending = b, type, descending
        self.bits = 1 if type is Type.BOOL else type.bits
        self.digits = Type.U64 if self.bits == 64 else Type.U32

    def value(self, number: Value) -> Value:
        """The value of a number; a number below that of -inf, or above that of +inf, stands for -inf, or NaN."""
        b, sign = self.b, 1 << (self.bits - 1)
        up = number ^ (2 * sign - 1) if self.descending else number
        if self.type is Type.BOOL:
            return up.ne(0)
        if not self.type.is_float:
            return b.convert(up ^ sign if self.type.is_signed else up, self.type)
        lowest = {32: 0x007FFFFF, 64: 0x000FFFFFFFFFFFFF}[self.bits]  # the number of -inf
        up = b.max(up, lowest)
        return b.bitcast(b.select(up >= sign, up ^ sign, ~up), self.type)

    def before(self, x: Value, pivot: Value) -> Value:
        """Whether x comes before the pivot."""
        left, right = (pivot, x) if self.descending else (x, pivot)
        if self.type is Type.BOOL:
            return ~left & right
        if self.type.is_float:
            return (left < right) | (right.ne(right) & left.eq(left))
        return left < right

    def same(self, x: Value, y: Value) -> Value:
        return x.eq(y) | (x.ne(x) & y.ne(y)) if self.type.is_float else x.eq(y)


def _at_rank(b: Builder, type: Type, descending: bool) -> Value:
    """The index of the element that stands at the output's position of its sorted row.

    The element's value is found bit by bit: it is the last one that at most `position` elements come before. Of the
    elements with that value it is the one whose turn it is, in the order of their indices.
    """
    *row, position = b.indices()
    extent = b.extent(0, len(row))
    order = _Order(b, type, descending)

    def count_before(pivot: Value) -> Value:
        return b.fold_isum(extent, lambda j: b.convert(order.before(b.load(0, *row, j), pivot), Type.I64))

    def next_bit(k: Value, number: Value) -> list[Value]:
        larger = number | (b.const(1, order.digits) << b.convert(b.i64(order.bits - 1) - k, order.digits))
        return [b.select(count_before(order.value(larger)) <= position, larger, number)]

    value = order.value(b.chain(b.i64(order.bits), [b.const(0, order.digits)], next_bit)[0])
    turn = position - count_before(value)

    def look(j: Value, seen: Value, found: Value) -> list[Value]:
        same = order.same(b.load(0, *row, j), value)
        return [seen + b.convert(same, Type.I64), b.select(same & seen.eq(turn), j, found)]

    return b.chain(extent, [b.i64(0), b.i64(0)], look)[1]


@operator_def(
    "argsort",
    kind="sort",
    infer=_argsort_type,
    doc="indices that sort the last axis, stable; NaN is greatest, -0 equals +0",
)
def _argsort(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return _at_rank(b, ins[0].dtype.element, attrs["descending"])


@operator_def(
    "argtopk", kind="sort", infer=_argtopk_type, doc="the first k indices of argsort (descending if `largest`)"
)
def _argtopk(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return _at_rank(b, ins[0].dtype.element, attrs["largest"])


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
