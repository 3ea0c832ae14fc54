"""Putting tensors together: cat, stack, padding, writing a part of a tensor."""

from __future__ import annotations

from collections.abc import Sequence

from ree.dims import Dim
from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.spec import Attrs, lowers, operator_def, same_type
from ree.ops.view import clamp_slice, take_slice
from ree.types import DType, TensorType, Type


def _cat_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    axis, first = attrs["axis"], ins[0]
    shape = list(first.shape)
    for other in ins[1:]:
        if other.dtype is not first.dtype or other.rank != first.rank:
            raise ShapeError(f"cat of {first} and {other}")
        for a, (n, m) in enumerate(zip(first.shape, other.shape, strict=True)):
            if a != axis and isinstance(n, int) and isinstance(m, int) and n != m:
                raise ShapeError(f"cat of {first} and {other} along axis {axis}")
        shape[axis] = shape[axis] + other.shape[axis]
    return TensorType(tuple(shape), first.dtype)


@operator_def("cat", kind="any", infer=_cat_type, doc="the inputs one after another along `axis`")
def _cat(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    axis = attrs["axis"]
    coordinates = b.indices()
    result = b.const(0, out.dtype.element)
    start = b.i64(0)
    for source in range(len(ins)):
        place = list(coordinates)
        place[axis] = coordinates[axis] - start
        mine = (place[axis] >= 0) & (place[axis] < b.extent(source, axis))
        result = b.load_if(mine, result, source, *place)
        start = start + b.extent(source, axis)
    return result


def _pad_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    before, after = attrs["before"], attrs["after"]
    if not len(before) == len(after) == ins[0].rank:
        raise ShapeError(f"padding {before}, {after} of {ins[0]}")
    shape = tuple(n + p + q for n, p, q in zip(ins[0].shape, before, after, strict=True))
    if any(isinstance(n, int) and n < 0 for n in shape):
        raise ShapeError(f"padding {before}, {after} of {ins[0]}")
    return TensorType(shape, ins[0].dtype)


@operator_def(
    "pad",
    kind="any",
    infer=_pad_type,
    doc="`before` and `after` elements of `value` around each axis (negative: cut off)",
)
def _pad(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    inside = b.const(True, Type.BOOL)
    place = []
    for axis, (before, after) in enumerate(zip(attrs["before"], attrs["after"], strict=True)):
        place.append(b.index(axis) - int(before))
        if before > 0:
            inside = inside & (place[-1] >= 0)
        if after > 0:
            inside = inside & (place[-1] < b.extent(0, axis))
    return b.load_if(inside, b.round(b.const(attrs["value"], out.dtype.element), out.dtype), 0, *place)


@operator_def("pad_reflect", kind="view", infer=_pad_type, doc="padding by reflection, the edge element not repeated")
def _pad_reflect(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    place = []
    for axis, before in enumerate(attrs["before"]):
        last = b.extent(0, axis) - 1
        place.append(last - b.op("abs", last - b.op("abs", b.index(axis) - int(before))))
    return b.load(0, *place)


@operator_def("pad_edge", kind="view", infer=_pad_type, doc="padding by repetition of the edge element")
def _pad_edge(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    place = []
    for axis, before in enumerate(attrs["before"]):
        place.append(b.min(b.max(b.index(axis) - int(before), 0), b.extent(0, axis) - 1))
    return b.load(0, *place)


@operator_def("pad_wrap", kind="view", infer=_pad_type, doc="circular padding")
def _pad_wrap(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    place = []
    for axis, before in enumerate(attrs["before"]):
        extent = b.extent(0, axis)
        place.append(b.op("rem", b.index(axis) - int(before) + extent, extent))
    return b.load(0, *place)


def _slice_scatter_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, src = ins
    expected = (*x.shape[: attrs["axis"]], attrs["length"], *x.shape[attrs["axis"] + 1 :])
    both = zip(src.shape, expected, strict=src.rank == x.rank)
    if x.dtype is not src.dtype:
        raise DTypeError(f"{src} written into {x}")
    if src.rank != x.rank or any(a != b for a, b in both if isinstance(a, int) and isinstance(b, int)):
        raise ShapeError(f"{src} written into {x} along axis {attrs['axis']}")
    return x


@operator_def(
    "slice_scatter",
    kind="any",
    infer=_slice_scatter_type,
    doc="x with elements start, start + step, ... (`length` of them) of an axis replaced by src",
)
def _slice_scatter(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    axis, step = attrs["axis"], int(attrs["step"])
    coordinates = b.indices()
    place = list(coordinates)
    along = coordinates[axis] - int(attrs["start"])
    place[axis] = along / step
    written = (along >= 0) & (place[axis] < int(attrs["length"]))
    if step != 1:
        written = written & b.op("rem", along, step).eq(0)
    return b.load_if(written, b.load(0, *coordinates), 1, *place)


@operator_def("diagonal_scatter", kind="any", infer=same_type, doc="x with a diagonal of two axes replaced by src")
def _diagonal_scatter(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    coordinates = b.indices()
    row, col = coordinates[attrs["axis1"]], coordinates[attrs["axis2"]]
    along = row + min(attrs["offset"], 0)
    on_it = (along >= 0) & (along + max(attrs["offset"], 0)).eq(col)
    rest = [c for axis, c in enumerate(coordinates) if axis not in (attrs["axis1"], attrs["axis2"])]
    return b.load_if(on_it, b.load(0, *coordinates), 1, *rest, along)


# -- lowerings ------------------------------------------------------------------------------


def cat(ctx: Lowering, tensors: Sequence[T], axis: int) -> T:
    """The tensors along a non-negative axis, in torch's common dtype."""
    common = ctx.promote(*tensors)
    parts = [ctx.cast(t, common) for t in tensors if t.shape != (0,) or tensors[0].rank == 1]
    parts = parts or [ctx.cast(tensors[0], common)]
    return parts[0] if len(parts) == 1 else ctx.emit("cat", parts, axis=axis)


@lowers("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def _(ctx: Lowering, tensors: Sequence[T], axis: int = 0) -> T:
    rank = max(t.rank for t in tensors if t.shape != (0,) or t is tensors[0])
    return cat(ctx, [t for t in tensors if t.rank == rank], ctx.axis(axis, rank))


@lowers("aten.stack.default")
def _(ctx: Lowering, tensors: Sequence[T], axis: int = 0) -> T:
    axis = ctx.axis(axis, tensors[0].rank + 1)
    return cat(ctx, [ctx.unsqueeze(t, axis) for t in tensors], axis)


def spread_pads(pads: Sequence[int | Dim], rank: int) -> tuple[tuple[int | Dim, ...], tuple[int | Dim, ...]]:
    """torch's flat list of pads (last axis first) as (before, after) for every axis."""
    before: list[int | Dim] = [0] * rank
    after: list[int | Dim] = [0] * rank
    for number in range(len(pads) // 2):
        before[rank - 1 - number], after[rank - 1 - number] = pads[2 * number], pads[2 * number + 1]
    return tuple(before), tuple(after)


def pad(ctx: Lowering, x: T, pads: Sequence[int | Dim], op: str, **attrs: float) -> T:
    """One of the pad operators; nothing where all pads are zero."""
    before, after = spread_pads(pads, x.rank)
    return ctx.emit(op, [x], before=before, after=after, **attrs) if any(p != 0 for p in pads) else x


@lowers("aten.constant_pad_nd.default")
def _(ctx: Lowering, x: T, pads: Sequence[int | Dim], value: int | float | bool = 0) -> T:
    return pad(ctx, x, pads, "pad", value=value)


@lowers("aten.reflection_pad1d.default", "aten.reflection_pad2d.default", "aten.reflection_pad3d.default")
def _(ctx: Lowering, x: T, pads: Sequence[int | Dim]) -> T:
    return pad(ctx, x, pads, "pad_reflect")


@lowers("aten.replication_pad1d.default", "aten.replication_pad2d.default", "aten.replication_pad3d.default")
def _(ctx: Lowering, x: T, pads: Sequence[int | Dim]) -> T:
    return pad(ctx, x, pads, "pad_edge")


@lowers("aten._pad_circular.default")
def _(ctx: Lowering, x: T, pads: Sequence[int | Dim]) -> T:
    return pad(ctx, x, pads, "pad_wrap")


@lowers("aten.slice_scatter.default")
def _(
    ctx: Lowering,
    x: T,
    src: T,
    axis: int = 0,
    start: int | Dim | None = None,
    end: int | Dim | None = None,
    step: int = 1,
) -> T:
    axis = ctx.axis(axis, x.rank)
    first, length = clamp_slice(x.shape[axis], start, end, step, ctx.symbols)
    src = ctx.broadcast(ctx.cast(src, x.dtype), (*x.shape[:axis], length, *x.shape[axis + 1 :]))
    return ctx.emit("slice_scatter", [x, src], axis=axis, start=first, step=step, length=length)


@lowers("aten.select_scatter.default")
def _(ctx: Lowering, x: T, src: T, axis: int, index: int | Dim) -> T:
    axis = ctx.axis(axis, x.rank)
    if isinstance(index, int) and index < 0:
        index = index + x.shape[axis]
    part = ctx.unsqueeze(ctx.cast(src, x.dtype), axis)
    part = ctx.broadcast(part, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return ctx.emit("slice_scatter", [x, part], axis=axis, start=index, step=1, length=1)


@lowers("aten.diagonal_scatter.default")
def _(ctx: Lowering, x: T, src: T, offset: int = 0, first: int = 0, second: int = 1) -> T:
    axes = {"axis1": ctx.axis(first, x.rank), "axis2": ctx.axis(second, x.rank)}
    return ctx.emit("diagonal_scatter", [x, ctx.cast(src, x.dtype)], offset=offset, **axes)


@lowers("aten.diff.default")
def _(ctx: Lowering, x: T, n: int = 1, axis: int = -1, prepend: T | None = None, append: T | None = None) -> T:
    """n times the difference of neighbours along an axis (bool: whether they differ)."""
    axis = ctx.axis(axis, x.rank)
    ends = [t for t in (prepend, x, append) if t is not None]
    x = ends[0] if len(ends) == 1 else cat(ctx, ends, axis)
    for _ in range(n):
        length = x.shape[axis] - 1
        if isinstance(length, int) and length <= 0:
            return ctx.full((*x.shape[:axis], 0, *x.shape[axis + 1 :]), 0, x.dtype)
        after, before = take_slice(ctx, x, axis, 1, length), take_slice(ctx, x, axis, 0, length)
        x = ctx.emit("ne" if x.dtype is DType.BOOL else "sub", [after, before])
    return x


@lowers("aten.diag_embed.default")
def _(ctx: Lowering, x: T, offset: int = 0, first: int = -2, second: int = -1) -> T:
    axes = {"axis1": ctx.axis(first, x.rank + 1), "axis2": ctx.axis(second, x.rank + 1)}
    size = x.shape[-1] + abs(offset)
    shape = list(x.shape[:-1])
    for axis in sorted(axes.values()):
        shape.insert(axis, size)
    return ctx.emit("diagonal_scatter", [ctx.full(shape, 0, x.dtype), x], offset=offset, **axes)


@lowers("aten.tril_indices.default", "aten.triu_indices.default")
def _(ctx: Lowering, rows: int, cols: int, offset: int = 0, *, dtype: DType | None = None) -> T:
    """Row and column numbers of a triangle in C order, as a constant."""
    import numpy as np

    find = np.tril_indices if "tril" in ctx.target else np.triu_indices
    return ctx.constant(np.ascontiguousarray(find(rows, offset, cols), ctx.out.dtype.numpy), ctx.out.dtype)
