"""Receipts of runs: signed from a trace, verified by running again, refuted where anything differs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ree
from ree.commit import receipt
from ree.commit.keys import Signer, generate
from ree.commit.rerun import claim_of
from ree_kernels import cpu
from tests.test_trace import ROOT, compiled


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    generate(tmp_path / "key.pem")
    return Signer.load(tmp_path / "key.pem")


def test_a_receipt_holds(signer: Signer) -> None:
    program, inputs = compiled("attention")
    _, trace = program.run(*inputs, commit=True)
    envelope = trace.receipt(signer, nonce=bytes(range(32)))
    found = ree.verify(envelope, program, tuple(inputs), trace.input_salt, [signer.public])
    assert found.claim.trace_root == trace.root and found.claim.nonce == bytes(range(32))
    assert found.signer == signer.public
    ree.verify(envelope, program, tuple(inputs))


def test_what_differs_is_named(signer: Signer, tmp_path: Path) -> None:
    program, (x,) = compiled("product with epilogue")
    _, trace = program.run(x, commit=True)
    envelope = trace.receipt(signer)

    other, _ = compiled("norm and softmax")
    with pytest.raises(ree.VerificationError, match="programId"):
        ree.verify(envelope, other, (x[:5],))
    changed = x.clone()
    changed[6, 23] = torch.nextafter(changed[6, 23], torch.tensor(9.0))
    with pytest.raises(ree.VerificationError, match=r"outputId|traceRoot"):
        ree.verify(envelope, program, (changed,))
    with pytest.raises(ree.VerificationError, match="input"):
        ree.verify(envelope, program, (changed,), trace.input_salt)
    with pytest.raises(ree.VerificationError, match="input"):
        ree.verify(envelope, program, (x,), bytes(32))
    with pytest.raises(ree.VerificationError):
        ree.verify(envelope[:-1], program, (x,))
    generate(tmp_path / "other.pem")
    with pytest.raises(ree.VerificationError):
        ree.verify(envelope, program, (x,), trusted_keys=[Signer.load(tmp_path / "other.pem").public])


@pytest.mark.parametrize("field", ["trace_root", "output_id", "weights_id"])
def test_a_signed_lie_is_refuted(signer: Signer, field: str) -> None:
    """A prover who signs another root, output or weights than his program gives."""
    from dataclasses import replace

    program, (x,) = compiled("product with epilogue")
    _, trace = program.run(x, commit=True)
    claim = claim_of(trace.manifest, bytes(range(32)))
    lie = replace(claim, **{field: bytes(31) + b"\1"})
    with pytest.raises(ree.VerificationError):
        ree.verify(receipt.make(lie, signer), program, (x,))
    ree.verify(receipt.make(claim, signer), program, (x,), bytes(range(32)))


VERIFIER = """
import sys
import numpy as np
import ree
from ree.commit import rerun
folder = sys.argv[1]
found = rerun.verify(open(folder + "/r.json", "rb").read(), ree.load(folder + "/m.ree"), [np.load(folder + "/x.npy")])
print(found.claim.trace_root.hex(), "torch" in sys.modules)
"""


def test_another_machine_verifies_it(signer: Signer, tmp_path: Path) -> None:
    """As far as one machine can show: fresh processes without torch, under every instruction set."""
    import numpy as np

    program, (x,) = compiled("convolution")
    _, trace = program.run(x, commit=True)
    (tmp_path / "r.json").write_bytes(trace.receipt(signer))
    program.save(tmp_path / "m.ree")
    np.save(tmp_path / "x.npy", x.numpy())
    for isa in cpu.supported():
        env = os.environ | {"REE_ISA": isa, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", VERIFIER, str(tmp_path)], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [trace.root.hex(), "False"]


def test_the_sha256_twins_are_held_to_the_run(signer: Signer) -> None:
    program, inputs = compiled("integers")
    outputs, trace = program.run(*inputs, commit=True)
    assert trace is not None
    claim = claim_of(trace.manifest, bytes(range(32)))
    data = b"".join(tensor.numpy().tobytes() for tensor in outputs)
    good = {
        "output_sha256": hashlib.sha256(data).digest(),
        "program_sha256": hashlib.sha256(program.description).digest(),
    }
    ree.verify(receipt.make(dataclasses.replace(claim, **good), signer), program, tuple(inputs))
    for field in good:
        wrong = receipt.make(dataclasses.replace(claim, **good | {field: bytes([1]) * 32}), signer)
        with pytest.raises(ree.VerificationError, match="Sha256"):
            ree.verify(wrong, program, tuple(inputs))


def test_a_run_that_cannot_be_is_refuted(signer: Signer) -> None:
    program, (x,) = compiled("product with epilogue")
    _, trace = program.run(x, commit=True)

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.nn.Embedding(10, 4)

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return self.rows(index)

    table = ree.compile(Table().eval(), (torch.tensor([1]),))
    claim = dataclasses.replace(claim_of(trace.manifest, bytes(range(32))), program_id=table.program_id)
    with pytest.raises(ree.VerificationError, match="out of range"):
        ree.verify(receipt.make(claim, signer), table, (torch.tensor([77]),))
