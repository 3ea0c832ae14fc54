"""Both sides of Freivalds' check of a product of bytes, on the threads of the pool (arithmetic: c/freivalds.h)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ree_kernels import cpu
from ree_kernels.cpu import Kernels
from ree_kernels.matmul_i8 import matmul_i8_plan

COMBINATIONS = 2
_PARTS = (0, 21, 42)  # where the parts of a number below 2^61 begin
_DIGITS = 16  # rows of bytes: 8 of each combination
_DIGIT_COLS = 65_793  # as many products 255 * -128 stay in 32 bits
_BOXES = 4  # of a thread: threads end together


def both_sides(
    kernels: Kernels, r: np.ndarray, x: np.ndarray, packed: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(r x) w and r y modulo 2^61 - 1, uint64 [2, N] each.

    r: uint64 [2, T], below 2^61 - 1; x: int8 [T, K], packed: w int8 [K, N] as `pack_matrix_i8` packs it for `kernels`,
    y: int32 [T, N]; neighbours in a row of x and of y must be neighbours in memory.
    """
    (_, k), n = x.shape, y.shape[1]
    splits = max(1, -(-k // _DIGIT_COLS))
    parts = parts_of(r)
    digits = np.zeros((_DIGITS * splits, k), np.uint8)
    sums = np.empty((_DIGITS * splits, n), np.int32)
    u, left, right = (np.empty((COMBINATIONS, cols), np.uint64) for cols in (k, n, n))
    table = _Table(kernels)
    block = int(kernels.lib.ree_fold_block_cols())
    table.add("ree_fold_rows", _fold(kernels, parts, x, u, digits), (1, k), (1, _grain(k, block)), 0)
    plan = matmul_i8_plan(kernels, _DIGITS * splits, n, k, cpu.threads())
    grain = plan.row_grain, plan.col_grain
    product = _product(kernels, digits, packed, sums)
    table.add("ree_matmul_i8", product, (_DIGITS * splits, n), grain, plan.scratch_bytes)
    join = kernels.ffi.new("ree_join_digits_args *")
    join.sums, join.out = _pointer(kernels, sums, "int32_t *"), _pointer(kernels, left, "uint64_t *")
    join.splits, join.cols = splits, n
    table.add("ree_join_digits", join, (1, n), (1, _grain(n, block)), 0)
    table.add("ree_fold_rows", _fold(kernels, parts, y, right, None), (1, n), (1, _grain(n, block)), 0)
    table.run()
    return left, right


def parts_of(r: np.ndarray) -> np.ndarray:
    """The parts of numbers below 2^61, uint64 [2, T], as `ree_fold_rows` reads them: int32 [T, 2, 3]."""
    parts = np.stack([(r >> np.uint64(shift)) & np.uint64((1 << 21) - 1) for shift in _PARTS], axis=-1)
    return np.ascontiguousarray(parts.transpose(1, 0, 2), np.int32)


class _Table:
    """Steps that run one after another."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._rows: list[tuple[Any, ...]] = []
        self._keep: list[Any] = []

    def add(self, name: str, args: Any, shape: tuple[int, int], grain: tuple[int, int], scratch_bytes: int) -> None:
        ffi = cpu.runtime().ffi
        address = ffi.cast("void *", int(self._kernels.ffi.cast("uintptr_t", args)))
        kernel = ffi.cast("ree_kernel", self._kernels.address(name))
        self._rows.append((kernel, address, *shape, *grain, scratch_bytes))
        self._keep.append(args)

    def run(self) -> None:
        cpu.run(cpu.runtime().ffi.new("ree_step[]", self._rows), len(self._rows))


def _fold(kernels: Kernels, parts: np.ndarray, v: np.ndarray, out: np.ndarray, digits: np.ndarray | None) -> Any:
    args = kernels.ffi.new("ree_fold_rows_args *")
    args.parts, args.v = _pointer(kernels, parts, "int32_t *"), _pointer(kernels, v, "void *")
    args.v_is_i8, args.v_row = v.itemsize == 1, v.strides[0] // v.itemsize
    args.rows, args.cols = v.shape
    args.out, args.digit_cols = _pointer(kernels, out, "uint64_t *"), _DIGIT_COLS
    if digits is not None:
        args.digits = _pointer(kernels, digits, "uint8_t *")
    return args


def _product(kernels: Kernels, digits: np.ndarray, packed: np.ndarray, sums: np.ndarray) -> Any:
    args = kernels.ffi.new("ree_matmul_i8_args *")
    args.a, args.b = _pointer(kernels, digits, "int8_t *"), _pointer(kernels, packed, "int8_t *")
    args.c, args.a_row, args.c_row = _pointer(kernels, sums, "int32_t *"), digits.shape[1], sums.shape[1]
    (args.m, args.k), args.n, args.a_unsigned = digits.shape, sums.shape[1], 1
    return args


def _pointer(kernels: Kernels, array: np.ndarray, kind: str) -> Any:
    return kernels.ffi.cast(kind, array.ctypes.data)


def _grain(cols: int, block: int) -> int:
    """Columns of a box: whole blocks, a few boxes for each thread."""
    return max(1, -(-cols // (block * _BOXES * cpu.threads()))) * block
