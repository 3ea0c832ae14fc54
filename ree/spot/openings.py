"""Tensors of which some chunks are known: what a prover opens, and what a checker is served from.

Both run the same evaluation. The prover's tensors note which chunks it touched; the checker's have those chunks alone,
and note which of them were used, so that a proof holds exactly what is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ree.commit.bao import Nodes, Outboard, chunk_count, left_chunks
from ree.commit.elements import PortElements
from ree.commit.stages import Source, Stages
from ree.errors import VerificationError
from ree.types import DType
from ree_kernels import blake3
from ree_kernels.blake3 import CHUNK_BYTES


@dataclass(frozen=True)
class Opening:
    """Some chunks of a tensor, in ascending order, with what ties them to its data root.

    data: their bytes; cvs: the chaining values of the largest subtrees without any of them, from left to right.
    """

    chunks: tuple[int, ...]
    data: bytes
    cvs: bytes

    @classmethod
    def of(cls, memory: np.ndarray, chunks: Sequence[int]) -> Opening:
        """Of these chunks of a tensor's bytes (uint8)."""
        view = memory.data
        nodes = Nodes(Outboard.of(view), view)
        cvs = [nodes.cv(first, n) for first, n in untouched(chunk_count(len(memory)), chunks)]
        data = b"".join(memory[c * CHUNK_BYTES : (c + 1) * CHUNK_BYTES].tobytes() for c in chunks)
        return cls(tuple(chunks), data, b"".join(cvs))

    def root(self, size_bytes: int) -> bytes | None:
        """The data root of the tensor of this size; None if the chaining values do not fit the chunks."""
        return blake3.opening_root(size_bytes, self.chunks, self.data, self.cvs)


def untouched(n_chunks: int, chunks: Sequence[int]) -> list[tuple[int, int]]:
    """The largest subtrees without any of these chunks, from left to right: (first chunk, how many)."""
    numbers = np.asarray(chunks, np.int64)
    found: list[tuple[int, int]] = []
    waiting = [(0, n_chunks, 0, len(numbers))]
    while waiting:
        first, n, low, high = waiting.pop()
        if low == high:
            found.append((first, n))
        elif n > 1 and high - low < n:
            left = left_chunks(n)
            middle = low + int(np.searchsorted(numbers[low:high], first + left))
            waiting += [(first + left, n - left, middle, high), (first, left, low, middle)]
    return found


def data_bytes(size_bytes: int, chunks: Sequence[int]) -> int:
    """How many bytes these chunks have; the last of the tensor may be short."""
    if not chunks:
        return 0
    last = chunk_count(size_bytes) - 1
    tail = size_bytes - last * CHUNK_BYTES if chunks[-1] == last else CHUNK_BYTES
    return (len(chunks) - 1) * CHUNK_BYTES + tail


class Tensor(Protocol):
    """The bytes of a tensor, as far as they are at hand: gives elements by their place."""

    def at(self, places: np.ndarray) -> np.ndarray:
        """The elements at these places in memory, counted in elements."""
        ...


class Recorded:
    """All bytes of a tensor; `touched` are the chunks that were asked for."""

    def __init__(self, dtype: DType, memory: np.ndarray) -> None:
        self.dtype = dtype
        self.memory = memory
        self._flat = memory.view(dtype.numpy)
        self._touched: list[np.ndarray] = []

    def at(self, places: np.ndarray) -> np.ndarray:
        self._touched.append(np.unique(places * self.dtype.size_bytes // CHUNK_BYTES))
        found: np.ndarray = self._flat[places]
        return found

    @property
    def touched(self) -> list[int]:
        return [int(n) for n in np.unique(np.concatenate(self._touched))] if self._touched else []


class Served:
    """The opened chunks of a tensor; another one is a VerificationError."""

    def __init__(self, dtype: DType, opening: Opening, name: str) -> None:
        self.dtype = dtype
        self._numbers = np.array(opening.chunks, np.int64)
        self._used = np.zeros(len(opening.chunks), bool)
        self._name = name
        size = len(opening.data) - len(opening.data) % dtype.size_bytes
        self._flat = np.frombuffer(opening.data, dtype.numpy, size // dtype.size_bytes)

    def at(self, places: np.ndarray) -> np.ndarray:
        per_chunk = CHUNK_BYTES // self.dtype.size_bytes
        chunk, within = places // per_chunk, places % per_chunk
        index = np.minimum(self._numbers.searchsorted(chunk), len(self._numbers) - 1)
        if (self._numbers[index] != chunk).any():
            raise VerificationError(f"the proof does not open all of {self._name} that its samples read")
        self._used[index] = True
        place = index * per_chunk + within
        if place.size and int(place.max()) >= len(self._flat):
            raise VerificationError(f"the proof does not open all of {self._name} that its samples read")
        found: np.ndarray = self._flat[place]
        return found

    @property
    def is_used(self) -> bool:
        """Whether every opened chunk was asked for."""
        return bool(self._used.all())


@dataclass(frozen=True)
class Side:
    """The same input of several stages of one kind, whose elements are evaluated side by side.

    ends: up to which lane (the last axis of all coordinates) each port goes.
    """

    ports: Sequence[PortElements]
    ends: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ports[0].layout.shape

    def take(self, coordinates: Sequence[np.ndarray], made: np.ndarray) -> np.ndarray:
        """Elements at coordinates, as `PortElements.take`."""
        if len(self.ports) == 1:
            return self.ports[0].take(coordinates, made)
        found, start = [], 0
        for port, end in zip(self.ports, self.ends, strict=True):
            if start == end:
                continue
            own = [_lanes(c, start, end) for c in coordinates]
            part = port.take(own, _lanes(made, start, end))
            found.append(np.broadcast_to(part, (*part.shape[:-1], end - start)))
            start = end
        return np.concatenate(found, axis=-1)


def _lanes(values: np.ndarray, start: int, end: int) -> np.ndarray:
    return values if values.shape[-1] == 1 else values[..., start:end]


def size_of(stages: Stages, source: Source) -> tuple[DType, int]:
    """dtype and size in bytes of a tensor."""
    dtype, shape, _ = stages.type_of(source)
    return dtype, dtype.size_bytes * math.prod(shape)


def places_in(extents: tuple[int, ...], order: tuple[int, ...], elements: np.ndarray) -> np.ndarray:
    """Where elements, numbered in C order, lie in a tensor whose axes lie in this order."""
    if not extents:
        return np.zeros(len(elements), np.int64)
    axes = np.unravel_index(elements, extents)
    place = np.zeros(len(elements), np.int64)
    for axis in order:
        place = place * extents[axis] + axes[axis]
    return place
