"""Vectors of random numbers below the prime p = 2^61 - 1."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import blake3
import numpy as np

from ree.errors import InputError

P = (1 << 61) - 1
SEED_BYTES = 32
CONTEXT = "ree v1 freivalds"
_WORDS_AT_ONCE = 1 << 16


def draw(seed: bytes, vectors: int, length: int) -> np.ndarray:
    """Independent uniform numbers below p: uint64 [vectors, length], a function of the seed (32 bytes).

    They are the low 61 bits of BLAKE3's output in its derive-key mode, as 64-bit little-endian words, one after
    another; p itself is left out, so that none is likelier than another. InputError: a seed of another length.
    """
    if len(seed) != SEED_BYTES:
        raise InputError(f"a seed of Freivalds' check has {SEED_BYTES} bytes, not {len(seed)}")
    wanted = vectors * length
    found = np.empty(wanted, np.uint64)
    have = 0
    for words in _words(seed, wanted):
        numbers = words & np.uint64(P)
        numbers = numbers[numbers != P][: wanted - have]
        found[have : have + len(numbers)] = numbers
        have += len(numbers)
        if have == wanted:
            break
    return found.reshape(vectors, length)


def _words(seed: bytes, wanted: int) -> Iterator[np.ndarray]:
    """The output, without end, in pieces: the first of the size that is probably enough, if that is not too large."""
    hasher = blake3.blake3(seed, derive_key_context=CONTEXT)
    size = 8 * max(1, min(wanted, _WORDS_AT_ONCE))
    for place in itertools.count(0, size):
        yield np.frombuffer(hasher.digest(size, seek=place), "<u8").astype(np.uint64)
