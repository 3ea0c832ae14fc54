"""A language model of 32 tokens that fits in a few lines, so that vectors about generations can be redone by anyone.

The logits after some tokens are 32 numbers of 16 bits, from BLAKE3's output stream over the tokens, divided by 4096.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import blake3
import numpy as np

from ree.errors import InputError
from ree.lm.engine import Row
from ree.lm.generation import LENGTH, STOP
from ree.lm.sample import Sampler, Sampling

END = 31
PIECES = (*"abcdefghijklmnopqrstuvwxyz", " ", ".", "[", "é", "st", "")
VOCAB = len(PIECES)


def logits_after(tokens: Sequence[int]) -> np.ndarray:
    """float32 [VOCAB] after all these tokens."""
    data = blake3.blake3(np.asarray(tokens, "<u4").tobytes()).digest(length=2 * VOCAB)
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(4096)


def decode(tokens: Sequence[int]) -> str:
    return "".join(PIECES[token] for token in tokens)


def generated(
    prompt: Sequence[int],
    sampling: Sampling,
    tokens_max: int,
    stop_tokens: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
) -> tuple[list[int], list[np.ndarray], str]:
    """(tokens, the logits behind each, the reason to end), one after the other and with nothing remembered."""
    tokens: list[int] = []
    rows = []
    sampler = Sampler(VOCAB, sampling, prompt)
    while True:
        sequence = [*prompt, *tokens]
        rows.append(logits_after(sequence))
        tokens.append(sampler.draw(rows[-1], len(sequence)))
        text = decode(tokens)
        if tokens[-1] in stop_tokens or any(stop in text for stop in stop_strings):
            return tokens, rows, STOP
        if len(tokens) == tokens_max:
            return tokens, rows, LENGTH


class TinyText:
    """Finds stop strings by looking at the whole text each time."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._text = stops, ""

    @property
    def stopped(self) -> bool:
        return any(stop in self._text for stop in self._stops)

    def push(self, token: int) -> str:
        self._text += PIECES[token]
        return PIECES[token]

    def finish(self) -> str:
        return ""


@dataclass
class TinyEngine:
    """One sequence; holds its caller to the rules of `ree.lm.engine.Engine`, and keeps what it was fed."""

    rows_max: int = 4
    context: int = 64
    slots: int = 1
    vocab_size: int = VOCAB
    tokens: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)  # positions
    steps: int = 0
    opened: int = 0

    def open(self) -> int:
        self.opened += 1
        return 0

    def close(self, slot: int) -> None:
        self.opened -= 1

    def step(self, rows: Sequence[Row]) -> np.ndarray:
        if not 1 <= len(rows) <= self.rows_max or self.opened != 1:
            raise InputError(f"{len(rows)} rows, {self.opened} open sequences")
        found = []
        for row in rows:
            if (row.position, row.slot) != (len(self.tokens), 0) or not 0 <= row.token < VOCAB:
                raise InputError(f"{row} does not go on")
            if row.position >= self.context:
                raise InputError("longer than the context")
            self.tokens.append(row.token)
            if row.wants:
                self.wanted.append(row.position)
                found.append(logits_after(self.tokens))
        self.steps += 1
        return np.stack(found) if found else np.empty((0, VOCAB), np.float32)


@dataclass
class TinyModel:
    """What `ree.lm.check.verify` needs; `engines` are those that it was given."""

    program_id: bytes
    weights_id: bytes
    tokenizer_id: bytes
    chat_template_id: bytes | None
    rows_max: int = 4
    context: int = 64
    vocab_size: int = VOCAB
    engines: list[TinyEngine] = field(default_factory=list)

    def engine(self, slots: int = 1) -> TinyEngine:
        assert slots == 1
        self.engines.append(TinyEngine(self.rows_max, self.context))
        return self.engines[-1]

    def text(self, prompt_tokens: Sequence[int], stop_strings: Sequence[str]) -> TinyText:
        assert stop_strings and all(0 <= token < VOCAB for token in prompt_tokens)
        return TinyText(stop_strings)
