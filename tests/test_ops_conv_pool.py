"""Convolution, pooling, resizing and sampling against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ree.errors import ShapeError, UnsupportedError
from ree.ops.spec import operator
from ree.types import DType, TensorType
from tests.aten_case import check_close, check_exact, run, samples

F = torch.nn.functional
CONV = [f"nn.functional.conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)]
MEANS = [f"nn.functional.{p}avg_pool{n}d" for p in ("", "adaptive_") for n in (1, 2, 3)]
MAXIMA = [f"nn.functional.{p}max_pool{n}d" for p in ("", "adaptive_") for n in (1, 2, 3)]
RESIZE = [f"nn.functional.interpolate/{m}" for m in ("linear", "bilinear", "trilinear", "bicubic")]
NEAREST = ["nn.functional.interpolate/nearest", "nn.functional.interpolate/nearest-exact"]


@pytest.mark.parametrize("name", CONV + MEANS + RESIZE + ["nn.functional.grid_sample"])
def test_close_samples_of_torch(name: str) -> None:
    found = samples(name, torch.float32)
    for call, tensors in found[:: max(1, len(found) // 5)]:
        check_close(call, *tensors, atol=3e-5)
    assert found


@pytest.mark.parametrize("name", MAXIMA + NEAREST)
def test_exact_samples_of_torch(name: str) -> None:
    found = samples(name, torch.float32)
    for call, tensors in found[:: max(1, len(found) // 3)]:
        check_exact(call, *tensors)
    assert found


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(kernel: int, padding: str) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(1, 2, 7), torch.randn(3, 2, kernel)
    check_close(lambda x, w: F.conv1d(x, w, padding=padding, dilation=1), x, w)


def test_conv_is_a_dot_over_taps_then_channels() -> None:
    """3 taps of 100 channels: the chunk of 256 ends inside the last tap."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 100, 3)).astype(np.float32)
    w = rng.standard_normal((1, 100, 3)).astype(np.float32)
    (conv,) = run(F.conv1d, torch.from_numpy(x), torch.from_numpy(w))
    left, right = (np.ascontiguousarray(v[0].T).reshape(1, 300) for v in (x, w))
    (dot,) = run(torch.mm, torch.from_numpy(left), torch.from_numpy(right.T.copy()))
    assert conv[0, 0, 0] == dot[0, 0]


def test_padding_multiplies_an_infinite_weight() -> None:
    """A tap outside x is +0 * w: with an infinite weight the result is NaN, as the definition says."""
    x, w = torch.ones(1, 1, 1), torch.tensor([[[float("inf"), 1.0, 1.0]]])
    (result,) = run(lambda x, w: F.conv1d(x, w, padding=1), x, w)
    assert np.isnan(result[0, 0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_pooling_with_everything(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.randint(-5, 5, (2, 2, 7, 6)).to(dtype)
    check_exact(lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 1), (1, 2), True, return_indices=True), x)
    for include in (False, True):
        for divisor in (None, 5):
            check_close(lambda x, i=include, d=divisor: F.avg_pool2d(x.float(), 3, 2, 1, True, i, d), x)


def test_max_pool_of_special_values() -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[[1.0, nan, 2.0, nan], [-inf, -inf, -inf, -inf], [2.0, 2.0, 1.0, 2.0], [nan, 1.0, 3.0, 3.0]]])
    check_exact(lambda x: F.max_pool2d(x, 2, return_indices=True), x)
    check_exact(lambda x: F.max_pool1d(x, 4, return_indices=True), x)
    check_exact(lambda x: F.adaptive_max_pool2d(x, (3, 1), return_indices=True), x)


def _gradient(forward: object, *inputs: torch.Tensor) -> None:
    """ree's gradient by its own backward operators against torch's in f64."""

    def backward(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        with torch.enable_grad():
            out = forward(*leaves)  # type: ignore[operator]
            weight = torch.arange(1, out.numel() + 1, dtype=out.dtype).reshape(out.shape) / out.numel()
            return torch.autograd.grad(out, leaves, weight)

    check_close(backward, *inputs, atol=1e-5)


def test_gradients_of_pooling() -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 2, 5, 6)
    _gradient(lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), x)
    _gradient(lambda x: F.avg_pool2d(x, 2, 1, 0, False, True, 3), x)
    _gradient(lambda x: F.adaptive_avg_pool2d(x, (2, 4)), x)
    _gradient(lambda x: F.max_pool2d(x, 3, 2, 1), x)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_convolution(groups: int, transposed: bool) -> None:
    torch.manual_seed(3)
    x, w = torch.randn(2, 4, 5, 6), torch.randn(4, 4 // groups, 3, 2)
    bias = torch.randn(4)
    if transposed:
        _gradient(lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1, groups, 2), x, w, bias)
    else:
        _gradient(lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 1), (1, 2), groups), x, w, bias)


def test_resize_of_narrow_floats_and_integers() -> None:
    x = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    check_exact(lambda x: F.interpolate(x, scale_factor=1.7, mode="nearest"), x)
    check_exact(lambda x: F.interpolate(x, size=(5, 2), mode="nearest-exact"), x.to(torch.bfloat16))


def test_wrong_shapes_are_refused() -> None:
    x, w = TensorType((1, 3, 4, 4), DType.F32), TensorType((2, 2, 3, 3), DType.F32)
    attrs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    with pytest.raises(ShapeError):
        operator("conv").infer([x, w], attrs)
    with pytest.raises(UnsupportedError, match="grid_sampler"):
        run(
            lambda x, g: F.grid_sample(x, g, align_corners=True), torch.randn(1, 1, 2, 2, 2), torch.randn(1, 1, 1, 1, 3)
        )
