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


def _quantise_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if any(t.dtype is not DType.F32 for t in ins):
        raise DTypeError(f"int8_quantise of {ins[0]} by {ins[1]}; float32 is defined")
    return ins[0].with_dtype(DType.I8)


@operator_def(
    "int8_quantise",
    infer=_quantise_type,
    doc="x / scale to the nearest integer, ties to even, within -127..127; 0 if the scale is 0, and for NaN",
)
def _int8_quantise(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    x, scale = loads(b)
    steps = b.op("rint", b.select(scale.eq(0.0), 0.0, x / scale))
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
    largest = ctx.emit("amax", [ctx.emit("abs", [x])], axes=(1,), keepdim=True)
    row_scale = ctx.pointwise("div", largest, ctx.full((), LARGEST, DType.F32), dtype=DType.F32)
    rows = ctx.emit("int8_quantise", [x, ctx.broadcast(row_scale, x.shape)])
    sums = ctx.emit("matmul", [rows, ctx.permute(matrix, (1, 0))], out=DType.I32.value)
    scale_of = [ctx.broadcast(t, sums.shape) for t in (row_scale, ctx.unsqueeze(scales, 0))]
    return ctx.emit("int8_dequantise", [sums, *scale_of])
