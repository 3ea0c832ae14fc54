"""Freivalds' check of an exact product of bytes, y = x w (Freivalds, 1979).

For a random vector r the two sides of (r x) w = r y cost one product of a vector by each matrix. Everything is exact:
the sums of y fit 32 bits (`check_range`), so they are compared as integers, modulo the prime p = 2^61 - 1. If y is
wrong, some column of y - x w is not zero, nor is it zero modulo p, since its numbers are smaller than p; then
a vector r with uniform numbers below p gives zero for that column with probability 1 / p. Two independent vectors
miss a wrong y with probability p^-2, which is 2^-122 -- provided that they were drawn after x, w and y were fixed: the
seed must be derived from commitments to all three.

Faster than with wide multiplications, (r x) w is itself a product of bytes: those of r x, as rows, by w.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ree.errors import InputError, LimitError, VerificationError
from ree.freivalds.field import draw
from ree_kernels import cpu
from ree_kernels.cpu import Kernels
from ree_kernels.freivalds import COMBINATIONS, both_sides
from ree_kernels.matmul_i8 import pack_matrix_i8, packed_bytes_i8, unpack_column_i8

_SUM_MAX = (1 << 31) - 1
K_MAX_ANY = _SUM_MAX // (128 * 128)  # 131,071: sums of so many products of any int8 numbers fit int32
K_MAX = _SUM_MAX // (128 * 127)  # 132,104: of so many products, if -128 is in one operand at most


class PackedMatrix(NamedTuple):
    """w, int8 [k, n], as `ree_kernels.matmul_i8.pack_matrix_i8` packs it for the kernels that check."""

    data: np.ndarray
    k: int
    n: int


def check_product(
    x: np.ndarray, w: np.ndarray | PackedMatrix, y: np.ndarray, seed: bytes, *, kernels: Kernels | None = None
) -> None:
    """VerificationError unless y is the product of x and w; a wrong y passes with probability 2^-122.

    x: int8 [T, K], w: int8 [K, N], y: int32 [T, N], with any strides; a w that is checked more than once had better
    be packed. seed: 32 bytes that depend on commitments to x, w and y. The error names a wrong element.
    InputError: dtypes or shapes that do not fit; LimitError: a K at which the sums may leave int32.
    """
    k = kernels or cpu.kernels()
    n = _check_shapes(k, x, w, y)
    check_range(x, w)
    x, y = _by_rows(x), _by_rows(y)
    packed = w.data if isinstance(w, PackedMatrix) else pack_matrix_i8(k, w)
    left, right = both_sides(k, draw(seed, COMBINATIONS, len(x)), x, packed, y)
    wrong = (left != right).any(axis=0)
    if wrong.any():
        _refuse(x, unpack_column_i8(k, packed, x.shape[1], int(wrong.argmax())), y, int(wrong.argmax()), n)


def check_range(x: np.ndarray, w: np.ndarray | PackedMatrix) -> None:
    """LimitError if a sum of x w may leave int32, where it would wrap: K is 132,104 at most.

    From 131,072 on, one of the two must be without -128; of a packed w this is not known, so x must.
    """
    k = x.shape[1]
    if k > K_MAX:
        raise LimitError(f"Freivalds' check takes products of at most {K_MAX} terms, not {k}")
    if k > K_MAX_ANY and (x == -128).any() and (isinstance(w, PackedMatrix) or (w == -128).any()):
        raise LimitError(f"sums of {k} products may leave int32 if -128 is in both operands: at most {K_MAX_ANY}")


def _check_shapes(kernels: Kernels, x: np.ndarray, w: np.ndarray | PackedMatrix, y: np.ndarray) -> int:
    """N, if everything fits."""
    if x.ndim != 2 or y.ndim != 2 or x.dtype != np.int8 or y.dtype != np.int32:
        raise InputError(f"a product of bytes is int8 [T, K] to int32 [T, N], not {_type(x)} to {_type(y)}")
    if not isinstance(w, PackedMatrix) and (w.ndim != 2 or w.dtype != np.int8):
        raise InputError(f"the second operand is int8 [K, N], not {_type(w)}")
    k, n = (w.k, w.n) if isinstance(w, PackedMatrix) else w.shape
    if x.shape[1] != k or y.shape != (x.shape[0], n):
        raise InputError(f"int8 {list(x.shape)} by int8 [{k}, {n}] does not give {_type(y)}")
    if isinstance(w, PackedMatrix):
        size = packed_bytes_i8(kernels, k, n)
        if w.data.dtype != np.uint8 or w.data.shape != (size,) or not w.data.flags.c_contiguous:
            raise InputError(f"{_type(w.data)} is no packed matrix [{k}, {n}] of these kernels")
    return n


def _type(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _by_rows(array: np.ndarray) -> np.ndarray:
    """The same numbers with the neighbours of a row side by side."""
    is_plain = array.strides[1] == array.itemsize and array.flags.aligned
    return array if is_plain else np.ascontiguousarray(array)


def _refuse(x: np.ndarray, column: np.ndarray, y: np.ndarray, col: int, n: int) -> None:
    """The error for column `col` of y, which is not x by that column of w."""
    true = x.astype(np.int64) @ column.astype(np.int64)
    row = int((true != y[:, col]).argmax())
    raise VerificationError(
        f"the product [{len(x)}, {n}] is wrong: element [{row}, {col}] is {true[row]}, not {y[row, col]}"
    )
