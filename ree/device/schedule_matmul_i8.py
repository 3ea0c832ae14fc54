"""The schedule of exact products of bytes on a device: tiles for tensor cores, or B read once for a few rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ree.device.costs import RESERVED_BYTES, SUMS_BYTES_MAX
from ree.device.step import Args, Step
from ree.plan.layout import Layout
from ree.plan.step import Buffer, Slot
from ree.plan.weights import strided
from ree_kernels.cuda import Device

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

SLICE = 64  # k's that are multiplied together; packed B is filled up to whole slices
_COLUMNS = 16  # of a tile of packed B
_ROWS = 8  # of A that are multiplied with it
_PIECE = 16  # bytes that are copied together
_BLOCK = 256
_FEW_ROWS = 32
_FEW_THREADS = 256
_FEW_BLOCKS = 1.5  # of a multiprocessor at least, if columns can be cut so
_FEW_SUMS_MAX = 8  # tiles of 8 x 16 whose sums by all warps are in shared memory
_FEW_LOADS = 12  # of 16 bytes, of a thread, that are in flight together
_START_K = 512  # what a block's start and end take, as so many more k's
_SUM_SLICES = 8  # adding parts of k pays if each has so many slices


class Tile(NamedTuple):
    """What a block computes: m x n tiles of 8 x 16 of a warp, warps along rows and columns.

    stages: slices in shared memory; blocks: for which a multiprocessor is to have registers; speed: a guess, of its
    tensor cores' own.
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
        return _ROWS * self.m * self.warps_m

    @property
    def columns(self) -> int:
        return _COLUMNS * self.n * self.warps_n

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.rows + self.columns) * SLICE

    @property
    def defines(self) -> dict[str, int]:
        names = ("TILES_M", "TILES_N", "WARPS_M", "WARPS_N", "STAGES", "BLOCKS")
        return {f"REE_I8_{name}": value for name, value in zip(names, self[:6], strict=True)}


TILES = (
    Tile(8, 4, 2, 4, 4, 1, 0.5),  # 128 x 256
    Tile(8, 4, 2, 2, 4, 2, 0.45),  # 128 x 128
    Tile(4, 2, 2, 2, 4, 4, 0.3),  # 64 x 64
    Tile(4, 2, 1, 4, 4, 4, 0.3),  # 32 x 128
)


class Few(NamedTuple):
    """For up to 32 rows: tiles of 8 rows, tiles of 16 columns of a block."""

    m: int
    n: int

    @property
    def defines(self) -> dict[str, int]:
        slices = max(1, _FEW_LOADS // (2 * self.n + self.m))
        return {"REE_I8_FEW_M": self.m, "REE_I8_FEW_N": self.n, "REE_I8_FEW_SLICES": slices}


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
        tiles = -(-m // _ROWS)
        fitting = (c for c in (4, 2) if tiles * c <= _FEW_SUMS_MAX and n / (_COLUMNS * c) >= wanted)
        return Few(tiles, next(fitting, 1))
    slices = max(1, -(-k // SLICE))
    found: dict[tuple[Tile, int], float] = {}
    for tile in TILES:
        if tile.shared_bytes > device.shared_bytes_max:
            continue
        together = min(tile.blocks, (device.shared_bytes_max + RESERVED_BYTES) // (tile.shared_bytes + RESERVED_BYTES))
        blocks = -(-m // tile.rows) * -(-n // tile.columns)
        most = min(slices // _SUM_SLICES, device.multiprocessors * together // blocks, SUMS_BYTES_MAX // (4 * m * n))
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
    """A matrix [k, n], filled up with zeros, in the order that matmul_i8.cu describes: int8 [n / 16, k / 64, 1024]."""
    k, n = matrix.shape
    tiles, slices = -(-n // _COLUMNS), -(-k // SLICE)
    whole = np.zeros((tiles * _COLUMNS, slices * SLICE), np.int8)
    whole[:n, :k] = matrix.T
    # tile, half of its columns, g; slice, t, mma, half of its k's, k
    parts = whole.reshape(tiles, 2, 8, slices, 4, 2, 2, 4)
    return np.ascontiguousarray(parts.transpose(0, 3, 5, 2, 4, 6, 1, 7)).reshape(tiles, slices, _COLUMNS * SLICE)
