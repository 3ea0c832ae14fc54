"""Language models: what reviewers found wrong, each with its reproducer."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ree import cli
from ree.commit.keys import Signer, generate
from ree.errors import LimitError, UnsupportedError
from ree.lm import generation, torch_model
from ree.lm.model import LanguageModel
from tests import lm_folders


def one_pass(model: LanguageModel, tokens: list[int]) -> np.ndarray:
    places = np.arange(len(tokens))
    return model.program(np.array([tokens]), places[None], places)[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_head_that_a_file_holds_beside_its_flag_to_tie_it_is_used(architecture: str, tmp_path: Path) -> None:
    """transformers takes the file's own head then; the embedding would be a silently wrong result."""
    from transformers import AutoModelForCausalLM

    folder = lm_folders.make(tmp_path / "model", architecture, tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert any("head" in name for name in load_file(folder / "model.safetensors"))
    tokens = [5, 17, 300, 9, 44]
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    found = one_pass(LanguageModel.open(folder, cached=False), tokens)
    assert np.abs(found - expected).max() < 1e-4


def test_equal_copies_of_a_tied_head_are_one(tmp_path: Path) -> None:
    folder = lm_folders.make(tmp_path / "model", "llama", tie_word_embeddings=True)
    before = LanguageModel.open(folder, cached=False).program_id
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    assert LanguageModel.open(folder, cached=False).program_id == before


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "RobertaPreLayerNorm"])
def test_a_model_that_counts_positions_in_its_own_way_is_refused(kind: str) -> None:
    import transformers

    from ree.lm.capture import capture

    torch_model.register()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(vocab_size=99, is_decoder=True, pad_token_id=1, **sizes)
    model = getattr(transformers, f"{kind}ForCausalLM")._from_config(config, attn_implementation="ree").eval()
    with pytest.raises(UnsupportedError, match="positions"):
        capture(model, 64)


@pytest.mark.parametrize("kind", ["Bloom", "GPTJ", "Falcon"])
def test_a_model_whose_attention_is_its_own_is_refused_in_words_or_right(kind: str) -> None:
    """Which of them call attention through the table differs between versions of transformers."""
    import transformers

    from ree.lm.capture import capture

    torch_model.register()
    config = getattr(transformers, f"{kind}Config")(vocab_size=99, hidden_size=16, n_layer=1, n_head=2, rotary_dim=4)
    make = getattr(transformers, f"{kind}ForCausalLM")._from_config
    try:
        program = capture(make(config, attn_implementation="ree").eval(), 64)
    except UnsupportedError as error:
        assert "by itself" in str(error) or "not supported" in str(error)
        return
    except KeyError as error:  # it fails as it is built, which `ree.lm.weights` words
        assert error.args == (torch_model.IMPLEMENTATION,)
        return
    model = make(config, attn_implementation="eager").eval()
    data = {c.name.removeprefix("model."): torch.from_numpy(c.array().copy()) for c in program.graph.constants}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    turned = {n: t if t.shape == shapes[n] else t.T for n, t in data.items() if n in shapes}
    model.load_state_dict(turned, strict=False)
    tokens, places = np.array([[5, 17, 30, 9, 44]]), np.arange(5)
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(tokens)).logits[0].numpy()
    assert np.abs(program(tokens, places[None], places)[0] - expected).max() < 1e-4


LIES: dict[str, dict[str, Any]] = {
    "cut short": {"finish_reason": "stop", "stop_strings": ("NEVERTHERE",), "max_new_tokens": 50},
    "goes on after a stop string": {"finish_reason": "stop"},
    "goes on, and says length": {},
}


@pytest.mark.parametrize("what", LIES)
def test_how_a_generation_ends_is_checked_by_every_check(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REE_KEY", str(tmp_path / "key.pem"))
    folder = lm_folders.make(tmp_path / "model", "llama", hidden=64, heads=2)
    receipt, trace = tmp_path / "r.json", tmp_path / "t"
    options = ["--model", str(folder), "--prompt", "The sea", "--dtype", "int8"]
    made = ["--max-new-tokens", "12", "--receipt", str(receipt), "--trace", str(trace), "--json"]
    assert _run("generate", *options, *made) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    claim = generation.read(receipt.read_bytes()).claim
    changed = {"stop_strings": (text[0],), **LIES[what]}
    receipt.write_bytes(generation.make(dataclasses.replace(claim, **changed), Signer.load(tmp_path / "key.pem")))
    checks = (
        ("verify", str(receipt), *options),
        ("verify", str(receipt), *options, "--trace", str(trace), "--layer", "1"),
        ("check", str(trace), str(receipt), "--freivalds", *options),
    )
    for check in checks:
        assert _run(*check) == 1, check
        assert "reason" in capsys.readouterr().err


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return int(stopped.value.code or 0)


def test_what_lies_before_the_first_layer_can_be_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REE_KEY", str(tmp_path / "key.pem"))
    folder = lm_folders.make(tmp_path / "model", "llama", hidden=32, heads=2)
    receipt, trace = str(tmp_path / "r.json"), str(tmp_path / "t")
    options = ["--model", str(folder), "--prompt", "The sea"]
    assert _run("generate", *options, "--max-new-tokens", "5", "--receipt", receipt, "--trace", trace) == 0
    stages = 0
    for layer in ("-1", "0", "1"):
        capsys.readouterr()
        assert _run("verify", receipt, *options, "--trace", trace, "--layer", layer, "--json") == 0
        stages += json.loads(capsys.readouterr().out)["stages"]
    program = LanguageModel.open(folder).program
    fed = claim_rows(receipt)
    assert stages == len(program.stages(tuple(fed[name.split("_")[0]] for name in program.graph.symbols)))


def claim_rows(receipt: str) -> dict[str, int]:
    claim = generation.read(Path(receipt).read_bytes()).claim
    fed = claim.prompt_length + len(claim.tokens) - 1
    return {"tokens": fed, "positions": fed, "rows": len(claim.tokens)}


def test_a_model_that_is_no_longer_needed_is_let_go(tmp_path: Path) -> None:
    folder = lm_folders.make(tmp_path / "model", "llama", hidden=32, layers=1, heads=2)
    gc.collect()
    before = len(torch_model._layers.masks)
    for _ in range(3):
        LanguageModel.open(folder, cached=False)
        gc.collect()
    assert len(torch_model._layers.masks) <= before + 1


@pytest.mark.parametrize(("name", "value"), [("max_position_embeddings", 10**9), ("num_labels", 10**9)])
def test_numbers_that_would_take_the_machines_memory_are_refused_at_once(name: str, value: int, tmp_path: Path) -> None:
    folder = lm_folders.make(tmp_path / "model", "llama", hidden=32, layers=1, heads=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(LimitError):
        LanguageModel.open(folder)


def test_the_key_that_signs_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ree.signing import signer_or_own

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("REE_KEY", raising=False)
    first = signer_or_own(None).public.id
    assert signer_or_own(None).public.id == first
    path = tmp_path / "ree" / "key.pem"
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
    generate(tmp_path / "other.pem")
    assert signer_or_own(tmp_path / "other.pem").public.id != first
