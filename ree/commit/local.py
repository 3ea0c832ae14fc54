"""A claim held against itself: does each stage's result follow from what the same claim says that it read?

Every group is run on the claim's own tensors. That costs as much as one run, but needs no second claim and no trust in
an earlier stage: it names every stage that is wrong by itself, not only the first from which all others differ. So
single stages can be looked at alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence

import numpy as np

from ree.commit.elements import PortElements, in_memory
from ree.commit.record import array_at
from ree.commit.stages import Stage
from ree.commit.trace import Trace
from ree.element.interpret import elements
from ree.errors import LimitError, RunError
from ree.plan.plan import Plan
from ree_kernels import KernelError, cpu

Judge = Callable[[Stage], bool | None]


def inconsistencies(
    trace: Trace, chosen: Collection[int] | None = None, judge: Judge = lambda stage: None
) -> list[tuple[int, int]]:
    """(stage, its first wrong element in C order) for every stage whose result does not follow from its operands.

    chosen: numbers of the stages to look at, None: all; judge: may say in another way whether a stage's result follows
    (True, False; None: it cannot say); what it finds to follow is not computed.
    """
    program, manifest = trace.program, trace.manifest
    if len(manifest.stages):
        _ = trace.tensors[0]  # results that are not stored are computed now, by the same plan
    with program.locked_host_plan(manifest.sizes) as plan:
        return Check(plan, trace, judge).run(range(len(plan.results)) if chosen is None else sorted(chosen))


class Check:
    """Runs a claim's groups one by one, each on the claim's tensors."""

    def __init__(self, plan: Plan, trace: Trace, judge: Judge = lambda stage: None) -> None:
        self.plan, self.trace, self.judge = plan, trace, judge
        try:
            self.arena = cpu.allocate(max(64, plan.kept_bytes))
        except KernelError:
            raise LimitError(f"no memory for {plan.kept_bytes} bytes of tensors") from None
        types = [plan.graph.type_of(v) for v in plan.graph.outputs]
        self.outputs = [np.empty(t.extents(), t.dtype.numpy) for t in types]
        self.found: list[tuple[int, int]] = []

    def run(self, chosen: Collection[int] | None = None) -> list[tuple[int, int]]:
        """As `inconsistencies`."""
        inputs = [array.ctypes.data for array in self.trace.inputs]
        outputs = [array.ctypes.data for array in self.outputs]
        last = len(self.plan.results) if chosen is None else max(chosen, default=-1) + 1
        for number in range(last):
            is_chosen = chosen is None or number in chosen
            if not is_chosen or self.judge(self.trace.manifest.stages[number]):
                self.plan.run_copies(number, inputs, outputs, self.arena)
                self.place(number)[...] = self.claimed(number)
                continue
            try:
                self.plan.run_one(number, inputs, outputs, self.arena)
            except RunError:  # it read an index that no run can have read
                self.found.append((number, self.refused(number)))
            self.compare(number)
        return self.found

    def place(self, number: int) -> np.ndarray:
        """Where a result lies in memory, its axes as they lie there."""
        stage = self.trace.manifest.stages[number]
        return self.memory(number, [stage.type.extents()[axis] for axis in stage.order])

    def claimed(self, number: int) -> np.ndarray:
        return self.trace.tensors[number].transpose(self.trace.manifest.stages[number].order)

    def compare(self, number: int) -> None:
        """Compare a result, and put the claim's in its place."""
        stage = self.trace.manifest.stages[number]
        computed, claimed = self.place(number), self.claimed(number)
        if same_bytes(computed, claimed):
            return
        back = np.argsort(stage.order)
        element = first_difference(computed.transpose(back), claimed.transpose(back))
        if element is not None and not (self.found and self.found[-1][0] == number):
            self.found.append((number, element))
        computed[...] = claimed

    def refused(self, number: int) -> int:
        """The first element whose operands hold an index that is out of range."""
        stage = self.trace.manifest.stages[number]
        inputs = [
            PortElements(port.layout, given.dtype, in_memory(self.trace.memory(port.source), given.dtype))
            for port, given in zip(stage.ports, stage.program.inputs, strict=True)
        ]
        low, high = 0, stage.type.numel()
        while high - low > 1:
            middle = (low + high) // 2
            try:
                elements(stage.program, inputs, stage.type.extents(), np.arange(low, middle), stage.params)
            except RunError:
                high = middle
            else:
                low = middle
        return low

    def memory(self, number: int, shape: Sequence[int]) -> np.ndarray:
        result, dtype = self.plan.results[number], self.trace.manifest.stages[number].type.dtype
        if result.slot.buffer.kind == "output":
            return self.outputs[result.slot.buffer.number].reshape(shape)
        return array_at(self.plan.kept_address(self.arena, result), dtype, shape, self.arena)


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one shape and dtype are known to have the same bytes; False says nothing."""
    if not (a.flags.c_contiguous and b.flags.c_contiguous):
        return False
    return _memcmp(a.ctypes.data, b.ctypes.data, a.nbytes) == 0


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def first_difference(a: np.ndarray, b: np.ndarray) -> int | None:
    """The first element, in C order, in whose bits two arrays of one shape and dtype differ."""
    size = a.dtype.itemsize
    left, right = (np.ascontiguousarray(x).reshape(-1).view(f"u{size}") for x in (a, b))
    differing = np.flatnonzero(left != right)
    return int(differing[0]) if len(differing) else None
