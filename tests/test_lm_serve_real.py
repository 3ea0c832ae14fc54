"""The server over a real engine: the bits of generations made alone, receipts that one pass verifies, `ree serve`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from ree.commit import keys
from ree.commit.keys import Signer
from ree.errors import InputError, VerificationError
from ree.lm import check, generation
from ree.lm.chat import ChatTemplate
from ree.lm.folder import Defaults
from ree.lm.generate import Wanted, generate
from ree.lm.model import LanguageModel
from ree.lm.sample import Sampling
from ree.lm.serve.loaded import Loaded, sampling_defaults
from ree.lm.serve.log import Log
from ree.lm.serve.run import Server, bind
from ree.lm.serve.service import Service
from ree.lm.serve.store import Store
from tests import lm_folders
from tests.serve_case import PATIENCE_S, Running, until

ROOT = Path(__file__).resolve().parent.parent
CHAT = [{"role": "user", "content": "Where does the river rise?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_folders.make(tmp_path_factory.mktemp("model") / "small", "llama")


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel.open(folder)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    file = tmp_path_factory.mktemp("key") / "key.pem"
    keys.generate(file)
    return Signer.load(file)


@pytest.fixture(scope="module")
def running(model: LanguageModel, signer: Signer) -> Iterator[Running]:
    log = io.StringIO()
    loaded = Loaded(model, model.engine(slots=5, rows_max=24), signer, "small")
    server = Server(Service(loaded, Store(":memory:"), Log(log)), bind("127.0.0.1", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.started.wait(PATIENCE_S)
    yield Running(server, server._service, log, None)
    server.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def alone(model: LanguageModel, body: dict[str, Any]) -> tuple[list[int], str, str]:
    """Tokens, text and reason of a generation in an engine of its own."""
    names = {"temperature", "top_k", "top_p", "seed"}
    found = generate(
        model.engine(),
        model.folder.tokenizer,
        Wanted(
            model.folder.tokenizer.encode(body["prompt"]),
            Sampling(**{name: value for name, value in body.items() if name in names}),
            body["max_tokens"],
            frozenset(model.folder.eos_ids),
            body.get("stop", ()),
        ),
    )
    return found.tokens, found.text, found.reason


def bodies(count: int) -> list[dict[str, Any]]:
    rng = random.Random(11)
    words = lm_folders.PROSE.read_text(encoding="utf-8").split()
    found = []
    for _ in range(count):
        start = rng.randrange(len(words) - 60)
        body = {"prompt": " ".join(words[start : start + rng.choice([1, 4, 20])]), "max_tokens": rng.randint(1, 40)}
        body |= rng.choice([{}, {"temperature": 0.9, "top_k": 40, "seed": rng.getrandbits(50)}])
        body |= rng.choice([{}, {}, {"stop": [" the", "zzz"]}])
        found.append(body)
    return found


def test_many_at_once_have_the_bits_of_each_alone(running: Running, model: LanguageModel) -> None:
    """Joined at random moments: tokens, and by the receipts also the logits behind every one."""
    asked = bodies(24)
    rng = random.Random(12)

    async def one(client: openai.AsyncOpenAI, body: dict[str, Any]) -> Any:
        await asyncio.sleep(rng.random() * 0.3)
        return (await client.completions.create(model="small", **_extra(body))).choices[0], body

    async def everyone() -> list[Any]:
        url = running.server.url + "/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            return await asyncio.gather(*(one(client, body) for body in asked))

    for choice, body in asyncio.run(everyone()):
        _, text, reason = alone(model, body)
        assert (choice.text, choice.finish_reason) == (text, reason)
    assert running.service.batch.running == 0


def _extra(body: dict[str, Any]) -> dict[str, Any]:
    """Members that OpenAI's client does not know go in a place of their own."""
    known = {name: value for name, value in body.items() if name != "top_k"}
    return known | ({"extra_body": {"top_k": body["top_k"]}} if "top_k" in body else {})


@pytest.mark.parametrize("stream", [False, True])
def test_a_receipt_is_verified_by_one_pass(
    running: Running, model: LanguageModel, signer: Signer, stream: bool
) -> None:
    nonce = b"\x07" * 32
    body = {"model": "small", "max_tokens": 30, "temperature": 0.8, "seed": 5, "ree_nonce": nonce.hex()}
    for path, more in (
        ("/v1/completions", {"prompt": "The river"}),
        ("/v1/chat/completions", {"messages": CHAT, "max_completion_tokens": 30}),
    ):
        status, data, _ = running.post(body | more | {"stream": stream}, path)
        assert status == 200
        last = json.loads(data.decode().split("\n\n")[-3].removeprefix("data: ")) if stream else data
        status, envelope, _ = running.ask("GET", f"/v1/receipts/{last['ree_receipt']}")
        assert status == 200
        tokenizer = model.folder.tokenizer
        prompt = tokenizer.chat(CHAT).ids if "messages" in more else tokenizer.encode("The river")
        found = check.verify(
            envelope, model, prompt, salt=bytes.fromhex(last["ree_salt"]), trusted_keys=[signer.public], nonce=nonce
        )
        claim = found.receipt.claim
        assert found.prompt_opened and found.receipt.id.hex() == last["ree_receipt"]
        assert (claim.chat_template_id is not None) is ("messages" in more)
        assert claim.sampling == Sampling(temperature=0.8, seed=5)
        assert len(found.steps) == len(claim.tokens)
        if not stream:
            assert data["usage"]["completion_tokens"] == len(claim.tokens)


def test_a_prompt_with_the_date_can_be_made_again(
    running: Running, model: LanguageModel, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt states the moment that the template wrote, to the second."""
    tokenizer = model.folder.tokenizer
    monkeypatch.setattr(tokenizer, "template", ChatTemplate("{{ strftime_now('%Y-%m-%d %H:%M:%S %Z') }}"))
    found = running.post({"model": "small", "messages": CHAT, "max_tokens": 2}, "/v1/chat/completions")[1]
    envelope = running.ask("GET", f"/v1/receipts/{found['ree_receipt']}")[1]
    issued_at = generation.read(json.dumps(envelope), [signer.public]).claim.issued_at
    assert issued_at == found["created"]
    salt = bytes.fromhex(found["ree_salt"])
    for later_s, opens in ((0, True), (1, False)):
        prompt = tokenizer.chat(CHAT, now=datetime.fromtimestamp(issued_at + later_s, UTC)).ids
        try:
            opened = check.verify(envelope, model, prompt, salt=salt, trusted_keys=[signer.public]).prompt_opened
        except VerificationError:
            opened = False
        assert opened is opens


def test_a_receipt_of_a_stop_string_holds(running: Running, model: LanguageModel, signer: Signer) -> None:
    body = {"model": "small", "prompt": "The river", "max_tokens": 60}
    text = running.post(body)[1]["choices"][0]["text"]
    stop = text[25:28]
    found = running.post(body | {"stop": stop})[1]
    assert found["choices"][0]["text"] == text[: text.index(stop)]
    envelope = running.ask("GET", f"/v1/receipts/{found['ree_receipt']}")[1]
    prompt = model.folder.tokenizer.encode("The river")
    verified = check.verify(envelope, model, prompt, salt=None, trusted_keys=[signer.public])
    assert verified.receipt.claim.stop_strings == (stop,)
    assert verified.receipt.claim.finish_reason == generation.STOP


def test_spelt_tokens_are_the_text(running: Running, model: LanguageModel) -> None:
    """The bytes of the tokens of a chat's probabilities, joined, are its text."""
    body = {"model": "small", "messages": CHAT, "max_tokens": 40, "temperature": 1.5, "seed": 3, "logprobs": True}
    choice = running.post(body | {"top_logprobs": 2}, "/v1/chat/completions")[1]["choices"][0]
    content = choice["logprobs"]["content"]
    assert (
        bytes(b for token in content for b in token["bytes"] or []).decode("utf-8", "replace")
        == choice["message"]["content"]
    )
    loaded: Any = running.service.model
    for token in range(model.vocab_size):
        assert isinstance(loaded.spelled(token), bytes)
    assert lm_folders.END in loaded.silent
    assert loaded.spelled(lm_folders.END) == b"<|endoftext|>"


def test_what_the_model_says_of_itself(running: Running, model: LanguageModel, signer: Signer) -> None:
    found = running.ask("GET", "/v1/models/small")[1]
    assert found["ree_context"] == lm_folders.CONTEXT
    assert found["ree_ids"]["program_id"] == model.program_id.hex()
    assert found["ree_ids"]["signer"] == signer.public.id
    asked = {"model": "small", "prompt": "a", "max_tokens": 1}
    assert running.post(asked)[1]["system_fingerprint"] == running.post(asked)[1]["system_fingerprint"] != ""


def test_a_long_prompt_and_a_full_context(running: Running, model: LanguageModel) -> None:
    tokens = [200 + n % 100 for n in range(lm_folders.CONTEXT - 10)]
    body = {"model": "small", "prompt": tokens, "max_tokens": 10}
    assert running.post(body)[0] == 200
    status, found, _ = running.post(body | {"max_tokens": 11})
    assert (status, found["error"]["code"]) == (400, "context_length_exceeded")


def test_what_a_folder_proposes() -> None:
    assert sampling_defaults(Defaults(temperature=0.7, repetition_penalty=1.1)) == {}
    assert sampling_defaults(Defaults(do_sample=True)) == {"temperature": 1.0}
    assert sampling_defaults(Defaults(do_sample=True, temperature=0.7, top_k=50)) == {"temperature": 0.7, "top_k": 50}


def test_proposals_that_cannot_be_served(model: LanguageModel, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model.folder.__dict__, "defaults", Defaults(do_sample=True, temperature=1e5))
    with pytest.raises(InputError, match="temperature"):
        Loaded(model, model.engine(), signer, "small")


def test_ree_serve(folder: Path, signer: Signer, tmp_path: Path, model: LanguageModel) -> None:
    """The command as a process: the answer, an API key, the receipt by the key that was named, SIGTERM."""
    code = "import typer; from ree import cli_serve; a = typer.Typer(); cli_serve.add_to(a); a()"
    keys.generate(tmp_path / "key.pem")
    arguments = [
        "--model",
        folder,
        "--port",
        0,
        "--sign",
        tmp_path / "key.pem",
        "--store",
        tmp_path / "s",
        "--slots",
        2,
    ]
    server = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"REE_API_KEY": "a-good-key"},
    )  # fmt: skip
    lines: list[dict[str, Any]] = []
    assert server.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(json.loads(x) for x in server.stderr), daemon=True)
    reader.start()
    try:
        until(lambda: server.poll() is not None or any(line["event"] == "listening" for line in lines))
        url = next(line["url"] for line in lines if line["event"] == "listening")
        asked = {"model": "small", "prompt": "The river", "max_tokens": 8}
        with openai.OpenAI(base_url=url + "/v1", api_key="a-good-key", max_retries=0) as client:
            found = client.completions.create(**asked)
            assert found.choices[0].text == alone(model, asked)[1]
            envelope = client.get(f"/receipts/{found.ree_receipt}", cast_to=object)
        with (
            openai.OpenAI(base_url=url + "/v1", api_key="another-key", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.completions.create(**asked)
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_S) == 0
    finally:
        server.kill()
        server.wait()
        reader.join(PATIENCE_S)
    trusted = [Signer.load(tmp_path / "key.pem").public]
    prompt = model.folder.tokenizer.encode("The river")
    salt = bytes.fromhex(found.ree_salt)
    assert check.verify(envelope, model, prompt, salt=salt, trusted_keys=trusted).prompt_opened
    assert [line["event"] for line in lines][-1] == "stopped"
