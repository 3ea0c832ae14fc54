"""Which kernel computes a matrix product on a device, and in which tiles; no choice changes a bit.

Times are in clocks of one multiprocessor, from a few rates; they only have to tell one choice from another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from ree.device.costs import FMAS_PER_CLOCK, L2_BYTES_PER_CLOCK, LAUNCH_CLOCKS, RESERVED_BYTES, SUMS_BYTES_MAX
from ree.element.program import DOT_CHUNK as CHUNK
from ree_kernels.cuda import Device

PANEL = 8
ROWS_MAX = 16  # of the kernel for few rows
_WARPS_FULL = 16  # of a multiprocessor: so many hide each other's waits
_BLOCK_CLOCKS = 2500  # what a block takes besides its products


class Lies(IntEnum):
    """How an operand lies in memory, as in matmul.cuh."""

    STRIDED = 0
    INNER = 1
    OUTER = 2
    OUTER16 = 3
    PANELS = 4
    PANELS_BF16 = 5


_FIXED_K = (Lies.INNER, Lies.PANELS, Lies.PANELS_BF16)
_COPIES_MAX = 24  # of a thread, where each needs registers


class Tile(NamedTuple):
    """A tile of ree_matmul: rows and columns of a block, of a thread; rows of threads in a warp; groups; k of a step.

    stages: the most; blocks: that a multiprocessor should hold; speed: part of the FMAs that it then reaches, a guess.
    """

    bm: int
    bn: int
    tm: int
    tn: int
    lane_rows: int
    groups: int
    step: int
    stages: int
    blocks: int
    speed: float

    @property
    def threads(self) -> int:
        return self.groups * (self.bm // self.tm) * (self.bn // self.tn)

    def is_short(self, k: int) -> bool:
        """Whether there are no totals to keep."""
        return k <= CHUNK and self.groups == 1

    def shared_bytes(self, stages: int, a: Lies, b: Lies, is_short: bool, is_split: bool) -> int:
        ring = stages * (self._stage_bytes(self.bm, a) + self._stage_bytes(self.bn, b))
        if b is Lies.PANELS_BF16:
            ring += 2 * 4 * self.groups * self.step * _pitch(self.bn, b)
        totals = 4 * self.bm * self.bn
        return ring if is_split else max(ring, totals) if is_short else ring + totals

    def _stage_bytes(self, outer: int, lies: Lies) -> int:
        if lies is not Lies.PANELS_BF16:
            return 4 * self.groups * self.step * _pitch(outer, lies)
        copies = self.groups * outer * self.step // 8
        return 16 * -(-copies // self.threads) * self.threads


def _pitch(outer: int, lies: Lies) -> int:
    return outer + (8 if lies is Lies.PANELS else 4)


TILES = (
    Tile(128, 128, 8, 8, 4, 1, 16, 3, 2, 0.88),
    Tile(128, 128, 8, 8, 4, 1, 8, 4, 2, 0.86),
    Tile(128, 64, 8, 8, 4, 2, 16, 3, 2, 0.85),
    Tile(128, 64, 8, 8, 4, 1, 16, 3, 3, 0.85),
    Tile(128, 32, 8, 8, 8, 4, 16, 3, 2, 0.78),
    Tile(64, 64, 8, 8, 4, 4, 16, 3, 2, 0.82),
    Tile(64, 64, 8, 8, 4, 1, 16, 3, 6, 0.82),
    Tile(64, 32, 8, 8, 8, 8, 8, 4, 2, 0.78),
    Tile(64, 32, 8, 8, 8, 1, 16, 3, 8, 0.78),
    Tile(32, 64, 8, 8, 4, 8, 8, 4, 2, 0.78),
    Tile(32, 32, 8, 4, 4, 8, 8, 4, 2, 0.6),
    Tile(32, 32, 8, 4, 4, 1, 16, 3, 14, 0.6),
    Tile(16, 64, 4, 8, 4, 8, 8, 4, 2, 0.6),
    Tile(16, 32, 4, 4, 4, 8, 8, 4, 2, 0.4),
    Tile(16, 32, 4, 4, 4, 1, 16, 4, 16, 0.4),
)


class TileChoice(NamedTuple):
    """A tile as it is launched; blocks: that a multiprocessor holds; splits: that share the chunks of one tile."""

    tile: Tile
    stages: int
    blocks: int
    splits: int
    shared_bytes: int
    is_short: bool


def choose_tile(device: Device, m: int, n: int, k: int, items: int, a: Lies, b: Lies) -> TileChoice:
    """The tile for a product of `items` batch items."""
    return _choose_tile(device.multiprocessors, device.shared_bytes_max, m, n, k, items, a, b)


@functools.lru_cache(4096)
def _choose_tile(
    multiprocessors: int, shared_max: int, m: int, n: int, k: int, items: int, a: Lies, b: Lies
) -> TileChoice:
    found: list[tuple[float, int, TileChoice]] = []
    for number, tile in enumerate(TILES):
        for splits in _splits(multiprocessors, tile, m, n, k, items):
            fitting = fit(shared_max, tile, a, b, tile.is_short(k), splits > 1)
            if fitting is not None:
                stages, blocks, shared_bytes = fitting
                clocks = _clocks(multiprocessors, tile, blocks, splits, m, n, k, items)
                found.append((clocks, number, TileChoice(tile, stages, blocks, splits, shared_bytes, tile.is_short(k))))
    return min(found)[2]


def _tiles(tile: Tile, m: int, n: int, items: int) -> int:
    return -(-m // tile.bm) * -(-n // tile.bn) * items


def _splits(multiprocessors: int, tile: Tile, m: int, n: int, k: int, items: int) -> Iterator[int]:
    """1 and, where tiles alone are too few, how many blocks could share one."""
    yield 1
    tiles, rounds = _tiles(tile, m, n, items), -(-k // (CHUNK * tile.groups))
    sums_bytes = 4 * m * n * items * -(-k // CHUNK)
    most = min(rounds, tile.blocks * multiprocessors // max(1, tiles))
    if most > 1 and sums_bytes <= SUMS_BYTES_MAX:
        yield from {most, min(most, max(2, multiprocessors // tiles))}


def fit(shared_max: int, tile: Tile, a: Lies, b: Lies, is_short: bool, is_split: bool) -> tuple[int, int, int] | None:
    """Stages, blocks that a multiprocessor then holds, and shared memory; None: not even one block fits."""
    for blocks in range(_blocks_by_registers(tile, a, b, is_split), 0, -1):
        for stages in range(tile.stages, 1, -1):
            shared_bytes = tile.shared_bytes(stages, a, b, is_short, is_split)
            if shared_bytes <= (shared_max + RESERVED_BYTES) // blocks - RESERVED_BYTES:
                return stages, blocks, shared_bytes
    return None


def _blocks_by_registers(tile: Tile, a: Lies, b: Lies, is_split: bool) -> int:
    """Fewer than are good for speed where addresses need more registers: strides along k that are no constants."""
    unknown = (a not in _FIXED_K) + (b not in _FIXED_K)
    if unknown == 2 and (tile.bm + tile.bn) * tile.step * tile.groups > _COPIES_MAX * tile.threads:
        return 0
    is_crowded = unknown == 2 or (unknown == 1 and (tile.groups > 1 or is_split))
    return max(1, tile.blocks // 2) if is_crowded else tile.blocks


def _clocks(multiprocessors: int, tile: Tile, blocks: int, splits: int, m: int, n: int, k: int, items: int) -> float:
    each = -(-_tiles(tile, m, n, items) * splits // multiprocessors)  # blocks that one multiprocessor runs
    at_once = min(blocks, each)
    rounds = -(-k // (CHUNK * tile.groups))
    last = min(CHUNK, k - (rounds - 1) * CHUNK * tile.groups)
    if splits > 1:
        rounds, last = -(-rounds // splits), CHUNK
    k_run = tile.groups * ((rounds - 1) * CHUNK + last)
    rate = FMAS_PER_CLOCK * tile.speed * min(1.0, at_once * tile.threads / 32 / _WARPS_FULL) ** 0.25
    products = each * tile.bm * tile.bn * k_run / rate
    traffic = each * 4 * (tile.bm + tile.bn) * min(k, k_run) / L2_BYTES_PER_CLOCK
    sums = 0.0
    if splits > 1:
        sums_bytes = 2 * 4 * m * n * items * -(-k // CHUNK)
        sums = LAUNCH_CLOCKS + sums_bytes / multiprocessors / L2_BYTES_PER_CLOCK
    return max(products, traffic) + -(-each // at_once) * _BLOCK_CLOCKS + sums


class Rows(NamedTuple):
    """How ree_matmul_rows is launched: see there. splits: blocks that share the chunks of the same columns."""

    rows: int
    panels: int
    chunks: int
    step: int
    stages: int
    blocks: int
    splits: int
    is_bf16: bool

    @property
    def threads(self) -> int:
        return self.panels * self.chunks * (PANEL // 2 if self.is_bf16 else PANEL)

    @property
    def stage_bytes(self) -> int:
        row_bytes = PANEL * (2 if self.is_bf16 else 4)
        units = self.panels * self.chunks * (self.step + 1) * row_bytes
        return units + 4 * self.rows * self.chunks * (self.step + 4)

    @property
    def shared_bytes(self) -> int:
        return self.stages * self.stage_bytes + 4 * (self.chunks + 1) * self.rows * self.panels * PANEL


_UNDER_WAY_BYTES = 56 << 10  # that the blocks of a multiprocessor should wait for at a time
_STAGE_BYTES = 20 << 10
_CHUNKS_BYTES = 56 << 10  # that the chunks of a block take at least
_REGISTERS = 65536  # of a multiprocessor
_ROWS_REGISTERS = 72  # of a thread
_ROWS_THREADS = 256  # of a block where there are enough blocks
_ROWS_THREADS_MAX = 512
_BLOCK_BYTES_MAX = 1 << 18  # of B: a block that reads more is shared out where there are few
_STAGES_MAX = 8


def choose_rows(device: Device, m: int, n: int, k: int, is_bf16: bool) -> Rows:
    """The launch of the kernel for few rows: m <= ROWS_MAX."""
    unit_threads = PANEL // (2 if is_bf16 else 1)
    all_panels, all_chunks = -(-n // PANEL), max(1, -(-k // CHUNK))
    panels = _panels(device.multiprocessors, all_panels, 8 if is_bf16 else 4)
    blocks, splits = -(-all_panels // panels), 1
    if 2 * blocks < device.multiprocessors and panels * PANEL * k * (2 if is_bf16 else 4) > _BLOCK_BYTES_MAX:
        splits = min(device.multiprocessors // blocks, -(-all_chunks // 4))
    threads = _ROWS_THREADS if blocks >= 2 * device.multiprocessors else _ROWS_THREADS_MAX
    rows = Rows(m if m <= 4 else -(-m // 4) * 4, panels, 1, 8, 2, 1, 1, is_bf16)
    whole_warps = 32 // math.gcd(32, panels * unit_threads)
    by_memory = _CHUNKS_BYTES // rows.shared_bytes
    at_once = max(whole_warps, min(threads // (panels * unit_threads), by_memory) // whole_warps * whole_warps)
    own = -(-all_chunks // splits)
    chunks = -(-own // -(-own // at_once))  # as even as can be
    chunks = -(-chunks // whole_warps) * whole_warps
    splits = min(splits, -(-all_chunks // chunks))
    rows = rows._replace(chunks=chunks, splits=splits, step=32)
    while rows.step > 8 and rows.stage_bytes > _STAGE_BYTES:
        rows = rows._replace(step=rows.step // 2)
    by_registers = _REGISTERS // (rows.threads * (_ROWS_REGISTERS + 6 * rows.rows))
    resident = max(1, min(4, by_registers, blocks * splits // device.multiprocessors))
    steps = CHUNK // rows.step * -(-all_chunks // (chunks * splits))
    room = (device.shared_bytes_max + RESERVED_BYTES) // resident - RESERVED_BYTES - rows.shared_bytes
    wanted = 1 + -(-_UNDER_WAY_BYTES // (resident * rows.stage_bytes))
    stages = min(wanted, steps + 1, 2 + room // rows.stage_bytes, _STAGES_MAX)
    return rows._replace(stages=max(2, stages), blocks=resident)


def _panels(multiprocessors: int, all_panels: int, most: int) -> int:
    """Panels of a block: as many as leave two blocks to each multiprocessor, or at least one."""
    for least in (1.9, 0.95):
        panels = most
        while panels >= 1:
            if -(-all_panels // panels) >= least * multiprocessors:
                return panels
            panels //= 2
    return 1
