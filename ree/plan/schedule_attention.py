"""Attention: the steps that compute it over tensors, and over a cache of keys and values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ree_kernels.cpu as cpu
from ree.ops.attention import cached_weights_program, weights_program
from ree.plan.args import Args
from ree.plan.fuse import Kernel
from ree.plan.layout import contiguous
from ree.plan.step import Buffer, Slot, Step
from ree.plan.stream import LAYER_STATES, SLOTS, Layer, Stream

if TYPE_CHECKING:
    from ree.plan.planner import Planner


def attention(p: Planner, value: int, epilogue: Step | None) -> list[Step]:
    node = p.graph.node_of(value)
    assert node is not None and epilogue is None
    if p.stream is not None:
        return _cached(p, value, p.stream)
    args = Args("ree_attention_args")
    steps = _point_heads(p, args, node.inputs, ("batch", "head", "token"))
    batch, heads, t, d_v = p.layouts[value].shape
    _, k_heads, s, d = p.layouts[node.inputs[1]].shape
    out = p.layouts[value].strides
    args.point(out=p.pointer(value))
    args.set(out_batch=out[0], out_head=out[1], out_token=out[2])
    args.set(causal=int(node.attrs["causal"]), window=int(node.attrs.get("window", 0)))
    args.set(batch=batch, heads=heads, k_heads=k_heads, t=t, s=s, d=d, d_v=d_v, score_row=s)
    hook = _attention_hook(p, value)
    args.set(hook_pointers=len(hook.kernel.layouts) if hook.kernel else 0)
    rows = batch * heads * t
    cut = cpu.kernels().attention_plan(rows, t, s, d_v, cpu.threads())
    step = args.step("attention", "ree_attention", (rows, d_v), (cut.row_grain, cut.col_grain), cut.scratch_bytes)
    step.hooks = [(hook, args.field("hook"), args.field("hook_args"))]
    return [*steps, step]


def _point_heads(p: Planner, args: Args, inputs: Sequence[int], axes: Sequence[str]) -> list[Step]:
    """Point q, k and v at inputs of rank 4 and set the strides of their first axes; the steps that copy them first."""
    steps: list[Step] = []
    for name, source in zip("qkv", inputs, strict=False):
        layout, slot = p.layouts[source], p.pointer(source)
        if layout.strides[3] != 1 and layout.shape[3] != 1:
            layout, slot, copy = p.dense(source)
            steps.append(copy)
        args.point(**{name: slot})
        args.set(
            **{f"{name}_{part}": stride for part, stride in zip(axes, layout.strides[3 - len(axes) :], strict=False)}
        )
    return steps


def _attention_hook(p: Planner, value: int) -> Step:
    """The JIT step that turns a block of raw scores into softmax weights, in place."""
    node = p.graph.node_of(value)
    assert node is not None
    batch, heads, t, _ = p.layouts[value].shape
    space = (batch, heads, t, p.layouts[node.inputs[1]].shape[2])
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    program = weights_program(None if mask is None else p.graph.type_of(mask).dtype, node.attrs)
    scores = contiguous(space)
    layouts = [scores, *([] if mask is None else [p.layouts[mask]]), scores]
    slots = [None, *([] if mask is None else [p.pointer(mask)]), None]
    kernel = Kernel(program, [], layouts, [space[3]], space)
    return Step.jit("attention weights", kernel, slots, (kernel.rows, kernel.cols), (1, space[3]))


# -- over a cache -----------------------------------------------------------------------


def _cached(p: Planner, value: int, stream: Stream) -> list[Step]:
    """Two steps: this run's keys and values into the cache, then attention over it."""
    node = p.graph.node_of(value)
    assert node is not None and node.attrs["causal"] and node.attrs["mask"] == "none"
    number = len(stream.layers)
    args = Args("ree_cached_args")
    steps = _point_heads(p, args, node.inputs, ("head", "token"))
    _, heads, n, d_v = p.layouts[value].shape
    _, k_heads, _, d = p.layouts[node.inputs[1]].shape
    lib = cpu.kernels().lib
    floats = (int(lib.ree_cached_key_floats(stream.context, d)), int(lib.ree_cached_value_floats(stream.context, d_v)))
    stream.layers.append(Layer(k_heads, *floats))
    args.point(out=p.pointer(value), position=p.pointer(stream.positions), slot=_state(SLOTS))
    for part, name in enumerate(("keys", "values", "unsafe")):
        args.point(**{name: _state(SLOTS + 1 + LAYER_STATES * number + part)})
    args.set(out_head=p.layouts[value].strides[1], out_token=p.layouts[value].strides[2])
    args.set(n=n, heads=heads, k_heads=k_heads, d=d, d_v=d_v)
    args.set(context=stream.context, window=int(node.attrs.get("window", 0)))
    hook = _cached_hook(p, value, stream, (k_heads, n, heads // k_heads, stream.context))
    args.set(hook_pointers=3)
    rows = k_heads * n
    append = args.step("cache", "ree_cached_append", (rows, 1), (max(1, min(64, -(-rows // cpu.threads()))), 1))
    grain = cpu.kernels().cached_grain(n, heads, k_heads, stream.context, cpu.threads())
    scratch = int(lib.ree_cached_scratch_bytes(grain, stream.context, d_v))
    step = args.step("attention", "ree_cached_attention", (heads * n, d_v), (grain, max(d_v, 1)), scratch)
    step.hooks = [(hook, args.field("hook"), args.field("hook_args"))]
    return [*steps, append, step]


def _state(number: int) -> Slot:
    return Slot(Buffer("state", number, 0))


def _cached_hook(p: Planner, value: int, stream: Stream, space: tuple[int, ...]) -> Step:
    """The JIT step that turns a block of raw scores into softmax weights, in place."""
    node = p.graph.node_of(value)
    assert node is not None
    scores = contiguous(space)
    kernel = Kernel(cached_weights_program(node.attrs), [], [scores, contiguous(space[1:2]), scores], [], space)
    slots = [None, p.pointer(stream.positions), None]
    return Step.jit("attention weights", kernel, slots, (math.prod(space[:3]), space[3]), (1, space[3]))
