"""Attention against torch in f64, and the promises of its fixed order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ree.capture import capture, to_numpy
from ree.errors import DTypeError, ShapeError, UnsupportedError
from ree.graph import Graph
from ree.ops.spec import operator
from ree.reference import evaluate
from ree.types import DType, TensorType
from tests.aten_case import check_close, samples

attend = torch.nn.functional.scaled_dot_product_attention
INF = float("inf")


class _Attend(nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return attend(q, k, v, attn_mask=mask, **self.options)


def _graph(*inputs: torch.Tensor, **options: Any) -> Graph:
    return capture(_Attend(options), inputs).graph


def _run(*inputs: torch.Tensor, **options: Any) -> np.ndarray:
    return evaluate(_graph(*inputs, **options), [to_numpy(i) for i in inputs])[0]


def _expect(*inputs: torch.Tensor, **options: Any) -> np.ndarray:
    wide = [i.double() if i.is_floating_point() else i for i in inputs]
    return _Attend(options)(*wide).numpy()


def _qkv(*lead: int, t: int = 3, s: int = 4, d: int = 5, dv: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*lead, t, d), torch.randn(*lead, s, d), torch.randn(*lead, s, dv)]


@pytest.mark.parametrize("lead", [(), (2,), (1, 2), (2, 1, 2)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extents", [(3, 4), (4, 3), (1, 1)])
def test_against_torch(lead: tuple[int, ...], causal: bool, extents: tuple[int, int]) -> None:
    inputs = _qkv(*lead, t=extents[0], s=extents[1])
    graph = _graph(*inputs, is_causal=causal)
    assert [n.op for n in graph.nodes if n.op != "reshape"] == ["attention"]
    np.testing.assert_allclose(
        _run(*inputs, is_causal=causal), _expect(*inputs, is_causal=causal), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("mask_shape", [(3, 4), (1, 4), (2, 1, 3, 4), (2, 2, 3, 4)])
def test_masks(mask_shape: tuple[int, ...]) -> None:
    inputs = _qkv(2, 2)
    keep = torch.rand(mask_shape) > 0.4
    keep[..., 0] = True
    for mask in (keep, torch.where(keep, torch.randn(mask_shape), -INF)):
        for scale in (None, 0.3):
            found = _run(*inputs, mask, scale=scale)
            np.testing.assert_allclose(found, _expect(*inputs, mask, scale=scale), rtol=2e-6, atol=2e-6)


def test_a_row_without_keys_is_zero() -> None:
    keep = torch.tensor([[True, True, False, False], [False] * 4, [False, False, False, True]])
    for mask in (keep, torch.where(keep, 0.0, -INF)):
        found = _run(*_qkv(1, 1), mask)
        assert (found[0, 0, 1] == 0).all()
        np.testing.assert_array_equal(found[0, 0, 2], _qkv(1, 1)[2][0, 0, 3].numpy())


def test_grouped_heads() -> None:
    torch.manual_seed(1)
    q, k, v = torch.randn(1, 6, 2, 4), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    np.testing.assert_allclose(_run(q, k, v, enable_gqa=True), _expect(q, k, v, enable_gqa=True), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_round_once(dtype: torch.dtype) -> None:
    inputs = [t.to(dtype) for t in _qkv(1, 2)]
    found = _run(*inputs)
    widened = _run(*(t.float() for t in inputs))
    np.testing.assert_array_equal(found, to_numpy(torch.from_numpy(widened).to(dtype)))


def test_decode_gives_the_bits_of_prefill() -> None:
    q, k, v = _qkv(1, 2, t=6, s=6)
    whole = _run(q, k, v, is_causal=True)
    for t in range(6):
        step = _run(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1])
        np.testing.assert_array_equal(step[:, :, 0], whole[:, :, t])


def test_masked_keys_at_the_end_change_no_bit() -> None:
    q, k, v = _qkv(1, 1, t=2, s=5)
    padded = [torch.cat([x, torch.randn(1, 1, 3, x.shape[-1])], 2) for x in (k, v)]
    mask = torch.tensor([True] * 5 + [False] * 3).expand(2, 8)
    np.testing.assert_array_equal(_run(q, *padded, mask), _run(q, k, v))


def test_batch_changes_no_bit() -> None:
    q, k, v = _qkv(3, 2)
    whole = _run(q, k, v)
    for row in range(3):
        np.testing.assert_array_equal(_run(q[row : row + 1], k[row : row + 1], v[row : row + 1])[0], whole[row])


def test_infinite_scores() -> None:
    """inf - inf is NaN in every row that meets it, as IEEE has it."""
    q, k, v = torch.full((1, 1, 1, 1), INF), torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1), torch.ones(1, 1, 2, 1)
    assert np.isnan(_run(q, k, v)).all()
    assert math.isnan(float(attend(q, k, v)))


def test_samples_of_torch() -> None:
    found = [
        (call, tensors) for call, tensors in samples("nn.functional.scaled_dot_product_attention", torch.float32, 700)
        if "0.5" not in repr(call.leaves[3:])
    ]  # fmt: skip
    for call, tensors in found[:3]:
        check_close(call, *tensors, rtol=1e-5, atol=1e-5)
    assert found


def test_dropout_and_wrong_operands_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="dropout"):
        _graph(*_qkv(1, 1), dropout_p=0.5)
    q, k = TensorType((1, 3, 2, 4), DType.F32), TensorType((1, 2, 2, 4), DType.F32)
    attrs = {"causal": False, "scale": 1.0, "mask": "none"}
    with pytest.raises(ShapeError):
        operator("attention").infer([q, k, k], attrs)
    f64 = q.with_dtype(DType.F64)
    with pytest.raises(DTypeError):
        operator("attention").infer([f64, f64, f64], attrs)
    with pytest.raises(ShapeError):
        operator("attention").infer([q, q, q], attrs | {"mask": "bool"})
