"""The schedule of matrix products on a device: operands, the choice of kernel, launches.

Two kernels (ree_kernels/cuda/): `matmul_rows` for few rows and a constant matrix, whose time is that of reading it;
`matmul` for the rest, in tiles; `chunk_sums` after either where blocks share the chunks of k. All give the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ree.device.matmul_tiles import PANEL, ROWS_MAX, Lies, Rows, TileChoice, choose_rows, choose_tile
from ree.device.step import Args, Epilogue, Step
from ree.element.program import DOT_CHUNK as CHUNK
from ree.plan.layout import Layout, merge_batch
from ree.plan.step import Buffer, Slot
from ree.plan.weights import strided
from ree.types import DType

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

_BATCH_AXES_MAX = 4
_EXTENT_MAX = 1 << 30
_PANELS_K_MAX = 1 << 22
_OFFSET_BYTES_MAX = 1 << 31  # from the first to the last element that a block reads in a step
_OUTER_MAX = 256  # rows or columns of a tile
_K_MAX, _ROWS_K_MAX = 9 * CHUNK, 129 * CHUNK  # k from a step's first to its last
_SUMS_BLOCK = 256


class _Operand(NamedTuple):
    """A matrix of each batch item: its place; strides in elements along its outer axis, k and the batch axes."""

    slot: Slot
    lies: Lies
    outer: int
    k: int
    batch: tuple[int, ...] = ()


class _Product(NamedTuple):
    """m x n products of length k for each batch item; batch: extents of its axes."""

    m: int
    n: int
    k: int
    batch: tuple[int, ...]
    a: _Operand
    b: _Operand

    @property
    def items(self) -> int:
        return math.prod(self.batch)


def matmul(p: DevicePlanner, value: int, epilogue: Epilogue | None) -> list[Step] | None:
    if p.kinds[value] == "matmul_i8":
        from ree.device.schedule_matmul_i8 import matmul_i8

        return matmul_i8(p, value)
    product, copies = _product(p, value)
    m, n, k, _, a, b = product
    is_panels = b.lies in (Lies.PANELS, Lies.PANELS_BF16)
    if max(m, n, k) > _EXTENT_MAX or (is_panels and k > _PANELS_K_MAX):
        return None
    if is_panels and m <= ROWS_MAX and 4 * a.k * _ROWS_K_MAX < _OFFSET_BYTES_MAX:
        return copies + _rows(p, value, epilogue, product)
    return copies + _tiles(p, value, epilogue, product)


# -- launches ---------------------------------------------------------------------------------


def _rows(p: DevicePlanner, value: int, epilogue: Epilogue | None, product: _Product) -> list[Step]:
    """The kernel for few rows."""
    m, n, k, _, a, b = product
    choice = choose_rows(p.device, m, n, k, b.lies is Lies.PANELS_BF16)
    is_split = choice.splits > 1
    args = Args("matmul_rows.cu", "ree_matmul_rows_args", None if is_split else epilogue)
    args.point(a=a.slot, b=b.slot)
    args.set(m=m, n=n, k=k, a_row=a.outer, a_k=a.k, splits=choice.splits)
    sums = _point_results(p, value, args, product, is_split, epilogue)
    grid = (-(-n // (PANEL * choice.panels)) * choice.splits, 1, 1)
    defines = _rows_defines(choice, _is_aligned(a, k, of_k=True), is_split)
    step = args.step("matmul", "ree_matmul_rows", grid, choice.threads, choice.shared_bytes, defines)
    return [step, *_add_sums(p, value, epilogue, product, sums)]


def _rows_defines(choice: Rows, is_a16: bool, is_split: bool) -> dict[str, int]:
    values = {
        "ROWS": choice.rows,
        "PANELS": choice.panels,
        "CHUNKS": choice.chunks,
        "STEP": choice.step,
        "STAGES": choice.stages,
        "BLOCKS": choice.blocks,
        "BF16": choice.is_bf16,
        "A16": is_a16,
        "SPLIT": is_split,
    }
    return {f"REE_MATMUL_{name}": int(value) for name, value in values.items()}


def _tiles(p: DevicePlanner, value: int, epilogue: Epilogue | None, product: _Product) -> list[Step]:
    """The kernel that computes tiles."""
    m, n, k, batch, a, b = product
    choice = choose_tile(p.device, m, n, k, product.items, a.lies, b.lies)
    is_split = choice.splits > 1
    args = Args("matmul.cu", "ree_matmul_args", None if is_split else epilogue)
    args.point(a=a.slot, b=b.slot)
    args.set(m=m, n=n, k=k, rows=m * product.items, splits=choice.splits)
    args.set(a_row=a.outer, a_k=a.k, b_col=b.outer, b_k=b.k)
    fill = _BATCH_AXES_MAX - len(batch)
    args.set(batch=[1] * fill + list(batch))
    args.set(a_batch=[0] * fill + list(a.batch), b_batch=[0] * (_BATCH_AXES_MAX - len(b.batch)) + list(b.batch))
    sums = _point_results(p, value, args, product, is_split, epilogue)
    tile = choice.tile
    grid = (-(-m // tile.bm) * -(-n // tile.bn) * product.items * choice.splits, 1, 1)
    defines = _tile_defines(choice, a.lies, b.lies, is_split)
    step = args.step("matmul", "ree_matmul", grid, tile.threads, choice.shared_bytes, defines)
    return [step, *_add_sums(p, value, epilogue, product, sums)]


def _tile_defines(choice: TileChoice, a: Lies, b: Lies, is_split: bool) -> dict[str, int]:
    tile = choice.tile
    values = {
        "BM": tile.bm,
        "BN": tile.bn,
        "TM": tile.tm,
        "TN": tile.tn,
        "LANE_ROWS": tile.lane_rows,
        "GROUPS": tile.groups,
        "STEP": tile.step,
        "STAGES": choice.stages,
        "BLOCKS": choice.blocks,
        "A": a,
        "B": b,
        "SPLIT": is_split,
        "SHORT": choice.is_short and not is_split,
    }
    return {f"REE_MATMUL_{name}": int(value) for name, value in values.items()}


def _point_results(
    p: DevicePlanner, value: int, args: Args, product: _Product, is_split: bool, epilogue: Epilogue | None
) -> Slot | None:
    """Say where results go; gives the place of chunk sums where blocks share the chunks."""
    if is_split:
        chunks = -(-product.k // CHUNK)
        sums = Slot(p.temporary(4 * chunks * product.m * product.items * product.n))
        args.point(sums=sums)
        return sums
    if epilogue is None:
        args.point(out=p.pointer(value))
        args.set(out_row=product.n)
    return None


def _add_sums(
    p: DevicePlanner, value: int, epilogue: Epilogue | None, product: _Product, sums: Slot | None
) -> list[Step]:
    """The launch that adds chunk sums, if there are any."""
    if sums is None:
        return []
    rows = product.m * product.items
    args = Args("chunk_sums.cu", "ree_chunk_sums_args", epilogue)
    args.point(sums=sums)
    args.set(chunks=-(-product.k // CHUNK), rows=rows, columns=product.n)
    if epilogue is None:
        args.point(out=p.pointer(value))
        args.set(out_row=product.n)
    grid = (-(-rows * product.n // _SUMS_BLOCK), 1, 1)
    return [args.step("matmul", "ree_chunk_sums", grid, _SUMS_BLOCK)]


# -- operands -----------------------------------------------------------------------------------


def _product(p: DevicePlanner, value: int) -> tuple[_Product, list[Step]]:
    """A node's product, and the steps that copy operands which no kernel reads as they lie."""
    a, b = p.node(value).inputs
    shape = p.layouts[value].shape
    m, n, k = shape[-2], shape[-1], p.layouts[a].shape[-1]
    layout_a, slot_a, copies = p.layouts[a], p.pointer(a), []
    if not _is_readable(layout_a):
        layout_a, slot_a, copy = p.dense(a)
        copies.append(copy)
    if p.graph.constant_of(p.base[b]) is not None and len(shape) == 2:
        slot, lies = _packed_matrix(p, b)
        operand = _operand(layout_a.strides[-2], layout_a.strides[-1], (), slot_a, m)
        return _Product(m, n, k, (), operand, _Operand(slot, lies, PANEL * k, PANEL)), copies
    layout_b, slot_b = p.layouts[b], p.pointer(b)
    if not _is_readable(layout_b):
        layout_b, slot_b, copy = p.dense(b)
        copies.append(copy)
    batch = merge_batch(layout_a, layout_b)
    if len(batch) > _BATCH_AXES_MAX:
        layout_a, slot_a, copy_a = p.dense(a)
        layout_b, slot_b, copy_b = p.dense(b)
        copies = [copy_a, copy_b]
        batch = merge_batch(layout_a, layout_b)
    row = layout_a.strides[-2]
    if len(batch) == 1 and batch[0][2] == 0 and (m == 1 or batch[0][1] == m * row):
        row, m, batch = batch[0][1] if m == 1 else row, m * batch[0][0], []  # one B for all: the items are rows
    operand_a = _operand(row, layout_a.strides[-1], tuple(x[1] for x in batch), slot_a, m)
    strides_b = tuple(x[2] for x in batch)
    operand_b = _operand(layout_b.strides[-1], layout_b.strides[-2], strides_b, slot_b, n)
    return _Product(m, n, k, tuple(x[0] for x in batch), operand_a, operand_b), copies


def _is_readable(layout: Layout) -> bool:
    """Whether a kernel can walk the two last axes: no stride is negative, offsets within a tile fit in 32 bits."""
    strides = layout.strides
    reach = 4 * max(_OUTER_MAX * strides[-2] + _K_MAX * strides[-1], _OUTER_MAX * strides[-1] + _K_MAX * strides[-2])
    return min(strides) >= 0 and reach < _OFFSET_BYTES_MAX


def _operand(outer: int, k: int, batch: tuple[int, ...], slot: Slot, extent: int) -> _Operand:
    """How a float32 operand lies; extent: of its outer axis."""
    operand = _Operand(slot, Lies.STRIDED, outer, k, batch)
    if outer == 1 and extent > 1:
        return operand._replace(lies=Lies.OUTER16 if _is_aligned(operand, extent, of_k=False) else Lies.OUTER)
    return operand._replace(lies=Lies.INNER) if k == 1 else operand


def _is_aligned(operand: _Operand, extent: int, of_k: bool) -> bool:
    """Whether groups of 4 elements along k, or else along the outer axis, are aligned to 16 bytes.

    What a caller gives may lie anywhere; all else begins at 16 bytes at least.
    """
    along, across = (operand.k, operand.outer) if of_k else (operand.outer, operand.k)
    ours = operand.slot.buffer.kind not in ("input", "output")
    steps = (extent, across, *operand.batch)
    return along == 1 and ours and operand.slot.offset_bytes % 16 == 0 and all(step % 4 == 0 for step in steps)


def _packed_matrix(p: DevicePlanner, b: int) -> tuple[Slot, Lies]:
    """A constant [k, n] matrix in panels, seen through the strides of its view; f16 is widened, bf16 stays."""
    layout, number, dtype = p.layouts[b], p.base[b] - len(p.graph.inputs), p.graph.type_of(b).dtype

    def make() -> np.ndarray:
        source = strided(p.weights.array(number), layout)
        return pack_panels(source.astype(np.float32) if dtype is DType.F16 else source)

    key = ("cuda_matmul", number, layout.shape, layout.strides, layout.offset)
    index, size_bytes = p.weights.packed(key, make)
    return Slot(Buffer("packed", index, size_bytes)), Lies.PANELS_BF16 if dtype is DType.BF16 else Lies.PANELS


def pack_panels(matrix: np.ndarray) -> np.ndarray:
    """[k, n] -> [panels of 8 columns, k, 8], filled up with zeros."""
    k, n = matrix.shape
    packed = np.zeros((-(-n // PANEL), k, PANEL), matrix.dtype)
    whole = n // PANEL
    packed[:whole] = matrix[:, : whole * PANEL].reshape(k, whole, PANEL).transpose(1, 0, 2)
    if n % PANEL:
        packed[whole, :, : n % PANEL] = matrix[:, whole * PANEL :]
    return packed
