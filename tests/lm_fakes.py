"""A quick model for tests of the scheduler and the server: nothing is learned, everything is a function of the prefix.

The engine's logits follow from all tokens of the sequence up to the row, so a token that is fed to the wrong slot, at
the wrong position, twice or never changes whatever is drawn after it.
"""

from __future__ import annotations

import codecs
import hashlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import blake3
import numpy as np

from ree.errors import InputError, LimitError
from ree.lm.engine import Row

BYTES = 256
END, USER, ASSISTANT = BYTES, BYTES + 1, BYTES + 2
VOCAB = BYTES + 3
MASK = (1 << 64) - 1

_INDEX = np.arange(1, VOCAB + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
_LIKED = np.full(VOCAB, -8.0, dtype=np.float32)
_LIKED[[ord(c) for c in "abcdefghijklmnopqrstuvwxyz .,"]] = 0.0
_LIKED[list("é€".encode())] = -0.05  # parts of characters, most often not whole ones
_LIKED[END] = -0.05


def folded(state: int, token: int) -> int:
    """The state of a sequence with one token more."""
    state = ((state ^ (token + 1)) * 0xD6E8FEB86659FD93) & MASK
    return state ^ (state >> 32)


def logits_of(state: int) -> np.ndarray:
    """float32 [VOCAB], a function of the state."""
    mixed = _INDEX ^ np.uint64(state)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return _LIKED + ((mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


@dataclass
class FakeEngine:
    """Holds its callers to the rules of `ree.lm.engine.Engine`. step_s: how long a step takes."""

    slots: int = 4
    context: int = 4096
    rows_max: int = 16
    step_s: float = 0.0
    vocab_size: int = VOCAB
    fail_steps: int = 0  # so many steps from now on raise
    lock: Any = None  # held during a step, for tests that stop the world
    sequences: dict[int, tuple[int, int]] = field(default_factory=dict)  # slot: tokens fed, state
    steps: list[list[Row]] = field(default_factory=list)
    keep_steps: bool = False

    def open(self) -> int:
        free = next((s for s in range(self.slots) if s not in self.sequences), None)
        if free is None:
            raise LimitError("no slot is free")
        self.sequences[free] = (0, 0x1234567)
        return free

    def close(self, slot: int) -> None:
        del self.sequences[slot]

    def step(self, rows: Sequence[Row]) -> np.ndarray:
        if not 0 < len(rows) <= self.rows_max:
            raise InputError(f"{len(rows)} rows")
        if self.lock is not None:
            with self.lock:
                pass
        if self.step_s:
            time.sleep(self.step_s)
        if self.fail_steps:
            self.fail_steps -= 1
            raise RuntimeError("the engine broke")
        if self.keep_steps:
            self.steps.append(list(rows))
        found = []
        for row in rows:
            fed, state = self.sequences[row.slot]
            if row.position != fed or not 0 <= row.token < VOCAB or fed >= self.context:
                raise InputError(f"{row} does not follow on {fed} tokens")
            state = folded(state, row.token)
            self.sequences[row.slot] = (fed + 1, state)
            if row.wants:
                found.append(logits_of(state))
        return np.stack(found) if found else np.empty((0, VOCAB), dtype=np.float32)


class FakeRecorder:
    """A receipt is the digest of all that was recorded, its envelope a JSON text of the same."""

    def __init__(self, fail_at: int | None = None) -> None:
        self._hash = hashlib.sha256()
        self._fail_at = fail_at
        self.salt = bytes(range(32))
        self.positions: list[int] = []

    def step(self, position: int, token: int, logits: np.ndarray) -> None:
        if position == self._fail_at:
            raise RuntimeError("the recorder broke")
        self.positions.append(position)
        root = blake3.blake3(logits.astype("<f4").tobytes()).digest()
        self._hash.update(position.to_bytes(8, "little") + token.to_bytes(8, "little") + root)

    def finish(self, reason: str) -> tuple[str, bytes]:
        self._hash.update(reason.encode())
        name = self._hash.hexdigest()
        return name, b'{"receipt":"%s"}' % name.encode()


class FakeText:
    """Bytes to text; the plain way to find stop strings: hold back as many characters as the longest has but one."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = list(stops)
        self._held = ""
        self._keep = max((len(s) for s in stops), default=1) - 1
        self.stopped = False

    def push(self, token: int) -> str:
        return self._take(self._utf8.decode(bytes([token])) if token < BYTES else "")

    def finish(self) -> str:
        text = self._take(self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _take(self, text: str) -> str:
        whole = self._held + text
        found = [whole.find(s) for s in self._stops if s in whole]
        if found:
            self.stopped, self._held = True, ""
            return whole[: min(found)]
        cut = max(0, len(whole) - self._keep)
        self._held = whole[cut:]
        return whole[:cut]


class FakeSampler:
    """Draws by the Gumbel trick; a function of logits, seed, position and the tokens before."""

    def __init__(
        self, prompt: Sequence[int] = (), temperature: float = 0.0, seed: int = 0, ban: Sequence[int] = ()
    ) -> None:
        self._temperature, self._seed, self._ban = temperature, seed, list(ban)
        self._last = prompt[-1] if prompt else 0

    def draw(self, logits: np.ndarray, position: int) -> int:
        scores = logits.astype(np.float64)
        scores[self._ban] = -np.inf
        scores[self._last] -= 0.5  # a repetition penalty
        if self._temperature:
            rng = np.random.Generator(np.random.Philox(key=self._seed, counter=position))
            scores = scores / self._temperature + rng.gumbel(size=len(scores))
        self._last = int(scores.argmax())
        return self._last

    def logprobs(self, logits: np.ndarray, count: int) -> tuple[float, list[tuple[int, float]]]:
        scores = logits.astype(np.float64)
        scores -= np.log(np.exp(scores - scores.max()).sum()) + scores.max()
        best = np.argsort(-scores, kind="stable")[:count]
        return float(scores[self._last]), [(int(t), float(scores[t])) for t in best]


@dataclass
class FakeModel:
    """Tokens are bytes; a chat is its messages, each behind a token that says whose it is."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    name: str = "fake"
    created: int = 1_700_000_000
    fingerprint: str = "fp-fake"
    ids: dict[str, str] = field(default_factory=lambda: {"program_id": "00" * 32})
    stop_tokens: frozenset[int] = frozenset({END})
    silent: frozenset[int] = frozenset({END, USER, ASSISTANT})
    defaults: dict[str, Any] = field(default_factory=dict)
    asked: deque[Any] = field(default_factory=lambda: deque(maxlen=1000))
    recorder_fails_at: int | None = None
    chatted_at: datetime | None = None  # the last chat

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def chat(self, messages: Sequence[Any], now: datetime) -> list[int]:
        self.chatted_at = now
        if messages[-1]["role"] == "assistant":
            raise InputError("the chat template refuses these messages: the assistant has just spoken")
        tokens = []
        for message in messages:
            tokens += [ASSISTANT if message["role"] == "assistant" else USER, *self.encode(message["content"])]
        return [*tokens, ASSISTANT]

    def spelled(self, token: int) -> bytes:
        return bytes([token]) if token < BYTES else b"<%d>" % token

    def text(self, prompt: Sequence[int], stops: Sequence[str]) -> FakeText:
        if "" in stops or len(stops) > 4:
            raise InputError("stop strings are at most 4 texts that are not empty")
        return FakeText(stops)

    def recorder(self, asked: Any) -> FakeRecorder:
        self.asked.append(asked)
        return FakeRecorder(self.recorder_fails_at)
