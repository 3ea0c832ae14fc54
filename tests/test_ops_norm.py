"""Normalisations and softmaxes against torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ree.capture import capture
from ree.lower import Lowering
from ree.ops.spec import lowering, operator
from ree.reference import evaluate
from ree.types import DType, TensorType
from tests.aten_case import check_close, expect, run, samples, together

NAN, INF = float("nan"), float("inf")

NAMES = """
nn.functional.layer_norm native_layer_norm nn.functional.group_norm nn.functional.instance_norm softmax
log_softmax nn.functional.softmin
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_torch(name: str) -> None:
    calls = [(c, t) for c, t in samples(name, torch.float32) if not _updates_statistics(name, c)]
    assert calls
    function, tensors = together(calls[:12])
    check_close(function, *tensors, rtol=1e-5, atol=2e-6)


def _updates_statistics(name: str, call: Any) -> bool:
    """Instance norm samples with running statistics change them in place."""
    return name == "nn.functional.instance_norm" and "running_mean" in call.keywords


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check_module(
    module: torch.nn.Module, x: torch.Tensor, ops: set[str], rtol: float = 1e-5, atol: float = 3e-6
) -> None:
    """Through torch.export: the operators that the graph holds, and values against float64."""
    captured = capture(module.eval(), (x,))
    assert ops <= {n.op for n in captured.graph.nodes}
    (ours,) = evaluate(captured.graph, [x.numpy()])
    (wide,) = expect(module.double(), x.double())
    np.testing.assert_allclose(ours, wide.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 7)])
def test_layer_norm(affine: bool, shape: tuple[int, ...]) -> None:
    norm = torch.nn.LayerNorm(shape, eps=1e-3, elementwise_affine=affine)
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    check_module(norm, _randn(3, 5, 7) * 4 + 2, {"layer_norm"})


def test_layer_norm_with_only_one_vector() -> None:
    w = _randn(6, seed=1)
    check_close(lambda t, v: F.layer_norm(t, (6,), v, None), _randn(4, 6), w)
    check_close(lambda t, v: F.layer_norm(t, (6,), None, v), _randn(4, 6), w)


def test_constant_rows_give_the_bias() -> None:
    (out,) = run(
        lambda t, w, b: F.layer_norm(t, (300,), w, b), torch.full((2, 300), 2.5), _randn(300), _randn(300, seed=5)
    )
    np.testing.assert_array_equal(out[0], _randn(300, seed=5).numpy())


def test_layer_norm_statistics_are_the_reductions() -> None:
    x = _randn(4, 33) * 10 + 100
    _, mean, rstd, plain, var = run(
        lambda t: (*torch.native_layer_norm(t, (33,), None, None, 1e-5), t.mean(1, True), t.var(1, correction=0)), x
    )
    np.testing.assert_array_equal(mean, plain)
    np.testing.assert_allclose(rstd[:, 0], 1 / np.sqrt(var + np.float32(1e-5)), rtol=2e-7)


@pytest.mark.parametrize("eps", [None, 1e-5])
def test_rms_norm(eps: float | None) -> None:
    norm = torch.nn.RMSNorm(9, eps=eps)
    torch.nn.init.normal_(norm.weight)
    check_module(norm, _randn(4, 9), {"rms_norm"})


def test_fused_rms_norm_gives_the_scale_too() -> None:
    ctx, x = Lowering(), _randn(3, 8)
    handle = ctx.input("x", TensorType((3, 8), DType.F32))
    types = (handle.type, TensorType((3, 1), DType.F32))
    out, rstd = ctx.call("aten._fused_rms_norm.default", (handle, (8,), None, 1e-6), {}, types, "")
    ours, scale = evaluate(ctx.finish([out, rstd]), [x.numpy()])
    wide = x.double().numpy()
    expected = 1 / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    np.testing.assert_allclose(ours, wide * expected, rtol=2e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_in_inference_is_one_fma(dims: int, affine: bool) -> None:
    norm: Any = [torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d][dims - 1](5, affine=affine)
    for vector in (norm.running_mean, norm.weight, norm.bias):
        if vector is not None:
            torch.nn.init.normal_(vector)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    check_module(norm, _randn(2, 5, *(3,) * dims), {"fma"})


def test_batch_norm_of_vectors() -> None:
    check_module(torch.nn.BatchNorm1d(6), _randn(4, 6), {"fma"})


def test_training_batch_norm_and_its_running_statistics() -> None:
    call = torch.ops.aten._native_batch_norm_legit_functional.default
    x, w, b, m, v = _randn(4, 3, 5) * 3 + 1, _randn(3, seed=1), _randn(3, seed=2), _randn(3, seed=3), torch.rand(3)
    check_close(lambda *t: call(*t, True, 0.1, 1e-5), x, w, b, m, v, rtol=1e-5)
    check_close(lambda *t: call(*t, False, 0.1, 1e-5)[0], x, w, b, m, v, rtol=1e-5)
    plain = torch.ops.aten._native_batch_norm_legit.no_stats
    check_close(lambda *t: plain(*t, True, 0.1, 1e-5), x, w, b, rtol=1e-5)
    updated = torch.ops.aten._batch_norm_with_update_functional.default
    check_close(lambda *t: updated(*t, 0.1, 1e-5), x, w, b, m, v, rtol=1e-5)


def test_native_batch_norm_without_training() -> None:
    call = torch.ops.aten._native_batch_norm_legit_no_training.default
    x, m, v = _randn(4, 3, 5), _randn(3, seed=3), torch.rand(3) + 0.1
    check_close(lambda a, b, c: call(a, None, None, b, c, 0.1, 1e-5), x, m, v, rtol=1e-5)
    check_close(lambda a, b, c: call(a, b, b, b, c, 0.1, 1e-5), x, m, v, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(groups: int) -> None:
    norm = torch.nn.GroupNorm(groups, 6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    check_module(norm, _randn(2, 6, 4, 3), {"mean", "var"})
    check_close(lambda t: torch.native_group_norm(t, None, None, 2, 6, 12, groups, 1e-5), _randn(2, 6, 4, 3), rtol=1e-5)


def test_group_norm_far_from_zero() -> None:
    """The mean is subtracted before scaling: relative error stays that of the input's rounding."""
    x = _randn(2, 4, 50) + 1e4
    check_close(lambda t: F.group_norm(t, 2), x, rtol=1e-4, atol=1e-3)


def test_instance_norm() -> None:
    check_module(torch.nn.InstanceNorm2d(3, affine=True), _randn(2, 3, 4, 5), {"mean"})


SOFTMAXES: dict[str, Any] = {
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "_safe_softmax": torch.ops.aten._safe_softmax.default,
    "_softmax": lambda x, d: torch.ops.aten._softmax.default(x, d, False),
    "_log_softmax": lambda x, d: torch.ops.aten._log_softmax.default(x, d, False),
}


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_along_any_axis(name: str, dim: int) -> None:
    check_close(lambda t: SOFTMAXES[name](t, dim), _randn(3, 20, 4) * 5)


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_of_special_rows(name: str) -> None:
    rows = [
        [0.0, -INF, 1.0],
        [-INF, -INF, -INF],
        [INF, 0.0, 1.0],
        [NAN, 0.0, 1.0],
        [1e4, 1e4, -1e4],
        [88.0, -104.0, 0.0],
    ]
    check_close(lambda t: SOFTMAXES[name](t, 1), torch.tensor(rows))


def test_softmax_of_a_scalar_and_of_nothing() -> None:
    check_close(lambda t: (t.softmax(0), t.log_softmax(-1)), torch.tensor(3.0))
    check_close(lambda t: t.softmax(1), torch.zeros(2, 0))


def test_softmax_rows_do_not_depend_on_the_batch() -> None:
    x = _randn(3, 270)
    (whole,) = run(lambda t: t.softmax(1), x)
    (alone,) = run(lambda t: t.softmax(1), x[1:2].clone())
    np.testing.assert_array_equal(whole[1:2], alone)


def test_refusals_name_the_operator() -> None:
    from ree.errors import CaptureError, UnsupportedError

    assert operator("softmax").kind == "fold" and callable(lowering("aten.softmax.int"))
    with pytest.raises((CaptureError, UnsupportedError), match="in place"):
        capture(torch.nn.BatchNorm1d(4).train(), (_randn(3, 4),))
