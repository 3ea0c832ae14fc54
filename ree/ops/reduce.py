"""Reductions along axes: each is one operator of kind "fold".

attrs axes: sorted tuple of the reduced axes; keepdim: whether they stay with extent 1.
The reduced index k runs over the reduced axes in C order, in the order of `FOLDS`, so a
result is a function of the reduced extents alone. Arithmetic is in the element type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ree.element import functions
from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.ops.spec import Attrs, operator_def
from ree.types import DType, TensorType, Type

At = Callable[[Value], Value]  # k -> the input's element


def _reduced_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    axes = attrs["axes"]
    if list(axes) != sorted(set(axes)) or any(not 0 <= a < ins[0].rank for a in axes):
        raise ShapeError(f"axes {axes} of {ins[0]}")
    kept = [1 if a in axes else n for a, n in enumerate(ins[0].shape) if attrs["keepdim"] or a not in axes]
    return TensorType(tuple(kept), ins[0].dtype)


def _bool_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return _reduced_type(ins, attrs).with_dtype(DType.BOOL)


def _index_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return _reduced_type(ins, attrs).with_dtype(DType.I64)


def _exponential_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if ins[0].dtype is DType.F64:
        raise DTypeError("logsumexp of float64 is not defined; cast to float32")
    return _reduced_type(ins, attrs)


def row(b: Builder, rank: int, attrs: Attrs) -> tuple[Value, At]:
    """The number of elements that one output element reduces, and how to load number k of them."""
    axes: tuple[int, ...] = attrs["axes"]
    extents = [b.extent(0, axis) for axis in axes]
    count = math.prod(extents, start=b.i64(1))
    kept = [a for a in range(rank) if a not in axes]

    def at(k: Value) -> Value:
        coordinates = [k] * rank
        for position, axis in enumerate(kept):
            coordinates[axis] = b.index(axis if attrs["keepdim"] else position)
        rest = k
        for number in reversed(range(len(axes))):
            first = number == 0
            coordinates[axes[number]] = rest if first else b.op("rem", rest, extents[number])
            rest = rest if first else rest / extents[number]
        return b.load(0, *coordinates)

    return count, at


def mean_of(b: Builder, count: Value, at: At) -> Value:
    """The sum divided by the count, each rounded once."""
    total = b.fold_sum(count, at)
    return total / b.convert(count, total.type)


def sum_of_squares(b: Builder, count: Value, at: At) -> Value:
    return b.fold_sum(count, lambda k: at(k) * at(k))


def centred(at: At, mean: Value) -> At:
    return lambda k: at(k) - mean


def _fold(name: str, doc: str, *, infer: Callable[..., TensorType] = _reduced_type) -> Callable[..., None]:
    """Define a fold operator by a function of (builder, count, at, attrs)."""

    def register(reduce: Callable[[Builder, Value, At, Attrs], Value]) -> None:
        @operator_def(name, kind="fold", infer=infer, doc=doc)
        def _define(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
            count, at = row(b, ins[0].rank, attrs)
            return reduce(b, count, at, attrs)

    return register


@_fold("sum", "sum (integers wrap)")
def _sum(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    is_float = b.inputs[0].dtype.is_float
    return b.fold_sum(count, at) if is_float else b.fold_isum(count, at)


@_fold("mean", "sum / count")
def _mean(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    return mean_of(b, count, at)


@_fold("prod", "product, in sequence (integers wrap)")
def _prod(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    one = b.const(1, b.inputs[0].dtype.element)
    return b.chain(count, [one], lambda k, product: [product * at(k)])[0]


@_fold("amax", "largest; NaN if any is NaN")
def _amax(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    return b.fold_max(count, at)


@_fold("amin", "smallest; NaN if any is NaN")
def _amin(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    return b.fold_min(count, at)


@_fold("any", "whether any is true", infer=_bool_type)
def _any(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    return b.fold_any(count, lambda k: b.convert(at(k), Type.BOOL))


@_fold("all", "whether all are true", infer=_bool_type)
def _all(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    return b.fold_all(count, lambda k: b.convert(at(k), Type.BOOL))


def _first_where(b: Builder, count: Value, at: At, best: Value) -> Value:
    """The first position whose element is `best`; NaN equals NaN."""

    def position(k: Value) -> Value:
        x = at(k)
        hit = x.eq(best)
        return b.select(hit | (x.ne(x) & best.ne(best)) if x.type.is_float else hit, k, count)

    return b.fold_min(count, position)


@_fold("argmax", "first position of the largest (or of the first NaN)", infer=_index_type)
def _argmax(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    return _first_where(b, count, at, b.fold_max(count, at))


@_fold("argmin", "first position of the smallest (or of the first NaN)", infer=_index_type)
def _argmin(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    return _first_where(b, count, at, b.fold_min(count, at))


@_fold("var", "sum of (x - mean)**2 / max(count - correction, 0)")
def _var(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    mean = mean_of(b, count, at)
    freedom = b.max(b.convert(count, mean.type) - float(attrs["correction"]), 0.0)
    return sum_of_squares(b, count, centred(at, mean)) / freedom


@_fold("sum_abs", "sum of |x|")
def _sum_abs(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    return b.fold_sum(count, lambda k: b.op("abs", at(k)))


@_fold("norm2", "square root of the sum of squares")
def _norm2(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    return b.sqrt(sum_of_squares(b, count, at))


@_fold("logsumexp", "log(sum of exp(x - m)) + m, m the largest (0 if that is infinite)", infer=_exponential_type)
def _logsumexp(b: Builder, count: Value, at: At, attrs: Attrs) -> Value:
    largest = b.fold_max(count, at)
    shift = b.select(b.op("abs", largest).eq(math.inf), 0.0, largest)
    total = b.fold_sum(count, lambda k: functions.exp(b, at(k) - shift))
    return functions.log(b, total) + shift
