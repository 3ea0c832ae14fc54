"""Programs of model folders from the cache: the same, and never those of other files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ree.errors import Error, FormatError
from ree.lm import capture, tracing, weights
from ree.lm.model import DTYPES, LanguageModel
from tests import lm_folders


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every capture."""
    found: list[Any] = []
    original = capture.capture
    monkeypatch.setattr(capture, "capture", lambda *a: (found.append(a), original(*a))[1])
    return found


def bits(model: LanguageModel) -> bytes:
    inputs = tracing.inputs_of([5, 9, 200], [7, 8, 9])
    return model.program.run_flat(inputs)[0].tobytes()  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma", "mixtral", "gpt_neox"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_program_from_the_cache_is_the_program(
    architecture: str, dtype: str, tmp_path: Path, captures: list[Any]
) -> None:
    """gpt2's matrices are turned, gemma's norms derived; mixtral's and gpt_neox's files hold other names."""
    folder = lm_folders.make(tmp_path / "model", architecture, dtype="bfloat16" if dtype == "bf16" else "float32")
    plain = LanguageModel.open(folder, dtype, cached=False)
    assert len(captures) == 1 and not (tmp_path / "cache" / "lm").exists()
    first, second = LanguageModel.open(folder, dtype), LanguageModel.open(folder, dtype)
    assert len(captures) == 2
    ids = {m.program_id + m.weights_id + m.tokenizer_id for m in (plain, first, second)}
    assert len(ids) == 1
    assert bits(plain) == bits(first) == bits(second)
    assert (second.context, second.vocab_size) == (plain.context, plain.vocab_size)


def test_other_weights_are_another_program(tmp_path: Path, captures: list[Any]) -> None:
    folder = lm_folders.make(tmp_path / "model", "llama")
    first = LanguageModel.open(folder, "int8")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    second = LanguageModel.open(folder, "int8")
    assert len(captures) == 2 and first.program_id != second.program_id
    assert LanguageModel.open(folder, "fp32").program_id not in (first.program_id, second.program_id)


def test_another_configuration_is_another_program(tmp_path: Path, captures: list[Any]) -> None:
    folder = lm_folders.make(tmp_path / "model", "llama")
    first = LanguageModel.open(folder)
    text = (folder / "config.json").read_text()
    assert '"rms_norm_eps": 1e-06' in text
    (folder / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert LanguageModel.open(folder).program_id != first.program_id and len(captures) == 2


def test_a_damaged_entry_is_as_good_as_none(tmp_path: Path, captures: list[Any]) -> None:
    folder = lm_folders.make(tmp_path / "model", "llama", hidden=32, layers=1, heads=2)
    first = LanguageModel.open(folder)
    (entry,) = (tmp_path / "cache" / "lm").iterdir()
    whole = entry.read_bytes()
    rng = np.random.default_rng(0)
    for place in [0, 41, len(whole) - 1, *rng.integers(0, len(whole), 2).tolist()]:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        for damaged in (bytes(data), whole[:place]):
            entry.write_bytes(damaged)
            count = len(captures)
            assert LanguageModel.open(folder).program_id == first.program_id
            assert len(captures) == count + 1
    entry.write_bytes(whole)
    LanguageModel.open(folder)
    assert len(captures) == 11


def test_a_file_that_changes_after_it_was_hashed_is_noticed(tmp_path: Path) -> None:
    folder = lm_folders.make(tmp_path / "model", "llama", hidden=32, layers=1, heads=2)
    LanguageModel.open(folder)
    model = LanguageModel.open(folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 64
    path.write_bytes(bytes(data))  # in place: the map shows it
    with pytest.raises(FormatError, match="changed"):
        model.engine()


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captures: list[Any]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REE_CACHE", str(tmp_path / "file"))
    folder = lm_folders.make(tmp_path / "model", "llama", hidden=32, layers=1, heads=2)
    for count in (1, 2):
        LanguageModel.open(folder)
        assert len(captures) == count


def test_neither_torch_nor_transformers_is_needed_once_it_was_compiled(tmp_path: Path) -> None:
    folder = lm_folders.make(tmp_path / "model", "llama", hidden=32, layers=1, heads=2, dtype="bfloat16")
    script = (
        "import sys\n"
        "from ree import cli\n"
        "try:\n"
        "    cli.main(['generate', '--model', sys.argv[1], '--prompt', 'The sea', '--dtype', sys.argv[2], '--json'])\n"
        "finally:\n"
        "    print([m for m in ('torch', 'transformers') if m in sys.modules], file=sys.stderr)\n"
    )
    for dtype in DTYPES:
        outputs = []
        for loaded in ("['torch', 'transformers']", "[]"):
            command = [sys.executable, "-W", "ignore", "-c", script, str(folder), dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0 and done.stderr.strip().endswith(loaded), done.stderr
            outputs.append(done.stdout.split('"prompt_tokens"')[0])
        assert outputs[0] == outputs[1]


def test_what_cannot_be_loaded_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lm_folders.make(tmp_path / "model", "llama", hidden=32, layers=1, heads=2)

    def fail(*args: object) -> None:
        raise Error("no")

    monkeypatch.setattr(weights, "load", fail)
    with pytest.raises(Error, match="no"):
        LanguageModel.open(folder)
    assert not (tmp_path / "cache" / "lm").exists()
