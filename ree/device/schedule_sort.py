"""Sorting on a device: tiles in shared memory, and merges of sorted tiles where rows are longer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ree.device.step import STATUS, Args, Epilogue, Step
from ree.plan.layout import view
from ree.plan.step import Slot
from ree.types import DType

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

_FILE = "sort.cu"
_TARGET = 12  # the "dtype" of indices that are sorted by the places that they mean; as in the file
_NARROW_TILE, _WIDE_TILE = 4096, 2048  # items that a block sorts
_BLOCK_ITEMS_MIN = 1024  # shorter rows share a block
_ITEMS_PER_THREAD = 4  # as in the file
_MERGED = 1024  # places that a block merges
_MERGE_THREADS = 256
_SELECT_MIN = 4  # a tile's first few are selected where they are at most this part of it
_PARTS_MAX = 1 << 29
_INDEX_MAX = (1 << 32) - 1


@dataclass(frozen=True)
class Rows:
    """Rows of n elements along a value's last axis; strides count elements."""

    slot: Slot
    count: int
    n: int
    row: int
    step: int


def rows_of(p: DevicePlanner, value: int) -> tuple[Rows, list[Step]]:
    """A value as rows along its last axis, and the step that copies it if its memory is not one."""
    shape = p.layouts[value].shape or (1,)
    count, n = math.prod(shape[:-1]), shape[-1]
    layout = view("reshape", {}, (count, n), p.layouts[value])
    if layout is not None:
        return Rows(p.pointer(value), count, n, *layout.strides), []
    _, slot, step = p.dense(value)
    return Rows(slot, count, n, n, 1), [step]


def sort(p: DevicePlanner, value: int, epilogue: Epilogue | None) -> list[Step] | None:
    """argsort and argtopk."""
    assert epilogue is None
    node = p.node(value)
    rows, steps = rows_of(p, node.inputs[0])
    is_top = node.op == "argtopk"
    k = node.attrs["k"] if is_top else rows.n
    descending = node.attrs["largest"] if is_top else node.attrs["descending"]
    dtype = p.graph.type_of(node.inputs[0]).dtype
    is_wide = dtype is DType.I64
    flip = 0 if not descending else -1 if is_wide else 0xFFFFFFFF
    sorter = Sorter(p, rows, list(DType).index(dtype), flip, is_wide)
    if not sorter.is_possible:
        return None
    out = p.pointer(value)
    if rows.n <= sorter.tile:
        return [*steps, sorter.indices(rows.slot, None, rows.n, k, out)]
    if k * _SELECT_MIN <= sorter.tile:
        return [*steps, *sorter.select(k, out)]
    return [*steps, *sorter.merge(k, out)[0]]


@dataclass
class Sorter:
    """The launches that sort rows; dtype, flip, extent: as ree_kernels/cuda/sort.cu has them."""

    p: DevicePlanner
    rows: Rows
    dtype: int
    flip: int = 0
    is_wide: bool = False
    extent: int = 0

    @property
    def is_possible(self) -> bool:
        """Whether kernels have numbers for all that there is."""
        parts = self.rows.count * -(-self.rows.n // self.tile)
        return self.rows.n < _INDEX_MAX and self.extent < _INDEX_MAX and parts < _PARTS_MAX

    @property
    def tile(self) -> int:
        return _WIDE_TILE if self.is_wide else _NARROW_TILE

    @property
    def item_bytes(self) -> int:
        return 16 if self.is_wide else 8

    def indices(self, keys: Slot | None, items: Slot | None, n: int, k: int, out: Slot) -> Step:
        """The indices of the first k of rows that a tile holds, given by keys or by items."""
        return self._tiles(keys, items, n, k, self._args(out=out), out_row=k)

    def items(self) -> tuple[list[Step], Slot, int]:
        """All items of each row in order, where they are, and how far rows are apart (what is behind n is no item)."""
        n, count = self.rows.n, self.rows.count
        if n > self.tile:
            return self.merge(n, None)
        kept = self._temporary(count * n)
        return [self._tiles(self.rows.slot, None, n, n, self._args(kept=kept))], kept, n

    def select(self, k: int, out: Slot) -> list[Step]:
        """The first k of each row, from those of its tiles, and of tiles of those."""
        keys: Slot | None = self.rows.slot
        items, n, steps = None, self.rows.n, []
        while n > self.tile:
            tiles = -(-n // self.tile)
            kept = self._temporary(self.rows.count * tiles * k)
            steps.append(self._tiles(keys, items, n, k, self._args(kept=kept)))
            keys, items, n = None, kept, tiles * k
        return [*steps, self.indices(keys, items, n, k, out)]

    def merge(self, k: int, out: Slot | None) -> tuple[list[Step], Slot, int]:
        """Sorted tiles, merged in pairs; the indices of the first k to `out`, or else all items as for `items`."""
        count, n = self.rows.count, -(-self.rows.n // self.tile) * self.tile
        items, spare = self._temporary(count * n), self._temporary(count * n)
        steps = [self._tiles(self.rows.slot, None, self.rows.n, self.tile, self._args(kept=items))]
        run = self.tile
        while run < n:
            args = Args(_FILE, "ree_sort_merge_args")
            is_last = 2 * run >= n and out is not None
            places = k if is_last else n
            args.point(items=items, **({"out": out} if is_last and out is not None else {"merged": spare}))
            args.set(n=n, run=run, blocks=-(-places // _MERGED), k=k, out_row=k)
            grid = (count * -(-places // _MERGED), 1, 1)
            steps.append(self._step(args, "ree_sort_merge", grid, _MERGE_THREADS))
            items, spare, run = spare, items, 2 * run
        return steps, items, n

    def _temporary(self, items: int) -> Slot:
        return Slot(self.p.temporary(items * self.item_bytes))

    def _args(self, **places: Slot) -> Args:
        args = Args(_FILE, "ree_sort_tiles_args")
        args.point(**places)
        return args

    def _tiles(self, keys: Slot | None, items: Slot | None, n: int, keep: int, args: Args, out_row: int = 0) -> Step:
        """Sort tiles of rows of n, of which the first `keep` are wanted."""
        rows = self.rows
        bits, run_bits = (max(0, m - 1).bit_length() for m in (min(n, self.tile), keep))
        tiles = -(-n // self.tile)
        if keys is not None:
            args.point(x=keys)
        elif items is not None:
            args.point(items=items)
        if self.dtype == _TARGET:
            args.point(status=STATUS)
        args.set(rows=rows.count, n=n, x_row=rows.row, x_step=rows.step, tiles=tiles, tile_bits=bits, keep=keep)
        args.set(run_bits=run_bits, out_row=out_row, dtype=self.dtype, flip=self.flip, extent=self.extent)
        wanted = max(4 * 32, min(_BLOCK_ITEMS_MIN, 1 << (rows.count * tiles - 1).bit_length() + bits))
        per_block = max(1 << bits, wanted)
        grid = -(-rows.count * tiles // (per_block >> bits))
        shared_bytes = per_block * self.item_bytes
        return self._step(args, "ree_sort_tiles", (grid, 1, 1), per_block // _ITEMS_PER_THREAD, shared_bytes)

    def _step(self, args: Args, kernel: str, grid: tuple[int, int, int], block: int, shared_bytes: int = 0) -> Step:
        width = "wide" if self.is_wide else "narrow"
        return args.step("sort", f"{kernel}_{width}", grid, block, shared_bytes, {"REE_SORT_MERGED": _MERGED})


def sorted_targets(p: DevicePlanner, indices: Rows, extent: int) -> tuple[list[Step], Slot, int] | None:
    """Rows of indices as items target * 2^32 + place in the row, in order; see `Sorter.items`."""
    sorter = Sorter(p, indices, _TARGET, extent=extent)
    return sorter.items() if sorter.is_possible else None
