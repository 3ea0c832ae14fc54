"""Parts of language models as plain plans: products of bytes, mixtures of experts, whole models in int8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ree.capture import to_numpy
from ree.lm import experts
from ree.lower import Lowering, T
from ree.ops.int8 import product
from ree.plan.plan import Plan
from ree.program import Program
from ree.types import DType, TensorType
from tools.cross.job import Case
from tools.cross.models import case, hard, normal
from tools.cross.streamed import binding, model

# m, n, k around tiles, panels, steps of four and chunks
INT8_SHAPES = (
    (1, 1, 1), (2, 15, 3), (3, 33, 4), (5, 16, 64), (6, 31, 255), (7, 64, 257), (13, 17, 1024), (14, 65, 1027),
    (29, 130, 70), (1, 257, 2051),
)  # fmt: skip
WRAPPING = 140_001  # products of bytes near -128 whose sum is beyond 2^31


def _of_program(name: str, program: Program, inputs: Sequence[np.ndarray]) -> Case:
    plan: Plan = program.plan(())
    return Case(name, plan, list(inputs), [plan.graph.type_of(v) for v in plan.graph.outputs], program)


def _bytes(shape: tuple[int, int], seed: int) -> np.ndarray:
    """All bytes, the least and the greatest often."""
    random = np.random.default_rng(seed)
    ends, all_bytes = random.choice([-128, 127], shape), random.integers(-128, 128, shape)
    return np.where(random.random(shape) < 0.3, ends, all_bytes).astype(np.int8)


class _Sheet:
    """A program of products of bytes that have nothing to do with one another."""

    def __init__(self) -> None:
        self.lowering = Lowering()
        self.inputs: list[np.ndarray] = []
        self.results: list[T] = []

    def _input(self, array: np.ndarray, dtype: DType) -> T:
        self.inputs.append(array)
        return self.lowering.input(f"x{len(self.inputs)}", TensorType(array.shape, dtype))

    def add_sums(self, a: np.ndarray, b: np.ndarray) -> None:
        """Bytes [m, k] times constant bytes [k, n], which lie by rows."""
        operands = [self._input(a, DType.I8), self.lowering.constant(b, DType.I8)]
        self.results.append(self.lowering.emit("matmul", operands, out=DType.I32.value))

    def add_product(self, m: int, n: int, k: int) -> None:
        """Floats, of which some are not finite, rounded to bytes, times constant bytes that lie by columns."""
        rows = self._input(to_numpy(hard(m, k, seed=k)), DType.F32)
        matrix = self.lowering.constant(_bytes((n, k), n), DType.I8)
        scales = self.lowering.constant(to_numpy(normal(n, seed=n)), DType.F32)
        self.results.append(product(self.lowering, rows, matrix, scales))

    def case(self, name: str) -> Case:
        places = [{"tuple": ["*"] * len(self.inputs)}, {"dict": []}]
        graph = self.lowering.finish(self.results)
        return _of_program(name, Program(graph, {"tuple": places}, {"tuple": ["*"] * len(self.results)}), self.inputs)


def int8_products() -> Case:
    """Exact sums, and products of floats by way of bytes, at `INT8_SHAPES`."""
    sheet = _Sheet()
    for m, n, k in INT8_SHAPES:
        sheet.add_sums(_bytes((m, k), 3 * k + m), _bytes((k, n), k + n))
        sheet.add_product(m, n, k)
    return sheet.case("int8 products")


def int8_wrapped() -> Case:
    """Sums that leave 32 bits."""
    sheet, random = _Sheet(), np.random.default_rng(6)
    sheet.add_sums(*(random.integers(-128, -124, shape, np.int8) for shape in ((3, WRAPPING), (WRAPPING, 17))))
    return sheet.case("int8 sums that wrap")


class Experts(nn.Module):
    """Rows through matrices of several experts, which lie by rows, and by columns."""

    def __init__(self, count: int, n: int, k: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.by_rows = nn.Parameter(hard(count, n, k, seed=n).to(dtype))
        self.by_columns = nn.Parameter(normal(count, k, n, seed=k).to(dtype))

    def forward(self, x: Tensor, expert: Tensor) -> tuple[Tensor, ...]:
        linear = torch.ops.ree.expert_linear
        return linear(x, self.by_rows, expert), linear(x * 0.5, self.by_columns.transpose(1, 2), expert)


def _experts(rows: int, count: int, n: int, k: int, dtype: torch.dtype = torch.float32) -> Case:
    experts.register()
    expert = torch.randint(0, count, (rows,), generator=torch.Generator().manual_seed(rows))
    name = f"experts {rows} {count} {n} {k} in {dtype}"
    return case(name, Experts(count, n, k, dtype), hard(rows, k, seed=rows).to(dtype), expert)


def wrong_expert() -> Case:
    """Rows whose experts are none: they are not written, and the status says so."""
    experts.register()
    x, expert = normal(9, 20), torch.tensor([0, 2, 3, -1, 1, 1 << 40, 0, 2, 1])
    return case("experts out of range", Experts(3, 40, 20, torch.float32), x, expert)


def _whole(dtype: str) -> Case:
    """A small language model over 21 rows of one sequence, without a cache."""
    dynamic = model("llama", dtype)
    tokens = np.random.default_rng(5).integers(0, 97, (1, 21))
    inputs = [tokens, np.arange(21)[None], np.array([20, 0, 7])]
    static = Program(dynamic.static(binding(dynamic, 21, 3)), dynamic.input_structure, dynamic.output_structure)
    return _of_program(f"llama in {dtype}", static, inputs)


def quick() -> list[Case]:
    """Few of everything."""
    return [int8_products(), _experts(19, 4, 33, 257), _experts(70, 3, 65, 40, torch.bfloat16)]


def full() -> list[Case]:
    """The quick cases, experts around chunks, tiles and panels in all dtypes, sums that wrap, a whole model in int8."""
    shapes = ((1, 1, 1, 1), (9, 4, 17, 255), (29, 3, 130, 16), (300, 2, 40, 5), (8, 64, 24, 20), (45, 1, 64, 300))
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    each = [_experts(*shape, dtypes[number % 3]) for number, shape in enumerate(shapes)]
    return [*quick(), int8_wrapped(), *each, _whole("int8")]
