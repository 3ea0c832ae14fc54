"""The convolution kernel equals its definition bit for bit: NumPy with an exact FMA."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest

from ree.element.fma import fma32
from ree_kernels import KernelError, cpu
from ree_kernels.conv import Conv, fill, pack_weights, schedule
from tests.kernel_runs import bits, canonical, pointer, run_boxes, run_pool, special_floats

CHUNK = 256


def reference(conv: Conv, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """out[n, *y, o] by the definition: x [n, c, *spatial], w as `pack_weights` takes it."""
    ins, outs = conv.channels // conv.groups, conv.outputs // conv.groups
    total = np.zeros((conv.batch, *conv.out_shape, conv.outputs), np.float32)
    acc = np.zeros_like(total)
    k = 0
    for tap in itertools.product(*(range(n) for n in conv.kernel)):
        window = tap_window(conv, x, tap)  # [n, *y, c]
        for channel in range(ins):
            a = np.repeat(window[..., channel::ins], outs, axis=-1)  # channel of every output's group
            b = w[channel::ins, :, *tap].reshape(-1) if conv.transposed else w[:, channel, *tap]
            acc = fma32(a, b, acc)
            k += 1
            if k % CHUNK == 0 or k == conv.depth:
                with np.errstate(all="ignore"):
                    total = total + acc
                acc = np.zeros_like(total)
    return canonical(total)


def tap_window(conv: Conv, x: np.ndarray, tap: tuple[int, ...]) -> np.ndarray:
    """The operands of one tap for every output pixel, channels last, +0 outside."""
    places, inside = [], []
    axes = zip(conv.out_shape, conv.x_shape, tap, conv.stride, conv.padding, conv.dilation, strict=True)
    for out, extent, t, stride, pad, dilation in axes:
        y = np.arange(out)
        if conv.transposed:
            reach = y + pad - t * dilation
            place, fits = reach // stride, reach % stride == 0
        else:
            place, fits = y * stride - pad + t * dilation, np.ones(out, bool)
        inside.append(fits & (place >= 0) & (place < extent))
        places.append(np.clip(place, 0, extent - 1))
    taken = np.moveaxis(x, 1, -1)[np.ix_(np.arange(conv.batch), *places)]
    keep = functools.reduce(np.logical_and.outer, inside)
    return np.where(keep[None, ..., None], taken, np.float32(0))


def prepare(isa: str, conv: Conv, x: np.ndarray, w: np.ndarray, out_row: int) -> tuple[Any, Any, np.ndarray, Any]:
    kernels = cpu.load(isa)
    packed = pack_weights(kernels, conv, w)
    out = np.full((conv.rows, out_row), 7.0, np.float32)
    args = kernels.ffi.new("ree_conv_args *")
    fill(args, conv, [s // 4 for s in x.strides], out_row)
    args.x, args.w, args.out = (pointer(kernels, a, "float *") for a in (x, packed, out))
    return kernels, args, out, packed


def check(isa: str, conv: Conv, seed: int, layout: str = "last", special: bool = False, threads: int = 0) -> None:
    rng = np.random.default_rng(seed)
    ins, outs = conv.channels // conv.groups, conv.outputs // conv.groups
    shape = (conv.batch, conv.channels, *conv.x_shape)
    x = rng.standard_normal(shape, np.float32)
    if special:
        x = np.where(rng.random(shape) < 0.02, special_floats(rng, shape), x)
    leading = (conv.channels, outs) if conv.transposed else (conv.outputs, ins)
    w = rng.standard_normal((*leading, *conv.kernel), np.float32)
    if special:  # few, so that most outputs stay finite
        w.reshape(-1)[rng.integers(0, w.size, 7)] = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 3e38]
    if layout == "last":
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    elif layout == "sliced":  # channels inside a wider tensor: neighbours are not dense
        wide = np.full((conv.batch, *conv.x_shape, conv.channels + 5), np.nan, np.float32)
        wide[..., 2 : 2 + conv.channels] = np.moveaxis(x, 1, -1)
        x = np.moveaxis(wide[..., 2 : 2 + conv.channels], -1, 1)
    out_row = conv.outputs + (3 if layout == "sliced" else 0)
    kernels, args, out, _packed = prepare(isa, conv, x, w, out_row)
    plan = schedule(kernels, conv)
    if threads:
        grain = (plan.row_grain, plan.col_grain)
        run_pool(kernels, "ree_conv", args, (plan.rows, plan.cols), grain, plan.scratch_bytes, threads)
    else:
        run_boxes(kernels, "ree_conv", args, plan.rows, plan.cols, plan.scratch_bytes, rng)
    expected = reference(conv, x, w).reshape(conv.rows, conv.outputs)
    assert np.array_equal(bits(out[:, : conv.outputs]), bits(expected))
    assert (out[:, conv.outputs :] == 7.0).all()


def conv1(n: int, c: int, o: int, g: int, x: int, k: int, s: int = 1, p: int = 0, d: int = 1) -> Conv:
    return Conv(n, c, o, g, (x,), (k,), (s,), (p,), (d,))


def conv2(
    n: int, c: int, o: int, g: int, x: tuple[int, int], k: tuple[int, int], s: int = 1, p: int = 0, d: int = 1
) -> Conv:
    return Conv(n, c, o, g, x, k, (s, s), (p, p), (d, d))


CONVOLUTIONS = {
    "pointwise": conv2(2, 37, 45, 1, (5, 7), (1, 1)),
    "pointwise stride 2": conv2(1, 16, 70, 1, (9, 8), (1, 1), s=2),
    "3x3": conv2(1, 32, 40, 1, (7, 9), (3, 3), p=1),
    "3x3 two chunks and a bit": conv2(1, 57, 33, 1, (4, 5), (3, 3), p=1),
    "chunk boundary": conv2(1, 64, 17, 1, (5, 4), (2, 2), p=1),
    "first layer": conv2(1, 3, 64, 1, (17, 19), (7, 7), s=2, p=3),
    "dilated": conv2(1, 6, 35, 1, (11, 10), (3, 2), p=2, d=3),
    "wide padding": conv2(1, 5, 3, 1, (3, 3), (5, 5), p=4),
    "one": conv2(1, 1, 1, 1, (1, 1), (1, 1)),
    "1d": conv1(3, 9, 20, 1, 33, 5, s=2, p=2),
    "1d k over 256": conv1(1, 3, 4, 1, 300, 130, p=1),
    "3d": Conv(2, 4, 18, 1, (3, 4, 5), (2, 3, 3), (1, 2, 1), (1, 1, 0), (1, 1, 2)),
    "groups": conv2(1, 24, 36, 2, (5, 6), (3, 3), p=1),
    "groups of 40": conv2(1, 80, 80, 2, (4, 3), (3, 3), p=1),
    "small groups": conv2(2, 32, 32, 8, (5, 6), (3, 3), s=2, p=1),
    "small groups of 2": conv2(1, 22, 22, 11, (4, 5), (3, 3), p=1),
    "depthwise": conv2(2, 75, 75, 75, (6, 5), (3, 3), p=1),
    "depthwise over 256 taps": conv2(1, 3, 3, 3, (17, 18), (17, 17), p=3),
    "depthwise multiplier": conv2(1, 6, 18, 6, (5, 5), (3, 3), p=1),
    "transposed": Conv(1, 7, 37, 1, (4, 5), (3, 3), (2, 2), (1, 1), (1, 1), True, (1, 0)),
    "transposed groups": Conv(2, 8, 12, 4, (3, 4), (2, 3), (3, 2), (0, 1), (1, 2), True, (0, 0)),
    "transposed 1d": Conv(1, 70, 5, 1, (6,), (4,), (2,), (1,), (1,), True, (0,)),
    "transposed depthwise": Conv(1, 20, 20, 20, (4, 4), (3, 3), (2, 2), (1, 1), (1, 1), True, (1, 1)),
}


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("layout", ["last", "first", "sliced"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_definition(isa: str, name: str, layout: str) -> None:
    check(isa, CONVOLUTIONS[name], seed=len(name), layout=layout)


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("name", ["pointwise", "3x3", "small groups", "depthwise", "transposed", "first layer"])
def test_special_values(isa: str, name: str) -> None:
    check(isa, CONVOLUTIONS[name], seed=5, special=True)


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(isa: str, threads: int) -> None:
    check(isa, conv2(2, 19, 150, 1, (13, 12), (3, 3), p=1), seed=threads, threads=threads)


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("rows", [1, 2, 13, 14, 15, 29])
@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 31, 32, 33, 64])
def test_tile_boundaries(isa: str, rows: int, outputs: int) -> None:
    check(isa, conv1(1, 3, outputs, 1, rows + 1, 2), seed=rows * outputs)


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("channels", [255, 256, 257, 511, 512, 513])
def test_chunk_boundaries(isa: str, channels: int) -> None:
    check(isa, conv1(1, channels, 18, 1, 5, 1), seed=channels)


def test_random_shapes() -> None:
    rng = np.random.default_rng(11)
    for trial in range(40):
        groups = int(rng.choice([1, 1, 2, 3]))
        kernel = tuple(int(v) for v in rng.integers(1, 4, 2))
        conv = Conv(
            int(rng.integers(1, 3)), groups * int(rng.integers(1, 24)), groups * int(rng.integers(1, 24)), groups,
            tuple(int(v) for v in rng.integers(6, 10, 2)), kernel, tuple(int(v) for v in rng.integers(1, 4, 2)),
            tuple(int(rng.integers(0, k)) for k in kernel), tuple(int(v) for v in rng.integers(1, 3, 2)),
            bool(rng.integers(0, 2)), (0, 0),
        )  # fmt: skip
        if min(conv.out_shape) > 0:
            check(cpu.supported()[-1], conv, trial, ("last", "first", "sliced")[trial % 3])


def test_epilogue_sees_complete_boxes() -> None:
    """The epilogue runs once on every output element, after its last chunk."""
    kernels = cpu.load(cpu.supported()[-1])
    conv = conv2(1, 60, 70, 1, (12, 13), (3, 3), p=1)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 60, 12, 13), np.float32)
    w = rng.standard_normal((70, 60, 3, 3), np.float32)
    _, args, out, _packed = prepare(kernels.isa, conv, x, w, 70)
    seen = np.zeros((conv.rows, 70), np.float32)
    count = np.zeros((conv.rows, 70), int)

    @kernels.ffi.callback("ree_kernel")
    def epilogue(_: Any, r0: int, r1: int, c0: int, c1: int, scratch: Any) -> None:
        seen[r0:r1, c0:c1] = out[r0:r1, c0:c1]
        count[r0:r1, c0:c1] += 1

    args.epilogue = epilogue
    plan = schedule(kernels, conv)
    run_boxes(kernels, "ree_conv", args, plan.rows, plan.cols, plan.scratch_bytes, rng)
    assert (count == 1).all()
    assert np.array_equal(bits(seen), bits(reference(conv, x, w).reshape(seen.shape)))


def test_weights_of_the_wrong_shape_are_refused() -> None:
    kernels = cpu.load(cpu.supported()[-1])
    with pytest.raises(KernelError, match="weights"):
        pack_weights(kernels, conv1(1, 4, 6, 2, 9, 3), np.zeros((6, 4, 3), np.float32))
    with pytest.raises(KernelError, match="groups"):
        pack_weights(kernels, conv1(1, 4, 5, 2, 9, 3), np.zeros((5, 2, 3), np.float32))
