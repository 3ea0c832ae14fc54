"""How well a language model predicts a text: what its narrower numbers cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ree.errors import InputError
from ree.lm.engine import Engine, Row


def perplexity(engine: Engine, tokens: Sequence[int], on_tokens: Callable[[int], None] = lambda done: None) -> float:
    """e to the mean of -log p(token | those before it), for all tokens of a text but the first of each window.

    The text is cut into windows of the engine's context, which do not see one another. on_tokens: is told how many have
    been read. InputError: fewer than two tokens.
    """
    if len(tokens) < 2:
        raise InputError("a perplexity needs a text of two tokens or more")
    total, count = 0.0, 0
    for start in range(0, len(tokens), engine.context):
        window = tokens[start : start + engine.context]
        slot = engine.open()
        try:
            for first in range(0, len(window) - 1, engine.rows_max):
                chunk = range(first, min(first + engine.rows_max, len(window) - 1))
                logits = engine.step([Row(window[n], n, slot, True) for n in chunk])
                total += _surprise(logits, [window[n + 1] for n in chunk])
                count += len(chunk)
                on_tokens(start + chunk.stop)
        finally:
            engine.close(slot)
    return math.exp(total / count)


def _surprise(logits: np.ndarray, tokens: Sequence[int]) -> float:
    """The sum of -log softmax(logits)[token] over rows."""
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1)
    logs = np.log(np.exp(wide - largest[:, None]).sum(axis=1)) + largest
    return float((logs - wide[np.arange(len(tokens)), tokens]).sum())
