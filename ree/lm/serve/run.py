"""The running server: a socket, the event loop, and the end: what runs is finished, then the process leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from ree.errors import InputError
from ree.lm.serve import app
from ree.lm.serve.connection import Connection
from ree.lm.serve.guard import HEAD_BYTES_MAX, loopback_hosts
from ree.lm.serve.log import Forward
from ree.lm.serve.service import Service

DRAIN_S = 30.0
UNREAD_MS = 60_000  # what was sent may lie so long with a client who does not take it, then the system cuts him off
_LAST_WRITES_S = 5  # for answers that are complete to reach their clients
_STOP_S = 5.0  # for a step of the engine to end


class _Uvicorn(uvicorn.Server):
    """Says when it listens; leaves signals alone, which uvicorn would raise again at its end: an exit code not 0."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._told_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._told_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Serves a service at a socket until it is told to stop.

    key: the API key that clients must have; drain_s: how long requests may go on after that.
    """

    def __init__(
        self, service: Service, bound: socket.socket, key: str | None = None, drain_s: float = DRAIN_S
    ) -> None:
        self._service, self._socket, self._drain_s = service, bound, drain_s
        self.host, self.port = bound.getsockname()[:2]
        hosts = loopback_hosts(self.host)
        self.is_local = hosts is not None  # whether only this machine can reach it
        config = uvicorn.Config(
            app.make(service, hosts, key),
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
            timeout_graceful_shutdown=_LAST_WRITES_S,
        )
        self._uvicorn = _Uvicorn(config, self._on_start)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self.started = threading.Event()

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def run(self) -> None:
        """Serve until `stop`, or in the main thread SIGTERM or SIGINT; then close the service.

        In the main thread these signals are ignored after that: one that comes while the process leaves would make it
        seem to have failed.
        """
        self._handle_signals(lambda *_: self.stop())
        for name in ("uvicorn.error", "asyncio"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [Forward(self._service.log)], False
        self._service.batch.start()
        try:
            asyncio.run(self._serve())
        finally:
            self._service.batch.stop(_STOP_S)
            self._service.close()
            self._service.log.line("stopped")
            self._handle_signals(signal.SIG_IGN)

    def stop(self) -> None:
        """Begin to drain, from any thread; a second call ends the requests that still run."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._on_signal)

    def _handle_signals(self, handler: Callable[..., None] | signal.Handlers) -> None:
        """Not by the event loop, which would forget them before its end, nor in a thread that gets none."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, handler)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        except OSError as error:  # another process listens there since
            raise InputError(f"cannot listen at {self.url}: {error.strerror}") from None

    def _on_start(self) -> None:
        self._service.log.line("listening", url=self.url, model=self._service.model.name)
        self.started.set()

    def _on_signal(self) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        elif not self._uvicorn.force_exit:
            self._uvicorn.force_exit = True
            threading.Thread(target=self._service.batch.stop, args=(_STOP_S,), daemon=True).start()

    async def _drain(self) -> None:
        """Refuse what comes, finish what is there, end what is not finished in time."""
        batch = self._service.batch
        self._service.log.line("draining", running=batch.running, waiting=batch.waiting)
        in_time = await asyncio.to_thread(batch.drain, self._drain_s)
        if not in_time:
            self._service.log.line("drained", in_time=False, running=batch.running, waiting=batch.waiting)
            await asyncio.to_thread(batch.stop, _STOP_S)
        self._uvicorn.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet; port 0: any that is free. InputError: it cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(found[0], socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)  # connections inherit it
            bound.bind(found[4])
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        raise InputError(f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}") from None
    bound.setblocking(False)
    return bound
