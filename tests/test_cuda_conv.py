"""Convolutions on the second device give the processor's bytes: every class of kernel, every tile, special values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from ree.device import dot_tiles as tiles
from ree.device import schedule_conv
from ree.program import Program
from tests.cuda_case import kernels_of, same_on_device

TILED, SPLIT, DIRECT = ["ree_conv"], ["ree_conv", "ree_chunk_sums"], ["ree_conv_direct"]
SPECIAL = [float("inf"), float("-inf"), float("nan"), -0.0, 1e-40, -1e-40, 3e38]


def noise(*shape: int, special: int = 0, seed: int = 0) -> torch.Tensor:
    """Normal numbers, `special` of them replaced by infinities, NaN and others that are seldom met."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    for place, value in zip(torch.randint(0, x.numel(), (special,), generator=generator), SPECIAL * 9, strict=False):
        x.view(-1)[place] = value
    return x


def layer(rank: int, *sizes: int, transposed: bool = False, special: int = 0, **options: Any) -> nn.Module:
    name = f"Conv{'Transpose' if transposed else ''}{rank}d"
    module: nn.Module = getattr(nn, name)(*sizes, **options)
    with torch.no_grad():
        module.weight.copy_(noise(*module.weight.shape, special=special, seed=1))  # type: ignore[operator, arg-type]
        if module.bias is not None:
            module.bias.copy_(noise(*module.bias.shape, seed=2))  # type: ignore[operator, arg-type]
    return module


def convolution_kernels(program: Program) -> list[str]:
    return [name for name in kernels_of(program) if name in ("ree_conv", "ree_conv_direct", "ree_chunk_sums")]


def force(monkeypatch: pytest.MonkeyPatch, tile: tiles.Tile, is_split: bool = False) -> None:
    monkeypatch.setattr(schedule_conv, "choose", lambda device, way: (tile, is_split))


SMALL = tiles.Tile(4, 8, 2, 2, 16, 3, 4, 0.6)  # 64 x 64

# name -> (layer, shape of the input)
TILED_LAYERS = {
    "pointwise": (lambda: layer(2, 40, 70, 1), (2, 40, 5, 7)),
    "pointwise, odd channels": (lambda: layer(2, 37, 45, 1), (2, 37, 5, 7)),
    "pointwise, stride": (lambda: layer(2, 16, 70, 1, stride=2), (1, 16, 9, 8)),
    "3x3": (lambda: layer(2, 32, 40, 3, padding=1), (1, 32, 7, 9)),
    "3x3, odd channels": (lambda: layer(2, 57, 33, 3, padding=1), (1, 57, 4, 5)),
    "chunk boundary": (lambda: layer(2, 64, 17, 2, padding=1), (1, 64, 5, 4)),
    "first layer": (lambda: layer(2, 3, 64, 7, stride=2, padding=3, bias=False), (1, 3, 17, 19)),
    "dilated": (lambda: layer(2, 6, 35, (3, 2), padding=2, dilation=3), (1, 6, 11, 10)),
    "wide padding": (lambda: layer(2, 8, 3, 5, padding=4), (1, 8, 3, 3)),
    "one": (lambda: layer(2, 1, 1, 1), (1, 1, 1, 1)),
    "1d": (lambda: layer(1, 9, 20, 5, stride=2, padding=2), (3, 9, 33)),
    "1d, many taps": (lambda: layer(1, 4, 5, 130, padding=1), (1, 4, 300)),
    "3d": (
        lambda: layer(3, 4, 18, (2, 3, 3), stride=(1, 2, 1), padding=(1, 1, 0), dilation=(1, 1, 2)),
        (2, 4, 3, 4, 5),
    ),
    "groups": (lambda: layer(2, 24, 36, 3, padding=1, groups=3), (1, 24, 5, 6)),
    "groups, odd channels": (lambda: layer(2, 15, 27, 3, padding=1, groups=3), (1, 15, 5, 6)),
}


@pytest.mark.parametrize("name", TILED_LAYERS)
def test_tiled(name: str) -> None:
    make, shape = TILED_LAYERS[name]
    program = same_on_device(make(), [noise(*shape, special=3)])
    assert convolution_kernels(program) in (TILED, SPLIT)


@pytest.mark.parametrize("tile", tiles.TILES, ids=str)
def test_tiles(monkeypatch: pytest.MonkeyPatch, tile: tiles.Tile) -> None:
    """Two whole chunks and a part of one, more rows and columns than a tile has; then each chunk for itself."""
    rows = 9 if tile.rows <= 64 else 12 if tile.rows <= 128 else 17
    module = layer(2, 60, tile.columns + 5, 3, padding=1)
    for is_split in (False, True):
        force(monkeypatch, tile, is_split)
        program = same_on_device(module, [noise(1, 60, rows, rows, special=2)])
        assert convolution_kernels(program) == (SPLIT if is_split else TILED)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("k", [16, 32])
def test_slices(monkeypatch: pytest.MonkeyPatch, stages: int, k: int) -> None:
    force(monkeypatch, SMALL._replace(k=k, stages=stages))
    same_on_device(layer(1, 20, 9, 15, padding=3), [noise(2, 20, 40)])


def test_weights_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding is +0 and multiplied: an infinite weight makes it NaN."""
    force(monkeypatch, SMALL)
    same_on_device(layer(2, 16, 24, 3, padding=1, special=7), [noise(1, 16, 6, 7, special=9)])
    same_on_device(layer(2, 8, 8, 3, padding=1, groups=8, special=5), [noise(1, 8, 6, 7, special=9)])


def test_zeros_have_the_sign_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain that underflows to -0 gives +0: totals begin there."""
    tiny = layer(2, 16, 9, 1, bias=False)
    with torch.no_grad():
        tiny.weight.fill_(-1e-30)  # type: ignore[operator]
    depthwise = nn.Conv2d(4, 4, 1, groups=4, bias=False)
    depthwise.weight = nn.Parameter(torch.full_like(depthwise.weight, -1e-30))
    for is_split in (False, True):
        force(monkeypatch, SMALL, is_split)
        same_on_device(tiny, [torch.full((1, 16, 2, 3), 1e-30)])
    same_on_device(depthwise, [torch.full((1, 4, 2, 3), 1e-30)])


def test_nothing_behind_the_last_k_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, SMALL)
    for channels in (3, 4):
        module, x = layer(2, channels, 9, 3), torch.full((1, channels, 5, 5), float("inf"))
        module.weight.data.abs_()  # type: ignore[operator, union-attr]
        same_on_device(module, [x])


TRANSPOSED_LAYERS = {
    "whole taps left out": ({"kernel_size": 4, "stride": 2, "padding": 1}, (32, 20), (2, 32, 5, 6)),
    "output padding": ({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, (32, 9), (1, 32, 4, 7)),
    "taps without hits": ({"kernel_size": 2, "stride": 3}, (16, 9), (2, 16, 3, 4)),
    "dilated": ({"kernel_size": 3, "stride": 2, "dilation": 3}, (16, 9), (1, 16, 3, 4)),
    "stride 1": ({"kernel_size": 3, "padding": 1}, (16, 9), (1, 16, 3, 4)),
    "many chunks": ({"kernel_size": 5, "stride": 2, "padding": 2}, (32, 8), (1, 32, 6, 6)),
    "channels of no slice": ({"kernel_size": 4, "stride": 2, "padding": 1}, (20, 9), (4, 20, 6, 6)),
    "odd channels": ({"kernel_size": 4, "stride": 2, "padding": 1}, (7, 9), (1, 7, 5, 5)),
    "groups": ({"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2}, (32, 20), (1, 32, 4, 5)),
}


@pytest.mark.parametrize("special", [0, 7])
@pytest.mark.parametrize("name", TRANSPOSED_LAYERS)
def test_transposed(monkeypatch: pytest.MonkeyPatch, name: str, special: int) -> None:
    options, channels, shape = TRANSPOSED_LAYERS[name]
    force(monkeypatch, tiles.Tile(2, 4, 2, 2, 16, 4, 6, 0.3), is_split=name == "many chunks" and special == 0)
    module = layer(2, *channels, transposed=True, special=special, **options)
    program = same_on_device(module, [noise(*shape, special=special)])
    assert convolution_kernels(program) in (TILED, SPLIT)


def test_transposed_of_other_ranks() -> None:
    for rank, shape in ((1, (2, 16, 9)), (3, (1, 16, 3, 2, 4))):
        same_on_device(layer(rank, 16, 8, 4, transposed=True, stride=2, padding=1), [noise(*shape)])


DIRECT_LAYERS = {
    "depthwise": (lambda: layer(2, 12, 12, 3, padding=1, groups=12), (2, 12, 7, 9)),
    "depthwise, stride": (lambda: layer(2, 12, 12, 5, padding=2, stride=2, groups=12), (1, 12, 9, 9)),
    "depthwise, odd channels": (lambda: layer(2, 7, 7, 3, padding=1, groups=7), (1, 7, 6, 5)),
    "depthwise, many taps": (lambda: layer(1, 8, 8, 300, padding=9, groups=8), (1, 8, 320)),
    "multiplied": (lambda: layer(2, 6, 18, 3, padding=1, groups=6), (1, 6, 5, 5)),
    "small groups": (lambda: layer(2, 16, 24, 3, groups=4), (1, 16, 6, 6)),
    "groups over chunks": (lambda: layer(1, 90, 4, 7, groups=2), (1, 90, 12)),
    "3d": (lambda: layer(3, 4, 4, 2, padding=1, dilation=2, groups=4), (2, 4, 3, 4, 5)),
    "transposed": (lambda: layer(2, 8, 8, 4, transposed=True, stride=2, padding=1, groups=8), (1, 8, 5, 4)),
}


@pytest.mark.parametrize("name", DIRECT_LAYERS)
def test_direct(name: str) -> None:
    make, shape = DIRECT_LAYERS[name]
    program = same_on_device(make(), [noise(*shape, special=3)])
    assert convolution_kernels(program) == DIRECT


class _Block(nn.Module):
    """A residual block: what follows each convolution is its epilogue."""

    def __init__(self, channels: int, groups: int, activation: nn.Module) -> None:
        super().__init__()
        self.first = layer(2, channels, channels, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.norm.running_mean, self.norm.running_var = noise(channels), noise(channels) ** 2
        self.second = layer(2, channels, channels, 1)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.activation(self.norm(self.first(x)))
        result: torch.Tensor = self.activation(self.second(y) + x)
        return result


EPILOGUES: dict[str, tuple[int, int, nn.Module]] = {
    "relu": (24, 1, nn.ReLU()),
    "gelu": (9, 1, nn.GELU()),
    "depthwise": (8, 8, nn.SiLU()),
    "depthwise, odd": (5, 5, nn.ReLU()),
}


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(monkeypatch: pytest.MonkeyPatch, name: str, is_split: bool) -> None:
    channels, groups, activation = EPILOGUES[name]
    force(monkeypatch, SMALL, is_split)
    model = nn.Sequential(_Block(channels, groups, activation), layer(2, channels, 3, 3)).eval()
    program = same_on_device(model, [noise(2, channels, 6, 5, special=2)])
    extra = [name for name in kernels_of(program) if name not in convolution_kernels(program)]
    assert len(extra) <= 1, extra  # at most the copy of the input


def test_a_result_of_another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    class Signs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer(2, 8, 10, 3)

        def forward(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
            return self.inner(x) > 0, self.inner(2 * x).to(torch.bfloat16)

    force(monkeypatch, SMALL)
    same_on_device(Signs(), [noise(1, 8, 5, 6)])


def test_layouts_of_the_input() -> None:
    """A slice of channels and a transposed image are read where they lie, or copied."""

    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layer(2, 8, 24, 1), layer(2, 8, 9, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            result: torch.Tensor = self.second(y[:, 8:16]) + self.second(y[:, 3:11].transpose(2, 3)).transpose(2, 3)
            return result

    same_on_device(Sliced(), [noise(2, 8, 5, 5)])


def test_the_choice_of_tiles() -> None:
    """On a large device: few pixels with many channels are split, many pixels get the largest tiles."""
    from ree.plan.layout import contiguous
    from ree_kernels.conv import Conv
    from tools.emulator.device import Emulator

    device = Emulator(multiprocessors=132)

    def chosen(batch: int, side: int, channels: int, outputs: int, kernel: int) -> tuple[tiles.Tile, bool]:
        pad = kernel // 2
        sizes = Conv(batch, channels, outputs, 1, (side,) * 2, (kernel,) * 2, (1, 1), (pad,) * 2, (1, 1))
        layout = contiguous((batch, channels, side, side), (0, 2, 3, 1))
        return schedule_conv.choose(device, schedule_conv._Way(sizes, layout, True))

    assert chosen(1, 7, 512, 512, 3)[1]
    assert chosen(64, 28, 128, 128, 3) == (tiles.TILES[0], False)
    assert chosen(64, 56, 64, 64, 3) == (tiles.TILES[2], False)
