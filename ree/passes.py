"""Graph passes before planning: outputs of their own, constant folding, removal of the unused, weights K-major.

Each gives a new graph with the same meaning; the graph is checked after every pass.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from ree.errors import GraphError
from ree.graph import Constant, Data, Graph, Node, check
from ree.limits import FOLDED_BYTES_MAX
from ree.ops.spec import operator
from ree.types import DType, TensorType

# dtypes of constants that products read as fast with k innermost: what an f32 result is made of is packed into panels
# either way, and an integer sum runs along k. The kernels printed for other floats have a column in each lane and read
# rows.
_INTEGERS = frozenset(dtype for dtype in DType if dtype.is_int)
_BLOCK_ROWS = 16  # of 4 bytes: one cache line of the transposed matrix
_BLOCK_ITEMS_MIN = 4096


def prepare(graph: Graph) -> Graph:
    """All passes, in order."""
    for step in (own_outputs, prune, fold, share_heads, prune, k_major):
        graph = step(graph)
        check(graph)
    return graph


def check_outputs(graph: Graph) -> None:
    """Hold a graph to what `own_outputs` makes of it (GraphError): a kernel writes each output, and it alone."""
    seen: set[int] = set()
    for position, value in enumerate(graph.outputs):
        if not _is_own(graph, value, seen):
            raise GraphError(f"output {position} is not the result of a node of its own")
        seen.add(value)


def _is_own(graph: Graph, value: int, others: Collection[int]) -> bool:
    node = graph.node_of(value)
    return node is not None and operator(node.op).kind not in ("view", "conv") and value not in others


def own_outputs(graph: Graph) -> Graph:
    """Every output is a node of its own, never an input, a constant, a view or a repetition.

    Nor a convolution, whose kernel writes channels-last: the copy becomes its epilogue.
    """
    nodes = list(graph.nodes)
    outputs: dict[int, None] = {}  # in order
    for value in graph.outputs:
        if not _is_own(graph, value, outputs):
            nodes.append(Node("copy", (value,), {}, graph.type_of(value)))
            value = graph.first_node + len(nodes) - 1
        outputs[value] = None
    return replace(graph, nodes=nodes, outputs=list(outputs))


def prune(graph: Graph) -> Graph:
    """The graph without nodes and constants that no output needs (inputs stay: they are the interface)."""
    needed = set(graph.outputs)
    for value in reversed(range(graph.first_node, graph.value_count)):
        node = graph.node_of(value)
        if value in needed and node is not None:
            needed.update(node.inputs)
    first_constant = len(graph.inputs)
    kept_constants = [v for v in range(first_constant, graph.first_node) if v in needed]
    kept_nodes = [v for v in range(graph.first_node, graph.value_count) if v in needed]
    number = {v: v for v in range(first_constant)}
    number.update({v: first_constant + n for n, v in enumerate([*kept_constants, *kept_nodes])})
    return replace(
        graph,
        constants=[graph.constants[v - first_constant] for v in kept_constants],
        nodes=[_renumbered(graph.nodes[v - graph.first_node], number) for v in kept_nodes],
        outputs=[number[v] for v in graph.outputs],
    )


def _renumbered(node: Node, number: dict[int, int]) -> Node:
    return replace(node, inputs=tuple(number[v] for v in node.inputs))


def fold(graph: Graph) -> Graph:
    """Nodes that depend on constants alone become constants, computed by the kernels that would run them."""
    frontier = _frontier(graph)
    if not frontier:
        return graph
    results = _compute(graph, frontier)
    folded = [
        Constant(f"folded_{v - graph.first_node}", graph.type_of(v), data)
        for v, data in zip(frontier, results, strict=True)
    ]
    number = {v: v for v in range(graph.first_node)}
    number.update({v: graph.first_node + n for n, v in enumerate(frontier)})
    nodes = []
    for offset, node in enumerate(graph.nodes):
        value = graph.first_node + offset
        if value not in number:
            nodes.append(_renumbered(node, number))
            number[value] = graph.first_node + len(frontier) + len(nodes) - 1
    return replace(
        graph,
        constants=[*graph.constants, *folded],
        nodes=nodes,
        outputs=[number[v] for v in graph.outputs],
    )


def _frontier(graph: Graph) -> list[int]:
    """Values to compute now: constant, read by something that is not, and more than a view or a fill."""
    constant = [len(graph.inputs) <= v < graph.first_node for v in range(graph.value_count)]
    for value in range(graph.first_node, graph.value_count):
        node = graph.node_of(value)
        assert node is not None
        constant[value] = node.type.is_static and all(constant[v] for v in node.inputs)
    uses = graph.uses()
    found: set[int] = set()
    for value in range(graph.first_node, graph.value_count):
        outside = any(not constant[user] for user in uses[value]) or value in graph.outputs
        if constant[value] and outside:
            source = _behind_views(graph, value)
            node = graph.node_of(source)
            small = graph.type_of(source).size_bytes() <= FOLDED_BYTES_MAX
            if node is not None and node.inputs and source not in graph.outputs and small:
                found.add(source)
    return sorted(found)


def _behind_views(graph: Graph, value: int) -> int:
    node = graph.node_of(value)
    while node is not None and operator(node.op).kind == "view":
        value = node.inputs[0]
        node = graph.node_of(value)
    return value


def _compute(graph: Graph, values: list[int]) -> list[np.ndarray]:
    from ree.plan.planner import Planner
    from ree.plan.weights import Weights

    part = _without_inputs(prune(own_outputs(replace(graph, outputs=list(values)))))
    plan = Planner(part, Weights(part.constants)).run()
    types = [part.type_of(v) for v in part.outputs]
    results = [np.empty(t.extents(), t.dtype.numpy) for t in types]
    plan.run([], [r.ctypes.data for r in results])
    return results


def share_heads(graph: Graph) -> Graph:
    """Attention over keys and values whose heads were repeated reads the heads themselves.

    The operator's own grouping of heads says the same (head h reads h / (H / Hk)), so no bit
    changes, and the repeated copies are not made.
    """
    nodes = list(graph.nodes)
    for position, node in enumerate(nodes):
        if node.op == "attention":
            k, v = (_before_repeat(graph, value) for value in node.inputs[1:3])
            if k is not None and v is not None and graph.type_of(k).shape[1] == graph.type_of(v).shape[1]:
                nodes[position] = replace(node, inputs=(node.inputs[0], k, v, *node.inputs[3:]))
    return replace(graph, nodes=nodes)


def _before_repeat(graph: Graph, value: int) -> int | None:
    """x [B, H, S, D] if the value is x reshaped to [B, H, 1, S, D], broadcast to [B, H, r, S, D]
    and reshaped to [B, H r, S, D]; else None."""
    chain = []
    for op in ("reshape", "broadcast", "reshape"):
        node = graph.node_of(value)
        if node is None or node.op != op:
            return None
        chain.append(node.type.shape)
        value = node.inputs[0]
    merged, wide, single = chain
    x = graph.type_of(value).shape
    if len(x) != 4 or len(wide) != 5 or single != (*x[:2], 1, *x[2:]) or wide != (*x[:2], wide[2], *x[2:]):
        return None
    return value if merged == (x[0], x[1] * wide[2], *x[2:]) else None  # type: ignore[operator]


def k_major(graph: Graph) -> Graph:
    """Constant matrices [k, n] that only products read, as their second operand, lie as [n, k] behind a permute.

    Whoever checks an element of a product opens a column of the matrix. K-major, the column lies together, 256 f32 in
    each chunk of the matrix's BLAKE3 tree; else every k lies in a chunk of its own. The products read the same numbers
    through other strides, so no bit changes. A matrix that anything else reads, too, stays as it is: a second form
    would take its memory twice. So do batches of matrices and floats that are not multiplied in f32: their products
    would run slower.
    """
    uses = graph.uses()
    chosen = [v for v in range(len(graph.inputs), graph.first_node) if _is_right_operand(graph, v, uses[v])]
    if not chosen:
        return graph
    constants = list(graph.constants)
    number = {v: v for v in range(graph.first_node)}
    number.update({v: v + len(chosen) for v in range(graph.first_node, graph.value_count)})
    views: list[Node] = []
    for value in chosen:
        old = constants[value - len(graph.inputs)]
        turned = TensorType(old.type.shape[::-1], old.type.dtype)
        data = transposed(old.data) if isinstance(old.data, np.ndarray) else Turned(old.data)
        constants[value - len(graph.inputs)] = Constant(old.name, turned, data)
        number[value] = graph.first_node + len(views)
        views.append(Node("permute", (value,), {"axes": (1, 0)}, old.type))
    nodes = [*views, *(_renumbered(node, number) for node in graph.nodes)]
    return replace(graph, constants=constants, nodes=nodes, outputs=[number[v] for v in graph.outputs])


def _is_right_operand(graph: Graph, value: int, users: Collection[int]) -> bool:
    """Whether a constant is a matrix of more than one row and column that is only ever multiplied from the left."""
    type = graph.type_of(value)
    if type.rank != 2 or min(type.extents()) < 2 or value in graph.outputs:
        return False
    nodes = [graph.node_of(user) for user in users]
    return bool(nodes) and all(n is not None and _multiplies(graph, n, value) for n in nodes)


def _multiplies(graph: Graph, node: Node, value: int) -> bool:
    """Whether a node is a product that reads this value as its second operand only, and as fast K-major."""
    if node.op != "matmul" or node.inputs[0] == value:
        return False
    in_f32 = node.type.dtype is graph.type_of(node.inputs[0]).dtype is DType.F32
    return in_f32 or graph.type_of(value).dtype in _INTEGERS


@dataclass(frozen=True, slots=True)
class Turned:
    """The transpose of a matrix that is read when it is needed."""

    data: Data

    def read(self) -> np.ndarray:
        return transposed(self.data.read())


def transposed(matrix: np.ndarray) -> np.ndarray:
    """A C-contiguous copy of a matrix's transpose, made in blocks that the processor's caches hold."""
    rows, cols = matrix.shape
    result = np.empty((cols, rows), matrix.dtype)
    step = max(_BLOCK_ROWS, _BLOCK_ITEMS_MIN // max(1, cols))
    for start in range(0, rows, step):
        result[:, start : start + step] = matrix[start : start + step].T
    return result


def _without_inputs(graph: Graph) -> Graph:
    """A graph that reads no input, without its inputs."""
    count = len(graph.inputs)
    number = {v: v - count for v in range(count, graph.value_count)}
    nodes = [_renumbered(node, number) for node in graph.nodes]
    return Graph([], graph.constants, nodes, [v - count for v in graph.outputs])
