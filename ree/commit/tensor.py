"""Tensor ids: what a commitment to one tensor binds.

The data root is plain BLAKE3 of the bytes (`b3sum` prints it); the id adds dtype, shape and the
order in which the axes lie in memory, so that the same bytes under another shape are another tensor.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import blake3

from ree.types import DType

VERSION = 1
ID_CONTEXT = "ree v1 tensor"


def header(dtype: DType, shape: Sequence[int], order: Sequence[int]) -> bytes:
    """Canonical bytes of what a tensor is: version, dtype, rank, axis order, extents, length in bytes.

    order: the axes from the outermost in memory to the innermost. Bytes u8 each, extents and length u64, little endian.
    """
    length = dtype.size_bytes
    for extent in shape:
        length *= extent
    head = bytes([VERSION, list(DType).index(dtype), len(shape), *order])
    return head + struct.pack(f"<{len(shape) + 1}Q", *shape, length)


def tensor_id(dtype: DType, shape: Sequence[int], data_root: bytes, order: Sequence[int] | None = None) -> bytes:
    """The id (32 bytes) of a tensor whose bytes have this data root; order: None for C order."""
    head = header(dtype, shape, range(len(shape)) if order is None else order)
    return blake3.blake3(head + data_root, derive_key_context=ID_CONTEXT).digest()
