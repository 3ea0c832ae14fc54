"""Steps of a plan on a device: one launch each, with the places that its arguments point to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ree.device.images import Wanted, functions
from ree.plan.fuse import Kernel
from ree.plan.step import Buffer, Slot
from ree_kernels.cuda import Device, Launch, fields, source

STATUS = Slot(Buffer("status", 0, 8))  # the plan's word that a kernel sets where it met an index out of range
GRID_Y_MAX = 65535  # also the most along z; x has 2^31 - 1


@dataclass(eq=False)
class Step:
    """One launch: a kernel's text and name, its grid, its arguments, and which of these point where.

    members: graph values computed by this step; function: the kernel as loaded, once it is.
    """

    name: str
    text: str
    kernel: str
    grid: tuple[int, int, int]
    block: int
    args: np.ndarray
    pointers: list[tuple[int, Slot]]
    shared_bytes: int = 0
    members: tuple[int, ...] = ()
    function: Any = None

    def all_pointers(self) -> list[tuple[int, Slot]]:
        return self.pointers

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.text, self.kernel, self.shared_bytes)

    def launch(self) -> Launch:
        """What a device is given, once the function is loaded."""
        return Launch(self.function, self.grid, self.block, self.shared_bytes, self.args)


def load(device: Device, steps: Sequence[Step]) -> None:
    """Compile and load the kernels of those steps that have not theirs."""
    missing = [step for step in steps if step.function is None]
    for step, function in zip(missing, functions(device, [step.wanted for step in missing]), strict=True):
        step.function = function


@dataclass
class Epilogue:
    """A fused kernel to be run on each result of another one.

    text: defines what ree_kernels/cuda/epilogue.cuh describes; names, values and pointers: of its arguments;
    kernel, value: what it computes, for a host that cannot take it.
    """

    text: str
    values: list[int]
    pointers: list[tuple[int, Slot]]
    kernel: Kernel
    value: int


@dataclass
class Args:
    """A kernel's argument struct under construction: `struct` of the file of that name in ree_kernels/cuda/.

    A struct whose last field is `e` carries the arguments of an epilogue: those of `epilogue`, or else of the default
    one, which stores float32 results in rows: point(out=...), set(out_row=elements from row to row).
    """

    file: str
    struct: str
    epilogue: Epilogue | None = None
    values: np.ndarray = field(init=False)
    pointers: list[tuple[int, Slot]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        names = list(fields(self.file, self.struct))
        if names[-1] == "e":
            names.pop()
            own = list(fields("epilogue.cuh", "ree_epilogue_args")) if self.epilogue is None else []
            names += own
        self._position = {name: n for n, name in enumerate(names)}
        extra = self.epilogue.values if self.epilogue else []
        self.values = np.zeros(len(names) + len(extra), np.uint64)
        self.values[len(names) :] = np.array(extra, np.int64).view(np.uint64)
        if self.epilogue is not None:
            self.pointers += [(len(names) + n, slot) for n, slot in self.epilogue.pointers]

    def set(self, **values: int | Sequence[int]) -> None:
        signed = self.values.view(np.int64)
        for name, value in values.items():
            if isinstance(value, int):
                signed[self._position[name]] = value
            else:
                for number, item in enumerate(value):
                    signed[self._position[f"{name}[{number}]"]] = item

    def point(self, **slots: Slot) -> None:
        self.pointers += [(self._position[name], slot) for name, slot in slots.items()]

    def step(
        self,
        name: str,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int = 0,
        defines: Mapping[str, int] | None = None,
    ) -> Step:
        """The launch of a kernel of this file; defines: macros that its text is compiled with."""
        text = module_text(self.file, defines or {}, self.epilogue)
        return Step(name, text, kernel, grid, block, self.values, self.pointers, shared_bytes)


def module_text(file: str, defines: Mapping[str, int], epilogue: Epilogue | None = None) -> str:
    """The text of a module: macros, the epilogue, then a file of kernels."""
    macros = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    return macros + (epilogue.text if epilogue else "") + source(file)
