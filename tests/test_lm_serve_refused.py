"""What the server refuses: each fault with its status, its parameter, and never a 500."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from ree.lm.serve.guard import BODY_BYTES_MAX
from ree.lm.serve.service import TOKEN_BYTES_MAX
from tests.lm_fakes import VOCAB, FakeEngine, FakeModel
from tests.serve_case import Running, serving, until

COMPLETION = {"model": "fake", "prompt": "abc", "max_tokens": 2}
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 2}
PATHS = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(FakeModel(FakeEngine(slots=8, context=512, rows_max=64))) as found:
        yield found
        assert "fault" not in {line["event"] for line in found.lines}


def refused(running: Running, path: str, body: Any) -> dict[str, Any]:
    """The error of a request that must be refused as a bad one."""
    status, found, _ = running.post(body, path)
    assert status == 400, found
    assert found.keys() == {"error"} and found["error"]["type"] == "invalid_request_error"
    assert len(found["error"]["message"]) < 400
    return found["error"]


# (parameter that is named, what to change, code or None)
BOTH: list[tuple[str | None, dict[str, Any], str | None]] = [
    ("model", {"model": None}, "missing_parameter"),
    ("model", {"model": 3}, "invalid_type"),
    ("model", {"model": "\ud800"}, "invalid_type"),
    ("temperature", {"temperature": "hot"}, "invalid_type"),
    ("temperature", {"temperature": True}, "invalid_type"),
    ("temperature", {"temperature": -0.1}, "invalid_value"),
    ("temperature", {"temperature": 101}, "invalid_value"),
    ("temperature", {"temperature": 10**30}, "invalid_type"),
    ("top_p", {"top_p": 0}, "invalid_value"),
    ("top_p", {"top_p": 1.1}, "invalid_value"),
    ("top_k", {"top_k": 1.5}, "invalid_type"),
    ("top_k", {"top_k": -2}, "invalid_type"),
    ("top_k", {"top_k": VOCAB + 1}, "invalid_value"),
    ("min_p", {"min_p": 2}, "invalid_value"),
    ("repetition_penalty", {"repetition_penalty": 0}, "invalid_value"),
    ("presence_penalty", {"presence_penalty": 3}, "invalid_value"),
    ("frequency_penalty", {"frequency_penalty": []}, "invalid_type"),
    ("seed", {"seed": 1.0}, "invalid_type"),
    ("seed", {"seed": 1 << 64}, "invalid_type"),
    ("seed", {"seed": -1}, "invalid_type"),
    ("reasoning_effort", {"reasoning_effort": "high"}, "unsupported_parameter"),
    ("max_tokens", {"max_tokens": 0}, "invalid_type"),
    ("max_tokens", {"max_tokens": "2"}, "invalid_type"),
    ("max_tokens", {"max_tokens": 10**12}, "invalid_type"),
    ("stop", {"stop": [""]}, "invalid_value"),
    ("stop", {"stop": ["a"] * 5}, "invalid_value"),
    ("stop", {"stop": [3]}, "invalid_type"),
    ("stop", {"stop": {}}, "invalid_type"),
    ("logit_bias", {"logit_bias": []}, "invalid_type"),
    ("logit_bias", {"logit_bias": {"a": 1}}, "invalid_type"),
    ("logit_bias", {"logit_bias": {"1": "a"}}, "invalid_type"),
    ("logit_bias", {"logit_bias": {"01": 1}}, "invalid_type"),
    ("logit_bias", {"logit_bias": {str(VOCAB): 1}}, "invalid_value"),
    ("logit_bias", {"logit_bias": {str(n): 1 for n in range(2000)}}, "invalid_value"),
    ("logit_bias", {"logit_bias": {"1": 101}}, "invalid_value"),
    ("stream", {"stream": 1}, "invalid_type"),
    ("stream_options", {"stream_options": {"include_usage": True}}, None),
    ("stream_options", {"stream": True, "stream_options": 3}, None),
    ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": 3}}, "invalid_type"),
    ("stream_options.other", {"stream": True, "stream_options": {"other": 3}}, "unknown_parameter"),
    ("n", {"n": 2}, "unsupported_parameter"),
    ("n", {"n": True}, "unsupported_parameter"),
    ("tools", {"tools": [{"type": "function"}]}, "unsupported_parameter"),
    ("response_format", {"response_format": {"type": "json_object"}}, "unsupported_parameter"),
    ("ree_nonce", {"ree_nonce": "00"}, "invalid_type"),
    ("ree_nonce", {"ree_nonce": "é" * 64}, "invalid_type"),
    ("guided_regex", {"guided_regex": "a*"}, "unknown_parameter"),
    ("x" * 40, {"x" * 5000: 1}, "unknown_parameter"),
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("param", "change", "code"), BOTH, ids=lambda value: str(value)[:40])
def test_a_wrong_member(
    running: Running, path: str, param: str | None, change: dict[str, Any], code: str | None
) -> None:
    error = refused(running, path, PATHS[path] | change)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("prompt", {"prompt": None}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [[]]}),
        ("prompt", {"prompt": 3}),
        ("prompt", {"prompt": {}}),
        ("prompt", {"prompt": ["a", "b"]}),
        ("prompt", {"prompt": [[1], [2]]}),
        ("prompt", {"prompt": [1, "a"]}),
        ("prompt", {"prompt": [1, True]}),
        ("prompt", {"prompt": [VOCAB]}),
        ("prompt", {"prompt": [-1]}),
        ("prompt", {"prompt": [10**40]}),
        ("prompt", {"prompt": "\ud800"}),
        ("prompt", {"prompt": "a" * 511}),
        ("prompt", {"max_tokens": 510}),
        ("logprobs", {"logprobs": 21}),
        ("logprobs", {"logprobs": True}),
        ("echo", {"echo": True}),
        ("suffix", {"suffix": "x"}),
        ("best_of", {"best_of": 2}),
        ("messages", {"messages": []}),
        ("max_completion_tokens", {"max_completion_tokens": 3}),
    ],
    ids=str,
)
def test_a_wrong_member_of_a_completion(running: Running, param: str, change: dict[str, Any]) -> None:
    assert refused(running, "/v1/completions", COMPLETION | change)["param"] == param


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("messages", {"messages": None}),
        ("messages", {"messages": []}),
        ("messages", {"messages": "abc"}),
        ("messages", {"messages": [{"role": "assistant", "content": "me"}]}),
        ("messages", {"messages": [{"role": "user", "content": "a" * 600}]}),
        ("messages[0]", {"messages": ["abc"]}),
        ("messages[0].role", {"messages": [{"content": "a"}]}),
        ("messages[0].role", {"messages": [{"role": "tool", "content": "a"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": []}]}),
        ("messages[0].content[0]", {"messages": [{"role": "user", "content": [3]}]}),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"text": "a"}]}]}),
        ("messages[0].content[0].text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        ("messages[0].tool_calls", {"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}),
        ("messages[0].mood", {"messages": [{"role": "user", "content": "a", "mood": 1}]}),
        ("messages[0].name", {"messages": [{"role": "user", "content": "a", "name": 1}]}),
        ("max_tokens", {"max_completion_tokens": 3}),
        ("logprobs", {"logprobs": 1}),
        ("top_logprobs", {"top_logprobs": 1}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("prompt", {"prompt": "a"}),
    ],
    ids=str,
)
def test_a_wrong_member_of_a_chat(running: Running, param: str, change: dict[str, Any]) -> None:
    assert refused(running, "/v1/chat/completions", CHAT | change)["param"] == param


def test_too_long_for_the_context_has_a_code(running: Running) -> None:
    assert refused(running, "/v1/completions", COMPLETION | {"prompt": "a" * 511})["code"] == "context_length_exceeded"
    assert running.post(COMPLETION | {"prompt": "a" * 510})[0] == 200


def test_what_cannot_fit_the_context_is_not_made_tokens_of(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.service.model, "encode", lambda text: 1 / 0)
    text = "a" * (512 * TOKEN_BYTES_MAX + 1)
    chat = {"messages": [{"role": "user", "content": text[:-1]}, {"role": "user", "content": "a"}]}
    for path, change in (("/v1/completions", {"prompt": text}), ("/v1/chat/completions", chat)):
        assert refused(running, path, PATHS[path] | change)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"3", b'"a"', b"{} {}", b"\xff\xfe{}", b'{"model": "\xff"}', b"NaN", b"{'a': 1}",
        b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b"\x00", b'{"a": 1,}',
        b'{"user": NaN}', b'{"user": [-Infinity]}', b'{"n": 1, "n": 1}', b'{"metadata": {"a": 1, "a": 2}}',
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_no_json_object(running: Running, body: bytes) -> None:
    for path in PATHS:
        assert refused(running, path, body)["code"] is None


def test_an_unknown_model(running: Running) -> None:
    for path, body in PATHS.items():
        status, found, _ = running.post(body | {"model": "gpt-5"}, path)
        assert (status, found["error"]["param"], found["error"]["code"]) == (404, "model", "model_not_found")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_other_content_types(running: Running, kind: str) -> None:
    """A page can make a browser send these without asking."""
    body = json.dumps(COMPLETION).encode()
    assert running.ask("POST", "/v1/completions", body, {"content-type": kind})[0] == 415
    good = {"content-type": "Application/JSON; charset=utf-8"}
    assert running.ask("POST", "/v1/completions", body, good)[0] == 200


def test_bodies_that_are_compressed(running: Running) -> None:
    body = json.dumps(COMPLETION).encode()
    for encoding in ("gzip", "br", "identity, gzip"):
        assert running.ask("POST", "/v1/completions", body, {"content-encoding": encoding})[0] == 415
    assert running.ask("POST", "/v1/completions", body, {"content-encoding": "Identity"})[0] == 200


def test_heads_that_are_too_large(running: Running) -> None:
    """One that comes at once gets an answer of the usual form; one that comes in pieces is cut off."""
    for path, headers in (("/health", {"x": "a" * 60_000}), ("/" + "a" * 20_000, {}), ("/health?" + "a" * 20_000, {})):
        status, found, named = running.ask("GET", path, None, headers)
        assert (status, found["error"]["code"]) == (431, "head_too_large") and "x-request-id" in named
    assert running.ask("GET", "/health", None, {"x": "a" * 15_000})[0] == 200
    with running.connect() as connection:
        for part in (b"GET /health HTTP/1.1\r\n", b"x: " + b"a" * 17_000):
            connection.sendall(part)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_methods_are_bounded_in_the_log(running: Running) -> None:
    for method in ("A" * 5000, "CONNECT"):
        status, found, headers = running.ask(method, "/health")
        assert status == 405 and len(found["error"]["message"]) < 100
        assert running.logged(id=headers["x-request-id"])["method"] == "other"


def test_bodies_that_are_too_large(running: Running) -> None:
    """Whole, in chunks without a length, and announced by one who waits to be asked for it."""
    data = json.dumps(COMPLETION | {"prompt": "a" * BODY_BYTES_MAX}).encode()
    status, found, _ = running.ask("POST", "/v1/completions", data)
    assert (status, found["error"]["code"]) == (413, "body_too_large")
    with running.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            connection.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    with running.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    largest = json.dumps(COMPLETION | {"user": ""})
    largest = json.dumps(COMPLETION | {"user": "a" * (BODY_BYTES_MAX - len(largest))})
    assert running.ask("POST", "/v1/completions", largest.encode())[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"GET / HTTP/x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"A" * 200_000,
    ],
    ids=lambda data: repr(data[:12]),
)  # fmt: skip
def test_what_is_no_http(running: Running, data: bytes) -> None:
    with running.connect() as connection:
        connection.sendall(data)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert running.post(COMPLETION)[0] == 200


def test_openais_client_raises_what_it_should(running: Running) -> None:
    with openai.OpenAI(base_url=running.server.url + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(model="fake", prompt="a", temperature=-1)
        assert error.value.param == "temperature" and error.value.request_id
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", prompt="a")
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="fake", prompt="a" * 600, stream=True)


# -- random bodies --------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, 1e300, -1e300, 1 << 63, 1 << 70, float("nan"), float("inf"), "", "a", "\x00",
    "\ud800", "é" * 50, "0" * 64, [], [[]], {}, {"": ""}, [1], ["a"], [None], {"1": 1}, {"role": "user"}, "x" * 3000,
    [{"role": "user", "content": "a"}], {"type": "text"}, {"include_usage": True}, [[[[[]]]]],
)  # fmt: skip
NAMES = (
    "model prompt messages max_tokens max_completion_tokens temperature top_p top_k min_p seed stop logit_bias "
    "presence_penalty frequency_penalty repetition_penalty logprobs top_logprobs stream stream_options n best_of echo "
    "suffix user tools tool_choice response_format ree_nonce other"
).split()


def mutated(rng: random.Random, body: Any) -> bytes:
    """A body with a few members, or a few bytes, that are something else."""
    found = json.loads(json.dumps(body))
    for _ in range(rng.choice([1, 1, 2, 3])):
        at: Any = found
        if "messages" in at and type(at["messages"]) is list and at["messages"] and rng.random() < 0.4:
            inner = at["messages"][0]
            at = inner if type(inner) is dict and rng.random() < 0.8 else at
        names = ["role", "content", "name", "other"] if at is not found else NAMES
        if rng.random() < 0.1 and at:
            del at[rng.choice(sorted(at))]
        else:
            at[rng.choice(names)] = rng.choice(VALUES)
    data = bytearray(json.dumps(found).encode())
    if rng.random() < 0.3:
        for _ in range(rng.choice([1, 2, 8])):
            place = rng.randrange(len(data))
            data[place : place + rng.choice([0, 1, 1, 5])] = rng.randbytes(rng.choice([0, 1, 1, 3]))
    return bytes(data)


def test_random_bodies_are_answered_or_refused(running: Running) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    statuses = set()
    for _ in range(600):
        path, body = rng.choice(list(PATHS.items()))
        data = mutated(rng, body | {"max_tokens": 1})
        status, found, _ = running.ask("POST", path, data)
        assert status in (200, 400, 404), (seed, data, found)
        assert status == 200 or found["error"]["message"]
        statuses.add(status)
    assert statuses >= {200, 400}
    until(running.is_idle)
