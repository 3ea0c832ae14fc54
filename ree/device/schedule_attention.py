"""Attention on a device: over tensors, and over a cache of keys and values."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ree.device.step import Args, Epilogue, Step
from ree.element.cuda_hook import HEADER, print_function
from ree.element.llvm import Layout as KernelLayout
from ree.element.program import DOT_CHUNK as CHUNK
from ree.element.program import Program
from ree.errors import DeviceError
from ree.ops.attention import exp_program, score_program
from ree.plan.fuse import Kernel
from ree.plan.layout import Layout, contiguous
from ree.plan.step import Buffer, Slot
from ree.plan.stream import LAYER_STATES, SLOTS, Layer, Stream

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

_FLOAT_BYTES = 4
_COMPONENTS_MAX = 256  # of a key in a tile: one chunk
_EXTENT_MAX = 1 << 30
_SCRATCH_PART = 16  # of the device's memory, the most that one operator takes as scratch memory

# the tiles' kernel, ree_kernels/cuda/attention.cu
_TILE_FORMS = ((4, 2), (8, 2), (4, 4))  # warps of a block, and of these those along keys
_TILE_WARPS_WANTED = 8  # of a multiprocessor: fewer do not cover each other's latencies
_TILED_ROWS_MIN = 32  # over a cache: of a sequence in a stretch
_STRETCH_TOKENS_MIN = 4

# the kernels that split keys, ree_kernels/cuda/attention_split.cu
_UNIT_ROWS_MAX = 16
_SPLIT_ROWS_MAX = 64  # over tensors, if there are too few tiles
_CHUNK_THREADS = 256
_COPY_BYTES_MAX = 64 << 10  # of a block
_BLOCKS_PER_MULTIPROCESSOR = 16  # of a grid that is cut for the whole context


def attention(p: DevicePlanner, value: int, epilogue: Epilogue | None) -> list[Step] | None:
    """The launches of an attention; None if there is no kernel for its sizes (DeviceError in a streamed plan)."""
    node = p.node(value)
    batch, heads, tokens, d_v = p.layouts[value].shape
    _, k_heads, keys, d = p.layouts[node.inputs[1]].shape
    rows = batch * heads * tokens
    fits = epilogue is None and min(d, d_v, keys) > 0 and max(rows, keys) <= _EXTENT_MAX
    fits = fits and _Split.of(p, d, d_v, _UNIT_ROWS_MAX) is not None
    if p.stream is not None:
        if not fits:
            raise DeviceError(f"attention with heads of {d} components is not supported on a GPU")
        return _cached(p, value, p.stream)
    if not fits:
        return None
    source = _Source(p, value, d, d_v, batch, k_heads, heads // k_heads, tokens, keys)
    tile = _Tile.of(source)
    if tile is None or _is_split(source, tile):
        return [*source.copies, *_split_steps(source, None)]
    return [*source.copies, _tile_step(source, tile)]


def _is_split(source: _Source, tile: _Tile) -> bool:
    """Whether there are so few rows that parts of their keys go to different blocks."""
    rows, tiles = source.tokens * source.group, source.items * source.k_heads * tile.count(source)
    return rows <= _UNIT_ROWS_MAX or (rows <= _SPLIT_ROWS_MAX and tiles < source.p.device.multiprocessors)


# -- operands ---------------------------------------------------------------------------------


@dataclass
class _Source:
    """What an attention reads: its extents, and its operands' places, dense along components."""

    p: DevicePlanner
    value: int
    d: int
    d_v: int
    items: int
    k_heads: int
    group: int
    tokens: int
    keys: int

    def __post_init__(self) -> None:
        self.node = self.p.node(self.value)
        self.copies: list[Step] = []
        self.values: dict[str, int] = {}
        self.pointers: dict[str, Slot] = {}
        for name, source in zip("qkv", self.node.inputs, strict=False):
            layout, slot = self.p.layouts[source], self.p.pointer(source)
            if layout.strides[3] != 1 and layout.shape[3] != 1:
                layout, slot, copy = self.p.dense(source)
                self.copies.append(copy)
            self.place(name, slot, layout)
        self.place("out", self.p.pointer(self.value), self.p.layouts[self.value])
        self.is_plain = self.node.attrs["mask"] == "none" and not self.node.attrs.get("softcap")
        self.causal, self.window = bool(self.node.attrs["causal"]), int(self.node.attrs.get("window", 0))

    def place(self, name: str, slot: Slot, layout: Layout) -> None:
        """Let an operand lie here; layout: [item, head, token, component]."""
        self.pointers[name] = slot
        for part, stride in zip(("item", "head", "token"), layout.strides, strict=False):
            self.values[f"{name}_{part}"] = stride

    def args(self, file: str, struct: str) -> Args:
        """An argument struct of either file with what both have in common."""
        args = Args(file, struct, _score_hook(self.p, self.value))
        args.point(**self.pointers)
        args.set(**self.values, items=self.items, k_heads=self.k_heads, group=self.group, tokens=self.tokens)
        args.set(keys=self.keys, causal=int(self.causal), window=self.window)
        return args

    def temporary(self, *extents: int) -> Slot:
        """Scratch memory for so many floats."""
        return Slot(self.p.temporary(_FLOAT_BYTES * math.prod(extents)))


def _score_hook(p: DevicePlanner, value: int) -> Epilogue:
    """The two functions that kernels call on scores: ree_score with its arguments, and ree_exp."""
    node = p.node(value)
    batch, heads, tokens, _ = p.layouts[value].shape
    space = (batch, heads, tokens, p.layouts[node.inputs[1]].shape[2])
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    program = score_program(None if mask is None else p.graph.type_of(mask).dtype, node.attrs)
    masks = [] if mask is None else [mask]
    kernel = Kernel(program, masks, [contiguous(space), *(p.layouts[m] for m in masks), contiguous(space)], [], space)
    text = print_function("ree_score", program, kernel.structure(), (0,))
    values = [kernel.layouts[f.number].strides[f.axis] if f.kind == "stride" else 0 for f in text.fields] or [0]
    pointers = [(n, p.pointer(masks[0])) for n, f in enumerate(text.fields) if f.kind == "port"]
    return Epilogue(HEADER + text.text + _exp_text(exp_program()), values, pointers, kernel, value)


@functools.cache
def _exp_text(program: Program) -> str:
    text = print_function("ree_exp_of", program, KernelLayout(((), ()), 0), (0,)).text
    return text + "REE_INLINE f32 ree_exp(f32 x) { return ree_exp_of(ree_exp_of_args(), x); }\n"


# -- tiles of rows ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    """A form of the tiles' kernel. warps: of a block, warps_n of them along keys; kept: scores stay in memory."""

    d: int
    d_v: int
    warps: int
    warps_n: int
    kept: bool = True

    @staticmethod
    def of(source: _Source) -> _Tile | None:
        """The form for these operands; None if the device has not the shared memory."""
        forms = [_Tile(source.d, source.d_v, *form) for form in _TILE_FORMS if source.d_v <= 64 * form[1]]
        fitting = [form for form in forms if source.d <= _COMPONENTS_MAX and form.fits(source)]
        return max(fitting, key=lambda form: min(form.warps * form.blocks(source), _TILE_WARPS_WANTED), default=None)

    def fits(self, source: _Source) -> bool:
        return self.shared_bytes <= source.p.device.shared_bytes_max

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def rows(self) -> int:
        return 32 * (self.warps // self.warps_n)

    @property
    def step(self) -> int:
        """Keys between barriers; fewer leave shared memory for a second block."""
        return 32 if self.kept else 16

    @property
    def value_fours(self) -> int:
        return -(-self.d_v // (32 * self.warps_n))

    @property
    def shared_bytes(self) -> int:
        """As in attention.cu."""
        keys, columns = 64 * self.warps_n, 32 * self.warps_n * self.value_fours
        scores = self.rows * _padded(self.d) + 2 * keys * 32 + 8 * self.threads
        weights = 2 * self.rows * (self.step + 4) if self.kept else self.rows * (keys + 4)
        values = weights + 2 * self.step * columns + self.rows * columns
        facts_bytes = _round_up(104 + 40 * self.rows + self.rows // 2, 16)
        return facts_bytes + _FLOAT_BYTES * (max(scores, values) if self.kept else scores + values)

    def blocks(self, source: _Source) -> int:
        """Of a multiprocessor: as many as its shared memory and the registers of what they compute allow."""
        by_memory = (source.p.device.shared_bytes_max + 1024) // (self.shared_bytes + 1024)
        warps = 8 if not self.kept else 16 if self.value_fours == 1 and source.is_plain else 12
        return max(1, min(by_memory, warps // self.warps))

    def stretch(self, source: _Source) -> tuple[int, int]:
        """Tokens that are cut into tiles together, and how many tiles these may be."""
        tokens = max(1, self.rows // source.group)
        if source.group > self.rows:
            tokens = _STRETCH_TOKENS_MIN
        return tokens, -(-tokens * source.group // self.rows)

    def count(self, source: _Source) -> int:
        """Tiles of one head of keys."""
        tokens, tiles = self.stretch(source)
        return -(-source.tokens // tokens) * tiles

    def defines(self, source: _Source) -> dict[str, int]:
        return {
            "REE_HEAD": self.d, "REE_VALUE": self.d_v, "REE_WARPS": self.warps, "REE_WARPS_N": self.warps_n,
            "REE_STEP": self.step, "REE_KEPT": int(self.kept), "REE_BLOCKS": self.blocks(source),
            "REE_SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip


def _padded(components: int) -> int:
    return (-(-components // 4) | 1) * 4


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _tile_step(source: _Source, tile: _Tile) -> Step:
    device = source.p.device
    tiles = source.items * source.k_heads * tile.count(source)
    score_row = _round_up(source.keys, CHUNK)
    block_bytes = _FLOAT_BYTES * tile.rows * score_row
    scratch_blocks = max(1, device.memory_bytes // _SCRATCH_PART // block_bytes)
    grid = min(tiles, tile.blocks(source) * device.multiprocessors)
    if grid > scratch_blocks:
        again = replace(tile, kept=False)
        tile = again if again.fits(source) else tile
        grid = min(tiles, tile.blocks(source) * device.multiprocessors, tiles if again is tile else scratch_blocks)
    args = source.args("attention.cu", "ree_attention_args")
    stretch, per_stretch = tile.stretch(source)
    args.set(stretch=stretch, tiles=per_stretch, rows_min=_TILED_ROWS_MIN)
    args.set(score_row=score_row, chunks=score_row // CHUNK)
    if tile.kept:
        args.point(scores=source.temporary(grid, tile.rows, score_row))
    args.point(sums=source.temporary(grid, tile.rows, score_row // CHUNK))
    return args.step("attention", "ree_attention", (grid, 1, 1), tile.threads, tile.shared_bytes, tile.defines(source))


# -- parts of the keys ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """A form of the kernels that split keys. rows: of a unit; span: keys of a block of scores; columns: of values."""

    d: int
    d_v: int
    rows: int
    span: int
    columns: int

    @staticmethod
    def of(p: DevicePlanner, d: int, d_v: int, rows: int) -> _Split | None:
        """The form for these operands; None if the device has not the shared memory.

        A block copies 64 KiB at most: with two or three of them a multiprocessor has enough of the memory's bandwidth
        in flight.
        """
        most = min(_COPY_BYTES_MAX, p.device.shared_bytes_max // 2)
        spans = [n for n in (128, 64, 32) if _FLOAT_BYTES * n * d <= most]
        blocks = -(-d_v * CHUNK * _FLOAT_BYTES // most)
        form = _Split(d, d_v, rows, max(spans, default=32), _round_up(-(-d_v // blocks), 4))
        return form if max(form.span_bytes, form.chunk_bytes) <= p.device.shared_bytes_max else None

    @property
    def column_blocks(self) -> int:
        return -(-self.d_v // self.columns)

    @property
    def span_bytes(self) -> int:
        return _FLOAT_BYTES * (self.rows + self.span) * _padded(self.d)

    @property
    def chunk_bytes(self) -> int:
        return _FLOAT_BYTES * (CHUNK * self.columns + self.rows * (CHUNK + 16))


def _split_steps(source: _Source, tile: _Tile | None) -> list[Step]:
    """The launches for rows that the kernel of `tile` leaves out (None: for all), few enough for scratch memory."""
    p, keys = source.p, _round_up(source.keys, CHUNK)
    rows = min(_UNIT_ROWS_MAX, 1 << (source.tokens * source.group - 1).bit_length())
    split = _Split.of(p, source.d, source.d_v, rows)
    assert split is not None
    stretch = tile.stretch(source)[0] if tile else 0
    token_bytes = source.items * source.k_heads * source.group * (keys + keys // CHUNK * source.d_v) * _FLOAT_BYTES
    wave = max(1, p.device.memory_bytes // _SCRATCH_PART // token_bytes)
    wave = min(source.tokens, _round_up(wave, stretch or max(1, rows // source.group)))
    return [
        step for first in range(0, source.tokens, wave) for step in _split_wave(source, split, stretch, first, wave)
    ]


def _split_wave(source: _Source, split: _Split, stretch: int, first: int, wave: int) -> list[Step]:
    keys = _round_up(source.keys, CHUNK)
    spans, chunks = keys // split.span, keys // CHUNK
    places = source.items * source.k_heads * wave
    rows, units = places * source.group, places * -(-source.group // split.rows)
    temporaries = {
        "scores": source.temporary(rows, keys),
        "largest": source.temporary(rows, spans),
        "parts": source.temporary(rows, chunks, split.d_v),
        "sums": source.temporary(split.column_blocks, rows, chunks),
        "done": source.temporary(units, split.column_blocks),
    }
    defines = {"REE_HEAD": split.d, "REE_VALUE": split.d_v, "REE_ROWS": split.rows, "REE_SPAN": split.span}
    defines |= {"REE_COLUMNS": split.columns, "REE_SPAN_BYTES": split.span_bytes, "REE_CHUNK_BYTES": split.chunk_bytes}
    defines["REE_BLOCKS"] = 3 if split.rows <= 8 else 2
    blocks = _BLOCKS_PER_MULTIPROCESSOR * source.p.device.multiprocessors

    def launch(kernel: str, parts: int, cuts: int, threads: int, shared_bytes: int) -> Step:
        args = source.args("attention_split.cu", "ree_split_args")
        args.point(**temporaries)
        args.set(first_token=first, wave=wave, rows=rows, score_row=keys, spans=spans, chunks=chunks)
        args.set(unit_tokens=max(1, split.rows // source.group), token_units=-(-source.group // split.rows))
        args.set(stretch=stretch, rows_min=_TILED_ROWS_MIN)
        grid = (units * parts, min(cuts, max(1, blocks // (units * parts))), 1)
        return args.step("attention", kernel, grid, threads, shared_bytes, defines)

    return [
        launch("ree_split_scores", 1, spans, split.span, split.span_bytes),
        launch("ree_split_values", split.column_blocks, chunks, _CHUNK_THREADS, split.chunk_bytes),
    ]


# -- over a cache -----------------------------------------------------------------------------------


def _cached(p: DevicePlanner, value: int, stream: Stream) -> list[Step]:
    """This run's keys and values into the cache, then attention over it: both kernels, each for rows of its own."""
    node = p.node(value)
    assert node.attrs["causal"] and node.attrs["mask"] == "none"
    _, heads, tokens, d_v = p.layouts[value].shape
    _, k_heads, _, d = p.layouts[node.inputs[1]].shape
    number = len(stream.layers)
    stream.layers.append(Layer(k_heads, stream.context * d, stream.context * d_v))
    source = _Source(p, value, d, d_v, 1, k_heads, heads // k_heads, tokens, stream.context)
    keys, values = (Slot(Buffer("state", SLOTS + 1 + LAYER_STATES * number + part, 0)) for part in (0, 1))
    append = _append_step(source, keys, values, p.pointer(stream.positions))
    source.pointers |= {"position": p.pointer(stream.positions), "slot": Slot(Buffer("state", SLOTS, 0))}
    source.place("k", keys, contiguous((1, k_heads, stream.context, d)))
    source.place("v", values, contiguous((1, k_heads, stream.context, d_v)))
    tile = None if tokens == 1 or tokens * source.group < _TILED_ROWS_MIN else _Tile.of(source)
    tiled = [] if tile is None else [_tile_step(source, tile)]
    return [*source.copies, append, *tiled, *_split_steps(source, tile)]


def _append_step(source: _Source, keys: Slot, values: Slot, positions: Slot) -> Step:
    args = Args("attention_cached.cu", "ree_cached_args")
    args.point(k=source.pointers["k"], v=source.pointers["v"], keys=keys, values=values)
    args.point(position=positions, slot=Slot(Buffer("state", SLOTS, 0)))
    names = ("k_head", "k_token", "v_head", "v_token")
    args.set(**{name: source.values[name] for name in names})
    args.set(tokens=source.tokens, k_heads=source.k_heads, d=source.d, d_v=source.d_v, context=source.keys)
    return args.step("cache", "ree_cached_append", (source.tokens, source.k_heads, 1), 256)
