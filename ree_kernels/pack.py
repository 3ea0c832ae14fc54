"""Packs the constant operand of a matrix product, once, on the threads of the pool."""

from __future__ import annotations

import numpy as np

from ree_kernels import cpu
from ree_kernels.cpu import Kernels

_BOX_BYTES = 1 << 21  # of packed panels: threads end together, and few huge pages are shared


def pack_matrix(kernels: Kernels, source: np.ndarray) -> np.ndarray:
    """A matrix [k, n], with any strides, in the layout of ree_matmul's packed B (64-byte aligned).

    float32 is packed as float32 (b_packed = 1); uint16, the bits of bfloat16, as it is (b_packed = 2).
    """
    k, n = source.shape
    item = source.itemsize
    lib, ffi = kernels.lib, kernels.ffi
    if source.dtype == np.uint16:
        packed = uninitialised(-(-int(lib.ree_pack_bf16_words(n, k)) // 2)).view(np.uint16)
        args, kind, box = ffi.new("ree_pack_bf16_args *"), "uint16_t *", "ree_pack_bf16_box"
    else:
        packed = uninitialised(int(lib.ree_pack_b_floats(n, k)))
        args, kind, box = ffi.new("ree_pack_b_args *"), "float *", "ree_pack_b_box"
    args.packed = ffi.cast(kind, packed.ctypes.data)
    args.source = ffi.cast(kind, source.ctypes.data)
    args.n, args.k = n, k
    args.source_k, args.source_col = (stride // item for stride in source.strides)
    panels = max(1, _BOX_BYTES // (item * max(k, 1) * kernels.panel_cols))
    cpu.run_kernel(kernels, box, args, (1, n), (1, panels * kernels.panel_cols))
    return packed


def uninitialised(floats: int) -> np.ndarray:
    """Memory aligned to 64 bytes, in huge pages where it is large."""
    memory = cpu.allocate(max(64, floats * 4))
    return np.frombuffer(cpu.runtime().ffi.buffer(memory, floats * 4), np.float32)
