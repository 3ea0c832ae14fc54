"""Elementary functions and smooth activations: operators and their ATen lowerings.

Float32, float16 and bfloat16 tensors are evaluated in binary64 and rounded once to float32
(then to the storage dtype); integer and bool tensors become float32 first, as in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ree.element import functions
from ree.element.program import Builder, Value
from ree.ops.spec import Attrs, lowers, operator_def
from ree.types import DType, TensorType, Type

if TYPE_CHECKING:
    from ree.lower import Lowering, T

Number = int | float | bool
_ADVICE = "use .float(): elementary functions are defined for float32 and narrower tensors"

_DOCS = {
    "exp": "e**x",
    "exp2": "2**x",
    "expm1": "e**x - 1",
    "log": "natural logarithm",
    "log2": "logarithm to base 2",
    "log10": "logarithm to base 10",
    "log1p": "log(1 + x)",
    "sin": "sine",
    "cos": "cosine",
    "tan": "tangent",
    "asin": "arc sine",
    "acos": "arc cosine",
    "atan": "arc tangent",
    "sinh": "hyperbolic sine",
    "cosh": "hyperbolic cosine",
    "tanh": "hyperbolic tangent",
    "asinh": "inverse hyperbolic sine",
    "acosh": "inverse hyperbolic cosine",
    "atanh": "inverse hyperbolic tangent",
    "erf": "error function",
    "erfc": "1 - erf(x)",
    "sigmoid": "1 / (1 + e**-x)",
    "rsqrt": "1 / sqrt(x)",
    "gelu": "x Phi(x)",
    "gelu_tanh": "x (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))) / 2",
    "silu": "x sigmoid(x)",
    "mish": "x tanh(log(1 + e**x))",
    "log_sigmoid": "log(sigmoid(x))",
}


def _float_operand(ctx: Lowering, x: T) -> T:
    """x in a dtype in which these functions are defined."""
    if x.dtype is DType.F64:
        raise ctx.unsupported("float64 in an elementary function", _ADVICE)
    return x if x.dtype.is_float else ctx.cast(x, DType.F32)


# -- one argument -----------------------------------------------------------------------------


def _define_univariate(name: str) -> None:
    function = getattr(functions, name)

    @operator_def(name, doc=_DOCS[name] + ", rounded once")
    def _(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
        return function(b, b.load(0, *b.indices()))


def _lower_univariate(name: str) -> Callable[[Lowering, T], T]:
    def rule(ctx: Lowering, x: T) -> T:
        return ctx.emit(name, [_float_operand(ctx, x)])

    return rule


_WITH_OPTIONS = ("gelu", "gelu_tanh", "log_sigmoid")

for _name in functions.UNIVARIATE:
    _define_univariate(_name)
    if _name not in _WITH_OPTIONS:
        lowers(f"aten.{_name}.default")(_lower_univariate(_name))


@lowers("aten.gelu.default")
def _(ctx: Lowering, x: T, *, approximate: str = "none") -> T:
    return ctx.emit("gelu_tanh" if approximate == "tanh" else "gelu", [_float_operand(ctx, x)])


@lowers("aten.log_sigmoid_forward.default")
def _(ctx: Lowering, x: T) -> tuple[T, None]:
    return ctx.emit("log_sigmoid", [_float_operand(ctx, x)]), None  # the second output is only a buffer


@lowers("aten.log_sigmoid.default")
def _(ctx: Lowering, x: T) -> T:
    return ctx.emit("log_sigmoid", [_float_operand(ctx, x)])


@operator_def("softplus", doc="log(1 + e**(beta x)) / beta, x where beta x > threshold, rounded once")
def _softplus(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    return functions.softplus(b, b.load(0, *b.indices()), attrs["beta"], attrs["threshold"])


@lowers("aten.softplus.default")
def _(ctx: Lowering, x: T, beta: Number = 1, threshold: Number = 20) -> T:
    return ctx.emit("softplus", [_float_operand(ctx, x)], beta=float(beta), threshold=float(threshold))


# -- two arguments ------------------------------------------------------------------------------


def _binary(name: str, function: Callable[[Builder, Value, Value], Value], doc: str) -> None:
    @operator_def(name, doc=doc)
    def _(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
        return function(b, b.load(0, *b.indices()), b.load(1, *b.indices()))


_binary("pow", functions.pow, "x**y by log2 in two parts; C99 special cases")
_binary("atan2", functions.atan2, "angle of the point (second, first); C99 special cases")
_binary("logaddexp", functions.logaddexp, "log(e**x + e**y)")
_binary("xlogy", functions.xlogy, "x log(y), 0 where x is 0")


def _float_binary(ctx: Lowering, op: str, x: T | Number, y: T | Number) -> T:
    if ctx.out.dtype is DType.F64:
        raise ctx.unsupported("float64 in an elementary function", _ADVICE)
    return ctx.pointwise(op, x, y, dtype=ctx.out.dtype)


@lowers("aten.atan2.default")
def _(ctx: Lowering, y: T, x: T) -> T:
    return _float_binary(ctx, "atan2", y, x)


@lowers("aten.logaddexp.default")
def _(ctx: Lowering, x: T, y: T) -> T:
    return _float_binary(ctx, "logaddexp", x, y)


@lowers("aten.xlogy.Tensor", "aten.xlogy.Scalar_Self", "aten.xlogy.Scalar_Other")
def _(ctx: Lowering, x: T | Number, y: T | Number) -> T:
    return _float_binary(ctx, "xlogy", x, y)


# -- powers -------------------------------------------------------------------------------------


@operator_def("pow_scalar", doc="x**exponent; 2, 3, 1/2 and their negatives by products, square root and division")
def _pow_scalar(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    x = b.load(0, *b.indices())
    exponent = attrs["exponent"]
    simple: dict[float, Callable[[], Value]] = {
        1.0: lambda: x,
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
        0.5: lambda: b.sqrt(x),
        -0.5: lambda: functions.rsqrt(b, x) if x.type is Type.F32 else 1.0 / b.sqrt(x),
        -1.0: lambda: 1.0 / x,
        -2.0: lambda: 1.0 / (x * x),
    }
    return simple[exponent]() if exponent in simple else functions.pow(b, x, b.f32(exponent))


_SIMPLE_EXPONENTS = (1.0, 2.0, 3.0, 0.5, -0.5, -1.0, -2.0)


@operator_def("ipow_scalar", doc="integer x**exponent (exponent >= 0) by squaring, wrapping")
def _ipow_scalar(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    square = b.load(0, *b.indices())
    result: Value = b.const(1, square.type)
    exponent = attrs["exponent"]
    while exponent:
        if exponent & 1:
            result = result * square
        exponent >>= 1
        if exponent:
            square = square * square
    return result


@operator_def("ipow", doc="integer x**y by squaring, wrapping; for y < 0 the reciprocal truncated (0, 1 or -1)")
def _ipow(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    base, exponent = (b.load(n, *b.indices()) for n in range(2))
    one = b.const(1, base.type)
    result, square = one, base
    for bit in range(exponent.type.bits - 1):
        result = b.select(((exponent >> bit) & 1).eq(1), result * square, result)
        square = square * square
    negative = b.select(base.eq(1), one, b.const(0, base.type))
    if base.type.is_signed:
        odd = (exponent & 1).eq(1)
        negative = b.select(base.eq(-1), b.select(odd, b.const(-1, base.type), one), negative)
        return b.select(exponent < 0, negative, result)
    return result


@lowers("aten.pow.Tensor_Scalar")
def _(ctx: Lowering, x: T, exponent: Number) -> T:
    dtype = ctx.out.dtype
    if exponent == 0:
        return ctx.full(x.shape, 1, dtype)
    if dtype.is_float:
        x = ctx.cast(x, dtype)
        if dtype is DType.F64 and float(exponent) not in _SIMPLE_EXPONENTS:
            raise ctx.unsupported(f"a float64 power {exponent}", "use .float()")
        return x if exponent == 1 else ctx.emit("pow_scalar", [x], exponent=float(exponent))
    if exponent < 0:
        raise ctx.unsupported("a negative power of integers", "convert the tensor to float32")
    return ctx.emit("ipow_scalar", [ctx.cast(x, dtype)], exponent=int(exponent))


@lowers("aten.pow.Tensor_Tensor")
def _(ctx: Lowering, x: T, y: T) -> T:
    return _general_power(ctx, x, y)


@lowers("aten.pow.Scalar")
def _(ctx: Lowering, base: Number, y: T) -> T:
    return ctx.full(y.shape, 1, ctx.out.dtype) if base == 1 else _general_power(ctx, base, y)


def _general_power(ctx: Lowering, x: T | Number, y: T | Number) -> T:
    if ctx.out.dtype.is_float:
        return _float_binary(ctx, "pow", x, y)
    return ctx.pointwise("ipow", x, y, dtype=ctx.out.dtype)
