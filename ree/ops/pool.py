"""Pooling: maxima and means over windows, of fixed and of adaptive size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ree import dims
from ree.dims import Dim
from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.conv import per_axis, within
from ree.ops.scatter import scatter
from ree.ops.spec import Attrs, lowers, operator_def
from ree.ops.view import product
from ree.types import DType, TensorType, Type


def _windows(x: TensorType, attrs: Attrs) -> TensorType:
    """torch's extents: with ceil_mode a last window must start inside the input or its left padding."""
    spatial = len(attrs["kernel"])
    if x.rank != spatial + 2:
        raise ShapeError(f"pooling by {attrs['kernel']} of {x}")
    shape = list(x.shape[:2])
    for axis in range(spatial):
        kernel, stride, padding = (attrs[name][axis] for name in ("kernel", "stride", "padding"))
        dilation = attrs["dilation"][axis] if "dilation" in attrs else 1
        extent = x.shape[2 + axis]
        span = extent + 2 * padding - dilation * (kernel - 1) - 1
        count = dims.floordiv(span + (stride - 1 if attrs["ceil_mode"] else 0), stride) + 1
        if attrs["ceil_mode"]:
            fits = dims.floordiv(extent + padding - 1, stride) + 1
            count = dims.minimum(count, fits)
        if (isinstance(count, int) and count < 1) or 2 * padding > kernel:
            raise ShapeError(f"pooling by {attrs['kernel']} of {x}")
        shape.append(count)
    return TensorType(tuple(shape), x.dtype)


def _pool_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return _windows(ins[0], attrs)


def _pool_index_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return _windows(ins[0], attrs).with_dtype(DType.I64)


def _split_tap(b: Builder, tap: Value, extents: Sequence[int | Value]) -> list[Value]:
    """Coordinates of a tap number in C order over these extents."""
    coordinates: list[Value] = []
    for extent in reversed(extents):
        coordinates.insert(0, b.op("rem", tap, extent))
        tap = tap / extent
    return coordinates


def _tap_place(b: Builder, attrs: Attrs, tap: Value) -> list[Value]:
    taps = _split_tap(b, tap, attrs["kernel"])
    rates = attrs.get("dilation", (1,) * len(taps))
    steps = zip(b.indices()[2:], taps, attrs["stride"], attrs["padding"], rates, strict=True)
    return [p * int(s) - int(pad) + t * int(d) for p, t, s, pad, d in steps]


@operator_def("max_pool", kind="any", infer=_pool_type, doc="maximum over each window; places outside x are left out")
def _max_pool(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c = b.indices()[:2]
    type = out.dtype.element
    lowest = b.const(-math.inf if type.is_float else -(1 << (type.bits - 1)) if type.is_signed else 0, type)

    def element(tap: Value) -> Value:
        place = _tap_place(b, attrs, tap)
        return b.load_if(within(b, place, 0, 2), lowest, 0, n, c, *place)

    return b.fold_max(b.i64(math.prod(attrs["kernel"])), element)


def _flat(b: Builder, place: Sequence[Value]) -> Value:
    """Position of spatial coordinates in C order of the input's spatial axes."""
    position = b.i64(0)
    for axis, coordinate in enumerate(place, start=2):
        position = position * b.extent(0, axis) + coordinate
    return position


def _first_maximum(b: Builder, count: Value, candidate: object) -> Value:
    """Position of the first maximum among the candidates, or of the last NaN, as torch counts."""

    def step(tap: Value, best: Value, index: Value) -> list[Value]:
        inside, x, position = candidate(tap)  # type: ignore[operator]
        better = (index < 0) | (x > best)
        if x.type.is_float:
            better = better | x.ne(x)
        take = inside & better
        return [b.select(take, x, best), b.select(take, position, index)]

    type = b.inputs[0].dtype.element
    return b.chain(count, [b.const(0, type), b.i64(-1)], step)[1]


@operator_def(
    "max_pool_index",
    kind="any",
    infer=_pool_index_type,
    doc="where max_pool found its value: position in C order of x's spatial axes; the first among equals, the last NaN",
)
def _max_pool_index(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c = b.indices()[:2]

    def candidate(tap: Value) -> tuple[Value, Value, Value]:
        place = _tap_place(b, attrs, tap)
        inside = within(b, place, 0, 2)
        return inside, b.load_if(inside, 0, 0, n, c, *place), _flat(b, place)

    return _first_maximum(b, b.i64(math.prod(attrs["kernel"])), candidate)


@operator_def(
    "avg_pool",
    kind="any",
    infer=_pool_type,
    doc="sum over each window (+0 outside x) / `divisor`, or / the number "
    "of places of the window inside x (count_include_pad: inside x and its padding) if that is 0",
)
def _avg_pool(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c, *position = b.indices()
    type = out.dtype.element

    def element(tap: Value) -> Value:
        place = _tap_place(b, attrs, tap)
        return b.load_if(within(b, place, 0, 2), 0, 0, n, c, *place)

    taps = b.i64(math.prod(attrs["kernel"]))
    count = b.i64(attrs["divisor"] or 1)
    if not attrs["divisor"]:
        for axis, p in enumerate(position):
            kernel, stride, padding = (int(attrs[name][axis]) for name in ("kernel", "stride", "padding"))
            extent = b.extent(0, 2 + axis)
            start = p * stride - padding
            end = b.min(start + kernel, extent + padding)
            if not attrs["count_include_pad"]:
                start, end = b.max(start, 0), b.min(end, extent)
            count = count * (end - start)
    if type.is_float:
        return b.fold_sum(taps, element) / b.convert(count, type)
    return b.fold_isum(taps, element) / b.convert(count, type)


def _adaptive_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, size = ins[0], attrs["size"]
    if x.rank != len(size) + 2:
        raise ShapeError(f"adaptive pooling to {size} of {x}")
    return TensorType((*x.shape[:2], *size), x.dtype)


def _adaptive_mean_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if not ins[0].dtype.is_float:
        raise DTypeError(f"adaptive mean of {ins[0]}")
    return _adaptive_type(ins, attrs)


def _adaptive_index_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return _adaptive_type(ins, attrs).with_dtype(DType.I64)


def _adaptive_window(b: Builder, size: Sequence[int]) -> tuple[list[Value], list[Value]]:
    """First place and extent of the output's window along each spatial axis."""
    starts, lengths = [], []
    for axis, (p, parts) in enumerate(zip(b.indices()[2:], size, strict=True), start=2):
        extent = b.extent(0, axis)
        starts.append(p * extent / int(parts))
        lengths.append(((p + 1) * extent + (int(parts) - 1)) / int(parts) - starts[-1])
    return starts, lengths


def _adaptive_place(b: Builder, starts: Sequence[Value], lengths: Sequence[Value], tap: Value) -> list[Value]:
    return [s + t for s, t in zip(starts, _split_tap(b, tap, lengths), strict=True)]


def _count(b: Builder, lengths: Sequence[Value]) -> Value:
    count = b.i64(1)
    for length in lengths:
        count = count * length
    return count


@operator_def(
    "adaptive_avg_pool",
    kind="any",
    infer=_adaptive_mean_type,
    doc="sum / count over the window floor(i * in / out) .. ceil((i + 1) * in / out) of each spatial axis",
)
def _adaptive_avg(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c = b.indices()[:2]
    starts, lengths = _adaptive_window(b, attrs["size"])
    count = _count(b, lengths)
    total = b.fold_sum(count, lambda tap: b.load(0, n, c, *_adaptive_place(b, starts, lengths, tap)))
    return total / b.convert(count, out.dtype.element)


@operator_def(
    "adaptive_max_pool", kind="any", infer=_adaptive_type, doc="maximum over the windows of adaptive_avg_pool"
)
def _adaptive_max(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c = b.indices()[:2]
    starts, lengths = _adaptive_window(b, attrs["size"])
    return b.fold_max(_count(b, lengths), lambda tap: b.load(0, n, c, *_adaptive_place(b, starts, lengths, tap)))


@operator_def(
    "adaptive_max_pool_index",
    kind="any",
    infer=_adaptive_index_type,
    doc="where adaptive_max_pool found its value, as in max_pool_index",
)
def _adaptive_max_index(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c = b.indices()[:2]
    starts, lengths = _adaptive_window(b, attrs["size"])

    def candidate(tap: Value) -> tuple[Value, Value, Value]:
        place = _adaptive_place(b, starts, lengths, tap)
        return b.const(True, Type.BOOL), b.load(0, n, c, *place), _flat(b, place)

    return _first_maximum(b, _count(b, lengths), candidate)


def _avg_grad_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    grad, x = ins
    if not grad.dtype.is_float or grad.dtype is not x.dtype:
        raise DTypeError(f"gradient of a mean pool: {grad} for {x}")
    windows = _windows(x, attrs) if "kernel" in attrs else TensorType((*x.shape[:2], *grad.shape[2:]), x.dtype)
    if any(a != b for a, b in zip(windows.shape, grad.shape, strict=True) if isinstance(a, int) and isinstance(b, int)):
        raise ShapeError(f"gradient of a mean pool: {grad} for {x}")
    return x


@operator_def(
    "adaptive_avg_pool_grad",
    kind="any",
    infer=_avg_grad_type,
    doc="sum over the windows that hold the element of grad / count, windows in C order",
)
def _adaptive_avg_grad(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c, *position = b.indices()
    spatial = len(position)
    sizes = [b.extent(0, 2 + axis) for axis in range(spatial)]

    def share(window: Value) -> Value:
        windows = _split_tap(b, window, sizes)
        inside, count = b.const(True, Type.BOOL), b.i64(1)
        for axis, (w, p, parts) in enumerate(zip(windows, position, sizes, strict=True), start=2):
            extent = b.extent(1, axis)
            start, end = w * extent / parts, ((w + 1) * extent + parts - 1) / parts
            inside = inside & (p >= start) & (p < end)
            count = count * (end - start)
        return b.load_if(inside, 0, 0, n, c, *windows) / b.convert(count, out.dtype.element)

    return b.fold_sum(_count(b, sizes), share)


@operator_def(
    "avg_pool_grad",
    kind="any",
    infer=_avg_grad_type,
    doc="sum over the windows that hold the element of grad / divisor (as avg_pool has it), by tap in C order",
)
def _avg_grad(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c, *position = b.indices()

    def share(tap: Value) -> Value:
        taps = _split_tap(b, tap, attrs["kernel"])
        windows, hit, count = [], b.const(True, Type.BOOL), b.i64(attrs["divisor"] or 1)
        for axis, (t, p) in enumerate(zip(taps, position, strict=True)):
            kernel, stride, padding = (int(attrs[name][axis]) for name in ("kernel", "stride", "padding"))
            reach, extent = p + padding - t, b.extent(1, 2 + axis)
            windows.append(reach / stride)
            hit = hit & (reach >= 0) & b.op("rem", reach, stride).eq(0) & (windows[-1] < b.extent(0, 2 + axis))
            if not attrs["divisor"]:
                start = windows[-1] * stride - padding
                end = b.min(start + kernel, extent + padding)
                if not attrs["count_include_pad"]:
                    start, end = b.max(start, 0), b.min(end, extent)
                count = count * (end - start)
        return b.load_if(hit, 0, 0, n, c, *windows) / b.convert(b.select(hit, count, 1), out.dtype.element)

    return b.fold_sum(b.i64(math.prod(attrs["kernel"])), share)


# -- lowerings ------------------------------------------------------------------------------

Extents = Sequence[int] | int


def _batched(ctx: Lowering, x: T, spatial: int) -> tuple[T, tuple[int | Dim, ...]]:
    """x as [N, C, *spatial], and the leading axes to give back."""
    lead = x.shape[: x.rank - spatial]
    shape = (1, *lead, *x.shape[len(lead) :]) if len(lead) == 1 else x.shape
    return ctx.reshape(x, shape), lead


def _unbatched(ctx: Lowering, x: T, lead: tuple[int | Dim, ...]) -> T:
    return ctx.reshape(x, (*lead, *x.shape[2:]))


def _window_attrs(spatial: int, kernel: Extents, stride: Extents, padding: Extents, ceil: bool) -> dict[str, object]:
    """The attributes of a window; torch's empty stride is the kernel."""
    size = per_axis(kernel, spatial)
    step = per_axis(stride, spatial) if stride != () else size
    return {"kernel": size, "stride": step, "padding": per_axis(padding, spatial), "ceil_mode": bool(ceil)}


def _max_pool_rule(spatial: int, outputs: int) -> None:
    suffix = "_with_indices" if outputs == 2 else ""

    @lowers(f"aten.max_pool{spatial}d{suffix}.default")
    def _(
        ctx: Lowering, x: T, kernel: Extents, stride: Extents = (), padding: Extents = 0, dilation: Extents = 1,
        ceil_mode: bool = False,
    ) -> T | tuple[T, T]:  # fmt: skip
        attrs = _window_attrs(spatial, kernel, stride, padding, ceil_mode)
        attrs["dilation"] = per_axis(dilation, spatial)
        batch, lead = _batched(ctx, x, spatial)
        values = _unbatched(ctx, ctx.emit("max_pool", [batch], **attrs), lead)
        if outputs == 1:
            return values
        return values, _unbatched(ctx, ctx.emit("max_pool_index", [batch], **attrs), lead)


def _avg_pool_rule(spatial: int) -> None:
    @lowers(f"aten.avg_pool{spatial}d.default")
    def _(
        ctx: Lowering, x: T, kernel: Extents, stride: Extents = (), padding: Extents = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> T:  # fmt: skip
        attrs = _window_attrs(spatial, kernel, stride, padding, ceil_mode)
        attrs |= {"count_include_pad": bool(count_include_pad), "divisor": divisor_override or 0}
        batch, lead = _batched(ctx, x, spatial)
        return _unbatched(ctx, ctx.emit("avg_pool", [batch], **attrs), lead)


def _adaptive_rules(spatial: int) -> None:
    hidden = (f"aten._adaptive_avg_pool{spatial}d.default",) if spatial > 1 else ()

    @lowers(f"aten.adaptive_avg_pool{spatial}d.default", *hidden)
    def _(ctx: Lowering, x: T, size: Extents) -> T:
        batch, lead = _batched(ctx, x, spatial)
        return _unbatched(ctx, ctx.emit("adaptive_avg_pool", [batch], size=per_axis(size, spatial)), lead)

    @lowers(f"aten.adaptive_max_pool{spatial}d.default")
    def _(ctx: Lowering, x: T, size: Extents) -> tuple[T, T]:
        batch, lead = _batched(ctx, x, spatial)
        parts = per_axis(size, spatial)
        values, index = (ctx.emit(op, [batch], size=parts) for op in ("adaptive_max_pool", "adaptive_max_pool_index"))
        return _unbatched(ctx, values, lead), _unbatched(ctx, index, lead)


for _spatial in (1, 2, 3):
    _max_pool_rule(_spatial, 1)
    _max_pool_rule(_spatial, 2)
    _avg_pool_rule(_spatial)
    _adaptive_rules(_spatial)


@lowers("aten.max_pool2d_with_indices_backward.default", "aten.max_pool3d_with_indices_backward.default")
def _(
    ctx: Lowering,
    grad: T,
    x: T,
    kernel: Extents,
    stride: Extents,
    padding: Extents,
    dilation: Extents,
    ceil_mode: bool,
    index: T,
) -> T:
    """Each window's gradient goes to the place of its maximum."""
    spatial = len(kernel) if not isinstance(kernel, int) and len(kernel) > 1 else grad.rank - 2
    lead = x.shape[: x.rank - spatial]
    places, windows = product(x.shape[x.rank - spatial :]), product(grad.shape[grad.rank - spatial :])
    flat = [ctx.reshape(t, (*lead, windows)) for t in (index, grad)]
    total = scatter(ctx, ctx.full((*lead, places), 0, x.dtype), len(lead), flat[0], flat[1], "add")
    return ctx.reshape(total, x.shape)


@lowers("aten.avg_pool2d_backward.default", "aten.avg_pool3d_backward.default")
def _(
    ctx: Lowering,
    grad: T,
    x: T,
    kernel: Extents,
    stride: Extents,
    padding: Extents,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> T:
    spatial = 2 if "2d" in ctx.target else 3
    attrs = _window_attrs(spatial, kernel, stride, padding, ceil_mode)
    attrs |= {"count_include_pad": bool(count_include_pad), "divisor": divisor_override or 0}
    grads, lead = _batched(ctx, grad, spatial)
    return _unbatched(ctx, ctx.emit("avg_pool_grad", [grads, _batched(ctx, x, spatial)[0]], **attrs), lead)


@lowers("aten._adaptive_avg_pool2d_backward.default", "aten._adaptive_avg_pool3d_backward.default")
def _(ctx: Lowering, grad: T, x: T) -> T:
    spatial = 2 if "2d" in ctx.target else 3
    grads, lead = _batched(ctx, grad, spatial)
    return _unbatched(ctx, ctx.emit("adaptive_avg_pool_grad", [grads, _batched(ctx, x, spatial)[0]]), lead)
