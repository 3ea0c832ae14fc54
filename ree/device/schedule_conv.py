"""The schedules of convolutions on a device: tiles of an implicit matrix product, or a thread for each output.

A tile's operands are gathered by a table from k to places (ree_kernels/cuda/conv.cu). Where tiles are too few for the
device, each chunk of k is another block's, and a second kernel adds the chunk sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ree.device.costs import FMAS_PER_CLOCK, L2_BYTES_PER_CLOCK, LAUNCH_CLOCKS, SUMS_BYTES_MAX
from ree.device.dot_tiles import TILES, Tile, cost, fitting
from ree.device.step import Args, Epilogue, Step
from ree.element.program import DOT_CHUNK as CHUNK
from ree.plan.convolution import sizes_of
from ree.plan.layout import Layout
from ree.plan.step import Buffer, Slot
from ree.plan.weights import strided
from ree_kernels.conv import Conv
from ree_kernels.cuda import Device

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

_ROW_BYTES = 32  # what a block keeps of each of its rows
_SUMS_BLOCK = 256
_DIRECT_BLOCK = 128
_TILED_OUTPUTS_MIN = 8  # of a group: with fewer, most of a tile would be padding
_PIXELS = 4  # REE_CONV_PIXELS
_TABLE_UNIT = 64  # k's to which a table is filled up: whole slices
_ROWS_MAX = 1 << 31
_PLACE_MAX = 1 << 15
_AXES = 3


@dataclass(frozen=True)
class _Way:
    """A convolution with what decides about its kernel; fours: four k's, or channels, are read at once."""

    sizes: Conv
    x: Layout
    fours: bool

    @property
    def ins(self) -> int:
        return self.sizes.channels // self.sizes.groups

    @property
    def outs(self) -> int:
        return self.sizes.outputs // self.sizes.groups

    @property
    def is_direct(self) -> bool:
        return self.sizes.groups > 1 and self.outs < _TILED_OUTPUTS_MIN

    @property
    def rows(self) -> int:
        """Rows of the kernel: of a transposed convolution those of all phases, each filled up to the most."""
        if not self.sizes.transposed:
            return self.sizes.rows
        extents = zip(self.sizes.out_shape, self.sizes.stride, strict=True)
        return self.sizes.batch * math.prod(-(-n // s) * s for n, s in extents)

    @property
    def defines(self) -> dict[str, int]:
        found = {"REE_CONV_FOURS": self.fours, "REE_CONV_TRANSPOSED": self.sizes.transposed}
        found["REE_CONV_PADDED"] = self.sizes.transposed or any(self.sizes.padding)
        return {name: 1 for name, wanted in found.items() if wanted}


def conv(p: DevicePlanner, value: int, epilogue: Epilogue | None) -> list[Step] | None:
    """The steps of `conv` or `conv_transpose` with constant weights."""
    x, w = p.node(value).inputs
    layout, slot, steps, sizes = p.layouts[x], p.pointer(x), [], sizes_of(p, value)
    if not _is_possible(sizes):
        return None
    if _may_have_fours(sizes) and not _has_fours(layout, slot):
        layout, slot, copy = p.dense(x, (0, *range(2, len(layout.shape)), 1))
        steps.append(copy)
    way = _Way(sizes, layout, _may_have_fours(sizes))
    make = _direct if way.is_direct else _tiled
    return [*steps, *make(p, value, w, slot, way, epilogue)]


def _is_possible(sizes: Conv) -> bool:
    """Whether the kernels' integers hold the extents; only absurd ones do not fit."""
    reach = [d * (k - 1) for d, k in zip(sizes.dilation, sizes.kernel, strict=True)]
    numbers = (2 * sizes.rows * math.prod(sizes.stride), sizes.depth + _TABLE_UNIT, *sizes.x_shape)
    return max(numbers) < _ROWS_MAX and max(reach, default=0) < _PLACE_MAX and sizes.groups < 1 << 16


def _may_have_fours(sizes: Conv) -> bool:
    ins, outs = sizes.channels // sizes.groups, sizes.outputs // sizes.groups
    return (
        ins % 4 == 0 if outs >= _TILED_OUTPUTS_MIN or sizes.groups == 1 else ins == outs == 1 and sizes.groups % 4 == 0
    )


def _has_fours(layout: Layout, slot: Slot) -> bool:
    """Whether channels lie side by side, those of every place aligned to 16 bytes."""
    steps = (s for axis, (n, s) in enumerate(zip(layout.shape, layout.strides, strict=True)) if n > 1 and axis != 1)
    return layout.strides[1] == 1 and slot.offset_bytes % 16 == 0 and all(step % 4 == 0 for step in steps)


# -- tiles ------------------------------------------------------------------------------------


def choose(device: Device, way: _Way) -> tuple[Tile, bool]:
    """The tile that takes the least time, and whether the chunks of k go to different blocks."""
    chunks = -(-way.sizes.depth // CHUNK)
    sums_bytes = 8 * chunks * way.sizes.rows * way.sizes.outputs
    adding = FMAS_PER_CLOCK * (LAUNCH_CLOCKS + sums_bytes / (L2_BYTES_PER_CLOCK * device.multiprocessors))
    found: dict[tuple[Tile, bool], float] = {}
    for tile in fitting(device, TILES, _ROW_BYTES):
        blocks = -(-way.rows // tile.rows) * -(-way.outs // tile.columns) * way.sizes.groups
        more = _ROW_BYTES * tile.rows
        found[tile, False] = cost(device, tile, blocks, way.sizes.depth, tile.shared(chunks > 1)[1] + more)
        if 1 < chunks < 1 << 16 and sums_bytes <= SUMS_BYTES_MAX:
            bytes_apart = tile.shared(False)[1] + more
            found[tile, True] = cost(device, tile, blocks * chunks, CHUNK, bytes_apart) + adding
    return min(found, key=lambda way: found[way])


def _tiled(p: DevicePlanner, value: int, w: int, x: Slot, way: _Way, epilogue: Epilogue | None) -> list[Step]:
    sizes = way.sizes
    tile, is_split = choose(p.device, way)
    chunks = -(-sizes.depth // CHUNK)
    row_tiles, column_tiles = -(-way.rows // tile.rows), -(-way.outs // tile.columns)
    totals_at, shared_bytes = tile.shared(chunks > 1 and not is_split)
    args = Args("conv.cu", "ree_conv_args", None if is_split else epilogue)
    weights, finite = _packed(p, w, way)
    args.point(x=x, w=weights, finite=finite, table=_table(p, way))
    args.set(rows=way.rows, channels=way.ins, outputs=way.outs, depth=sizes.depth, w_row=_columns(way.outs))
    args.set(row_tiles=row_tiles, column_tiles=column_tiles, totals_at=totals_at)
    args.set(chunks=1 if is_split else chunks, part_rows=sizes.rows)
    _set_places(args, way)
    sums = Slot(p.temporary(4 * chunks * sizes.rows * sizes.outputs)) if is_split else None
    if is_split or epilogue is None:
        args.point(out=sums or p.pointer(value))
        args.set(out_row=sizes.outputs)
    grid = (row_tiles * column_tiles, sizes.groups, chunks if is_split else 1)
    shared_bytes += _ROW_BYTES * tile.rows
    step = args.step(p.node(value).op, "ree_conv", grid, tile.threads, shared_bytes, way.defines | tile.defines)
    return [step] if sums is None else [step, _sums(p, value, sums, chunks, sizes, epilogue)]


def _sums(p: DevicePlanner, value: int, sums: Slot, chunks: int, sizes: Conv, epilogue: Epilogue | None) -> Step:
    """Adds the chunk sums of each output."""
    args = Args("chunk_sums.cu", "ree_chunk_sums_args", epilogue)
    args.point(sums=sums)
    args.set(chunks=chunks, rows=sizes.rows, columns=sizes.outputs)
    if epilogue is None:
        args.point(out=p.pointer(value))
        args.set(out_row=sizes.outputs)
    grid = (-(-sizes.rows * sizes.outputs // _SUMS_BLOCK), 1, 1)
    return args.step(p.node(value).op, "ree_chunk_sums", grid, _SUMS_BLOCK)


# -- a thread for each output -------------------------------------------------------------------


def _direct(p: DevicePlanner, value: int, w: int, x: Slot, way: _Way, epilogue: Epilogue | None) -> list[Step]:
    sizes = way.sizes
    args = Args("conv_direct.cu", "ree_conv_direct_args", epilogue)
    args.point(x=x, w=_packed(p, w, way)[0], table=_table(p, way))
    args.set(rows=way.rows, taps=sizes.taps, channels=way.ins, outputs=way.outs, all_outputs=sizes.outputs)
    _set_places(args, way)
    if epilogue is None:
        args.point(out=p.pointer(value))
        args.set(out_row=sizes.outputs)
    threads = -(-way.rows // _PIXELS) * (sizes.outputs // (4 if way.fours else 1))
    grid = (-(-threads // _DIRECT_BLOCK), 1, 1)
    return [args.step(p.node(value).op, "ree_conv_direct", grid, _DIRECT_BLOCK, 0, way.defines)]


# -- operands -----------------------------------------------------------------------------------


def _set_places(args: Args, way: _Way) -> None:
    """What conv_places.cuh asks for; leading axes that there are not have extent 1."""
    sizes, missing = way.sizes, _AXES - len(way.sizes.x_shape)
    args.set(x_n=way.x.strides[0], x_c=way.x.strides[1])
    args.set(x_stride=[0] * missing + list(way.x.strides[2:]), x_shape=[1] * missing + list(sizes.x_shape))
    args.set(out_shape=[1] * missing + list(sizes.out_shape), stride=[1] * missing + list(sizes.stride))
    args.set(pad=[0] * missing + list(sizes.padding))


def _columns(outs: int) -> int:
    """Columns of packed weights: a row begins at 16 bytes."""
    return -(-outs // 4) * 4


def _packed(p: DevicePlanner, w: int, way: _Way) -> tuple[Slot, Slot]:
    """The weights as the kernel reads them, and the word that says whether all of them are finite."""
    layout, number = p.layouts[w], p.base[w] - len(p.graph.inputs)

    def make() -> np.ndarray:
        plain = strided(p.weights.array(number), layout)
        packed = pack_direct(plain, way.sizes) if way.is_direct else pack_tiled(plain, way.sizes)
        finite = np.array([np.isfinite(packed).all()], np.int64)
        return np.concatenate([packed.reshape(-1).view(np.uint8), finite.view(np.uint8)])

    key = ("cuda_conv", number, layout, way.sizes.groups, way.sizes.transposed, way.is_direct)
    index, size_bytes = p.weights.packed(key, make)
    buffer = Buffer("packed", index, size_bytes)
    return Slot(buffer), Slot(buffer, size_bytes - 8)


def _by_k(weights: np.ndarray, sizes: Conv) -> np.ndarray:
    """[groups, taps, channels of a group, outputs of a group]."""
    ins, outs, taps = sizes.channels // sizes.groups, sizes.outputs // sizes.groups, sizes.taps
    if sizes.transposed:
        return weights.reshape(sizes.groups, ins, outs, taps).transpose(0, 3, 1, 2)
    return weights.reshape(sizes.groups, outs, ins, taps).transpose(0, 3, 2, 1)


def pack_tiled(weights: np.ndarray, sizes: Conv) -> np.ndarray:
    """float32 [groups, k, outputs of a group, filled up with zeros to a multiple of 4]."""
    plain = _by_k(weights, sizes)
    groups, taps, ins, outs = plain.shape
    packed = np.zeros((groups, taps, ins, _columns(outs)), np.float32)
    packed[..., :outs] = plain
    return packed


def pack_direct(weights: np.ndarray, sizes: Conv) -> np.ndarray:
    """float32 [k, outputs of all groups]."""
    return np.ascontiguousarray(_by_k(weights, sizes).transpose(1, 2, 0, 3), np.float32)


def _table(p: DevicePlanner, way: _Way) -> Slot:
    """The entries of conv_tap: one for each k, fourth k or, for the direct kernel, tap."""
    sizes = way.sizes
    ins, step = (1, 1) if way.is_direct else (way.ins, 4 if way.fours else 1)
    strides = sizes.stride if sizes.transposed else (1,) * len(sizes.stride)
    key = ("cuda_conv_table", ins, step, sizes.kernel, sizes.dilation, strides, sizes.transposed)
    index, size_bytes = p.weights.packed(key, lambda: table(sizes, ins, step))
    return Slot(Buffer("packed", index, size_bytes))


def table(sizes: Conv, ins: int, step: int) -> np.ndarray:
    """int32 [entries, 4]: k -> channel, phase, place along the axes (0 and 1 in 16 bits each).

    ins: channels of a tap; step: k's from entry to entry.
    """
    k = np.arange(0, -(-ins * sizes.taps // _TABLE_UNIT) * _TABLE_UNIT, step)
    taps = np.unravel_index(np.minimum(k // ins, sizes.taps - 1), sizes.kernel)
    phase, places = np.zeros(len(k), np.int64), [np.zeros(len(k), np.int64)] * (_AXES - len(taps))
    for tap, dilation, stride in zip(taps, sizes.dilation, sizes.stride, strict=True):
        if sizes.transposed:
            phase = phase * stride + tap * dilation % stride
        places.append(-(tap * dilation // stride) if sizes.transposed else tap * dilation)
    packed = places[1] << 16 | places[0] & 0xFFFF
    return np.stack([k % ins, phase, packed, places[2]], axis=1).astype(np.int32)
