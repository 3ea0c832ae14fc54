"""The plan of a program on a device: launches over placed buffers, recorded once and replayed."""

from __future__ import annotations

import ctypes
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

import ree_kernels.cpu as cpu
from ree.device.hashing import Hashing, committed
from ree.device.images import errors
from ree.device.step import Step, load
from ree.device.weights import DeviceWeights
from ree.errors import RunError
from ree.graph import Graph
from ree.plan.memory import place_buffers
from ree.plan.step import Buffer, Result
from ree.plan.stream import SLOTS
from ree_kernels.cuda import Device

_REPLAYS_MAX = 16  # recordings that are kept, each for other addresses of inputs and outputs
_STATUS_BYTES = 8
_SLOT_BYTES = 8


class DeviceArena:
    """Device memory for the values between a plan's steps; plans that take turns may share one, which grows."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._memory: Any = None

    def of(self, n_bytes: int) -> int:
        """The address of at least so much memory; LimitError if there is none."""
        if self._memory is None or n_bytes > self._memory.n_bytes:
            self._memory = None  # first, so that both need not be there at once
            with errors():
                self._memory = self.device.allocate(max(1, n_bytes))
        return int(self._memory.address)


class Staging:
    """Device memory for several arrays of the host; small ones are copied together."""

    ALIGN_BYTES = 256
    TOGETHER_BYTES_MAX = 1 << 16

    def __init__(self, device: Device, sizes: Sequence[int]) -> None:
        self.device, self.sizes = device, sizes
        ends = list(itertools.accumulate(-(-n // self.ALIGN_BYTES) * self.ALIGN_BYTES for n in sizes))
        self._offsets = [0, *ends[:-1]][: len(sizes)]
        self._memory = device.allocate(max(1, ends[-1] if ends else 0))
        total = sum(sizes)
        self._together = np.zeros(ends[-1], np.uint8) if ends and total <= self.TOGETHER_BYTES_MAX else None

    @property
    def addresses(self) -> list[int]:
        return [self._memory.address + offset for offset in self._offsets]

    def write(self, sources: Sequence[int]) -> None:
        """Copy from these addresses of the host, as many as there are."""
        parts = [part for part in zip(sources, self._offsets, self.sizes, strict=False) if part[2]]
        if self._together is None:
            for source, offset, n_bytes in parts:
                self.device.write(self._memory.address + offset, source, n_bytes)
        elif parts:
            base = self._together.ctypes.data
            for source, offset, n_bytes in parts:
                ctypes.memmove(base + offset, source, n_bytes)
            self.device.write(self._memory.address, base, parts[-1][1] + parts[-1][2])

    def read(self, targets: Sequence[int]) -> None:
        """Copy to these addresses of the host."""
        for target, offset, n_bytes in zip(targets, self._offsets, self.sizes, strict=True):
            if n_bytes:
                self.device.read(target, self._memory.address + offset, n_bytes)


class _Way(NamedTuple):
    """A way to run a plan: its steps, and where their buffers lie in an arena at the address `base`."""

    kind: str
    steps: Sequence[Step]
    offsets: dict[Buffer, int]
    base: int


class DevicePlan:
    """Launches over placed buffers; one run at a time (the caller holds a lock).

    As ree.plan.plan.Plan, it runs on inputs and outputs in the host's memory; `run` takes such on the device as well.
    """

    def __init__(self, graph: Graph, steps: list[Step], results: list[Result], weights: DeviceWeights) -> None:
        self.graph, self.steps, self.results, self.weights = graph, steps, results, weights
        self.device = weights.device
        self.spare: list[Any] = []  # host arenas of `kept_bytes` that are free
        self._offsets, self.arena_bytes = place_buffers(steps)
        self._arena = DeviceArena(self.device)
        self._kept_arena = DeviceArena(self.device)
        self._replays: OrderedDict[Any, Any] = OrderedDict()
        inputs = [graph.type_of(v).size_bytes() for v in range(len(graph.inputs))]
        self._sizes = {
            # the last is for a streamed plan's slots, one for each token of the first input
            "input": [*inputs, _SLOT_BYTES * graph.type_of(0).numel() if inputs else 0],
            "output": [graph.type_of(v).size_bytes() for v in graph.outputs],
        }

    @cached_property
    def _kept(self) -> tuple[dict[Buffer, int], int]:
        return place_buffers(self.steps, frozenset(result.slot.buffer for result in self.results))

    @property
    def kept_bytes(self) -> int:
        return self._kept[1]

    def kept_address(self, arena: Any, result: Result) -> int:
        """Where a result that is no output lies after a run in this arena of the host's."""
        base = int(cpu.runtime().ffi.cast("uintptr_t", arena))
        return base + self._kept[0].get(result.slot.buffer, 0) + result.slot.offset_bytes

    def share(self, arena: DeviceArena) -> None:
        """Run in memory that other plans use, too; never two of them at once."""
        self._arena = arena

    # -- preparation --------------------------------------------------------------------
    def compile(self) -> None:
        """Compile and load all kernels."""
        load(self.device, self.steps)

    @cached_property
    def _staging(self) -> dict[str, Staging]:
        """Device memory of inputs, outputs and slots that lie on the host."""
        with errors():
            return {kind: Staging(self.device, sizes) for kind, sizes in self._sizes.items()}

    @cached_property
    def _status(self) -> Any:
        with errors():
            memory = self.device.allocate(_STATUS_BYTES)
            self.device.fill(memory.address, 0, _STATUS_BYTES)
        return memory

    @cached_property
    def _may_fail(self) -> bool:
        """Whether a kernel may meet an index that it refuses."""
        return any(slot.buffer.kind == "status" for step in self.steps for _, slot in step.pointers)

    @cached_property
    def committed_steps(self) -> tuple[list[Step], Hashing]:
        """All steps and those that hash the results, a batch of them at a time; the hashes."""
        sizes = [self.graph.type_of(result.value).size_bytes() for result in self.results]
        return committed(self.device, self.steps, self.results, sizes)

    @cached_property
    def _committed(self) -> tuple[dict[Buffer, int], int]:
        """Offsets and size of an arena in which a result stays until it is hashed."""
        return place_buffers(self.committed_steps[0])

    # -- running ----------------------------------------------------------------------------
    def run(
        self, inputs: Sequence[int], outputs: Sequence[int], state: Sequence[int] = (), on_device: bool = False
    ) -> None:
        """Run all steps; inputs and outputs are addresses of C-contiguous memory, on the device if `on_device`.

        state: of a streamed plan, the first on the host, the others on the device. RunError: an operator met a value
        that it refuses (an index out of range); DeviceError: the device failed.
        """
        way = _Way("run", self.steps, self._offsets, self._arena.of(self.arena_bytes))
        self._run(way, inputs, outputs, state, on_device)

    def run_committed(self, inputs: Sequence[int], outputs: Sequence[int], arena: Any = None) -> list[bytes]:
        """Run all steps; the BLAKE3 hash of each result's memory, made on the device before it is used again.

        arena: `kept_bytes` of the host's memory (a cffi pointer) to which all results are copied.
        """
        steps, hashing = self.committed_steps
        if arena is None:
            way = _Way("committed", steps, self._committed[0], self._arena.of(self._committed[1]))
        else:
            way = _Way("kept", steps, self._kept[0], self._kept_arena.of(self.kept_bytes))
        self._run(way, inputs, outputs)
        with errors():
            if arena is not None and self.kept_bytes:
                host = int(cpu.runtime().ffi.cast("uintptr_t", arena))
                self.device.read(host, way.base, self.kept_bytes)
            return hashing.read()

    def _run(
        self,
        way: _Way,
        inputs: Sequence[int],
        outputs: Sequence[int],
        state: Sequence[int] = (),
        on_device: bool = False,
    ) -> None:
        with errors():
            status = self._status.address
            places = {"input": list(inputs), "output": list(outputs), "state": list(state), "status": [status]}
            if not on_device:
                staging = self._staging
                staging["input"].write([*inputs, *state[: SLOTS + 1]])
                *places["input"], slots = staging["input"].addresses
                places["output"] = staging["output"].addresses
                places["state"][SLOTS : SLOTS + 1] = [slots] if state else []
            self._replay(way, places).run()
            if not on_device:
                staging["output"].read(outputs)
            failed = self._may_fail and self._take_status()
        if failed:
            raise RunError("an index is out of range")

    def recorded(self, committed: bool = False) -> Any:
        """The recording of the last run on the host's inputs, which lie on the device still: for measurements."""
        kind = "committed" if committed else "run"
        return next(replay for key, replay in reversed(self._replays.items()) if key[0] == kind)

    def _take_status(self) -> bool:
        """Whether a kernel met an index out of range; forgets it."""
        word = np.zeros(1, np.int64)
        self.device.read(word.ctypes.data, self._status.address, _STATUS_BYTES)
        if word[0]:
            self.device.fill(self._status.address, 0, _STATUS_BYTES)
        return bool(word[0])

    # -- recordings ------------------------------------------------------------------------------
    def _replay(self, way: _Way, places: dict[str, list[int]]) -> Any:
        """The recorded launches over these places."""
        key = (way.kind, way.base, *(tuple(addresses) for addresses in places.values()))
        if key not in self._replays:
            load(self.device, way.steps)
            for step in way.steps:
                for position, slot in step.pointers:
                    step.args[position] = self._address(slot.buffer, way, places) + slot.offset_bytes
            self._replays[key] = self.device.record([step.launch() for step in way.steps])
            if len(self._replays) > _REPLAYS_MAX:
                self._replays.popitem(last=False)
        self._replays.move_to_end(key)
        return self._replays[key]

    def _address(self, buffer: Buffer, way: _Way, places: dict[str, list[int]]) -> int:
        if buffer.kind == "arena":
            return way.base + way.offsets[buffer]
        if buffer.kind in places:
            return places[buffer.kind][buffer.number]
        return self.weights.address(buffer.kind, buffer.number)
