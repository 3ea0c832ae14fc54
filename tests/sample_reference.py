"""docs/SAMPLING.md in plain Python, step by step: slow, readable, and what the C code is held to.

Logits are NumPy float32 scalars; exp and log are the project's, by the interpreter of element programs; all sums
of weights are Python integers. Everything is sorted, and nothing is clever.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ree.element import functions
from ree.element.interpret import interpret
from ree.element.program import Builder, Port, Program
from ree.lm.sample import Sampling
from ree.types import DType

F = np.float32
WEIGHT_BITS = 43
MASK = 0xFFFFFFFF


@functools.cache
def _program(name: str) -> Program:
    b = Builder([Port(DType.F32, 1)], 1)
    body: Callable[..., Any] = {"exp": functions.exp, "log": functions.log}[name]
    return b.finish([body(b, b.load(0, b.index(0)))], [DType.F32])


def function(name: str, x: np.ndarray) -> np.ndarray:
    """exp or log of float32 values as the specification defines them."""
    return interpret(_program(name), [np.ascontiguousarray(x, F)], x.shape)[0]


def project_sum(x: np.ndarray) -> np.float32:
    """The `sum` of the specification."""
    b = Builder([Port(DType.F32, 1)], 0)
    total = b.fold_sum(b.extent(0, 0), lambda k: b.load(0, k))
    return interpret(b.finish([total], [DType.F32]), [x], ())[0][()]


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 ^ c[1] ^ k[0], b & MASK, a >> 32 ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def random_bits(seed: int, position: int) -> int:
    """Step 8's 64 bits."""
    words = philox([position & MASK, position >> 32, 0, 1], [seed & MASK, seed >> 32])
    return words[0] << 32 | words[1]


def adjusted(logits: np.ndarray, s: Sampling, prompt: Sequence[int], drawn: Sequence[int]) -> np.ndarray:
    """Steps 1 to 3."""
    x = logits.astype(F)
    for token, bias in s.logit_bias:
        x[token] = x[token] + F(bias)
    for token in sorted({*prompt, *drawn}):
        x[token] = x[token] / F(s.repetition_penalty) if x[token] > 0 else x[token] * F(s.repetition_penalty)
    for token in sorted(set(drawn)):
        x[token] = x[token] - F(list(drawn).count(token)) * F(s.frequency_penalty)
        x[token] = x[token] - F(s.presence_penalty)
    return x


def order(x: np.ndarray) -> list[int]:
    """Tokens by value, the largest first, equal ones by number."""
    return sorted(range(len(x)), key=lambda token: (-float(x[token]), token))


def differences(x: np.ndarray) -> np.ndarray:
    """x - max, and 0 where x is max, which may be infinite."""
    top = x.max()
    return np.array([F(0) if value == top else value - top for value in x], F)


def weight(p: np.float32) -> int:
    """The integer nearest to p * 2**43, of two the even one."""
    return round(Fraction(float(p)) * 2**WEIGHT_BITS)


@dataclass(frozen=True)
class Draw:
    """A token and what led to it.

    kept: tokens in order; weights: of all tokens; total: of those kept; bits: the random ones; number: below total.
    """

    token: int
    kept: list[int]
    weights: list[int]
    total: int
    bits: int
    number: int


def draw(logits: np.ndarray, s: Sampling, prompt: Sequence[int], drawn: Sequence[int], position: int) -> Draw | None:
    """The token at `position`; None if a logit is NaN."""
    if np.isnan(logits).any():
        return None
    with np.errstate(all="ignore"):
        x = adjusted(logits, s, prompt, drawn)
        ranked = order(x)
        bits = random_bits(s.seed, position)
        if s.temperature == 0:
            return Draw(ranked[0], ranked[:1], [], 0, bits, 0)
        p = function("exp", differences(x) / F(s.temperature))
    kept = ranked[: s.top_k or len(ranked)]
    kept = [token for token in kept if p[token] >= F(s.min_p)]
    weights = [weight(value) for value in p]
    needed = math.ceil(Fraction(s.top_p) * sum(weights[token] for token in kept))
    prefix, total = [], 0
    while total < needed:
        prefix.append(kept[len(prefix)])
        total += weights[prefix[-1]]
    number, below = bits * total >> 64, 0
    for token in sorted(prefix):
        below += weights[token]
        if below > number:
            return Draw(token, prefix, weights, total, bits, number)
    raise AssertionError("the sum of weights exceeds any number below it")


def logprobs(logits: np.ndarray, count: int) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Log-probabilities of all tokens, and pairs of the `count` largest."""
    with np.errstate(all="ignore"):
        d = differences(logits)
        values = d - function("log", np.array([project_sum(function("exp", d))]))[0]
    return values, [(token, float(values[token])) for token in order(logits)[:count]]
