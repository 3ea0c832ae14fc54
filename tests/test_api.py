"""The public functions: bad arguments give one `ree.Error` in one line that says where."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.masked import masked_tensor

import ree


class Item(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.sum().item()


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x


class Decompose(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


class Spectrum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).abs()


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (Item(), ree.UnsupportedError, "item"),
        (Branch(), ree.CaptureError, "data"),
        (Decompose(), ree.UnsupportedError, "svd"),
        (Spectrum(), ree.Error, "fft"),
    ],
)
def test_what_cannot_be_compiled_says_what_and_where(model: nn.Module, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        ree.compile(model, torch.randn(3, 3))
    text = str(caught.value)
    assert "test_api.py" in text and "\n" not in text


@pytest.fixture(scope="module")
def program() -> ree.Program:
    return ree.compile(nn.Linear(3, 2).eval(), torch.randn(4, 3))


ONES = np.ones((4, 3), "f4")


class Metres(np.ndarray):
    pass


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(4, 3)


CALLS: dict[str, Callable[[ree.Program, Path], Any]] = {
    "threads text": lambda p, f: ree.threads("a"),  # type: ignore[arg-type]
    "threads float": lambda p, f: ree.threads(1.5),  # type: ignore[arg-type]
    "threads zero": lambda p, f: ree.threads(0),
    "threads many": lambda p, f: ree.threads(1 << 70),
    "seed text": lambda p, f: ree.compile(nn.Linear(3, 2), torch.randn(4, 3), seed="a"),  # type: ignore[arg-type]
    "seed negative": lambda p, f: ree.compile(nn.Linear(3, 2), torch.randn(4, 3), seed=-1),
    "device": lambda p, f: ree.compile(nn.Linear(3, 2), torch.randn(4, 3), device="tpu"),
    "no inputs": lambda p, f: ree.compile(nn.Linear(3, 2)),
    "no model": lambda p, f: ree.compile(3, torch.randn(4, 3)),
    "wrong example": lambda p, f: ree.compile(nn.Linear(3, 2), torch.randn(4, 5)),
    "save nowhere": lambda p, f: p.save(None),  # type: ignore[arg-type]
    "save null byte": lambda p, f: p.save("a\0b"),
    "load null byte": lambda p, f: ree.load("a\0b"),
    "load nothing": lambda p, f: ree.load(None),  # type: ignore[arg-type]
    "load folder": lambda p, f: ree.load(f),
    "no tensor": lambda p, f: p(3),
    "two tensors": lambda p, f: p(torch.randn(4, 3), torch.randn(4, 3)),
    "unknown name": lambda p, f: p(foo=torch.randn(4, 3)),
    "wrong shape": lambda p, f: p(torch.randn(4, 4)),
    "wrong rank": lambda p, f: p(torch.randn(3)),
    "wrong dtype": lambda p, f: p(torch.randn(4, 3).double()),
    "sparse": lambda p, f: p(torch.randn(4, 3).to_sparse()),
    "nested": lambda p, f: p(torch.nested.nested_tensor([torch.randn(3)])),
    "meta": lambda p, f: p(torch.empty(4, 3, device="meta")),
    "masked tensor": lambda p, f: p(masked_tensor(torch.randn(4, 3), torch.randn(4, 3) > 0)),
    "fake": lambda p, f: p(fake()),
    "within vmap": lambda p, f: torch.func.vmap(p)(torch.randn(2, 4, 3)),
    "masked array": lambda p, f: p(np.ma.masked_array(ONES, mask=ONES > 0)),
    "matrix": lambda p, f: p(np.matrix(ONES)),
    "record array": lambda p, f: p(ONES.view(np.recarray)),
    "own class": lambda p, f: p(ONES.view(Metres)),
    "big endian": lambda p, f: p(ONES.astype(">f4")),
    "objects": lambda p, f: p(ONES.astype(object)),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass", "ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize("name", CALLS)
def test_bad_arguments(name: str, program: ree.Program, tmp_path: Path) -> None:
    with pytest.raises(ree.Error) as caught:
        CALLS[name](program, tmp_path)
    assert str(caught.value) and "\n" not in str(caught.value)
    x = torch.randn(4, 3)
    assert program(x).shape == (4, 2)


def test_arguments_may_be_passed_by_name(program: ree.Program) -> None:
    x = torch.randn(4, 3)
    assert torch.equal(program(input=x), program(x))


def test_numpy_in_numpy_out(program: ree.Program) -> None:
    x = torch.randn(4, 3)
    assert program(x.numpy()).tobytes() == program(x).numpy().tobytes()
    assert program(x.numpy()[:, ::-1][:, ::-1]).tobytes() == program(x).numpy().tobytes()


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_what_to_do_with_a_subclass(program: ree.Program) -> None:
    with pytest.raises(ree.InputError, match=r"masked array; pass x\.filled"):
        program(np.ma.masked_array(ONES, mask=ONES > 0))
    with pytest.raises(ree.InputError, match=r"is a matrix; pass a plain array: numpy\.asarray"):
        program(np.matrix(ONES))
    assert program(np.asarray(np.matrix(ONES))).shape == (4, 2)


def test_memory_of_a_file_is_an_array(program: ree.Program, tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "x", "f4", "w+", shape=(4, 3))
    mapped[:] = ONES
    assert np.array_equal(program(mapped), program(ONES))
    assert torch.equal(program(nn.Parameter(torch.ones(4, 3))), program(torch.ones(4, 3)))


def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    """Another thread was running the program, or compiling a kernel, at the moment of the fork."""
    from ree.element import jit

    program = ree.compile(torch.nn.ReLU(), (torch.ones(3),))
    with program._lock, jit._lock:
        child = os.fork()
        if child == 0:
            compiled = ree.compile(torch.nn.Tanh(), (torch.ones(5),))
            good = torch.equal(program(torch.tensor([-1.0, 0.0, 2.0])), torch.tensor([0.0, 0.0, 2.0]))
            os._exit(0 if good and compiled(torch.zeros(5)).sum() == 0 else 1)
        for _ in range(600):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.05)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert done and os.waitstatus_to_exitcode(status) == 0


def test_a_weight_that_is_changed_later_is_noticed(tmp_path: Path) -> None:
    """The program shares the model's memory: it would compute with some old and some new weights."""
    model, x = nn.Linear(4, 3).eval(), torch.randn(2, 4)
    program = ree.compile(model, (x,))
    before = program(x)
    with torch.no_grad():
        model(x)
        assert torch.equal(program(x), before)
        model.bias += 1
    for use in (lambda: program(x), lambda: program.run(x, commit=True), lambda: program.save(tmp_path / "m.ree")):
        with pytest.raises(ree.InputError, match="changed in place"):
            use()
    torch.testing.assert_close(ree.compile(model, (x,))(x), before + 1)
