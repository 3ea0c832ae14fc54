"""Steps that hash what other steps have just written, on the same threads, while it is hot."""

from __future__ import annotations

import numpy as np

import ree_kernels.cpu as cpu
from ree.plan.args import Args
from ree.plan.step import Slot, Step
from ree_kernels.blake3 import hash as blake3

DIGEST_BYTES = 32
_GROUP_CHUNKS = 16  # of 1024 bytes; a group fills a vector of the widest kernels
_BOX_GROUPS = 16


def hash_steps(slot: Slot, size_bytes: int, digest: np.ndarray) -> list[Step]:
    """The steps that write the BLAKE3 hash of memory into `digest` (32 bytes), which they do not own."""
    if size_bytes == 0:
        digest[:] = np.frombuffer(blake3(b""), np.uint8)
        return []
    lib, ffi = cpu.kernels().lib, cpu.kernels().ffi
    groups = int(lib.ree_blake3_group_count(size_bytes, _GROUP_CHUNKS))
    values = np.zeros(groups * DIGEST_BYTES, np.uint8)
    args = Args("ree_blake3_args")
    args.point(data=slot)
    args.set(n_bytes=size_bytes, first_chunk=0, group_chunks=_GROUP_CHUNKS, out_bytes=DIGEST_BYTES)
    args.struct.cvs = ffi.cast("uint8_t *", values.ctypes.data)
    args.struct.out = ffi.cast("uint8_t *", digest.ctypes.data)
    lib.ree_blake3_set_mode(ffi.addressof(args.struct, "mode"), ffi.NULL, 0)
    many = args.step("hash", "ree_blake3_groups", (1, groups), (1, _BOX_GROUPS))
    one = args.step("hash root", "ree_blake3_root", (1, 1), (1, 1), int(lib.ree_blake3_root_scratch_bytes(groups)))
    many.keep = (*many.keep, values)
    return [many, one]
