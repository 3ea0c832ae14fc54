"""ATen FX graph -> Graph: walks the FX nodes and applies the rules that stand beside each operator.

A rule gets a `Lowering` and the call's arguments, where tensors have become `T` handles,
symbolic integers `Dim`s, torch dtypes `DType`s and lists tuples; it returns one `T`, or a
tuple of them (None for an output that nobody reads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ree import dims
from ree.dims import Dim
from ree.errors import DTypeError, Error, ShapeError, UnsupportedError
from ree.graph import Constant, Data, Graph, GraphInput, Node
from ree.ops.spec import lowering, operator
from ree.types import DType, TensorType

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class T:
    """A tensor value of the graph under construction."""

    id: int
    type: TensorType

    @property
    def shape(self) -> tuple[int | Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def rank(self) -> int:
        return self.type.rank


class Lowering:
    """What a lowering rule works with: emits nodes, casts, broadcasts, makes constants.

    Inputs and constants get their final numbers first; while lowering, constants made on
    the way are numbered in a space of their own and renumbered at the end.
    """

    def __init__(self) -> None:
        self._inputs: list[GraphInput] = []
        self._constants: list[Constant] = []
        self._nodes: list[Node] = []
        self._handles: list[tuple[str, int]] = []  # id -> ("input" | "constant" | "node", position)
        self._known: dict[tuple[Any, ...], T] = {}
        self.symbols: dict[str, tuple[int, int]] = {}
        self.outputs: tuple[TensorType | None, ...] = ()  # types that torch gives the call being lowered
        self.target = ""
        self.source = ""
        self.seed = 0  # of all random numbers of the program
        self.random_streams = 0  # random nodes so far: each draws from a stream of its own

    # -- values -------------------------------------------------------------------
    def input(self, name: str, type: TensorType) -> T:
        self._inputs.append(GraphInput(name, type))
        return self._handle("input", len(self._inputs) - 1, type)

    def constant(self, data: np.ndarray, dtype: DType, name: str = "") -> T:
        """A constant tensor; the array must be C-contiguous of the dtype's NumPy dtype."""
        type = TensorType(tuple(int(n) for n in data.shape), dtype)
        name = name or f"constant_{len(self._constants)}"
        self._constants.append(Constant(name, type, data))
        return self._handle("constant", len(self._constants) - 1, type)

    def stored(self, data: Data, type: TensorType, name: str) -> T:
        """A constant tensor whose numbers are read when they are needed."""
        self._constants.append(Constant(name, type, data))
        return self._handle("constant", len(self._constants) - 1, type)

    def emit(self, op: str, inputs: Sequence[T] = (), **attrs: Any) -> T:
        """A node; its type follows from the operator's shape rule. Equal nodes are one."""
        type = operator(op).infer([t.type for t in inputs], attrs)
        key = (op, tuple(t.id for t in inputs), tuple(sorted((k, _key(v)) for k, v in attrs.items())))
        if key in self._known:
            return self._known[key]
        node = Node(op, tuple(t.id for t in inputs), dict(sorted(attrs.items())), type, self.source)
        self._nodes.append(node)
        self._known[key] = self._handle("node", len(self._nodes) - 1, type)
        return self._known[key]

    def producer(self, x: T) -> str | None:
        """Name of the operator that made a value; None for inputs and constants."""
        kind, position = self._handles[x.id]
        return self._nodes[position].op if kind == "node" else None

    def is_constant(self, x: T) -> bool:
        """True for a constant, or a view of one."""
        kind, position = self._handles[x.id]
        while kind == "node" and operator(self._nodes[position].op).kind == "view":
            kind, position = self._handles[self._nodes[position].inputs[0]]
        return kind == "constant"

    # -- helpers that most rules need -------------------------------------------------
    @property
    def out(self) -> TensorType:
        """The type that torch gives the (first) output of the call being lowered."""
        if not self.outputs or self.outputs[0] is None:
            raise UnsupportedError(f"{self.target} gives no tensor")
        return self.outputs[0]

    def full(self, shape: Sequence[int | Dim], value: int | float | bool, dtype: DType) -> T:
        if isinstance(value, int | float):  # one form for one value: 1 and 1.0 are equal nodes
            value = bool(value) if dtype is DType.BOOL else float(value) if dtype.is_float else int(value)
        return self.emit("full", shape=tuple(shape), value=value, dtype=dtype.value)

    def cast(self, x: T, dtype: DType) -> T:
        return x if x.dtype is dtype else self.emit("cast", [x], dtype=dtype.value)

    def broadcast(self, x: T, shape: Sequence[int | Dim]) -> T:
        """NumPy broadcasting to a larger or equal shape."""
        return x if x.shape == tuple(shape) else self.emit("broadcast", [x], shape=tuple(shape))

    def reshape(self, x: T, shape: Sequence[int | Dim]) -> T:
        return x if x.shape == tuple(shape) else self.emit("reshape", [x], shape=tuple(shape))

    def permute(self, x: T, axes: Sequence[int]) -> T:
        axes = tuple(a % x.rank for a in axes) if x.rank else ()
        return x if axes == tuple(range(x.rank)) else self.emit("permute", [x], axes=axes)

    def unsqueeze(self, x: T, axis: int) -> T:
        shape = list(x.shape)
        shape.insert(axis % (x.rank + 1), 1)
        return self.reshape(x, shape)

    def broadcast_shape(self, *shapes: Sequence[int | Dim]) -> tuple[int | Dim, ...]:
        """The common shape by NumPy's rule.

        Of two unequal dynamic dimensions the simpler is taken: torch has proved them equal, and
        they are compared again whenever the program is bound to sizes.
        """
        rank = max(len(s) for s in shapes)
        result: list[int | Dim] = [1] * rank
        for shape in shapes:
            for axis, extent in enumerate(shape, start=rank - len(shape)):
                if result[axis] == 1:
                    result[axis] = extent
                elif extent != 1 and extent != result[axis]:
                    if isinstance(extent, int) and isinstance(result[axis], int):
                        raise ShapeError(f"{self.target}: shapes {shapes} do not broadcast")
                    result[axis] = min(extent, result[axis], key=dims.complexity)
        return tuple(result)

    def pointwise(self, op: str, *args: T | int | float | bool, dtype: DType | None = None, **attrs: Any) -> T:
        """Cast to one dtype (torch's promotion if None), broadcast all operands, apply."""
        common = dtype or self.promote(*args)
        tensors = [a if isinstance(a, T) else self.full((), a, common) for a in args]
        shape = self.broadcast_shape(*(t.shape for t in tensors))
        return self.emit(op, [self.broadcast(self.cast(t, common), shape) for t in tensors], **attrs)

    def promote(self, *args: T | int | float | bool) -> DType:
        """The dtype that torch computes in for these operands (tensors, 0-d tensors, numbers)."""
        import torch

        from ree.capture import to_torch_dtype

        state = {"dimResult": None, "zeroResult": None, "wrappedResult": None}
        for a in args:
            if isinstance(a, T):
                slot = "dimResult" if a.rank else "zeroResult"
                dtype = to_torch_dtype(a.dtype)
            else:
                slot = "wrappedResult"
                dtype = {bool: torch.bool, int: torch.int64, Dim: torch.int64}.get(type(a), torch.get_default_dtype())
            old = state[slot]
            state[slot] = dtype if old is None else torch.promote_types(old, dtype)
        dtype = _combine(torch, state)
        from ree.capture import from_torch_dtype

        return from_torch_dtype(dtype)

    def axis(self, axis: int, rank: int) -> int:
        """A dimension number made non-negative (0-d tensors count as one axis)."""
        rank = max(rank, 1)
        if not -rank <= axis < rank:
            raise ShapeError(f"{self.target}: axis {axis} of {rank} axes")
        return axis % rank

    def unsupported(self, what: str, advice: str = "") -> UnsupportedError:
        """The error for an option that is not defined; the caller raises it."""
        text = f"{self.target}: {what} is not supported"
        return UnsupportedError(text + (f"; {advice}" if advice else ""))

    # -- calls --------------------------------------------------------------------------
    def call(
        self,
        target: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: tuple[TensorType | None, ...],
        source: str,
    ) -> Any:
        """Apply the rule of `target`; errors name the operator and the user's line."""
        self.target, self.outputs, self.source = target, outputs, source
        try:
            result = lowering(target)(self, *args, **kwargs)
        except Error as error:
            raise type(error)(located(str(error), source)) from None
        self._check(result)
        return result

    def _check(self, result: Any) -> None:
        found = result if isinstance(result, tuple) else (result,)
        for value, expected in zip(found, self.outputs, strict=False):
            if isinstance(value, T) and expected is not None:
                if value.dtype is not expected.dtype:
                    raise DTypeError(f"{self.target} lowered to {value.type}, torch gives {expected}")
                both = zip(value.shape, expected.shape, strict=False)
                wrong = any(a != b for a, b in both if isinstance(a, int) and isinstance(b, int))
                if value.rank != expected.rank or wrong:
                    raise ShapeError(f"{self.target} lowered to {value.type}, torch gives {expected}")

    def finish(self, outputs: Sequence[T]) -> Graph:
        """The graph, with inputs, constants and nodes renumbered in that order."""
        first = {"input": 0, "constant": len(self._inputs), "node": len(self._inputs) + len(self._constants)}
        number = [first[kind] + position for kind, position in self._handles]
        nodes = [Node(n.op, tuple(number[i] for i in n.inputs), n.attrs, n.type, n.source) for n in self._nodes]
        return Graph(self._inputs, self._constants, nodes, [number[t.id] for t in outputs], dict(self.symbols))

    def _handle(self, kind: str, position: int, type: TensorType) -> T:
        self._handles.append((kind, position))
        return T(len(self._handles) - 1, type)


def located(text: str, source: str) -> str:
    """An error's text with the user's line, once."""
    return f"{text} (at {source})" if source and "(at " not in text else text


def _key(value: Any) -> Any:
    """Attributes that compare equal but mean different things (1, 1.0, True, -0.0) stay apart."""
    if isinstance(value, tuple):
        return tuple(_key(item) for item in value)
    return (type(value).__name__, repr(value))


def _combine(torch: Any, state: Mapping[str, Any]) -> Any:
    """torch's three-level promotion: tensors, then 0-d tensors, then numbers, by category."""

    def category(dtype: Any) -> int:
        return 2 if dtype.is_floating_point else 0 if dtype == torch.bool else 1

    result = None
    for slot in ("dimResult", "zeroResult", "wrappedResult"):
        dtype = state[slot]
        if dtype is None:
            continue
        if result is None:
            result = dtype
        elif category(dtype) > category(result):
            result = torch.promote_types(result, dtype)
    return result
