"""Static graph -> Plan of this processor: emits steps in order, over buffers."""

from __future__ import annotations

from dataclasses import dataclass

import ree_kernels.cpu as cpu
from ree.errors import DeviceError
from ree.plan import schedules
from ree.plan.fuse import Kernel
from ree.plan.group import has_folds, size_of
from ree.plan.plan import Plan
from ree.plan.planning import Planning
from ree.plan.step import Slot, Step
from ree.plan.weights import Weights
from ree_kernels import KernelError

_TASK_INSTRUCTIONS = 1 << 20  # element instructions of one box, about 50 us
_TASK_ELEMENTS_MIN = 2048


@dataclass
class Planner(Planning[Step]):
    """Plans one static graph for one instruction set.

    weights: addresses and packed forms of the graph's constants, shared between plans.
    """

    weights: Weights

    def run(self) -> Plan:
        """The plan; DeviceError if this processor has no kernels or fails their probe."""
        try:
            cpu.kernels()
        except KernelError as error:
            raise DeviceError(str(error)) from None
        self.emit()
        return Plan(self.graph, self.steps, self.results, self.weights)

    def scheduled(self, value: int, epilogue: Step | None) -> list[Step]:
        return schedules.SCHEDULES[self.node(value).op](self, value, epilogue)

    def epilogue(self, kernel: Kernel, value: int) -> Step:
        return self.jit_step(kernel, value)

    def jit_step(self, kernel: Kernel, value: int, out: Slot | None = None) -> Step:
        instructions = max(1, size_of(kernel.program))
        work = max(_TASK_ELEMENTS_MIN, _TASK_INSTRUCTIONS // instructions)
        if has_folds(kernel.program) or kernel.rows >= 4:
            row_grain, col_grain = max(1, work // max(1, kernel.cols)), max(1, kernel.cols)
            row_grain = min(row_grain, max(1, -(-kernel.rows // 4)))
        else:
            row_grain, col_grain = 1, max(_TASK_ELEMENTS_MIN, min(work, -(-kernel.cols // 4)))
            col_grain = -(-col_grain // 64) * 64
        node = self.graph.node_of(value)
        slots = [*(self.pointer(port) for port in kernel.ports), out or self.pointer(value)]
        name = node.op if node is not None and out is None else "copy"
        return Step.jit(name, kernel, slots, (kernel.rows, kernel.cols), (row_grain, col_grain))
