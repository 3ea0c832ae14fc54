"""`ree run --commit --sign` and `ree verify`: receipts on the command line."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import ree
from ree.commit import keys
from tests.test_cli import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program, two inputs, a key, and a receipt for the first input."""
    path = tmp_path_factory.mktemp("receipts")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 3)).eval()
    ree.compile(model, (torch.ones(4, 8),)).save(path / "m.ree")
    ree.compile(torch.nn.ReLU(), (torch.ones(4, 8),)).save(path / "other.ree")
    for name, seed in (("x", 1), ("y", 2)):
        values = np.random.default_rng(seed).standard_normal((4, 8)).astype(np.float32)
        save_file({"x": values}, path / f"{name}.safetensors")
    (path / "key.hex").write_text(keys.generate(path / "key.pem").id)
    return path


@pytest.fixture
def signed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    arguments = ["run", folder / "m.ree", "-i", folder / "x.safetensors", "--sign", folder / "key.pem"]
    code, out, _ = run(capsys, *arguments, "--receipt", folder / "r.json", "--nonce", "ab" * 32, "--json")
    assert code == 0
    return dict(json.loads(out))


def test_commit_prints_the_trace_root(folder: Path, capsys: pytest.CaptureFixture[str], signed: dict[str, str]) -> None:
    code, out, _ = run(capsys, "run", folder / "m.ree", "-i", folder / "x.safetensors", "--commit", "--threads", 2)
    assert code == 0 and f"trace root {signed['trace_root']}" in out


def test_a_receipt_is_verified(folder: Path, capsys: pytest.CaptureFixture[str], signed: dict[str, str]) -> None:
    arguments = ["verify", folder / "r.json", folder / "m.ree", "-i", folder / "x.safetensors"]
    code, out, _ = run(capsys, *arguments, "--json")
    found = json.loads(out)
    assert code == 0 and found["receipt_id"] == signed["receipt_id"] and found["signer"] == signed["signer"]
    assert found["claim"]["traceRoot"] == signed["trace_root"] and found["claim"]["nonce"] == "ab" * 32
    salt = Path(signed["salt"])
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    key = (folder / "key.hex").read_text()
    code, out, _ = run(capsys, *arguments, "--salt", salt, "--key", key)
    assert code == 0 and "holds" in out and key in out and "anyone" not in out
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "anyone" in out


@pytest.mark.usefixtures("signed")
def test_what_does_not_hold_is_code_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "r.json").read_text()
    (folder / "altered.json").write_text(text[:-9])
    other = keys.generate(folder / f"other{np.random.default_rng().integers(1 << 60)}.pem").id
    (folder / "wrong.salt").write_text("00" * 31 + "01\n")
    for program, data, extra, names in (
        ("m.ree", "y", [], "outputId"),
        ("other.ree", "x", [], "programId"),
        ("m.ree", "x", ["--key", other], ""),
        ("m.ree", "x", ["--salt", folder / "wrong.salt"], "input"),
    ):
        files = [folder / "r.json", folder / program, "-i", folder / f"{data}.safetensors"]
        code, out, err = run(capsys, "verify", *files, *extra)
        assert code == 1 and out == "" and names in err and len(err.splitlines()) == 1, (program, data, extra)
    code, _, err = run(capsys, "verify", folder / "altered.json", folder / "m.ree", "-i", folder / "x.safetensors")
    assert code == 1 and len(err.splitlines()) == 1


@pytest.mark.usefixtures("signed")
def test_bad_usage_is_code_2_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = ["run", folder / "m.ree", "-i", folder / "x.safetensors"]
    sign, receipt = ["--sign", folder / "key.pem"], ["--receipt", folder / "new.json"]
    (folder / "no.salt").write_text("salt")
    verifying = ["verify", folder / "r.json", folder / "m.ree", "-i", folder / "x.safetensors"]
    for arguments in (
        [*running, *sign],
        [*running, *receipt],
        [*running, "--nonce", "ab" * 32],
        [*running, *sign, *receipt, "--nonce", "ab"],
        [*running, "--sign", folder / "m.ree", *receipt],
        [*running, "--sign", folder / "missing.pem", *receipt],
        [*running, *sign, "--receipt", folder / "missing" / "new.json"],
        ["verify", folder / "missing.json", *verifying[2:]],
        [*verifying, "--salt", folder / "no.salt"],
        [*verifying, "--salt", folder],
        [*verifying, "--key", "00"],
        ["verify", folder / "r.json", folder / "x.safetensors", *verifying[3:]],
    ):
        code, out, err = run(capsys, *arguments)
        assert code == 2 and out == "" and len(err.splitlines()) == 1, (arguments, err)
    assert not list(folder.glob("new.json*"))
