"""What stands before every request: who may ask, how much may be sent, and one log line for each answer."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from ree.lm.serve.log import Log
from ree.lm.serve.metrics import Metrics
from ree.lm.serve.refusal import ApiError

HEAD_BYTES_MAX = 16 << 10  # of a request's target and headers
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # others are not written to the log
BODY_BYTES_MAX = 4 << 20
DISCARDED_BYTES_MAX = 64 << 20  # of a body that is too large, read so that its sender comes to read the answer
BODY_S = 30.0
ENTRY = "ree.entry"
ABORT = "ree.abort"
LEFT = 499  # the client left before the answer was complete; nginx's number

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class Entry:
    """What will be logged of a request; `more` takes what its handler knows."""

    id: str
    method: str
    endpoint: str = "other"
    status: int = 0
    more: dict[str, Any] = field(default_factory=dict)


class Guard:
    """Wraps the application. hosts: values of the Host header that are let in, None for all; key: the API key."""

    def __init__(self, app: App, log: Log, metrics: Metrics, hosts: frozenset[str] | None, key: str | None) -> None:
        self._app, self._log, self._metrics, self._hosts = app, log, metrics, hosts
        self._key = None if key is None else _digest(key.encode("utf-8"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        entry = scope[ENTRY] = Entry("req-" + secrets.token_hex(12), _method(scope["method"]))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = entry.status or message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", entry.id.encode("ascii"))]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, sending)
        except ApiError as error:
            await refuse(error, sending)
        except Exception as error:  # a bug: told as 500 by the application, unless it had begun to answer
            self._metrics.fault("request", error)
            if not entry.status:
                await refuse(ApiError(500, "something failed that never should"), sending)
        except asyncio.CancelledError:
            entry.status = entry.status or 503
            raise
        finally:
            self._metrics.request(entry.endpoint, entry.status)
            self._log.line(
                "request",
                id=entry.id,
                method=entry.method,
                endpoint=entry.endpoint,
                status=entry.status,
                **entry.more,
                total_s=round(time.monotonic() - began, 6),
            )

    def _check(self, scope: Scope) -> None:
        fields = [scope["raw_path"], scope["query_string"], *(part for header in scope["headers"] for part in header)]
        if sum(map(len, fields)) > HEAD_BYTES_MAX:
            raise ApiError(431, f"target and headers have more than {HEAD_BYTES_MAX} bytes", code="head_too_large")
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and _without_port(host).lower() not in self._hosts:
            raise ApiError(403, "this server answers to the name of this machine only", code="host_not_allowed")
        if self._key is None or scope["path"] == "/health":
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(_digest(given.strip()), self._key):
            raise ApiError(
                401, "a good API key is needed", code="invalid_api_key", headers={"www-authenticate": "Bearer"}
            )


def loopback_hosts(host: str) -> frozenset[str] | None:
    """The names of a server that listens on the loopback interface; None for any other address.

    A page of a stranger can make a browser ask a name of his that leads to 127.0.0.1; the Host header gives it away.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        return None
    return frozenset({"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host})


async def refuse(error: ApiError, send: Send) -> None:
    """Send an error."""
    body = json.dumps(error.body()).encode("ascii")
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The body of a request that has JSON. ApiError: 408, 413, 415, or 499 if the client leaves."""
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":  # which a foreign page cannot send without being asked who it is
        raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise ApiError(415, "the body must not be compressed", code="unsupported_media_type")
    too_large = ApiError(
        413,
        f"the body is larger than {BODY_BYTES_MAX} bytes",
        code="body_too_large",
        headers={"connection": "close"},
    )
    length = headers.get(b"content-length", b"0")
    if headers.get(b"expect", b"").lower() == b"100-continue" and int(length) > BODY_BYTES_MAX:
        raise too_large  # nothing was sent yet
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(LEFT, "the client left")
                size += len(message.get("body", b""))
                if size <= BODY_BYTES_MAX:
                    body += message.get("body", b"")
                elif size > DISCARDED_BYTES_MAX:
                    raise too_large
                more = message.get("more_body", False)
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {BODY_S:g} s", headers={"connection": "close"}) from None
    if size > BODY_BYTES_MAX:
        raise too_large
    return bytes(body)


def _method(given: str) -> str:
    return given if given in METHODS else "other"


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
