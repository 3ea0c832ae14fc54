"""Scatters on a device: every changed element is one thread's, which does its writes in order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ree.device.schedule_sort import Rows, sorted_targets
from ree.device.step import STATUS, Args, Epilogue, Step
from ree.plan.layout import Layout, view

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

_FILE = "scatter.cu"
_REDUCES = ("set", "add", "mul", "min", "max")  # as the file numbers them
_AXES_MAX = 8
_BLOCK = 256
_WALKED_MIN = 512  # slices for a multiprocessor, from which on each is one thread's
_SEARCHED_MAX = 128  # writes in a slice among which a thread looks for its target's others
_THREADS_MAX = 1 << 31


@dataclass(frozen=True)
class _Axis:
    """An extent, and the strides of out, index and src along it, in elements."""

    extent: int
    out: int
    index: int
    src: int

    def joins(self, inner: _Axis) -> bool:
        """Whether this axis and the next inner one are as one in all three."""
        pairs = ((self.out, inner.out), (self.index, inner.index), (self.src, inner.src))
        return all(outer == inner.extent * step for outer, step in pairs)


def scatter(p: DevicePlanner, value: int, epilogue: Epilogue | None) -> list[Step] | None:
    """scatter and scatter_rows."""
    assert epilogue is None
    node = p.node(value)
    x, index, src = node.inputs
    out, indices, source = (p.layouts[v] for v in (value, index, src))
    if node.op == "scatter_rows":
        axis, position = 0, Layout((indices.shape[0], out.shape[1]), (indices.strides[0], 0))
    else:
        axis, position = node.attrs["axis"], indices
    written = _Axis(position.shape[axis], out.strides[axis], position.strides[axis], source.strides[axis])
    axes = _merged(
        [
            _Axis(position.shape[a], out.strides[a], position.strides[a], source.strides[a])
            for a in range(len(out.shape))
            if a != axis
        ]
    )
    slices = math.prod(a.extent for a in axes)
    if len(axes) > _AXES_MAX or slices >= _THREADS_MAX:
        return None
    copy = p.jit_step(p.fuser.copy(x, out, tuple(range(len(out.shape)))), x, p.pointer(value))
    if slices * written.extent == 0:
        return [copy]
    args = Args(_FILE, "ree_scatter_args")
    args.point(out=p.pointer(value), index=p.pointer(index), src=p.pointer(src), status=STATUS)
    args.set(slices=slices, n=written.extent, extent=out.shape[axis], rank=len(axes))
    args.set(shape=[a.extent for a in axes], out_stride=[a.out for a in axes])
    args.set(index_stride=[a.index for a in axes], src_stride=[a.src for a in axes])
    args.set(out_step=written.out, index_step=written.index, src_step=written.src)
    form, steps = _form(p, args, value, axis, slices, written.extent)
    defines = {"REE_SCATTER_REDUCE": _REDUCES.index(node.attrs["reduce"])}
    threads = slices * (1 if form == "walk" else written.extent)
    kernel = f"ree_scatter_{form}_{p.graph.type_of(value).dtype.value}"
    return [copy, *steps, args.step(node.op, kernel, (-(-threads // _BLOCK), 1, 1), _BLOCK, 0, defines)]


def _merged(axes: list[_Axis]) -> list[_Axis]:
    """The axes, neighbours that are as one joined."""
    merged: list[_Axis] = []
    for axis in axes:
        if axis.extent == 1:
            continue
        if merged and merged[-1].joins(axis):
            axis = _Axis(merged.pop().extent * axis.extent, axis.out, axis.index, axis.src)
        merged.append(axis)
    return merged


def _form(p: DevicePlanner, args: Args, value: int, axis: int, slices: int, n: int) -> tuple[str, list[Step]]:
    """Which kernel, and the steps that sort the writes for it."""
    if slices >= _WALKED_MIN * p.device.multiprocessors or slices * n >= _THREADS_MAX:
        return "walk", []
    if n <= _SEARCHED_MAX:
        return "search", []
    node = p.node(value)
    index = node.inputs[1]
    extent = p.layouts[value].shape[axis]
    rows, copies = _rows_along(p, index, axis)
    found = sorted_targets(p, rows, extent)
    if found is None:
        return "walk", []
    steps, items, items_slice = found
    args.point(items=items)
    args.set(items_slice=0 if node.op == "scatter_rows" else items_slice)
    return "sorted", [*copies, *steps]


def _rows_along(p: DevicePlanner, value: int, axis: int) -> tuple[Rows, list[Step]]:
    """A value as rows along an axis, in the order of its slices, and a step that copies it where these are not one."""
    layout = p.layouts[value]
    order = (*(a for a in range(len(layout.shape)) if a != axis), axis)
    n = layout.shape[axis]
    count = math.prod(layout.shape) // n
    turned = Layout(tuple(layout.shape[a] for a in order), tuple(layout.strides[a] for a in order))
    flat = view("reshape", {}, (count, n), turned)
    if flat is not None:
        return Rows(p.pointer(value), count, n, *flat.strides), []
    _, slot, copy = p.dense(value, order)
    return Rows(slot, count, n, n, 1), [copy]
