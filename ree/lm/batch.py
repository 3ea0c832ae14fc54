"""Continuous batching: generations join and leave a running batch between two steps of the engine.

A step feeds the engine one row (token) of every running generation; rows that are left go to prompts that wait to be
read, oldest first. So a long prompt is read in chunks beside the others' decoding, and neither starves the other. If
there are more generations than rows, those take part that were served longest ago. The engine's bits depend on neither
batch nor chunks, so none of this can be seen in what is drawn.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ree.errors import InputError, LimitError
from ree.lm.engine import Row
from ree.lm.ticket import Cause, Drawn, Ended, Job, Ticket

if TYPE_CHECKING:
    import numpy as np

FAILURES_MAX = 3  # of the engine, one after another, before it counts as unhealthy
PAUSE_S = 0.05  # after a failure, lest one that repeats itself keeps a processor busy
STALL_S = 20.0  # a reader may lag behind for so long


class Steps(Protocol):
    """What the scheduler needs of an engine; `ree.lm.engine.Engine` is one."""

    @property
    def slots(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def rows_max(self) -> int: ...
    def open(self) -> int: ...
    def close(self, slot: int) -> None: ...
    def step(self, rows: Sequence[Row]) -> np.ndarray: ...


class Watch:
    """Is told what the scheduler does, in its thread; this one does not care."""

    def step(self, seconds: float, rows: int) -> None:
        """The engine made a step."""

    def first_token(self, seconds: float) -> None:
        """A generation drew its first token so long after it came."""

    def tokens(self, read: int, drawn: int) -> None:
        """So many tokens of prompts were read, and so many drawn."""

    def fault(self, where: str, error: Exception) -> None:
        """Something failed that never should: "engine", "request" or "scheduler"."""


class Full(LimitError):
    """As many generations wait as may."""


class Stopping(LimitError):
    """The scheduler takes no more generations."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """A generation that has a slot: its tokens, of which the first `fed` are in the engine's cache."""

    ticket: Ticket
    slot: int
    slot_s: float
    tokens: list[int]
    fed: int = 0
    served: int = 0  # the last step that it took part in
    first_token_s: float | None = None
    full_since_s: float | None = None
    rows: list[Row] = field(default_factory=list)  # of the step that is being made

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.fed

    @property
    def drawn(self) -> int:
        return len(self.tokens) - len(self.ticket.job.prompt)


class Batch:
    """Runs jobs on an engine, in a thread of its own; only this thread calls the engine.

    waiting_max: jobs that may wait when all slots are taken; stall_s: how long a reader may lag behind before his job
    is dropped; rows_max: rows of a step, if fewer than the engine takes.
    """

    def __init__(
        self,
        engine: Steps,
        waiting_max: int = 256,
        stall_s: float = STALL_S,
        rows_max: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        if waiting_max < 0:
            raise InputError(f"as many as {waiting_max} jobs cannot wait")
        if rows_max is not None and rows_max < 1:
            raise InputError(f"a step cannot have {rows_max} rows")
        self._engine = engine
        self._rows_max = min(engine.rows_max, rows_max or engine.rows_max)
        self._jobs_max = engine.slots + waiting_max
        self._stall_s = stall_s
        self._watch = watch or Watch()
        self._lock = threading.Lock()  # of what several threads write: the waiting, and whether more are taken
        self._waiting: deque[Ticket] = deque()
        self._running: list[_Sequence] = []
        self._open = True
        self._idle = threading.Event()
        self._idle.set()
        self._wake = threading.Event()
        self._stop = False
        self._steps = 0
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="ree-batch", daemon=True)

    # -- for any thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve; once."""
        self._thread.start()

    def submit(self, job: Job, notify: Callable[[], None]) -> Ticket:
        """Take a job. `notify` is called in the scheduler's thread whenever there are events where there were none.

        InputError: the engine cannot hold it. Full: too many wait. Stopping: no more are taken.
        """
        if not job.prompt:
            raise InputError("the prompt has no tokens")
        if job.tokens_max < 1 or len(job.prompt) + job.tokens_max > self._engine.context:
            raise InputError(
                f"the prompt has {len(job.prompt)} tokens and {job.tokens_max} are to follow; "
                f"the context has room for {self._engine.context}"
            )
        if not all(0 <= token < self._engine.vocab_size for token in job.prompt):
            raise InputError(f"a token of the prompt is not one of {self._engine.vocab_size}")
        ticket = Ticket(job, notify, self._wake.set, time.monotonic())
        with self._lock:
            if not self._open:
                raise Stopping("the server is shutting down")
            if not self.room:
                raise Full("too many requests are waiting; try again later")
            self._idle.clear()
            self._waiting.append(ticket)
        self._wake.set()
        return ticket

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def room(self) -> int:
        """How many more may come."""
        return max(0, self._jobs_max - len(self._waiting) - len(self._running))

    @property
    def healthy(self) -> bool:
        """False if the thread is not there, or the engine failed several times and has not made a step since."""
        return self._thread.is_alive() and self._failures < FAILURES_MAX

    @property
    def draining(self) -> bool:
        return not self._open

    def drain(self, deadline_s: float) -> bool:
        """Take no more jobs and wait for those that are there; False if some are left after `deadline_s`."""
        with self._lock:
            self._open = False
        return self._idle.wait(deadline_s)

    def stop(self, patience_s: float = 10.0) -> bool:
        """End all jobs and the thread; False if a step of the engine goes on after `patience_s`."""
        with self._lock:
            self._open = False
        self._stop = True
        self._wake.set()
        if self._thread.ident is None:  # it was never started
            self._end_all()
            return True
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    # -- the scheduler's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop:
            self._wake.clear()
            failures, stepped = self._failures, False
            try:
                stepped = self._turn()
            except Exception as error:  # a bug here must not leave anyone waiting for ever
                self._fail_running("scheduler", error)
            if self._failures > failures:
                self._wake.wait(PAUSE_S)
            elif not stepped and not self._stop:
                self._wake.wait(self._nearest_deadline_s())
        self._end_all()

    def _turn(self) -> bool:
        """Between two steps, and a step; False if there was nothing to feed."""
        self._sweep()
        self._admit()
        chosen = self._deal()
        rows = [row for sequence in chosen for row in sequence.rows]
        if not rows:
            return False
        began = time.monotonic()
        try:
            logits = self._engine.step(rows)
            asked = sum(row.wants for row in rows)
            if logits.shape != (asked, self._engine.vocab_size):
                raise InputError(f"the engine gave logits of shape {logits.shape} for {asked} rows")
        except Exception as error:
            self._fail_running("engine", error)
            return True
        self._failures = 0
        self._watch.step(time.monotonic() - began, len(rows))
        self._settle(chosen, logits)
        return True

    def _sweep(self) -> None:
        """Let go of jobs whose owner has left or does not read, and of those out of time."""
        now = time.monotonic()
        with self._lock:
            gone = [t for t in self._waiting if t.cancelled or _late(t, now)]
            for ticket in gone:
                self._waiting.remove(ticket)
        for ticket in gone:
            self._tell_end(ticket, _left(ticket))
        for sequence in list(self._running):
            ticket = sequence.ticket
            if not ticket.full:
                sequence.full_since_s = None
            elif sequence.full_since_s is None:
                sequence.full_since_s = now
            if ticket.cancelled or _late(ticket, now):
                self._end(sequence, _left(ticket))
            elif sequence.full_since_s is not None and now - sequence.full_since_s >= self._stall_s:
                self._end(sequence, Cause.STALLED)

    def _admit(self) -> None:
        """Give free slots to those who wait, first come, first served."""
        while len(self._running) < self._engine.slots and self._waiting:
            try:
                slot = self._engine.open()
            except LimitError:
                return
            except Exception as error:
                self._fail_running("engine", error)
                return
            with self._lock:
                ticket = self._waiting.popleft()
                waited_s = time.monotonic() - ticket.came_s
                self._running.append(_Sequence(ticket, slot, waited_s, list(ticket.job.prompt)))

    def _deal(self) -> list[_Sequence]:
        """Those who take part in the next step, their rows set; in order of arrival."""
        ready = [s for s in self._running if not s.ticket.full]
        if len(ready) > self._rows_max:
            longest_ago = set(sorted(ready, key=lambda s: s.served)[: self._rows_max])
            ready = [s for s in ready if s in longest_ago]
        spare = self._rows_max - len(ready)
        self._steps += 1
        for sequence in ready:
            more = min(spare, sequence.pending - 1)
            spare -= more
            last = len(sequence.tokens) - 1
            sequence.rows = [
                Row(sequence.tokens[p], p, sequence.slot, p == last)
                for p in range(sequence.fed, sequence.fed + 1 + more)
            ]
            sequence.served = self._steps
        return ready

    def _settle(self, chosen: list[_Sequence], logits: np.ndarray) -> None:
        """After a step: note what was fed, and draw where logits were asked for."""
        read = drawn = 0
        for sequence in chosen:
            prompt = len(sequence.ticket.job.prompt)
            read += min(sequence.fed + len(sequence.rows), prompt) - min(sequence.fed, prompt)
            sequence.fed += len(sequence.rows)
            if sequence.rows[-1].wants:
                self._draw(sequence, logits[drawn])
                drawn += 1
        self._watch.tokens(read, drawn)

    def _draw(self, sequence: _Sequence, logits: np.ndarray) -> None:
        """The next token of a generation, and its end if it is the last; an error ends this generation only."""
        try:
            event, reason = self._next(sequence, logits)
        except Exception as error:
            self._watch.fault("request", error)
            self._end(sequence, Cause.REQUEST)
            return
        if sequence.first_token_s is None:
            sequence.first_token_s = time.monotonic() - sequence.ticket.came_s
            self._watch.first_token(sequence.first_token_s)
        sequence.ticket.put(event)
        if reason is not None:
            self._end(sequence, None, reason)

    def _next(self, sequence: _Sequence, logits: np.ndarray) -> tuple[Drawn, str | None]:
        """Draw a token: its event, and the reason to end if there is one."""
        job, position = sequence.ticket.job, len(sequence.tokens)
        token = job.sampler.draw(logits, position)
        chosen, top = (None, ()) if job.logprobs is None else job.sampler.logprobs(logits, job.logprobs)
        job.recorder.step(position, token, logits)
        sequence.tokens.append(token)
        if token in job.stop_tokens:
            return Drawn(token, job.text.finish(), chosen, top, ends=True), "stop"
        text = job.text.push(token)
        if job.text.stopped:
            return Drawn(token, text, chosen, top), "stop"
        if sequence.drawn == job.tokens_max:
            return Drawn(token, text + job.text.finish(), chosen, top), "length"
        return Drawn(token, text, chosen, top), None

    # -- ends -----------------------------------------------------------------------------------------

    def _end(self, sequence: _Sequence, cause: Cause | None, reason: str | None = None) -> None:
        """Free the slot of a generation and tell its owner."""
        with self._lock:
            self._running.remove(sequence)
        try:
            self._engine.close(sequence.slot)
        except Exception as error:  # the slot is lost; the others go on
            self._watch.fault("engine", error)
        self._tell_end(sequence.ticket, cause, reason, sequence)

    def _tell_end(
        self, ticket: Ticket, cause: Cause | None, reason: str | None = None, sequence: _Sequence | None = None
    ) -> None:
        total_s = time.monotonic() - ticket.came_s
        drawn, slot_s, first_s = (0, None, None)
        if sequence is not None:
            drawn, slot_s, first_s = sequence.drawn, sequence.slot_s, sequence.first_token_s
        ticket.put(Ended(reason, cause, drawn, slot_s, first_s, total_s))
        with self._lock:
            if not self._running and not self._waiting:
                self._idle.set()

    def _fail_running(self, where: str, error: Exception) -> None:
        """The engine's cache can no longer be trusted: end all that run; those who wait have lost nothing."""
        self._failures += 1
        self._watch.fault(where, error)
        for sequence in list(self._running):
            self._end(sequence, Cause.ENGINE)

    def _end_all(self) -> None:
        for sequence in list(self._running):
            self._end(sequence, Cause.STOPPING)
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        for ticket in waiting:
            self._tell_end(ticket, Cause.STOPPING)

    def _nearest_deadline_s(self) -> float | None:
        """Seconds until something may have to be ended though nobody calls; None if there is nothing."""
        now = time.monotonic()
        with self._lock:
            tickets = [*self._waiting, *(s.ticket for s in self._running)]
        ends = [t.came_s + t.job.timeout_s for t in tickets]
        ends += [s.full_since_s + self._stall_s for s in self._running if s.full_since_s is not None]
        return max(0.0, min(ends) - now) if ends else None


def _late(ticket: Ticket, now_s: float) -> bool:
    return now_s - ticket.came_s >= ticket.job.timeout_s


def _left(ticket: Ticket) -> Cause:
    return Cause.CANCELLED if ticket.cancelled else Cause.TIMEOUT
