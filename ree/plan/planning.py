"""Static graph -> steps over buffers, in order: what is the same for every device."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ree.element.program import walk
from ree.graph import Graph, Node
from ree.plan.fuse import Fuser, Kernel, merge_axes
from ree.plan.group import SCHEDULED
from ree.plan.layout import Layout, contiguous
from ree.plan.places import Places
from ree.plan.step import Buffer, Result, Slot
from ree.plan.stream import Stream


class _Step(Protocol):
    members: tuple[int, ...]


AnyStep = TypeVar("AnyStep", bound=_Step)


def space_of(shape: Sequence[int], kind: str) -> tuple[int, int]:
    """Rows and columns of a schedule's output: columns are the last axis, or channels of a convolution."""
    columns = (shape[1] if kind == "conv" else shape[-1]) if shape else 1
    return math.prod(shape) // max(1, columns), columns


@dataclass
class Planning(ABC, Generic[AnyStep]):
    """Turns one static graph into the steps of one device, which a subclass knows how to make.

    weights: the graph's constants as the device has them, shared between plans; stream: what makes it a streamed plan.
    """

    graph: Graph
    weights: Any
    stream: Stream | None = None
    buffers: dict[int, Buffer] = field(init=False, default_factory=dict)  # owning value -> buffer
    steps: list[AnyStep] = field(init=False, default_factory=list)
    results: list[Result] = field(init=False, default_factory=list)

    def emit(self) -> None:
        """Make all steps, in order, and note where each group's result lies."""
        self.places = Places(self.graph)
        self.groups, self.layouts, self.base = self.places.groups, self.places.layouts, self.places.base
        self.kinds = self.places.kinds
        self.members: dict[int, list[int]] = {}
        for value, root in self.places.grouper.root_of.items():
            self.members.setdefault(root, []).append(value)
        self.fuser = Fuser(self.graph, self.groups, self.layouts)
        self._give_memory()
        for value in self.places.orders:
            if value in self.places.hosted:  # a host's step is made with the group that it hosts
                continue
            self._plan_root(value)
            if not self.places.is_view[value]:
                self.results.append(Result(value, self.pointer(value), len(self.steps)))

    def _give_memory(self) -> None:
        """A buffer for every value that owns memory."""
        output_of = {value: j for j, value in reversed(list(enumerate(self.graph.outputs)))}
        for value in self.layouts:
            if self.base[value] != value:
                continue
            if value < len(self.graph.inputs):
                kind, number = "input", value
            elif value < self.graph.first_node:
                kind, number = "constant", value - len(self.graph.inputs)
            else:
                kind, number = ("output", output_of[value]) if value in output_of else ("arena", value)
            self.buffers[value] = Buffer(kind, number, self.graph.type_of(value).size_bytes())

    def _shape(self, value: int) -> tuple[int, ...]:
        return self.graph.type_of(value).extents()

    def _plan_root(self, value: int) -> None:
        host = self.groups.host.get(value)
        order, _ = self.places.orders[value]
        if self.graph.type_of(value).numel() == 0:
            return
        first = len(self.steps)
        if host is not None:
            self._plan_hosted(value, host, order)
        elif self.kinds[value] in SCHEDULED:
            self.steps.extend(self.scheduled(value, None))
        else:
            self.steps.append(self.jit_step(self.kernel(value, order), value))
        self._name_members(self.steps[first:], value, host)

    def _name_members(self, steps: list[AnyStep], value: int, host: int | None) -> None:
        """Note which graph values a group's steps compute: the last one its members, those before it their host."""
        group = self.members.get(value) or [value]
        hosts = [] if host is None else [host]
        for step in steps[:-1]:
            step.members = tuple(hosts or group)
        if steps:
            steps[-1].members = tuple(group if len(steps) > 1 else hosts + group)

    def _plan_hosted(self, value: int, host: int, order: tuple[int, ...]) -> None:
        """The host's step with the group as epilogue, in place where both have the same shape.

        Only if each element reads the host's where it is itself computed: a transpose between the group's members, say,
        reads elements of which others may be written already, or are not there yet.
        """
        mine, theirs = self.layouts[value], self.layouts[host]
        kernel = merge_axes(self._build(value, order), keep_last=True)
        space = space_of(self._shape(host), self.kinds[host])
        if (kernel.rows, kernel.cols) != space or not self._reads_in_place(kernel, host):
            self.steps.extend(self.scheduled(host, None))
            self.steps.append(self.jit_step(self.kernel(value, order), value))
            return
        same_dtype = self.graph.type_of(value).dtype is self.graph.type_of(host).dtype
        if same_dtype and _same_memory(mine, theirs):
            self.buffers[host] = self.buffers[value]
        if self.buffers[host] is self.buffers[value] and _is_identity(kernel):
            self.steps.extend(self.scheduled(host, None))
            return
        self.steps.extend(self.scheduled(host, self.epilogue(kernel, value)))

    def _reads_in_place(self, kernel: Kernel, host: int) -> bool:
        """True if every load of the host's memory is at the place of the element that is being computed."""
        own = {n for n, port in enumerate(kernel.ports) if self.base[port] == host}
        flat = contiguous(kernel.space).strides
        axis = {i.results[0]: int(i.imm[0]) for i in kernel.program.body if i.op == "index"}
        for instr in walk(kernel.program.body):
            if instr.op not in ("load", "load_if") or int(instr.imm[0]) not in own:
                continue
            layout = kernel.layouts[int(instr.imm[0])]
            step = [0] * len(kernel.space)
            coordinates = instr.args if instr.op == "load" else instr.args[2:]
            for coordinate, extent, stride in zip(coordinates, layout.shape, layout.strides, strict=True):
                if coordinate in axis:
                    step[axis[coordinate]] += stride
                elif extent != 1:
                    return False
            if layout.offset or any(a != b for a, b, n in zip(step, flat, kernel.space, strict=True) if n != 1):
                return False
        return True

    def node(self, value: int) -> Node:
        node = self.graph.node_of(value)
        assert node is not None
        return node

    # -- what a device makes ----------------------------------------------------------
    @abstractmethod
    def scheduled(self, value: int, epilogue: Any) -> list[AnyStep]:
        """The steps of an operator that has a kernel of its own, which runs the epilogue on its results."""

    @abstractmethod
    def jit_step(self, kernel: Kernel, value: int, out: Slot | None = None) -> AnyStep:
        """A step that runs a fused kernel over its whole index space, into the value's own memory or `out`."""

    @abstractmethod
    def epilogue(self, kernel: Kernel, value: int) -> Any:
        """A fused kernel in the form in which `scheduled` takes it."""

    # -- kernels ---------------------------------------------------------------------
    def _build(self, value: int, order: tuple[int, ...]) -> Kernel:
        return self.fuser.build(value, self.layouts[value], order)

    def kernel(self, value: int, order: tuple[int, ...]) -> Kernel:
        return merge_axes(self._build(value, order))

    def pointer(self, value: int) -> Slot:
        """Where a value's first element lies: buffer and offset in bytes."""
        layout = self.layouts[value]
        buffer = self.buffers[self.base[value]]
        return Slot(buffer, layout.offset * self.graph.type_of(value).dtype.size_bytes)

    def temporary(self, size_bytes: int) -> Buffer:
        """A buffer in the arena for one schedule's own use."""
        key = -1 - len(self.buffers)
        self.buffers[key] = Buffer("arena", key, size_bytes)
        return self.buffers[key]

    def dense(self, value: int, order: tuple[int, ...] | None = None) -> tuple[Layout, Slot, AnyStep]:
        """A dense copy of a value with its axes in memory order `order`: layout, place, the copying step."""
        shape = self._shape(value)
        order = order or tuple(range(len(shape)))
        layout = contiguous(shape, order)
        slot = Slot(self.temporary(self.graph.type_of(value).size_bytes()))
        kernel = merge_axes(self.fuser.copy(value, layout, order))
        return layout, slot, self.jit_step(kernel, value, slot)


def _same_memory(a: Layout, b: Layout) -> bool:
    """True if two dense layouts give the same place to the same flat position."""

    def dense(layout: Layout) -> list[tuple[int, int]]:
        return [(n, s) for n, s in zip(layout.shape, layout.strides, strict=True) if n != 1]

    return dense(a) == dense(b) or (a.is_contiguous and b.is_contiguous)


def _is_identity(kernel: Kernel) -> bool:
    """True for a program that stores what it loads (its port and result share memory)."""
    body = [i for i in kernel.program.body if i.op not in ("index", "const")]
    same = len(kernel.layouts) == 2 and kernel.layouts[0].strides == kernel.layouts[1].strides
    return same and len(body) == 1 and body[0].op == "load" and kernel.program.results == body[0].results
