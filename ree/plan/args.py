"""Argument structs of C kernels, filled from Python."""

from __future__ import annotations

from collections.abc import Sequence

import ree_kernels.cpu as cpu
from ree.plan.step import Slot, Step


class Args:
    """A C argument struct under construction, with the addresses of its pointer fields."""

    def __init__(self, type: str) -> None:
        self.type = type
        self.ffi = cpu.kernels().ffi
        self.struct = self.ffi.new(f"{type} *")
        self.pointers: list[tuple[int, Slot]] = []

    @property
    def address(self) -> int:
        return int(self.ffi.cast("uintptr_t", self.struct))

    def field(self, name: str) -> int:
        return self.address + int(self.ffi.offsetof(self.type, name))

    def set(self, **values: int | Sequence[int]) -> None:
        for name, value in values.items():
            if isinstance(value, int):
                setattr(self.struct, name, value)
            else:
                field = getattr(self.struct, name)
                for position, item in enumerate(value):
                    field[position] = item

    def point(self, **slots: Slot) -> None:
        for name, slot in slots.items():
            self.pointers.append((self.field(name), slot))

    def step(
        self, name: str, kernel: str, shape: tuple[int, int], grain: tuple[int, int], scratch_bytes: int = 0
    ) -> Step:
        step = Step(name, self.address, shape, grain, self.pointers, address=cpu.address(kernel))
        step.scratch_bytes = scratch_bytes
        step.keep = (self.struct,)
        return step

    def host(self, step: Step, epilogue: Step | None) -> Step:
        if epilogue is not None:
            step.epilogue = epilogue
            step.epilogue_fields = (self.field("epilogue"), self.field("epilogue_args"))
        return step
