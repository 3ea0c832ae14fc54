"""Matrix products on the second device give the processor's bytes: every kernel, every tile, special values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ree.device import matmul_tiles, schedule_matmul
from ree.device.matmul_tiles import TILES, Lies, Rows, Tile, TileChoice
from ree.device.schedule_matmul import pack_panels
from ree.program import Program
from tests.cuda_case import kernels_of, same_on_device

TILED, TILED_SPLIT = ["ree_matmul"], ["ree_matmul", "ree_chunk_sums"]
ROWS, ROWS_SPLIT = ["ree_matmul_rows"], ["ree_matmul_rows", "ree_chunk_sums"]
SPECIAL = [float("inf"), float("-inf"), float("nan"), -0.0, 0.0, 1e-40, -1e-40, 3e38, 1e-30, -1e-30]


def noise(*shape: int, special: int = 0, seed: int = 0) -> torch.Tensor:
    """Normal numbers, `special` of them replaced by infinities, NaN and others that are seldom met."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if x.numel():
        for place, value in zip(
            torch.randint(0, x.numel(), (special,), generator=generator), SPECIAL * 9, strict=False
        ):
            x.view(-1)[place] = value
    return x


def products(program: Program) -> list[str]:
    return [name for name in kernels_of(program) if name != "ree_fused"]


def macro(program: Program, name: str) -> int:
    """A macro of the first product's text."""
    text = next(step.text for step in program.plan(()).steps if step.kernel.startswith("ree_matmul"))
    found = re.search(rf"#define REE_MATMUL_{name} (\d+)", text)
    assert found is not None
    return int(found[1])


class Function(nn.Module):
    """A function of tensors as a model, with a constant if it has one."""

    def __init__(self, function: Callable[..., Any], weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.function = function
        self.weight = None if weight is None else nn.Parameter(weight)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs) if self.weight is None else self.function(*inputs, self.weight)


def linear(m: int, k: int, n: int, dtype: torch.dtype = torch.float32, special: int = 0) -> tuple[nn.Module, list[Any]]:
    """x [m, k] times a constant [k, n] that was given as [n, k]."""
    weight = noise(n, k, special=special, seed=1).to(dtype)
    return Function(lambda x, w: x @ w.T, weight), [noise(m, k, special=special).to(dtype)]


# -- tiles --------------------------------------------------------------------------------------

# how an operand lies -> what is given for [.., rows, columns], and what makes the operand of it
NORMAL = {
    Lies.INNER: (lambda *s: s, lambda x: x),
    Lies.OUTER: (lambda *s: (*s[:-2], s[-1], s[-2]), lambda x: x.mT),
    Lies.OUTER16: (lambda *s: (*s[:-2], s[-1], s[-2]), lambda x: (-x).mT),
    Lies.STRIDED: (lambda *s: (*s[:-1], 2 * s[-1]), lambda x: x[..., ::2]),
}
FORMS_A = NORMAL
FORMS_B = {
    Lies.INNER: NORMAL[Lies.OUTER],
    Lies.OUTER: NORMAL[Lies.INNER],
    Lies.OUTER16: (lambda *s: s, lambda x: -x),
    Lies.STRIDED: NORMAL[Lies.STRIDED],
}
CONSTANT = (Lies.PANELS, Lies.PANELS_BF16)
PAIRS = [(a, b) for a in FORMS_A for b in (*FORMS_B, Lies.PANELS)] + [(Lies.INNER, Lies.PANELS_BF16)]


def multiply(a: Lies, b: Lies, m: int, k: int, n: int) -> tuple[nn.Module, list[Any]]:
    """A product whose operands lie so."""
    shape, form = FORMS_A[a]
    x = noise(*shape(m, k), special=5)
    if b is Lies.PANELS_BF16:
        return linear(m, k, n, torch.bfloat16, special=5)
    if b is Lies.PANELS:
        return Function(lambda x, w: form(x) @ w, noise(k, n, special=5, seed=1)), [x]
    shape_b, form_b = FORMS_B[b]
    return Function(lambda x, y: form(x) @ form_b(y)), [x, noise(*shape_b(k, n), special=5, seed=1)]


def force(monkeypatch: pytest.MonkeyPatch, tile: Tile, splits: int = 1) -> None:
    def choose(device: Any, m: int, n: int, k: int, items: int, a: Lies, b: Lies) -> TileChoice:
        is_short = tile.is_short(k)
        fitting = matmul_tiles.fit(device.shared_bytes_max, tile, a, b, is_short, splits > 1)
        assert fitting is not None
        stages, blocks, shared_bytes = fitting
        return TileChoice(tile, stages, blocks, splits, shared_bytes, is_short)

    monkeypatch.setattr(schedule_matmul, "choose_tile", choose)


def name_of(tile: Tile) -> str:
    return f"{tile.bm}x{tile.bn} {tile.groups}x{tile.step}"


@pytest.mark.parametrize("number", range(len(TILES)), ids=[name_of(tile) for tile in TILES])
def test_tiles(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Beyond the end of a tile in rows and columns, of a chunk and of a round of chunks; in two ways of lying each."""
    tile = TILES[number]
    force(monkeypatch, tile)
    for pair, k in zip((number, number + len(TILES)), (256 * tile.groups + 21, 40), strict=True):
        a, b = PAIRS[pair % len(PAIRS)]
        if matmul_tiles.fit(1 << 20, tile, a, b, False, False) is None:  # too many registers
            a = Lies.INNER
        program = same_on_device(*multiply(a, b, tile.bm + 4, k, tile.bn + 4))
        assert products(program) == TILED
        assert (macro(program, "A"), macro(program, "B")) == (a, b)


@pytest.mark.parametrize("number", range(len(TILES)), ids=[name_of(tile) for tile in TILES])
def test_blocks_that_share_chunks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    tile = TILES[number]
    force(monkeypatch, tile, splits=2)
    n = tile.bn + (4 if number % 2 else 3)
    program = same_on_device(*multiply(Lies.INNER, Lies.PANELS, 19, 256 * 2 * tile.groups + 1, n))
    assert products(program) == TILED_SPLIT


def test_more_shares_than_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, TILES[-1], splits=5)
    assert products(same_on_device(*linear(20, 513, 9))) == TILED_SPLIT


# -- shapes, with the kernels that are chosen ------------------------------------------------------

EXTENTS = (1, 2, 3, 8, 9, 16, 17, 63, 64, 65, 127, 128, 129)
LENGTHS = (1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 256, 257, 511, 512, 513, 0)


@pytest.mark.parametrize("turn", range(4))
def test_shapes(turn: int) -> None:
    """Extents against one another in turns; one program of several products, some with constants."""
    cases = list(itertools.islice(itertools.cycle(range(len(LENGTHS))), turn, turn + 4 * 6, 4))
    shapes = [(EXTENTS[(3 * c + turn) % 13], LENGTHS[c], EXTENTS[(5 * c + 2 * turn) % 13]) for c in cases]
    inputs = [noise(m, k, special=1, seed=c) for c, (m, k, _) in enumerate(shapes)]
    inputs += [noise(k, n, special=1, seed=9 + c) for c, (_, k, n) in enumerate(shapes)]

    def function(*x: torch.Tensor) -> list[torch.Tensor]:
        return [a @ b for a, b in zip(x[: len(shapes)], x[len(shapes) :], strict=True)]

    program = same_on_device(Function(function), inputs)
    assert "ree_matmul" in products(program)


def test_an_empty_sum_is_zero() -> None:
    assert products(same_on_device(*linear(3, 0, 5))) == ROWS
    assert products(same_on_device(*linear(33, 0, 5))) == TILED


def test_no_results() -> None:
    assert products(same_on_device(Function(lambda x, y: (x @ y, x + 1)), [noise(0, 3), noise(3, 2)])) == []


# -- few rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [1, 2, 3, 7, 16])
def test_few_rows(m: int, dtype: torch.dtype) -> None:
    k = {1: 1300, 2: 257, 3: 256, 7: 100, 16: 513}[m]
    n = {1: 73, 2: 8, 3: 9, 7: 65, 16: 17}[m]
    program = same_on_device(*linear(m, k, n, dtype, special=4))
    assert products(program) == ROWS
    assert macro(program, "BF16") == (dtype is torch.bfloat16)


@pytest.mark.parametrize(
    "rows",
    [
        Rows(1, 1, 4, 32, 2, 1, 1, False),
        Rows(2, 2, 2, 16, 3, 1, 1, False),
        Rows(4, 4, 3, 8, 5, 1, 1, False),
        Rows(8, 8, 1, 32, 4, 1, 1, False),
        Rows(16, 1, 4, 16, 8, 1, 3, False),
        Rows(1, 1, 8, 32, 3, 1, 1, True),
        Rows(2, 8, 2, 16, 2, 1, 2, True),
        Rows(4, 2, 12, 8, 4, 1, 1, True),
    ],
    ids=str,
)
def test_launches_of_few_rows(monkeypatch: pytest.MonkeyPatch, rows: Rows) -> None:
    """Several rounds of chunks, a last one that ends within a step, panels beyond the last one."""
    monkeypatch.setattr(schedule_matmul, "choose_rows", lambda *_: rows)
    k, n = 256 * rows.chunks * 2 + 85, 8 * rows.panels + 3
    dtype = torch.bfloat16 if rows.is_bf16 else torch.float32
    program = same_on_device(*linear(max(1, rows.rows - 1), k, n, dtype, special=3))
    assert products(program) == (ROWS_SPLIT if rows.splits > 1 else ROWS)


def test_few_rows_by_strides() -> None:
    weight = noise(300, 20, seed=1)
    for function, x, aligned in [
        (lambda x, w: x[:, ::2] @ w, noise(3, 600), 0),
        (lambda x, w: x.T @ w, noise(300, 3), 0),
        (lambda x, w: x @ w, noise(3, 300), 0),  # a caller's memory may lie anywhere
        (lambda x, w: -x @ w, noise(3, 300), 1),
        (lambda x, w: (-x)[:, 1:] @ w, noise(3, 301), 0),
    ]:
        program = same_on_device(Function(function, weight), [x])
        assert products(program) == ROWS
        assert macro(program, "A16") == aligned


# -- batches ----------------------------------------------------------------------------------------

BATCHES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "one axis": (lambda x, y: x @ y, [(3, 17, 40), (3, 40, 33)]),
    "transposed": (lambda x, y: x @ y.mT, [(2, 3, 9, 16), (2, 3, 65, 16)]),
    "heads": (lambda x, y: x.transpose(1, 2) @ y.transpose(1, 2).mT, [(2, 5, 3, 16), (2, 7, 3, 16)]),
    "heads, values": (lambda x, y: x @ (-y).transpose(1, 2), [(2, 3, 5, 300), (2, 300, 3, 16)]),
    "repeated heads": (
        lambda x, y: x @ y.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(2, 6, 12, 5),
        [(2, 6, 4, 12), (2, 3, 12, 5)],
    ),
    "four axes": (
        lambda x, y: x.permute(3, 1, 0, 2, 4, 5) @ y.permute(1, 3, 2, 0, 4, 5),
        [(2, 3, 2, 2, 3, 9), (2, 2, 2, 3, 9, 4)],
    ),
    "five axes": (
        lambda x, y: x.permute(4, 3, 1, 0, 2, 5, 6) @ y.permute(0, 2, 4, 1, 3, 5, 6),
        [(2, 1, 3, 2, 2, 3, 9), (2, 2, 2, 3, 1, 9, 4)],
    ),
    "one matrix for all": (lambda x, y: x @ y.expand(3, -1, -1), [(3, 5, 20), (20, 7)]),
    "one row each": (lambda x, y: x @ y.expand(3, -1, -1), [(3, 1, 20), (20, 7)]),
    "one left matrix for all": (lambda x, y: x.expand(3, -1, -1) @ y, [(5, 20), (3, 20, 7)]),
    "few results, long sums": (lambda x, y: x @ y, [(2, 3, 3000), (2, 3000, 5)]),
    "vectors": (lambda x, y: (x @ y, torch.outer(x, y)), [(300,), (300,)]),
    "matrix and vector": (lambda x, y: x @ y, [(70, 300), (300,)]),
    "flipped": (lambda x, y: x.flip(1) @ y.flip(0, 1), [(9, 30), (30, 7)]),
    "constant batch": (lambda x, y: x @ y, [(2, 9, 30), (2, 30, 7)]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches(name: str) -> None:
    function, shapes = BATCHES[name]
    inputs = [noise(*shape, special=2, seed=number) for number, shape in enumerate(shapes)]
    if name == "constant batch":
        program = same_on_device(Function(function, inputs[1]), inputs[:1])
    else:
        program = same_on_device(Function(function), inputs)
    assert products(program)[0] == "ree_matmul"


def test_an_empty_batch() -> None:
    assert products(same_on_device(Function(lambda x, y: (x @ y, x + 1)), [noise(0, 2, 3), noise(0, 3, 2)])) == []


# -- epilogues ----------------------------------------------------------------------------------------


def gelu(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return nn.functional.gelu(x @ w + w[0])


EPILOGUES: dict[str, tuple[Callable[..., Any], int]] = {
    "bias, gelu": (gelu, 1),
    "residual": (lambda x, r, w: x @ w + r, 2),
    "bf16": (lambda x, w: (x @ w * 2).to(torch.bfloat16), 1),
    "rows": (lambda x, w: (x @ w) * x[:, :1], 1),
    "not dense": (lambda x, r, w: (x @ w + r).relu(), 2),
}


@pytest.mark.parametrize("m", [5, 41])
@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(name: str, m: int) -> None:
    """In the product's own kernel, which stores the last result; with many columns or few."""
    function, count = EPILOGUES[name]
    k, n = 270, 36
    inputs = [noise(m, k, special=2), *([noise(m, n, special=2, seed=2)] * (count - 1))]
    program = same_on_device(Function(function, noise(k, n, seed=1)), inputs)
    assert products(program) == (ROWS if m <= 16 else TILED)
    assert len(program.plan(()).steps) == 1


@pytest.mark.parametrize("m", [5, 41])
def test_epilogues_of_chunk_sums(monkeypatch: pytest.MonkeyPatch, m: int) -> None:
    force(monkeypatch, TILES[-1], splits=2)
    monkeypatch.setattr(schedule_matmul, "choose_rows", lambda *_: Rows(8, 1, 4, 16, 3, 1, 2, False))
    k, n = 2000, 9
    program = same_on_device(Function(gelu, noise(k, n, seed=1) / 40), [noise(m, k)])
    assert kernels_of(program) == (ROWS_SPLIT if m <= 16 else TILED_SPLIT)


def test_an_epilogue_of_batches() -> None:
    def function(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ y * 0.125 + bias)

    program = same_on_device(Function(function), [noise(2, 3, 17, 16), noise(2, 3, 16, 18), noise(3, 1, 18)])
    assert kernels_of(program) == TILED


# -- values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [3, 20])
def test_padding_is_never_multiplied(m: int) -> None:
    """The last elements of rows and columns are infinite: beyond the end lies nothing that meets them."""
    weight, x = noise(261, 11, seed=1), noise(m, 261)
    weight[-1], x[:, -1], x[-1], weight[:, -1] = float("inf"), 2.0, float("inf"), 3.0
    same_on_device(Function(lambda x, w: x @ w, weight), [x])
    same_on_device(Function(lambda x, y: x @ y), [x, weight])


@pytest.mark.parametrize("m", [1, 20])
def test_zeros_and_underflow(m: int) -> None:
    """Chains that end at -0, and those that underflow to it, give +0."""
    k = 300
    x, weight = torch.full((m, k), -0.0), torch.ones(k, 10)
    weight[:, 1:] = 1e-30
    x[m // 2 :] = -1e-30
    same_on_device(Function(lambda x, w: x @ w, weight), [x])
    same_on_device(Function(lambda x, y: x[:, :20] @ y[:20]), [x, weight])


# -- choices --------------------------------------------------------------------------------------------


class Card:
    """What choices ask of a device."""

    def __init__(self, multiprocessors: int, shared_bytes_max: int) -> None:
        self.multiprocessors, self.shared_bytes_max = multiprocessors, shared_bytes_max


CARDS = {
    "sm_75": Card(40, 64 << 10),
    "sm_80": Card(108, 163 << 10),
    "sm_86": Card(84, 99 << 10),
    "sm_90": Card(132, 227 << 10),
}
SIZES = [(1, 8, 1), (1, 2048, 2048), (1, 10, 1 << 20), (5, 32000, 2048), (16, 256, 8192), (16, 4096, 14336)]
SIZES += [(64, 64, 1 << 20), (17, 4096, 4096), (4096, 4096, 4096), (1 << 20, 3, 64), (100, 1 << 20, 0)]


@pytest.mark.parametrize("card", CARDS)
def test_choices_fit(card: str) -> None:
    """Every product finds a launch that the card can hold."""
    device: Any = CARDS[card]
    for m, n, k in SIZES:
        for a, b in PAIRS:
            choice = matmul_tiles.choose_tile(device, m, n, k, 1, a, b)
            assert choice.shared_bytes <= device.shared_bytes_max
            assert choice.stages >= 2 and 1 <= choice.splits <= max(1, -(-k // 256))
        for is_bf16 in (False, True):
            rows = matmul_tiles.choose_rows(device, min(m, matmul_tiles.ROWS_MAX), n, k, is_bf16)
            assert rows.shared_bytes <= device.shared_bytes_max
            assert rows.threads % 32 == 0 and rows.threads <= 1024 and rows.rows >= min(m, matmul_tiles.ROWS_MAX)


def test_large_products_take_large_tiles() -> None:
    device: Any = CARDS["sm_90"]
    for n in (2048, 4096, 8192):
        choice = matmul_tiles.choose_tile(device, n, n, n, 1, Lies.INNER, Lies.PANELS)
        assert (choice.tile.bm, choice.tile.bn, choice.blocks, choice.splits) == (128, 128, 2, 1)
    small = matmul_tiles.choose_tile(device, 128, 128, 8192, 1, Lies.INNER, Lies.PANELS)
    assert small.splits > 1


@pytest.mark.parametrize("n", [1, 8, 19])
def test_panels(n: int) -> None:
    matrix = np.arange(5 * n, dtype=np.float32).reshape(5, n)
    packed = pack_panels(matrix.T.copy().T)
    assert packed.shape == (-(-n // 8), 5, 8)
    assert (packed.transpose(1, 0, 2).reshape(5, -1)[:, :n] == matrix).all()
    assert not packed.transpose(1, 0, 2).reshape(5, -1)[:, n:].any()
