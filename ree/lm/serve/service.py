"""The server without HTTP: a model, the scheduler, the store of receipts; from a request's body to a job."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from ree.errors import InputError, LimitError
from ree.limits import GENERATED_TOKENS_MAX
from ree.lm.batch import Batch
from ree.lm.sample import Sampler, Sampling
from ree.lm.serve import schema
from ree.lm.serve.answers import Answer, ChatAnswer, CompletionAnswer, Head
from ree.lm.serve.log import Log
from ree.lm.serve.members import document
from ree.lm.serve.metrics import Metrics
from ree.lm.serve.model import Asked, Model
from ree.lm.serve.refusal import ApiError, full, invalid
from ree.lm.serve.store import Store
from ree.lm.ticket import Job

T = TypeVar("T")

TIMEOUT_S = 600.0
TOKEN_BYTES_MAX = 128  # of the prompt for each token of the context; no vocabulary has longer ones
STALL_S = 20.0
SEED_BITS = 53  # of a seed that the server chooses: every JSON reader knows such integers
LARGE_BYTES = 64 << 10  # a body of more is prepared in a thread of its own kind, lest small ones wait behind it
LARGE_MAX = 16  # of these may wait for that
PREPARERS = 2  # threads that read bodies and make tokens

_READERS = {"completion": schema.completion, "chat": schema.chat}
_ANSWERS: dict[str, tuple[str, Callable[..., Answer]]] = {
    "completion": ("cmpl-", CompletionAnswer),
    "chat": ("chatcmpl-", ChatAnswer),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that can run; ours: members of the answer that are no part of OpenAI's API."""

    wanted: schema.Wanted
    job: Job
    answer: Answer
    ours: dict[str, Any]


class Service:
    """Joins model, scheduler and store. `close` it after the scheduler has stopped.

    timeout_s: for a request, from its arrival to its last token; stall_s: how long a client may keep the server waiting
    for him to read.
    """

    def __init__(
        self,
        model: Model,
        store: Store,
        log: Log,
        waiting_max: int = 256,
        timeout_s: float = TIMEOUT_S,
        stall_s: float = STALL_S,
        rows_max: int | None = None,
    ) -> None:
        self.model, self.store, self.log = model, store, log
        self.timeout_s, self.stall_s = timeout_s, stall_s
        self.metrics = Metrics(log.fault)
        self.batch = Batch(model.engine, waiting_max, stall_s, rows_max, self.metrics)
        self._preparers = [ThreadPoolExecutor(1, f"ree-prepare-{size}") for size in ("small", "large")]
        self._preparing = [0, 0]  # bodies that wait for these threads or are in their hands
        self._storing = ThreadPoolExecutor(1, "ree-store")

    def close(self) -> None:
        """End the threads and close the store; what is being written is written."""
        for preparer in self._preparers:
            preparer.shutdown(cancel_futures=True)
        self._storing.shutdown()
        self.store.close()

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return self.batch.waiting + sum(self._preparing)

    @property
    def full(self) -> bool:
        """True while no more requests can wait; those that are being prepared will."""
        return self.batch.room <= sum(self._preparing)

    async def prepare(self, kind: str, body: bytes, deadline_s: float) -> Prepared:
        """Read a body of a kind, "completion" or "chat", beside the event loop; in its thread.

        deadline_s: of the monotonic clock, for the whole request. ApiError: it is refused, or too many wait. Cancelled,
        it lets go of the body at once, and what has begun ends early.
        """
        lane = int(len(body) > LARGE_BYTES)
        if self.full or (lane and self._preparing[lane] >= LARGE_MAX):
            raise full()
        held = [body]

        def work() -> Prepared:
            return self._prepare(kind, held, deadline_s)

        self._preparing[lane] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparers[lane], work)
        finally:
            held.clear()
            self._preparing[lane] -= 1

    async def keep(self, prepared: Prepared, reason: str) -> str:
        """Make and store the receipt of a generation, beside the event loop; its id. ApiError 500: it cannot be."""

        def work() -> str:
            id, envelope = prepared.job.recorder.finish(reason)
            self.store.put(id, envelope)
            return id

        try:
            id = await self._stored(work)
        except Exception as error:
            self.metrics.fault("receipt", error)
            raise ApiError(500, "there is no receipt of this answer", code="receipt_failed") from None
        self.metrics.receipt()
        return id

    async def kept(self, id: str) -> bytes | None:
        """The envelope of a receipt, None if there is none."""
        return await self._stored(lambda: self.store.get(id))

    async def _stored(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._storing, work)

    def known(self, name: str) -> None:
        """ApiError 404: that model is not served here."""
        if name != self.model.name:
            raise ApiError(404, f"the model {name[:200]!a} is not served here", "model", "model_not_found")

    def _prepare(self, kind: str, held: list[bytes], deadline_s: float) -> Prepared:
        """held: the body, until its client leaves; what stands for it then is an error that nobody reads."""

        def go_on() -> None:
            if not held or time.monotonic() > deadline_s:
                raise ApiError(504, "the request ran out of time", code="timeout")

        go_on()
        wanted = _READERS[kind](document(held[0]))
        self.known(wanted.model)
        self._check_size(wanted)
        go_on()
        issued_at = int(time.time())  # one moment for the template's date, the receipt and the answer
        prompt = self._prompt(wanted, issued_at)
        go_on()
        tokens_max = self._tokens_max(wanted, len(prompt))
        try:
            sampling = self._sampling(wanted)
            sampler = Sampler(self.model.engine.vocab_size, sampling, prompt)
        except (InputError, LimitError) as error:
            raise invalid(str(error), _named(str(error)), "invalid_value") from None
        try:
            text = self.model.text(prompt, wanted.stops)
        except (InputError, LimitError) as error:
            raise invalid(str(error), "stop", "invalid_value") from None
        recorder = self.model.recorder(
            Asked(prompt, kind == "chat", sampling, tokens_max, wanted.stops, issued_at, wanted.nonce)
        )
        stop_tokens, timeout_s = self.model.stop_tokens, max(0.0, deadline_s - time.monotonic())
        job = Job(prompt, tokens_max, sampler, text, recorder, stop_tokens, wanted.logprobs, timeout_s)
        prefix, answer = _ANSWERS[kind]
        name = prefix + secrets.token_hex(12)
        head = Head(name, issued_at, self.model.name, self.model.fingerprint)
        made = answer(head, self.model.spelled, self.model.silent, wanted.logprobs is not None)
        return Prepared(wanted, job, made, {"ree_seed": sampling.seed, "ree_salt": recorder.salt.hex()})

    def _check_size(self, wanted: schema.Wanted) -> None:
        """ApiError 400: the prompt is too long for the context whatever its tokens are, and they take long to make."""
        context = self.model.engine.context
        if isinstance(wanted.prompt, tuple):
            part, size, most = "prompt", len(wanted.prompt), context
        elif wanted.prompt is not None:
            part, size, most = "prompt", len(wanted.prompt.encode("utf-8")), context * TOKEN_BYTES_MAX
        else:
            part, most = "messages", context * TOKEN_BYTES_MAX
            size = sum(len(message["content"].encode("utf-8")) for message in wanted.messages)
        if size > most:
            unit = "tokens" if isinstance(wanted.prompt, tuple) else "bytes"
            message = f"the context takes {context} tokens; the prompt, with {size} {unit}, is longer"
            raise invalid(message, part, "context_length_exceeded")

    def _prompt(self, wanted: schema.Wanted, issued_at: int) -> list[int]:
        """The tokens of the prompt, in the vocabulary."""
        part = "messages" if wanted.prompt is None else "prompt"
        try:
            if wanted.prompt is None:
                prompt = self.model.chat(wanted.messages, datetime.fromtimestamp(issued_at, UTC))
            elif isinstance(wanted.prompt, str):
                prompt = self.model.encode(wanted.prompt)
            else:
                prompt = list(wanted.prompt)
        except (InputError, LimitError) as error:
            raise invalid(str(error), part) from None
        vocab_size = self.model.engine.vocab_size
        if not all(0 <= token < vocab_size for token in prompt):
            raise invalid(f"tokens are integers from 0 to {vocab_size - 1}", part)
        if not prompt:
            raise invalid("the prompt has no tokens", part)
        return prompt

    def _tokens_max(self, wanted: schema.Wanted, prompt_tokens: int) -> int:
        """How many tokens may be drawn: as many as were asked for, which the context must take."""
        room = self.model.engine.context - prompt_tokens
        if room < (wanted.tokens_max or 1):
            raise invalid(
                f"the context takes {self.model.engine.context} tokens; the prompt has {prompt_tokens}, "
                f"and {wanted.tokens_max or 'at least 1'} are to follow",
                "messages" if wanted.prompt is None else "prompt",
                "context_length_exceeded",
            )
        return wanted.tokens_max or min(room, GENERATED_TOKENS_MAX)

    def _sampling(self, wanted: schema.Wanted) -> Sampling:
        """What was asked for over the model's defaults; a seed of ours if none was named and one matters."""
        named: dict[str, Any] = {**self.model.defaults, **wanted.sampling}
        draws = named.get("temperature", 0) != 0
        seed = wanted.seed if wanted.seed is not None else secrets.randbits(SEED_BITS) if draws else 0
        return Sampling(**named, seed=seed)


def _named(message: str) -> str | None:
    """The parameter that an error of `Sampling` names first."""
    return next((word for word in message.split() if word in Sampling.__dataclass_fields__), None)
