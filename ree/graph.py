"""The graph of a program: single-output nodes over numbered values, checked after every pass.

Values are numbered densely: inputs first, then constants, then nodes in order. Every node
applies one operator of `ree.ops` to earlier values and gives one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from ree import dims
from ree.dims import Dim
from ree.errors import GraphError
from ree.types import TensorType

if TYPE_CHECKING:
    import numpy as np

# An attribute is an int, Dim, float, bool, str, None, or a tuple of these.
Attr = Any


@dataclass(frozen=True, slots=True)
class GraphInput:
    name: str
    type: TensorType


class Data(Protocol):
    """Tensor data that is read when it is needed (from a file)."""

    def read(self) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Constant:
    """A weight, buffer or folded tensor: C-contiguous, little endian, in memory or in a file."""

    name: str
    type: TensorType
    data: np.ndarray | Data

    def array(self) -> np.ndarray:
        """The data; read from the file at each call if it lies in one."""
        data: Any = self.data
        found: np.ndarray = data.read() if hasattr(data, "read") else data
        return found


@dataclass(frozen=True, slots=True)
class Node:
    """One operator applied to earlier values; `source` is the user's line it came from."""

    op: str
    inputs: tuple[int, ...]
    attrs: Mapping[str, Attr]
    type: TensorType
    source: str = ""


@dataclass
class Graph:
    """inputs, constants and nodes in value order; `outputs` are value numbers."""

    inputs: list[GraphInput] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    # symbol -> (smallest, largest) value that it may have
    symbols: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def first_node(self) -> int:
        """Value number of the first node."""
        return len(self.inputs) + len(self.constants)

    @property
    def value_count(self) -> int:
        return self.first_node + len(self.nodes)

    def type_of(self, value: int) -> TensorType:
        if value < len(self.inputs):
            return self.inputs[value].type
        if value < self.first_node:
            return self.constants[value - len(self.inputs)].type
        return self.nodes[value - self.first_node].type

    def node_of(self, value: int) -> Node | None:
        return self.nodes[value - self.first_node] if value >= self.first_node else None

    def constant_of(self, value: int) -> Constant | None:
        if len(self.inputs) <= value < self.first_node:
            return self.constants[value - len(self.inputs)]
        return None

    def uses(self) -> list[list[int]]:
        """For each value the values of the nodes that read it, in order (repeated uses repeat)."""
        found: list[list[int]] = [[] for _ in range(self.value_count)]
        for offset, node in enumerate(self.nodes):
            for source in node.inputs:
                found[source].append(self.first_node + offset)
        return found

    def is_dynamic(self) -> bool:
        return bool(self.symbols)


def check(graph: Graph) -> None:
    """Hold a graph to its grammar and every node to its operator's shape rule (GraphError)."""
    from ree.ops.spec import operator

    _check_symbols(graph)
    for offset, node in enumerate(graph.nodes):
        here = graph.first_node + offset
        if any(not 0 <= source < here for source in node.inputs):
            raise GraphError(f"node {here} ({node.op}) reads a value that is not defined before it")
        rule = operator(node.op)
        types = [graph.type_of(v) for v in node.inputs]
        inferred = rule.infer(types, node.attrs)
        if rule.kind == "pointwise" and not all(_fits(t.shape, node.type.shape) for t in types):
            raise GraphError(f"node {here}: {node.op} of {[str(t) for t in types]} gives {node.type}")
        if inferred.dtype is not node.type.dtype or not _fits(inferred.shape, node.type.shape):
            raise GraphError(f"node {here}: {node.op} gives {inferred}, the graph says {node.type}")
    if any(not 0 <= output < graph.value_count for output in graph.outputs):
        raise GraphError("an output names no value")


def _check_symbols(graph: Graph) -> None:
    """Every dimension is made of symbols that the graph declares."""
    types = [*(i.type for i in graph.inputs), *(c.type for c in graph.constants), *(n.type for n in graph.nodes)]
    used = {name for type in types for extent in type.shape for name in dims.symbols(extent)}
    used.update(name for node in graph.nodes for value in node.attrs.values() for name in _symbols_of(value))
    if used - graph.symbols.keys():
        raise GraphError(f"a dimension names {min(used - graph.symbols.keys())!r}, which the program does not declare")


def _symbols_of(value: Attr) -> set[str]:
    if isinstance(value, tuple):
        return {name for item in value for name in _symbols_of(item)}
    return set(dims.symbols(value)) if isinstance(value, Dim) else set()


def _fits(inferred: tuple[int | Dim, ...], stated: tuple[int | Dim, ...]) -> bool:
    """Equal ranks and equal static extents (dynamic ones are compared once they are bound)."""
    if len(inferred) != len(stated):
        return False
    both = zip(inferred, stated, strict=True)
    return all(a == b for a, b in both if isinstance(a, int) and isinstance(b, int))


def substitute(value: Attr, binding: Mapping[str, int]) -> Attr:
    """An attribute, shape or dimension with all symbols bound."""
    if isinstance(value, Dim):
        return dims.evaluate(value, binding)
    if isinstance(value, tuple):
        return tuple(substitute(item, binding) for item in value)
    return value


def bind(graph: Graph, binding: Mapping[str, int]) -> Graph:
    """The static graph that a dynamic one is for these symbol values."""

    def static(type: TensorType) -> TensorType:
        return TensorType(substitute(type.shape, binding), type.dtype)

    bound = Graph(
        [replace(i, type=static(i.type)) for i in graph.inputs],
        list(graph.constants),
        [
            replace(n, type=static(n.type), attrs={k: substitute(v, binding) for k, v in n.attrs.items()})
            for n in graph.nodes
        ],
        list(graph.outputs),
    )
    check(bound)
    return bound
