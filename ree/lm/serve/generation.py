"""One generation over HTTP: from the scheduler's events to a whole answer, or to a stream of chunks.

A client who leaves, or does not read, loses his slot; nothing is sent before the first event is there, so that what
fails early has a status of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ree.errors import InputError
from ree.lm.batch import Batch, Full, Stopping
from ree.lm.serve.answers import usage
from ree.lm.serve.guard import ABORT, ENTRY, LEFT, Entry, Receive, Scope, Send, read_body
from ree.lm.serve.refusal import AGAIN_LATER, ApiError, full, invalid
from ree.lm.serve.service import Prepared, Service
from ree.lm.ticket import Cause, Drawn, Ended, Event, Job, Ticket

RECEIPT_HEADER = "x-ree-receipt"
_NOT_AGAIN = {"x-should-retry": "false"}  # what OpenAI's clients look at
_ENDS = {
    Cause.CANCELLED: (LEFT, "the client left", None, {}),
    Cause.TIMEOUT: (504, "the request ran out of time", "timeout", _NOT_AGAIN),
    Cause.STALLED: (LEFT, "the client does not read", None, {}),
    Cause.STOPPING: (503, "the server is shutting down", "shutting_down", AGAIN_LATER),
    Cause.ENGINE: (500, "the engine failed", "engine_failed", {}),
    Cause.REQUEST: (500, "this request failed", "request_failed", _NOT_AGAIN),
}


class Listener:
    """A job in the scheduler's hands, seen from the event loop."""

    def __init__(self, batch: Batch, job: Job) -> None:
        loop, self._there = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            loop.call_soon_threadsafe(self._there.set)

        self.ticket: Ticket = batch.submit(job, notify)

    async def take(self) -> list[Event]:
        """The events that are there, at least one; not to be called after an `Ended`."""
        while True:
            events = self.ticket.take()
            if events:
                return events
            await self._there.wait()
            self._there.clear()

    @contextlib.asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """Ends the job as soon as its client leaves, and in any case with the block."""

        async def watch() -> None:
            await _left(receive)
            self.ticket.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            self.ticket.cancel()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def generate(request: Request, kind: str) -> Response:
    """Answer a request for a generation; kind: "completion" or "chat"."""
    service: Service = request.app.state.service
    entry: Entry = request.scope[ENTRY]
    deadline_s = time.monotonic() + service.timeout_s
    if service.batch.draining:
        raise failed(Cause.STOPPING)
    if service.full:  # before anything is read: what is refused should cost little
        raise full()
    body = await read_body(request.scope, request.receive)
    prepared = await _prepared(service.prepare(kind, body, deadline_s), deadline_s, request.receive)
    entry.more["prompt_tokens"] = len(prepared.job.prompt)
    entry.more["stream"] = prepared.wanted.stream
    if service.log.prompts:
        entry.more["prompt"] = prepared.wanted.prompt or prepared.wanted.messages
    try:
        listener = Listener(service.batch, prepared.job)
    except Full:
        raise full() from None
    except Stopping:
        raise failed(Cause.STOPPING) from None
    except InputError as error:
        raise invalid(str(error)) from None
    if prepared.wanted.stream:
        return Stream(service, prepared, listener)
    async with listener.attended(request.receive):
        return await _whole(service, prepared, listener, entry)


def failed(cause: Cause) -> ApiError:
    """The error for a generation that ended early."""
    status, message, code, headers = _ENDS[cause]
    return ApiError(status, message, code=code, headers=headers)


async def _left(receive: Receive) -> None:
    """Returns when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _prepared(preparing: Coroutine[Any, Any, Prepared], deadline_s: float, receive: Receive) -> Prepared:
    """What is prepared, unless the client leaves first (ApiError 499) or there is no more time (504)."""
    watching, work = asyncio.create_task(_left(receive)), asyncio.create_task(preparing)
    try:
        await asyncio.wait({watching, work}, timeout=deadline_s - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise failed(Cause.CANCELLED if watching.done() else Cause.TIMEOUT)
    finally:
        for task in (watching, work):
            task.cancel()
        await asyncio.gather(watching, work, return_exceptions=True)


def _note(entry: Entry, ended: Ended) -> None:
    """For the log."""
    entry.more["completion_tokens"] = ended.tokens
    entry.more["finish"] = ended.reason or (ended.cause and ended.cause.value)
    for name, seconds in (("slot_s", ended.slot_s), ("first_token_s", ended.first_token_s)):
        entry.more[name] = seconds and round(seconds, 6)


async def _complete(service: Service, prepared: Prepared, ended: Ended, entry: Entry) -> tuple[str, dict[str, Any]]:
    """The reason of a generation and our members of the answer; ApiError: it is not complete, or has no receipt."""
    _note(entry, ended)
    if ended.cause is not None:
        raise failed(ended.cause)
    assert ended.reason is not None
    receipt = entry.more["receipt"] = await service.keep(prepared, ended.reason)
    return ended.reason, {"ree_receipt": receipt, **prepared.ours}


async def _whole(service: Service, prepared: Prepared, listener: Listener, entry: Entry) -> Response:
    drawn: list[Drawn] = []
    while True:
        events = await listener.take()
        drawn += [event for event in events if isinstance(event, Drawn)]
        if isinstance(events[-1], Ended):
            break
    reason, ours = await _complete(service, prepared, events[-1], entry)
    text, answer = "".join(event.text for event in drawn), prepared.answer
    if service.log.prompts:
        entry.more["text"] = text
    found = answer.head.of(
        answer.kind,
        answer.whole(text, drawn, reason),
        usage=usage(len(prepared.job.prompt), len(drawn)),
        **ours,
    )
    return JSONResponse(found, headers={RECEIPT_HEADER: ours["ree_receipt"]})


class Stream(Response):
    """An answer in server-sent events, each with a chunk, the last with the receipt; then [DONE]."""

    def __init__(self, service: Service, prepared: Prepared, listener: Listener) -> None:
        self._service, self._prepared, self._listener = service, prepared, listener
        self._texts: list[str] = []
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(None, headers=headers, media_type="text/event-stream")
        self.raw_headers = [header for header in self.raw_headers if header[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry: Entry = scope[ENTRY]
        async with self._listener.attended(receive):
            events = await self._listener.take()
            if isinstance(events[0], Ended):
                await _complete(self._service, self._prepared, events[0], entry)
            try:
                await self._send(events, entry, send)
            except TimeoutError:
                entry.more["finish"] = Cause.STALLED.value
                entry.status = LEFT
                scope[ABORT]()
                await asyncio.sleep(0)  # the HTTP library then knows that the connection is gone
        if self._service.log.prompts:
            entry.more["text"] = "".join(self._texts)

    async def _send(self, events: list[Event], entry: Entry, send: Send) -> None:
        """Everything from the headers on. TimeoutError: the client does not read."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        opening = self._prepared.answer.opening()
        chunks = [] if opening is None else [self._chunk(opening)]
        while True:
            for event in events:
                if isinstance(event, Ended):
                    await self._write(send, [*chunks, *await self._ending(event, entry)], more=False)
                    return
                self._texts.append(event.text)
                choices = self._prepared.answer.piece(event)
                chunks += [] if choices is None else [self._chunk(choices)]
            await self._write(send, chunks)
            events, chunks = await self._listener.take(), []

    async def _ending(self, ended: Ended, entry: Entry) -> list[bytes]:
        try:
            reason, ours = await _complete(self._service, self._prepared, ended, entry)
        except ApiError as error:  # the status is long gone; a stream without [DONE] is not complete
            entry.status = error.status
            return [_event(error.body())]
        chunks = [self._chunk(self._prepared.answer.ending(reason), **ours)]
        if self._prepared.wanted.include_usage:
            total = usage(len(self._prepared.job.prompt), ended.tokens)
            chunks.append(_event(self._prepared.answer.head.of(self._answer_kind, [], usage=total, **ours)))
        return [*chunks, b"data: [DONE]\n\n"]

    @property
    def _answer_kind(self) -> str:
        return self._prepared.answer.chunk_kind

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        if self._prepared.wanted.include_usage:
            more["usage"] = None
        return _event(self._prepared.answer.head.of(self._answer_kind, choices, **more))

    async def _write(self, send: Send, chunks: list[bytes], more: bool = True) -> None:
        if chunks:
            async with asyncio.timeout(self._service.stall_s):
                await send({"type": "http.response.body", "body": b"".join(chunks), "more_body": more})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"
