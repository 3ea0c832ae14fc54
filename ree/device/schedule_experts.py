"""The schedule of `expert_matmul` on a device: rows grouped by expert into tiles, or each row for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ree.device.dot_tiles import Tile, cost, fitting
from ree.device.step import GRID_Y_MAX, STATUS, Args, Epilogue, Step
from ree.element import scalar
from ree.element.program import DOT_CHUNK as CHUNK
from ree.plan.layout import Layout
from ree.plan.step import Buffer, Slot
from ree.plan.weights import strided
from ree.types import DType
from ree_kernels.cuda import Device

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

TILES = (
    Tile(8, 16, 2, 2, 16, 2, 2, 0.85),  # 128 x 128
    Tile(8, 8, 2, 2, 16, 2, 3, 0.75),  # 128 x 64
    Tile(4, 8, 2, 2, 16, 3, 4, 0.6),  # 64 x 64
    Tile(2, 8, 2, 2, 16, 4, 6, 0.4),  # 32 x 64
    Tile(1, 8, 2, 2, 16, 4, 7, 0.25),  # 16 x 64
)
_EXPERTS_MAX = 1024  # threads of the block that groups rows
_EACH_ROWS_MAX = 1.0  # of an expert on average: with more, reading its matrix once for several rows pays
_FEW_ROWS = 4
_WARPS_MAX = 8
_ROW_BYTES = 4  # what a block keeps of each of its rows
_INT_MAX = 1 << 31


class _Product(NamedTuple):
    """A node's extents, and how its operands lie."""

    rows: int
    n: int
    k: int
    experts: int
    x: Layout
    expert_step: int
    is_bf16: bool

    @property
    def w_bytes(self) -> int:
        return 2 if self.is_bf16 else 4

    @property
    def w_row(self) -> int:
        """Elements from row to row of packed weights: a row begins at 16 bytes."""
        unit = 16 // self.w_bytes
        return -(-self.n // unit) * unit


class Few(NamedTuple):
    """Each row for itself; columns: of a lane."""

    columns: int


def experts(p: DevicePlanner, value: int, epilogue: Epilogue | None) -> list[Step] | None:
    """The steps of an `expert_matmul` with constant weights."""
    x, w, expert = p.node(value).inputs
    rows, n = p.layouts[value].shape
    count, _, k = p.layouts[w].shape
    is_bf16 = p.graph.type_of(w).dtype is DType.BF16
    product = _Product(rows, n, k, count, p.layouts[x], p.layouts[expert].strides[0], is_bf16)
    if count > _EXPERTS_MAX or max(rows, k) >= _INT_MAX:
        return None
    way = choose(p.device, rows, n, k, count, product.w_bytes)
    if isinstance(way, Few):
        return [_few(p, value, product, way)]
    return _grouped(p, value, product, way)


def choose(device: Device, rows: int, n: int, k: int, experts: int, w_bytes: int) -> Few | Tile:
    """The kernel for a product: each row for itself, or tiles of an expert's rows."""
    few_fits = rows <= GRID_Y_MAX and 4 * -(-k // CHUNK) * 32 * 8 <= device.shared_bytes_max // 2
    if few_fits and rows <= max(_FEW_ROWS, _EACH_ROWS_MAX * experts):
        widest, least = (8, 2) if w_bytes == 2 else (4, 1)
        columns = widest
        while columns > least and rows * -(-n // (32 * columns)) < device.multiprocessors:
            columns //= 2
        return Few(columns)
    each = -(-rows // experts)
    found: dict[Tile, float] = {}
    for tile in fitting(device, TILES, _ROW_BYTES, w_bytes):
        blocks = experts * -(-each // tile.rows) * -(-n // tile.columns)
        found[tile] = cost(device, tile, blocks, k, tile.shared(k > CHUNK, w_bytes)[1])
    return min(found, key=lambda tile: found[tile])


def _few(p: DevicePlanner, value: int, product: _Product, way: Few) -> Step:
    x, w, expert = p.node(value).inputs
    rows, n, k, count, layout, expert_step, is_bf16 = product
    args = Args("experts_few.cu", "ree_experts_few_args")
    args.point(x=p.pointer(x), expert=p.pointer(expert), w=_packed(p, w, product), out=p.pointer(value), status=STATUS)
    args.set(x_row=layout.strides[0], x_k=layout.strides[1], expert_step=expert_step)
    args.set(n=n, k=k, w_row=product.w_row, experts=count)
    chunks, columns = -(-k // CHUNK), 32 * way.columns
    defines = {"REE_EXPERTS_COLUMNS": way.columns} | ({"REE_EXPERTS_BF16": 1} if is_bf16 else {})
    grid, block = (-(-n // columns), rows, 1), 32 * max(1, min(chunks, _WARPS_MAX))
    return args.step("expert_matmul", "ree_experts_few", grid, block, 4 * chunks * columns, defines)


def _grouped(p: DevicePlanner, value: int, product: _Product, tile: Tile) -> list[Step]:
    x, w, expert = p.node(value).inputs
    rows, n, k, count, layout, expert_step, is_bf16 = product
    tiles_max = rows // tile.rows + min(count, rows)
    order, tiles = Slot(p.temporary(4 * rows)), Slot(p.temporary(16 * (tiles_max + 1)))
    defines = tile.defines | ({"REE_TILE_BF16": 1} if is_bf16 else {})
    if _has_fours(product, p.pointer(x)):
        defines["REE_EXPERTS_FOURS"] = 1
    group = Args("experts.cu", "ree_experts_group_args")
    group.point(expert=p.pointer(expert), order=order, tiles=tiles, status=STATUS)
    group.set(expert_step=expert_step, rows=rows, experts=count, tiles_max=tiles_max)
    args = Args("experts.cu", "ree_experts_args")
    args.point(x=p.pointer(x), w=_packed(p, w, product), order=order, tiles=tiles, out=p.pointer(value))
    column_tiles = -(-n // tile.columns)
    totals_at, shared_bytes = tile.shared(k > CHUNK, product.w_bytes)
    args.set(x_row=layout.strides[0], x_k=layout.strides[1], n=n, k=k, w_row=product.w_row, out_row=n)
    args.set(tiles_max=tiles_max, column_tiles=column_tiles, totals_at=totals_at)
    grid = (tiles_max * column_tiles, 1, 1)
    return [
        group.step("expert_matmul", "ree_experts_group", (1, 1, 1), _EXPERTS_MAX, 0, defines),
        args.step("expert_matmul", "ree_experts", grid, tile.threads, shared_bytes, defines),
    ]


def _has_fours(product: _Product, slot: Slot) -> bool:
    row, step = product.x.strides
    return step == 1 and row % 4 == 0 and product.k % 4 == 0 and slot.offset_bytes % 16 == 0


def _packed(p: DevicePlanner, w: int, product: _Product) -> Slot:
    """The packed form of constant weights [E, O, I], seen through the strides of their view; f16 is widened."""
    layout, dtype, number = p.layouts[w], p.graph.type_of(w).dtype, p.base[w] - len(p.graph.inputs)

    def make() -> np.ndarray:
        plain = strided(p.weights.array(number), layout)
        packed = np.zeros((product.experts, product.k, product.w_row), np.uint16 if product.is_bf16 else np.float32)
        for expert, matrix in enumerate(plain):  # one at a time: all together are large
            packed[expert, :, : product.n] = (scalar.widen(matrix, dtype) if dtype is DType.F16 else matrix).T
        return packed

    index, size_bytes = p.weights.packed(("cuda_experts", number, layout), make)
    return Slot(Buffer("packed", index, size_bytes))
