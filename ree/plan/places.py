"""Which values have memory, and how their axes lie in it: a pure function of the graph.

Kernels, processor and threads have no say in it, so that a commitment to these tensors is the same everywhere.
"""

from __future__ import annotations

import math

from ree.graph import Graph, Node
from ree.plan.group import SCHEDULED, Grouper
from ree.plan.layout import Layout, contiguous, view


class Places:
    """Layouts of a static graph's values.

    layouts: value -> layout over its base's memory, for values with memory and views of them; base: value ->
    value that owns its memory; orders: node that owns memory -> (axis order in which its kernel walks,
    axis order in memory), outermost first. `hosted` are the products whose group's kernel runs in them.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.grouper = Grouper(graph)
        self.groups = self.grouper.run()
        self.kinds, self.is_view = self.grouper.kinds, self.grouper.is_view
        self.hosted = set(self.groups.host.values())
        self.layouts: dict[int, Layout] = {}
        self.base: dict[int, int] = {}
        self.orders: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._outputs = set(graph.outputs)
        for value in range(graph.first_node):
            self.layouts[value], self.base[value] = contiguous(self.shape(value)), value
        for value in range(graph.first_node, graph.value_count):
            if value not in self.groups.inlined and self.grouper.is_used(value):
                self._place(value)

    def shape(self, value: int) -> tuple[int, ...]:
        return self.graph.type_of(value).extents()

    def roots(self) -> list[int]:
        """The results of groups, ascending: every other node lives inside a kernel, or is a view or a copy."""
        return [v for v in self.orders if not self.is_view[v] and v not in self.hosted]

    def _place(self, value: int) -> None:
        if self.is_view[value]:
            self._place_view(value)
        elif value in self.hosted:
            order = self._order(value)
            self._own(value, order, order)
        else:
            self._place_root(value)

    def _place_view(self, value: int) -> None:
        node = self._node(value)
        source = node.inputs[0]
        if source not in self.layouts:
            return  # of an inlined producer: read through when it is loaded
        layout = view(node.op, node.attrs, self.shape(value), self.layouts[source])
        if layout is not None:
            self.layouts[value], self.base[value] = layout, self.base[source]
        elif any(self.kinds[reader] in SCHEDULED for reader, _ in self.grouper.readers(value) or []):
            self._place_root(value)  # a kernel reads it that walks memory by strides: a copy

    def _place_root(self, value: int) -> None:
        host = self.groups.host.get(value)
        order = self._order(value if host is None else host)
        plain = tuple(range(len(self.shape(value))))
        if host is not None and len(order) != len(plain):
            order = plain
        self._own(value, order, plain if value in self._outputs else order)

    def _own(self, value: int, order: tuple[int, ...], memory_order: tuple[int, ...]) -> None:
        self.orders[value] = (order, memory_order)
        self.layouts[value], self.base[value] = contiguous(self.shape(value), memory_order), value

    def _order(self, value: int) -> tuple[int, ...]:
        """Memory order of a root's axes, outermost first."""
        rank = len(self.shape(value))
        plain = tuple(range(rank))
        kind = self.kinds[value]
        if kind == "attention":
            return (0, 2, 1, 3)
        channels_last = (0, *range(2, rank), 1) if rank >= 3 else plain
        if kind == "conv":
            return channels_last
        if kind in SCHEDULED or not 3 <= rank <= 5:
            return plain
        node = self._node(value)
        for source in self._sources(node):
            layout = self.layouts[source]
            if len(layout.shape) == rank and layout.shape[1] != 1 and math.prod(layout.shape[2:]) != 1:
                dense = contiguous(layout.shape, channels_last)
                return channels_last if dense.strides == layout.strides else plain
        return plain

    def _sources(self, node: Node) -> list[int]:
        """Values with memory that a node reads, through inlined producers, largest first."""
        found: list[int] = []
        stack = list(node.inputs)
        while stack:
            value = stack.pop()
            if value in self.layouts:
                found.append(value)
            else:
                stack.extend(self._node(value).inputs)
        return sorted(set(found), key=lambda v: (-self.graph.type_of(v).numel(), v))

    def _node(self, value: int) -> Node:
        node = self.graph.node_of(value)
        assert node is not None
        return node
