"""Packs the constant operand of an exact product of bytes, and says how the product is cut into boxes.

A step of `ree_matmul_i8` over C [m, n], int32, exact modulo 2^32:

    packed = pack_matrix_i8(kernels, b)                        # b int8 [k, n], any strides; once
    args = kernels.ffi.new("ree_matmul_i8_args *")             # a, b = packed, c, a_row, c_row, m, n, k, a_unsigned
    plan = matmul_i8_plan(kernels, m, n, k, n_threads)         # row_grain, col_grain, scratch_bytes
    address = kernels.address("ree_matmul_i8")
"""

from __future__ import annotations

import numpy as np

from ree_kernels import cpu
from ree_kernels.cpu import Kernels, MatmulPlan
from ree_kernels.pack import uninitialised

_PACK_BOX_BYTES = 1 << 20  # of packed panels: threads end together, and few huge pages are shared
_FEW_BOX_BYTES = 1 << 20  # of packed panels, where rows are few: more would not pay for copying A less often
_FEW_BOXES = 4  # of a thread at least: threads end together
_ROW_TILES = 20  # of a box: its rows of A, a chunk of k at a time, stay in the second cache
_BLOCK_COLS = 512


def pack_matrix_i8(kernels: Kernels, source: np.ndarray) -> np.ndarray:
    """The int8 matrix [k, n], with any strides, in the layout of ree_matmul_i8's packed B.

    uint8 [ree_pack_b_i8_bytes(n, k)], aligned to 64 bytes; packed for the instruction set of `kernels` alone.
    """
    k, n = source.shape
    n_bytes = packed_bytes_i8(kernels, k, n)
    packed = uninitialised(-(-n_bytes // 4)).view(np.uint8)[:n_bytes]
    args = kernels.ffi.new("ree_pack_b_i8_args *")
    args.packed = kernels.ffi.cast("int8_t *", packed.ctypes.data)
    args.source = kernels.ffi.cast("const int8_t *", source.ctypes.data)
    args.n, args.k = n, k
    args.source_k, args.source_col = source.strides
    panel_cols = int(kernels.lib.ree_panel_i8_cols())
    panels = max(1, _PACK_BOX_BYTES // (panel_cols * max(k, 1)))
    cpu.run_kernel(kernels, "ree_pack_b_i8_box", args, (1, n), (1, panels * panel_cols))
    return packed


def packed_bytes_i8(kernels: Kernels, k: int, n: int) -> int:
    """The bytes of a packed matrix [k, n]."""
    return int(kernels.lib.ree_pack_b_i8_bytes(n, k))


def unpack_column_i8(kernels: Kernels, packed: np.ndarray, k: int, col: int) -> np.ndarray:
    """Column `col` of a packed matrix with k rows: int8 [k]."""
    cols = int(kernels.lib.ree_panel_i8_cols())
    words = packed.view(np.int8).reshape(-1, cols, 4)  # a panel is a row of sums, then one for each four k's
    steps = -(-k // 4)
    first = col // cols * (steps + 1) + 1
    return words[first : first + steps, col % cols].reshape(-1)[:k]


def matmul_i8_plan(kernels: Kernels, m: int, n: int, k: int, n_threads: int) -> MatmulPlan:
    """How to cut C [m, n] of a `ree_matmul_i8` step into boxes for this many threads; bits do not depend on it."""
    tile_rows, panel_cols = int(kernels.lib.ree_tile_i8_rows()), int(kernels.lib.ree_panel_i8_cols())
    panels = _ceil(n, panel_cols)
    if m <= tile_rows:
        row_grain = max(m, 1)
        boxes = max(_ceil(panels * panel_cols * k, _FEW_BOX_BYTES), _FEW_BOXES * n_threads)
    else:
        row_tiles = _ceil(m, tile_rows)
        row_grain = _ceil(m, _ceil(row_tiles, _ROW_TILES))
        # columns are split first, since every block of rows reads all of B again
        boxes = max(_ceil(n, _BLOCK_COLS), _ceil(2 * n_threads, _ceil(m, row_grain)))
    boxes = _ceil(boxes, n_threads) * n_threads
    col_grain = _ceil(panels, min(boxes, panels)) * panel_cols
    return MatmulPlan(row_grain, col_grain, int(kernels.lib.ree_matmul_i8_scratch_bytes(row_grain, k)))


def _ceil(a: int, b: int) -> int:
    """a / b rounded up, at least 1."""
    return max(1, -(-a // b))
