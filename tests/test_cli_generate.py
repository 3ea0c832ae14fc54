"""`ree generate`, `ree verify --model` and `ree inspect` of model folders, as a user calls them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
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
    refused(capsys, 2, "layers -1 (before the first) to 1", *verify, "--trace", trace, "--layer", 2)
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


# -- found in review ---------------------------------------------------------------------------


def test_a_template_that_prints_the_time_is_verified_later(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt says when the prompt was made, and the verifier renders it for that moment, in UTC."""
    dated, receipt = tmp_path / "dated", tmp_path / "r.json"
    shutil.copytree(folder, dated)
    settings = json.loads((dated / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ strftime_now('%d %b %Y, %H:%M:%S') }}\n" + settings["chat_template"]
    (dated / "tokenizer_config.json").write_text(json.dumps(settings))
    clock = time.time()
    monkeypatch.setattr(time, "time", lambda: clock)
    generate(capsys, dated, "--chat", "--receipt", receipt)
    clock += 86_401
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert good(capsys, "verify", receipt, "--model", dated, "--prompt", PROMPT)["prompt_opened"]
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_verify_says_what_was_asked_for_and_answered(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = tmp_path / "r.json"
    made = generate(capsys, folder, "--receipt", receipt)
    verify = ("verify", receipt, "--model", folder, "--prompt", PROMPT)
    found = good(capsys, *verify, "--text", made["text"], "--seed", 5)
    assert found["text"] == made["text"] and found["seed"] == 5 and found["stop_tokens_are_the_models"]
    refused(capsys, 1, "text is", *verify, "--text", made["text"] + "!")
    refused(capsys, 1, "seed is 5, not 6", *verify, "--seed", 6)
    code, out, _ = run(capsys, *verify)
    assert code == 0 and json.dumps(made["text"], ensure_ascii=False) in out and "seed 5" in out
    assert "cut short" not in out


def test_an_answer_that_a_stop_token_of_the_providers_own_cut_short_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ree.commit.keys import Signer
    from ree.commit.keys import generate as new_key
    from ree.lm.generate import Wanted
    from ree.lm.generate import generate as draw
    from ree.lm.generation import Recorder
    from ree.lm.model import LanguageModel

    model = LanguageModel.open(folder)
    prompt = model.folder.tokenizer.encode(PROMPT)
    third = draw(model.engine(), model.folder.tokenizer, Wanted(prompt, max_new_tokens=3)).tokens[2]
    wanted = Wanted(prompt, max_new_tokens=20, stop_tokens=frozenset({third}))
    new_key(tmp_path / "own.pem")
    signer = Signer.load(tmp_path / "own.pem")
    recorder = Recorder(model.binding(False), prompt, wanted.sampling, 20, {third}, (), signer)
    reason = draw(model.engine(), model.folder.tokenizer, wanted, recorder).reason
    receipt = tmp_path / "cut.json"
    receipt.write_bytes(recorder.finish(reason)[1])
    code, out, _ = run(capsys, "verify", receipt, "--model", folder, "--prompt", PROMPT)
    assert code == 0 and "cut short" in out
    assert not good(capsys, "verify", receipt, "--model", folder, "--prompt", PROMPT)["stop_tokens_are_the_models"]


def test_receipts_of_generations_are_shown_and_their_signatures_checked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = tmp_path / "r.json"
    made = generate(capsys, folder, "--receipt", receipt)
    assert good(capsys, "receipt", "show", receipt)["claim"]["tokens"] == made["tokens"]
    assert good(capsys, "receipt", "verify", receipt, "--key", made["receipt"]["signer"])["trusted"]
    refused(capsys, 1, "not trusted", "receipt", "verify", receipt, "--key", "00" * 31 + "01")


@pytest.mark.parametrize(
    "outputs",
    [
        ("--receipt", "/nowhere/at/all/r.json"), ("--trace", "/nowhere/at/all/t"), ("--receipt", "."),
        ("--receipt", "same", "--trace", "same"), ("--receipt", "same", "--trace", "./same.salt"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_written_are_refused_before_anything_is_generated(
    outputs: tuple[str, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ree.lm.model.LanguageModel.open", lambda *a: pytest.fail("the model was read"))
    code, out, err = run(capsys, "generate", "--model", folder, "--prompt", PROMPT, *outputs)
    assert code == 2 and out == "" and len(err.splitlines()) == 1


def test_text_beyond_the_terminals_encoding_is_escaped(folder: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-W", "ignore", "-m", "ree.cli", "generate", "--model", str(folder), "--prompt", "hi"]
    command += ["--max-new-tokens", "60", "--temperature", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and done.stdout.isascii()
