"""That a graph treats the rows of a sequence one by one, except in causal attention: what streaming it rests on.

Each distinct operator of the graph is evaluated by the interpreter at a few elements, over tensors that note which of
their rows are asked for. An element program reads the same way everywhere, so a few elements tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ree import dims
from ree.element.interpret import elements
from ree.errors import Error, UnsupportedError
from ree.graph import Graph, Node, bind
from ree.lower import located
from ree.ops.spec import operator
from ree.types import TensorType

TOKENS, POSITIONS, ROWS = 0, 1, 2  # inputs of the program
_CHOSEN = 5  # the row that every choice of a row names while an element is looked at
_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where a value has rows: of the sequence ("token") or chosen ones ("row"); each row is `inner` places long."""

    kind: str
    axis: int
    inner: int


def check(graph: Graph) -> None:
    """UnsupportedError, naming the operator, unless every row of every value depends on that row alone.

    graph: of `ree.lm.capture`; attention may look back at earlier rows, and the last part reads the rows that are
    asked for.
    """
    sizes = _sizes(graph)
    (token_symbol,) = dims.symbols(graph.inputs[TOKENS].type.shape[1])
    (row_symbol,) = dims.symbols(graph.inputs[ROWS].type.shape[0])
    static = bind(graph, {token_symbol: sizes[0], row_symbol: sizes[1]})
    axes = [_axis_of(static.type_of(v), sizes) for v in range(static.value_count)]
    known: set[Any] = set()
    for offset, node in enumerate(static.nodes):
        value = static.first_node + offset
        try:
            _check_axes(static, value, axes)
            key = (node.op, tuple(static.type_of(v) for v in node.inputs), node.type, repr(sorted(node.attrs.items())))
            if key not in known:
                _check_node(static, node, [axes[v] for v in node.inputs], axes[value])
                known.add(key)
        except Error as error:
            text = f"{node.op} mixes the rows of a sequence ({error}), so the model cannot be run token by token"
            raise UnsupportedError(located(text, node.source)) from None


def _sizes(graph: Graph) -> tuple[int, int]:
    """Two primes that divide no static extent, so that a row axis shows by its extent."""
    static = {e for v in range(graph.value_count) for e in graph.type_of(v).shape if isinstance(e, int) and e}
    found = [p for p in _primes() if p > _CHOSEN and all(e % p for e in static)]
    return found[1], found[0]


def _primes() -> Iterator[int]:
    for n in range(11, 1000, 2):
        if all(n % d for d in range(3, n, 2)):
            yield n


def _axis_of(type: TensorType, sizes: tuple[int, int]) -> _Axis | None:
    """The one axis along which the value has rows; None if there is none."""
    found = [
        _Axis(kind, axis, extent // size)
        for axis, extent in enumerate(type.extents())
        for kind, size in zip(("token", "row"), sizes, strict=True)
        if extent and extent % size == 0
    ]
    if len(found) > 1:
        return _Axis("both", 0, 1)
    return found[0] if found else None


def _check_axes(graph: Graph, value: int, axes: Sequence[_Axis | None]) -> None:
    """Refuse what no element needs to be looked at for."""
    node, mine = graph.node_of(value), axes[value]
    assert node is not None
    theirs = [axes[v] for v in node.inputs]
    if mine is not None and mine.kind == "both":
        raise UnsupportedError("it pairs every row with every other")
    if mine is None and any(theirs):
        raise UnsupportedError("its result has no rows")
    if node.op == "attention":
        apart = any(a is None or (a.axis, a.inner) != (2, 1) for a in (mine, *theirs))
        if apart or not node.attrs["causal"] or node.attrs["mask"] != "none":
            raise UnsupportedError("it is not causal")


def _check_node(graph: Graph, node: Node, theirs: Sequence[_Axis | None], mine: _Axis | None) -> None:
    if mine is None or node.op == "attention" or not any(theirs):
        return
    types = [graph.type_of(v) for v in node.inputs]
    program = operator(node.op).program(types, node.type, node.attrs)
    shape = node.type.extents()
    for number in np.random.default_rng(0).integers(0, node.type.numel(), _SAMPLES):
        row = int(np.unravel_index(int(number), shape)[mine.axis]) // mine.inner
        watched = [_Watched(t, axis) for t, axis in zip(types, theirs, strict=True)]
        elements(program, watched, shape, np.array([number]))
        for tensor in watched:
            expected = row if tensor.axis is None or tensor.axis.kind == mine.kind else _CHOSEN
            if tensor.axis is not None and (tensor.axis.kind == "both" or tensor.rows - {expected}):
                raise UnsupportedError(f"row {row} reads row {min(tensor.rows - {expected}, default=row)}")


@dataclass
class _Watched:
    """A tensor of equal elements that notes which rows are asked for; integers of chosen rows are such a choice."""

    type: TensorType
    axis: _Axis | None
    rows: set[int] = field(default_factory=set)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.extents()

    def take(self, coordinates: Sequence[np.ndarray], made: np.ndarray) -> np.ndarray:
        """The value everywhere; rows are noted where `made`."""
        places = np.broadcast_arrays(*coordinates, made) if coordinates else [made]
        if self.axis is not None:
            self.rows.update(np.unique(places[self.axis.axis][places[-1]] // self.axis.inner).tolist())
        is_choice = self.axis is not None and self.axis.kind == "row" and self.type.dtype.is_int
        return np.full(places[-1].shape, _CHOSEN if is_choice else 0, self.type.dtype.numpy)
