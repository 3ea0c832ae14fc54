"""Random graphs: the planned program has the bits of the interpreter (HYPOTHESIS_PROFILE=long for many)."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ree import reference
from ree.graph import Graph, check
from ree.lower import Lowering, T
from ree.passes import prepare
from ree.program import Program
from ree.structure import TENSOR
from ree.types import DType, TensorType

_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-45, 3e38, 1.0, -2.5], np.float32)
UNARY = ("neg", "abs", "exp", "tanh", "sqrt", "maximum_zero", "copy")
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
EXTENTS = (1, 1, 2, 3, 5, 16, 17, 33)


class Maker:
    """Grows a graph of random operators that fit the values at hand."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.lowering = Lowering()
        self.arrays: list[np.ndarray] = []
        self.values: list[T] = []

    def input(self, shape: tuple[int, ...]) -> T:
        seed = self.rng.randint(0, 1 << 30)
        rng = np.random.default_rng(seed)
        data = rng.standard_normal(shape).astype(np.float32)
        flat = data.reshape(-1)
        if flat.size:
            where = rng.integers(0, flat.size, max(1, flat.size // 6))
            flat[where] = rng.choice(SPECIAL, where.size)
        self.arrays.append(data)
        value = self.lowering.input(f"x{len(self.arrays)}", TensorType(shape, DType.F32))
        self.values.append(value)
        return value

    def pick(self) -> T:
        return self.rng.choice(self.values)

    def like(self, shape: tuple[Any, ...]) -> T:
        """A value of this shape: one at hand, a reshaped or broadcast one, or a new input."""
        fitting = [v for v in self.values if v.shape == shape]
        rows = [v for v in self.values if v.shape == (*shape[:-1], 1)] if shape else []
        choices = [*fitting, *(self.lowering.broadcast(v, shape) for v in rows)]
        return self.rng.choice(choices) if choices else self.input(shape)

    def step(self) -> None:
        x, low = self.pick(), self.lowering
        kind = self.rng.choice(["unary", "binary", "reduce", "view", "matmul", "row", "cat", "conv", "linear"])
        if kind == "unary":
            op = self.rng.choice(UNARY)
            zero = low.full(x.shape, 0.0, DType.F32)
            self.values.append(low.emit("maximum", [x, zero]) if op == "maximum_zero" else low.emit(op, [x]))
        elif kind == "binary":
            self.values.append(low.emit(self.rng.choice(BINARY), [x, self.like(x.shape)]))
        elif kind == "reduce" and x.rank:
            axis = self.rng.randint(0, x.rank - 1)
            op = self.rng.choice(["sum", "amax", "mean"])
            if x.shape[axis] != 0:
                self.values.append(low.emit(op, [x], axes=(axis,), keepdim=(self.rng.random() < 0.5)))
        elif kind == "view":
            self.view(x)
        elif kind == "matmul" and x.rank >= 2:
            n = self.rng.choice(EXTENTS)
            self.values.append(low.emit("matmul", [x, self.like((*x.shape[:-2], x.shape[-1], n))]))
        elif kind == "row" and x.rank:
            self.values.append(low.emit("softmax", [x]))
        elif kind == "cat" and x.rank:
            axis = self.rng.randint(0, x.rank - 1)
            self.values.append(low.emit("cat", [x, self.like(x.shape)], axis=axis))
        elif kind == "conv":
            self.conv(x)
        elif kind == "linear" and x.rank >= 2:
            self.linear(x)

    def linear(self, x: T) -> None:
        """A product of all rows with a constant, a bias, and the leading axes in another order."""
        low, inner = self.lowering, int(x.shape[-1])
        rng = np.random.default_rng(self.rng.randint(0, 1 << 30))
        weight = low.constant(rng.standard_normal((inner, 3)).astype(np.float32), DType.F32)
        rows = low.reshape(x, (x.type.numel() // max(1, inner), inner))
        if not inner:
            return
        y = low.reshape(low.emit("matmul", [rows, weight]), (*x.shape[:-1], 3))
        y = low.emit("add", [y, low.full(y.shape, 0.5, DType.F32)])
        leading = self.rng.sample(range(y.rank - 1), y.rank - 1)
        self.values.append(low.emit("neg", [low.permute(y, [*leading, y.rank - 1])]))

    def conv(self, x: T) -> None:
        """A convolution of a value of three or four axes, by a constant kernel of extent 1 or 2."""
        if x.rank not in (3, 4) or min(int(n) for n in x.shape) < 1:
            return
        axes, channels = x.rank - 2, int(x.shape[1])
        kernel = tuple(min(self.rng.randint(1, 2), int(n)) for n in x.shape[2:])
        outputs = self.rng.choice([1, 3, 17])
        groups = channels if outputs % channels == 0 and (self.rng.random() < 0.5) else 1
        rng = np.random.default_rng(self.rng.randint(0, 1 << 30))
        weight = rng.standard_normal((outputs, channels // groups, *kernel)).astype(np.float32)
        ones, zeros = (1,) * axes, (0,) * axes
        attrs = {"stride": ones, "padding": zeros, "dilation": ones, "groups": groups}
        self.values.append(self.lowering.emit("conv", [x, self.lowering.constant(weight, DType.F32)], **attrs))

    def view(self, x: T) -> None:
        low = self.lowering
        choice = self.rng.choice(["permute", "flat", "unsqueeze", "slice", "flip"])
        if choice == "permute":
            self.values.append(low.permute(x, self.rng.sample(range(x.rank), x.rank)))
        elif choice == "flat":
            self.values.append(low.reshape(x, (x.type.numel(),)))
        elif choice == "unsqueeze" and x.rank < 4:
            self.values.append(low.unsqueeze(x, self.rng.randint(0, x.rank)))
        elif choice == "slice" and x.rank and isinstance(x.shape[0], int) and x.shape[0] > 1:
            self.values.append(low.emit("slice", [x], axis=0, start=1, step=1, length=x.shape[0] - 1))
        elif choice == "flip" and x.rank:
            self.values.append(low.emit("flip", [x], axes=(x.rank - 1,)))


def random_graph(rng: random.Random) -> tuple[Graph, list[np.ndarray]]:
    """A graph of up to a dozen operators, with inputs for it."""
    maker = Maker(rng)
    maker.input(tuple(rng.choice(EXTENTS) for _ in range(rng.randint(0, 4))))
    for _ in range(rng.randint(1, 12)):
        maker.step()
        if maker.values[-1].type.numel() > 20000 and len(maker.values) > 1:
            maker.values.pop()
    graph = maker.lowering.finish([maker.values[-1], maker.pick()])
    check(graph)
    return graph, maker.arrays


def program_of(graph: Graph, arrays: list[np.ndarray]) -> Program:
    structure = ({"tuple": [TENSOR] * len(arrays)}, {"list": [TENSOR] * len(graph.outputs)})
    return Program(prepare(graph), *structure)


def random_program(rng: random.Random) -> tuple[Program, list[np.ndarray]]:
    """The compiled form of a random graph, with inputs for it."""
    graph, arrays = random_graph(rng)
    return program_of(graph, arrays), arrays


@given(st.randoms(use_true_random=True))
def test_random_graph(rng: random.Random) -> None:
    graph, arrays = random_graph(rng)
    expected = reference.evaluate(graph, arrays)
    for found, exact in zip(program_of(graph, arrays).run_flat(arrays), expected, strict=True):
        assert found.shape == exact.shape and found.tobytes() == exact.tobytes()
