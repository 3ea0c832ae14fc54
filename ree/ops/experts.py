"""Mixtures of experts: products where each row chooses its matrix among several."""

from __future__ import annotations

from collections.abc import Sequence

from ree.dims import Dim
from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.spec import Attrs, lowers, operator_def
from ree.types import DType, TensorType, Type


def _expert_matmul_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    x, w, expert = ins
    text = f"expert_matmul of {x}, {w} and experts {expert}"
    if x.dtype is not DType.F32 or w.dtype.element is not Type.F32 or expert.dtype is not DType.I64:
        raise DTypeError(f"{text}; rows in float32 and experts in int64 are defined")
    if (x.rank, w.rank, expert.rank) != (2, 3, 1):
        raise ShapeError(text)
    pairs = ((x.shape[0], expert.shape[0]), (x.shape[1], w.shape[2]))
    if any(a != b for a, b in pairs if not isinstance(a, Dim) and not isinstance(b, Dim)):
        raise ShapeError(text)
    return TensorType((x.shape[0], w.shape[1]), DType.F32)


@operator_def(
    "expert_matmul",
    kind="experts",
    infer=_expert_matmul_type,
    doc="out[s, o] = dot over i of x[s, i] and w[e, o, i], with e = expert[s]; the run fails if e is no expert",
)
def _expert_matmul(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    row, column = b.indices()
    expert = b.bound(b.load(2, row), b.extent(1, 0))
    return b.fold_dot(b.extent(0, 1), lambda i: (b.load(0, row, i), b.load(1, expert, column, i)))


# -- lowerings ------------------------------------------------------------------------------


@lowers("ree.expert_linear.default")
def _(ctx: Lowering, x: T, weight: T, expert: T) -> T:
    """Rows of 16 bits are widened, and so are the weights as they are read; the result is rounded once."""
    return ctx.cast(ctx.emit("expert_matmul", [ctx.cast(x, DType.F32), weight, expert]), x.dtype)
