"""Packs the constant matrices of a mixture of experts, one after another, on the threads of the pool."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ree_kernels import cpu
from ree_kernels.cpu import Kernels
from ree_kernels.pack import uninitialised

_BOX_BYTES = 1 << 21  # of packed panels, as for a single matrix


def pack_matrices(kernels: Kernels, matrices: Iterable[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Matrices of float32 [k, n] with any strides, shape[0] of them, as `ree_experts` reads them.

    shape: (number of matrices, k, n). At most one matrix is asked for before the last one is packed.
    """
    count, k, n = shape
    floats = int(kernels.lib.ree_pack_b_floats(n, k))
    packed = uninitialised(count * floats)
    args = kernels.ffi.new("ree_pack_b_args *")
    args.n, args.k = n, k
    panels = max(1, _BOX_BYTES // (4 * max(k, 1) * kernels.panel_cols))
    for number, matrix in enumerate(matrices):
        args.packed = kernels.ffi.cast("float *", packed[number * floats :].ctypes.data)
        args.source = kernels.ffi.cast("const float *", matrix.ctypes.data)
        args.source_k, args.source_col = matrix.strides[0] // 4, matrix.strides[1] // 4
        cpu.run_kernel(kernels, "ree_pack_b_box", args, (1, n), (1, panels * kernels.panel_cols))
    return packed


def cut(kernels: Kernels, rows: int, shape: tuple[int, int, int], threads: int) -> tuple[int, int, int]:
    """Rows and columns of a box, and its bytes of scratch, for a `ree_experts` step on so many threads.

    shape: (experts, k, n). Columns are split first: rows that share an expert stay together, and its weights are
    read once. Rows are split where columns alone keep no thread busy, as when a few tokens are decoded.
    """
    experts, k, n = shape
    each = -(-rows // max(1, experts))
    col_grain = kernels.matmul_plan(each, n, k, threads, True).col_grain
    row_boxes = -(-2 * threads // max(1, -(-n // col_grain))) if threads > 1 else 1
    row_grain = max(1, min(-(-rows // row_boxes), int(kernels.lib.ree_experts_block())))
    scratch = int(kernels.lib.ree_experts_scratch_bytes(row_grain, min(n, col_grain), k, experts))
    return row_grain, col_grain, scratch
