"""Generation: a prompt through the engine, then token after token."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ree.errors import InputError
from ree.lm.engine import Engine, Row
from ree.lm.generation import LENGTH, STOP
from ree.lm.sample import Sampler, Sampling
from ree.lm.spelling import Spelling

if TYPE_CHECKING:
    import numpy as np

    from ree.lm.ticket import Records
    from ree.lm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Wanted:
    """What is to be generated: tokens of the prompt, how the next ones are drawn, and when there are enough.

    stop_tokens end it and are no part of its text; stops: strings that do.
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 64
    stop_tokens: frozenset[int] = frozenset()
    stops: Sequence[str] = ()


@dataclass(frozen=True)
class Generated:
    """What was generated: its tokens (a stop token at the end included), text, why it ended, and the seconds spent."""

    tokens: list[int]
    text: str
    reason: str
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, which comes with the prompt."""
        return (len(self.tokens) - 1) / self.decode_s if self.decode_s > 0 else 0.0


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    wanted: Wanted,
    records: Records | None = None,
    on_text: Callable[[str], None] = lambda text: None,
    on_prompt: Callable[[int], None] = lambda tokens: None,
) -> Generated:
    """Generate in a slot of the engine.

    records: is told of every step; on_text: of text as it becomes certain; on_prompt: how many tokens of the prompt
    have been read. InputError: the prompt is empty, or it and what is to follow do not fit the context.
    """
    _check(engine, wanted)
    sampler = Sampler(engine.vocab_size, wanted.sampling, list(wanted.prompt))
    speller = Spelling(tokenizer, wanted.prompt, wanted.stops)
    parts: list[str] = []

    def give(text: str) -> None:
        if text:
            parts.append(text)
            on_text(text)

    slot = engine.open()
    try:
        start = time.perf_counter()
        logits = _prefill(engine, slot, wanted.prompt, on_prompt)
        prefilled = time.perf_counter()
        tokens: list[int] = []
        reason = None
        while reason is None:
            position = len(wanted.prompt) + len(tokens)
            token = sampler.draw(logits, position)
            tokens.append(token)
            if records is not None:
                records.step(position, token, logits)
            if token not in wanted.stop_tokens:
                give(speller.push(token))
            if token in wanted.stop_tokens or speller.stopped:
                reason = STOP
            elif len(tokens) == wanted.max_new_tokens:
                reason = LENGTH
            else:
                logits = engine.step([Row(token, position, slot, True)])[0]
        decoded = time.perf_counter()
    finally:
        engine.close(slot)
    give(speller.finish())
    return Generated(tokens, "".join(parts), reason, prefilled - start, decoded - prefilled)


def _check(engine: Engine, wanted: Wanted) -> None:
    count = len(wanted.prompt)
    if not count:
        raise InputError("the prompt has no tokens")
    if wanted.max_new_tokens < 1:
        raise InputError(f"the number of new tokens must be at least 1, not {wanted.max_new_tokens}")
    if count + wanted.max_new_tokens > engine.context:
        raise InputError(
            f"the prompt has {count} tokens and {wanted.max_new_tokens} are to follow; "
            f"the context has room for {engine.context}"
        )


def _prefill(engine: Engine, slot: int, prompt: Sequence[int], on_prompt: Callable[[int], None]) -> np.ndarray:
    """Feed the prompt in chunks; the logits of its last token."""
    last = len(prompt) - 1
    for start in range(0, len(prompt), engine.rows_max):
        end = min(start + engine.rows_max, len(prompt))
        logits = engine.step([Row(prompt[n], n, slot, n == last) for n in range(start, end)])
        on_prompt(end)
    return logits[0]
