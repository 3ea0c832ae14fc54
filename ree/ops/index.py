"""Reading at computed places: gather, indexing by tensors, embedding, searching a sorted row."""

from __future__ import annotations

from collections.abc import Sequence

from ree.dims import Dim
from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.spec import Attrs, lowers, operator_def
from ree.ops.view import flatten
from ree.types import DType, TensorType, Type

MASK_ADVICE = "the result's shape would depend on data; use torch.where or multiply by the mask"


def wrapped(b: Builder, index: Value, extent: Value, wrap: bool = True) -> Value:
    """An index that counts from the end if negative (`wrap`); the run fails where it is out of range."""
    return b.bound(b.select(index < 0, index + extent, index) if wrap else index, extent)


def _gather_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, index = ins
    if index.dtype is not DType.I64 or index.rank != x.rank or not 0 <= attrs["axis"] < x.rank:
        raise ShapeError(f"gather from {x} by {index} along axis {attrs['axis']}")
    for axis, (have, need) in enumerate(zip(x.shape, index.shape, strict=True)):
        if axis != attrs["axis"] and isinstance(have, int) and isinstance(need, int) and need > have:
            raise ShapeError(f"gather from {x} by {index} along axis {attrs['axis']}")
    return TensorType(index.shape, x.dtype)


@operator_def("gather", kind="any", infer=_gather_type, doc="x[.., index[i, .., j], ..] along `axis`")
def _gather(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    coordinates = b.indices()
    axis = attrs["axis"]
    coordinates[axis] = b.bound(b.load(1, *coordinates), b.extent(0, axis))
    return b.load(0, *coordinates)


def _index_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, *indices = ins
    axes, place = attrs["axes"], attrs["place"]
    shapes = {index.shape for index in indices}
    bad_axes = sorted(set(axes)) != list(axes) or len(axes) != len(indices) or not axes or axes[-1] >= x.rank
    if bad_axes or len(shapes) != 1 or any(i.dtype is not DType.I64 for i in indices):
        raise ShapeError(f"index of {x} along {axes} by {[str(i) for i in indices]}")
    rest = [n for axis, n in enumerate(x.shape) if axis not in axes]
    return TensorType((*rest[:place], *indices[0].shape, *rest[place:]), x.dtype)


@operator_def(
    "index",
    kind="any",
    infer=_index_type,
    doc="x at indices i (one per axis of `axes`, equal shapes), whose axes "
    "stand at `place` among the other axes of x; negative indices count from the end if `wrap`",
)
def _index(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    coordinates = b.indices()
    place, rank = attrs["place"], ins[1].rank
    position = coordinates[place : place + rank]
    rest = iter(coordinates[:place] + coordinates[place + rank :])
    target = []
    for axis in range(ins[0].rank):
        if axis in attrs["axes"]:
            index = b.load(1 + attrs["axes"].index(axis), *position)
            target.append(wrapped(b, index, b.extent(0, axis), attrs["wrap"]))
        else:
            target.append(next(rest))
    return b.load(0, *target)


def _ravel_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    extents_fit = len(attrs["extents"]) == len(ins) and all(i == ins[0] for i in ins)
    if not extents_fit or ins[0].dtype is not DType.I64:
        raise ShapeError(f"ravel of {[str(i) for i in ins]} in {attrs['extents']}")
    return ins[0]


@operator_def(
    "ravel_index",
    infer=_ravel_type,
    doc="position in C order of the coordinates given, within `extents`; negative coordinates wrap",
)
def _ravel(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    flat = b.i64(0)
    for source, extent in enumerate(attrs["extents"]):
        size = b.i64(int(extent))
        flat = flat * size + wrapped(b, b.load(source, *b.indices()), size)
    return flat


def _search_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    row, x = ins
    if row.dtype is not x.dtype or row.dtype is DType.BOOL:
        raise DTypeError(f"search for {x} in {row}")
    if row.rank < 1 or (row.rank > 1 and row.rank != x.rank):
        raise ShapeError(f"search for {x} in {row}")
    return TensorType(x.shape, DType.I64)


@operator_def(
    "searchsorted",
    kind="fold",
    infer=_search_type,
    doc="how many elements of the sorted row lie below x (`right`: or are equal to it); NaN is greatest",
)
def _search(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    coordinates = b.indices()
    lead = coordinates[:-1] if ins[0].rank > 1 else []
    x = b.load(1, *coordinates)

    def counts(k: Value) -> Value:
        element = b.load(0, *lead, k)
        before = element <= x if attrs["right"] else element < x
        if x.type.is_float:  # everything that is no NaN lies below one
            before = before | (x.ne(x) & (element.eq(element) | b.const(bool(attrs["right"]), Type.BOOL)))
        return b.convert(before, Type.I64)

    return b.fold_isum(b.extent(0, ins[0].rank - 1), counts)


# -- lowerings ------------------------------------------------------------------------------


@lowers("aten.gather.default")
def _(ctx: Lowering, x: T, axis: int, index: T, *, sparse_grad: bool = False) -> T:
    return gather(ctx, x, ctx.axis(axis, x.rank), index)


def gather(ctx: Lowering, x: T, axis: int, index: T) -> T:
    """torch.gather along a non-negative axis (0-d tensors count as 1-d)."""
    if x.rank == 0 or index.rank == 0:
        lines = [ctx.reshape(t, (1,)) if t.rank == 0 else t for t in (x, index)]
        return ctx.reshape(gather(ctx, lines[0], 0, lines[1]), index.shape)
    if 0 in index.shape:  # torch lets an empty index have any rank
        return ctx.full(index.shape, 0, x.dtype)
    return ctx.emit("gather", [x, ctx.cast(index, DType.I64)], axis=axis)


def index_axis(ctx: Lowering, x: T, axis: int, index: T, wrap: bool = False) -> T:
    """x taken along one axis at indices of any shape, whose axes replace that axis."""
    return ctx.emit("index", [x, ctx.cast(index, DType.I64)], axes=(axis,), place=axis, wrap=wrap)


@lowers("aten.index_select.default")
def _(ctx: Lowering, x: T, axis: int, index: T) -> T:
    if x.rank == 0:
        return ctx.reshape(index_axis(ctx, ctx.reshape(x, (1,)), 0, flatten(ctx, index)), ())
    return index_axis(ctx, x, ctx.axis(axis, x.rank), flatten(ctx, index))


@lowers("aten.embedding.default")
def _(ctx: Lowering, weight: T, index: T, *options: int | bool) -> T:
    return index_axis(ctx, weight, 0, index)


@lowers("aten.take.default")
def _(ctx: Lowering, x: T, index: T) -> T:
    return index_axis(ctx, flatten(ctx, x), 0, index, wrap=True)


@lowers("aten.take_along_dim.default")
def _(ctx: Lowering, x: T, index: T, axis: int | None = None) -> T:
    if axis is None:
        return gather(ctx, flatten(ctx, x), 0, flatten(ctx, index))
    axis = ctx.axis(axis, x.rank)
    lead = ctx.broadcast_shape(_without(x.shape, axis), _without(index.shape, axis))

    def aligned(t: T) -> T:
        return ctx.broadcast(t, (*lead[:axis], t.shape[axis], *lead[axis:]))

    return gather(ctx, aligned(x), axis, aligned(index))


def _without(shape: Sequence[int | Dim], axis: int) -> tuple[int | Dim, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def index_tensors(ctx: Lowering, indices: Sequence[T | None]) -> tuple[tuple[int, ...], list[T]]:
    """The indexed axes and their indices, i64 and broadcast to one shape (masks are refused)."""
    axes = tuple(axis for axis, index in enumerate(indices) if index is not None)
    given = [index for index in indices if index is not None]
    if any(index.dtype in (DType.BOOL, DType.U8) for index in given):
        raise ctx.unsupported("indexing by a mask", MASK_ADVICE)
    shape = ctx.broadcast_shape(*(index.shape for index in given))
    return axes, [ctx.broadcast(ctx.cast(index, DType.I64), shape) for index in given]


def index_place(axes: Sequence[int]) -> int:
    """Where the index axes stand in the result: at the first indexed axis, or first if they are apart."""
    adjacent = list(axes) == list(range(axes[0], axes[0] + len(axes)))
    return axes[0] if adjacent else 0


@lowers("aten.index.Tensor", "aten._unsafe_index.Tensor", "aten.index.Tensor_hacked_twin")
def _(ctx: Lowering, x: T, indices: Sequence[T | None]) -> T:
    if all(index is None for index in indices):
        return x
    axes, tensors = index_tensors(ctx, indices)
    return ctx.emit("index", [x, *tensors], axes=axes, place=index_place(axes), wrap=True)


def _search_node(ctx: Lowering, row: T, x: T | int | float, right: bool, out_int32: bool) -> T:
    common = ctx.promote(row, x)
    x = x if isinstance(x, T) else ctx.full((), x, common)
    scalar = x.rank == 0
    x = ctx.reshape(x, (1,)) if scalar else x
    found = ctx.emit("searchsorted", [ctx.cast(row, common), ctx.cast(x, common)], right=right)
    return ctx.cast(ctx.reshape(found, ()) if scalar else found, DType.I32 if out_int32 else DType.I64)


@lowers("aten.bucketize.Tensor")
def _(ctx: Lowering, x: T, boundaries: T, *, out_int32: bool = False, right: bool = False) -> T:
    return _search_node(ctx, boundaries, x, right, out_int32)


@lowers("aten.searchsorted.Tensor", "aten.searchsorted.Scalar")
def _(
    ctx: Lowering,
    row: T,
    x: T | int | float,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: T | None = None,
) -> T:
    if sorter is not None:
        row = gather(ctx, row, row.rank - 1, sorter)
    return _search_node(ctx, row, x, right or side == "right", out_int32)
