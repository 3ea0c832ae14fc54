"""Whole models: the same bits as the reference interpreter, on every ISA, thread count, batch and length."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ree
from ree import reference
from ree.capture import capture
from ree_kernels import cpu
from tests.small_models import MODELS, build


def first(output: object) -> torch.Tensor:
    tensor: torch.Tensor = torch.utils._pytree.tree_leaves(output)[0]
    return tensor.detach()


def programs() -> dict[str, ree.Program]:
    """Every model with dynamic batch and, where it may vary, dynamic length."""
    found = {}
    for name, (_, inputs, has_length) in MODELS.items():
        dynamic = {0: torch.export.Dim("batch", min=1, max=16)}
        if has_length:
            dynamic[1] = torch.export.Dim("length", min=2, max=64)
        found[name] = ree.compile(build(name), (inputs(2, 16),), dynamic_shapes=(dynamic,))
    return found


@pytest.fixture(scope="module")
def compiled() -> dict[str, ree.Program]:
    return programs()


@pytest.mark.parametrize("name", MODELS)
def test_bits_of_the_interpreter(name: str) -> None:
    inputs = MODELS[name][1](1, 5)
    model = build(name)
    graph = capture(model, (inputs,)).graph
    expected = reference.evaluate(graph, [inputs.numpy()])[0]
    found = first(ree.compile(model, (inputs,))(inputs))
    assert found.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_close_to_torch(name: str, compiled: dict[str, ree.Program]) -> None:
    """Against the model in float64: our error is of the size of torch's own."""
    inputs = MODELS[name][1](2, 16)
    model = build(name)
    with torch.no_grad():
        eager = first(model(inputs)).double()
        exact = first(model.double()(inputs if not inputs.is_floating_point() else inputs.double()))
    ours = (first(compiled[name](inputs)).double() - exact).norm()
    torchs = (eager - exact).norm()
    assert ours <= 2 * torchs + 1e-12 * exact.norm()


@pytest.mark.parametrize("name", MODELS)
def test_a_row_has_the_same_bits_in_every_batch(name: str, compiled: dict[str, ree.Program]) -> None:
    inputs = MODELS[name][1](9, 16)
    whole = first(compiled[name](inputs))
    for batch in range(1, 9):
        part = first(compiled[name](inputs[:batch]))
        assert torch.equal(part, whole[:batch]), batch
    assert torch.equal(first(compiled[name](inputs[4:5])), whole[4:5])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_causal_logits_do_not_depend_on_what_follows(name: str, compiled: dict[str, ree.Program]) -> None:
    """The logits of a prefix are those of the whole text: decode, prefill and padding agree."""
    inputs = MODELS[name][1](2, 24)
    whole = first(compiled[name](inputs))
    for length in (2, 3, 15, 16, 17, 23):
        assert torch.equal(first(compiled[name](inputs[:, :length])), whole[:, :length]), length


def test_one_digest_on_every_isa(compiled: dict[str, ree.Program], tmp_path: Path) -> None:
    """Fresh processes without torch: every ISA, threads 1, 2, 3, 7, run orders, a changed MXCSR."""
    expected = {}
    for name, program in compiled.items():
        inputs = MODELS[name][1](2, 16)
        program.save(tmp_path / f"{name}.ree")
        np.save(tmp_path / f"{name}.npy", inputs.numpy())
        expected[name] = hashlib.sha256(first(program(inputs)).numpy().tobytes()).hexdigest()
    for isa in cpu.supported():
        done = subprocess.run(
            [sys.executable, "-m", "tests.digest_worker", str(tmp_path)],
            env={**os.environ, "REE_ISA": isa},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for name, digests in json.loads(done.stdout).items():
            assert set(digests) == {expected[name]}, (isa, name)


def test_flush_to_zero_while_compiling_changes_no_constant() -> None:
    class Small(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.full((4,), 1e-40) + 1e-40

    x = torch.tensor([1e-39, 3e-39, 1.0, 2.0])
    expected = ree.compile(Small(), (x,))(x)
    assert torch.set_flush_denormal(True)
    try:
        found = ree.compile(Small(), (x,))(x)
    finally:
        torch.set_flush_denormal(False)
    assert found.numpy().tobytes() == expected.numpy().tobytes() and expected[0] > 0


def test_flush_to_zero_of_torch_changes_no_bit() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Softmax(-1)).eval()
    inputs = torch.randn(3, 8) * 1e-39
    program = ree.compile(model, (inputs,))
    before = program(inputs)
    assert torch.set_flush_denormal(True)
    try:
        again, recompiled = program(inputs), ree.compile(model, (inputs,))(inputs)
    finally:
        torch.set_flush_denormal(False)
    assert before.numpy().tobytes() == again.numpy().tobytes() == recompiled.numpy().tobytes()
