"""Random numbers: Philox4x32-10 addressed by element, and the distributions made of its words.

Element i of the random node number `stream` of a graph is words 0-3 of

    Philox4x32-10(counter = (i mod 2^32, i div 2^32, stream, 0), key = (seed mod 2^32, seed div 2^32))

so an element depends on its logical index, the node and the seed alone, never on how the
work is split. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ree.dims import Dim
from ree.element.program import OUT, Builder, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.sort import argsort
from ree.ops.spec import Attrs, lowers, operator_def
from ree.ops.view import flat_index
from ree.types import DType, TensorType, Type

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_UNIT_BITS = {DType.F32: 24, DType.F16: 11, DType.BF16: 8}


def philox(b: Builder, counter: Sequence[Value], key: Sequence[Value]) -> list[Value]:
    """The four u32 words of Philox4x32-10 for a counter of four and a key of two u32 words."""
    c, k = list(counter), list(key)
    for _ in range(ROUNDS):
        high0, low0 = _multiply(b, c[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(b, c[2], _MULTIPLIERS[1])
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [word + step for word, step in zip(k, _KEY_STEPS, strict=True)]
    return c


def _multiply(b: Builder, word: Value, factor: int) -> tuple[Value, Value]:
    """High and low words of the 64-bit product."""
    wide = b.convert(word, Type.U64) * factor
    return _low(b, wide >> 32), _low(b, wide)


def _low(b: Builder, wide: Value) -> Value:
    return b.convert(wide & 0xFFFFFFFF, Type.U32)


def _philox_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    if not (0 <= attrs["seed"] < 1 << 64 and 0 <= attrs["stream"] < 1 << 32 and 0 <= attrs["word"] < 4):
        raise ShapeError(f"philox word {attrs['word']} of stream {attrs['stream']} for seed {attrs['seed']}")
    return TensorType(tuple(attrs["shape"]), DType.U32)


@operator_def(
    "philox",
    kind="any",
    infer=_philox_type,
    doc="word `word` of Philox4x32-10; counter (index low, index high, stream, 0), key (seed low, seed high)",
)
def _philox(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    index = b.convert(flat_index(b, OUT, b.indices()), Type.U64)
    counter = [_low(b, index), _low(b, index >> 32), b.const(attrs["stream"], Type.U32), b.const(0, Type.U32)]
    key = [b.const(attrs["seed"] & 0xFFFFFFFF, Type.U32), b.const(attrs["seed"] >> 32, Type.U32)]
    return philox(b, counter, key)[attrs["word"]]


def _words_type(ins: Sequence[TensorType], dtype: DType) -> TensorType:
    if any(t.dtype is not DType.U32 or t.shape != ins[0].shape for t in ins):
        raise DTypeError(f"random words {[str(t) for t in ins]}")
    return ins[0].with_dtype(dtype)


@operator_def(
    "unit_float",
    infer=lambda ins, attrs: _words_type(ins, DType(attrs["dtype"])),
    doc="uniform in [0, 1): the top 24 bits of a word / 2**24 (f16: 11 bits, bf16: 8), exact in the dtype",
)
def _unit_float(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    bits = _UNIT_BITS[out.dtype]
    return b.convert(b.load(0, *b.indices()) >> (32 - bits), Type.F32) * 2.0**-bits


@operator_def(
    "unit_double",
    infer=lambda ins, attrs: _words_type(ins, DType.F64),
    doc="uniform in [0, 1): the top 27 bits of the first word and 26 of the second / 2**53",
)
def _unit_double(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    high, low = (b.convert(b.load(source, *b.indices()), Type.U64) for source in (0, 1))
    return b.convert(((high >> 5) << 26) + (low >> 6), Type.F64) * 2.0**-53


@operator_def(
    "unit_normal",
    infer=lambda ins, attrs: _words_type(ins, DType.F32),
    doc="Box-Muller: u = (top 24 bits of word 0, "
    "+ 1) / 2**24, v = top 24 bits of word 1 / 2**24; sqrt(-2 * log(u)) * cos(v * 2 pi), each step in f32",
)
def _unit_normal(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    from ree.element import functions

    high, low = (b.load(source, *b.indices()) >> 8 for source in (0, 1))
    u = b.convert(high + 1, Type.F32) * 2.0**-24
    v = b.convert(low, Type.F32) * 2.0**-24
    return b.sqrt(functions.log(b, u) * -2.0) * functions.cos(b, v * (2.0 * math.pi))


def _integer_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    count = attrs["count"]
    if isinstance(count, int) and not 0 < count <= 1 << 32:
        raise ShapeError(f"random integers out of {count}")
    return _words_type(ins, DType.I64)


@operator_def(
    "unit_integer", infer=_integer_type, doc="low + (word * count) div 2**32: uniform over `count` integers from `low`"
)
def _unit_integer(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:
    scaled = b.convert(b.load(0, *b.indices()), Type.U64) * int(attrs["count"]) >> 32
    return b.convert(scaled, Type.I64) + int(attrs["low"])


# -- lowerings ------------------------------------------------------------------------------

Shape = Sequence[int | Dim]


def words(ctx: Lowering, shape: Shape, count: int) -> list[T]:
    """The first `count` words of a new random stream."""
    stream, ctx.random_streams = ctx.random_streams, ctx.random_streams + 1
    return [ctx.emit("philox", shape=tuple(shape), seed=ctx.seed, stream=stream, word=word) for word in range(count)]


def uniform(ctx: Lowering, shape: Shape, dtype: DType) -> T:
    """Uniform in [0, 1) in a float dtype."""
    if dtype is DType.F64:
        return ctx.emit("unit_double", words(ctx, shape, 2))
    if dtype not in _UNIT_BITS:
        raise ctx.unsupported(f"random numbers in {dtype.value}", "use a float dtype")
    return ctx.emit("unit_float", words(ctx, shape, 1), dtype=dtype.value)


def normal(ctx: Lowering, shape: Shape, dtype: DType) -> T:
    """Standard normal, computed in f32."""
    if not dtype.is_float:
        raise ctx.unsupported(f"normal numbers in {dtype.value}", "use a float dtype")
    return ctx.cast(ctx.emit("unit_normal", words(ctx, shape, 2)), dtype)


def integers(ctx: Lowering, low: int | Dim, high: int | Dim) -> T:
    """Uniform integers low .. high-1 of the call's shape and dtype."""
    count = high - low
    if isinstance(count, int) and not 0 < count <= 1 << 32:
        raise ctx.unsupported(f"randint over {count} values", "use a range of at most 2**32")
    result = ctx.emit("unit_integer", words(ctx, ctx.out.shape, 1), low=low, count=count)
    return ctx.cast(result, ctx.out.dtype)


@lowers("aten.rand.default", "aten.rand_like.default", "aten.rand.generator", "aten.rand_like.generator")
def _(ctx: Lowering, *shape: Any, **options: Any) -> T:
    return uniform(ctx, ctx.out.shape, ctx.out.dtype)


@lowers("aten.uniform.default")
def _(ctx: Lowering, x: T, low: float = 0.0, high: float = 1.0, *, generator: None = None) -> T:
    unit = uniform(ctx, x.shape, x.dtype)
    if (low, high) == (0.0, 1.0):
        return unit
    scaled = ctx.pointwise("mul", unit, float(high) - float(low), dtype=x.dtype)
    return ctx.pointwise("add", scaled, float(low), dtype=x.dtype)


@lowers("aten.randn.default", "aten.randn_like.default", "aten.randn.generator", "aten.randn_like.generator")
def _(ctx: Lowering, *shape: Any, **options: Any) -> T:
    return normal(ctx, ctx.out.shape, ctx.out.dtype)


def _shifted(ctx: Lowering, mean: T | float, std: T | float) -> T:
    """normal * std + mean in the call's shape and dtype."""
    result = normal(ctx, ctx.out.shape, ctx.out.dtype)
    result = result if isinstance(std, float) and std == 1.0 else ctx.pointwise("mul", result, std, dtype=result.dtype)
    return result if isinstance(mean, float) and mean == 0.0 else ctx.pointwise("add", result, mean, dtype=result.dtype)


@lowers("aten.normal.Tensor_float", "aten.normal.float_Tensor", "aten.normal.Tensor_Tensor")
def _(ctx: Lowering, mean: T | float = 0.0, std: T | float = 1.0, *, generator: None = None) -> T:
    return _shifted(ctx, mean, std)


@lowers("aten.normal_functional.default")
def _(ctx: Lowering, x: T, mean: float = 0.0, std: float = 1.0, *, generator: None = None) -> T:
    return _shifted(ctx, float(mean), float(std))


@lowers("aten.normal.float_float")
def _(ctx: Lowering, mean: float, std: float, size: Shape, **options: Any) -> T:
    return _shifted(ctx, float(mean), float(std))


@lowers("aten.randint.default", "aten.randint.generator")
def _(ctx: Lowering, high: int | Dim, size: Shape, **options: Any) -> T:
    return integers(ctx, 0, high)


@lowers("aten.randint.low", "aten.randint.low_generator")
def _(ctx: Lowering, low: int | Dim, high: int | Dim, size: Shape, **options: Any) -> T:
    return integers(ctx, low, high)


@lowers("aten.randint_like.default")
def _(ctx: Lowering, x: T, high: int | Dim, **options: Any) -> T:
    return integers(ctx, 0, high)


@lowers("aten.randint_like.low_dtype")
def _(ctx: Lowering, x: T, low: int | Dim, high: int | Dim, **options: Any) -> T:
    return integers(ctx, low, high)


def _below(ctx: Lowering, shape: Shape, probability: T | float) -> T:
    """True with the probability given (f64 draws for f64 probabilities, else f32)."""
    wide = isinstance(probability, T) and probability.dtype is DType.F64
    dtype = DType.F64 if wide else DType.F32
    return ctx.pointwise("lt", uniform(ctx, shape, dtype), probability, dtype=dtype)


@lowers("aten.bernoulli.default")
def _(ctx: Lowering, x: T, *, generator: None = None) -> T:
    return ctx.cast(_below(ctx, x.shape, x), x.dtype)


@lowers("aten.bernoulli.p", "aten.bernoulli.Tensor")
def _(ctx: Lowering, x: T, probability: T | float = 0.5, *, generator: None = None) -> T:
    return ctx.cast(_below(ctx, x.shape, probability), x.dtype)


def dropout(ctx: Lowering, x: T, p: float) -> tuple[T, T]:
    """x / (1 - p) where a draw keeps it, else 0; and the bool mask of what was kept."""
    keep = _below(ctx, x.shape, 1.0 - p)
    kept = ctx.pointwise("mul", x, 1.0 / (1.0 - p) if p < 1.0 else 0.0, dtype=x.dtype)
    return ctx.emit("where", [keep, kept, ctx.full(x.shape, 0.0, x.dtype)]), keep


@lowers("aten.native_dropout.default")
def _(ctx: Lowering, x: T, p: float, train: bool | None) -> tuple[T, T]:
    if train is False:
        return x, ctx.full(x.shape, True, DType.BOOL)
    return dropout(ctx, x, p)


@lowers("aten.dropout.default")
def _(ctx: Lowering, x: T, p: float, train: bool) -> T:
    return dropout(ctx, x, p)[0] if train and p > 0.0 else x


@lowers("aten.randperm.default", "aten.randperm.generator")
def _(ctx: Lowering, n: int | Dim, **options: Any) -> T:
    """The order of n random words; equal words keep their places."""
    (keys,) = words(ctx, (n,), 1)
    return ctx.cast(argsort(ctx, ctx.cast(keys, DType.I64), False), ctx.out.dtype)


@lowers("aten.exponential.default")
def _(ctx: Lowering, x: T, rate: float = 1.0, *, generator: None = None) -> T:
    """-log(1 - u) / rate in f32; 1 - u is exact."""
    rest = ctx.pointwise("sub", 1.0, uniform(ctx, x.shape, DType.F32), dtype=DType.F32)
    return ctx.cast(ctx.pointwise("div", ctx.emit("log", [rest]), -float(rate), dtype=DType.F32), x.dtype)
