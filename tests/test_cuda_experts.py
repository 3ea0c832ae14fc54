"""Products with a matrix of each row's own on the second device: every class of kernel gives the processor's bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ree
from ree.device import schedule_experts as schedule
from ree.errors import RunError
from ree.lm import experts
from tests.cuda_case import kernels_of, on_device, same_on_device
from tests.kernel_runs import special_floats
from tools.emulator import device as emulator

FEW, GROUPED = ["ree_experts_few"], ["ree_experts_group", "ree_experts"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    experts.register()


class Experts(torch.nn.Module):
    """A product with constant weights, as they lie ([E, O, I]) or from another order of their axes."""

    def __init__(self, weight: torch.Tensor, turned: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.transpose(1, 2).contiguous() if turned else weight)
        self.turned = turned

    def forward(self, x: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
        weight = self.weight.transpose(1, 2) if self.turned else self.weight
        out: torch.Tensor = torch.ops.ree.expert_linear(x, weight, expert)
        return out


class Strided(Experts):
    """Rows that are columns of x, experts that are every second of a list."""

    def forward(self, x: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(0, 1), expert[1::2])


def case(rows: int, count: int, k: int, n: int, special: bool = False) -> tuple[torch.Tensor, ...]:
    """x, weights and experts, of which one may have most rows and another none."""
    rng = np.random.default_rng([rows, count, k, n])
    x, w = rng.standard_normal((rows, k), np.float32), rng.standard_normal((count, n, k), np.float32)
    if special:
        x[::4], w[1, ::3] = special_floats(rng, x[::4].shape), special_floats(rng, w[1, ::3].shape)
    expert = np.minimum(rng.integers(0, 2 * count, rows), count - 1)
    expert[expert == 1] = 0 if not special else 1
    return torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(expert)


def product(*sizes: int, dtype: torch.dtype = torch.float32, turned: bool = False, special: bool = False) -> list[str]:
    x, w, expert = case(*sizes, special=special)
    program = same_on_device(Experts(w.to(dtype), turned), [x.to(dtype), expert])
    return [name for name in kernels_of(program) if name != "ree_fused"]


def force(monkeypatch: pytest.MonkeyPatch, way: schedule.Few | schedule.Tile) -> None:
    monkeypatch.setattr(schedule, "choose", lambda *_: way)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, turned: bool) -> None:
    assert product(5, 8, 70, 39, dtype=dtype, turned=turned) == FEW
    assert product(40, 3, 72, 39, dtype=dtype, turned=turned) == GROUPED


@pytest.mark.parametrize("columns", [1, 2, 4, 8])
def test_few_rows_by_columns_of_a_lane(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    force(monkeypatch, schedule.Few(columns))
    for dtype in DTYPES[: 2 if columns > 1 else 1] if columns < 8 else DTYPES[1:2]:
        for k, n in ((1, 1), (255, 40 * columns), (257, 32 * columns), (256 * 9 + 3, 33), (512, 7)):
            assert product(3, 4, k, n, dtype=dtype) == FEW


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("tile", schedule.TILES, ids=str)
def test_tiles(monkeypatch: pytest.MonkeyPatch, tile: schedule.Tile, dtype: torch.dtype) -> None:
    """Experts with no rows, with parts of a tile and with several; k of one chunk, and over the edge of two."""
    force(monkeypatch, tile)
    assert product(2 * tile.rows + 5, 4, 516, tile.columns + 9, dtype=dtype) == GROUPED
    assert product(7, 5, 64, tile.columns, dtype=dtype) == GROUPED


def test_odd_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, schedule.TILES[2])
    for sizes in ((9, 4, 1, 17), (9, 4, 257, 1), (1, 1, 40, 130), (30, 64, 21, 24)):
        assert product(*sizes) == GROUPED


def test_special_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in (schedule.Few(2), schedule.TILES[3]):
        force(monkeypatch, way)
        product(23, 3, 300, 35, special=True)


def test_operands_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, _ = case(12, 3, 40, 20)
    expert = torch.arange(24) % 3
    for way in (schedule.Few(2), schedule.TILES[3]):
        force(monkeypatch, way)
        same_on_device(Strided(w), [x.transpose(0, 1).contiguous(), expert])


@pytest.mark.parametrize("way", [schedule.Few(2), schedule.TILES[3]], ids=str)
def test_what_is_no_expert_is_refused(monkeypatch: pytest.MonkeyPatch, way: schedule.Few | schedule.Tile) -> None:
    force(monkeypatch, way)
    x, w, expert = case(20, 3, 8, 9)
    program = on_device(ree.compile(Experts(w), (x, expert)))
    good = program(x, expert)
    for bad in (-1, 3, 1 << 40, -(1 << 63)):
        wrong = expert.clone()
        wrong[11] = bad
        with pytest.raises(RunError, match="out of range"):
            program(x, wrong)
    assert torch.equal(program(x, expert), good)


def test_more_experts_than_rows_are_counted_for() -> None:
    """The block that groups rows has a thread for each expert; with more experts the definition is run."""
    x, w, expert = case(2000, 1025, 3, 2)
    assert kernels_of(same_on_device(Experts(w), [x, expert])) == ["ree_fused"]
    assert product(2000, 1024, 3, 2) == GROUPED


def test_the_choice_for_a_large_device() -> None:
    large = emulator.Emulator(multiprocessors=132)
    assert schedule.choose(large, 2, 14336, 4096, 8, 4) == schedule.Few(4)
    assert schedule.choose(large, 8, 768, 2048, 128, 2) == schedule.Few(2)
    assert schedule.choose(large, 16384, 14336, 4096, 8, 4) == schedule.TILES[0]
    small = schedule.choose(large, 256, 768, 2048, 64, 4)
    assert isinstance(small, schedule.Tile) and small.rows <= 32
