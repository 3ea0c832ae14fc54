"""Steps that hash what other steps have just written, on the same threads, while it is hot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import ree_kernels.cpu as cpu
from ree.plan.args import Args
from ree.plan.step import Slot, Step
from ree_kernels import blake3

_BOX_GROUPS = 4  # small enough for the threads to end together on a tensor of some hundred kilobytes


class Hashing:
    """The BLAKE3 hashes of several places in memory.

    `step` gives the step that must run while a place holds what is to be hashed; the steps of `finish` may come
    once at the end, when the memory has long been used again. digests: uint8 [places, 32], written by them.
    """

    def __init__(self, places: int) -> None:
        self.digests = np.zeros((places, blake3.CV_BYTES), np.uint8)
        self._open: list[Args] = []
        self._scratch_bytes = 0

    def step(self, number: int, slot: Slot, size_bytes: int) -> list[Step]:
        """The step that hashes place `number`; none if it is empty."""
        lib, ffi = cpu.kernels().lib, cpu.kernels().ffi
        digest = self.digests[number]
        if size_bytes == 0:
            digest[:] = np.frombuffer(blake3.hash(b""), np.uint8)
            return []
        groups = int(lib.ree_blake3_group_count(size_bytes, blake3.GROUP_CHUNKS))
        values = np.zeros(groups * blake3.CV_BYTES, np.uint8)
        args = Args("ree_blake3_args")
        args.point(data=slot)
        args.set(n_bytes=size_bytes, first_chunk=0, group_chunks=blake3.GROUP_CHUNKS, out_bytes=blake3.CV_BYTES)
        args.struct.cvs = ffi.cast("uint8_t *", values.ctypes.data)
        args.struct.out = ffi.cast("uint8_t *", digest.ctypes.data)
        lib.ree_blake3_set_mode(ffi.addressof(args.struct, "mode"), ffi.NULL, 0)
        if groups == 1:
            return [args.step("hash", "ree_blake3_root", (1, 1), (1, 1))]
        self._open.append(args)
        self._scratch_bytes = max(self._scratch_bytes, int(lib.ree_blake3_root_scratch_bytes(groups)))
        step = args.step("hash", "ree_blake3_groups", (1, groups), (1, _BOX_GROUPS))
        step.keep = (*step.keep, values)
        return [step]

    def finish(self) -> Sequence[Step]:
        """The step that joins the parts of every place that has several."""
        if not self._open:
            return []
        table = np.array([args.address for args in self._open], np.uint64)
        count = len(self._open)
        step = Step("hash", table.ctypes.data, (count, 1), (1, 1), [], address=cpu.address("ree_blake3_roots"))
        step.scratch_bytes = self._scratch_bytes
        step.keep = (table, *self._open)
        return [step]
