"""Matrix products: one operator, and every ATen call that is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ree.dims import Dim
from ree.element.program import Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.spec import Attrs, lowers, operator_def
from ree.ops.view import product
from ree.types import DType, TensorType, Type


def contract(b: Builder, n: Value, pair: Callable[[Value], tuple[Value, Value]], type: Type) -> Value:
    """Sum over k < n of a(k) * b(k): `dot` in f32, exact in integers, one FMA chain in f64."""
    if type is Type.F32:
        return b.fold_dot(n, pair)
    if type is Type.F64:
        return b.chain(n, [b.f64(0.0)], lambda k, total: [b.fma(*pair(k), total)])[0]

    def term(k: Value) -> Value:
        left, right = pair(k)
        return left * right

    return b.fold_isum(n, term)


_MIXED = frozenset({DType.F32, DType.BF16, DType.F16})
_WIDENED = {"f32": _MIXED, "i32": frozenset({DType.I8})}  # attribute `out` -> dtypes that the operands may have


def _matmul_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    left, right = ins
    dtype = _matmul_dtype(left, right, attrs)
    fits = left.rank == right.rank >= 2 and all(
        a == b or isinstance(a, Dim) or isinstance(b, Dim)
        for a, b in zip((*left.shape[:-2], left.shape[-1]), right.shape[:-1], strict=True)
    )
    if not fits:
        raise ShapeError(f"matmul of {left} and {right}")
    return TensorType((*left.shape[:-1], right.shape[-1]), dtype)


def _matmul_dtype(left: TensorType, right: TensorType, attrs: Attrs) -> DType:
    """The operands' own dtype, or the wider one that `out` names."""
    if "out" not in attrs:
        if left.dtype is not right.dtype or left.dtype is DType.BOOL:
            raise DTypeError(f"matmul of {left} and {right}: without `out` both have one dtype, and not bool")
        return left.dtype
    out = attrs["out"]
    if not isinstance(out, str) or out not in _WIDENED:
        raise DTypeError(f"matmul into {out!r}; `out` is one of {', '.join(_WIDENED)}")
    if not {left.dtype, right.dtype} <= _WIDENED[out]:
        allowed = ", ".join(dtype for dtype in DType if dtype in _WIDENED[out])
        raise DTypeError(f"matmul of {left} and {right} into {out}: operands of {allowed} are defined")
    return DType(out)


@operator_def(
    "matmul",
    kind="matmul",
    infer=_matmul_type,
    doc="out[.., m, n] = dot over k of a[.., m, k] and b[.., k, n]; `out` f32 of f32, bf16, f16, `out` i32 of i8",
)
def _matmul(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    *batch, m, n = b.indices()

    def pair(k: Value) -> tuple[Value, Value]:
        return b.load(0, *batch, m, k), b.load(1, *batch, k, n)

    return contract(b, b.extent(0, ins[0].rank - 1), pair, out.dtype.element)


# -- lowerings ------------------------------------------------------------------------------


def widened(ctx: Lowering, left: T, right: T) -> tuple[T, T]:
    """The operands of a product; floats of 16 bits in f32, in which the product is defined.

    A constant matrix stays as it is: the kernel widens its elements as it reads them.
    """
    if left.dtype is not right.dtype or left.dtype not in (DType.BF16, DType.F16):
        return left, right
    stays = right.rank <= 2 and ctx.is_constant(right)
    return ctx.cast(left, DType.F32), right if stays else ctx.cast(right, DType.F32)


def multiply(ctx: Lowering, left: T, right: T) -> T:
    """The `matmul` node of operands that were widened; its result is to be rounded."""
    attrs = {} if left.dtype is right.dtype else {"out": DType.F32.value}
    return ctx.emit("matmul", [left, right], **attrs)


def matmul(ctx: Lowering, left: T, right: T) -> T:
    """torch.matmul for operands of any rank >= 1 and equal dtype."""
    dtype = left.dtype
    if left.rank == 1 and right.rank == 1:
        shape: tuple[int | Dim, ...] = ()
    elif left.rank == 1:
        shape = (*right.shape[:-2], right.shape[-1])
    elif right.rank == 1:
        shape = left.shape[:-1]
    else:
        shape = (*ctx.broadcast_shape(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1])
    left, right = widened(ctx, left, right)  # before any reshape, after which no kernel could take the cast in
    left = ctx.unsqueeze(left, 0) if left.rank == 1 else left
    right = ctx.unsqueeze(right, 1) if right.rank == 1 else right
    if right.rank == 2:  # one matrix for all rows: the batch axes are rows
        left = ctx.reshape(left, (product(left.shape[:-1]), left.shape[-1]))
    else:
        batch = ctx.broadcast_shape(left.shape[:-2], right.shape[:-2])
        left = ctx.broadcast(left, (*batch, *left.shape[-2:]))
        right = ctx.broadcast(right, (*batch, *right.shape[-2:]))
    return ctx.cast(ctx.reshape(multiply(ctx, left, right), shape), dtype)


def add_bias(ctx: Lowering, x: T, bias: T | None) -> T:
    """x + bias, the bias broadcast from the last axes on."""
    return x if bias is None else ctx.pointwise("add", x, bias, dtype=x.dtype)


def scaled(ctx: Lowering, x: T, factor: int | float | bool) -> T:
    """x * factor in the dtype of x; nothing for a factor of 1."""
    return x if factor == 1 else ctx.pointwise("mul", x, factor, dtype=x.dtype)


def accumulate(ctx: Lowering, x: T, product: T, beta: int | float, alpha: int | float) -> T:
    """beta * x + alpha * product; a beta of 0 leaves x out, even its NaNs, as BLAS has it."""
    product = scaled(ctx, product, alpha)
    if beta == 0:
        return product
    return ctx.pointwise("add", product, scaled(ctx, x, beta), dtype=product.dtype)


@lowers("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default")
def _(ctx: Lowering, left: T, right: T) -> T:
    return matmul(ctx, left, right)


@lowers("aten.linear.default")
def _(ctx: Lowering, x: T, weight: T, bias: T | None = None) -> T:
    transposed = ctx.permute(weight, (1, 0)) if weight.rank == 2 else weight
    return add_bias(ctx, matmul(ctx, x, transposed), bias)


@lowers("aten.dot.default", "aten.vdot.default")
def _(ctx: Lowering, left: T, right: T) -> T:
    return matmul(ctx, left, right)


@lowers("aten.inner.default")
def _(ctx: Lowering, left: T, right: T) -> T:
    if left.rank == 0 or right.rank == 0:
        return ctx.pointwise("mul", left, right)
    rows = ctx.reshape(right, (product(right.shape[:-1]), right.shape[-1]))
    result = matmul(ctx, left, ctx.permute(rows, (1, 0)))
    return ctx.reshape(result, (*left.shape[:-1], *right.shape[:-1]))


@lowers("aten.outer.default", "aten.ger.default")
def _(ctx: Lowering, left: T, right: T) -> T:
    return ctx.pointwise("mul", ctx.unsqueeze(left, 1), ctx.unsqueeze(right, 0))


@lowers("aten.addmm.default", "aten.baddbmm.default", "aten.addmv.default")
def _(ctx: Lowering, x: T, left: T, right: T, *, beta: int | float = 1, alpha: int | float = 1) -> T:
    return accumulate(ctx, x, matmul(ctx, left, right), beta, alpha)


@lowers("aten.addbmm.default")
def _(ctx: Lowering, x: T, left: T, right: T, *, beta: int | float = 1, alpha: int | float = 1) -> T:
    """The sum over the batch is one contraction of length batch * k."""
    dtype = left.dtype
    left, right = widened(ctx, left, right)
    batch, rows, inner = left.shape
    wide = ctx.reshape(ctx.permute(left, (1, 0, 2)), (rows, batch * inner))
    tall = ctx.reshape(right, (batch * inner, right.shape[2]))
    return accumulate(ctx, x, ctx.cast(multiply(ctx, wide, tall), dtype), beta, alpha)


@lowers("aten.addr.default")
def _(ctx: Lowering, x: T, left: T, right: T, *, beta: int | float = 1, alpha: int | float = 1) -> T:
    outer = ctx.pointwise("mul", ctx.unsqueeze(left, 1), ctx.unsqueeze(right, 0))
    return accumulate(ctx, x, outer, beta, alpha)


@lowers("aten._int_mm.default")
def _(ctx: Lowering, left: T, right: T) -> T:
    return ctx.emit("matmul", [ctx.cast(left, DType.I32), ctx.cast(right, DType.I32)])


@lowers("aten._trilinear.default")
def _(
    ctx: Lowering,
    a: T,
    b: T,
    c: T,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    axes: Sequence[int],
    unroll: int = 1,
) -> T:
    """Sum over `axes` of a * b * c, each with the axes of `expand` inserted."""
    product_of: T | None = None
    for factor, expand in ((a, expand_a), (b, expand_b), (c, expand_c)):
        for axis in expand:
            factor = ctx.unsqueeze(factor, axis)
        product_of = factor if product_of is None else ctx.pointwise("mul", product_of, factor, dtype=a.dtype)
    assert product_of is not None
    return ctx.emit("sum", [product_of], axes=tuple(sorted(axes)), keepdim=False)
