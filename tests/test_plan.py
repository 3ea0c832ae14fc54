"""Planned programs give the bits of the reference interpreter, whatever was fused or laid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ree
from ree import reference
from ree.capture import capture
from ree.plan.memory import Interval, place


class Lambda(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def special(*shape: int) -> torch.Tensor:
    """Random values with NaN, infinities, signed zeros and subnormals among them."""
    x = torch.randn(*shape)
    flat = x.view(-1)
    values = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-45]
    for n, value in enumerate(values):
        flat[(n * 7919) % flat.numel()] = value
    return x


def assert_same_bits(model: nn.Module, *inputs: torch.Tensor) -> ree.Program:
    program = ree.compile(model.eval(), inputs)
    found = torch.utils._pytree.tree_leaves(program(*inputs))
    # the graph as captured: what folding computes is under test, too
    expected = reference.evaluate(capture(model, inputs).graph, [x.numpy() for x in inputs])
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.numpy().dtype == b.dtype and a.numpy().shape == b.shape
        assert a.numpy().tobytes() == b.tobytes()
    return program


CASES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "scalar": (lambda x: x + 1, ((),)),
    "empty": (lambda x: (x * 2).sum(-1), ((0, 5),)),
    "positions": (lambda x: (torch.arange(5), torch.arange(5) * 2 + x.to(torch.int64)), ((5,),)),
    "empty reduction": (lambda x: x.sum(-1), ((5, 0),)),
    "one element": (lambda x: x.relu() - 3, ((1,),)),
    "row statistic": (lambda x: (x - x.mean(-1, keepdim=True)) * x.sum(-1, keepdim=True), ((7, 300),)),
    "statistic used across": (lambda x: (x.relu() * 2 + x.sum(-1, keepdim=True)).t(), ((4, 300),)),
    "column statistic": (lambda x: x - x.mean(0, keepdim=True), ((300, 7),)),
    "diamonds": (lambda x: _diamonds(x), ((3, 17),)),
    "views": (lambda x: (x.view(4, 10, 30).transpose(1, 2) + 1, x.t()), ((4, 300),)),
    "view of a producer": (lambda x: ((x * 2).view(6, 20).t() + 1).reshape(4, 30), ((4, 30),)),
    "input and output": (lambda x: (x, x, x.t(), x + 1), ((4, 5),)),
    "cat of halves": (lambda x: torch.cat([-x[..., 5:], x[..., :5]], -1) * 2, ((4, 10),)),
    "flip and slice": (lambda x: x.flip(0)[::2] + x[1:].flip(1)[::2], ((8, 6),)),
    "expand": (lambda x, y: x[:, None] + y[None], ((5,), (7,))),
    "matmul epilogue": (lambda x, y: (x @ y).relu() * 2 + 1, ((5, 20), (20, 33))),
    "matmul two readers": (lambda x, y: ((x @ y) + 1, (x @ y).t()), ((5, 20), (20, 33))),
    "matmul then row statistic": (lambda x, y: (x @ y + 1).amax(-1), ((5, 20), (20, 33))),
    "matmul transposed result": (lambda x, y: (x @ y).t() + 1, ((5, 20), (20, 33))),
    "batched": (lambda x, y: x @ y.transpose(-1, -2), ((2, 3, 5, 7), (2, 3, 6, 7))),
    "two products meet": (lambda x, y: (x @ y) * (x.relu() @ y), ((5, 20), (20, 33))),
    "matrix times vector": (lambda x, y: x @ y, ((5, 20), (20,))),
    "integer": (lambda x: (x * 100).to(torch.int32) // 7 + (x > 0), ((5, 20),)),
    "pool chain": (lambda x: F.max_pool2d(x.relu(), 2) + 1, ((2, 3, 8, 9),)),
    "softmax": (lambda x: torch.softmax(x * 3, -1), ((5, 300),)),
    "cumsum": (lambda x: x.cumsum(1), ((4, 30, 3),)),
    "sort": (lambda x: x.sort(descending=True), ((4, 30),)),
    "topk": (lambda x: x.topk(5), ((4, 30),)),
}


def _diamonds(x: torch.Tensor) -> torch.Tensor:
    for _ in range(40):
        x = x * x.abs() - x
    return x


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    torch.manual_seed(0)
    function, shapes = CASES[name]
    inputs = [special(*s) if torch.Size(s).numel() > 10 else torch.randn(s) for s in shapes]
    assert_same_bits(Lambda(function), *inputs)


def test_index_operators() -> None:
    x, i = torch.randn(5, 6), torch.randint(0, 7, (5, 6))
    assert_same_bits(Lambda(lambda x, i: torch.zeros(5, 7).scatter_add(1, i, x)), x, i)
    assert_same_bits(Lambda(lambda x, i, s: x.index_add(0, i, s.t())), x, torch.tensor([4, 0, 4]), torch.randn(6, 3))
    assert_same_bits(Lambda(lambda x, i: x.gather(1, i.clamp(max=5))), x, i)
    assert_same_bits(nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 4)), torch.randint(0, 10, (3, 5)))


def test_index_out_of_range_is_refused_and_the_program_lives_on() -> None:
    program = ree.compile(nn.Embedding(10, 16), torch.tensor([1, 2]))
    good = program(torch.tensor([1, 2]))
    for bad in (10, -1, 1 << 40):
        with pytest.raises(ree.RunError):
            program(torch.tensor([1, bad]))
    assert torch.equal(program(torch.tensor([1, 2])), good)


def test_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 8, 3, stride=2, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    program = assert_same_bits(model, torch.randn(2, 3, 17, 19))
    hosted = [s.name for s in program.plan(()).steps if s.epilogue is not None]
    assert hosted.count("conv") == 2 and "matmul" in hosted


def test_a_convolution_may_be_an_output_itself() -> None:
    """Its kernel writes channels-last, the output is in C order."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 9)
    plain = nn.Conv2d(8, 8, 3, bias=False)
    assert_same_bits(plain, x)
    assert_same_bits(nn.ConvTranspose2d(8, 4, 3, groups=2, bias=False), x)
    assert_same_bits(nn.Conv1d(8, 6, 3, bias=False), x[:, :, 0])
    assert_same_bits(nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 3, bias=False)), x)
    assert_same_bits(Lambda(lambda x, w: _outputs_of(F.conv2d(x, torch.ones(4, 8, 3, 3)))), x, x)


def _outputs_of(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return y, y + 1, y.flatten(1), y.permute(0, 2, 3, 1)


def test_dynamic_rows_equal_static_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 7)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = ree.compile(model, torch.randn(4, 20), dynamic_shapes=({0: batch},))
    x = torch.randn(40, 20)
    whole = program(x)
    for size in (1, 2, 3, 9, 16):
        part = program(x[5 : 5 + size])
        assert torch.equal(part, whole[5 : 5 + size])
    with pytest.raises(ree.ShapeError):
        program(torch.randn(65, 20))


def test_place_never_overlaps_what_lives_together() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        items = []
        for _ in range(20):
            first = int(rng.integers(0, 30))
            items.append(Interval(int(rng.integers(0, 500)), first, first + int(rng.integers(0, 10))))
        offsets, total = place(items)
        for a, at in zip(items, offsets, strict=True):
            assert at % 64 == 0 and at + a.size_bytes <= total
            for b, bt in zip(items, offsets, strict=True):
                if a is not b and a.first <= b.last and b.first <= a.last:
                    assert at + a.size_bytes <= bt or bt + b.size_bytes <= at


def test_long_chains_of_pointwise_operators_are_cut() -> None:
    """Programs are built by recursion: one of hundreds of operators had none of our errors, but Python's."""

    class Chain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for i in range(400):
                x = x * 3 + i % 7
            return x

    x = torch.arange(4)
    program = ree.compile(Chain(), (x,))
    assert torch.equal(program(x), Chain()(x)) and 2 <= len(program.plan(()).steps) < 20


BETWEEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda y: y.transpose(0, 1).contiguous(),
    "transposed and scaled": lambda y: y.transpose(0, 1) * 2,
    "transposed and rectified": lambda y: torch.relu(y.transpose(0, 1)),
    "flipped": lambda y: y.flip(0) + 1,
    "with its flip": lambda y: y + y.flip(0),
    "a part": lambda y: (y + 1)[:, :1] * 2,
    "all axes": lambda y: torch.relu(y).permute(2, 1, 0).reshape(-1),
    "twice": lambda y: (y * 2).permute(1, 0, 2) + torch.tanh(y).permute(1, 0, 2),
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_view_between_a_product_and_what_follows_moves_elements(kind: str, name: str) -> None:
    """An epilogue runs where its product lies: elements that it reads elsewhere were overwritten, or not there yet."""
    torch.manual_seed(2)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 4) if kind == "linear" else nn.Conv1d(4, 4, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return BETWEEN[name](self.first(x) + 1)

    x = torch.randn(17, 4, 8) if kind == "linear" else torch.randn(4, 4, 9)
    program = ree.compile(Model().eval(), (x,))
    exact = reference.evaluate(program.graph, [x.numpy()])
    for threads in (1, 2, 3):
        ree.threads(threads)
        for found, expected in zip(program.run_flat([x.numpy()]), exact, strict=True):
            assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_layer_with_a_batch(batch_first: bool) -> None:
    torch.manual_seed(2)
    model, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first).eval(), torch.randn(3, 5, 16)
    program = ree.compile(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
    (expected,) = reference.evaluate(program.graph, [x.numpy()])
    assert program.run_flat([x.numpy()])[0].tobytes() == expected.tobytes()
