"""Scaled dot-product attention: softmax(q k^T * scale + mask) v, one operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ree.dims import Dim
from ree.element.program import Builder, Port, Program, Value
from ree.errors import DTypeError, ShapeError
from ree.lower import Lowering, T
from ree.ops.spec import Attrs, lowers, operator_def
from ree.ops.view import product
from ree.types import DType, TensorType, Type


def _attention_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    q, k, v, *mask = ins
    text = f"attention of {q}, {k}, {v}"
    if any(t.rank != 4 for t in ins) or len(mask) != (attrs["mask"] != "none"):
        raise ShapeError(text)
    if q.dtype.element is not Type.F32 or not q.dtype is k.dtype is v.dtype:
        raise DTypeError(f"{text}; float32, float16 and bfloat16 are defined")
    if mask and (mask[0].dtype is DType.BOOL) != (attrs["mask"] == "bool"):
        raise DTypeError(f"{text} with a {attrs['mask']} mask {mask[0]}")
    if mask and attrs["mask"] == "float" and mask[0].dtype.element is not Type.F32:
        raise DTypeError(f"{text} with a mask {mask[0]}")
    pairs = [(q.shape[0], k.shape[0]), (k.shape[0], v.shape[0]), (k.shape[1], v.shape[1])]
    pairs += [(q.shape[3], k.shape[3]), (k.shape[2], v.shape[2])]
    pairs += list(zip(mask[0].shape, (*q.shape[:3], k.shape[2]), strict=True)) if mask else []
    heads, kv_heads = q.shape[1], k.shape[1]
    uneven = isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads and heads % kv_heads
    if uneven or any(a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int)):
        raise ShapeError(text)
    return TensorType((*q.shape[:3], v.shape[3]), q.dtype)


@operator_def(
    "attention",
    kind="attention",
    infer=_attention_type,
    doc="per row: scores = dot(q, k) * scale, capped, masked; m = max (0 if -inf); p = exp(score - m); l = sum(p); "
    "out = dot(p, v) / l, and 0 if l is 0; a causal row sees keys up to its own number, within a window the last ones",
)
def _attention(b: Builder, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Value:

    batch, head, row, channel = b.indices()
    kv_head = head / (b.extent(0, 1) / b.extent(1, 1))
    length = b.extent(1, 2)
    count = b.min(length, row + 1) if attrs["causal"] else length
    start = _window_start(b, attrs, count)

    def raw(s: Value) -> Value:
        return b.fold_dot(b.extent(0, 3), lambda d: (b.load(0, batch, head, row, d), b.load(1, batch, kv_head, s, d)))

    inside = _weights(b, attrs, start, count, raw, lambda s: b.load(3, batch, head, row, s))

    def weight(s: Value) -> Value:
        return inside(s) if start is None else b.select(s >= start, inside(s), 0.0)

    def value(s: Value) -> Value:  # what lies before the window is left out: 0 * 0 adds nothing to a fold that is 0
        found = b.load(2, batch, kv_head, s, channel)
        return found if start is None else b.select(s >= start, found, 0.0)

    total = b.fold_sum(count, weight)
    mixed = b.fold_dot(count, lambda s: (weight(s), value(s)))
    return b.select(total.eq(0.0), 0.0, mixed / total)


Row = Callable[[Value], Value]  # a value of one row as a function of the key's number


def _window_start(b: Builder, attrs: Attrs, count: Value) -> Value | None:
    """The first key that a row sees; None if there is no window (that starts within the keys)."""
    window = attrs.get("window", 0)
    return b.max(count - window, 0) if window else None


def _weights(b: Builder, attrs: Attrs, start: Value | None, count: Value, raw: Row, mask: Row) -> Row:
    """p(s) of one row: exp(score(s) - m)."""
    from ree.element import functions

    def score(s: Value) -> Value:
        return _score(b, attrs, raw, mask, s)

    if start is None:
        largest = b.fold_max(count, score)
    else:
        first = start
        largest = b.fold_max(count - first, lambda j: score(first + j))
    shift = b.select(largest.eq(-math.inf), 0.0, largest)
    return lambda s: functions.exp(b, score(s) - shift)


def _score(b: Builder, attrs: Attrs, raw: Row, mask: Row, s: Value) -> Value:
    """score(s) = raw(s) * scale, capped, masked."""
    from ree.element import functions

    cap = attrs.get("softcap", 0.0)
    result = raw(s) * float(attrs["scale"])
    if cap:
        result = functions.tanh(b, result / float(cap)) * float(cap)
    if attrs["mask"] == "none":
        return result
    return b.select(mask(s), result, -math.inf) if attrs["mask"] == "bool" else result + mask(s)


def score_program(mask: DType | None, attrs: Attrs) -> Program:
    """The part of `weights_program` before its maximum: from a raw score to score(s)."""
    ports = [Port(DType.F32, 4)] + ([Port(mask, 4)] if mask is not None else [])
    b = Builder(ports, 4)
    batch, head, row, key = b.indices()
    scores, masks = (lambda s, port=port: b.load(port, batch, head, row, s) for port in (0, 1))
    return b.finish([_score(b, attrs, scores, masks, key)], [DType.F32])


def exp_program() -> Program:
    """The part after it: from score(s) - m to p(s)."""
    from ree.element import functions

    b = Builder([Port(DType.F32, 0)], 0)
    return b.finish([functions.exp(b, b.load(0))], [DType.F32])


def weights_program(mask: DType | None, attrs: Attrs) -> Program:
    """The step that a kernel runs on blocks of raw scores: p(s), and 0 for keys that a causal row leaves out.

    Index space [B, H, T, S]; inputs raw scores and, if there is one, the mask; parameter 0 is S.
    """
    ports = [Port(DType.F32, 4)] + ([Port(mask, 4)] if mask is not None else [])
    b = Builder(ports, 4)
    batch, head, row, key = b.indices()
    count = b.min(b.param(0), row + 1) if attrs["causal"] else b.param(0)
    scores, masks = (lambda s, port=port: b.load(port, batch, head, row, s) for port in (0, 1))
    return _finish_weights(b, attrs, count, key, scores, masks)


def cached_weights_program(attrs: Attrs) -> Program:
    """The same for rows that stand anywhere in their sequences: inputs raw scores and the rows' positions.

    Index space [H', N, G, S] (heads of keys, rows, heads of queries that share one); positions i64[N].
    """
    b = Builder([Port(DType.F32, 4), Port(DType.I64, 1)], 4)
    head, row, member, key = b.indices()
    return _finish_weights(b, attrs, b.load(1, row) + 1, key, lambda s: b.load(0, head, row, member, s), lambda s: s)


def _finish_weights(b: Builder, attrs: Attrs, count: Value, key: Value, scores: Row, masks: Row) -> Program:
    start = _window_start(b, attrs, count)
    weight = _weights(b, attrs, start, count, scores, masks)(key)
    if attrs["causal"]:
        weight = b.select(key < count, weight, 0.0)
    if start is not None:
        weight = b.select(key >= start, weight, 0.0)
    return b.finish([weight], [DType.F32])


# -- lowerings ------------------------------------------------------------------------------


def attention(
    ctx: Lowering,
    q: T,
    k: T,
    v: T,
    mask: T | None = None,
    causal: bool = False,
    scale: float | None = None,
    *,
    options: Attrs | None = None,
) -> T:
    """The operator for any number of leading batch axes, which become one.

    16-bit operands are widened and the result is rounded, as the definition has it.
    """
    if q.dtype in (DType.F16, DType.BF16):
        wide = [ctx.cast(t, DType.F32) for t in (q, k, v)]
        mask = ctx.cast(mask, DType.F32) if mask is not None and mask.dtype is not DType.BOOL else mask
        return ctx.cast(attention(ctx, wide[0], wide[1], wide[2], mask, causal, scale, options=options), q.dtype)
    depth = q.shape[-1]
    if isinstance(depth, Dim):
        raise ctx.unsupported("attention over a dynamic head dimension", "make it static")
    rank = max(q.rank, 3)
    heads = [ctx.reshape(t, (1,) * (rank - t.rank) + t.shape) for t in (q, k, v)]
    lead = ctx.broadcast_shape(*(t.shape[:-3] for t in heads))
    batch = product(lead)

    def to_rank_4(t: T) -> T:
        return ctx.reshape(ctx.broadcast(t, (*lead, *t.shape[-3:])), (batch, *t.shape[-3:]))

    inputs = [to_rank_4(t) for t in heads]
    kind = "none"
    if mask is not None:
        kind = "bool" if mask.dtype is DType.BOOL else "float"
        shape = (*inputs[0].shape[:3], inputs[1].shape[2])
        inputs.append(ctx.reshape(ctx.broadcast(mask, (*lead, *shape[1:])), shape))
    factor = 1.0 / math.sqrt(max(depth, 1)) if scale is None else float(scale)
    result = ctx.emit("attention", inputs, causal=bool(causal), scale=factor, mask=kind, **(options or {}))
    return ctx.reshape(result, (*q.shape[:-1], v.shape[-1]) if not lead else (*lead, *result.shape[1:]))


def _no_dropout(ctx: Lowering, dropout: float) -> None:
    if dropout != 0.0:
        raise ctx.unsupported("dropout inside attention", "call model.eval() or set the attention dropout to 0")


@lowers("aten.scaled_dot_product_attention.default")
def _(
    ctx: Lowering,
    q: T,
    k: T,
    v: T,
    attn_mask: T | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> T:
    _no_dropout(ctx, dropout_p)
    return attention(ctx, q, k, v, attn_mask, is_causal, scale)


@lowers("ree.causal_attention.default")
def _(ctx: Lowering, q: T, k: T, v: T, scale: float, window: int, softcap: float) -> T:
    """Attention of language models (ree/lm/torch_model.py); window and softcap stand in the graph only if there are."""
    options = {name: value for name, value in (("window", window), ("softcap", softcap)) if value}
    return attention(ctx, q, k, v, None, True, scale, options=options)


@lowers("aten._scaled_dot_product_flash_attention_for_cpu.default")
def _(
    ctx: Lowering,
    q: T,
    k: T,
    v: T,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: T | None = None,
    scale: float | None = None,
) -> tuple[T | None, ...]:
    _no_dropout(ctx, dropout_p)
    return attention(ctx, q, k, v, attn_mask, is_causal, scale), None


@lowers("aten._scaled_dot_product_efficient_attention.default")
def _(
    ctx: Lowering,
    q: T,
    k: T,
    v: T,
    bias: T | None,
    lse: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[T | None, ...]:
    _no_dropout(ctx, dropout_p)
    return attention(ctx, q, k, v, bias, is_causal, scale), None, None, None


@lowers("aten._scaled_dot_product_flash_attention.default")
def _(
    ctx: Lowering,
    q: T,
    k: T,
    v: T,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    debug: bool = False,
    *,
    scale: float | None = None,
) -> tuple[T | None, ...]:
    _no_dropout(ctx, dropout_p)
    return attention(ctx, q, k, v, None, is_causal, scale), *([None] * 8)


@lowers(
    "aten._scaled_dot_product_attention_math.default", "aten._scaled_dot_product_fused_attention_overrideable.default"
)
def _(
    ctx: Lowering,
    q: T,
    k: T,
    v: T,
    mask: T | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *unread: Any,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[T | None, ...]:
    _no_dropout(ctx, dropout_p)
    return attention(ctx, q, k, v, mask, is_causal, scale), *([None] * 8)
