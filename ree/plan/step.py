"""Steps, and the buffers that they read and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ree.plan.fuse import Kernel


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """Memory of one value: an "input" or "output" of the call, a "constant", "packed" weights,
    or a place in the "arena"; number: which one."""

    kind: str
    number: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a buffer."""

    buffer: Buffer
    offset_bytes: int = 0


@dataclass(eq=False)
class Step:
    """One kernel call: its arguments, where its pointers go, and how its boxes are cut.

    pointers: (address of an 8-byte pointer in the arguments, what it points to);
    epilogue: a JIT step run by this kernel, and the addresses of the two fields that name it.
    """

    name: str
    args: int
    shape: tuple[int, int]
    grain: tuple[int, int]
    pointers: list[tuple[int, Slot]]
    address: int = 0
    kernel: Kernel | None = None
    scratch_bytes: int = 0
    epilogue: Step | None = None
    epilogue_fields: tuple[int, int] = (0, 0)
    hooks: list[tuple[Step, int, int]] = field(default_factory=list)
    status: int = 0  # address of the pointer to the plan's status word, if the kernel has one
    keep: tuple[Any, ...] = ()
    members: tuple[int, ...] = ()  # graph values computed by this step

    @staticmethod
    def jit(
        name: str, kernel: Kernel, slots: Sequence[Slot | None], shape: tuple[int, int], grain: tuple[int, int]
    ) -> Step:
        """A step of a JIT-compiled kernel; its address is known once the plan is compiled.

        A slot that is None is filled by the kernel that runs this one as a hook.
        """
        pointers = np.zeros(max(1, len(slots)), np.uint64)
        params = np.array(kernel.integers() or [0], np.int64)
        args = np.zeros(3, np.uint64)
        args[0], args[1] = pointers.ctypes.data, params.ctypes.data
        base = pointers.ctypes.data
        places = [(base + 8 * n, slot) for n, slot in enumerate(slots) if slot is not None]
        step = Step(name, args.ctypes.data, shape, grain, places, kernel=kernel)
        step.status = args.ctypes.data + 16
        step.keep = (pointers, params, args)
        return step

    def nested(self) -> list[Step]:
        """The JIT steps that run inside this one."""
        return [*([self.epilogue] if self.epilogue else []), *(step for step, _, _ in self.hooks)]

    def all_pointers(self) -> list[tuple[int, Slot]]:
        return [*self.pointers, *(p for step in self.nested() for p in step.pointers)]


@dataclass(frozen=True, slots=True)
class Result:
    """Where the result of a group lies once `after` steps have run, until the next one runs."""

    value: int
    slot: Slot
    after: int
