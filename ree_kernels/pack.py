"""Packs the constant operand of a matrix product, once, on the threads of the pool."""

from __future__ import annotations

import numpy as np

from ree_kernels import cpu
from ree_kernels.cpu import Kernels

_BOX_BYTES = 1 << 21  # of packed panels: threads end together, and few huge pages are shared


def pack_matrix(kernels: Kernels, source: np.ndarray) -> np.ndarray:
    """The float32 matrix [k, n], with any strides, in the layout of ree_matmul's packed B (64-byte aligned)."""
    k, n = source.shape
    packed = uninitialised(int(kernels.lib.ree_pack_b_floats(n, k)))
    args = kernels.ffi.new("ree_pack_b_args *")
    args.packed = kernels.ffi.cast("float *", packed.ctypes.data)
    args.source = kernels.ffi.cast("const float *", source.ctypes.data)
    args.n, args.k = n, k
    args.source_k, args.source_col = source.strides[0] // 4, source.strides[1] // 4
    panels = max(1, _BOX_BYTES // (4 * max(k, 1) * kernels.panel_cols))
    cpu.run_kernel(kernels, "ree_pack_b_box", args, (1, n), (1, panels * kernels.panel_cols))
    return packed


def uninitialised(floats: int) -> np.ndarray:
    """Memory aligned to 64 bytes, in huge pages where it is large."""
    memory = cpu.allocate(max(64, floats * 4))
    return np.frombuffer(cpu.runtime().ffi.buffer(memory, floats * 4), np.float32)
