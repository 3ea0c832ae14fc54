"""One chunk of a fold: what its partial result is, from those before it and at most 256 items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ree.element import scalar
from ree.element.interpret import fma_chain, sum_chunk
from ree.types import Type


def start(kind: str, type: Type) -> np.ndarray:
    """The value of a fold of nothing, which also stands before the first chunk."""
    dtype = scalar.NUMPY[type]
    value = 0 if kind in ("dot", "sum") else scalar.JOINS[kind][0](type)
    return np.array([value], dtype=dtype)


def part(kind: str, before: np.ndarray, items: Sequence[np.ndarray]) -> np.ndarray:
    """The partial result after a chunk ([1]); before: the one of the chunk before; items: what the region gives."""
    if kind == "dot":
        left, right = (item.reshape(-1, 1) for item in items)
        return before + fma_chain(left, right, np.ones(left.shape, bool))
    if kind == "sum":
        (terms,) = items
        return np.atleast_1d(sum_chunk(np.ones((len(terms), 1), bool), [terms.reshape(-1, 1)], terms.dtype))
    join = scalar.JOINS[kind][1]
    total = before
    for k in range(len(items[0])):
        total = join(total, items[0][k : k + 1])
    return total
