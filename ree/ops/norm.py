"""Normalisations along rows, each one operator of kind "fold" over the last axis.

mean = sum / n and var = sum((x - mean)**2) / n as in reduce.py, rstd = rsqrt(var + eps)
rounded once. The affine step is one FMA: one rounding fewer than torch's, and a constant
row (x = mean) still gives exactly the bias.
"""

from __future__ import annotations

from collections.abc import Sequence

from ree.element import functions
from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.ops.reduce import At, centred, mean_of, sum_of_squares
from ree.ops.spec import Attrs, operator_def
from ree.types import DType, TensorType, Type


def _row_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    """x [..., n], and vectors [n] of its dtype."""
    x = ins[0]
    if x.rank == 0 or any(v.rank != 1 or v.dtype is not x.dtype for v in ins[1:]) or not x.dtype.is_float:
        raise ShapeError(f"a row operator on {[str(t) for t in ins]}")
    return x


def _exponential_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    """exp and log are defined on f32 (and narrower)."""
    if ins[0].dtype is DType.F64:
        raise DTypeError("softmax of float64 is not defined; cast to float32")
    return _row_type(ins, attrs)


def rsqrt(b: Builder, x: Value) -> Value:
    """1 / sqrt(x): f32 rounded once; f64 in two roundings."""
    return functions.rsqrt(b, x) if x.type is Type.F32 else 1.0 / b.sqrt(x)


def _last_axis(b: Builder) -> tuple[Value, At, Value]:
    """Length of the row, how to load its element k, and the element that this output stands for."""
    *outer, here = b.indices()
    return b.extent(0, b.rank - 1), lambda k: b.load(0, *outer, k), b.load(0, *outer, here)


def _optional_vectors(b: Builder, attrs: Attrs) -> tuple[Value | None, Value | None]:
    """This column's weight and bias, where the call has them (inputs in that order)."""
    here, source = b.index(b.rank - 1), 1
    weight = b.load(source, here) if attrs["has_weight"] else None
    source += 1 if attrs["has_weight"] else 0
    return weight, b.load(source, here) if attrs["has_bias"] else None


@operator_def(
    "layer_norm", kind="fold", infer=_row_type,
    doc="fma((x - mean) * rstd, weight, bias) along the last axis; inputs x, weight, bias as has_weight, has_bias say",
)  # fmt: skip
def _layer_norm(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    count, at, x = _last_axis(b)
    mean = mean_of(b, count, at)
    var = sum_of_squares(b, count, centred(at, mean)) / b.convert(count, mean.type)
    scaled = (x - mean) * rsqrt(b, var + float(attrs["eps"]))
    weight, bias = _optional_vectors(b, attrs)
    if weight is None or bias is None:
        only = weight if weight is not None else bias
        return scaled if only is None else scaled * only if weight is not None else scaled + only
    return b.fma(scaled, weight, bias)


@operator_def(
    "rms_norm", kind="fold", infer=_row_type,
    doc="x * rsqrt(mean(x * x) + eps) * weight along the last axis; weight as has_weight says",
)  # fmt: skip
def _rms_norm(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    count, at, x = _last_axis(b)
    square = sum_of_squares(b, count, at)
    scaled = x * rsqrt(b, square / b.convert(count, square.type) + float(attrs["eps"]))
    return scaled * b.load(1, b.index(b.rank - 1)) if attrs["has_weight"] else scaled


@operator_def("softmax", kind="fold", infer=_exponential_type, doc="exp(x - max) / sum of them along the last axis")
def _softmax(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    count, at, x = _last_axis(b)
    largest = b.fold_max(count, at)
    total = b.fold_sum(count, lambda k: functions.exp(b, at(k) - largest))
    return functions.exp(b, x - largest) / total


@operator_def(
    "log_softmax", kind="fold", infer=_exponential_type, doc="(x - max) - log(sum of exp(x - max)) along the last axis"
)
def _log_softmax(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    count, at, x = _last_axis(b)
    largest = b.fold_max(count, at)
    total = b.fold_sum(count, lambda k: functions.exp(b, at(k) - largest))
    return (x - largest) - functions.log(b, total)
