"""argsort and argtopk on a device equal the processor's: ties, NaN, signed zeros, strides, rows of every length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.cuda_case import kernels_of, same_on_device

NAN, INF = float("nan"), float("inf")
SPECIAL = np.array([1.0, NAN, -0.0, 0.0, INF, -INF, -NAN, 1.0, 1e-45, -1e-45, 3e38, -1.0], np.float32)
DTYPES = (torch.float32, torch.int32, torch.int64, torch.uint8, torch.bool)
TILES = (["ree_sort_tiles_narrow"], ["ree_sort_tiles_wide"])


class Apply(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, distinct: int = 0) -> torch.Tensor:
    """Values of which many are equal, with special ones; distinct: how many, if so few."""
    rng = np.random.default_rng(seed)
    if distinct:
        return torch.from_numpy(rng.integers(0, distinct, shape)).to(dtype)
    if dtype == torch.float32:
        mixed = np.where(rng.random(shape) < 0.3, rng.choice(SPECIAL, shape), rng.standard_normal(shape))
        return torch.from_numpy(mixed.astype(np.float32))
    if dtype == torch.bool:
        return torch.from_numpy(rng.random(shape) < 0.5)
    info = torch.iinfo(dtype)
    edges = rng.choice(np.array([info.min, info.max, 0, 1]), shape)
    return torch.from_numpy(np.where(rng.random(shape) < 0.3, edges, rng.integers(info.min, info.max, shape))).to(dtype)


def sorts(x: torch.Tensor, descending: bool, axis: int = -1) -> list[str]:
    """Compare a sort; gives its kernels."""
    model = Apply(lambda x: torch.argsort(x, dim=axis, descending=descending, stable=True))
    return [name for name in kernels_of(same_on_device(model, (x,))) if name != "ree_fused"]


def selects(x: torch.Tensor, k: int, largest: bool = True) -> list[str]:
    model = Apply(lambda x: torch.topk(x, k, largest=largest).indices)
    return [name for name in kernels_of(same_on_device(model, (x,))) if name != "ree_fused"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("descending", [False, True])
def test_short_rows(dtype: torch.dtype, descending: bool) -> None:
    for shape in ((1, 1), (7, 2), (300, 3), (5, 16), (2, 31), (3, 33), (2, 3, 100), (130,)):
        assert sorts(values(shape, dtype, len(shape)), descending) in TILES


@pytest.mark.parametrize("n", [15, 16, 17, 64, 65, 255, 256, 257, 1023, 1024, 1025, 2048])
def test_lengths(n: int) -> None:
    assert sorts(values((3, n), torch.float32, n), False) in TILES
    assert sorts(values((2, n), torch.int64, n), True) in TILES


@pytest.mark.parametrize("dtype, tile", [(torch.float32, 4096), (torch.int64, 2048)], ids=["narrow", "wide"])
@pytest.mark.parametrize("tiles, rest", [(1, 0), (1, 1), (2, 0), (3, -1), (5, 7)])
def test_merged_rows(dtype: torch.dtype, tile: int, tiles: int, rest: int) -> None:
    n = tiles * tile + rest
    kernels = sorts(values((2, n), dtype, n), tiles % 2 == 1)
    assert len(kernels) == 1 + (-(-n // tile) - 1).bit_length() and "tiles" in kernels[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8], ids=str)
def test_rows_of_equal_elements(dtype: torch.dtype) -> None:
    for distinct in (1, 2, 3):
        sorts(values((2, 9000), dtype, 1, distinct), True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("largest", [False, True])
def test_first_few(dtype: torch.dtype, largest: bool) -> None:
    for shape, k in (((3, 1), 1), ((2, 50), 1), ((2, 50), 7), ((1, 1000), 16), ((1, 1000), 17), ((2, 1000), 1000)):
        assert selects(values(shape, dtype, k), k, largest) in TILES


@pytest.mark.parametrize("k, launches", [(1, 2), (50, 2), (1024, 3), (1025, 4), (20000, 4)])
def test_first_few_of_long_rows(k: int, launches: int) -> None:
    """Selected from tiles up to a quarter of one, else sorted."""
    x = values((1, 20_001), torch.float32, k)
    kernels = selects(x, k)
    assert len(kernels) == launches and ("ree_sort_merge_narrow" in kernels) == (k > 1024)
    if k < 100:
        selects(values((2, 20_001), torch.int64, k), k, False)
        selects(values((1, 20_001), torch.uint8, k, 2), k)


def test_many_tiles() -> None:
    """So many that the first few of all do not fit in one."""
    assert len(selects(values((1, 150_000), torch.float32), 200)) == 3


def test_strides() -> None:
    """Rows along another axis, backwards, apart, and repeated."""
    x = values((6, 5, 40), torch.float32)
    sorts(x, False, 1)
    sorts(x, True, 0)
    views: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: x.flip(2),
        lambda x: x[:, 1:4, 3::2],
        lambda x: x[:, :, :1].expand(6, 5, 9),
        lambda x: x.transpose(0, 2),
    ]
    for view in views:
        same_on_device(Apply(lambda x, view=view: torch.argsort(view(x), dim=-1, stable=True)), (x,))


def test_values_and_indices() -> None:
    x = values((4, 70), torch.float32)
    same_on_device(Apply(lambda x: torch.cat([t.double() for t in torch.sort(x, 0, descending=True)])), (x,))
    same_on_device(Apply(lambda x: torch.nanmedian(x, 1).values), (x,))
    same_on_device(Apply(lambda x: torch.kthvalue(x, 3, 0).indices), (x,))
