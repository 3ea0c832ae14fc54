"""The plan: steps over placed buffers, ready to run."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

import ree_kernels.cpu as cpu
from ree.element import jit
from ree.errors import DeviceError, LimitError, RunError
from ree.graph import Graph
from ree.ops.spec import operator
from ree.plan.hashing import Hashing
from ree.plan.memory import place_buffers
from ree.plan.step import Buffer, Result, Step
from ree.plan.weights import Weights
from ree_kernels import KernelError


def _store(address: int, value: int) -> None:
    ctypes.c_uint64.from_address(address).value = value


def _address(memory: Any) -> int:
    return int(cpu.runtime().ffi.cast("uintptr_t", memory))


class Arena:
    """Memory for the values between a plan's steps; plans that take turns may share one, which grows with them."""

    def __init__(self) -> None:
        self._memory: Any = None
        self._size_bytes = 0

    def of(self, size_bytes: int) -> Any:
        """At least so much memory; LimitError if there is none."""
        if self._memory is None or size_bytes > self._size_bytes:
            self._memory = None  # first, so that both need not be there at once
            try:
                self._memory, self._size_bytes = cpu.allocate(max(64, size_bytes)), size_bytes
            except KernelError:
                raise LimitError(f"no memory for {size_bytes} bytes of intermediate tensors") from None
        return self._memory


class Plan:
    """Steps over placed buffers; one run at a time (the caller holds a lock).

    The arena belongs to the plan, unless it shares one or a run is given one that keeps the results of all groups;
    inputs and outputs are the caller's at each run. results: one for each group, in order.
    """

    def __init__(self, graph: Graph, steps: list[Step], results: list[Result], weights: Weights) -> None:
        self.graph, self.steps, self.results, self.weights = graph, steps, results, weights
        self._status = np.zeros(1, np.int64)
        self._offsets, self.arena_bytes = place_buffers(self.steps)
        self._arena = Arena()
        self._linked = (0, False)  # address of the arena that the steps' pointers lead into; whether it keeps results
        self._hashing: list[Step] = []
        self.spare: list[Any] = []  # an arena of `kept_bytes` that is free: fresh memory costs more than hashing it
        self._table: Any = None  # of all steps, once they are compiled
        self._patches: dict[tuple[str, int], list[tuple[int, int]]] = {}

    # -- memory -----------------------------------------------------------------------
    @cached_property
    def _kept(self) -> tuple[dict[Buffer, int], int]:
        """Offsets and size of an arena in which no result makes way for another."""
        return place_buffers(self.steps, frozenset(result.slot.buffer for result in self.results))

    @property
    def kept_bytes(self) -> int:
        return self._kept[1]

    def kept_address(self, arena: Any, result: Result) -> int:
        """Where a result that is no output lies after a run in this arena."""
        return _address(arena) + self._kept[0].get(result.slot.buffer, 0) + result.slot.offset_bytes

    def share(self, arena: Arena) -> None:
        """Run in memory that other plans use, too; never two of them at once."""
        self._arena = arena

    # -- preparation --------------------------------------------------------------------
    def compile(self) -> None:
        """Compile all JIT kernels, and write every pointer that never changes."""
        if self._table is not None:
            return
        every = [s for step in self.steps for s in (step, *step.nested())]
        jitted = [(s, s.kernel) for s in every if s.kernel is not None]
        kernels = jit.compile_kernels([(k.program, k.structure()) for _, k in jitted], cpu.kernels().isa)
        for (step, _), kernel in zip(jitted, kernels, strict=True):
            step.address = kernel.address
            step.keep = (*step.keep, kernel)
        for step in self.steps:
            self._link(step)
        self._table = _Table([(step,) for step in self.steps])

    @cached_property
    def committed_steps(self) -> tuple[list[Step], Hashing]:
        """All steps, each result's followed by the one that hashes it; the hashes."""
        hashing = Hashing(len(self.results))
        rows: list[Step] = []
        done = 0
        for number, result in enumerate(self.results):
            own = hashing.step(number, result.slot, self.graph.type_of(result.value).size_bytes())
            rows += [*self.steps[done : result.after], *own]
            done = result.after
            self._hashing += own
        last = hashing.finish()
        rows += [*self.steps[done:], *last]
        self._hashing += last  # the table holds addresses only: the plan keeps what they name alive
        for step in self._hashing:
            self._link(step)
        self._linked = (0, False)
        return rows, hashing

    @cached_property
    def _committed(self) -> tuple[_Table, Hashing]:
        """The table of all steps with their hashes, and the hashes.

        A result is hashed along with the step after it, so that no thread waits for a hash; unless its memory is free
        by then, since nobody reads it.
        """
        rows, hashing = self.committed_steps
        own = {id(step) for step in self._hashing}
        last_use = {
            slot.buffer: n for n, step in enumerate(rows) if id(step) not in own for _, slot in step.all_pointers()
        }
        joined: list[tuple[Step, ...]] = []
        for number, step in enumerate(rows):
            before = rows[number - 1] if number else step
            hashed = [slot.buffer for _, slot in before.pointers] if id(before) in own else []
            kept = hashed and all(b.kind != "arena" or last_use[b] >= number for b in hashed)
            if kept and id(step) not in own:
                joined[-1] = (before, step)
            else:
                joined.append((step,))
        return _Table(joined), hashing

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

    def _hooks(self, step: Step) -> list[tuple[Step, int, int]]:
        own = [(step.epilogue, *step.epilogue_fields)] if step.epilogue else []
        return [*own, *step.hooks]

    def _link_arena(self, base: int, keeps: bool) -> None:
        """Let the steps' pointers lead into the arena at this address."""
        if self._linked != (base, keeps):
            offsets = self._kept[0] if keeps else self._offsets
            for step in (*self.steps, *self._hashing):
                for address, slot in step.all_pointers():
                    if slot.buffer.kind == "arena":
                        _store(address, base + offsets[slot.buffer] + slot.offset_bytes)
            self._linked = (base, keeps)

    # -- running ----------------------------------------------------------------------------
    def run(self, inputs: Sequence[int], outputs: Sequence[int], state: Sequence[int] = ()) -> None:
        """Run all steps; inputs and outputs are addresses of C-contiguous memory, state those of a streamed plan's.

        RunError: an operator met a value that it refuses (an index out of range).
        """
        self.compile()
        self._point(state=state)
        self._run(self._table.rows, self._table.length, inputs, outputs, None)

    def run_committed(self, inputs: Sequence[int], outputs: Sequence[int], arena: Any = None) -> list[bytes]:
        """Run all steps; the BLAKE3 hash of each result's memory, made as soon as it is there.

        arena: `kept_bytes` of memory (a cffi pointer) in which all results stay; else as `run`.
        """
        self.compile()
        table, hashing = self._committed
        self._run(table.rows, table.length, inputs, outputs, arena)
        return [digest.tobytes() for digest in hashing.digests]

    def run_one(self, number: int, inputs: Sequence[int], outputs: Sequence[int], arena: Any) -> None:
        """Run the steps of one result in an arena of `kept_bytes`, on whatever lies in it for the results before."""
        self.compile()
        first = self.results[number - 1].after if number else 0
        self._run(self._table.rows + first, self.results[number].after - first, inputs, outputs, arena)

    def run_copies(self, number: int, inputs: Sequence[int], outputs: Sequence[int], arena: Any) -> None:
        """Of the steps of one result run those that copy views of earlier ones, which later steps may read."""
        self.compile()
        first = self.results[number - 1].after if number else 0
        for position in range(first, self.results[number].after):
            members = self.steps[position].members
            if members and self._is_view(members[0]):
                self._run(self._table.rows + position, 1, inputs, outputs, arena)

    def _is_view(self, value: int) -> bool:
        node = self.graph.node_of(value)
        return node is not None and operator(node.op).kind == "view"

    def _run(self, table: Any, length: int, inputs: Sequence[int], outputs: Sequence[int], arena: Any) -> None:
        self._link_arena(_address(self._arena.of(self.arena_bytes) if arena is None else arena), arena is not None)
        self._point(input=inputs, output=outputs)
        self._status[0] = 0
        try:
            cpu.run(table, length)
        except KernelError as error:
            raise DeviceError(str(error)) from None
        if self._status[0]:
            raise RunError("an index is out of range")

    def _point(self, **kinds: Sequence[int]) -> None:
        """Let the pointers to the caller's memory lead there; by kind, addresses in order."""
        for kind, addresses in kinds.items():
            for number, address in enumerate(addresses):
                for pointer, offset in self._patches.get((kind, number), ()):
                    _store(pointer, address + offset)


class _Table:
    """Steps as the executor reads them (ree_step[]); two in one row run as one."""

    def __init__(self, rows: Sequence[tuple[Step, ...]]) -> None:
        ffi, lib = cpu.runtime().ffi, cpu.runtime().lib
        self.rows = ffi.new("ree_step[]", max(1, len(rows)))
        self.length = len(rows)
        self._pairs = []  # the rows hold addresses only
        for row, parts in zip(self.rows, rows, strict=False):
            if len(parts) == 1:
                _fill(row, parts[0])
                continue
            pair = ffi.new("ree_pair *")
            for row_of, part in zip((pair.first, pair.second), parts, strict=True):
                _fill(row_of, part)
            row.kernel, row.args = ffi.addressof(lib, "ree_both"), pair
            row.rows, row.cols, row.row_grain, row.col_grain = 1, lib.ree_pair_boxes(pair), 1, 1
            self._pairs.append(pair)


def _fill(row: Any, step: Step) -> None:
    row.kernel = cpu.runtime().ffi.cast("ree_kernel", step.address)
    row.args = cpu.runtime().ffi.cast("void *", step.args)
    row.rows, row.cols = step.shape
    row.row_grain, row.col_grain = step.grain
    row.scratch_bytes = step.scratch_bytes
