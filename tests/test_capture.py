"""Capture of what torch.export makes in odd cases."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ree


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (2, 1, 0, 3), value=-1.0)


def test_example_input_that_is_a_view() -> None:
    """For such an input torch leaves symbols without an upper bound in a program that has no dynamic dimension."""
    x = torch.randn(2 * 6 * 9 * 8).reshape(2, 6, 9, 8)
    program = ree.compile(Padded(), (x,))
    assert not program.graph.is_dynamic()
    assert torch.equal(program(x), F.pad(x, (2, 1, 0, 3), value=-1.0))
