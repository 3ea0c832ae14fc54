"""Convolutions of rank 1 to 3, direct and transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ree import dims
from ree.dims import Dim
from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.linear import contract
from ree.ops.spec import Attrs, lowers, operator_def
from ree.ops.view import swap_axes, take_slice
from ree.types import TensorType, Type

Extents = Sequence[int | Dim]


def _check(ins: Sequence[TensorType], attrs: Attrs, in_axis: int) -> int:
    """Number of spatial axes; ShapeError where x, w and the attributes do not fit."""
    x, w = ins
    if x.dtype is not w.dtype:
        raise DTypeError(f"convolution of {x} with {w}")
    spatial = x.rank - 2
    lengths = {len(attrs[k]) for k in ("stride", "padding", "dilation")}
    channels, per_group = x.shape[1], w.shape[in_axis] * (attrs["groups"] if in_axis == 1 else 1)
    wrong = isinstance(channels, int) and isinstance(per_group, int) and channels != per_group
    if w.rank != x.rank or spatial < 1 or lengths != {spatial} or wrong or w.shape[0] % attrs["groups"]:
        raise ShapeError(f"convolution of {x} with {w} in {attrs['groups']} groups")
    return spatial


def _conv_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, w = ins
    shape = [x.shape[0], w.shape[0]]
    for axis in range(_check(ins, attrs, 1)):
        stride, padding, dilation = (attrs[k][axis] for k in ("stride", "padding", "dilation"))
        span = x.shape[2 + axis] + 2 * padding - dilation * (w.shape[2 + axis] - 1) - 1
        shape.append(dims.floordiv(span, stride) + 1)
    return TensorType(tuple(shape), x.dtype)


def tap_coordinates(b: Builder, source: int, first: int, count: int, tap: Value) -> list[Value]:
    """Kernel coordinates of tap number `tap` in C order over axes first .. first+count-1."""
    coordinates: list[Value] = []
    for axis in reversed(range(first, first + count)):
        extent = b.extent(source, axis)
        coordinates.insert(0, tap if axis == first else b.op("rem", tap, extent))
        tap = tap / extent
    return coordinates


def within(b: Builder, coordinates: Sequence[Value], source: int, first: int) -> Value:
    """Whether the coordinates lie inside axes first, first+1, ... of an input."""
    inside = b.const(True, Type.BOOL)
    for axis, c in enumerate(coordinates, start=first):
        inside = inside & (c >= 0) & (c < b.extent(source, axis))
    return inside


def _taps(b: Builder, source: int, first: int, count: int) -> Value:
    total = b.i64(1)
    for axis in range(first, first + count):
        total = total * b.extent(source, axis)
    return total


@operator_def(
    "conv",
    kind="conv",
    infer=_conv_type,
    doc="cross-correlation; k = tap * (C / groups) + input channel of the "
    "group, taps in C order; taps outside x contribute +0 * w",
)
def _conv(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, o, *position = b.indices()
    spatial = len(position)
    channels = b.extent(1, 1)
    group = o / (b.extent(1, 0) / int(attrs["groups"]))

    def pair(k: Value) -> tuple[Value, Value]:
        taps, channel = tap_coordinates(b, 1, 2, spatial, k / channels), b.op("rem", k, channels)
        steps = zip(position, taps, attrs["stride"], attrs["padding"], attrs["dilation"], strict=True)
        place = [p * int(s) - int(pad) + t * int(d) for p, t, s, pad, d in steps]
        x = b.load_if(within(b, place, 0, 2), 0, 0, n, group * channels + channel, *place)
        return x, b.load(1, o, channel, *taps)

    return contract(b, _taps(b, 1, 2, spatial) * channels, pair, out.dtype.element)


def _transpose_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, w = ins
    shape = [x.shape[0], w.shape[1] * attrs["groups"]]
    for axis in range(_check(ins, attrs, 0)):
        stride, padding, dilation, extra = (attrs[k][axis] for k in ("stride", "padding", "dilation", "output_padding"))
        shape.append((x.shape[2 + axis] - 1) * stride - 2 * padding + dilation * (w.shape[2 + axis] - 1) + extra + 1)
    return TensorType(tuple(shape), x.dtype)


@operator_def(
    "conv_transpose",
    kind="conv",
    infer=_transpose_type,
    doc="gradient of conv by its input; k = tap * (C / groups) "
    "+ input channel of the group; taps that hit no x contribute +0 * w",
)
def _conv_transpose(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, o, *position = b.indices()
    spatial = len(position)
    channels = b.extent(1, 0) / int(attrs["groups"])
    outputs = b.extent(1, 1)
    group = o / outputs

    def pair(k: Value) -> tuple[Value, Value]:
        taps, channel = tap_coordinates(b, 1, 2, spatial, k / channels), b.op("rem", k, channels)
        steps = list(zip(position, taps, attrs["stride"], attrs["padding"], attrs["dilation"], strict=True))
        reach = [p + int(pad) - t * int(d) for p, t, _, pad, d in steps]
        place = [r / int(s) for r, (_, _, s, _, _) in zip(reach, steps, strict=True)]
        hit = within(b, place, 0, 2)
        for r, (_, _, stride, _, _) in zip(reach, steps, strict=True):
            hit = hit & (r >= 0) & b.op("rem", r, int(stride)).eq(0)
        source = group * channels + channel
        return b.load_if(hit, 0, 0, n, source, *place), b.load(1, source, b.op("rem", o, outputs), *taps)

    return contract(b, _taps(b, 1, 2, spatial) * channels, pair, out.dtype.element)


# -- lowerings ------------------------------------------------------------------------------


def per_axis(values: Extents | int, count: int) -> tuple[int | Dim, ...]:
    """One value per spatial axis; torch lets one stand for all."""
    values = (values,) if isinstance(values, (int, Dim)) else tuple(values)
    return values * count if len(values) == 1 else values


def convolution(
    ctx: Lowering,
    x: T,
    w: T,
    bias: T | None,
    stride: Extents | int,
    padding: Extents | int,
    dilation: Extents | int,
    groups: int,
    output_padding: Extents | int | None = None,
) -> T:
    """Convolution (transposed if `output_padding` is given) of a batch or of one sample, and the bias."""
    spatial = w.rank - 2
    single = x.rank == spatial + 1
    x = ctx.unsqueeze(x, 0) if single else x
    names = {"stride": stride, "padding": padding, "dilation": dilation}
    if output_padding is not None:
        names["output_padding"] = output_padding
    attrs = {name: per_axis(value, spatial) for name, value in names.items()}
    result = ctx.emit("conv" if output_padding is None else "conv_transpose", [x, w], groups=groups, **attrs)
    if bias is not None:
        result = ctx.pointwise("add", result, ctx.reshape(bias, (1, bias.shape[0], *([1] * spatial))), dtype=x.dtype)
    return ctx.reshape(result, result.shape[1:]) if single else result


@lowers("aten.convolution.default", "aten._convolution.default")
def _(
    ctx: Lowering,
    x: T,
    w: T,
    bias: T | None,
    stride: Extents,
    padding: Extents,
    dilation: Extents,
    transposed: bool,
    output_padding: Extents,
    groups: int,
    *flags: bool,
) -> T:
    return convolution(ctx, x, w, bias, stride, padding, dilation, groups, output_padding if transposed else None)


@lowers("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def _(
    ctx: Lowering,
    x: T,
    w: T,
    bias: T | None = None,
    stride: Extents = (1,),
    padding: Extents = (0,),
    dilation: Extents = (1,),
    groups: int = 1,
) -> T:
    return convolution(ctx, x, w, bias, stride, padding, dilation, groups)


@lowers("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def _(
    ctx: Lowering,
    x: T,
    w: T,
    bias: T | None = None,
    stride: Extents = (1,),
    padding: str = "valid",
    dilation: Extents = (1,),
    groups: int = 1,
) -> T:
    spatial = w.rank - 2
    if padding == "valid":
        return convolution(ctx, x, w, bias, stride, (0,), dilation, groups)
    spans = [d * (k - 1) for d, k in zip(per_axis(dilation, spatial), w.shape[2:], strict=True)]
    if any(span % 2 for span in spans):  # torch puts the odd element at the end
        after = (0,) * (x.rank - spatial) + tuple(span % 2 for span in spans)
        x = ctx.emit("pad", [x], before=(0,) * x.rank, after=after, value=0)
    return convolution(ctx, x, w, bias, stride, [span // 2 for span in spans], dilation, groups)


@lowers("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def _(
    ctx: Lowering,
    x: T,
    w: T,
    bias: T | None = None,
    stride: Extents = (1,),
    padding: Extents = (0,),
    output_padding: Extents = (0,),
    groups: int = 1,
    dilation: Extents = (1,),
) -> T:
    return convolution(ctx, x, w, bias, stride, padding, dilation, groups, output_padding)


@lowers("aten.convolution_backward.default")
def _(
    ctx: Lowering,
    grad: T,
    x: T,
    w: T,
    bias_sizes: Any,
    stride: Extents,
    padding: Extents,
    dilation: Extents,
    transposed: bool,
    output_padding: Extents,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[T | None, T | None, T | None]:
    """Gradients by x, w and bias: the opposite convolution, a convolution over the batch, a sum."""
    spatial = w.rank - 2
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    attrs = {name: per_axis(value, spatial) for name, value in window.items()}
    by_x = by_w = by_bias = None
    if wanted[0] and transposed:
        by_x = ctx.emit("conv", [grad, w], groups=groups, **attrs)
    elif wanted[0]:
        by_x = _input_gradient(ctx, grad, x, w, groups, attrs)
    if wanted[1]:
        first, second = (grad, x) if transposed else (x, grad)
        by_w = _weight_gradient(ctx, first, second, w, groups, attrs)
    if wanted[2]:
        by_bias = ctx.emit("sum", [grad], axes=(0, *range(2, grad.rank)), keepdim=False)
    return by_x, by_w, by_bias


def _input_gradient(ctx: Lowering, grad: T, x: T, w: T, groups: int, attrs: dict[str, tuple[Any, ...]]) -> T:
    """conv_transpose of the output's gradient, with the output padding that gives the extents of x."""
    extra = []
    for axis in range(w.rank - 2):
        stride, padding, dilation = (attrs[name][axis] for name in ("stride", "padding", "dilation"))
        reached = (grad.shape[2 + axis] - 1) * stride - 2 * padding + dilation * (w.shape[2 + axis] - 1) + 1
        extra.append(x.shape[2 + axis] - reached)
    return ctx.emit("conv_transpose", [grad, w], groups=groups, output_padding=tuple(extra), **attrs)


def _weight_gradient(ctx: Lowering, x: T, grad: T, w: T, groups: int, attrs: dict[str, tuple[Any, ...]]) -> T:
    """Per group: channels of x as the batch, the batch as channels, the gradient as the kernel.

    The stride of the forward pass dilates the gradient, its dilation is the stride; what
    lies beyond the kernel's extent is cut off.
    """
    swapped = {"stride": attrs["dilation"], "padding": attrs["padding"], "dilation": attrs["stride"]}
    inputs, outputs = x.shape[1] // groups, grad.shape[1] // groups
    parts = []
    for group in range(groups):
        images = swap_axes(ctx, take_slice(ctx, x, 1, group * inputs, inputs), 0, 1)
        kernels = swap_axes(ctx, take_slice(ctx, grad, 1, group * outputs, outputs), 0, 1)
        part = ctx.emit("conv", [images, kernels], groups=1, **swapped)
        for axis in range(2, w.rank):
            part = take_slice(ctx, part, axis, 0, w.shape[axis])
        parts.append(swap_axes(ctx, part, 0, 1))
    return parts[0] if groups == 1 else ctx.emit("cat", parts, axis=0)
