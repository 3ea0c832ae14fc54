"""Traces of int8 programs, checked without computing their products: every altered tensor is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ree
from ree import cli
from ree.commit.keys import Signer, generate
from ree.commit.trace import Trace
from ree.errors import InputError, VerificationError
from ree.freivalds.trace import check_trace
from ree.lm import tracing
from ree.lm.model import LanguageModel
from ree.tampering import Change, flip, lie
from tests import lm_folders

PROMPT = "The sea was calm and"
PROMPT_TOKENS, TOKENS = [1, 40, 7, 99, 250, 31], [5, 77, 310, 2, 18, 400, 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden": 64, "heads": 2, "layers": 2}
    return lm_folders.make(tmp_path_factory.mktemp("models") / "small", "llama", **sizes)


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel.open(folder, "int8")


@pytest.fixture(scope="module")
def trace(model: LanguageModel) -> Trace:
    return tracing.run(model.program, PROMPT_TOKENS, TOKENS)


def products_of(trace: Trace) -> list[int]:
    stages = trace.manifest.stages
    return [s.index for s in stages if stages.graph.node_of(s.value).op == "matmul"]  # type: ignore[union-attr]


def test_an_honest_trace_holds_and_no_product_is_computed(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_trace(trace)
    assert found.products == len([n for n in products_of(trace) if trace.tensors[n].dtype == np.int32]) >= 10
    assert found.stages == len(trace.manifest.stages)
    ran: list[int] = []
    original = ree.plan.plan.Plan.run_one
    monkeypatch.setattr(ree.plan.plan.Plan, "run_one", lambda self, n, *rest: (ran.append(n), original(self, n, *rest)))
    check_trace(trace)
    products = {n for n in products_of(trace) if trace.tensors[n].dtype == np.int32}
    assert set(ran) == set(range(found.stages)) - products and len(ran) == len(set(ran))


@pytest.mark.parametrize("follow", [False, True])
def test_a_changed_bit_in_any_stage_is_found(trace: Trace, follow: bool) -> None:
    """follow: the prover computes everything after his lie from it, so only that stage is wrong."""
    for stage in trace.manifest.stages:
        claim = lie(trace, stage.index, flip(stage.type.numel() // 2), follow)
        with pytest.raises(VerificationError, match=f"stage {stage.index} "):
            check_trace(claim)


def _add_row(array: np.ndarray) -> None:
    array[0] += 1


def _swap_rows(array: np.ndarray) -> None:
    array[[0, 1]] = array[[1, 0]]


def _move_one(array: np.ndarray) -> None:
    """One more here, one less there: the sum over the rows stays."""
    array[0, 0] += 1
    array[1, 0] -= 1


@pytest.mark.parametrize("change", [_add_row, _swap_rows, _move_one, flip(3, 31)])
def test_a_wrong_product_is_found_whatever_is_wrong(trace: Trace, change: Change) -> None:
    number = next(n for n in products_of(trace) if trace.tensors[n].dtype == np.int32)
    for secret in (None, bytes(32), b"\xff" * 32):
        with pytest.raises(VerificationError, match=f"stage {number} .* element"):
            check_trace(lie(trace, number, change), secret)


def test_other_weights_under_the_same_name_are_found(folder: Path, model: LanguageModel, tmp_path: Path) -> None:
    """A cheaper model's run, claimed as this one's."""
    from tests.dishonest import with_results

    other = LanguageModel.open(lm_folders.make(tmp_path / "other", "llama", hidden=64, heads=2, seed=1), "int8")
    mine = tracing.run(model.program, PROMPT_TOKENS, TOKENS)
    theirs = tracing.run(other.program, PROMPT_TOKENS, TOKENS)
    with pytest.raises(VerificationError):
        check_trace(with_results(mine, list(theirs.tensors.values())))


def test_a_program_without_int8_products_is_refused(folder: Path) -> None:
    plain = LanguageModel.open(folder, "fp32")
    with pytest.raises(InputError, match="int8"):
        check_trace(tracing.run(plain.program, PROMPT_TOKENS, TOKENS))


def test_a_product_that_the_projections_miss_would_pass(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check does rest on the projections: without their verdict a lie goes through."""
    number = products_of(trace)[0]
    claim = lie(trace, number, flip(0))
    monkeypatch.setattr("ree.freivalds.trace.check_product", lambda *args: None)
    check_trace(claim)
    monkeypatch.undo()
    with pytest.raises(VerificationError):
        check_trace(claim)


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def generation(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setenv("REE_KEY", str(tmp_path / "key.pem"))
    receipt, file = tmp_path / "r.json", tmp_path / "t.trace"
    options = ["--model", folder, "--prompt", PROMPT, "--dtype", "int8"]
    made = ["generate", *options, "--max-new-tokens", 9, "--temperature", 1, "--receipt", receipt, "--trace", file]
    assert run(capsys, *made)[0] == 0
    return file, receipt, options


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    found = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, found.out, found.err


def test_check_of_a_generation(generation: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, receipt, options = generation
    code, out, err = run(capsys, "check", file, receipt, "--freivalds", *options, "--json")
    found = json.loads(out)
    assert code == 0 and found["products"] >= 10 and found["stages"] > found["products"], err
    code, out, _ = run(capsys, "check", file, receipt, "--freivalds", *options)
    assert code == 0 and "all 9 tokens" in out and len(out.splitlines()) == 1
    for more, wanted in (([], 1), (["--freivalds"], 2), (["--freivalds", *options, "--samples", 3], 2)):
        assert run(capsys, "check", file, receipt, *more)[0] == wanted
    code, _, err = run(capsys, "check", file, receipt, "--freivalds", *options[:2], "--prompt", "Once", *options[4:])
    assert code == 1 and len(err.splitlines()) == 1


def test_an_altered_trace_file_is_refused(generation: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file, receipt, options = generation
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(bytes(data))
    code, out, err = run(capsys, "check", file, receipt, "--freivalds", *options)
    assert code in (1, 2) and out == "" and len(err.splitlines()) == 1


def test_a_trace_of_another_generation_is_refused(
    generation: Any, model: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, receipt, options = generation
    other = tmp_path / "other.trace"
    tracing.run(model.program, PROMPT_TOKENS, TOKENS).save(other)
    code, _, err = run(capsys, "check", other, receipt, "--freivalds", *options)
    assert code == 1 and "not of this generation" in err


def test_check_of_a_run(model: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a saved program, with the receipt of a run."""
    program, file, receipt, key = (tmp_path / name for name in ("m.ree", "t.trace", "r.json", "k.pem"))
    model.program.save(program)
    generate(key)
    loaded = ree.load(program)
    made = tracing.run(loaded, PROMPT_TOKENS, TOKENS)
    made.save(file)
    receipt.write_bytes(made.receipt(Signer.load(key)))
    code, out, err = run(capsys, "check", file, receipt, program, "--freivalds")
    assert code == 0 and "the receipt's run" in out, err
    lie(made, 8, flip(0)).save(file)
    code, _, err = run(capsys, "check", file, receipt, program, "--freivalds")
    assert code == 1 and "another root" in err
