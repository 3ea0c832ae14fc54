"""The inputs of a stage's program as single elements of committed tensors, wherever those are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ree.plan.layout import Layout
from ree.types import DType

At = Callable[[np.ndarray], np.ndarray]  # places in a tensor's bytes, counted in elements -> the elements there


@dataclass(frozen=True)
class PortElements:
    """An input seen through its layout; `at` gives elements of the tensor behind it (never asked for none)."""

    layout: Layout
    dtype: DType
    at: At

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    def take(self, coordinates: Sequence[np.ndarray], made: np.ndarray) -> np.ndarray:
        """Elements at coordinates; 0 where not `made`, and nothing is asked for there."""
        place = np.array([self.layout.offset], np.int64)
        for coordinate, stride in zip(coordinates, self.layout.strides, strict=True):
            if stride:
                place = place + coordinate * stride
        if place.size and made.all():
            return plain(self.at(place))
        place, made = np.broadcast_arrays(place, made)
        found = np.zeros(place.shape, self.dtype.numpy)
        if made.any():
            found[made] = plain(self.at(place[made]))
        return found


def in_memory(memory: np.ndarray, dtype: DType) -> At:
    """Of a tensor all of whose bytes (uint8) are here."""
    flat = memory.view(dtype.numpy)
    return lambda places: flat[places]  # type: ignore[no-any-return]


def plain(stored: np.ndarray) -> np.ndarray:
    """Elements of memory as kernels take them: a byte that is neither 0 nor 1 is a bool that is true."""
    return stored.view(np.uint8) != 0 if stored.dtype == bool else stored
