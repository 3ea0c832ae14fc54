"""Resizing and sampling of images: nearest, linear and cubic, coordinates computed in f32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ree.dims import Dim
from ree.element.program import OUT, Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.conv import per_axis
from ree.ops.spec import Attrs, lowers, operator_def
from ree.types import TensorType, Type

_CUBIC = -0.75  # the parameter of Keys' kernel that torch uses


def _resize_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, size = ins[0], attrs["size"]
    if x.rank != len(size) + 2 or len(attrs["scales"]) != len(size):
        raise ShapeError(f"resizing {x} to {size}")
    return TensorType((*x.shape[:2], *size), x.dtype)


def _smooth_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if ins[0].dtype.element is not Type.F32:
        raise DTypeError(f"interpolation of {ins[0]}; float32, float16 and bfloat16 are defined")
    return _resize_type(ins, attrs)


def _ratio(b: Builder, axis: int, scale: float | None) -> Value:
    """Input places per output place: 1 / scale where the user gave it, else in / out."""
    if scale is not None and scale > 0:
        return b.f32(1.0 / scale)
    sizes = (b.convert(b.extent(source, 2 + axis), Type.F32) for source in (0, OUT))
    return next(sizes) / next(sizes)


@operator_def(
    "resize_nearest",
    kind="view",
    infer=_resize_type,
    doc="x at floor(i * ratio) (exact: floor((i + 0.5) * ratio)), "
    "at most the last place; ratio = 1 / scale or in / out, f32",
)
def _nearest(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c, *position = b.indices()
    place = []
    for axis, (p, scale) in enumerate(zip(position, attrs["scales"], strict=True)):
        i = b.convert(p, Type.F32)
        source = b.op("floor", (i + 0.5 if attrs["exact"] else i) * _ratio(b, axis, scale))
        place.append(b.min(b.convert(source, Type.I64), b.extent(0, 2 + axis) - 1))
    return b.load(0, n, c, *place)


def _source_place(b: Builder, axis: int, attrs: Attrs, clamp: bool) -> Value:
    """Where an output place lies in the input, f32: the corners or the outer edges of both coincide."""
    i = b.convert(b.index(2 + axis), Type.F32)
    if attrs["align_corners"]:
        last, places = (b.extent(source, 2 + axis) - 1 for source in (0, OUT))
        ratio = b.convert(last, Type.F32) / b.convert(b.max(places, 1), Type.F32)
        return i * b.select(places > 0, ratio, 0.0)
    place = _ratio(b, axis, attrs["scales"][axis]) * (i + 0.5) - 0.5
    return b.max(place, 0.0) if clamp else place


Taps = list[tuple[Value, Value]]  # (place, weight)


def _linear_taps(b: Builder, axis: int, attrs: Attrs) -> Taps:
    place = _source_place(b, axis, attrs, clamp=True)
    last = b.extent(0, 2 + axis) - 1
    low = b.min(b.convert(place, Type.I64), last)
    weight = b.min(b.max(place - b.convert(low, Type.F32), 0.0), 1.0)
    return [(low, 1.0 - weight), (b.min(low + 1, last), weight)]


def cubic_weights(b: Builder, t: Value) -> list[Value]:
    """Keys' cubic convolution weights of the four places around a fraction t."""

    def near(x: Value) -> Value:
        return ((x * (_CUBIC + 2.0) - (_CUBIC + 3.0)) * x) * x + 1.0

    def far(x: Value) -> Value:
        return ((x * _CUBIC - 5.0 * _CUBIC) * x + 8.0 * _CUBIC) * x - 4.0 * _CUBIC

    return [far(t + 1.0), near(t), near(1.0 - t), far((1.0 - t) + 1.0)]


def _cubic_taps(b: Builder, axis: int, attrs: Attrs) -> Taps:
    place = _source_place(b, axis, attrs, clamp=False)
    floor = b.op("floor", place)
    first = b.convert(floor, Type.I64) - 1
    last = b.extent(0, 2 + axis) - 1
    places = [b.min(b.max(first + k, 0), last) for k in range(4)]
    return list(zip(places, cubic_weights(b, place - floor), strict=True))


def _weighted(b: Builder, lead: Sequence[Value], taps: Sequence[Taps]) -> Value:
    """Sum over taps of weight * value, axis by axis from the last, taps ascending."""
    if not taps:
        return b.load(0, *lead)
    total = None
    for place, weight in taps[0]:
        term = _weighted(b, [*lead, place], taps[1:]) * weight
        total = term if total is None else total + term
    assert total is not None
    return total


@operator_def(
    "resize_linear",
    kind="any",
    infer=_smooth_type,
    doc="linear interpolation along every spatial axis; the last axis is summed first: w0 * x0 + w1 * x1",
)
def _linear(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    taps = [_linear_taps(b, axis, attrs) for axis in range(out.rank - 2)]
    return _weighted(b, b.indices()[:2], taps)


@operator_def(
    "resize_cubic",
    kind="any",
    infer=_smooth_type,
    doc="cubic convolution (a = -0.75) along every spatial axis, edge "
    "places repeated; the last axis is summed first, taps ascending",
)
def _cubic(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    taps = [_cubic_taps(b, axis, attrs) for axis in range(out.rank - 2)]
    return _weighted(b, b.indices()[:2], taps)


def _sample_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, grid = ins
    if x.dtype.element is not Type.F32 or x.dtype is not grid.dtype:
        raise DTypeError(f"sampling {x} at {grid}")
    if x.rank != 4 or grid.rank != 4 or grid.shape[3] != 2:
        raise ShapeError(f"sampling {x} at {grid}")
    return TensorType((*x.shape[:2], *grid.shape[1:3]), x.dtype)


def _grid_place(b: Builder, coordinate: Value, axis: int, attrs: Attrs) -> Value:
    """A coordinate in [-1, 1] as a place of an axis."""
    extent = b.convert(b.extent(0, axis), Type.F32)
    if attrs["align_corners"]:
        return (coordinate + 1.0) * 0.5 * (extent - 1.0)
    return ((coordinate + 1.0) * extent - 1.0) * 0.5


def _padded(b: Builder, place: Value, axis: int, attrs: Attrs) -> Value:
    """The place brought inside the axis as `padding` says ("zeros": left where it is)."""
    extent = b.convert(b.extent(0, axis), Type.F32)
    if attrs["padding"] == "reflection":
        place = _reflected(b, place, extent, attrs["align_corners"])
    if attrs["padding"] != "zeros":
        place = b.min(b.max(place, 0.0), extent - 1.0)
    return place


def _reflected(b: Builder, place: Value, extent: Value, corners: bool) -> Value:
    """The place folded into 0 .. extent-1 (corners) or -0.5 .. extent-0.5."""
    low = 0.0 if corners else -0.5
    span = extent - 1.0 if corners else extent
    away = b.op("abs", place - low)
    turns = b.op("floor", away / span)
    rest = away - turns * span
    odd = (turns * 0.5).ne(b.op("floor", turns * 0.5))
    folded = b.select(odd, span - rest, rest) + low
    return b.select(span > 0.0, folded, 0.0)


def _sampled(b: Builder, n: Value, c: Value, row: Value, col: Value) -> Value:
    """x[n, c, row, col] at whole f32 places, 0 outside x."""
    height, width = (b.convert(b.extent(0, axis), Type.F32) for axis in (2, 3))
    inside = (row >= 0.0) & (row < height) & (col >= 0.0) & (col < width)
    return b.load_if(inside, 0.0, 0, n, c, b.convert(row, Type.I64), b.convert(col, Type.I64))


def _sample_cubic(b: Builder, n: Value, c: Value, row: Value, col: Value, attrs: Attrs) -> Value:
    """Four rows of four places; padding is applied to each place on its own."""
    top, left = b.op("floor", row), b.op("floor", col)
    row_weights, col_weights = cubic_weights(b, row - top), cubic_weights(b, col - left)
    total = b.f32(0.0)
    for i, row_weight in enumerate(row_weights):
        line = b.f32(0.0)
        for j, col_weight in enumerate(col_weights):
            place = _padded(b, top + float(i - 1), 2, attrs), _padded(b, left + float(j - 1), 3, attrs)
            line = line + _sampled(b, n, c, *place) * col_weight
        total = total + line * row_weight
    return total


@operator_def(
    "grid_sample",
    kind="any",
    infer=_sample_type,
    doc="x at the places that grid gives in [-1, 1] as (column, row); "
    "mode nearest, bilinear (nw, ne, sw, se added in order) or bicubic; padding zeros, border or reflection",
)
def _grid_sample(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    n, c, i, j = b.indices()
    col = _grid_place(b, b.load(1, n, i, j, b.i64(0)), 3, attrs)
    row = _grid_place(b, b.load(1, n, i, j, b.i64(1)), 2, attrs)
    if attrs["mode"] == "bicubic":
        return _sample_cubic(b, n, c, row, col, attrs)
    row, col = _padded(b, row, 2, attrs), _padded(b, col, 3, attrs)
    if attrs["mode"] == "nearest":
        return _sampled(b, n, c, b.op("rint", row), b.op("rint", col))
    top, left = b.op("floor", row), b.op("floor", col)
    bottom, right = top + 1.0, left + 1.0
    total = _sampled(b, n, c, top, left) * ((right - col) * (bottom - row))
    total = total + _sampled(b, n, c, top, right) * ((col - left) * (bottom - row))
    total = total + _sampled(b, n, c, bottom, left) * ((right - col) * (row - top))
    return total + _sampled(b, n, c, bottom, right) * ((col - left) * (row - top))


# -- lowerings ------------------------------------------------------------------------------


def _scales(values: Sequence[float | None] | None, spatial: int) -> tuple[float | None, ...]:
    given = tuple(values or ()) or (None,) * spatial
    return tuple(None if v is None else float(v) for v in per_axis(given, spatial))  # type: ignore[arg-type]


def _resize(ctx: Lowering, op: str, x: T, scales: Sequence[float | None] | None, **attrs: Any) -> T:
    """To the extents that torch has found, by the user's scale factors where there are any."""
    spatial = x.rank - 2
    return ctx.emit(op, [x], size=ctx.out.shape[2:], scales=_scales(scales, spatial), **attrs)


def _nearest_rules(spatial: int) -> None:
    for prefix, exact in (("upsample_nearest", False), ("_upsample_nearest_exact", True)):

        @lowers(f"aten.{prefix}{spatial}d.default")
        def _(
            ctx: Lowering, x: T, size: Sequence[int | Dim], *scales: float | None, exact: bool = exact, **named: float
        ) -> T:
            return _resize(ctx, "resize_nearest", x, scales or _named_scales(named), exact=exact)

        @lowers(f"aten.{prefix}{spatial}d.vec")
        def _(ctx: Lowering, x: T, size: Any, factors: Sequence[float] | None = None, exact: bool = exact) -> T:
            return _resize(ctx, "resize_nearest", x, factors, exact=exact)


def _named_scales(named: dict[str, float]) -> tuple[float | None, ...] | None:
    """scales_d, scales_h, scales_w (or scales) given by name, in axis order."""
    found = tuple(named[k] for k in ("scales", "scales_d", "scales_h", "scales_w") if k in named)
    return found or None


def _smooth_rules(name: str, op: str) -> None:
    @lowers(f"aten.{name}.default")
    def _(ctx: Lowering, x: T, size: Any, align_corners: bool, *scales: float | None, **named: float) -> T:
        return _resize(ctx, op, x, scales or _named_scales(named), align_corners=bool(align_corners))

    @lowers(f"aten.{name}.vec")
    def _(ctx: Lowering, x: T, size: Any, align_corners: bool, factors: Sequence[float] | None = None) -> T:
        return _resize(ctx, op, x, factors, align_corners=bool(align_corners))


for _spatial in (1, 2, 3):
    _nearest_rules(_spatial)
for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"):
    _smooth_rules(_name, "resize_linear")
_smooth_rules("upsample_bicubic2d", "resize_cubic")


@lowers("aten.grid_sampler_2d.default", "aten.grid_sampler.default")
def _(ctx: Lowering, x: T, grid: T, mode: int, padding: int, align_corners: bool) -> T:
    if x.rank != 4:
        raise ctx.unsupported("grid_sample of 5-d input", "sample the slices one by one")
    names = {"mode": ("bilinear", "nearest", "bicubic")[mode], "padding": ("zeros", "border", "reflection")[padding]}
    return ctx.emit("grid_sample", [x, grid], align_corners=bool(align_corners), **names)
