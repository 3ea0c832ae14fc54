"""Packs the constant matrices of a mixture of experts, one after another, on the threads of the pool."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ree_kernels import cpu
from ree_kernels.cpu import Kernels
from ree_kernels.pack import uninitialised

_BOX_BYTES = 1 << 21  # of packed panels, as for a single matrix


def pack_matrices(
    kernels: Kernels, matrices: Iterable[np.ndarray], shape: tuple[int, int, int], bf16: bool = False
) -> np.ndarray:
    """Matrices [k, n] with any strides, shape[0] of them, as `ree_experts` reads them.

    shape: (number of matrices, k, n); their elements are float32, or bfloat16 as uint16. No matrix is asked for before
    the one before it is packed.
    """
    count, k, n = shape
    lib, itemsize = kernels.lib, 2 if bf16 else 4
    stride_bytes = itemsize * int(lib.ree_pack_bf16_words(n, k) if bf16 else lib.ree_pack_b_floats(n, k))
    packed = uninitialised(-(-count * stride_bytes // 4))
    kernel, name = ("ree_pack_bf16_box", "ree_pack_bf16_args") if bf16 else ("ree_pack_b_box", "ree_pack_b_args")
    args = kernels.ffi.new(f"{name} *")
    args.n, args.k = n, k
    panels = max(1, _BOX_BYTES // (itemsize * max(k, 1) * kernels.panel_cols))
    for number, matrix in enumerate(matrices):
        args.packed = kernels.ffi.cast("void *", packed.ctypes.data + number * stride_bytes)
        args.source = kernels.ffi.cast("void *", matrix.ctypes.data)
        args.source_k, args.source_col = (stride // itemsize for stride in matrix.strides)
        cpu.run_kernel(kernels, kernel, args, (1, n), (1, panels * kernels.panel_cols))
    return packed


def cut(
    kernels: Kernels, rows: int, shape: tuple[int, int, int], threads: int, bf16: bool = False
) -> tuple[int, int, int]:
    """Rows and columns of a box, and its bytes of scratch, for a `ree_experts` step on so many threads.

    shape: (experts, k, n). Columns are split first: rows that share an expert stay together, and its weights are
    read once. Rows are split where columns alone keep no thread busy, as when a few tokens are decoded.
    """
    experts, k, n = shape
    each = -(-rows // max(1, experts))
    col_grain = kernels.matmul_plan(each, n, k, threads, True).col_grain
    row_boxes = -(-2 * threads // max(1, -(-n // col_grain))) if threads > 1 else 1
    row_grain = max(1, min(-(-rows // row_boxes), int(kernels.lib.ree_experts_block())))
    scratch = kernels.lib.ree_experts_scratch_bytes(row_grain, min(n, col_grain), k, experts, packing(kernels, bf16))
    return row_grain, col_grain, int(scratch)


def packing(kernels: Kernels, bf16: bool) -> int:
    """How ree_experts is told in which form its matrices are packed."""
    return int(kernels.lib.REE_PACKED_BF16 if bf16 else kernels.lib.REE_PACKED)
