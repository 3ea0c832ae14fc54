"""Writing at computed places; several writes to one place take effect in ascending source order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ree.dims import Dim
from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.index import index_axis, index_tensors, wrapped
from ree.ops.linear import scaled
from ree.ops.spec import Attrs, lowers, operator_def
from ree.ops.view import flatten, product
from ree.types import DType, TensorType, Type

REDUCE = ("set", "add", "mul", "min", "max")
_NARROW_FLOATS = (DType.F16, DType.BF16)
# bool: addition is "or", multiplication "and", as 0 and 1 saturate
_BOOL = {"add": "or", "mul": "and", "min": "and", "max": "or"}


def _check_dtypes(x: TensorType, index: TensorType, src: TensorType, reduce: str) -> None:
    if x.dtype is not src.dtype or index.dtype is not DType.I64 or reduce not in REDUCE:
        raise DTypeError(f"scatter ({reduce}) of {src} by {index} into {x}")
    if reduce != "set" and x.dtype in _NARROW_FLOATS:
        raise DTypeError(f"scatter ({reduce}) in {x.dtype.value}: every step would round; use f32")


def _combine(b: Builder, reduce: str, old: Value, new: Value, dtype: DType) -> Value:
    """The element after one write; narrow integers wrap at each."""
    if reduce == "set":
        return new
    return b.round(b.op(_BOOL[reduce] if old.type is Type.BOOL else reduce, old, new), dtype)


def _scatter_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, index, src = ins
    _check_dtypes(x, index, src, attrs["reduce"])
    axis = attrs["axis"]
    fits = x.rank == index.rank == src.rank and 0 <= axis < x.rank
    extents = zip(x.shape, index.shape, src.shape, strict=True) if fits else ()
    for number, (n, need, have) in enumerate(extents):
        if isinstance(need, int):
            fits &= not (isinstance(have, int) and need > have)
            fits &= not (isinstance(n, int) and need > n and number != axis)
    if not fits:
        raise ShapeError(f"scatter of {src} by {index} into {x} along axis {axis}")
    return x


@operator_def(
    "scatter",
    kind="scatter",
    infer=_scatter_type,
    doc="x, then for j ascending: x[.., index[.., j, ..], ..] "
    "reduce= src[.., j, ..] along `axis`; negative indices wrap",
)
def _scatter(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    axis = attrs["axis"]
    coordinates = b.indices()
    covered = b.const(True, Type.BOOL)  # the index may be smaller than x along the other axes
    for other in range(out.rank):
        if other != axis:
            covered = covered & (coordinates[other] < b.extent(1, other))

    def step(j: Value, element: Value) -> list[Value]:
        place = list(coordinates)
        place[axis] = j
        target = wrapped(b, b.load(1, *place), b.extent(0, axis))
        changed = _combine(b, attrs["reduce"], element, b.load(2, *place), out.dtype)
        return [b.select(target.eq(coordinates[axis]), changed, element)]

    count = b.select(covered, b.extent(1, axis), b.i64(0))
    return b.chain(count, [b.load(0, *coordinates)], step)[0]


def _rows_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, index, src = ins
    _check_dtypes(x, index, src, attrs["reduce"])
    fits = x.rank == 2 and index.rank == 1 and src.rank == 2 and attrs["reduce"] in ("set", "add")
    pairs = [(index.shape[0], src.shape[0]), (x.shape[1], src.shape[1])] if fits else []
    if not fits or any(a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int)):
        raise ShapeError(f"scatter ({attrs['reduce']}) of rows {src} by {index} into {x}")
    return x


@operator_def(
    "scatter_rows",
    kind="scatter",
    infer=_rows_type,
    doc="x, then for i ascending: x[index[i], :] reduce= src[i, :]; negative indices wrap",
)
def _scatter_rows(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    row, col = b.indices()

    def step(i: Value, element: Value) -> list[Value]:
        target = wrapped(b, b.load(1, i), b.extent(0, 0))
        changed = _combine(b, attrs["reduce"], element, b.load(2, i, col), out.dtype)
        return [b.select(target.eq(row), changed, element)]

    return b.chain(b.extent(1, 0), [b.load(0, row, col)], step)[0]


# -- lowerings ------------------------------------------------------------------------------


def scatter(ctx: Lowering, x: T, axis: int, index: T, src: T, reduce: str) -> T:
    """The operator for tensors of any rank; f16 and bf16 accumulate in f32 and round once."""
    if x.rank == 0 or index.rank == 0:
        one = [ctx.reshape(t, (1,)) if t.rank == 0 else t for t in (x, index, src)]
        return ctx.reshape(scatter(ctx, one[0], 0, one[1], one[2], reduce), x.shape)
    wide = DType.F32 if reduce != "set" and x.dtype in _NARROW_FLOATS else x.dtype
    inputs = [ctx.cast(x, wide), ctx.cast(index, DType.I64), ctx.cast(src, wide)]
    return ctx.cast(ctx.emit("scatter", inputs, axis=ctx.axis(axis, x.rank), reduce=reduce), x.dtype)


def scatter_rows(ctx: Lowering, x: T, index: T, src: T, reduce: str) -> T:
    """The operator with x [R, ...], index [n], src [n, ...]; the other axes are flattened."""
    wide = DType.F32 if reduce != "set" and x.dtype in _NARROW_FLOATS else x.dtype
    inner = product(x.shape[1:])
    rows = ctx.reshape(ctx.cast(x, wide), (x.shape[0], inner))
    source = ctx.reshape(ctx.cast(src, wide), (index.shape[0], inner))
    result = ctx.emit("scatter_rows", [rows, ctx.cast(index, DType.I64), source], reduce=reduce)
    return ctx.cast(ctx.reshape(result, x.shape), x.dtype)


@lowers("aten.scatter.src")
def _(ctx: Lowering, x: T, axis: int, index: T, src: T) -> T:
    return scatter(ctx, x, axis, index, src, "set")


@lowers("aten.scatter.value")
def _(ctx: Lowering, x: T, axis: int, index: T, value: int | float | bool) -> T:
    return scatter(ctx, x, axis, index, ctx.full(index.shape, value, x.dtype), "set")


@lowers("aten.scatter_add.default")
def _(ctx: Lowering, x: T, axis: int, index: T, src: T) -> T:
    return scatter(ctx, x, axis, index, src, "add")


_NAMES = {"add": "add", "multiply": "mul", "sum": "add", "prod": "mul", "amin": "min", "amax": "max"}


@lowers("aten.scatter.reduce")
def _(ctx: Lowering, x: T, axis: int, index: T, src: T, *, reduce: str) -> T:
    return scatter(ctx, x, axis, index, src, _NAMES[reduce])


@lowers("aten.scatter.value_reduce")
def _(ctx: Lowering, x: T, axis: int, index: T, value: int | float | bool, *, reduce: str) -> T:
    return scatter(ctx, x, axis, index, ctx.full(index.shape, value, x.dtype), _NAMES[reduce])


def _neutral(reduce: str, dtype: DType) -> int | float | bool:
    """The value that a reduction leaves out."""
    if reduce in ("add", "mul"):
        return 0 if reduce == "add" else 1
    sign = -1 if reduce == "max" else 1
    if dtype.is_float:
        return sign * math.inf
    if dtype is DType.BOOL:
        return reduce == "min"
    bits = dtype.size_bytes * 8
    signed = dtype in (DType.I8, DType.I16, DType.I32, DType.I64)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return low if reduce == "max" else high


@lowers("aten.scatter_reduce.two")
def _(ctx: Lowering, x: T, axis: int, index: T, src: T, reduce: str, *, include_self: bool = True) -> T:
    return scatter_reduce(ctx, x, axis, index, src, reduce, include_self)


@lowers("aten.index_reduce.default")
def _(ctx: Lowering, x: T, axis: int, index: T, src: T, reduce: str, *, include_self: bool = True) -> T:
    if x.rank:
        shape = [1] * x.rank
        shape[ctx.axis(axis, x.rank)] = -1
        index = ctx.reshape(index, [product(index.shape) if n < 0 else 1 for n in shape])
    return scatter_reduce(ctx, x, axis, ctx.broadcast(index, src.shape), src, reduce, include_self)


def scatter_reduce(ctx: Lowering, x: T, axis: int, index: T, src: T, reduce: str, include_self: bool) -> T:
    """torch's reductions sum, prod, mean, amin, amax, with or without the elements of x."""
    if reduce == "mean":
        return _scatter_mean(ctx, x, axis, index, src, include_self)
    name = _NAMES[reduce]
    if not include_self:
        x = scatter(ctx, x, axis, index, ctx.full(index.shape, _neutral(name, x.dtype), x.dtype), "set")
    return scatter(ctx, x, axis, index, src, name)


def _scatter_mean(ctx: Lowering, x: T, axis: int, index: T, src: T, include_self: bool) -> T:
    """Sum by count; places that nothing is written to keep their value."""
    counts = ctx.full(x.shape, 1, DType.I64)
    if not include_self:
        x = scatter(ctx, x, axis, index, ctx.full(index.shape, 0, x.dtype), "set")
        counts = scatter(ctx, counts, axis, index, ctx.full(index.shape, 0, DType.I64), "set")
    counts = scatter(ctx, counts, axis, index, ctx.full(index.shape, 1, DType.I64), "add")
    total = scatter(ctx, x, axis, index, src, "add")
    if x.dtype.is_float:
        return ctx.pointwise("div", total, ctx.cast(counts, x.dtype), dtype=x.dtype)
    wide, divisor = ctx.cast(total, DType.I64), counts
    quotient = ctx.emit("div", [wide, divisor])
    rest = ctx.emit("rem", [wide, divisor])  # torch rounds the mean of integers down
    below = ctx.cast(ctx.pointwise("lt", rest, 0, dtype=DType.I64), DType.I64)
    return ctx.cast(ctx.emit("sub", [quotient, below]), x.dtype)


def _along_rows(ctx: Lowering, x: T, axis: int, index: T, src: T, reduce: str) -> T:
    """scatter_rows along any axis of x; src has the index's extent there."""
    if x.rank == 0:
        line, source = ctx.reshape(x, (1,)), ctx.reshape(src, (product(index.shape),))
        return ctx.reshape(scatter_rows(ctx, line, flatten(ctx, index), source, reduce), ())
    front = (axis, *(a for a in range(x.rank) if a != axis))
    back = [front.index(a) for a in range(x.rank)]
    source = ctx.permute(src, front) if src.rank else ctx.reshape(src, (1,) * x.rank)
    return ctx.permute(scatter_rows(ctx, ctx.permute(x, front), flatten(ctx, index), source, reduce), back)


@lowers("aten.index_add.default")
def _(ctx: Lowering, x: T, axis: int, index: T, src: T, *, alpha: int | float = 1) -> T:
    return _along_rows(ctx, x, ctx.axis(axis, x.rank), index, scaled(ctx, src, alpha), "add")


@lowers("aten.index_copy.default")
def _(ctx: Lowering, x: T, axis: int, index: T, src: T) -> T:
    return _along_rows(ctx, x, ctx.axis(axis, x.rank), index, src, "set")


@lowers("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def _(ctx: Lowering, x: T, axis: int, index: T, value: T | int | float | bool) -> T:
    axis = ctx.axis(axis, x.rank)
    index = flatten(ctx, index)
    shape = (*x.shape[:axis], index.shape[0], *x.shape[axis + 1 :]) if x.rank else index.shape
    number = ctx.cast(value, x.dtype) if isinstance(value, T) else ctx.full((), value, x.dtype)
    return _along_rows(ctx, x, axis, index, ctx.broadcast(number, shape), "set")


@lowers(
    "aten.index_put.default",
    "aten._unsafe_index_put.default",
    "aten.index_put.hacked_twin",
    "aten._unsafe_index_put.hacked_twin",
)
def _(ctx: Lowering, x: T, indices: Sequence[T | None], values: T, accumulate: bool = False) -> T:
    """The indexed axes become one axis of rows; values broadcast to index shape + other axes."""
    masks = [index for index in indices if index is not None and index.dtype is DType.BOOL]
    if len(masks) == 1 and len([i for i in indices if i is not None]) == 1 and indices[0] is not None:
        return _put_where(ctx, x, masks[0], values, accumulate)
    axes, tensors = index_tensors(ctx, indices)
    others = tuple(axis for axis in range(x.rank) if axis not in axes)
    extents = tuple(x.shape[axis] for axis in axes)
    rest = tuple(x.shape[axis] for axis in others)
    shape = tensors[0].shape
    place = axes[0] if axes == tuple(range(axes[0], axes[0] + len(axes))) else 0
    full = (*rest[:place], *shape, *rest[place:])
    values = ctx.broadcast(ctx.cast(values, x.dtype), full)
    middle = range(place, place + len(shape))
    values = ctx.permute(values, (*middle, *(a for a in range(len(full)) if a not in middle)))
    source = ctx.reshape(values, (product(shape), *rest))
    index = flatten(ctx, ctx.emit("ravel_index", tensors, extents=extents))
    order = (*axes, *others)
    rows = ctx.reshape(ctx.permute(x, order), (product(extents), *rest))
    result = scatter_rows(ctx, rows, index, source, "add" if accumulate else "set")
    back = [order.index(axis) for axis in range(x.rank)]
    return ctx.permute(ctx.reshape(result, (*extents, *rest)), back)


def _put_where(ctx: Lowering, x: T, mask: T, values: T, accumulate: bool) -> T:
    """x[mask] = value with one value for all is a choice, whatever the mask holds."""
    if product(values.shape) != 1:
        raise ctx.unsupported("writing several values under a mask", "use torch.where")
    shape = (*mask.shape, *([1] * (x.rank - mask.rank)))
    value = ctx.broadcast(ctx.reshape(ctx.cast(values, x.dtype), ()), x.shape)
    value = ctx.emit("add", [x, value]) if accumulate else value
    return ctx.emit("where", [ctx.broadcast(ctx.reshape(mask, shape), x.shape), value, x])


@lowers("aten.masked_scatter.default")
def _(ctx: Lowering, x: T, mask: T, source: T) -> T:
    """The i-th place under the mask takes source element i, found by counting the mask."""
    shape = ctx.broadcast_shape(x.shape, mask.shape)
    x, mask = ctx.broadcast(x, shape), ctx.broadcast(mask, shape)
    count = ctx.emit("cumsum", [flatten(ctx, ctx.cast(mask, DType.I64))])
    position = ctx.reshape(ctx.pointwise("sub", count, 1, dtype=DType.I64), shape)
    position = ctx.emit("where", [mask, position, ctx.full(shape, 0, DType.I64)])
    return ctx.emit("where", [mask, index_axis(ctx, flatten(ctx, source), 0, position), x])


@lowers("aten.embedding_dense_backward.default")
def _(ctx: Lowering, grad: T, index: T, rows: int | Dim, padding_idx: int, scale_by_freq: bool) -> T:
    if scale_by_freq:
        raise ctx.unsupported("scale_grad_by_freq", "leave it off")
    flat = flatten(ctx, ctx.cast(index, DType.I64))
    source = ctx.reshape(grad, (*flat.shape, grad.shape[-1]))
    if padding_idx >= 0:
        padding = ctx.unsqueeze(ctx.pointwise("eq", flat, padding_idx, dtype=DType.I64), 1)
        zero = ctx.full(source.shape, 0, source.dtype)
        source = ctx.emit("where", [ctx.broadcast(padding, source.shape), zero, source])
    return scatter_rows(ctx, ctx.full((rows, grad.shape[-1]), 0, grad.dtype), flat, source, "add")
