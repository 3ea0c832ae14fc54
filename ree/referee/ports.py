"""The inputs of a stage's program as single elements: from memory, or from openings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ree.errors import VerificationError
from ree.plan.layout import Layout
from ree.types import DType

Range = Callable[[int, int], bytes]  # (first byte, number of bytes) -> those bytes of a tensor

SPAN_BYTES_MAX = 1 << 12  # of one operand of a step: 256 elements of 8 bytes, and what rounding to leaves adds


@dataclass(frozen=True)
class PortElements:
    """An input seen through its layout; `read` gives bytes of the tensor behind it."""

    layout: Layout
    dtype: DType
    read: Range

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    def take(self, coordinates: Sequence[np.ndarray], made: np.ndarray) -> np.ndarray:
        """Elements at coordinates, read as one range of bytes; 0 where not `made`, and nothing is read for those."""
        place = np.array([self.layout.offset], np.int64)
        for coordinate, stride in zip(coordinates, self.layout.strides, strict=True):
            place = place + coordinate * stride
        place, made = np.broadcast_arrays(place, made)
        dtype = np.dtype(self.dtype.numpy)
        found = np.zeros(place.shape, dtype)
        if made.any():
            first, last = int(place[made].min()), int(place[made].max())
            size = (last - first + 1) * dtype.itemsize
            if size > SPAN_BYTES_MAX:
                raise VerificationError(f"a step reads a span of {size} bytes")
            data = np.frombuffer(self.read(first * dtype.itemsize, size), dtype)
            found[made] = _plain(data[place[made] - first])
        return found


@dataclass(frozen=True)
class MemoryElements:
    """An input in memory: all bytes of the tensor behind it, as they are committed to."""

    layout: Layout
    dtype: DType
    memory: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    def take(self, coordinates: Sequence[np.ndarray], made: np.ndarray) -> np.ndarray:
        """Elements at coordinates; anything where not `made`."""
        place = np.array([self.layout.offset], np.int64)
        for coordinate, stride in zip(coordinates, self.layout.strides, strict=True):
            place = place + coordinate * stride
        flat = self.memory.view(self.dtype.numpy)
        return _plain(flat[np.where(made, place, self.layout.offset)])


def _plain(stored: np.ndarray) -> np.ndarray:
    """Elements of memory as kernels take them: a byte that is neither 0 nor 1 is a bool that is true."""
    return stored.view(np.uint8) != 0 if stored.dtype == bool else stored
