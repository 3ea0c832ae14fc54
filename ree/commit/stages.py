"""Stages: the units of a trace, one for each group of a program whose result is committed.

A stage says how one element of its result follows from inputs, weights and earlier results: one element
program and where each of its loads lies. It is a function of the graph alone, whatever kernels compute the
result, and everything that is needed to recompute an element without the graph.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import blake3

from ree.commit import tensor
from ree.element.encode import digest
from ree.element.program import Program
from ree.graph import Graph
from ree.plan.fuse import Fuser
from ree.plan.group import Groups
from ree.plan.layout import Layout
from ree.plan.places import Places
from ree.types import DType, TensorType

LEAF_CONTEXT = "ree v1 stage"


class Kind(IntEnum):
    """What a tensor of a trace is: an input of the program, one of its constants, a stage's result."""

    INPUT = 0
    CONSTANT = 1
    RESULT = 2


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a trace: the number of an input, constant or stage."""

    kind: Kind
    number: int


@dataclass(frozen=True, slots=True)
class Port:
    """An input of a stage's program: a tensor, seen through a layout over its bytes (in elements)."""

    source: Source
    layout: Layout


@dataclass(frozen=True)
class Stage:
    """One committed result.

    value: the graph value; program: over the result's own coordinates; params: its run-time integers;
    order: the result's axes as they lie in memory, outermost first.
    """

    index: int
    value: int
    program: Program
    params: tuple[int, ...]
    ports: tuple[Port, ...]
    type: TensorType
    order: tuple[int, ...]

    @cached_property
    def digest(self) -> bytes:
        """Of the element program (32 bytes)."""
        return digest(self.program)

    @cached_property
    def leaf(self) -> bytes:
        """What the trace binds of this stage (32 bytes): docs/SPEC.md, "Traces"."""
        parts = [struct.pack("<Q", self.index), self.digest]
        parts.append(tensor.header(self.type.dtype, self.type.extents(), self.order))
        parts.append(struct.pack(f"<I{len(self.params)}q", len(self.params), *self.params))
        parts.append(struct.pack("<I", len(self.ports)))
        for port in self.ports:
            layout = port.layout
            parts.append(struct.pack("<BQqB", port.source.kind, port.source.number, layout.offset, len(layout.shape)))
            parts.append(struct.pack(f"<{2 * len(layout.shape)}q", *layout.shape, *layout.strides))
        return blake3.blake3(b"".join(parts), derive_key_context=LEAF_CONTEXT).digest()

    def tensor_id(self, data_root: bytes) -> bytes:
        """The id of this stage's result with these bytes."""
        return tensor.tensor_id(self.type.dtype, self.type.extents(), data_root, self.order)


class Stages(Sequence[Stage]):
    """The stages of a static graph in order, and where the graph's outputs are found."""

    def __init__(self, graph: Graph, places: Places | None = None) -> None:
        places = places or Places(graph)
        self.graph = graph
        roots = places.roots()
        self._source = {value: Source(Kind.RESULT, number) for number, value in enumerate(roots)}
        for value in range(graph.first_node):
            inputs = len(graph.inputs)
            is_input = value < inputs
            self._source[value] = Source(Kind.INPUT, value) if is_input else Source(Kind.CONSTANT, value - inputs)
        self._places = places
        # a product that hosts its reader's group has no result of its own here, and neither has a copied view
        layouts = {v: x for v, x in places.layouts.items() if places.base[v] in self._source}
        inside = Groups(places.groups.programs, places.groups.inlined | places.hosted, {}, places.groups.known)
        fuser = Fuser(graph, inside, layouts)
        self._stages = [self._stage(fuser, index, value) for index, value in enumerate(roots)]

    def _stage(self, fuser: Fuser, index: int, value: int) -> Stage:
        rank = self.graph.type_of(value).rank
        kernel = fuser.build(value, self._places.layouts[value], range(rank))
        ports = tuple(
            Port(self._source[self._places.base[port]], layout)
            for port, layout in zip(kernel.ports, kernel.layouts, strict=False)
        )
        order = self._places.orders[value][1]
        return Stage(index, value, kernel.program, tuple(kernel.params), ports, self.graph.type_of(value), order)

    def __getitem__(self, index: int) -> Stage:  # type: ignore[override]
        return self._stages[index]

    def __len__(self) -> int:
        return len(self._stages)

    @cached_property
    def empty(self) -> list[int]:
        """The stages whose results have no elements."""
        return [stage.index for stage in self if stage.type.numel() == 0]

    @cached_property
    def outputs(self) -> list[Source]:
        """The tensors that are the graph's outputs, in order."""
        return [self._source[value] for value in self.graph.outputs]

    def type_of(self, source: Source) -> tuple[DType, tuple[int, ...], tuple[int, ...]]:
        """dtype, extents and axis order of a tensor."""
        if source.kind is Kind.RESULT:
            stage = self[source.number]
            return stage.type.dtype, stage.type.extents(), stage.order
        first = 0 if source.kind is Kind.INPUT else len(self.graph.inputs)
        type = self.graph.type_of(first + source.number)
        return type.dtype, type.extents(), tuple(range(type.rank))
