"""Language models on the second device: logits, generations and receipts are those of the processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ree import cli
from ree.errors import LimitError
from ree.lm.engine import Row
from ree.lm.model import LanguageModel
from ree_kernels import cuda
from tests import lm_folders
from tests.lm_worker import feed
from tools.emulator import device as emulator

VOCAB = 300


def models(tmp: Path, architecture: str, dtype: str, layers: int = 2) -> tuple[LanguageModel, LanguageModel]:
    """The same model on the processor and on the device."""
    folder = lm_folders.make(tmp / architecture, architecture, vocab=VOCAB, hidden=32, layers=layers, heads=4)
    here = LanguageModel.open(folder, dtype, cached=False)
    with cuda.use(emulator.shared()):
        return here, LanguageModel.open(folder, dtype, cached=False, device="cuda")


def tokens_of(seed: int, *counts: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, count).tolist() for count in counts]


CASES = [("llama", "fp32"), ("gemma2", "bf16"), ("mixtral", "int8"), ("gpt2", "int8"), ("mistral", "bf16")]


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_steps_of_an_engine_give_the_same_bits(architecture: str, dtype: str, tmp_path: Path) -> None:
    here, there = models(tmp_path, architecture, dtype)
    sequences = tokens_of(1, 37, 22, 5)
    for seed in range(2):  # chunks and batches, cut at random
        expected = feed(here.engine(slots=3, rows_max=32), sequences, seed)
        found = feed(there.engine(slots=3, rows_max=32), sequences, seed)
        for a, b in zip(expected, found, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("cut", [1, 7, 150])
def test_windows_in_a_long_context(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that begin in every part of a chunk of 256 keys."""
    monkeypatch.setattr(lm_folders, "CONTEXT", 700)
    here, there = models(tmp_path, "mistral", "fp32", layers=1)
    (tokens,) = tokens_of(3, 300)
    found = []
    for model in (here, there):
        engine = model.engine(slots=1, rows_max=160)
        slot = engine.open()
        rows = [Row(token, n, slot, True) for n, token in enumerate(tokens)]
        found.append(np.concatenate([engine.step(rows[n : n + cut]) for n in range(0, len(rows), cut)]))
    assert found[0].tobytes() == found[1].tobytes()


def test_a_slot_that_is_used_again_sees_nothing_of_the_past(tmp_path: Path) -> None:
    here, there = models(tmp_path, "llama", "fp32")
    first, second = tokens_of(2, 30, 12)
    engine = there.engine(slots=1, rows_max=32)
    feed(engine, [first], 0)
    (found,) = feed(engine, [second], 1)
    (expected,) = feed(here.engine(slots=1, rows_max=32), [second], 0)
    assert found.tobytes() == expected.tobytes()


def test_a_cache_that_does_not_fit_is_one_error(tmp_path: Path) -> None:
    folder = lm_folders.make(tmp_path / "llama", "llama", vocab=VOCAB, hidden=32, layers=2, heads=4)
    with cuda.use(emulator.Emulator(memory_bytes=1 << 20)):
        model = LanguageModel.open(folder, "fp32", cached=False, device="cuda")
        with pytest.raises(LimitError):
            model.engine(slots=64)


def good(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*(str(a) for a in arguments), "--json"])
    found = capsys.readouterr()
    assert stopped.value.code == 0, found.err
    return json.loads(found.out)


@pytest.mark.parametrize("maker", ["cuda", "cpu"])
def test_a_generation_made_on_one_is_verified_on_the_other(
    maker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REE_KEY", str(tmp_path / "key.pem"))
    folder = lm_folders.make(tmp_path / "small", "llama", hidden=32, heads=2)
    about = ("--model", folder, "--prompt", "The sea was calm and")
    options = ("--max-new-tokens", 12, "--temperature", 0.9, "--seed", 5, "--receipt", tmp_path / "r.json")
    with cuda.use(emulator.shared()):
        made = good(capsys, "generate", *about, *options, "--device", maker)
        other = "cpu" if maker == "cuda" else "cuda"
        found = good(capsys, "verify", tmp_path / "r.json", *about, "--device", other)
    assert found["claim"]["tokens"] == made["tokens"]
    assert str(found["claim"]["device"]).startswith(maker)
