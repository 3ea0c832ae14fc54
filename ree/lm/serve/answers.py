"""What a client gets: the objects of OpenAI's API for whole answers and for the chunks of a stream.

Two kinds of answers, completions and chats, each one object that knows its head and makes all JSON values of it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ree.lm.ticket import Drawn

LOGPROB_MIN = -9999.0  # JSON has no infinities; OpenAI's value for what cannot be

Spelled = Callable[[int], bytes]  # the bytes of a token


@dataclass(frozen=True, slots=True)
class Head:
    """What all objects of one answer say."""

    id: str
    created: int
    model: str
    fingerprint: str

    def of(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An object of a kind, with its choices."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **more,
        }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens that were read and drawn."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def listed(events: Iterable[Drawn]) -> list[Drawn]:
    """The tokens whose probabilities are told: those of the text, if probabilities were asked for."""
    return [event for event in events if event.logprob is not None and not event.ends]


@dataclass(slots=True)
class CompletionAnswer:
    """An answer of /v1/completions. silent: tokens without text; with_logprobs: probabilities were asked for."""

    head: Head
    spelled: Spelled
    silent: frozenset[int]
    with_logprobs: bool
    kind: str = "text_completion"
    chunk_kind: str = "text_completion"
    _offset: int = 0  # characters before the next token
    _utf8: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def whole(self, text: str, events: Sequence[Drawn], reason: str) -> list[dict[str, Any]]:
        """The choices of the whole answer."""
        return [self._choice(text, events, reason)]

    def opening(self) -> list[dict[str, Any]] | None:
        """The choices of a first chunk that comes before any text."""
        return None

    def piece(self, event: Drawn) -> list[dict[str, Any]] | None:
        """The choices of a chunk for one token; None if it has nothing to say."""
        return [self._choice(event.text, [event], None)] if event.text or listed([event]) else None

    def ending(self, reason: str) -> list[dict[str, Any]]:
        """The choices of the chunk that ends the text."""
        return [self._choice("", [], reason)]

    def _choice(self, text: str, events: Sequence[Drawn], reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(listed(events)) if self.with_logprobs and (events or text) else None
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, events: Sequence[Drawn]) -> dict[str, Any]:
        offsets = []
        for event in events:
            offsets.append(self._offset)
            if event.token not in self.silent:
                self._offset += len(self._utf8.decode(self.spelled(event.token)))
        return {
            "tokens": [legible(self.spelled(e.token)) for e in events],
            "token_logprobs": [_finite(e.logprob) for e in events],
            "top_logprobs": [
                {legible(self.spelled(t)): _finite(p) for t, p in (*e.top, (e.token, e.logprob))} for e in events
            ],
            "text_offset": offsets,
        }


@dataclass(slots=True)
class ChatAnswer:
    """An answer of /v1/chat/completions; arguments as of `CompletionAnswer`."""

    head: Head
    spelled: Spelled
    silent: frozenset[int]
    with_logprobs: bool
    kind: str = "chat.completion"
    chunk_kind: str = "chat.completion.chunk"

    def whole(self, text: str, events: Sequence[Drawn], reason: str) -> list[dict[str, Any]]:
        """The choices of the whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return [{"index": 0, "message": message, "logprobs": self._logprobs(events), "finish_reason": reason}]

    def opening(self) -> list[dict[str, Any]] | None:
        """The choices of a first chunk that comes before any text."""
        return [self._chunk({"role": "assistant", "content": "", "refusal": None}, None, None)]

    def piece(self, event: Drawn) -> list[dict[str, Any]] | None:
        """The choices of a chunk for one token; None if it has nothing to say."""
        if not event.text and not listed([event]):
            return None
        return [self._chunk({"content": event.text}, self._logprobs([event]), None)]

    def ending(self, reason: str) -> list[dict[str, Any]]:
        """The choices of the chunk that ends the text."""
        return [self._chunk({}, None, reason)]

    def _chunk(self, delta: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, events: Sequence[Drawn]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = [
            self._token(e.token, e.logprob) | {"top_logprobs": [self._token(t, p) for t, p in e.top]}
            for e in listed(events)
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        data = self.spelled(token)
        shown = None if token in self.silent else list(data)
        return {"token": legible(data), "logprob": _finite(logprob), "bytes": shown}


Answer = CompletionAnswer | ChatAnswer


def legible(data: bytes) -> str:
    """A token's bytes as a text; if they are not UTF-8, each written out after "bytes:", as OpenAI does."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOGPROB_MIN)
