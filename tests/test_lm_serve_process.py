"""The server as a process: signals, a kill in the middle of requests, and the command line before it serves."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import typer
from typer.testing import CliRunner

from ree import cli_serve
from ree.errors import InputError
from ree.lm.serve.guard import loopback_hosts
from ree.lm.serve.run import bind
from ree.lm.serve.store import Store
from tests.lm_fakes import END
from tests.serve_case import Process, process, until

ENDLESS: dict[str, Any] = {"model": "fake", "prompt": "abc", "max_tokens": 4000, "logit_bias": {str(END): -100}}


def client(server: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


def test_sigterm_finishes_what_runs_and_exits_with_0(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with process(path, 0.005) as server, client(server) as api:
        stream = api.completions.create(**(ENDLESS | {"max_tokens": 100}), stream=True)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert server.wait() == 0
    assert chunks[-1].choices[0].finish_reason == "length"
    assert [line["event"] for line in server.lines] == ["listening", "draining", "request", "stopped"]
    store = Store(path)
    assert store.get(chunks[-1].ree_receipt) is not None
    store.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_leaves_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with process(tmp_path / "s") as server:
        server.process.send_signal(number)
        assert server.wait() == 0


def test_a_second_signal_ends_what_runs(tmp_path: Path) -> None:
    with process(tmp_path / "s", 0.005, 3600) as server, client(server) as api:
        stream = api.completions.create(**ENDLESS, stream=True)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: any(line.get("event") == "draining" for line in server.lines))
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError):
            list(stream)
        assert server.wait() == 0


def test_signals_at_the_very_end_do_not_undo_it(tmp_path: Path) -> None:
    """As many as come, until the process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with process(tmp_path / "s", 0.005, 3600) as server, client(server) as api:
            stream = api.completions.create(**ENDLESS, stream=True)
            next(stream)
            while server.process.poll() is None:
                server.process.send_signal(number)
                time.sleep(0.0005)
            assert server.wait() == 0
            assert server.lines[-1]["event"] == "stopped"


def test_a_killed_server_leaves_a_store_that_opens(tmp_path: Path) -> None:
    """In the middle of many requests; every receipt that a client was told of is there."""
    path = tmp_path / "s.sqlite"
    told: list[str] = []

    def ask(server: Process, number: int) -> None:
        with client(server) as api:
            try:
                for n in range(1000):
                    body = ENDLESS | {"max_tokens": 1 + n % 7, "seed": n, "prompt": f"{number} {n}"}
                    told.append(api.completions.create(**body).ree_receipt)
            except openai.APIError:
                pass

    for _ in range(2):
        with process(path) as server:
            asking = [threading.Thread(target=ask, args=(server, n)) for n in range(4)]
            before = len(told)
            for thread in asking:
                thread.start()
            until(lambda: len(told) >= before + 30)  # noqa: B023
            os.kill(server.process.pid, signal.SIGKILL)
            for thread in asking:
                thread.join()
            assert server.wait() == -signal.SIGKILL
        database = sqlite3.connect(path)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()
        store = Store(path)
        assert all(store.get(id) is not None for id in told)
        store.close()


def test_an_address_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InputError, match="cannot listen"):
            bind("127.0.0.1", other.getsockname()[1])


@pytest.mark.parametrize("host", ["256.1.1.1", "192.0.2.1", "no such name", "a" * 300, "\ud800"])
def test_addresses_that_are_none(host: str) -> None:
    with pytest.raises(InputError, match="cannot listen"):
        bind(host, 0)


def test_which_addresses_are_this_machine() -> None:
    assert loopback_hosts("127.0.0.1") == {"localhost", "127.0.0.1", "[::1]"}
    assert "[::1]" in (loopback_hosts("::1") or ())
    assert "127.0.0.5" in (loopback_hosts("127.0.0.5") or ())
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        assert loopback_hosts(host) is None


# -- the command line ---------------------------------------------------------------------------------------


def test_api_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    monkeypatch.delenv(cli_serve.KEY_VARIABLE, raising=False)
    assert cli_serve.api_key(None) is None
    file.write_text("a-good-key\n")
    assert cli_serve.api_key(file) == "a-good-key"
    monkeypatch.setenv(cli_serve.KEY_VARIABLE, "from-environment")
    assert cli_serve.api_key(None) == "from-environment"
    assert cli_serve.api_key(file) == "a-good-key"
    for bad in ("", "short", "two words", "kéyyyyyyyy", "a" * 5000):
        file.write_text(bad)
        with pytest.raises(InputError):
            cli_serve.api_key(file)
    with pytest.raises(InputError):
        cli_serve.api_key(tmp_path / "none")
    monkeypatch.setenv(cli_serve.KEY_VARIABLE, "")
    with pytest.raises(InputError):  # set, and yet no key: not to be taken for none wanted
        cli_serve.api_key(None)


def test_the_command_refuses_what_is_no_model(tmp_path: Path) -> None:
    app = typer.Typer()
    cli_serve.add_to(app)
    arguments = ["--model", str(tmp_path), "--store", str(tmp_path / "s"), "--port", "0"]
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, InputError)
    for more in (
        ["--port", "70000"],
        ["--slots", "0"],
        ["--waiting", "-1"],
        ["--timeout", "0"],
        ["--keep-receipts", "0"],
    ):
        assert CliRunner().invoke(app, [*arguments, *more]).exit_code == 2


def test_where_receipts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert cli_serve.default_store() == Path("/somewhere/ree/receipts.sqlite")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert cli_serve.default_store() == Path.home() / ".local/state/ree/receipts.sqlite"


def test_log_lines_are_json(tmp_path: Path) -> None:
    with process(tmp_path / "s") as server, client(server) as api:
        api.completions.create(**(ENDLESS | {"max_tokens": 1}))
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as other:
            other.sendall(b"nonsense\r\n\r\n")
            assert other.recv(100)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert all("text" not in line for line in server.lines), server.lines
    assert {"listening", "request", "http", "stopped"} <= {line["event"] for line in server.lines}
    assert all(time.strptime(line["time"][:19], "%Y-%m-%dT%H:%M:%S") for line in server.lines)
    assert json.dumps(server.lines)
