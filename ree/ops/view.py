"""Views: operators that only say where to read.

The planner turns most of them into strides (ree/plan); those that it cannot are copied by
a kernel printed from the definitions here.
"""

from __future__ import annotations

from collections.abc import Sequence

from ree import dims
from ree.dims import Dim
from ree.element.program import OUT, Builder, Value
from ree.errors import ShapeError
from ree.ops.spec import Attrs, operator_def
from ree.types import TensorType


def _reshape_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return TensorType(tuple(attrs["shape"]), ins[0].dtype)


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


@operator_def("slice", kind="view", infer=_slice_type, doc="elements start, start + step, ... (`length` of them) of an axis")
def _slice(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    coordinates = b.indices()
    axis = attrs["axis"]
    coordinates[axis] = coordinates[axis] * int(attrs["step"]) + int(attrs["start"])
    return b.load(0, *coordinates)


def clamp_slice(extent: int | Dim, start: int | Dim | None, end: int | Dim | None, step: int) -> tuple[int | Dim, int | Dim]:
    """Python's slice rule for a positive step: (start, length)."""

    def clamp(value: int | Dim) -> int | Dim:
        if isinstance(value, int) and value < 0:
            value = value + extent  # type: ignore[operator]
        if isinstance(value, int) and value >= 1 << 62:
            return extent
        return dims.maximum(0, dims.minimum(value, extent)) if value != 0 else 0

    first = clamp(0 if start is None else start)
    last = clamp((1 << 62) if end is None else end)
    span = last - first
    length = dims.floordiv(span + (step - 1), step) if step != 1 else span
    return first, length if isinstance(length, Dim) else max(0, length)
