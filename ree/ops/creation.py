"""Operators that make tensors from nothing, and the ATen constructors that become them.

Uninitialised tensors (aten.empty and friends) are zeros: a value that nobody chose must
not differ between runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ree.dims import Dim
from ree.element.program import Builder, Value
from ree.ops.arithmetic import Number, select
from ree.ops.spec import Attrs, lowers, operator_def
from ree.types import DType, TensorType, Type

if TYPE_CHECKING:
    from ree.lower import Lowering, T

Shape = Sequence[int | Dim]


def _stated_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    return TensorType(tuple(attrs["shape"]), DType(attrs["dtype"]))


@operator_def("full", infer=_stated_type, doc="every element is `value`")
def _full(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return b.const(attrs["value"], out.dtype.element)


@operator_def(
    "iota",
    kind="any",
    infer=_stated_type,
    doc="element i is start + i * step (integers wrap; floats in f64, rounded once)",
)
def _iota(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    type = Type.F64 if out.dtype.is_float else Type.I64
    position = b.convert(b.index(0), type)
    step, start = (b.const(attrs[name], type) for name in ("step", "start"))
    value = b.fma(position, step, start) if type is Type.F64 else position * step + start
    return b.convert(value, out.dtype.element)


@operator_def(
    "linspace", kind="any", infer=_stated_type, doc="evenly spaced from start to end, both exact, in f64, rounded once"
)
def _linspace(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    """Each half counts from its own end, so that both ends are exact."""
    start, end = b.f64(float(attrs["start"])), b.f64(float(attrs["end"]))
    count = b.extent(-1, 0)
    intervals = b.convert(b.op("max", count - 1, 1), Type.F64)
    step = (end - start) / intervals
    i = b.index(0)
    up = b.fma(step, b.convert(i, Type.F64), start)
    down = b.fma(-step, b.convert(count - 1 - i, Type.F64), end)
    return b.convert(b.select(i < count / 2, up, b.select(count.eq(1), start, down)), out.dtype.element)


def arange(ctx: Lowering, length: int | Dim, dtype: DType, start: Number | Dim = 0, step: Number | Dim = 1) -> T:
    """start, start + step, ... as a vector."""
    return ctx.emit("iota", shape=(length,), dtype=dtype.value, start=start, step=step)


# -- lowering ---------------------------------------------------------------------------


def _filled(value: Number, *targets: str) -> None:
    """Rule: the call's output type says everything but the value."""

    @lowers(*(f"aten.{target}" for target in targets))
    def _rule(ctx: Lowering, *_: object, **__: object) -> T:
        return ctx.full(ctx.out.shape, value, ctx.out.dtype)


_filled(
    0, "zeros.default", "zeros_like.default", "new_zeros.default", "empty.memory_format", "empty_like.default",
    "empty_strided.default", "empty_permuted.default", "new_empty.default", "new_empty_strided.default", "zero.default",
)  # fmt: skip
_filled(1, "ones.default", "ones_like.default", "new_ones.default")


@lowers(
    "aten.full.default", "aten.full_like.default", "aten.new_full.default", "aten.fill.Scalar", "aten.fill.Tensor",
)  # fmt: skip
def _full_rule(ctx: Lowering, like: object, value: T | Number, *rest: Number, **_: object) -> T:
    if rest:  # new_full(self, size, value)
        value = rest[0]
    if isinstance(value, int | float | Dim):
        return ctx.full(ctx.out.shape, value, ctx.out.dtype)  # type: ignore[arg-type]
    return ctx.broadcast(ctx.cast(value, ctx.out.dtype), ctx.out.shape)


@lowers("aten.scalar_tensor.default")
def _scalar_tensor(ctx: Lowering, value: Number, dtype: DType | None = None) -> T:
    return ctx.full((), value, ctx.out.dtype)


@lowers("aten.arange.default")
def _arange_end(ctx: Lowering, end: Number | Dim, dtype: DType | None = None) -> T:
    return arange(ctx, ctx.out.shape[0], ctx.out.dtype)


@lowers("aten.arange.start", "aten.arange.start_step")
def _arange(
    ctx: Lowering, start: Number | Dim, end: Number | Dim, step: Number | Dim = 1, dtype: DType | None = None
) -> T:
    return arange(ctx, ctx.out.shape[0], ctx.out.dtype, start, step)


@lowers("aten.linspace.default")
def _linspace_rule(ctx: Lowering, start: Number, end: Number, steps: int, dtype: DType | None = None) -> T:
    return ctx.emit("linspace", shape=ctx.out.shape, dtype=ctx.out.dtype.value, start=start, end=end)


def _rows_and_columns(ctx: Lowering, rows: int | Dim, columns: int | Dim) -> tuple[T, T]:
    """Row numbers as [rows, 1] and column numbers as [columns]."""
    return ctx.reshape(arange(ctx, rows, DType.I64), (rows, 1)), arange(ctx, columns, DType.I64)


@lowers("aten.eye.default", "aten.eye.m")
def _eye(ctx: Lowering, *_: object, **__: object) -> T:
    row, column = _rows_and_columns(ctx, *ctx.out.shape)
    return ctx.cast(ctx.pointwise("eq", row, column, dtype=DType.I64), ctx.out.dtype)


def _triangle(target: str, op: str) -> None:
    """tril keeps column - row <= diagonal, triu keeps >=."""

    @lowers(f"aten.{target}.default")
    def _rule(ctx: Lowering, x: T, diagonal: int = 0) -> T:
        row, column = _rows_and_columns(ctx, *x.shape[-2:])
        offset = ctx.pointwise("sub", column, row, dtype=DType.I64)
        return select(ctx, ctx.pointwise(op, offset, diagonal, dtype=DType.I64), x, 0)


_triangle("tril", "le")
_triangle("triu", "ge")
