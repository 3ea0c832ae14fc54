"""The server under strain: full, slow, deserted, broken, ending. Whatever happens, slots and connections come back."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from ree.lm.serve import connection, guard, run, service
from ree.lm.serve.service import PREPARERS
from tests.lm_fakes import END, FakeEngine, FakeModel
from tests.serve_case import RESET, Running, open_files, request_bytes, serving, until
from tests.storm_serve import Left, model, storm

ENDLESS = {"model": "fake", "prompt": "abc", "max_tokens": 4000, "logit_bias": {str(END): -100}}
SHORT = ENDLESS | {"max_tokens": 2}


def slow_model(slots: int = 1, step_s: float = 0.002, **more: Any) -> FakeModel:
    return FakeModel(FakeEngine(slots=slots, step_s=step_s, **more))


@contextmanager
def streaming(running: Running, body: dict[str, Any] = ENDLESS) -> Iterator[socket.socket]:
    """A client who has read the beginning of a stream."""
    with running.connect() as client:
        client.sendall(request_bytes(body | {"stream": True}))
        until_text(client, b"data: ")
        yield client


def until_text(client: socket.socket, wanted: bytes) -> bytes:
    """Read until something has come, or the end."""
    data = b""
    while wanted not in data:
        more = client.recv(65536)
        assert more, data
        data += more
    return data


def rest(client: socket.socket) -> bytes:
    data = b""
    while more := client.recv(65536):
        data += more
    return data


# -- those who leave -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_one_who_leaves_gives_his_slot_back(stream: bool, reset: bool) -> None:
    with serving(slow_model(context=1 << 20)) as running:
        client = running.connect()
        client.sendall(request_bytes(ENDLESS | {"stream": stream, "max_tokens": 1_000_000}))
        until(lambda: running.service.batch.running == 1)
        if stream:
            until_text(client, b"data: ")
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        assert running.post(SHORT)[0] == 200  # in the slot that he had
        found = running.logged(status=499)
        assert found["finish"] == "cancelled" and "receipt" not in found


def test_one_who_leaves_while_he_waits() -> None:
    with serving(slow_model()) as running, streaming(running):
        client = running.connect()
        client.sendall(request_bytes(SHORT))
        until(lambda: running.service.batch.waiting == 1)
        client.close()
        until(lambda: running.service.batch.waiting == 0)
        assert running.logged(status=499)["finish"] == "cancelled"


def test_one_who_leaves_in_his_own_body() -> None:
    with serving() as running:
        client = running.connect()
        client.sendall(request_bytes(SHORT)[:-5])
        client.close()
        running.logged(status=499)
        assert running.is_idle()


def test_a_stream_that_openais_client_closes() -> None:
    with serving(slow_model(context=1 << 20)) as running:
        asked = ENDLESS | {"max_tokens": 900_000, "stream": True}
        with (
            openai.OpenAI(base_url=running.server.url + "/v1", api_key="none", max_retries=0) as client,
            client.completions.create(**asked) as stream,
        ):
            next(stream)
        until(running.is_idle)


def test_a_storm_of_those_who_leave() -> None:
    seed = random.randrange(1 << 32)
    with serving(model(), waiting_max=32) as running:
        before = Left.now()
        deeds = storm(running, 300, seed)
        assert sum(deeds.values()) == 300, seed
        until(lambda: Left.now().files <= before.files, f"closing of connections (seed {seed})")
        assert Left.now().threads <= before.threads + PREPARERS + 1  # those of the pools start when they are needed
        assert "fault" not in {line["event"] for line in running.lines}, seed
        assert running.post(SHORT)[0] == 200


# -- those who are slow ----------------------------------------------------------------------------------


def test_one_who_does_not_read_is_dropped() -> None:
    """His connection as well: the system would keep what he was sent for as long as he is there."""
    with serving(FakeModel(FakeEngine(slots=1, context=1 << 20)), stall_s=0.3, send_bytes=4096) as running:
        files = open_files()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((running.server.host, running.server.port))
        client.sendall(request_bytes(ENDLESS | {"stream": True, "max_tokens": 1_000_000}))
        assert running.post(SHORT)[0] == 200  # in the slot that he had
        found = running.logged(status=499)
        assert found["finish"] == "stalled"
        until(lambda: open_files() <= files + 1)  # only his own end is left
        assert b"[DONE]" not in rest(client)
        client.close()


def test_one_who_never_takes_a_whole_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the server is done with it, only the system still holds it."""
    monkeypatch.setattr(run, "UNREAD_MS", 300)
    with serving(FakeModel(FakeEngine(slots=1)), send_bytes=4096) as running:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((running.server.host, running.server.port))
        client.sendall(request_bytes(ENDLESS | {"logprobs": 20}))
        assert running.logged(status=200)["completion_tokens"] == 4000
        assert running.is_idle()
        until(lambda: not running.server._uvicorn.server_state.connections)
        client.close()


def test_one_who_reads_slowly_gets_it_all() -> None:
    body = ENDLESS | {"max_tokens": 3000, "stream": True}
    with serving(FakeModel(FakeEngine(slots=1)), send_bytes=4096) as running:
        whole = running.post(ENDLESS | {"max_tokens": 3000})[1]["choices"][0]["text"]
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((running.server.host, running.server.port))
        client.sendall(request_bytes(body))
        time.sleep(0.1)  # the server is far ahead by now, and has to wait
        data = until_text(client, b"data: [DONE]\n\n")
        client.close()
    chunks = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


def test_a_head_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.1)
    with serving() as running:
        with running.connect() as silent, running.connect() as half:
            half.sendall(b"GET /health HTTP/1.1\r\nHo")
            assert silent.recv(100) == half.recv(100) == b""
        assert running.ask("GET", "/health")[0] == 200


def test_a_request_that_takes_longer_than_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for the head is not the time for the answer, nor for what comes later on the same connection."""
    monkeypatch.setattr(connection, "HEAD_S", 0.15)
    with serving(slow_model(step_s=0.01)) as running, running.connect() as client:
        for _ in range(2):
            client.sendall(request_bytes(ENDLESS | {"max_tokens": 40}))
            assert b'"length"' in until_text(client, b"ree_receipt")


def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.1)
    with serving() as running, running.connect() as client:
        client.sendall(request_bytes(SHORT)[:-5])
        assert rest(client).startswith(b"HTTP/1.1 408 ")


def test_too_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "connections_max", lambda: 2)
    with serving() as running:
        with running.connect(), running.connect():
            until(lambda: len(running.server._uvicorn.server_state.connections) == 2)
            status, found, _ = running.ask("GET", "/health")
            assert (status, found["error"]["message"]) == (503, "too many connections")
        until(lambda: not running.server._uvicorn.server_state.connections)
        assert running.ask("GET", "/health")[0] == 200


def test_out_of_time() -> None:
    with serving(slow_model(), timeout_s=0.2) as running:
        status, found, headers = running.post(ENDLESS)
        assert (status, found["error"]["code"], headers["x-should-retry"]) == (504, "timeout", "false")
        with running.connect() as client:
            client.sendall(request_bytes(ENDLESS | {"stream": True}))
            data = until_text(client, b"error")
        assert data.startswith(b"HTTP/1.1 200 ") and b"[DONE]" not in data and b'"code":"timeout"' in data
        running.logged(status=504, stream=True)


# -- too many --------------------------------------------------------------------------------------------


def test_full() -> None:
    with serving(slow_model(), waiting_max=1) as running, streaming(running):
        waits = running.connect()
        waits.sendall(request_bytes(SHORT))
        until(lambda: running.service.batch.waiting == 1)
        status, found, headers = running.post(SHORT)
        assert (status, found["error"]["code"], headers["retry-after"]) == (429, "rate_limit_exceeded", "1")
        with (
            openai.OpenAI(base_url=running.server.url + "/v1", api_key="none", max_retries=0) as client,
            pytest.raises(openai.RateLimitError),
        ):
            client.completions.create(model="fake", prompt="a")
        assert running.ask("GET", "/health")[1] == {"status": "ok", "running": 1, "waiting": 1}
        waits.close()


def test_full_between_the_first_look_and_the_last() -> None:
    """Many who all saw room: those for whom there is none are still refused as they should be."""
    with serving(slow_model(slots=2, step_s=0.01), waiting_max=2) as running:
        statuses: list[int] = []
        asking = [
            threading.Thread(target=lambda: statuses.append(running.post(ENDLESS | {"max_tokens": 20})[0]))
            for _ in range(24)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert set(statuses) == {200, 429} and statuses.count(200) >= 4


# -- what is being prepared --------------------------------------------------------------------------------


class Held:
    """Prompts whose tokens are not made until they may be; of those of more than `from_bytes`."""

    def __init__(self, running: Running, from_bytes: int = 0) -> None:
        self.may, self.began, self._encode = threading.Event(), 0, running.service.model.encode
        self._from_bytes = from_bytes
        running.service.model.encode = self.encode  # type: ignore[method-assign]

    def encode(self, text: str) -> list[int]:
        if len(text) >= self._from_bytes:
            self.began += 1
            assert self.may.wait(60)
        return self._encode(text)


def test_what_is_being_prepared_waits_like_the_rest() -> None:
    """It is counted, and so are those that wait behind it; nothing else has to wait for it."""
    with serving(FakeModel(FakeEngine(slots=1)), waiting_max=1) as running:
        held, clients = Held(running), [running.connect() for _ in range(2)]
        for client in clients:
            client.sendall(request_bytes(SHORT))
        until(lambda: running.service.waiting == 2)
        assert running.ask("GET", "/health")[1] == {"status": "ok", "running": 0, "waiting": 2}
        assert b"ree_waiting 2\n" in running.ask("GET", "/metrics")[1]
        assert running.post(SHORT)[0] == 429
        held.may.set()
        for client in clients:
            until_text(client, b"ree_receipt")
            client.close()
        assert held.began == 2 and running.post(SHORT)[0] == 200


def test_those_who_leave_before_they_are_prepared() -> None:
    """Nothing is done for them any more, and what they sent is let go of."""
    with serving(slow_model()) as running:
        held, clients = Held(running), [running.connect() for _ in range(8)]
        for client in clients:
            client.sendall(request_bytes(SHORT))
        until(lambda: running.service.waiting == 8)
        for client in clients:
            client.close()
        until(lambda: running.service.waiting == 0)
        assert running.logged(status=499)["endpoint"] == "completions"
        held.may.set()
        assert running.post(SHORT)[0] == 200
        assert held.began == 2  # the one that had begun, and the last
        running.logged(status=200)  # a line is written after its answer
        assert sorted(line["status"] for line in running.lines if line["event"] == "request") == [200] + [499] * 8


def test_out_of_time_before_it_is_prepared() -> None:
    with serving(slow_model(), timeout_s=0.2) as running:
        held = Held(running)
        try:
            status, found, _ = running.post(SHORT)
        finally:
            held.may.set()
        assert (status, found["error"]["code"]) == (504, "timeout")


def test_small_bodies_do_not_wait_behind_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LARGE_MAX", 2)
    large = ENDLESS | {"prompt": "a" * (service.LARGE_BYTES + 1)}
    with serving(slow_model()) as running:
        held, clients = Held(running, service.LARGE_BYTES), [running.connect() for _ in range(2)]
        for client in clients:
            client.sendall(request_bytes(large))
        until(lambda: running.service.waiting == 2)
        assert running.post(SHORT)[0] == 200
        assert running.post(large)[0] == 429
        held.may.set()
        for client in clients:
            assert b"context_length_exceeded" in until_text(client, b"error")
            client.close()


# -- what breaks -------------------------------------------------------------------------------------------


def test_an_engine_that_breaks() -> None:
    with serving(slow_model(slots=2)) as running:
        with streaming(running) as client:
            running.engine.fail_steps = 1
            data = until_text(client, b"error")
        assert b'"code":"engine_failed"' in data and b"[DONE]" not in data
        running.engine.fail_steps = 3
        for _ in range(3):
            status, found, _ = running.post(SHORT)
            assert (status, found["error"]["type"]) == (500, "server_error")
        assert running.ask("GET", "/health")[:2] == (503, {"status": "unhealthy", "running": 0, "waiting": 0})
        assert running.post(SHORT)[0] == 200
        assert running.ask("GET", "/health")[0] == 200
        found = running.logged(event="fault", where="engine")
        assert found["kind"] == "RuntimeError" and "text" not in found and found["places"]
        assert b'ree_faults_total{where="engine"} 4' in running.ask("GET", "/metrics")[1]


def test_one_request_that_breaks() -> None:
    with serving(FakeModel(FakeEngine(slots=2), recorder_fails_at=10)) as running:
        status, found, _ = running.post(ENDLESS)
        assert (status, found["error"]["code"]) == (500, "request_failed")
        assert running.post(SHORT)[0] == 200 and running.ask("GET", "/health")[0] == 200


def test_a_store_that_breaks() -> None:
    """An answer whose receipt cannot be kept is none; in a stream it lacks its end."""
    with serving() as running:
        running.service.store.close()
        status, found, _ = running.post(SHORT)
        assert (status, found["error"]["code"]) == (500, "receipt_failed")
        data = running.post(SHORT | {"stream": True})[1]
        assert b"receipt_failed" in data and b"[DONE]" not in data and b"ree_receipt" not in data
        assert running.ask("GET", "/v1/receipts/" + "0" * 64)[0] == 500


def test_a_bug_in_the_application_is_a_500_of_the_usual_form(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as running:
        monkeypatch.setattr(running.service.model, "encode", lambda text: 1 / 0)
        status, found, headers = running.post(SHORT)
        assert (status, found["error"]["type"]) == (500, "server_error") and "x-request-id" in headers
        assert running.logged(event="fault")["kind"] == "ZeroDivisionError"


# -- the end -------------------------------------------------------------------------------------------------


def test_draining_finishes_streams_and_refuses_the_rest() -> None:
    with serving(slow_model(step_s=0.005)) as running:
        body = ENDLESS | {"max_tokens": 80}
        with streaming(running, body) as client:
            running.server.stop()
            until(lambda: running.service.batch.draining)
            assert running.ask("GET", "/health")[:2] == (503, {"status": "draining", "running": 1, "waiting": 0})
            status, found, _ = running.post(SHORT)
            assert (status, found["error"]["code"]) == (503, "shutting_down")
            data = rest(client)
        assert b'"length"' in data and b"data: [DONE]" in data
    assert running.lines[-1]["event"] == "stopped"


def test_draining_has_a_deadline() -> None:
    with serving(slow_model(), drain_s=0.1) as running:
        with streaming(running) as client:
            running.server.stop()
            data = rest(client)
        assert b'"code":"shutting_down"' in data and b"[DONE]" not in data
    running.logged(event="drained", in_time=False)
    running.logged(status=503, finish="stopping")


def test_a_second_call_does_not_wait() -> None:
    with serving(slow_model(), drain_s=3600.0) as running, streaming(running) as client:
        running.server.stop()
        until(lambda: running.service.batch.draining)
        running.server.stop()
        assert b'"code":"shutting_down"' in rest(client)
