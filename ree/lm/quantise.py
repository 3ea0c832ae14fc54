"""int8 weights and activations: products with constant matrices become exact integer products.

Symmetric, without zero points: each output channel of a matrix has a scale of its own, and so has each row of
activations, as it comes (docs/SPEC.md, "int8 products"). All else stays in floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ree.graph import Constant, Data, Graph, check
from ree.lower import Lowering, T
from ree.ops.int8 import LARGEST, product
from ree.passes import prune
from ree.types import DType, TensorType

COLUMNS_MIN = 64  # a product with fewer columns stays in floats: a router of experts, whose choice an error could turn


def quantise(graph: Graph) -> Graph:
    """The graph with every product of rows by a constant matrix of COLUMNS_MIN columns or more in int8.

    The matrices must be f32, bf16 or f16, and lie as [columns, k] behind a permute, as `ree.passes.k_major` leaves
    them.
    """
    result = prune(_Rewriting(graph).run())
    check(result)
    return result


class _Rewriting:
    """One walk over a graph's nodes that emits them into a new one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.lowering = Lowering()
        self.lowering.symbols = dict(graph.symbols)
        self.values: dict[int, T] = {}
        self.matrices: dict[int, tuple[T, T]] = {}  # constant -> its bytes [n, k] and its channels' scales [n]

    def run(self) -> Graph:
        graph, lowering = self.graph, self.lowering
        for value, given in enumerate(graph.inputs):
            self.values[value] = lowering.input(given.name, given.type)
        for offset, node in enumerate(graph.nodes):
            value = graph.first_node + offset
            lowering.source = node.source
            matrix = self._matrix(node.inputs[1]) if node.op == "matmul" else None
            if matrix is None:
                inputs = [self._value(v) for v in node.inputs]
                self.values[value] = lowering.emit(node.op, inputs, **node.attrs)
            else:
                self.values[value] = self._product(self._value(node.inputs[0]), *matrix, node.type)
        return lowering.finish([self.values[v] for v in graph.outputs])

    def _value(self, value: int) -> T:
        constant = self.graph.constant_of(value)
        if constant is not None and value not in self.values:
            self.values[value] = self._constant(constant.data, constant.type, constant.name)
        return self.values[value]

    def _constant(self, data: np.ndarray | Data, type: TensorType, name: str) -> T:
        if isinstance(data, np.ndarray):
            return self.lowering.constant(data, type.dtype, name)
        return self.lowering.stored(data, type, name)

    def _matrix(self, value: int) -> tuple[T, T] | None:
        """Bytes [n, k] and scales [n] of a product's second operand, if it is a constant matrix to be quantised."""
        node = self.graph.node_of(value)
        if node is None or node.op != "permute" or tuple(node.attrs["axes"]) != (1, 0):
            return None
        constant = self.graph.constant_of(node.inputs[0])
        if constant is None or constant.type.extents()[0] < COLUMNS_MIN:
            return None
        if constant.type.dtype not in (DType.F32, DType.BF16, DType.F16):
            return None
        if node.inputs[0] not in self.matrices:
            n, k = constant.type.extents()
            quantised = Quantised(constant)
            scales = self.lowering.constant(quantised.scales(), DType.F32, f"{constant.name}.scale")
            data = self.lowering.stored(quantised, TensorType((n, k), DType.I8), f"{constant.name}.int8")
            self.matrices[node.inputs[0]] = (data, scales)
        return self.matrices[node.inputs[0]]

    def _product(self, x: T, matrix: T, scales: T, type: TensorType) -> T:
        """quantised(x) @ matrix.T * (the row's scale * the channel's), in the dtype that the product had."""
        x = self.lowering.cast(x, DType.F32)
        return self.lowering.cast(product(self.lowering, x, matrix, scales), type.dtype)


_PART_FLOATS = 1 << 20


@dataclass(frozen=True, slots=True)
class Quantised:
    """The bytes of a constant matrix [n, k], rounded channel by channel when they are needed."""

    constant: Constant

    def scales(self) -> np.ndarray:
        """Of each channel: its largest magnitude / 127, f32 [n]."""
        return np.concatenate([np.abs(rows).max(axis=1, initial=0) / np.float32(LARGEST) for rows in self._rows()])

    def read(self) -> np.ndarray:
        """int8 [n, k]: value / scale rounded to nearest, ties to even; 0 where the scale is 0."""
        return np.concatenate([_quantised(rows) for rows in self._rows()])

    def _rows(self) -> Iterator[np.ndarray]:
        """The matrix in float32, in parts of some rows, so that a widened copy of it need not exist."""
        data = self.constant.array()
        step = max(1, _PART_FLOATS // max(1, data.shape[1]))
        for start in range(0, len(data), step):
            rows = data[start : start + step]
            is_bf16 = self.constant.type.dtype is DType.BF16
            yield (rows.astype(np.uint32) << 16).view(np.float32) if is_bf16 else rows.astype(np.float32)


def _quantised(rows: np.ndarray) -> np.ndarray:
    scale = np.abs(rows).max(axis=1, keepdims=True, initial=0) / np.float32(LARGEST)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.where(scale == 0, np.float32(0), np.rint(rows / scale))
    return np.clip(np.nan_to_num(steps, nan=0.0), -LARGEST, LARGEST).astype(np.int8)
