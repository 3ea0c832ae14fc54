"""The schedule of exact products of bytes on a device: tiles for tensor cores, or B read once for a few rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ree.device.step import Args, Step
from ree.plan.layout import Layout
from ree.plan.step import Buffer, Slot
from ree.plan.weights import strided
from ree_kernels.cuda import Device

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

SLICE = 64  # k's that are multiplied together; packed B is filled up to whole slices
_COLUMNS = 8  # of a tile of packed B
_PIECE = 16  # bytes that are copied together
_BLOCK = 256
_FEW_ROWS = 32
_FEW_THREADS = 256
_FEW_BLOCKS = 1.5  # of a multiprocessor at least, if columns can be cut so
_FEW_LOADS = 8  # of 16 bytes, of a thread, at once
_SUMS_BYTES_MAX = 1 << 28
_START_K = 512  # what a block's start and end take, as so many more k's
_SUM_SLICES = 8  # adding parts of k pays if each has so many slices
_RESERVED_BYTES = 1024  # of shared memory, for each block


class Tile(NamedTuple):
    """What a block computes: m x n tiles of 16 x 8 of a warp, warps along rows and columns.

    stages: slices in shared memory; blocks: for which a multiprocessor has registers; speed: a guess, of its tensor
    cores' own.
    """

    m: int
    n: int
    warps_m: int
    warps_n: int
    stages: int
    blocks: int
    speed: float

    @property
    def rows(self) -> int:
        return 16 * self.m * self.warps_m

    @property
    def columns(self) -> int:
        return 8 * self.n * self.warps_n

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.rows + self.columns) * SLICE

    @property
    def defines(self) -> dict[str, int]:
        names = ("REE_I8_TILES_M", "REE_I8_TILES_N", "REE_I8_WARPS_M", "REE_I8_WARPS_N", "REE_I8_STAGES")
        return dict(zip(names, self[:5], strict=True))


TILES = (
    Tile(4, 8, 2, 4, 4, 1, 0.5),  # 128 x 256
    Tile(4, 4, 2, 4, 4, 2, 0.45),  # 128 x 128
    Tile(2, 4, 2, 2, 4, 4, 0.3),  # 64 x 64
    Tile(2, 4, 1, 4, 4, 4, 0.3),  # 32 x 128
)


class Few(NamedTuple):
    """For up to 32 rows: tiles of 16 rows, tiles of 8 columns of a block."""

    m: int
    n: int

    @property
    def defines(self) -> dict[str, int]:
        loads = max(self.n, _FEW_LOADS // self.m)
        return {"REE_I8_FEW_M": self.m, "REE_I8_FEW_N": self.n, "REE_I8_FEW_LOADS": loads}


def matmul_i8(p: DevicePlanner, value: int) -> list[Step]:
    """The steps of a product into int32 with a constant matrix."""
    a, b = p.node(value).inputs
    (m, n), k = p.layouts[value].shape, p.layouts[a].shape[-1]
    rows, a_row, steps = _rows(p, a)
    way = choose(p.device, m, n, k)
    args = Args("matmul_i8.cu", "ree_matmul_i8_args")
    args.point(a=rows, b=_packed(p, b))
    args.set(a_row=a_row, m=m, n=n, k=k)
    if isinstance(way, Few):
        args.point(c=p.pointer(value))
        grid = (-(-n // (_COLUMNS * way.n)), 1, 1)
        return [*steps, args.step("matmul", "ree_matmul_i8_few", grid, _FEW_THREADS, 0, way.defines)]
    tile, parts = way
    slices = -(-k // SLICE)
    row_tiles, column_tiles = -(-m // tile.rows), -(-n // tile.columns)
    args.set(slices=max(1, -(-slices // parts)), row_tiles=row_tiles, column_tiles=column_tiles)
    sums = p.pointer(value) if parts == 1 else Slot(p.temporary(4 * parts * m * n))
    args.point(c=sums)
    grid = (row_tiles * column_tiles, parts, 1)
    steps.append(args.step("matmul", "ree_matmul_i8", grid, tile.threads, tile.shared_bytes, tile.defines))
    return steps if parts == 1 else [*steps, _sum(p, value, sums, parts, m * n)]


def choose(device: Device, m: int, n: int, k: int) -> Few | tuple[Tile, int]:
    """The kernel for a product: few rows, or a tile and the parts that k is cut into for different blocks."""
    if m <= _FEW_ROWS:
        wanted = _FEW_BLOCKS * device.multiprocessors
        columns = next((c for c in (4, 2) if n / (_COLUMNS * c) >= wanted), 1)
        return Few(-(-max(m, 1) // 16), columns)
    slices = max(1, -(-k // SLICE))
    found: dict[tuple[Tile, int], float] = {}
    for tile in TILES:
        if tile.shared_bytes > device.shared_bytes_max:
            continue
        together = min(
            tile.blocks, (device.shared_bytes_max + _RESERVED_BYTES) // (tile.shared_bytes + _RESERVED_BYTES)
        )
        blocks = -(-m // tile.rows) * -(-n // tile.columns)
        most = min(slices // _SUM_SLICES, device.multiprocessors * together // blocks, _SUMS_BYTES_MAX // (4 * m * n))
        for parts in {1, max(1, most)}:
            each = -(-blocks * parts // device.multiprocessors)
            busy = min(each, together) / together
            work = each * tile.rows * tile.columns * (-(-slices // parts) * SLICE + _START_K)
            found[tile, parts] = work / (tile.speed * busy)
    return min(found, key=lambda way: found[way])


def _sum(p: DevicePlanner, value: int, parts: Slot, count: int, elements: int) -> Step:
    args = Args("matmul_i8.cu", "ree_matmul_i8_sum_args")
    args.point(parts=parts, c=p.pointer(value))
    args.set(count=count, elements=elements)
    return args.step("matmul", "ree_matmul_i8_sum", (-(-elements // _BLOCK), 1, 1), _BLOCK)


def _rows(p: DevicePlanner, a: int) -> tuple[Slot, int, list[Step]]:
    """Where A lies in pieces of 16 bytes, the bytes from row to row, and the step that copies it there, if need be."""
    layout, slot = p.layouts[a], p.pointer(a)
    if _has_pieces(layout, slot):
        return slot, layout.strides[0], []
    (m, k), row = layout.shape, -(-layout.shape[1] // _PIECE) * _PIECE
    copied = Slot(p.temporary(m * row))
    args = Args("matmul_i8.cu", "ree_matmul_i8_rows_args")
    args.point(a=slot, rows=copied)
    args.set(a_row=layout.strides[0], a_k=layout.strides[1], m=m, k=k, row=row)
    grid = (max(1, -(-m * row // (4 * _BLOCK))), 1, 1)
    return copied, row, [args.step("matmul", "ree_matmul_i8_rows", grid, _BLOCK)]


def _has_pieces(layout: Layout, slot: Slot) -> bool:
    (m, k), (row, step) = layout.shape, layout.strides
    return k % _PIECE == 0 and step == 1 and (row % _PIECE == 0 or m == 1) and slot.offset_bytes % _PIECE == 0


def _packed(p: DevicePlanner, b: int) -> Slot:
    """The packed form of a constant [k, n] matrix, seen through the strides of its view."""
    layout, number = p.layouts[b], p.base[b] - len(p.graph.inputs)
    key = ("cuda_matmul_i8", number, layout)
    index, size_bytes = p.weights.packed(key, lambda: pack(strided(p.weights.array(number), layout)))
    return Slot(Buffer("packed", index, size_bytes))


def pack(matrix: np.ndarray) -> np.ndarray:
    """int8 [n / 8, k / 64, 8, 64] of a matrix [k, n], filled up with zeros."""
    k, n = matrix.shape
    tiles, slices = -(-n // _COLUMNS), -(-k // SLICE)
    packed = np.zeros((tiles, _COLUMNS, slices, SLICE), np.int8)
    packed.reshape(tiles * _COLUMNS, slices * SLICE)[:n, :k] = matrix.T
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3))
