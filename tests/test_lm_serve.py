"""The server as OpenAI's own client sees it: whole answers, streams, probabilities, errors, receipts."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import openai
import pytest

from ree.lm.sample import Sampler, Sampling
from tests.lm_fakes import ASSISTANT, END, USER, FakeEngine, FakeModel, FakeText, folded, logits_of
from tests.serve_case import Running, serving, until

BAN = {str(END): -100}
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(FakeModel(FakeEngine(slots=6, rows_max=16))) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running.server.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


def alone(prompt: list[int], tokens_max: int, **sampling: Any) -> list[int]:
    """The tokens that a model gives without any server."""
    sampler = Sampler(FakeEngine.vocab_size, Sampling(**sampling), prompt)
    state, tokens = 0x1234567, list(prompt)
    for token in prompt:
        state = folded(state, token)
    while len(tokens) - len(prompt) < tokens_max and tokens[-1] != END:
        tokens.append(sampler.draw(logits_of(state), len(tokens)))
        state = folded(state, tokens[-1])
    return tokens[len(prompt) :]


def spelt(tokens: list[int]) -> str:
    text = FakeText()
    return "".join(map(text.push, tokens)) + text.finish()


# -- whole answers -------------------------------------------------------------------------------------


def test_a_completion(client: openai.OpenAI, running: Running) -> None:
    raw = client.completions.with_raw_response.create(model="fake", prompt="once", max_tokens=20, logit_bias=BAN)
    found = raw.parse()
    assert found.object == "text_completion" and found.id.startswith("cmpl-") and found.model == "fake"
    assert found.system_fingerprint == "fp-fake"
    assert found.choices[0].text == spelt(alone(list(b"once"), 20, logit_bias=((END, -100.0),)))
    assert found.choices[0].finish_reason == "length" and found.choices[0].logprobs is None
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (4, 20, 24)
    receipt = found.ree_receipt
    assert raw.headers["x-ree-receipt"] == receipt
    assert raw.headers["x-request-id"] == running.logged(receipt=receipt)["id"]
    assert running.ask("GET", f"/v1/receipts/{receipt}")[:2] == (200, {"receipt": receipt})
    assert running.service.model.asked[-1].prompt == list(b"once")
    assert found.ree_salt == bytes(range(32)).hex()


def test_a_chat(client: openai.OpenAI, running: Running) -> None:
    found = client.chat.completions.create(model="fake", messages=CHAT, max_tokens=9, logit_bias=BAN)
    prompt = [USER, *b"be brief", USER, *b"hello", ASSISTANT]
    assert found.object == "chat.completion" and found.id.startswith("chatcmpl-")
    message = found.choices[0].message
    assert (message.role, message.content) == ("assistant", spelt(alone(prompt, 9, logit_bias=((END, -100.0),))))
    assert found.choices[0].finish_reason == "length"
    asked = running.service.model.asked[-1]
    assert (asked.prompt, asked.is_chat, asked.tokens_max) == (prompt, True, 9)
    assert asked.issued_at == found.created
    assert running.service.model.chatted_at == datetime.fromtimestamp(found.created, UTC)


def test_prompts_of_every_form(client: openai.OpenAI) -> None:
    text = client.completions.create(model="fake", prompt="abc").choices[0].text
    for prompt in (["abc"], [97, 98, 99], [[97, 98, 99]]):
        assert client.completions.create(model="fake", prompt=prompt).choices[0].text == text


def test_a_content_of_several_texts(client: openai.OpenAI, running: Running) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    client.chat.completions.create(model="fake", messages=[{"role": "developer", "content": parts}], max_tokens=1)
    assert running.service.model.asked[-1].prompt == [USER, *b"one\ntwo", ASSISTANT]


def test_an_assistant_who_said_nothing(client: openai.OpenAI, running: Running) -> None:
    talk: list[Any] = [{"role": "assistant", "content": None}, {"role": "user", "content": "a"}]
    client.chat.completions.create(model="fake", messages=talk, max_tokens=1)
    assert running.service.model.asked[-1].prompt == [ASSISTANT, USER, *b"a", ASSISTANT]


def test_lengths_when_none_is_asked_for(running: Running) -> None:
    body = {"model": "fake", "prompt": "abc", "logit_bias": BAN}
    assert running.post(body)[1]["usage"]["completion_tokens"] == 16
    chat = {"model": "fake", "messages": CHAT, "logit_bias": BAN}
    assert running.post(chat, "/v1/chat/completions")[1]["usage"]["total_tokens"] == running.engine.context


def test_an_end_token(client: openai.OpenAI) -> None:
    found = client.completions.create(model="fake", prompt="zq", max_tokens=4000)
    tokens = alone(list(b"zq"), 4000)
    assert tokens[-1] == END and found.choices[0].finish_reason == "stop"
    assert found.choices[0].text == spelt(tokens[:-1])
    assert found.usage is not None and found.usage.completion_tokens == len(tokens)


def test_stop_strings(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "prompt": "abc", "max_tokens": 80, "logit_bias": BAN}
    whole = client.completions.create(**asked).choices[0].text
    found = client.completions.create(**asked, stop=["\n\n\n", whole[30:33]]).choices[0]
    assert (found.text, found.finish_reason) == (whole[: whole.index(whole[30:33])], "stop")


def test_seeds(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "prompt": "abc", "max_tokens": 30, "temperature": 1.0}
    first = client.completions.create(**asked)
    again = client.completions.create(**asked, seed=first.ree_seed)
    other = client.completions.create(**asked)
    assert first.choices[0].text == again.choices[0].text != other.choices[0].text
    assert first.ree_seed < 1 << 53  # which JavaScript reads as it is
    assert client.completions.create(**asked, seed=(1 << 64) - 1).ree_seed == (1 << 64) - 1
    greedy = client.completions.create(**(asked | {"temperature": 0}))
    assert greedy.ree_seed == 0


def test_sampling_reaches_the_sampler(running: Running) -> None:
    given = {
        "temperature": 0.5, "top_p": 0.75, "top_k": 7, "min_p": 0.125, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.25, "seed": 5, "logit_bias": {"97": -3, "98": 1.5},
    }  # fmt: skip
    status, found, _ = running.post({"model": "fake", "prompt": "abc", "max_tokens": 25} | given)
    bias = ((97, -3.0), (98, 1.5))
    assert status == 200
    assert found["choices"][0]["text"] == spelt(alone(list(b"abc"), 25, **(given | {"logit_bias": bias})))
    assert running.service.model.asked[-1].sampling == Sampling(**(given | {"logit_bias": bias}))


def test_defaults_are_those_of_the_model() -> None:
    with serving(FakeModel(defaults={"temperature": 0.5, "top_k": 3})) as running:
        running.post({"model": "fake", "prompt": "abc", "top_k": -1, "seed": 1})
        assert running.service.model.asked[-1].sampling == Sampling(temperature=0.5, top_k=0, seed=1)


def test_a_nonce_reaches_the_receipt(running: Running) -> None:
    assert running.post({"model": "fake", "prompt": "abc", "ree_nonce": "aB" * 32})[0] == 200
    assert running.service.model.asked[-1].nonce == b"\xab" * 32


def test_what_openai_defines_and_changes_nothing_is_ignored(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="fake", messages=CHAT, max_tokens=2, user="u", metadata={"a": "b"}, store=False, n=1, tools=[],
        tool_choice="none", response_format={"type": "text"}, parallel_tool_calls=True, service_tier="auto",
        modalities=["text"], prompt_cache_key="k", safety_identifier="s", reasoning_effort="medium",
        logprobs=False, top_logprobs=0,
    )  # fmt: skip
    assert found.choices[0].message.content


# -- probabilities -------------------------------------------------------------------------------------


def test_probabilities_of_a_completion(client: openai.OpenAI) -> None:
    found = client.completions.create(model="fake", prompt="abc", max_tokens=40, logprobs=2, temperature=1, seed=2)
    told = found.choices[0].logprobs
    assert told is not None and told.tokens and told.token_logprobs and told.top_logprobs and told.text_offset
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    text = found.choices[0].text
    for token, chosen, top, offset in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset, strict=True
    ):
        assert top[token] == chosen <= max(top.values()) <= 0 and 2 <= len(top) <= 3
        assert token.startswith("bytes:") or text[offset:].lstrip("\ufffd").startswith(token)


def test_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="fake", messages=CHAT, max_tokens=8, logprobs=True, top_logprobs=3, logit_bias=BAN
    )  # fmt: skip
    assert found.choices[0].logprobs is not None and found.choices[0].logprobs.content is not None
    content = found.choices[0].logprobs.content
    assert "".join(c.token for c in content) == found.choices[0].message.content
    for told in content:
        assert told.bytes == list(told.token.encode()) and len(told.top_logprobs) == 3
        assert told.top_logprobs[0].logprob >= told.logprob


def test_probabilities_of_tokens_that_no_text_shows(running: Running) -> None:
    """They are listed, with their names and without bytes; so the bytes of all are the text, and offsets lie in it."""
    often = {"logit_bias": {str(USER): 8.25, **BAN}, "max_tokens": 40}
    chat = {"model": "fake", "messages": CHAT, "logprobs": True} | often
    choice = running.post(chat, "/v1/chat/completions")[1]["choices"][0]
    content = choice["logprobs"]["content"]
    assert {c["token"] for c in content if c["bytes"] is None} == {f"<{USER}>"}
    shown = bytes(byte for c in content for byte in c["bytes"] or [])
    assert shown.decode("utf-8", "replace") == choice["message"]["content"] != ""
    choice = running.post({"model": "fake", "prompt": "abc", "logprobs": 0} | often)[1]["choices"][0]
    told = choice["logprobs"]
    assert f"<{USER}>" in told["tokens"] and told["text_offset"][-1] <= len(choice["text"])
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        if token.isascii() and token != f"<{USER}>" and "\\x" not in token:
            assert choice["text"][offset:].lstrip("\ufffd").startswith(token)


def test_probabilities_of_a_stop_string(running: Running) -> None:
    """Its tokens are listed: all that were drawn are, but for an end token."""
    body = {"model": "fake", "prompt": "abc", "max_tokens": 60, "logit_bias": BAN, "logprobs": 0}
    whole = running.post(body)[1]["choices"][0]
    found = running.post(body | {"stop": whole["text"][20:23]})[1]
    told, text = found["choices"][0]["logprobs"], found["choices"][0]["text"]
    assert len(told["tokens"]) == found["usage"]["completion_tokens"] and len(told["tokens"]) > len(text)
    assert told["tokens"] == whole["logprobs"]["tokens"][: len(told["tokens"])]


def test_only_the_chosen_probability(running: Running) -> None:
    body = {"model": "fake", "messages": CHAT, "max_tokens": 3, "logprobs": True}
    content = running.post(body, "/v1/chat/completions")[1]["choices"][0]["logprobs"]["content"]
    assert [c["top_logprobs"] for c in content] == [[]] * 3


# -- streams ---------------------------------------------------------------------------------------------


def test_a_stream_of_a_chat_is_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "messages": CHAT, "max_tokens": 50, "seed": 4, "temperature": 1}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert not any(c.choices[0].finish_reason for c in chunks[:-2])
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].ree_receipt == chunks[-2].ree_receipt == whole.ree_receipt
    assert len({c.id for c in chunks}) == 1


def test_a_stream_of_a_completion_is_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "prompt": "st", "max_tokens": 50, "logprobs": 1, "logit_bias": BAN}
    whole = client.completions.create(**asked).choices[0]
    chunks = list(client.completions.create(**asked, stream=True))
    told = [c.choices[0].logprobs for c in chunks]
    assert "".join(c.choices[0].text for c in chunks) == whole.text
    assert whole.logprobs is not None
    assert [t for lp in told if lp for t in lp.tokens or []] == whole.logprobs.tokens
    assert [o for lp in told if lp for o in lp.text_offset or []] == whole.logprobs.text_offset
    assert chunks[-1].choices[0].finish_reason == "length" and chunks[-1].usage is None


def test_the_bytes_of_a_stream(running: Running) -> None:
    status, data, headers = running.post({"model": "fake", "prompt": "st", "max_tokens": 3, "stream": True})
    assert status == 200 and headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    events = data.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])


def test_an_incomplete_character_waits_for_its_rest(running: Running) -> None:
    """Every chunk is whole text: the parts of a character come together, or as U+FFFD at the end."""
    body = {"model": "fake", "prompt": "st", "max_tokens": 60, "logit_bias": {"226": 90, "130": 90, "172": 90}}
    whole = running.post(body)[1]["choices"][0]["text"]
    data = running.post(body | {"stream": True})[1].decode()
    events = [json.loads(e[6:]) for e in data.split("\n\n") if e.startswith("data: {")]
    assert "".join(e["choices"][0]["text"] for e in events) == whole
    assert whole


# -- many at once ----------------------------------------------------------------------------------------


def test_many_at_once_get_what_each_gets_alone(running: Running) -> None:
    """Joined at random moments, streamed or not, through the asynchronous client."""
    rng = random.Random(3)
    asked = [
        {
            "prompt": [rng.randrange(97, 123) for _ in range(rng.choice([1, 3, 17, 90]))],
            "max_tokens": rng.randint(1, 50),
            "temperature": rng.choice([0, 0.8]),
            "seed": rng.getrandbits(50),
        }
        for _ in range(60)
    ]

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        await asyncio.sleep(rng.random() * 0.05)
        body: dict[str, Any] = {"model": "fake", **asked[number]}
        if number % 2:
            return (await client.completions.create(**body)).choices[0].text
        stream = await client.completions.create(**body, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def everyone() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=running.server.url + "/v1", api_key="none", max_retries=0, timeout=60
        ) as client:
            return await asyncio.gather(*(one(client, n) for n in range(len(asked))))

    for body, text in zip(asked, asyncio.run(everyone()), strict=True):
        sampling = {"temperature": body["temperature"], "seed": body["seed"]}
        tokens = alone(body["prompt"], body["max_tokens"], **sampling)
        assert text == spelt([t for t in tokens if t != END])
    until(running.is_idle)


# -- the rest of the API -----------------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "ree"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("org/another")
    assert error.value.code == "model_not_found"


def test_health_and_metrics(running: Running) -> None:
    assert running.ask("GET", "/health")[:2] == (200, {"status": "ok", "running": 0, "waiting": 0})
    running.post({"model": "fake", "prompt": "abc", "max_tokens": 2, "logit_bias": BAN})
    before = figures(running)
    running.post({"model": "fake", "prompt": "abcde", "max_tokens": 7, "logit_bias": BAN})
    running.post({"model": "fake", "prompt": 1})
    after = figures(running)
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert grown["ree_prompt_tokens_total"] == 5 and grown["ree_completion_tokens_total"] == 7
    assert grown['ree_requests_total{endpoint="completions",status="200"}'] == 1
    assert grown['ree_requests_total{endpoint="completions",status="400"}'] == 1
    assert grown["ree_step_seconds_count"] == grown["ree_step_rows_count"] == 7
    assert grown["ree_step_rows_sum"] == 11 and grown["ree_first_token_seconds_count"] == 1
    assert grown["ree_receipts_total"] == 1


def figures(running: Running) -> dict[str, float]:
    """The values of /metrics, each line of which must be of the format."""
    status, data, headers = running.ask("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in data.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_paths_and_methods(running: Running) -> None:
    for method, path, status, code in [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/receipts/" + "0" * 64, 404, "receipt_not_found"),
        ("GET", "/v1/receipts/" + "0" * 640, 404, "receipt_not_found"),
        ("GET", "/v1/receipts/%00", 404, "receipt_not_found"),
    ]:
        found = running.ask(method, path)
        assert (found[0], found[1]["error"]["code"]) == (status, code)
        assert found[1]["error"].keys() == {"message", "type", "param", "code"}
    assert running.ask("GET", "/v1/completions")[2]["allow"] == "POST"


def test_an_api_key() -> None:
    with serving(key="secret-key") as running:
        url = running.server.url + "/v1"
        with openai.OpenAI(base_url=url, api_key="secret-key", max_retries=0) as client:
            assert client.completions.create(model="fake", prompt="a").choices
        for wrong in ("secret-kez", "secret-key2", "é"):
            assert running.ask("GET", "/v1/models", headers={"authorization": f"Bearer {wrong}"})[0] == 401
        assert running.ask("GET", "/v1/models", headers={"authorization": "Basic secret-key"})[0] == 401
        assert running.ask("GET", "/metrics", headers={"authorization": ""})[0] == 401
        assert running.ask("GET", "/health", headers={"authorization": ""})[0] == 200
        with (
            openai.OpenAI(base_url=url, api_key="other", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as error,
        ):
            client.models.list()
        assert error.value.code == "invalid_api_key"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]"])
def test_names_of_strangers(running: Running, host: str) -> None:
    assert running.ask("GET", "/v1/models", headers={"host": host})[0] == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8000", "[::1]"])
def test_names_of_this_machine(running: Running, host: str) -> None:
    assert running.ask("GET", "/v1/models", headers={"host": host})[0] == 200


def test_logs_hold_no_text_unless_they_are_to() -> None:
    body = {"model": "fake", "prompt": "a secret matter", "max_tokens": 9, "logit_bias": BAN, "stop": ["my stop"]}
    chat = {"model": "fake", "messages": [{"role": "user", "content": "a secret matter"}], "max_tokens": 9}
    for prompts in (False, True):
        with serving(prompts=prompts) as running:
            texts = [running.post(body)[1]["choices"][0]["text"]]
            running.post(body | {"stream": True})
            running.post(chat, "/v1/chat/completions")
            running.post(body | {"temperature": "a secret matter"})
            running.service.model.recorder_fails_at = 20
            running.post(body)
            until(lambda: len([line for line in running.lines if line["event"] == "request"]) == 5)
            log = running.log.getvalue()
        for text in ["secret matter", *texts]:
            assert (json.dumps(text)[1:-1] in log) is prompts
        assert "my stop" not in log
