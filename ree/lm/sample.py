"""Draws tokens from logits, to the bit as docs/SAMPLING.md says: the same token on every machine, for ever.

`Sampling` is what a request asks for, `Sampler` the state of one sequence. The arithmetic is ree_kernels/c/sample.c.
"""

from __future__ import annotations

import math
import numbers
import re
import struct
import threading
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any

import numpy as np

from ree.commit import strict_json
from ree.errors import DeviceError, InputError, LimitError, RunError, VerificationError
from ree_kernels import KernelError, cpu

VERSION = 1
VOCAB_MAX = 1_000_000  # so that the sum of weights, each at most 2**43, stays below 2**63
HISTORY_MAX = 1 << 24  # tokens; counts of them are exact in float32
LOGIT_BIASES_MAX = 1024
TOP_LOGPROBS_MAX = 128

# closed ranges; of top_p, which must not be 0, the low end is the smallest float32
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (2.0**-149, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1 / 64, 64.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_BIAS_RANGE = (-100.0, 100.0)
_BITS = re.compile("[0-9a-f]{8}")
_SEED = re.compile("[0-9a-f]{16}")
_TOKEN = re.compile("0|[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Numbers are rounded to float32 here, and nowhere else.

    temperature: 0 (greedy) to 100; top_k: how many of the largest logits are kept (0: all); top_p: in (0, 1]; min_p: in
    [0, 1]; repetition_penalty: 1/64 to 64; presence_penalty, frequency_penalty: -2 to 2; seed: 64 bits;
    logit_bias: (token, -100 to 100) for at most 1024 different tokens. InputError: something else.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        with cpu.default_fp_state():
            for name, (low, high) in _RANGES.items():
                object.__setattr__(self, name, _float(name, getattr(self, name), low, high))
            object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "top_k", _integer("top_k", self.top_k, VOCAB_MAX))
        object.__setattr__(self, "seed", _integer("seed", self.seed, (1 << 64) - 1))

    @property
    def penalises(self) -> bool:
        """Whether the history matters."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    def to_json(self) -> dict[str, Any]:
        """The one JSON value of these numbers: floats as the 8 hex digits of their bits, the seed as 16."""
        with cpu.default_fp_state():
            value: dict[str, Any] = {name: _bits(getattr(self, name)) for name in _RANGES}
            biases = {str(token): _bits(bias) for token, bias in self.logit_bias}
        return value | {"version": VERSION, "top_k": self.top_k, "seed": f"{self.seed:016x}", "logit_bias": biases}

    @classmethod
    def from_json(cls, value: Any) -> Sampling:
        """The numbers of a value that `to_json` gives; VerificationError: it gives no such value."""
        strict_json.members(value, {field.name for field in fields_of(cls)} | {"version"}, set(), "sampling")
        if type(value["version"]) is not int or value["version"] != VERSION:
            raise _malformed(f"version {VERSION} is expected")
        biases = value["logit_bias"]
        if type(biases) is not dict or not all(type(t) is str and _TOKEN.fullmatch(t) for t in biases):
            raise _malformed("'logit_bias' is no object of tokens")
        try:
            with cpu.default_fp_state():
                found = cls(
                    **{name: _read_bits(name, value[name]) for name in _RANGES},
                    top_k=_read_integer("top_k", value["top_k"]),
                    seed=int(_read_hex("seed", value["seed"], _SEED), 16),
                    logit_bias=tuple((int(t), _read_bits("logit_bias", bias)) for t, bias in biases.items()),
                )
        except InputError as error:
            raise _malformed(str(error)) from None
        if found.to_json() != value:
            raise _malformed("a number is not in its only form")
        return found


def _integer(name: str, value: Any, high: int) -> int:
    number = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else -1
    if not 0 <= number <= high:
        raise InputError(f"{name} must be an integer from 0 to {high}")
    return number


def _float(name: str, value: Any, low: float, high: float) -> float:
    """The nearest float32, with +0 for -0."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            rounded = float(struct.unpack("<f", struct.pack("<f", value))[0])
        except (OverflowError, struct.error):
            rounded = math.inf
        if low <= rounded <= high:
            return rounded + 0.0
    raise InputError(f"{name} must be a number from {low:.4g} to {high:g}")


def _biases(pairs: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of token and bias in ascending order of tokens."""
    if not isinstance(pairs, list | tuple) or len(pairs) > LOGIT_BIASES_MAX:
        raise InputError(f"logit_bias must be at most {LOGIT_BIASES_MAX} pairs of token and bias")
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise InputError("logit_bias must be pairs of token and bias")
    found = {
        _integer("a token of logit_bias", token, VOCAB_MAX - 1): _float("a bias of logit_bias", bias, *_BIAS_RANGE)
        for token, bias in pairs
    }
    if len(found) != len(pairs):
        raise InputError("a token stands twice in logit_bias")
    return tuple(sorted(found.items()))


def _bits(value: float) -> str:
    return struct.pack(">f", value).hex()


def _read_hex(name: str, text: Any, form: re.Pattern[str]) -> str:
    if type(text) is not str or not form.fullmatch(text):
        raise _malformed(f"{name!r} is not in lowercase hex of its length")
    return text


def _read_bits(name: str, text: Any) -> float:
    return float(struct.unpack(">f", bytes.fromhex(_read_hex(name, text, _BITS)))[0])


def _read_integer(name: str, value: Any) -> int:
    if type(value) is not int:
        raise _malformed(f"{name!r} is no integer")
    return value


def _malformed(why: str) -> VerificationError:
    return VerificationError(f"sampling is malformed: {why}")


# -- sequences -----------------------------------------------------------------------------------

_local = threading.local()


class _History:
    """The different tokens of a sequence, and how often each was drawn (0: it stands in the prompt alone)."""

    def __init__(self, prompt: np.ndarray) -> None:
        distinct = np.unique(prompt)
        self.size = len(distinct)
        self.tokens = np.zeros(self.size + 64, np.int32)
        self.tokens[: self.size] = distinct
        self.counts = np.zeros_like(self.tokens)
        self._places = dict(zip(distinct.tolist(), range(self.size), strict=True))

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, self.size)
        if place == self.size:
            if place == len(self.tokens):
                self.tokens, self.counts = (np.append(a, np.zeros_like(a)) for a in (self.tokens, self.counts))
            self.tokens[place] = token
            self.size += 1
        self.counts[place] += 1

    def copy(self) -> _History:
        other = object.__new__(_History)
        other.size, other._places = self.size, self._places.copy()
        other.tokens, other.counts = self.tokens.copy(), self.counts.copy()
        return other


class Sampler:
    """Draws the tokens of one sequence; `position` is the place in it of the next one.

    vocab_size: 1 to 1,000,000; prompt_tokens: integers below it. InputError: they are not, or the request does not fit
    the vocabulary; LimitError: more than 2**24 tokens. For one thread at a time.
    """

    def __init__(self, vocab_size: int, sampling: Sampling, prompt_tokens: Sequence[int] | np.ndarray) -> None:
        self.vocab_size = _integer("the size of a vocabulary", vocab_size, VOCAB_MAX)
        self.sampling = sampling
        if not max(sampling.top_k, 1) <= self.vocab_size:
            raise InputError(f"top_k {sampling.top_k} does not fit a vocabulary of {vocab_size} tokens")
        if any(token >= self.vocab_size for token, _ in sampling.logit_bias):
            raise InputError(f"logit_bias names a token that a vocabulary of {vocab_size} tokens lacks")
        prompt = self._checked_tokens(prompt_tokens)
        self.position = len(prompt)
        self._last: int | None = None
        self._history = _History(prompt) if sampling.penalises else None
        try:
            self._kernels = cpu.kernels()
        except KernelError as error:
            raise DeviceError(str(error)) from None
        self._fixed, self._biases = self._fixed_arguments()

    def _fixed_arguments(self) -> tuple[Any, list[np.ndarray]]:
        """What of `ree_sample`'s arguments the request alone decides, and the arrays that they point to."""
        pairs = self.sampling.logit_bias
        with cpu.default_fp_state():  # numbers become float32
            fields = {name: getattr(self.sampling, name) for name in (*_RANGES, "top_k")}
            args = self._kernels.ffi.new("ree_sample_args *", fields)
            biases = np.array([bias for _, bias in pairs], np.float32)
        arrays = [np.array([token for token, _ in pairs], np.int32), biases]
        args.vocab, args.biases = self.vocab_size, len(pairs)
        args.bias_tokens, args.bias = self._pointer("int32_t[]", arrays[0]), self._pointer("float[]", arrays[1])
        return args, arrays

    def draw(self, logits: np.ndarray, position: int) -> int:
        """The token at `position`, which enters the history.

        logits: float32 [vocab_size], left as they are. InputError: they are something else, or the position is not that
        of the next token; RunError: a logit is NaN; LimitError: the sequence is too long.
        """
        if position != self.position:
            raise InputError(f"position {position} is drawn, but the next one is {self.position}")
        self._check_length(1)
        pointer = self._logits(logits)
        args = self._kernels.ffi.new("ree_sample_args *", self._fixed[0])
        args.logits, args.random_bits = pointer, self._random_bits()
        if self._history is not None:
            args.seen_tokens = self._history.size
            args.seen = self._pointer("int32_t[]", self._history.tokens)
            args.counts = self._pointer("int32_t[]", self._history.counts)
        token = int(self._kernels.lib.ree_sample(args, self._scratch()))
        if token < 0:
            raise RunError(f"a logit at position {position} is NaN")
        self._note(token)
        return token

    def replay(self, tokens: Sequence[int] | np.ndarray) -> Sampler:
        """A sampler in the state that this one has after it has drawn these tokens; this one stays as it is.

        InputError and LimitError as for a prompt.
        """
        drawn = self._checked_tokens(tokens)
        self._check_length(len(drawn))
        other = copy(self)
        other._history = None if self._history is None else self._history.copy()
        for token in drawn.tolist():
            other._note(token)
        return other

    def logprobs(
        self, logits: np.ndarray, count: int, token: int | None = None
    ) -> tuple[float, list[tuple[int, float]]]:
        """Log-probabilities under the logits as they are: of `token` (None: the last one drawn), and of the largest.

        Gives float32 values: that of the token, and `count` (0 to 128, at most as many as there are) pairs of token
        and value, the largest first, of equal ones the lowest token. InputError and RunError as `draw`.
        """
        chosen = self._last if token is None else _integer("a token", token, self.vocab_size - 1)
        if chosen is None:
            raise InputError("the log-probability of the last token drawn is asked for, but none was drawn")
        size = min(_integer("the number of log-probabilities", count, TOP_LOGPROBS_MAX), self.vocab_size)
        tokens, values = np.empty(size, np.int64), np.empty(size, np.float32)
        fields = {"logits": self._logits(logits), "vocab": self.vocab_size, "token": chosen, "count": size}
        fields |= {"tokens": self._pointer("int64_t[]", tokens), "logprobs": self._pointer("float[]", values)}
        args = self._kernels.ffi.new("ree_logprobs_args *", fields)
        if self._kernels.lib.ree_logprobs(args, self._scratch()) < 0:
            raise RunError("a logit is NaN")
        return float(args.token_logprob), list(zip(tokens.tolist(), values.tolist(), strict=True))

    def _note(self, token: int) -> None:
        self.position += 1
        self._last = token
        if self._history is not None:
            self._history.add(token)

    def _random_bits(self) -> int:
        """The 64 random bits of the next token."""
        return int(self._kernels.lib.ree_sample_random_bits(self.sampling.seed, self.position))

    def _check_length(self, more: int) -> None:
        if self.position + more > HISTORY_MAX:
            raise LimitError(f"a sequence has at most {HISTORY_MAX} tokens")

    def _checked_tokens(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        try:
            if len(tokens) > HISTORY_MAX:
                raise LimitError(f"a sequence has at most {HISTORY_MAX} tokens")
            array = np.asarray(tokens) if len(tokens) else np.zeros(0, np.int64)
        except (TypeError, ValueError, OverflowError):
            array = np.zeros(0)
        if array.ndim != 1 or array.dtype.kind not in "iu" or not np.all((array >= 0) & (array < self.vocab_size)):
            raise InputError(f"tokens must be a list of integers from 0 to {self.vocab_size - 1}")
        return array.astype(np.int64)

    def _logits(self, logits: np.ndarray) -> Any:
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.shape != (self.vocab_size,):
            raise InputError(f"logits must be a float32 array of {self.vocab_size} values")
        return self._pointer("float[]", np.ascontiguousarray(logits))

    def _pointer(self, kind: str, array: np.ndarray) -> Any:
        """A pointer to the array that keeps it alive; a field that it is assigned to does not."""
        return self._kernels.ffi.from_buffer(kind, array)

    def _scratch(self) -> Any:
        """The thread's scratch memory, since fresh pages for every token would cost more than the draw."""
        size = int(self._kernels.lib.ree_sample_scratch_bytes(self.vocab_size))
        if len(getattr(_local, "scratch", ())) < size:
            _local.scratch = np.empty(size, np.uint8)
        return self._kernels.ffi.from_buffer(_local.scratch)
