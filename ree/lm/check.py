"""Verification of a generation: one pass over prompt and tokens gives the logits behind every token.

A pass over rows has the bits of token-by-token decoding (docs/SPEC.md, "Streamed programs"), so logits, draws and the
reason to end are compared exactly, at the price of reading, not of writing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ree.errors import InputError, RunError, VerificationError
from ree.lm import generation
from ree.lm.engine import Row
from ree.lm.generation import STOP, Generation, Receipt
from ree.lm.sample import Sampler

if TYPE_CHECKING:
    from ree.commit.keys import PublicKey
    from ree.lm.batch import Steps
    from ree.lm.ticket import Spells

Progress = Callable[[int, int], None]  # rows done, rows in all


class Model(Protocol):
    """What the verifier needs of a language model; its ids are those that a receipt's `Binding` states."""

    @property
    def program_id(self) -> bytes: ...
    @property
    def weights_id(self) -> bytes: ...
    @property
    def tokenizer_id(self) -> bytes: ...
    @property
    def chat_template_id(self) -> bytes | None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context(self) -> int: ...

    def engine(self, slots: int = 1) -> Steps:
        """A new engine for so many sequences."""
        ...

    def text(self, prompt_tokens: Sequence[int], stop_strings: Sequence[str]) -> Spells:
        """What spells the text after a prompt; the very one that generations are made with, or they stop elsewhere."""
        ...


@dataclass(frozen=True, slots=True)
class Verified:
    """What was verified. prompt_opened: the salt showed that the receipt commits to this prompt (else its logits do);
    steps: the tokens whose logits and draws were compared; rows: tokens that the model read.
    """

    receipt: Receipt
    prompt_opened: bool
    steps: range
    rows: int
    seconds: float


def verify(
    envelope: bytes | str | dict[str, Any],
    model: Model,
    prompt_tokens: Sequence[int] | np.ndarray,
    *,
    salt: bytes | None,
    trusted_keys: Collection[PublicKey] | None,
    nonce: bytes | None = None,
    only: range | None = None,
    progress: Progress | None = None,
) -> Verified:
    """The receipt, if the model gives after this prompt what it states; else VerificationError: the first difference.

    salt: opens the receipt's commitment to the prompt; without it a prompt is still refused that does not give these
    logits. trusted_keys: None takes any key, and the caller must look at the signer. nonce: the one that the receipt
    must carry. only: steps (0 is the first token) to which the comparison of logits and draws is confined, the tokens
    before them being taken as stated. InputError: the prompt is none of this model's, or there are no such steps.
    """
    began = time.monotonic()
    found = generation.read(envelope, trusted_keys)
    stated = found.claim
    prompt = expect(stated, model, prompt_tokens, salt, nonce)
    steps = _checked_steps(only, len(stated.tokens))
    rows = _check_steps(stated, model, prompt, steps, progress or _unwatched)
    return Verified(found, salt is not None, steps, rows, time.monotonic() - began)


def expect(
    stated: Generation,
    model: Model,
    prompt_tokens: Sequence[int] | np.ndarray,
    salt: bytes | None,
    nonce: bytes | None = None,
) -> np.ndarray:
    """The prompt's tokens (u32), if the claim is about this model and this prompt, and ends where it should.

    That is all that shows without a run.

    VerificationError: it is not; InputError: the prompt is none of this model's.
    """
    prompt = generation.token_array(prompt_tokens)
    _check_model(stated, model)
    stated.expect(prompt_length=len(prompt), **({} if nonce is None else {"nonce": nonce}))
    if int(prompt.max()) >= model.vocab_size:
        raise InputError(f"a token of the prompt is not one of the model's {model.vocab_size}")
    if salt is not None:
        stated.open_prompt(salt, generation.prompt_id(prompt))
    _check_end(stated, model, prompt.tolist())
    return prompt


def _unwatched(done: int, total: int) -> None:
    return None


def _check_model(stated: Generation, model: Model) -> None:
    """VerificationError: the receipt is about another model, or about tokens that this one does not have."""
    stated.expect(program_id=model.program_id, weights_id=model.weights_id, tokenizer_id=model.tokenizer_id)
    if stated.chat_template_id is not None:
        stated.expect(chat_template_id=model.chat_template_id)
    for step, token in enumerate(stated.tokens):
        if token >= model.vocab_size:
            raise VerificationError(f"step {step}: token {token} is none of the model's {model.vocab_size}")
    rows = stated.prompt_length + len(stated.tokens) - 1
    if rows > model.context:
        raise VerificationError(f"prompt and tokens are longer than the model's context of {model.context}")


def _checked_steps(only: range | None, count: int) -> range:
    if only is None:
        return range(count)
    if not isinstance(only, range) or only.step != 1 or not 0 <= only.start < only.stop <= count:
        raise InputError(f"the receipt has the steps 0 to {count - 1}; a range of these is expected, not {only!r:.80}")
    return only


def _check_end(stated: Generation, model: Model, prompt: Sequence[int]) -> None:
    """VerificationError: a stop string ends the generation earlier, or nothing ends it where it does.

    Stop tokens and the number of tokens are no matter of the model; no claim contradicts them.
    """
    last = len(stated.tokens) - 1
    if not stated.stop_strings:
        return
    text = model.text(prompt, stated.stop_strings)
    ended = stated.tokens[last] in stated.stop_tokens
    for step, token in enumerate(stated.tokens[:last] if ended else stated.tokens):
        text.push(token)
        if text.stopped:
            if step < last:
                raise VerificationError(f"step {step}: reason: a stop string ends the text, but tokens follow")
            if stated.finish_reason != STOP:
                raise VerificationError(
                    f"step {step}: reason: a stop string ends the text, the receipt says {stated.finish_reason!r}"
                )
            return
    if stated.finish_reason == STOP and not ended:
        raise VerificationError(f"step {last}: reason: neither a stop token nor a stop string ends the text here")


def _check_steps(stated: Generation, model: Model, prompt: np.ndarray, steps: range, progress: Progress) -> int:
    """Read the tokens before the last step, and compare each step; gives how many were read."""
    replay = _Replay(stated, model.vocab_size, prompt, steps.start)
    tokens = [*prompt.tolist(), *stated.tokens[: steps.stop - 1]]
    first = len(prompt) - 1 + steps.start  # the row whose logits the first of the steps draws from
    engine = model.engine(slots=1)
    slot = engine.open()
    try:
        for start in range(0, len(tokens), engine.rows_max):
            end = min(start + engine.rows_max, len(tokens))
            rows = [Row(tokens[p], p, slot, p >= first) for p in range(start, end)]
            try:
                logits = engine.step(rows)
            except RunError as error:
                raise VerificationError(f"the model cannot have read these tokens: {error}") from None
            for row in logits:
                replay.compare(row)
            progress(end, len(tokens))
    finally:
        engine.close(slot)
    return len(tokens)


class _Replay:
    """Compares one step after the other with what the receipt states."""

    def __init__(self, stated: Generation, vocab_size: int, prompt: np.ndarray, start: int) -> None:
        """start: the first step that will be compared."""
        self._stated, self._step = stated, start
        try:
            self._sampler = Sampler(vocab_size, stated.sampling, prompt).replay(stated.tokens[:start])
        except InputError as error:
            raise VerificationError(f"the sampling does not fit the model: {error}") from None

    def compare(self, logits: np.ndarray) -> None:
        """VerificationError: these are not the logits of the next step, or another token is drawn from them."""
        step, token = self._step, self._stated.tokens[self._step]
        root = generation.logits_root(logits)
        if root != self._stated.root(step):
            own, other = root.hex(), self._stated.root(step).hex()
            raise VerificationError(f"step {step}: logits: the model's have the root {own}, the receipt says {other}")
        try:
            drawn = self._sampler.draw(logits, self._stated.prompt_length + step)
        except RunError as error:
            raise VerificationError(f"step {step}: token: none can be drawn: {error}") from None
        if drawn != token:
            raise VerificationError(f"step {step}: token: {drawn} is drawn, the receipt says {token}")
        self._step += 1
