"""Tiles of ree_kernels/cuda/dot_tile.cuh, and which of them a product is cut into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ree.device.costs import RESERVED_BYTES
from ree_kernels.cuda import Device

_WARPS_FULL = 8  # on a multiprocessor: with so many, their chains hide all latencies
_START_K = 64  # what a block's start and end take, as so many more k's


class Tile(NamedTuple):
    """What a block computes: m x n results of a thread, 8 x 4 threads of a warp, warps along rows and columns.

    k: of a slice; stages: slices in shared memory; blocks: for which a multiprocessor is to have registers; speed: a
    guess, of the device's FMAs.
    """

    m: int
    n: int
    warps_m: int
    warps_n: int
    k: int
    stages: int
    blocks: int
    speed: float

    @property
    def rows(self) -> int:
        return 8 * self.m * self.warps_m

    @property
    def columns(self) -> int:
        return 4 * self.n * self.warps_n

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    def stage_bytes(self, b_bytes: int = 4) -> int:
        """Shared memory of a slice; b_bytes: of an element of B."""
        return 4 * self.rows * (self.k + 4) + b_bytes * self.k * self.columns

    def shared(self, has_chunks: bool, b_bytes: int = 4) -> tuple[int, int]:
        """Where the totals begin behind the stages, and the bytes of both; without chunks they take turns."""
        stages, totals = self.stages * self.stage_bytes(b_bytes), 4 * self.rows * (self.columns + 8)
        return (stages, stages + totals) if has_chunks else (0, max(stages, totals))

    @property
    def defines(self) -> dict[str, int]:
        return {
            "REE_TILE_M": self.m,
            "REE_TILE_N": self.n,
            "REE_WARPS_M": self.warps_m,
            "REE_WARPS_N": self.warps_n,
            "REE_SLICE": self.k,
            "REE_STAGES": self.stages,
            "REE_TILE_BLOCKS": self.blocks,
        }


TILES = (
    Tile(8, 16, 2, 2, 16, 2, 2, 0.85),
    Tile(8, 16, 4, 1, 16, 2, 2, 0.85),
    Tile(8, 8, 2, 2, 16, 2, 3, 0.75),
    Tile(4, 8, 2, 2, 16, 3, 4, 0.6),
    Tile(4, 4, 2, 2, 16, 3, 6, 0.45),
    Tile(8, 4, 4, 1, 16, 2, 4, 0.5),
    Tile(2, 4, 2, 2, 16, 4, 7, 0.3),
)


def cost(device: Device, tile: Tile, blocks: int, k: int, shared_bytes: int) -> float:
    """How long a grid of tiles takes, each over k, in FMAs of one multiprocessor; it tells tiles apart, no more."""
    each = -(-blocks // device.multiprocessors)
    by_memory = (device.shared_bytes_max + RESERVED_BYTES) // (shared_bytes + RESERVED_BYTES)
    resident = max(1, min(each, by_memory, tile.blocks))
    busy = min(1.0, resident * tile.warps_m * tile.warps_n / _WARPS_FULL)
    return each * tile.rows * tile.columns * (k + _START_K) / (tile.speed * busy)


def fitting(device: Device, tiles: Sequence[Tile], row_bytes: int, b_bytes: int = 4) -> list[Tile]:
    """Those whose blocks the device has shared memory for; row_bytes: what else they keep there for each row."""
    return [t for t in tiles if t.shared(True, b_bytes)[1] + row_bytes * t.rows <= device.shared_bytes_max]
