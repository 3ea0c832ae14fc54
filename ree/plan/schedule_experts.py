"""The schedule of `expert_matmul`: its weights packed once per expert, its step cut by columns first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

import ree_kernels.cpu as cpu
from ree.element import scalar
from ree.plan.args import Args
from ree.plan.step import Buffer, Slot, Step
from ree.plan.weights import strided
from ree.types import DType
from ree_kernels.experts import cut, pack_matrices, packing

if TYPE_CHECKING:
    from ree.plan.planner import Planner


def experts(p: Planner, value: int, epilogue: Step | None) -> list[Step]:
    """The step of an `expert_matmul` with constant weights."""
    node = p.graph.node_of(value)
    assert node is not None and epilogue is None
    x, w, expert = node.inputs
    rows, n = p.layouts[value].shape
    count, _, k = p.layouts[w].shape
    args = Args("ree_experts_args")
    args.point(x=p.pointer(x), expert=p.pointer(expert), w=_packed(p, w), out=p.pointer(value))
    args.set(x_row=p.layouts[x].strides[0], x_k=p.layouts[x].strides[1])
    args.set(expert_step=p.layouts[expert].strides[0], out_row=n, rows=rows, n=n, k=k, experts=count)
    bf16 = p.graph.type_of(w).dtype is DType.BF16
    args.set(w_packed=packing(cpu.kernels(), bf16))
    row_grain, col_grain, scratch_bytes = cut(cpu.kernels(), rows, (count, k, n), cpu.threads(), bf16)
    step = args.step(node.op, "ree_experts", (rows, n), (row_grain, col_grain), scratch_bytes)
    step.status = args.field("status")
    return [step]


def _packed(p: Planner, w: int) -> Slot:
    """The packed form of constant weights [E, O, I], seen through the strides of their view; f16 is widened."""
    layout, dtype = p.layouts[w], p.graph.type_of(w).dtype
    number = p.base[w] - len(p.graph.inputs)
    count, n, k = layout.shape

    def matrices() -> Iterator[np.ndarray]:
        for matrix in strided(p.weights.array(number), layout):
            yield (scalar.widen(matrix, dtype) if dtype is DType.F16 else matrix).T

    def make() -> np.ndarray:
        return pack_matrices(cpu.kernels(), matrices(), (count, k, n), dtype is DType.BF16)

    index, size_bytes = p.weights.packed(("experts", number, layout), make)
    return Slot(Buffer("packed", index, size_bytes))
