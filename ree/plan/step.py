"""Steps, the buffers that they read and write, and the plan that runs them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

import ree_kernels.cpu as cpu
from ree.element import jit
from ree.errors import DeviceError, LimitError, RunError
from ree.graph import Graph
from ree.plan.fuse import Kernel
from ree.plan.memory import Interval, place
from ree.plan.weights import Weights
from ree_kernels import KernelError


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


def _store(address: int, value: int) -> None:
    ctypes.c_uint64.from_address(address).value = value


def _address(memory: Any) -> int:
    return int(cpu.runtime().ffi.cast("uintptr_t", memory))


class Plan:
    """Steps over placed buffers, ready to run; one run at a time (the caller holds a lock).

    The arena belongs to the plan, unless a run is given one that keeps the results of all groups; inputs and
    outputs are the caller's at each run. results: one for each group, in order.
    """

    def __init__(self, graph: Graph, steps: list[Step], results: list[Result], weights: Weights) -> None:
        self.graph, self.steps, self.results, self.weights = graph, steps, results, weights
        self._status = np.zeros(1, np.int64)
        self._offsets, self.arena_bytes = self._place(frozenset())
        self._arena: Any = None
        self._linked = (0, False)  # address of the arena that the steps' pointers lead into; whether it keeps results
        self._table: Any = None
        self._patches: dict[tuple[str, int], list[tuple[int, int]]] = {}

    @cached_property
    def _kept(self) -> tuple[dict[Buffer, int], int]:
        """Offsets and size of an arena in which no result makes way for another."""
        return self._place(frozenset(result.slot.buffer for result in self.results))

    @property
    def kept_bytes(self) -> int:
        return self._kept[1]

    def _place(self, kept: frozenset[Buffer]) -> tuple[dict[Buffer, int], int]:
        first: dict[Buffer, int] = {}
        last: dict[Buffer, int] = {}
        for number, step in enumerate(self.steps):
            for _, slot in step.all_pointers():
                if slot.buffer.kind == "arena":
                    first.setdefault(slot.buffer, number)
                    last[slot.buffer] = len(self.steps) if slot.buffer in kept else number
        items = list(first)
        offsets, total = place([Interval(b.size_bytes, first[b], last[b]) for b in items])
        return dict(zip(items, offsets, strict=True)), total

    def compile(self) -> None:
        """Compile all JIT kernels, allocate the arena, and write every pointer that never changes."""
        if self._table is not None:
            return
        every = [s for step in self.steps for s in (step, *step.nested())]
        jitted = [(s, s.kernel) for s in every if s.kernel is not None]
        kernels = jit.compile_kernels([(k.program, k.structure()) for _, k in jitted], cpu.kernels().isa)
        for (step, _), kernel in zip(jitted, kernels, strict=True):
            step.address = kernel.address
            step.keep = (*step.keep, kernel)
        self._table = cpu.runtime().ffi.new("ree_step[]", max(1, len(self.steps)))
        for row, step in zip(self._table, self.steps, strict=False):
            self._link(step)
            row.kernel = cpu.runtime().ffi.cast("ree_kernel", step.address)
            row.args = cpu.runtime().ffi.cast("void *", step.args)
            row.rows, row.cols = step.shape
            row.row_grain, row.col_grain = step.grain
            row.scratch_bytes = step.scratch_bytes

    def _own_arena(self) -> Any:
        if self._arena is None:
            try:
                self._arena = cpu.allocate(max(64, self.arena_bytes))
            except KernelError:
                raise LimitError(f"no memory for {self.arena_bytes} bytes of intermediate tensors") from None
        return self._arena

    def _link(self, step: Step) -> None:
        for hook, function, args in self._hooks(step):
            _store(function, hook.address)
            _store(args, hook.args)
        for part in (step, *step.nested()):
            if part.status:
                _store(part.status, self._status.ctypes.data)
        for address, slot in step.all_pointers():
            buffer = slot.buffer
            if buffer.kind in ("constant", "packed"):
                _store(address, self.weights.address(buffer.kind, buffer.number) + slot.offset_bytes)
            elif buffer.kind != "arena":
                self._patches.setdefault((buffer.kind, buffer.number), []).append((address, slot.offset_bytes))

    def _link_arena(self, base: int, keeps: bool) -> None:
        """Let the steps' pointers lead into the arena at this address."""
        if self._linked != (base, keeps):
            offsets = self._kept[0] if keeps else self._offsets
            for step in self.steps:
                for address, slot in step.all_pointers():
                    if slot.buffer.kind == "arena":
                        _store(address, base + offsets[slot.buffer] + slot.offset_bytes)
            self._linked = (base, keeps)

    def _hooks(self, step: Step) -> list[tuple[Step, int, int]]:
        own = [(step.epilogue, *step.epilogue_fields)] if step.epilogue else []
        return [*own, *step.hooks]

    def run(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        observe: Callable[[int, int], None] | None = None,
        arena: Any = None,
    ) -> None:
        """Run all steps; inputs and outputs are addresses of C-contiguous memory.

        observe: told (number, address) of each result as soon as it is there; arena: `kept_bytes` of memory
        (a cffi pointer) in which all results stay. RunError: an operator met a value that it refuses
        (an index out of range).
        """
        self.compile()
        base = _address(self._own_arena() if arena is None else arena)
        self._link_arena(base, arena is not None)
        for kind, addresses in (("input", inputs), ("output", outputs)):
            for number, address in enumerate(addresses):
                for pointer, offset in self._patches.get((kind, number), ()):
                    _store(pointer, address + offset)
        self._status[0] = 0
        if observe is None:
            self._run_steps(0, len(self.steps))
            return
        offsets = self._offsets if arena is None else self._kept[0]
        done = 0
        for number, result in enumerate(self.results):
            self._run_steps(done, result.after)
            done = result.after
            buffer = result.slot.buffer
            start = outputs[buffer.number] if buffer.kind == "output" else base + offsets.get(buffer, 0)
            observe(number, start + result.slot.offset_bytes)
        self._run_steps(done, len(self.steps))

    def _run_steps(self, start: int, stop: int) -> None:
        try:
            cpu.run(self._table + start, stop - start)
        except KernelError as error:
            raise DeviceError(str(error)) from None
        if self._status[0]:
            raise RunError("an index is out of range")

    def kept_address(self, arena: Any, result: Result) -> int:
        """Where a result that is no output lies after a run in this arena."""
        return _address(arena) + self._kept[0].get(result.slot.buffer, 0) + result.slot.offset_bytes
