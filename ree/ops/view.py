"""Views: operators that only say where to read.

The planner turns most of them into strides (ree/plan); those that it cannot are copied by
a kernel printed from the definitions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ree import dims
from ree.dims import Dim
from ree.element.program import OUT, Builder, Value
from ree.errors import ShapeError
from ree.lower import Lowering, T
from ree.ops.spec import Attrs, lowers, operator_def, same_type
from ree.types import TensorType


def _reshape_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    result = TensorType(tuple(attrs["shape"]), ins[0].dtype)
    if result.is_static and ins[0].is_static and result.numel() != ins[0].numel():
        raise ShapeError(f"reshape of {ins[0]} to {attrs['shape']}")
    return result


def flat_index(b: Builder, source: int, coordinates: Sequence[Value]) -> Value:
    """Position in C order of coordinates of input number `source` (or of the output)."""
    flat = b.i64(0)
    for axis, coordinate in enumerate(coordinates):
        flat = flat * b.extent(source, axis) + coordinate
    return flat


def unflatten(b: Builder, source: int, rank: int, flat: Value) -> list[Value]:
    """Coordinates of a position in C order; inverse of `flat_index`."""
    coordinates: list[Value] = []
    for axis in reversed(range(rank)):
        extent = b.extent(source, axis)
        coordinates.insert(0, flat if axis == 0 else b.op("rem", flat, extent))
        flat = flat / extent
    return coordinates


@operator_def("reshape", kind="view", infer=_reshape_type, doc="the same elements in C order under another shape")
def _reshape(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return b.load(0, *unflatten(b, 0, ins[0].rank, flat_index(b, OUT, b.indices())))


@operator_def("copy", doc="the input")
def _copy(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return b.load(0, *b.indices())


def _permute_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if sorted(attrs["axes"]) != list(range(ins[0].rank)):
        raise ShapeError(f"permute {attrs['axes']} of {ins[0]}")
    return TensorType(tuple(ins[0].shape[axis] for axis in attrs["axes"]), ins[0].dtype)


@operator_def("permute", kind="view", infer=_permute_type, doc="axis i of the output is axis axes[i] of the input")
def _permute(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    coordinates: list[Value] = [b.i64(0)] * out.rank
    for position, axis in enumerate(attrs["axes"]):
        coordinates[axis] = b.index(position)
    return b.load(0, *coordinates)


def _broadcast_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    shape = tuple(attrs["shape"])
    tail = shape[len(shape) - ins[0].rank :]
    fits = len(shape) >= ins[0].rank and all(
        a in (1, b) or isinstance(a, Dim) or isinstance(b, Dim) for a, b in zip(ins[0].shape, tail, strict=True)
    )
    if not fits:
        raise ShapeError(f"{ins[0]} does not broadcast to {shape}")
    return TensorType(shape, ins[0].dtype)


@operator_def("broadcast", kind="view", infer=_broadcast_type, doc="NumPy broadcasting to `shape`")
def _broadcast(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    first = out.rank - ins[0].rank
    return b.load(0, *(b.i64(0) if n == 1 else b.index(first + a) for a, n in enumerate(ins[0].shape)))


def _slice_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    shape = list(ins[0].shape)
    axis, start, step, length = (attrs[k] for k in ("axis", "start", "step", "length"))
    extent = shape[axis]
    if all(isinstance(v, int) for v in (extent, start, length)) and length > 0:
        last = start + (length - 1) * step
        if not (0 <= start < extent and 0 <= last < extent):
            raise ShapeError(f"slice {start}:{step} x {length} of axis {axis} of {ins[0]}")
    shape[axis] = length
    return TensorType(tuple(shape), ins[0].dtype)


@operator_def(
    "slice", kind="view", infer=_slice_type, doc="elements start, start + step, ... (`length` of them) of an axis"
)
def _slice(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    coordinates = b.indices()
    axis = attrs["axis"]
    coordinates[axis] = coordinates[axis] * int(attrs["step"]) + int(attrs["start"])
    return b.load(0, *coordinates)


def clamp_slice(
    extent: int | Dim, start: int | Dim | None, end: int | Dim | None, step: int, ranges: dims.Ranges | None = None
) -> tuple[int | Dim, int | Dim]:
    """Python's slice rule for a positive step: (start, length); ranges: of the dynamic dimensions."""

    def clamp(value: int | Dim) -> int | Dim:
        if isinstance(value, int) and value < 0:
            value = value + extent  # type: ignore[operator]
        if isinstance(value, int) and value >= 1 << 62:
            return extent
        return dims.maximum(0, dims.minimum(value, extent, ranges), ranges) if value != 0 else 0

    first = clamp(0 if start is None else start)
    last = clamp((1 << 62) if end is None else end)
    span = dims.maximum(0, last - first, ranges)
    length = dims.floordiv(span + (step - 1), step) if step != 1 else span
    return first, length


@operator_def("flip", kind="view", infer=same_type, doc="the axes of `axes` read backwards")
def _flip(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    coordinates = b.indices()
    for axis in attrs["axes"]:
        coordinates[axis] = b.extent(0, axis) - 1 - coordinates[axis]
    return b.load(0, *coordinates)


@operator_def(
    "roll", kind="view", infer=same_type, doc="axis axes[i] rotated by shifts[i] places, toward larger indices"
)
def _roll(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    coordinates = b.indices()
    for axis, shift in zip(attrs["axes"], attrs["shifts"], strict=True):
        extent = b.extent(0, axis)
        turned = b.op("rem", coordinates[axis] - int(shift), extent)
        coordinates[axis] = b.select(turned < 0, turned + extent, turned)
    return b.load(0, *coordinates)


def _strided_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    shape, strides, offset = attrs["shape"], attrs["strides"], attrs["offset"]
    if ins[0].rank != 1 or len(shape) != len(strides):
        raise ShapeError(f"as_strided {shape} by {strides} of {ins[0]}")
    known = (*shape, *strides, offset, *ins[0].shape)
    if all(isinstance(v, int) for v in known) and 0 not in shape:
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if not (offset >= 0 and 0 <= last < ins[0].shape[0] and min(strides, default=0) >= 0):  # type: ignore[operator]
            raise ShapeError(f"as_strided {shape} by {strides} from {offset} leaves {ins[0]}")
    return TensorType(tuple(shape), ins[0].dtype)


@operator_def(
    "as_strided", kind="view", infer=_strided_type, doc="a window on a 1-d input: offset + sum(index * stride)"
)
def _as_strided(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    position = b.i64(int(attrs["offset"]))
    for axis, stride in enumerate(attrs["strides"]):
        position = position + b.index(axis) * int(stride)
    return b.load(0, position)


def _unfold_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    shape = list(ins[0].shape)
    axis, size, step = attrs["axis"], attrs["size"], attrs["step"]
    extent = shape[axis]
    if isinstance(extent, int) and not 0 <= size <= extent:
        raise ShapeError(f"unfold by {size} of axis {axis} of {ins[0]}")
    shape[axis] = dims.floordiv(extent - size, step) + 1
    return TensorType((*shape, size), ins[0].dtype)


@operator_def(
    "unfold", kind="view", infer=_unfold_type, doc="windows of `size` every `step` along an axis; a new last axis"
)
def _unfold(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    *coordinates, within = b.indices()
    axis = attrs["axis"]
    coordinates[axis] = coordinates[axis] * int(attrs["step"]) + within
    return b.load(0, *coordinates)


def _diagonal_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    offset, first, second = attrs["offset"], attrs["axis1"], attrs["axis2"]
    if first == second:
        raise ShapeError("a diagonal needs two different axes")
    rows, cols = ins[0].shape[first], ins[0].shape[second]
    length = dims.maximum(0, dims.minimum(rows + min(offset, 0), cols - max(offset, 0)))
    rest = (n for axis, n in enumerate(ins[0].shape) if axis not in (first, second))
    return TensorType((*rest, length), ins[0].dtype)


@operator_def(
    "diagonal", kind="view", infer=_diagonal_type, doc="elements [i - min(offset,0), i + max(offset,0)] of two axes"
)
def _diagonal(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    *rest, along = b.indices()
    coordinates = []
    for axis in range(ins[0].rank):
        if axis == attrs["axis1"]:
            coordinates.append(along - min(attrs["offset"], 0))
        elif axis == attrs["axis2"]:
            coordinates.append(along + max(attrs["offset"], 0))
        else:
            coordinates.append(rest.pop(0))
    return b.load(0, *coordinates)


# -- lowerings ------------------------------------------------------------------------------


@lowers(
    "aten.view.default",
    "aten._unsafe_view.default",
    "aten.reshape.default",
    "aten._reshape_copy.default",
    "aten.view_as.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze.default",
)
def _(ctx: Lowering, x: T, *shape: Any) -> T:
    return ctx.reshape(x, ctx.out.shape)  # torch has resolved -1 and the axes


@lowers("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def _(ctx: Lowering, x: T, *shape: Any, implicit: bool = False) -> T:
    return ctx.broadcast(x, ctx.out.shape)


@lowers("aten.permute.default")
def _(ctx: Lowering, x: T, axes: Sequence[int]) -> T:
    return ctx.permute(x, axes)


@lowers("aten.t.default", "aten.numpy_T.default", "aten.mT.default")
def _(ctx: Lowering, x: T) -> T:
    return ctx.permute(x, [*range(x.rank - 2), *reversed(range(max(0, x.rank - 2), x.rank))])


@lowers("aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default")
def _(ctx: Lowering, x: T, first: int, second: int) -> T:
    return swap_axes(ctx, x, first, second)


def swap_axes(ctx: Lowering, x: T, first: int, second: int) -> T:
    """The tensor with two axes exchanged (0-d tensors stay)."""
    axes = list(range(max(x.rank, 1)))
    first, second = ctx.axis(first, x.rank), ctx.axis(second, x.rank)
    axes[first], axes[second] = axes[second], axes[first]
    return ctx.permute(x, axes) if x.rank else x


@lowers("aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int", "aten.moveaxis.intlist")
def _(ctx: Lowering, x: T, source: int | Sequence[int], target: int | Sequence[int]) -> T:
    sources = [ctx.axis(a, x.rank) for a in ((source,) if isinstance(source, int) else source)]
    targets = [ctx.axis(a, x.rank) for a in ((target,) if isinstance(target, int) else target)]
    rest = iter(axis for axis in range(x.rank) if axis not in sources)
    moved = dict(zip(targets, sources, strict=True))
    return ctx.permute(x, [moved[axis] if axis in moved else next(rest) for axis in range(x.rank)])


def take_slice(ctx: Lowering, x: T, axis: int, start: int | Dim, length: int | Dim, step: int = 1) -> T:
    """`length` elements of an axis from `start` on; the whole axis gives `x` itself."""
    if (start, length, step) == (0, x.shape[axis], 1):
        return x
    return ctx.emit("slice", [x], axis=axis, start=start, step=step, length=length)


def take_one(ctx: Lowering, x: T, axis: int, index: int | Dim) -> T:
    """The elements at one (possibly negative) index of an axis, without that axis."""
    if isinstance(index, int) and index < 0:
        index = index + x.shape[axis]
    part = take_slice(ctx, x, axis, index, 1)
    return ctx.reshape(part, x.shape[:axis] + x.shape[axis + 1 :])


@lowers("aten.slice.Tensor")
def _(
    ctx: Lowering, x: T, axis: int = 0, start: int | Dim | None = None, end: int | Dim | None = None, step: int = 1
) -> T:
    axis = ctx.axis(axis, x.rank)
    return take_slice(ctx, x, axis, *clamp_slice(x.shape[axis], start, end, step, ctx.symbols), step)


@lowers("aten.narrow.default")
def _(ctx: Lowering, x: T, axis: int, start: int | Dim, length: int | Dim) -> T:
    axis = ctx.axis(axis, x.rank)
    return take_slice(ctx, x, axis, start + x.shape[axis] if isinstance(start, int) and start < 0 else start, length)


@lowers("aten.select.int")
def _(ctx: Lowering, x: T, axis: int, index: int | Dim) -> T:
    return take_one(ctx, x, ctx.axis(axis, x.rank), index)


@lowers("aten.unbind.int")
def _(ctx: Lowering, x: T, axis: int = 0) -> tuple[T, ...]:
    axis = ctx.axis(axis, x.rank)
    return tuple(take_one(ctx, x, axis, i) for i in range(static_extent(ctx, x, axis)))


def static_extent(ctx: Lowering, x: T, axis: int) -> int:
    """The extent of an axis that decides how many tensors there are (UnsupportedError if dynamic)."""
    extent = x.shape[axis]
    if not isinstance(extent, int):
        raise ctx.unsupported("a dynamic number of parts", "make this dimension static")
    return extent


def split_at(ctx: Lowering, x: T, axis: int, sizes: Sequence[int | Dim]) -> tuple[T, ...]:
    """Consecutive parts of an axis with these extents."""
    parts: list[T] = []
    start: int | Dim = 0
    for size in sizes:
        parts.append(take_slice(ctx, x, axis, start, size))
        start = start + size
    return tuple(parts)


@lowers("aten.split.Tensor", "aten.unsafe_split.Tensor")
def _(ctx: Lowering, x: T, size: int | Dim, axis: int = 0) -> tuple[T, ...]:
    axis = ctx.axis(axis, x.rank)
    if size == x.shape[axis]:
        return (x,)
    if not isinstance(size, int):
        raise ctx.unsupported("a dynamic split size", "split by static sizes")
    extent = static_extent(ctx, x, axis)
    return split_at(ctx, x, axis, [min(size, extent - at) for at in range(0, extent, size)])


@lowers(
    "aten.split_with_sizes.default", "aten.split.sizes", "aten.split.default", "aten.unsafe_split_with_sizes.default"
)
def _(ctx: Lowering, x: T, sizes: Sequence[int | Dim], axis: int = 0) -> tuple[T, ...]:
    return split_at(ctx, x, ctx.axis(axis, x.rank), sizes)


@lowers("aten.chunk.default", "aten.unsafe_chunk.default")
def _(ctx: Lowering, x: T, chunks: int, axis: int = 0) -> tuple[T, ...]:
    axis = ctx.axis(axis, x.rank)
    extent = static_extent(ctx, x, axis)
    size = max(1, -(-extent // chunks))
    sizes = [min(size, extent - at) for at in range(0, extent, size)] or [0] * chunks
    return split_at(ctx, x, axis, sizes)


@lowers("aten.tensor_split.sections")
def _(ctx: Lowering, x: T, sections: int, axis: int = 0) -> tuple[T, ...]:
    axis = ctx.axis(axis, x.rank)
    small, larger = divmod(static_extent(ctx, x, axis), sections)
    return split_at(ctx, x, axis, [small + (i < larger) for i in range(sections)])


@lowers("aten.tensor_split.indices")
def _(ctx: Lowering, x: T, indices: Sequence[int], axis: int = 0) -> tuple[T, ...]:
    axis = ctx.axis(axis, x.rank)
    extent = static_extent(ctx, x, axis)
    starts, ends = (0, *indices), (*indices, extent)
    spans = [clamp_slice(extent, start, end, 1, ctx.symbols) for start, end in zip(starts, ends, strict=True)]
    return tuple(take_slice(ctx, x, axis, *span) for span in spans)


@lowers("aten.flip.default")
def _(ctx: Lowering, x: T, axes: Sequence[int]) -> T:
    numbers = tuple(sorted({ctx.axis(a, x.rank) for a in axes}))
    return ctx.emit("flip", [x], axes=numbers) if numbers and x.rank else x


@lowers("aten.roll.default")
def _(ctx: Lowering, x: T, shifts: Sequence[int] | int, axes: Sequence[int] | int = ()) -> T:
    shifts = (shifts,) if isinstance(shifts, (int, Dim)) else tuple(shifts)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    if not axes:  # torch rolls the flattened tensor
        return ctx.reshape(ctx.emit("roll", [flatten(ctx, x)], axes=(0,), shifts=shifts), x.shape)
    for axis, shift in zip(axes, shifts, strict=True):
        x = ctx.emit("roll", [x], axes=(ctx.axis(axis, x.rank),), shifts=(shift,)) if x.rank else x
    return x


def flatten(ctx: Lowering, x: T) -> T:
    """The elements in C order, 1-d."""
    return ctx.reshape(x, (product(x.shape),))


def product(extents: Sequence[int | Dim]) -> int | Dim:
    """Number of elements of a shape."""
    total: int | Dim = 1
    for extent in extents:
        total = total * extent
    return total


@lowers("aten.diagonal.default")
def _(ctx: Lowering, x: T, offset: int = 0, first: int = 0, second: int = 1) -> T:
    return ctx.emit("diagonal", [x], offset=offset, axis1=ctx.axis(first, x.rank), axis2=ctx.axis(second, x.rank))


@lowers("aten.unfold.default")
def _(ctx: Lowering, x: T, axis: int, size: int, step: int) -> T:
    if x.rank == 0:
        x = ctx.reshape(x, (1,))
        return ctx.reshape(ctx.emit("unfold", [x], axis=0, size=size, step=step), (size,))
    return ctx.emit("unfold", [x], axis=ctx.axis(axis, x.rank), size=size, step=step)


@lowers("aten.as_strided.default")
def _(ctx: Lowering, x: T, shape: Sequence[int], strides: Sequence[int], offset: int | None = None) -> T:
    if ctx.producer(x) in ("permute", "broadcast", "slice", "flip", "as_strided", "unfold", "diagonal"):
        raise ctx.unsupported("as_strided of a view", "call .contiguous() before it or index instead")
    source = flatten(ctx, x)
    return ctx.emit("as_strided", [source], shape=tuple(shape), strides=tuple(strides), offset=offset or 0)


@lowers("aten.repeat.default", "aten.tile.default")
def _(ctx: Lowering, x: T, repeats: Sequence[int | Dim]) -> T:
    rank = max(x.rank, len(repeats))
    counts = (1,) * (rank - len(repeats)) + tuple(repeats)
    shape = (1,) * (rank - x.rank) + x.shape
    apart = ctx.reshape(x, [n for extent in shape for n in (1, extent)])
    copies = ctx.broadcast(apart, [n for pair in zip(counts, shape, strict=True) for n in pair])
    return ctx.reshape(copies, [n * extent for n, extent in zip(counts, shape, strict=True)])


@lowers("aten.repeat_interleave.self_int")
def _(ctx: Lowering, x: T, repeats: int | Dim, axis: int | None = None, output_size: Any = None) -> T:
    x, axis = (flatten(ctx, x), 0) if axis is None else (x, ctx.axis(axis, x.rank))
    apart = ctx.unsqueeze(x, axis + 1) if x.rank else ctx.reshape(x, (1, 1))
    head, tail = apart.shape[: axis + 1], apart.shape[axis + 2 :]
    copies = ctx.broadcast(apart, (*head, repeats, *tail))
    return ctx.reshape(copies, (*head[:-1], head[-1] * repeats, *tail))


@lowers("aten.rot90.default")
def _(ctx: Lowering, x: T, turns: int = 1, axes: Sequence[int] = (0, 1)) -> T:
    first, second = (ctx.axis(a, x.rank) for a in axes)
    turns %= 4
    if turns == 2:
        return ctx.emit("flip", [x], axes=tuple(sorted((first, second))))
    if turns == 1:
        return swap_axes(ctx, ctx.emit("flip", [x], axes=(second,)), first, second)
    return ctx.emit("flip", [swap_axes(ctx, x, first, second)], axes=(second,)) if turns else x


@lowers("aten.pixel_shuffle.default")
def _(ctx: Lowering, x: T, factor: int) -> T:
    *lead, channels, height, width = x.shape
    n = len(lead)
    parts = ctx.reshape(x, (*lead, channels // (factor * factor), factor, factor, height, width))
    order = ctx.permute(parts, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return ctx.reshape(order, (*lead, channels // (factor * factor), height * factor, width * factor))


@lowers("aten.pixel_unshuffle.default")
def _(ctx: Lowering, x: T, factor: int) -> T:
    *lead, channels, height, width = x.shape
    n = len(lead)
    parts = ctx.reshape(x, (*lead, channels, height // factor, factor, width // factor, factor))
    order = ctx.permute(parts, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return ctx.reshape(order, (*lead, channels * factor * factor, height // factor, width // factor))


@lowers("aten.channel_shuffle.default")
def _(ctx: Lowering, x: T, groups: int) -> T:
    batch, channels, *spatial = x.shape
    parts = ctx.reshape(x, (batch, groups, channels // groups, *spatial))
    return ctx.reshape(swap_axes(ctx, parts, 1, 2), x.shape)
