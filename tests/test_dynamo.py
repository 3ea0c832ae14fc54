"""torch.compile(backend="ree"): inference, changed weights, varying shapes, training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ree
from ree.api import backend
from tests.small_models import MODELS, build


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 33), nn.GELU(), nn.LayerNorm(33), nn.Linear(33, 7)).eval()


def test_the_backend_is_registered() -> None:
    """By its name, as the installed package's entry point gives it."""
    from importlib.metadata import entry_points

    names = {e.name: e.value for e in entry_points(group="torch_dynamo_backends")}
    assert names.get("ree") == "ree.api:backend"


def test_inference_has_the_bits_of_compile() -> None:
    model = mlp()
    compiled = torch.compile(model, backend=backend)
    x = torch.randn(5, 20)
    with torch.no_grad():
        expected = ree.compile(model, x)(x)
        assert torch.equal(compiled(x), expected)
        for batch in (1, 5, 9):
            assert compiled(torch.randn(batch, 20)).shape == (batch, 7)
        assert torch.equal(compiled(x), expected)


def test_a_changed_weight_is_seen() -> None:
    model = mlp()
    compiled = torch.compile(model, backend=backend)
    x = torch.randn(5, 20)
    with torch.no_grad():
        before = compiled(x)
        model[0].weight.mul_(2)
        after = compiled(x)
        assert not torch.equal(before, after)
        assert torch.equal(after, ree.compile(model, x)(x))


def test_a_change_behind_torchs_back_is_seen_where_parameters_are_not_frozen() -> None:
    model = mlp()
    compiled = torch.compile(model, backend=backend, options={"freeze": False})
    x = torch.randn(5, 20)
    with torch.no_grad():
        assert torch.equal(compiled(x), ree.compile(model, x)(x))
        model[0].weight.data.mul_(2)
        assert torch.equal(compiled(x), ree.compile(model, x)(x))
        model[3].weight.numpy()[:] += 1
        assert torch.equal(compiled(x), ree.compile(model, x)(x))


def test_a_changed_weight_of_a_model_made_in_inference_mode_is_seen() -> None:
    """Such tensors count no versions."""
    with torch.inference_mode():
        model = mlp()
        compiled = torch.compile(model, backend=backend)
        x = torch.randn(5, 20)
        assert torch.equal(compiled(x), ree.compile(model, x)(x))
        model[0].weight.mul_(2)
        assert torch.equal(compiled(x), ree.compile(model, x)(x))


@pytest.mark.parametrize("options", [{"freez": False}, {"freeze": 1}, {"freeze": True, "max_autotune": True}])
def test_unknown_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(Exception, match="ree knows 'freeze'"):
        torch.compile(mlp(), backend=backend, options=options)(torch.randn(5, 20))


def test_training_gradients_agree_with_torch() -> None:
    """Forward and backward run in ree; the gradients are as close to float64 as torch's."""
    model, x = mlp(), torch.randn(5, 20)
    torch.compile(model, backend=backend)(x).square().sum().backward()
    ours = [p.grad.double() for p in model.parameters()]
    exact_model = mlp().double()
    exact_model.load_state_dict(model.state_dict())
    exact_model(x.double()).square().sum().backward()
    for a, b in zip(ours, exact_model.parameters(), strict=True):
        assert (a - b.grad).norm() <= 1e-5 * b.grad.norm() + 1e-9


def test_a_transformer() -> None:
    model = build("gpt2")
    x = MODELS["gpt2"][1](2, 8)
    with torch.no_grad():
        found = torch.compile(model, backend=backend)(x).logits
        assert (found - model(x).logits).abs().max() < 1e-5


def test_random_numbers_are_refused() -> None:
    """A graph is compiled once: its numbers would be the same at every call."""
    model = nn.Dropout(0.5).train()
    with pytest.raises(ree.UnsupportedError, match=r"native_dropout.* random numbers.*eval"), torch.no_grad():
        torch.compile(model, backend=backend)(torch.ones(10))
    assert torch.equal(torch.compile(model.eval(), backend=backend)(torch.ones(10)), torch.ones(10))


RANDOM = {
    "native_dropout": lambda x: nn.functional.dropout(x, 0.3),
    "aten.rand.default": lambda x: x + torch.rand(4, 6),
    "aten.randn_like.default": lambda x: x + torch.randn_like(x),
    "aten.bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "normal": lambda x: x + torch.empty(6).normal_(),
    "randperm": lambda x: x[torch.randperm(4)],
}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_random_operator_is_named_with_its_line_and_what_to_do(name: str, dynamic: bool | None, grad: bool) -> None:
    compiled = torch.compile(RANDOM[name], backend=backend, dynamic=dynamic)
    with pytest.raises(ree.UnsupportedError) as caught, torch.set_grad_enabled(grad):
        compiled(torch.ones(4, 6))
    text = str(caught.value)
    assert name in text and "\n" not in text
    line = RANDOM[name].__code__.co_firstlineno
    assert f"test_dynamo.py:{line}, in <lambda>: " in text
    for advice in ("model.eval()", "as an input", "seed="):
        assert advice in text


def test_random_numbers_as_an_input_are_taken() -> None:
    def function(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return x + noise

    x, noise = torch.randn(2, 4, 6)
    assert torch.equal(torch.compile(function, backend=backend)(x, noise), x + noise)


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = mlp()
        x = torch.randn(5, 20)
        assert torch.equal(torch.compile(model, backend=backend)(x), ree.compile(model, x)(x))


def test_outputs_have_the_strides_that_torch_expects() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, 1) + 1

    x = torch.randn(2, 3, 4)
    found = torch.compile(function, backend=backend)(x)
    assert found.stride() == function(x).stride() and torch.equal(found, function(x))


def test_an_operator_without_definition_fails_at_compile_time() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).real

    with pytest.raises(Exception, match="not supported"), torch.no_grad():
        torch.compile(function, backend=backend)(torch.randn(8))
