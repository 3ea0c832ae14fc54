"""Recording a run: every result is hashed as soon as it is there, while it is hot; tensors are kept if wanted."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

import ree_kernels.cpu as cpu
from ree.commit.stages import Kind, Stages
from ree.commit.trace import Manifest, tensor_ids
from ree.errors import LimitError
from ree.limits import KEPT_BYTES_MAX
from ree.plan.plan import Plan
from ree.types import DType
from ree_kernels import KernelError, blake3


class Recording:
    """One run of a plan with a commitment to all of its results.

    outputs: (owner, address) of each output's memory; keep: whether the results are kept, for openings;
    keep_bytes_max: of them in memory, beyond which they lie in a file without a name.
    """

    def __init__(
        self,
        plan: Plan,
        stages: Stages,
        outputs: Sequence[tuple[Any, int]],
        keep: bool,
        keep_bytes_max: int = KEPT_BYTES_MAX,
    ) -> None:
        self.plan, self.stages, self._outputs = plan, stages, outputs
        self.roots: list[bytes] = []
        self._arena = _arena(plan, keep_bytes_max) if keep else None

    def run(self, inputs: Sequence[int]) -> None:
        """Run the plan on inputs at these addresses."""
        arena = self._arena.memory if self._arena else None
        self.roots = self.plan.run_committed(inputs, [address for _, address in self._outputs], arena)

    def manifest(
        self, program_id: bytes, sizes: tuple[int, ...], inputs: Sequence[np.ndarray], weight_ids: tuple[bytes, ...]
    ) -> Manifest:
        """What the run's trace binds."""
        given = [blake3.hash(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) for array in inputs]
        read = tensor_ids(self.stages, given, Kind.INPUT)
        return Manifest(program_id, sizes, self.stages, read, weight_ids, tuple(self.roots))

    def results(self) -> list[np.ndarray]:
        """The kept results as arrays of their logical shapes (outputs: copies, since they are the caller's)."""
        assert self._arena is not None
        found = []
        for stage, result in zip(self.stages, self.plan.results, strict=True):
            dtype, shape = stage.type.dtype, [stage.type.extents()[axis] for axis in stage.order]
            if result.slot.buffer.kind == "output":
                owner, address = self._outputs[result.slot.buffer.number]
                array = np.array(array_at(address, dtype, shape, owner))
            else:
                array = array_at(self.plan.kept_address(self._arena.memory, result), dtype, shape, self._arena)
            found.append(array.transpose(np.argsort(stage.order)))
        return found


def array_at(address: int, dtype: DType, shape: Sequence[int], owner: Any) -> np.ndarray:
    """Memory in C order as an array, which keeps its owner alive."""
    size_bytes = math.prod(shape) * dtype.size_bytes
    if size_bytes == 0:
        return np.zeros(shape, dtype.numpy)
    return np.asarray(_Memory(address, size_bytes, owner)).view(dtype.numpy).reshape(shape)


class _Memory:
    """Bytes as NumPy takes them."""

    def __init__(self, address: int, size_bytes: int, owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {"shape": (size_bytes,), "typestr": "|u1", "data": (address, False), "version": 3}


def _arena(plan: Plan, keep_bytes_max: int) -> _Arena | _FileArena:
    """Room for all results of a run; LimitError if there is none."""
    return _Arena(plan) if plan.kept_bytes <= keep_bytes_max else _FileArena(max(64, plan.kept_bytes))


class _Arena:
    """Memory for all results of a run; it goes back to its plan once nothing looks at it any more."""

    def __init__(self, plan: Plan) -> None:
        self._spare = plan.spare
        try:
            self.memory = self._spare.pop() if self._spare else cpu.allocate(max(64, plan.kept_bytes))
        except KernelError:
            raise LimitError(f"no memory for {plan.kept_bytes} bytes of tensors to keep") from None

    def __del__(self) -> None:
        if not self._spare and hasattr(self, "memory"):
            self._spare.append(self.memory)


class _FileArena:
    """The same in a temporary file (TMPDIR says where), whose room goes back once nothing looks at it any more.

    The file has no name, so none is left behind however the process ends.
    """

    def __init__(self, size_bytes: int) -> None:
        try:
            with tempfile.TemporaryFile(prefix="ree-") as opened:
                # a page without room on the disk would end the process when it is written
                os.posix_fallocate(opened.fileno(), 0, size_bytes)
                mapped = mmap.mmap(opened.fileno(), size_bytes)
        except OSError as error:
            reason = f"a temporary file of {size_bytes} bytes: {error.strerror or error}"
            raise LimitError(f"no room for tensors to keep in {reason}") from None
        self._bytes = np.frombuffer(mapped, np.uint8)
        self.memory = cpu.runtime().ffi.cast("char *", self._bytes.ctypes.data)
