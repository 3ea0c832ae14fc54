"""The operands of a step, read as one range of bytes each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ree.commit.elements import At
from ree.errors import VerificationError
from ree.types import DType

Range = Callable[[int, int], bytes]  # (first byte, number of bytes) -> those bytes of a tensor

SPAN_BYTES_MAX = 1 << 12  # of one operand of a step: 256 elements of 8 bytes, and what rounding to leaves adds


def by_range(read: Range, dtype: DType) -> At:
    """Elements of a tensor of which `read` gives bytes: from the first to the last of those asked for."""
    size_bytes = dtype.size_bytes

    def at(places: np.ndarray) -> np.ndarray:
        first, last = int(places.min()), int(places.max())
        span = (last - first + 1) * size_bytes
        if span > SPAN_BYTES_MAX:
            raise VerificationError(f"a step reads a span of {span} bytes")
        data = np.frombuffer(read(first * size_bytes, span), dtype.numpy)
        return data[places - first]

    return at
