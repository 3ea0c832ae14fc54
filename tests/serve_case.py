"""A server over a fake model, in a thread of the test or in a process of its own.

`python -m tests.serve_case STORE [SECONDS_PER_STEP [DRAIN_S]]` serves at a free port until SIGTERM; the first line of
its log says where.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ree.lm.serve.log import Log
from ree.lm.serve.run import Server, bind
from ree.lm.serve.service import Service
from ree.lm.serve.store import Store
from tests.lm_fakes import FakeEngine, FakeModel

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


def until(done: Callable[[], Any], what: str = "it") -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.005)


@dataclass
class Running:
    """A server in a thread."""

    server: Server
    service: Service
    log: io.StringIO
    key: str | None

    @property
    def engine(self) -> FakeEngine:
        return self.service.model.engine

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def logged(self, **members: Any) -> dict[str, Any]:
        """The log line that has these members, once it is there."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [line for line in self.lines if members.items() <= line.items()]
            return bool(found)

        until(there, f"a log line with {members}")
        return found[-1]

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (JSON if it is) and headers; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=PATIENCE_S)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            given = {} if data is None else {"content-type": "application/json"}
            if self.key is not None:
                given["authorization"] = f"Bearer {self.key}"
            connection.request(method, path, data, given | (headers or {}))
            answer = connection.getresponse()
            text, named = answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()
        is_json = named.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(text) if is_json else text, named

    def post(self, body: Any, path: str = "/v1/completions") -> tuple[int, Any, dict[str, str]]:
        return self.ask("POST", path, body)

    def forget_log(self) -> None:
        """Empty the log."""
        self.log.seek(0)
        self.log.truncate()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.server.host, self.server.port), timeout=PATIENCE_S)

    def is_idle(self) -> bool:
        batch = self.service.batch
        return batch.running == batch.waiting == 0 and not self.engine.sequences


@contextmanager
def serving(
    model: FakeModel | None = None,
    store: str | Path = ":memory:",
    key: str | None = None,
    drain_s: float = 30.0,
    prompts: bool = False,
    send_bytes: int | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server while the block runs; send_bytes: of what the system may hold for a client who does not read."""
    log = io.StringIO()
    service = Service(model or FakeModel(), Store(store), Log(log, prompts), **options)
    bound = bind("127.0.0.1", 0)
    if send_bytes is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    server = Server(service, bound, key, drain_s)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.started.wait(PATIENCE_S)
        yield Running(server, service, log, key)
    finally:
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"
        assert service.model.engine.sequences == {}


def request_bytes(body: Any, path: str = "/v1/completions") -> bytes:
    """A whole request, as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


class Process:
    """A server over a fake model in a process of its own."""

    def __init__(self, store: str | Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.serve_case", str(store), *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.lines: list[dict[str, Any]] = []
        self._there = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        assert self._there.wait(PATIENCE_S), "the server did not start"
        self.url = self.lines[0]["url"]

    def _read(self, errors: Any) -> None:
        for line in errors:
            self.lines.append(json.loads(line) if line.startswith("{") else {"text": line})
            self._there.set()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


@contextmanager
def process(store: str | Path, *arguments: object) -> Iterator[Process]:
    made = Process(store, *arguments)
    try:
        yield made
    finally:
        made.close()


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    step_s, drain_s = (float(sys.argv[n]) if len(sys.argv) > n else default for n, default in ((2, 0.0), (3, 30.0)))
    service = Service(FakeModel(FakeEngine(step_s=step_s)), Store(sys.argv[1]), Log())
    Server(service, bind("127.0.0.1", 0), None, drain_s).run()


if __name__ == "__main__":
    main()
