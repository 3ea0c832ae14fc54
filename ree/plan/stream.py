"""Streamed plans: the same graph over rows that stand anywhere in their sequences, attention reading a cache.

The graph of a causal language model treats the rows of its sequence one by one, except in attention, where a row sees
the keys and values of those before it. A streamed plan keeps these between runs. So it may compute any rows of any
sequences at once, as soon as the rows before them are there, and gives the bits that the plain plan gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SLOTS = 0  # number of the state that says which sequence each row belongs to; each layer's three follow
LAYER_STATES = 3  # keys, values, flags
CHUNK = 256  # keys; a context is a multiple of it


@dataclass(frozen=True, slots=True)
class Layer:
    """Sizes of the cache of one attention layer, for one head of keys of one sequence."""

    k_heads: int
    key_floats: int
    value_floats: int


@dataclass
class Stream:
    """What a streamed plan needs to know besides the graph, and what it says about its state.

    positions: number of the graph's input i64[1, N] that has the rows' positions; context: most keys of a sequence, a
    multiple of CHUNK. State memory, by number: SLOTS i64[N] (negative: padding), then for each layer in the order of
    the graph its keys, values, and flags of chunks (u8), for as many sequences as there are slots.
    """

    positions: int
    context: int
    layers: list[Layer] = field(default_factory=list)
