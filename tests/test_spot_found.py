"""Spot checks: what a reviewer found, and what a checker may demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ree
from ree import outline, tensors
from ree.commit.trace import Trace
from ree.errors import InputError, VerificationError
from ree.types import DType
from tests.receipt_vectors import SIGNER
from tests.test_dispute import command
from tests.test_trace import compiled


class ClassToken(nn.Module):
    """As in a vision transformer: few elements of the concatenation are the token's."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), self.first(x)], 1)
        return self.last((y + F.scaled_dot_product_attention(y, y, y))[:, 0])


class Wide(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[n : n + 1] * n for n in range(60)])


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0)


def run(model: nn.Module, x: torch.Tensor) -> tuple[ree.Program, Trace]:
    torch.manual_seed(5)
    program = ree.compile(model.eval(), (x,))
    _, trace = program.run(x, commit=True, keep=True)
    assert trace is not None
    return program, trace


@pytest.mark.parametrize(
    ("model", "shape"), [(ClassToken, (1, 196, 32)), (Wide, (60, 3)), (Nothing, (0, 4))], ids=["token", "cat", "empty"]
)
def test_a_tensor_of_which_no_sample_reads_anything_need_not_be_opened(
    model: type[nn.Module], shape: tuple[int, ...]
) -> None:
    _, trace = run(model(), torch.randn(*shape))
    for samples in (1, 5, 20, 459):
        assert ree.check(trace.prove(samples), trace.receipt(SIGNER)).samples == samples


def test_another_number_of_samples_is_no_other_draw() -> None:
    """Else a prover could try 459, 460, ... until he is lucky, whoever chose the seed."""
    from ree.spot.draw import draw

    _, trace = run(ClassToken(), torch.randn(1, 50, 32))
    stages, seed = trace.manifest.stages, bytes(range(32))
    long = draw(stages, trace.root, 900, seed)
    assert all(draw(stages, trace.root, n, seed)[:n] == long[:n] for n in (1, 20, 459))


def test_a_checker_may_demand_samples_input_salt_and_nonce() -> None:
    program, inputs = compiled("product with epilogue")
    _, trace = program.run(*inputs, commit=True, keep=True)
    assert trace is not None
    nonce = bytes(range(1, 33))
    receipt = trace.receipt(SIGNER, nonce=nonce)
    proof = trace.prove(50)
    ree.check(proof, receipt, samples=50, inputs=inputs, salt=trace.input_salt, nonce=nonce)
    other = [inputs[0] + 1]
    for wrong in ({"samples": 51}, {"inputs": other}, {"salt": bytes(32)}, {"nonce": bytes(range(2, 34))}):
        with pytest.raises(VerificationError):
            ree.check(proof, receipt, **wrong)  # type: ignore[arg-type]
    for nonsense in ({"samples": 0}, {"inputs": [3]}, {"program": "m.ree"}):
        with pytest.raises(InputError):
            ree.check(proof, receipt, **nonsense)  # type: ignore[arg-type]


def test_the_command_line_demands_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, (x,) = compiled("product with epilogue")
    files = {name: str(tmp_path / name) for name in ("m.ree", "x.st", "y.st", "k.pem", "r.json", "p.proof", "q.proof")}
    program.save(files["m.ree"])
    for name, array in (("x.st", x.numpy()), ("y.st", x.numpy() + np.float32(1))):
        tensors.write(Path(files[name]), {program.input_names[0]: (array, DType.F32)})
    assert command("key", files["k.pem"]) == 0
    signing = ("--sign", files["k.pem"], "--receipt", files["r.json"])
    assert command("run", files["m.ree"], "-i", files["x.st"], *signing) == 0
    made = ("prove", files["m.ree"], "-i", files["x.st"], "--receipt", files["r.json"], "--samples", "30")
    assert command(*made, "-o", files["p.proof"]) == 0
    assert command(*made, "--self-contained", "-o", files["q.proof"]) == 0
    assert command("prove", files["m.ree"], "-i", files["y.st"], *made[4:], "-o", files["q.proof"] + "2") == 1
    capsys.readouterr()
    assert command("check", files["p.proof"], files["r.json"], files["m.ree"]) == 0
    assert "may be on any input" in capsys.readouterr().out
    demands = ("--input", files["x.st"], "--salt", files["r.json"] + ".salt", "--samples", "30")
    for proof in ((files["p.proof"], files["r.json"], files["m.ree"]), (files["q.proof"], files["r.json"])):
        assert command("check", *proof, *demands) == 0
        assert command("check", *proof, "--input", files["y.st"]) == 1
        assert command("check", *proof, "--samples", "31") == 1
    assert command("check", files["p.proof"], files["r.json"]) == 2
    assert outline.load(files["m.ree"]).program_id == program.program_id


def test_inputs_are_taken_as_a_run_takes_them() -> None:
    """Bools of other bytes are true, one tensor needs no list, and another shape or dtype is no input of the run."""

    class Negation(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ~x

    given = torch.from_numpy(np.array([[2, 255, 1, 0]], np.uint8)).view(torch.bool)
    _, trace = run(Negation(), given)
    receipt, proof = trace.receipt(SIGNER), trace.prove(4)
    ree.check(proof, receipt, inputs=(given,))
    ree.check(proof, receipt, inputs=given.view(torch.uint8).numpy() != 0)
    for wrong in (given.reshape(2, 2), given.view(torch.uint8), [], {"x": given}):
        with pytest.raises(InputError):
            ree.check(proof, receipt, inputs=wrong)
    for bad in ({"salt": b"1"}, {"nonce": "1" * 32}):
        with pytest.raises(InputError):
            ree.check(proof, receipt, **bad)  # type: ignore[arg-type]


def test_the_probability_to_find_one_element_is_that_of_draws_with_replacement() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    _, trace = run(Twice(), torch.randn(20))
    found = ree.check(trace.prove(20), trace.receipt(SIGNER))
    assert abs(found.single - (1 - 0.95**20)) < 1e-9


def test_a_transformer_layer_is_proved_and_held_against_itself() -> None:
    """Its plan once moved elements, which only the interpreter saw."""
    program, trace = run(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(3, 5, 16))
    ree.check(trace.prove(459), trace.receipt(SIGNER))
    assert ree.dispute(program, trace).stage is None


def test_a_fault_of_the_kernels_does_not_pass_for_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that the kernels confirm is computed by the interpreter as well."""
    from ree.referee import dispute as disputes
    from tests import dishonest

    program, trace = run(nn.Linear(8, 4), torch.randn(3, 8))
    claim = trace
    for element in range(12):
        claim = dishonest.lie(claim, 0, dishonest.flip(element))
    monkeypatch.setattr(disputes, "inconsistencies", lambda _: [])
    assert ree.dispute(program, claim).wrong == ("a",)
