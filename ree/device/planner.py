"""Static graph -> DevicePlan: the same groups over the same buffers as on a processor, as launches."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ree.device import schedules
from ree.device.plan import DevicePlan
from ree.device.step import STATUS, Epilogue, Step
from ree.device.weights import DeviceWeights
from ree.element import cuda as printer
from ree.element import functions
from ree.element.llvm import Layout as KernelLayout
from ree.element.program import Program, const_value
from ree.plan.fuse import Kernel
from ree.plan.planning import Planning
from ree.plan.step import Slot
from ree_kernels.cuda import Device

_FLAT_BLOCK = 256
_SHORT_FOLD = 16  # a fold of up to so many elements is a thread's own where there are many of them
_MANY = 4096


@dataclass
class DevicePlanner(Planning[Step]):
    """Plans one static graph for one device; weights: its constants there."""

    weights: DeviceWeights

    @property
    def device(self) -> Device:
        return self.weights.device

    def run(self) -> DevicePlan:
        """The plan, not yet compiled."""
        with functions.narrow_first(self.device.slow_doubles):
            self.emit()
        return DevicePlan(self.graph, self.steps, self.results, self.weights)

    def scheduled(self, value: int, epilogue: Epilogue | None) -> list[Step]:
        return schedules.scheduled(self, value, epilogue)

    def from_definition(self, value: int) -> Step:
        """The step that computes an operator as its element program says, a thread for each result."""
        order, _ = self.places.orders[value]
        return self.jit_step(self.kernel(value, order), value)

    def jit_step(self, kernel: Kernel, value: int, out: Slot | None = None) -> Step:
        slots = [*(self.pointer(port) for port in kernel.ports), out or self.pointer(value)]
        node = self.graph.node_of(value)
        return fused_step(node.op if node is not None and out is None else "copy", kernel, slots)

    def epilogue(self, kernel: Kernel, value: int) -> Epilogue:
        """The group of `value` as what its host runs on each result."""
        host = self.groups.host[value]
        own = tuple(n for n, port in enumerate(kernel.ports) if self.base[port] == host)
        text = _printed_epilogue(kernel.program, kernel.structure(), own)
        slots = [*(self.pointer(port) for port in kernel.ports), self.pointer(value)]
        return Epilogue(text.text, *_arguments(text, kernel, slots), kernel, value)


def fused_step(name: str, kernel: Kernel, slots: Sequence[Slot]) -> Step:
    """The step of a printed kernel over its whole index space; slots: of its inputs, then of its results."""
    form = _form(kernel)
    text = _printed(kernel.program, kernel.structure(), form)
    count = math.prod(kernel.space)
    if form == "flat":
        block = _FLAT_BLOCK
        grid = -(-count // (block * text.elements_per_thread))
    else:
        grid = kernel.rows if form == "rows" else count
        block = _shared_block(kernel, form)
    values, pointers = _arguments(text, kernel, slots)
    args = np.array(values, np.int64).view(np.uint64)
    return Step(name, text.text, printer.KERNEL, (max(1, grid), 1, 1), block, args, pointers)


@functools.lru_cache(4096)
def _printed(program: Program, structure: KernelLayout, form: str) -> printer.Text:
    return printer.print_kernel(program, structure, form)


@functools.lru_cache(4096)
def _printed_epilogue(program: Program, structure: KernelLayout, own: tuple[int, ...]) -> printer.Text:
    return printer.print_epilogue(program, structure, own)


def _arguments(text: printer.Text, kernel: Kernel, slots: Sequence[Slot]) -> tuple[list[int], list[tuple[int, Slot]]]:
    """The values of an argument struct's fields, and which of them point where."""
    values: list[int] = []
    pointers: list[tuple[int, Slot]] = []
    for position, f in enumerate(text.fields):
        values.append(0)
        match f.kind:
            case "port":
                pointers.append((position, slots[f.number]))
            case "status":
                pointers.append((position, STATUS))
            case "param":
                values[-1] = kernel.params[f.number]
            case "extent":
                values[-1] = kernel.space[f.axis]
            case "stride":
                values[-1] = kernel.layouts[f.number].strides[f.axis]
    return values or [0], pointers


def _fold_lengths(kernel: Kernel) -> list[int]:
    """How long the folds are that stand at the top of a kernel's program, as far as it is known beforehand."""
    known: dict[int, int] = {}
    found: list[int] = []
    for instr in kernel.program.body:
        if instr.op == "const" and instr.types[0].is_int:
            known[instr.results[0]] = int(const_value(int(instr.imm[0]), instr.types[0]))
        elif instr.op == "param":
            known[instr.results[0]] = kernel.params[int(instr.imm[0])]
        elif instr.region is not None:
            found.append(known.get(instr.args[0], 1 << 16))
    return found


def _form(kernel: Kernel) -> str:
    form = printer.form_of(kernel.program, kernel.structure().strides)
    if form == "flat":
        return form
    short = max(_fold_lengths(kernel), default=0) <= _SHORT_FOLD
    elements = math.prod(kernel.space)
    return "flat" if short and elements >= _MANY else form


def _shared_block(kernel: Kernel, form: str) -> int:
    """Threads for a block that shares folds: a half-warp for each chunk of 256."""
    longest = max(_fold_lengths(kernel), default=0)
    wanted = max(-(-longest // 16), kernel.cols // 4 if form == "rows" else 0)
    warps = -(-wanted // 32)
    return 32 * min(max(1, warps), printer.BLOCK_MAX // 32)
