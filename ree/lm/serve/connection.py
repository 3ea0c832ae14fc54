"""Connections of the HTTP library, held to time: uvicorn's own, which would wait for ever for a request's head."""

from __future__ import annotations

import asyncio
import functools
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ree.lm.serve.guard import ABORT, Receive, Scope, Send, refuse
from ree.lm.serve.refusal import ApiError

HEAD_S = 15.0  # for a request's line and headers, from the first byte or the connection on
CONNECTIONS_MAX = 2048
_OTHER_FILES = 128  # descriptors that are left to the rest of the process


@functools.cache
def connections_max() -> int:
    """How many connections may be open: fewer than the process may have files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS_MAX, soft - _OTHER_FILES))


class Connection(H11Protocol):
    """Closes a connection whose request does not come, and lets the application break one that is not read."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        app, refused = self.app, len(self.connections) > connections_max()

        async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
            if refused:
                await refuse(ApiError(503, "too many connections", headers={"connection": "close"}), send)
            else:
                scope[ABORT] = transport.abort
                await app(scope, receive, send)  # type: ignore[arg-type]

        self.app = with_abort  # type: ignore[assignment]
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """The time runs while no request is being answered; on connections that are kept, uvicorn's own does so too."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self._cancel()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
