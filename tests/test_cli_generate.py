"""`ree generate`, `ree verify --model` and `ree inspect` of model folders, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ree import cli
from tests import lm_folders

PROMPT = "The sea was calm and"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_folders.make(tmp_path_factory.mktemp("models") / "small", "llama", hidden=32, heads=2)


@pytest.fixture(autouse=True)
def _own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REE_KEY", str(tmp_path / "key.pem"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    found = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, found.out, found.err


def good(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def refused(capsys: pytest.CaptureFixture[str], code: int, match: str, *arguments: object) -> None:
    found, out, err = run(capsys, *arguments)
    assert found == code and out == "" and len(err.splitlines()) == 1 and match in err, (found, out, err)


def generate(capsys: pytest.CaptureFixture[str], folder: Path, *more: object) -> Any:
    options = ("--max-new-tokens", 12, "--temperature", 0.9, "--seed", 5)
    return good(capsys, "generate", "--model", folder, "--prompt", PROMPT, *options, *more)


def test_text_comes_to_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = generate(capsys, folder)
    assert len(found["tokens"]) == 12 and found["finish_reason"] == "length" and found["receipt"] is None
    options = ("--max-new-tokens", 12, "--temperature", 0.9, "--seed", 5, "--threads", 1)
    code, out, err = run(capsys, "generate", "--model", folder, "--prompt", PROMPT, *options)
    assert code == 0 and out == found["text"] + "\n" and "12 tokens" in err
    again = good(capsys, "generate", "--model", folder, "--prompt", PROMPT, *options[:4], "--seed", 6)
    assert again["tokens"] != found["tokens"]


def test_greedy_is_the_default_and_ends_at_stop_strings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("generate", "--model", folder, "--prompt", PROMPT, "--max-new-tokens", 12)
    greedy = good(capsys, *options)
    assert greedy == {**good(capsys, *options, "--temperature", 0, "--seed", 9), **_times(greedy)}
    part = greedy["text"][3:6]
    stopped = good(capsys, *options, "--stop", part)
    assert stopped["finish_reason"] == "stop" and stopped["text"] == greedy["text"][: greedy["text"].index(part)]


def _times(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("prefill_s", "decode_s", "tokens_per_second")}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_receipt_is_verified_by_one_pass(
    dtype: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt, trace = tmp_path / "r.json", tmp_path / "r.trace"
    made = generate(capsys, folder, "--dtype", dtype, "--receipt", receipt, "--trace", trace)
    verify = ("verify", receipt, "--model", folder, "--dtype", dtype, "--prompt", PROMPT)
    found = good(capsys, *verify)
    assert found["claim"]["tokens"] == made["tokens"] and found["steps"] == 12 and found["prompt_opened"]
    assert found["receipt_id"] == made["receipt"]["id"] and found["rows"] == made["prompt_tokens"] + 11
    assert good(capsys, *verify, "--key", made["receipt"]["signer"])["signer"] == made["receipt"]["signer"]
    assert good(capsys, *verify, "--step", 3)["steps"] == 1
    assert good(capsys, *verify, "--trace", trace, "--layer", 1)["layer"] == 1
    refused(capsys, 1, "not trusted", *verify, "--key", "00" * 31 + "01")
    refused(capsys, 1, "promptLength", *verify[:-1], PROMPT + " then we all went home")
    refused(capsys, 2, "steps 0 to 11", *verify, "--step", 12)
    refused(capsys, 2, "layers 0 to 1", *verify, "--trace", trace, "--layer", 2)
    other = {"fp32": "int8", "bf16": "fp32", "int8": "bf16"}[dtype]
    refused(capsys, 1, "another --dtype", "verify", receipt, "--model", folder, "--dtype", other, "--prompt", PROMPT)


def test_another_prompt_of_the_same_length_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = tmp_path / "r.json"
    made = generate(capsys, folder, "--receipt", receipt)
    other = PROMPT.replace("sea", "set")
    refused(capsys, 1, "prompt commitment", "verify", receipt, "--model", folder, "--prompt", other)
    Path(made["receipt"]["salt"]).unlink()  # without it the logits give the lie away
    refused(capsys, 1, "step 0: logits", "verify", receipt, "--model", folder, "--prompt", other)
    assert not good(capsys, "verify", receipt, "--model", folder, "--prompt", PROMPT)["prompt_opened"]


def test_a_chat_is_bound_to_its_template(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = tmp_path / "r.json"
    generate(capsys, folder, "--chat", "--receipt", receipt)
    found = good(capsys, "verify", receipt, "--model", folder, "--prompt", PROMPT)
    assert "chatTemplateId" in found["claim"]
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["chat_template"] = settings["chat_template"].replace("trim", "trim | lower")
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(capsys, 1, "chatTemplateId", "verify", receipt, "--model", other, "--prompt", PROMPT)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_other_weights_are_refused(
    dtype: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt, other = tmp_path / "r.json", tmp_path / "other"
    generate(capsys, folder, "--dtype", dtype, "--receipt", receipt)
    shutil.copytree(folder, other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] *= -1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    refused(capsys, 1, "programId", "verify", receipt, "--model", other, "--prompt", PROMPT, "--dtype", dtype)


def test_a_wrong_tensor_of_a_trace_shows_in_its_layer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prover who claims another result of one stage, and all that follows from it, is caught at that stage."""
    from ree.commit.local import inconsistencies
    from ree.lm import layers, tracing
    from ree.lm.model import LanguageModel
    from ree.tampering import flip, lie

    model = LanguageModel.open(folder, "int8")
    trace = tracing.run(model.program, [1, 5, 9], [4, 6, 7])
    of = layers.of_stages(trace.manifest.stages)
    number = next(n for n, layer in enumerate(of) if layer == 1 and trace.tensors[n].dtype == np.int32)
    claim = lie(trace, number, flip(5))
    assert [n for n, _ in inconsistencies(claim, [n for n, layer in enumerate(of) if layer == 1])] == [number]
    assert inconsistencies(claim, [n for n, layer in enumerate(of) if layer == 0]) == []


def test_inspect_says_what_narrow_numbers_cost(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(lm_folders.PROSE.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    plain = good(capsys, "inspect", folder)
    assert plain["dtype"] == "fp32" and plain["architecture"] == "LlamaForCausalLM"
    found = good(capsys, "inspect", folder, "--dtype", "int8", "--text", text)
    assert found["program_id"] != plain["program_id"] and found["weights_bytes"] < plain["weights_bytes"]
    assert found["perplexity"] != found["perplexity_fp32"]
    assert abs(found["perplexity_change_percent"]) < 2
    assert good(capsys, "inspect", folder, "--text", text)["perplexity"] == found["perplexity_fp32"]


MISTAKES: dict[str, tuple[str, tuple[object, ...]]] = {
    "no prompt": ("prompt is needed", ()),
    "two prompts": ("prompt is needed", ("--prompt", "a", "--prompt-file", "b")),
    "a prompt file that is not there": ("No such file", ("--prompt-file", "/nowhere/at/all")),
    "an empty prompt beyond": ("context", ("--prompt", "a", "--max-new-tokens", 100_000)),
    "a long prompt": ("context has room", ("--prompt", "sea " * 4000)),
    "an unknown dtype": ("none of fp32", ("--prompt", "a", "--dtype", "fp64")),
    "a temperature below 0": ("temperature", ("--prompt", "a", "--temperature", -1)),
    "a temperature that is no number": ("temperature", ("--prompt", "a", "--temperature", "nan")),
    "a probability above 1": ("top_p", ("--prompt", "a", "--top-p", 1.5)),
    "a negative top-k": ("top_k", ("--prompt", "a", "--top-k", -1)),
    "a seed of 65 bits": ("seed", ("--prompt", "a", "--seed", 1 << 64)),
    "an empty stop string": ("stop", ("--prompt", "a", "--stop", "")),
    "a context beyond the model's": ("context", ("--prompt", "a", "--context", 1 << 20)),
    "a key without a receipt": ("--receipt", ("--prompt", "a", "--sign", "key.pem")),
    "a receipt in no folder": ("cannot write", ("--prompt", "a", "--receipt", "/nowhere/at/all/r.json")),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_cost_one_line(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    match, options = MISTAKES[what]
    code, _, err = run(capsys, "generate", "--model", folder, "--json", *options)
    assert code == 2 and len(err.splitlines()) == 1 and match in err, err


def test_verify_wants_a_run_or_a_generation(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = tmp_path / "r.json"
    generate(capsys, folder, "--receipt", receipt)
    refused(capsys, 2, "verifies a run", "verify", receipt)
    refused(capsys, 2, "not of both", "verify", receipt, "m.ree", "--model", folder, "--prompt", PROMPT)
    refused(capsys, 2, "go together", "verify", receipt, "--model", folder, "--prompt", PROMPT, "--layer", 1)
    envelope = json.loads(receipt.read_text())
    envelope["signatures"][0]["sig"] = envelope["signatures"][0]["sig"][::-1]
    receipt.write_text(json.dumps(envelope))
    code, _, err = run(capsys, "verify", receipt, "--model", folder, "--prompt", PROMPT)
    assert code == 1 and len(err.splitlines()) == 1
    refused(capsys, 2, "such folder", "generate", "--model", tmp_path / "none", "--prompt", "a")
