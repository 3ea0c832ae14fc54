"""Operators with kernels of their own: from a node to the steps that call them.

Each schedule gets the planner, the node's value and, for those that can host one, the
epilogue that the kernel runs on each finished tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import ree_kernels.cpu as cpu
from ree.plan.args import Args
from ree.plan.convolution import sizes_of
from ree.plan.layout import Layout, merge_batch, view
from ree.plan.planning import space_of
from ree.plan.schedule_attention import attention
from ree.plan.schedule_experts import experts
from ree.plan.step import Buffer, Slot, Step
from ree.plan.weights import Weights, strided
from ree.types import DType
from ree_kernels.conv import Conv, pack_weights
from ree_kernels.conv import fill as fill_conv
from ree_kernels.conv import schedule as schedule_conv
from ree_kernels.matmul_i8 import matmul_i8_plan, pack_matrix_i8
from ree_kernels.pack import pack_matrix

if TYPE_CHECKING:
    from ree.plan.planner import Planner

_BATCH_AXES_MAX = 4


# -- matmul ---------------------------------------------------------------------------


def matmul(p: Planner, value: int, epilogue: Step | None) -> list[Step]:
    a, b = p.graph.node_of(value).inputs  # type: ignore[union-attr]
    if p.kinds[value] == "matmul_i8":
        return _matmul_i8(p, value, a, b)
    steps: list[Step] = []
    shape = p.layouts[value].shape
    m, n, k = shape[-2], shape[-1], p.layouts[a].shape[-1]
    layout_a, slot_a = p.layouts[a], p.pointer(a)
    constant = p.graph.constant_of(p.base[b])
    packed = 0
    args = Args("ree_matmul_args")
    if constant is not None and len(shape) == 2:
        layout_b = Layout((k, n), (0, 0))
        packed = 2 if constant.type.dtype is DType.BF16 else 1
        args.point(b=_packed_matrix(p, b))
    else:
        layout_b, slot_b = p.layouts[b], p.pointer(b)
        args.point(b=slot_b)
    batch = merge_batch(layout_a, layout_b)
    if len(batch) > _BATCH_AXES_MAX:  # rare: more batch axes than the kernel walks
        layout_a, slot_a, copy_a = p.dense(a)
        layout_b, slot_b, copy_b = p.dense(b)
        args.pointers = []
        args.point(b=slot_b)
        steps += [copy_a, copy_b]
        batch = merge_batch(layout_a, layout_b)
    args.point(a=slot_a, c=p.pointer(value))
    args.set(m=m, n=n, k=k, b_packed=packed, c_row=n, batch_dims=len(batch))
    args.set(a_row=layout_a.strides[-2], a_k=layout_a.strides[-1])
    args.set(b_k=layout_b.strides[-2], b_col=layout_b.strides[-1])
    args.set(batch=[x[0] for x in batch], a_batch=[x[1] for x in batch], b_batch=[x[2] for x in batch])
    rows, cols = space_of(shape, "matmul")
    plan = cpu.kernels().matmul_plan(m, n, k, cpu.threads(), packed, math.prod([x[0] for x in batch]))
    step = args.step("matmul", "ree_matmul", (rows, cols), (plan.row_grain, plan.col_grain), plan.scratch_bytes)
    return [*steps, args.host(step, epilogue)]


def _matmul_i8(p: Planner, value: int, a: int, b: int) -> list[Step]:
    (m, n), k = p.layouts[value].shape, p.layouts[a].shape[-1]
    layout, slot, copies = p.layouts[a], p.pointer(a), []
    if layout.strides[1] != 1 and k != 1:
        layout, slot, copy = p.dense(a)
        copies.append(copy)
    args = Args("ree_matmul_i8_args")
    args.point(a=slot, b=_packed_matrix(p, b), c=p.pointer(value))
    args.set(a_row=layout.strides[0], c_row=n, m=m, n=n, k=k)
    plan = matmul_i8_plan(cpu.kernels(), m, n, k, cpu.threads())
    step = args.step("matmul", "ree_matmul_i8", (m, n), (plan.row_grain, plan.col_grain), plan.scratch_bytes)
    return [*copies, step]


def _packed_matrix(p: Planner, b: int) -> Slot:
    """The packed form of a constant [k, n] matrix, seen through the strides of its view.

    bf16 stays as it is, its values are f32 with sixteen bits of zeros; f16 is widened.
    """
    constant = p.base[b] - len(p.graph.inputs)
    index, size_bytes = packed_matrix(p.weights, constant, p.graph.type_of(b).dtype, p.layouts[b])
    return Slot(Buffer("packed", index, size_bytes))


def packed_matrix(weights: Weights, constant: int, dtype: DType, layout: Layout) -> tuple[int, int]:
    """Number and size in bytes of the packed form of a constant, seen through a layout [k, n]."""
    kind = "matmul" if dtype is DType.F32 else f"matmul_{dtype.value}"
    key = (kind, constant, layout.shape, layout.strides, layout.offset)

    def make() -> np.ndarray:
        source = strided(weights.array(constant), layout)
        if dtype is DType.I8:
            return pack_matrix_i8(cpu.kernels(), source)
        return pack_matrix(cpu.kernels(), source.astype(np.float32) if dtype is DType.F16 else source)

    return weights.packed(key, make)


# -- convolution ------------------------------------------------------------------------

_CHANNELS_LAST_MIN = 16  # from so many channels on, copying to channels-last pays


def conv(p: Planner, value: int, epilogue: Step | None) -> list[Step]:
    node, sizes = p.node(value), sizes_of(p, value)
    x, w = node.inputs
    layout, slot = p.layouts[x], p.pointer(x)
    steps: list[Step] = []
    if layout.strides[1] != 1 and sizes.channels >= _CHANNELS_LAST_MIN:
        layout, slot, copy = p.dense(x, (0, *range(2, len(layout.shape)), 1))
        steps.append(copy)
    args = Args("ree_conv_args")
    args.point(x=slot, w=_packed_conv(p, w, sizes), out=p.pointer(value))
    fill_conv(args.struct, sizes, layout.strides, sizes.outputs)
    cut = schedule_conv(cpu.kernels(), sizes)
    step = args.step(node.op, "ree_conv", (cut.rows, cut.cols), (cut.row_grain, cut.col_grain), cut.scratch_bytes)
    return [*steps, args.host(step, epilogue)]


def _packed_conv(p: Planner, w: int, sizes: Conv) -> Slot:
    layout = p.layouts[w]
    number = p.base[w] - len(p.graph.inputs)

    def make() -> np.ndarray:
        return pack_weights(cpu.kernels(), sizes, strided(p.weights.array(number), layout))

    key = ("conv", number, layout, sizes.groups, sizes.transposed)
    index, size_bytes = p.weights.packed(key, make)
    return Slot(Buffer("packed", index, size_bytes))


# -- sort, scan, scatter ----------------------------------------------------------------


def _rows_of(p: Planner, value: int) -> tuple[int, int, int, Slot, list[Step]]:
    """A value as rows along its last axis: (n, row stride, element stride, place, copying steps)."""
    shape = p.layouts[value].shape or (1,)
    flat = (math.prod(shape[:-1]), shape[-1])
    layout = view("reshape", {}, flat, p.layouts[value])
    if layout is not None:
        return flat[1], layout.strides[0], layout.strides[1], p.pointer(value), []
    _, slot, step = p.dense(value)
    return flat[1], flat[1], 1, slot, [step]


def sort(p: Planner, value: int, epilogue: Step | None) -> list[Step]:
    node = p.graph.node_of(value)
    assert node is not None and epilogue is None
    n, row, step, slot, steps = _rows_of(p, node.inputs[0])
    args = Args("ree_sort_args")
    top = node.op == "argtopk"
    k = node.attrs["k"] if top else n
    descending = node.attrs["largest"] if top else node.attrs["descending"]
    args.point(x=slot, out=p.pointer(value))
    args.set(n=n, k=k, x_row=row, x_step=step, out_row=k, descending=int(descending))
    args.set(dtype=_dtype(p, node.inputs[0]))
    rows = math.prod(p.layouts[value].shape[:-1])
    scratch = 2 * (n + 1) * 16
    return [*steps, args.step(node.op, f"ree_{node.op}", (rows, k), (1, k), scratch)]


def _dtype(p: Planner, value: int) -> int:
    """The kernels' number of a value's dtype: its position in `DType`, as in ree_kernels/c/dtype.h."""
    return list(DType).index(p.graph.type_of(value).dtype)


_SCANS = {
    "cumsum": "REE_CUMSUM",
    "cumprod": "REE_CUMPROD",
    "cummax_index": "REE_CUMMAX",
    "cummin_index": "REE_CUMMIN",
}


def scan(p: Planner, value: int, epilogue: Step | None) -> list[Step]:
    node = p.graph.node_of(value)
    assert node is not None and epilogue is None
    n, row, step, slot, steps = _rows_of(p, node.inputs[0])
    args = Args("ree_scan_args")
    is_index = node.op.endswith("_index")
    args.point(x=slot, **{"indices" if is_index else "out": p.pointer(value)})
    args.set(n=n, x_row=row, x_col=0, x_step=step, out_row=n, out_col=0, out_step=1)
    args.set(op=int(getattr(cpu.kernels().lib, _SCANS[node.op])), dtype=_dtype(p, node.inputs[0]))
    rows = math.prod(p.layouts[value].shape[:-1])
    return [*steps, args.step(node.op, "ree_scan", (rows, 1), (max(1, rows // 8), 1))]


def scatter(p: Planner, value: int, epilogue: Step | None) -> list[Step]:
    node = p.graph.node_of(value)
    assert node is not None and epilogue is None
    x, index, src = node.inputs
    copy = p.jit_step(p.fuser.copy(x, p.layouts[value], tuple(range(len(p.layouts[value].shape)))), x, p.pointer(value))
    rows = node.op == "scatter_rows"
    args = Args("ree_scatter_rows_args" if rows else "ree_scatter_axis_args")
    args.point(out=p.pointer(value), index=p.pointer(index), src=p.pointer(src))
    reduce = {"set": "REE_SET", "add": "REE_ADD", "mul": "REE_MUL", "min": "REE_MIN", "max": "REE_MAX"}
    args.set(op=int(getattr(cpu.kernels().lib, reduce[node.attrs["reduce"]])), dtype=_dtype(p, x))
    steps = _scatter_rows(p, args, value) if rows else _scatter_axis(p, args, value, node.attrs["axis"])
    steps[-1].status = args.field("status")
    return [copy, *steps]


def _scatter_rows(p: Planner, args: Args, value: int) -> list[Step]:
    copies: list[Step] = []
    _, index, src = p.graph.node_of(value).inputs  # type: ignore[union-attr]
    extent, inner = p.layouts[value].shape
    row, col = p.layouts[src].strides
    if col not in (0, 1) and inner != 1:
        layout, slot, copy = p.dense(src)
        copies.append(copy)
        args.pointers = [(place, at) for place, at in args.pointers if place != args.field("src")]
        args.point(src=slot)
        row, col = layout.strides
    args.set(n=p.layouts[index].shape[0], extent=extent, out_row=inner)
    args.set(src_row=row, src_col=col, index_step=p.layouts[index].strides[0])
    grain = max(64, -(-inner // 4))
    return [*copies, args.step("scatter_rows", "ree_scatter_rows", (extent, inner), (extent, grain))]


def _scatter_axis(p: Planner, args: Args, value: int, axis: int) -> list[Step]:
    _, index, src = p.graph.node_of(value).inputs  # type: ignore[union-attr]
    out, position, source = p.layouts[value], p.layouts[index], p.layouts[src]
    axes = [a for a in range(len(out.shape)) if a != axis]
    shape = [position.shape[a] for a in axes] or [1]
    args.set(n=position.shape[axis], extent=out.shape[axis], rank=len(shape), shape=shape)
    args.set(out_stride=[out.strides[a] for a in axes] or [0], out_step=out.strides[axis])
    args.set(index_stride=[position.strides[a] for a in axes] or [0], index_step=position.strides[axis])
    args.set(src_stride=[source.strides[a] for a in axes] or [0], src_step=source.strides[axis])
    rows, cols = math.prod(shape[:-1]), shape[-1]
    return [args.step("scatter", "ree_scatter_axis", (rows, cols), (max(1, rows // 4), cols))]


SCHEDULES: dict[str, Callable[[Any, int, Step | None], list[Step]]] = {
    "matmul": matmul,
    "attention": attention,
    "conv": conv,
    "conv_transpose": conv,
    "argsort": sort,
    "argtopk": sort,
    "cumsum": scan,
    "cumprod": scan,
    "cummax_index": scan,
    "cummin_index": scan,
    "scatter": scatter,
    "scatter_rows": scatter,
    "expert_matmul": experts,
}
