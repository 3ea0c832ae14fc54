"""Scans and scatters on a device equal the processor's, in every byte."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ree.errors import RunError
from tests.cuda_case import kernels_of, same_on_device

DTYPES = (torch.float32, torch.int32, torch.int64)
NAN, INF = float("nan"), float("inf")
SPECIAL = np.array([1.0, NAN, -0.0, 0.0, INF, -INF, -NAN, 1e-45, -1e-45, 3e38, -3e38, 2.0], np.float32)


class Apply(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, special: float = 0.0) -> torch.Tensor:
    """Numbers, so many of them special ones or, of integers, at the ends of their range."""
    rng = np.random.default_rng(seed)
    if dtype == torch.float32:
        plain = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)
        return torch.from_numpy(np.where(rng.random(shape) < special, rng.choice(SPECIAL, shape), plain)).to(dtype)
    info = torch.iinfo(dtype)
    plain = rng.integers(-5, 6, shape) if special < 1 else rng.integers(info.min, info.max, shape)
    ends = rng.choice(np.array([info.min, info.max]), shape)
    return torch.from_numpy(np.where(rng.random(shape) < special / 2, ends, plain)).to(dtype)


def kernels(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[str]:
    """Compare both devices; gives the launches of kernels that are not printed."""
    return [name for name in kernels_of(same_on_device(Apply(function), inputs)) if name != "ree_fused"]


# -- scans -----------------------------------------------------------------------------------------------


SCANS: dict[str, Callable[..., torch.Tensor]] = {
    "sum": lambda x, axis=-1: torch.cumsum(x, axis, dtype=x.dtype),
    "product": lambda x, axis=-1: torch.cumprod(x, axis, dtype=x.dtype),
    "max": lambda x, axis=-1: torch.cummax(x, axis).indices,
    "min": lambda x, axis=-1: torch.cummin(x, axis).indices,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("special", [0.0, 0.02, 1.0])
def test_scan(dtype: torch.dtype, name: str, special: float) -> None:
    """Few rows and many, short and long."""
    for shape in ((1, 1), (2, 17), (3, 64), (2, 65), (1, 513), (70, 40), (33, 257)):
        (kernel,) = kernels(SCANS[name], values(shape, dtype, len(shape), special))
        is_float = dtype == torch.float32 and name in ("sum", "product")
        is_walked = is_float or shape[1] <= 64 or shape[0] >= 32
        assert kernel.startswith("ree_walk" if is_walked else "ree_scan")


@pytest.mark.parametrize("n", [15, 16, 17, 255, 256, 257, 511, 512, 1023, 1024, 1025])
def test_scan_lengths(n: int) -> None:
    for rows in (1, 40, 200):
        kernels(SCANS["sum"], values((rows, n), torch.float32, n))
        kernels(SCANS["max"], values((rows, n), torch.float32, n, 0.01))


@pytest.mark.parametrize("rows, row_bits", [(31, 0), (32, 0), (33, 1), (64, 1), (65, 2), (300, 4), (1500, 5)])
def test_rows_of_a_warp(rows: int, row_bits: int) -> None:
    """The emulator has four multiprocessors: a warp walks more rows when there are more than 32."""
    for dtype in (torch.float32, torch.int64):
        x = values((rows, 37), dtype, rows)
        program = same_on_device(Apply(SCANS["sum"]), (x,))
        (step,) = program.plan(()).steps
        assert step.kernel.startswith("ree_walk") and step.grid[0] == -(-rows // (4 << row_bits))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segments(dtype: torch.dtype) -> None:
    for name in ("sum", "product", "max", "min"):
        if dtype == torch.float32 and name in ("sum", "product"):
            continue
        for shape in ((1, 4096), (1, 4097), (2, 20_000), (1, 70_001)):
            found = kernels(SCANS[name], values(shape, dtype, 1, 0.001))
            prefixes = ["ree_scan"] if shape[1] <= 4096 else ["ree_totals", "ree_scan"]
            assert [kernel.rsplit("_", 2)[0] for kernel in found] == prefixes


def test_equal_elements_in_segments() -> None:
    """The last among equals, the latest NaN, wherever segments end."""
    x = torch.zeros(1, 20_000)
    x[0, ::3] = -0.0
    kernels(SCANS["max"], x)
    x[0, 7000], x[0, 12_000] = NAN, NAN
    for name in ("max", "min"):
        kernels(SCANS[name], x)


def test_scan_strides() -> None:
    x = values((6, 5, 70), torch.float32, 3, 0.05)
    for name in SCANS:
        kernels(lambda x, scan=SCANS[name]: scan(x, 1), x)
        kernels(lambda x, scan=SCANS[name]: scan(x, 0), x)
        kernels(lambda x, scan=SCANS[name]: scan(x.flip(2)), x)
        kernels(lambda x, scan=SCANS[name]: scan(x[:, 1:4, 3::2]), x)
        kernels(lambda x, scan=SCANS[name]: scan(x[:, :, :1].expand(6, 5, 9)), x)
    y = values((70, 600), torch.int64, 4)
    kernels(lambda y: torch.cumsum(y, 0), y)
    kernels(lambda y: torch.cummin(y[:3].flip(1), 1).indices, y)


# -- scatters --------------------------------------------------------------------------------------------


REDUCES = {"set": "", "add": "sum", "mul": "prod", "min": "amin", "max": "amax"}


def scattered(name: str, axis: int) -> Callable[..., torch.Tensor]:
    if name == "set":
        return lambda x, index, src: torch.scatter(x, axis, index, src)
    return lambda x, index, src: torch.scatter_reduce(x, axis, index, src, REDUCES[name])


def indices(shape: tuple[int, ...], extent: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, extent, shape))


def scatters(name: str, shape: tuple[int, ...], part: tuple[int, ...], axis: int, dtype: torch.dtype) -> str:
    """Compare a scatter along an axis; gives the form of its kernel."""
    x, src = values(shape, dtype, 1, 0.1), values(part, dtype, 2, 0.1)
    found = kernels(scattered(name, axis), x, indices(part, shape[axis], len(part)), src)
    return found[-1].removeprefix("ree_scatter_").rsplit("_", 1)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", REDUCES)
def test_scatter(dtype: torch.dtype, name: str) -> None:
    """Every form: many slices are walked, few writes searched, more of them sorted."""
    assert scatters(name, (50, 3), (9, 3), 0, dtype) == "search"
    assert scatters(name, (5, 4, 7), (3, 4, 20), 2, dtype) == "search"
    assert scatters(name, (7,), (129,), 0, dtype) == "sorted"
    assert scatters(name, (3, 20, 5), (2, 150, 4), 1, dtype) == "sorted"
    assert scatters(name, (2, 6, 4), (2, 300, 4), 1, dtype) == "sorted"
    assert scatters(name, (64, 5, 40), (60, 13, 40), 1, dtype) == "walk"
    assert scatters(name, (2100, 3), (2100, 9), 1, dtype) == "walk"


def test_many_writes_to_one_place() -> None:
    """More than tiles of sorted writes, all to a few places."""
    for extent in (1, 3):
        assert scatters("add", (extent,), (9000,), 0, torch.float32) == "sorted"
        assert scatters("set", (extent, 2), (5000, 2), 0, torch.float32) == "sorted"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("writes, form", [(1, "search"), (128, "search"), (129, "sorted"), (5000, "sorted")])
def test_rows(dtype: torch.dtype, writes: int, form: str) -> None:
    """index_add and index_copy along the first and another axis."""
    x, src, index = values((40, 7), dtype, 1, 0.1), values((writes, 7), dtype, 2, 0.1), indices((writes,), 40)
    for function in (torch.index_add, torch.index_copy):
        (*_, kernel) = kernels(lambda x, i, s, f=function: f(x, 0, i, s), x, index, src)
        assert kernel.startswith(f"ree_scatter_{form}")
    if writes < 200:
        kernels(lambda x, i, s: torch.index_add(x, 1, i, s.T), x.T.contiguous(), index, src)
        kernels(lambda x, i, s: torch.index_put(x, (i,), s, accumulate=True), x, index, src)


@pytest.mark.parametrize("writes, columns", [(20, 5), (300, 5), (20, 2100)])
def test_negative_indices(writes: int, columns: int) -> None:
    """They count from the end, also among those of the same place."""
    x, src = values((6, columns), torch.float32), values((writes, columns), torch.float32, 1)
    index = torch.from_numpy(np.random.default_rng(0).integers(-6, 6, writes))
    kernels(lambda x, i, s: torch.index_add(x, 0, i, s), x, index, src)
    kernels(lambda x, i, s: torch.scatter_add(x, 0, i[:, None].expand(s.shape), s), x, index, src)


def test_many_columns_are_walked() -> None:
    x, src, index = values((9, 2100), torch.float32), values((30, 2100), torch.float32, 1), indices((30,), 9)
    assert "ree_scatter_walk_f32" in kernels(lambda x, i, s: torch.index_add(x, 0, i, s), x, index, src)


@pytest.mark.parametrize("shape", [(9, 4), (200, 4), (5, 2100)])
@pytest.mark.parametrize("wrong", [-17, 16, 1 << 40, -(1 << 63)])
def test_index_outside(shape: tuple[int, int], wrong: int) -> None:
    """Every form sees it, and the run after it is good."""
    x, src, index = torch.zeros(16, shape[1]), torch.ones(shape), torch.zeros(shape, dtype=torch.int64)
    functions: list[Callable[..., torch.Tensor]] = [
        lambda x, i, s: torch.scatter_add(x, 0, i, s),
        lambda x, i, s: torch.index_add(x, 0, i[:, 1], s),
    ]
    for function in functions:
        program = same_on_device(Apply(function), (x, index, src))
        good = program.run_flat([x, index, src])
        bad = index.clone()
        bad[3, 1] = wrong
        for _ in range(2):
            with pytest.raises(RunError, match="index"):
                program.run_flat([x, bad, src])
        assert torch.equal(good[0], program.run_flat([x, index, src])[0])


def test_nothing_is_written() -> None:
    x, src = values((5, 3), torch.float32), torch.zeros(0, 3)
    assert not kernels(lambda x, i, s: torch.index_add(x, 0, i, s), x, torch.zeros(0, dtype=torch.int64), src)


def test_scatter_strides() -> None:
    """Sources and indices that are seen through views, repeated, or apart."""
    x, src, index = values((6, 20, 8), torch.float32), values((8, 150, 6), torch.float32, 1), indices((8, 150, 6), 20)
    views: list[Callable[..., torch.Tensor]] = [
        lambda x, i, s: torch.scatter_add(x, 1, i.transpose(0, 2), s.transpose(0, 2)),
        lambda x, i, s: torch.scatter_add(x, 1, i.transpose(0, 2)[:, ::2], s.flip(1).transpose(0, 2)),
        lambda x, i, s: torch.scatter_add(x, 1, i[:1, :, :1].expand(6, 150, 8), s.transpose(0, 2)),
        lambda x, i, s: torch.scatter_add(x, 1, i.transpose(0, 2), s[:1, :1].expand(8, 150, 6).transpose(0, 2)),
        lambda x, i, s: torch.index_add(x, 1, i[0, :, 0], s.transpose(0, 2)),
        lambda x, i, s: torch.index_copy(x, 2, i[0, :8, 0] % 8, s[:, :20].permute(2, 1, 0)),
    ]
    for view in views:
        kernels(view, x, index, src)
