"""Lowerings of elementary functions: compiled models against torch's float64 results, options and refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ree
from ree.errors import UnsupportedError

F = torch.nn.functional


class Call(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(*args)


def compiled(function: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
    return ree.compile(Call(function).eval(), args)(*args)


X = torch.linspace(-4, 4, 35).reshape(5, 7)
Y = torch.linspace(0.1, 2, 35).reshape(5, 7)

UNARY = {
    "exp": torch.exp,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": lambda x: F.softplus(x, beta=2, threshold=3),
    "log_sigmoid": F.logsigmoid,
    "general power": lambda x: x.abs() ** 2.5,
    "power of a number": lambda x: 2**x,
    "reciprocal root": lambda x: (x.abs() + 1) ** -0.5,
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    expected = UNARY[name](X.double()).float()
    torch.testing.assert_close(compiled(UNARY[name], X), expected, rtol=2.0**-22, atol=2.0**-40)


@pytest.mark.parametrize("function", [lambda a, b: b**a, torch.atan2, torch.logaddexp, torch.xlogy])
def test_binary(function: Callable[..., torch.Tensor]) -> None:
    expected = function(X.double(), Y.double()).float()
    torch.testing.assert_close(compiled(function, X, Y), expected, rtol=2.0**-22, atol=2.0**-40)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, -1, -2, 0.5])
def test_simple_powers_are_exact(exponent: float) -> None:
    expected = (Y**exponent) if exponent != 3 else Y * Y * Y
    if exponent == 0.5:  # torch's own root is not correctly rounded on every processor
        expected = Y.double().sqrt().float()
    assert torch.equal(compiled(lambda y: y**exponent, Y), expected)


def test_integer_powers() -> None:
    base = torch.tensor([-3, -1, 0, 1, 2, 7], dtype=torch.int32).repeat(4)
    exponent = torch.tensor([0, 1, 2, 3, 5, 31, -1, -2], dtype=torch.int32).repeat(3)
    assert torch.equal(compiled(lambda a, b: a**b, base, exponent), base**exponent)
    assert torch.equal(compiled(lambda a: a**3, base), base**3)
    assert torch.equal(compiled(lambda a: a.to(torch.int8) ** 5, base), base.to(torch.int8) ** 5)


def test_integers_become_float32() -> None:
    x = torch.arange(-3, 4)
    assert torch.equal(compiled(torch.sin, x), compiled(torch.sin, x.float()))


def test_float64_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="float64"):
        compiled(torch.exp, X.double())
