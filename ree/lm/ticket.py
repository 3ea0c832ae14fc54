"""What passes between one who asks for a generation and the scheduler that serves many: a job, and its events.

The scheduler runs in a thread of its own, so a `Ticket` is the only object that both sides touch; it is bounded, so
that one who does not read cannot make the server keep what it draws for him.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Draws(Protocol):
    """Draws tokens from logits; `ree.lm.sample.Sampler` is one."""

    def draw(self, logits: np.ndarray, position: int) -> int:
        """The token at `position` of the sequence, from logits float32 [vocab]; it is remembered for penalties."""
        ...

    def logprobs(self, logits: np.ndarray, count: int) -> tuple[float, list[tuple[int, float]]]:
        """Logarithm of the probability of the token drawn last, and the `count` likeliest tokens with theirs."""
        ...


class Spells(Protocol):
    """Turns tokens into text as they come; a text that may yet become a stop string is held back."""

    @property
    def stopped(self) -> bool:
        """True once a stop string was found; it and all that follows are no part of the text."""
        ...

    def push(self, token: int) -> str:
        """The text that is certain with this token and was not before; it may be empty."""
        ...

    def finish(self) -> str:
        """The rest, after the last token."""
        ...


class Records(Protocol):
    """Collects what a receipt states about a generation. The scheduler's thread calls `step`; whoever reads the
    events calls `finish`, after the last of them, for signing takes time that others should not wait for.
    """

    def step(self, position: int, token: int, logits: np.ndarray) -> None:
        """One drawn token, its index in the sequence, and the logits float32 [vocab] that it was drawn from."""
        ...

    def finish(self, reason: str) -> tuple[str, bytes]:
        """The receipt's id and its envelope."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One generation: its prompt as tokens, its bounds, and the objects that belong to it alone.

    stop_tokens end it, and are no part of its text; logprobs: how many likeliest tokens go with each token, None for
    no probabilities at all; events_max: events that may wait for their reader before he is waited for.
    """

    prompt: Sequence[int]
    tokens_max: int
    sampler: Draws
    text: Spells
    recorder: Records
    stop_tokens: frozenset[int] = frozenset()
    logprobs: int | None = None
    timeout_s: float = 600.0
    events_max: int = 1024


class Cause(Enum):
    """Why a generation ended without being complete."""

    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    STOPPING = "stopping"
    ENGINE = "engine"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token, the text that became certain with it, and if asked for its log probability and the likeliest tokens.

    ends: it is a stop token, which is counted but is no part of the text.
    """

    token: int
    text: str
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event. reason: "stop" or "length" of a generation that is complete; of another there is a cause.

    Seconds count from when the job came: until it had a slot, until its first token, until now.
    """

    reason: str | None
    cause: Cause | None
    tokens: int
    slot_s: float | None
    first_token_s: float | None
    total_s: float


Event = Drawn | Ended


class Ticket:
    """A job in the scheduler's hands. One thread reads it, the scheduler writes it."""

    def __init__(self, job: Job, notify: Callable[[], None], changed: Callable[[], None], now_s: float) -> None:
        """notify: called, in the scheduler's thread, when there is something to take. changed: wakes the scheduler."""
        self.job = job
        self.came_s = now_s
        self._notify, self._changed = notify, changed
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._cancelled = False

    def take(self) -> list[Event]:
        """All events that are there, oldest first; after an `Ended` there are none."""
        with self._lock:
            found, was_full = list(self._events), len(self._events) >= self.job.events_max
            self._events.clear()
        if was_full:
            self._changed()
        return found

    def cancel(self) -> None:
        """End it before the scheduler's next step; without effect if it has ended."""
        self._cancelled = True
        self._changed()

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def full(self) -> bool:
        """True while its reader lags behind; the scheduler then draws nothing for it."""
        return len(self._events) >= self.job.events_max

    def put(self, event: Event) -> None:
        """For the scheduler: one more event."""
        with self._lock:
            first = not self._events
            self._events.append(event)
        if first:
            with contextlib.suppress(Exception):  # a reader who cannot be told has left
                self._notify()
