"""Rounding of rows to int8 and back, around exact integer products (ree/lm/quantise.py says which).

A scheme without zero points: x is about q * scale with q in -127..127, a scale for each row of activations and for each
column of a matrix. So sum(x w) is about (sum(q r)) * (row scale * column scale), where the sum of integers is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

from ree.element.program import Builder, Value
from ree.errors import DTypeError
from ree.lower import Lowering, T
from ree.ops.pointwise import loads
from ree.ops.spec import Attrs, operator_def
from ree.types import DType, TensorType, Type

LARGEST = 127


def _check_rows(name: str, ins: Sequence[TensorType]) -> TensorType:
    (x,) = ins
    if x.dtype is not DType.F32 or not x.rank:
        raise DTypeError(f"{name} of {x}; rows of float32 are defined")
    return x


def _scale_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x = _check_rows("int8_scale", ins)
    return TensorType((*x.shape[:-1], 1), x.dtype)


def _quantise_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return _check_rows("int8_quantise", ins).with_dtype(DType.I8)


def _scale(b: Builder, ins: Sequence[TensorType], row: Sequence[Value]) -> Value:
    """The largest magnitude of a row / 127."""
    largest = b.fold_max(b.extent(0, ins[0].rank - 1), lambda k: b.op("abs", b.load(0, *row, k)))
    return b.max(largest, 0.0) / float(LARGEST)  # an empty row's maximum is -inf


@operator_def("int8_scale", kind="fold", infer=_scale_type, doc="per row: max |x| / 127, keeping the axis")
def _int8_scale(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return _scale(b, ins, b.indices()[:-1])


@operator_def(
    "int8_quantise",
    kind="fold",
    infer=_quantise_type,
    doc="per row: x / int8_scale to the nearest integer, ties to even; 0 if the scale is 0, and for NaN",
)
def _int8_quantise(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    *row, k = b.indices()
    scale = _scale(b, ins, row)
    steps = b.op("rint", b.select(scale.eq(0.0), 0.0, b.load(0, *row, k) / scale))
    return b.convert(b.max(b.min(steps, float(LARGEST)), float(-LARGEST)), Type.I32)


def _dequantise_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    sums, *scales = ins
    if sums.dtype is not DType.I32 or any(t.dtype is not DType.F32 for t in scales):
        raise DTypeError(f"int8_dequantise of {sums} by {', '.join(str(t) for t in scales)}")
    return sums.with_dtype(DType.F32)


@operator_def(
    "int8_dequantise",
    infer=_dequantise_type,
    doc="f32(sum) * (row scale * column scale), each operation rounded to nearest",
)
def _int8_dequantise(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    sums, row_scale, column_scale = loads(b)
    return b.convert(sums, Type.F32) * (row_scale * column_scale)


def product(ctx: Lowering, x: T, matrix: T, scales: T) -> T:
    """f32 [m, n]: x f32 [m, k], rounded to int8 row by row, times a matrix i8 [n, k] with scales f32 [n]."""
    row_scale, rows = ctx.emit("int8_scale", [x]), ctx.emit("int8_quantise", [x])
    sums = ctx.emit("matmul", [rows, ctx.permute(matrix, (1, 0))], out=DType.I32.value)
    scale_of = [ctx.broadcast(t, sums.shape) for t in (row_scale, ctx.unsqueeze(scales, 0))]
    return ctx.emit("int8_dequantise", [sums, *scale_of])
