"""Runs a static graph node by node through the interpreter: slow, and the authority.

Every faster way to run a graph must give these bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ree.element.interpret import interpret
from ree.graph import Graph
from ree.ops.spec import operator


def evaluate(graph: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of a static graph for inputs in order (C-contiguous, dtypes of `DType.numpy`)."""
    values: list[np.ndarray] = [*arrays, *(constant.array() for constant in graph.constants)]
    for node in graph.nodes:
        types = [graph.type_of(v) for v in node.inputs]
        program = operator(node.op).program(types, node.type, node.attrs)
        shape = node.type.extents()
        (result,) = interpret(program, [values[v] for v in node.inputs], shape)
        values.append(result)
    return [values[v] for v in graph.outputs]
