"""Products of 16-bit floats: widened, multiplied in f32, rounded; and products whose result is wider than its operands.

The bits are those of the definition on 16-bit tensors, on every instruction set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ree
from ree import passes, reference
from ree.capture import capture, to_numpy
from ree.element.encode import digest
from ree.errors import DTypeError, ShapeError
from ree.graph import Constant, Graph, GraphInput, Node, check
from ree.ops.spec import operator
from ree.plan.planner import Planner
from ree.plan.weights import Weights
from ree.types import DType, TensorType
from ree_kernels import cpu
from tests.receipt_vectors import SIGNER
from tests.test_kernels_matmul import dot

NARROW = (torch.bfloat16, torch.float16)


@pytest.fixture(params=cpu.supported())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Programs planned in this test run on one instruction set."""
    monkeypatch.setenv(cpu.ISA_VARIABLE, request.param)
    cpu.kernels.cache_clear()
    yield request.param
    cpu.kernels.cache_clear()


class Lambda(nn.Module):
    """A function of the inputs and of weights in a dtype of 16 bits."""

    def __init__(self, function: Callable[..., Any], *weights: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w in weights)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs, *self.weights)


def same_bits(model: nn.Module, *inputs: torch.Tensor) -> ree.Program:
    """The program, which gives the interpreter's bits for the graph as captured."""
    program = ree.compile(model.eval(), inputs)
    found = [to_numpy(t) for t in torch.utils._pytree.tree_leaves(program(*inputs))]
    expected = reference.evaluate(capture(model, inputs).graph, [to_numpy(x) for x in inputs])
    assert [a.tobytes() for a in found] == [b.tobytes() for b in expected]
    return program


def operators(program: ree.Program) -> list[str]:
    return [node.op for node in program.graph.nodes]


class Block(nn.Module):
    """Three products of one tensor, a gate, a residual, a norm."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d)
        self.gate, self.up = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden)
        self.side, self.down = nn.Linear(d, d), nn.Linear(hidden, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        result: torch.Tensor = x + self.side(y) + self.down(F.silu(self.gate(y)) * self.up(y))
        return result


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "one row": lambda: (nn.Linear(300, 129), (1, 300)),
    "no bias": lambda: (nn.Linear(257, 33, bias=False), (17, 257)),
    "many rows": lambda: (nn.Linear(31, 70), (67, 31)),
    "three axes": lambda: (nn.Linear(40, 50), (2, 9, 40)),
    "mlp": lambda: (nn.Sequential(nn.Linear(36, 90), nn.GELU(), nn.Linear(90, 36)), (5, 36)),
    "block": lambda: (Block(40, 72), (2, 3, 40)),
    "empty": lambda: (nn.Linear(8, 5), (0, 8)),
}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, dtype: torch.dtype, isa: str) -> None:
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    program = same_bits(model.to(dtype), torch.randn(shape).to(dtype))
    products = [node for node in program.graph.nodes if node.op == "matmul"]
    assert products and all(node.attrs == {"out": "f32"} for node in products)
    assert all(c.type.dtype.value == ("bf16" if dtype is torch.bfloat16 else "f16") for c in program.graph.constants)
    wide = ree.compile(model.float(), torch.zeros(shape))  # what follows a product in f32 follows it here, too
    hosted, hosted_wide = (
        [step.epilogue is not None for step in p.plan(()).steps if step.name == "matmul"] for p in (program, wide)
    )
    assert len(hosted) == len(hosted_wide) == (len(products) if 0 not in shape else 0)
    assert all(a >= b for a, b in zip(hosted, hosted_wide, strict=True)) and any(hosted) == (0 not in shape)


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]] = {
    "mm [k, n]": (torch.mm, ((5, 40),), ((40, 70),)),
    "addmm": (lambda x, c, w: torch.addmm(c, x, w, beta=0.5, alpha=3), ((5, 40),), ((70,), (40, 70))),
    "vector": (lambda x, w: x @ w, ((300,),), ((300, 20),)),
    "times a vector": (lambda x, w: x @ w, ((3, 300),), ((300,),)),
    "constant on the left": (lambda x, w: w @ x, ((40, 7),), ((20, 40),)),
    "two inputs": (torch.matmul, ((5, 40), (40, 33)), ()),
    "batches": (torch.bmm, ((3, 5, 40), (3, 40, 33)), ()),
    "baddbmm": (torch.baddbmm, ((3, 5, 33), (3, 5, 40), (3, 40, 33)), ()),
    "addbmm": (torch.addbmm, ((5, 33), (3, 5, 40), (3, 40, 33)), ()),
    "a batch of constants": (lambda x, w: x @ w, ((3, 5, 40),), ((3, 40, 33),)),
    "one matrix both ways": (lambda x, w: x @ w @ w.t(), ((5, 40),), ((40, 70),)),
    "every other row": (lambda x, w: x @ w[::2], ((5, 40),), ((80, 70),)),
    "a copy of a view": (lambda x, w: x @ w.t().reshape(40, 70), ((5, 40),), ((70, 40),)),
    "a weight that is computed": (lambda x, w: x @ (w * 2), ((5, 40),), ((40, 70),)),
    "dot": (torch.dot, ((300,), (300,)), ()),
    "inner": (torch.inner, ((3, 300), (4, 300)), ()),
}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, dtype: torch.dtype, isa: str) -> None:
    torch.manual_seed(1)
    function, inputs, weights = FUNCTIONS[name]
    model = Lambda(function, *(torch.randn(s).to(dtype) for s in weights))
    same_bits(model, *(torch.randn(s).to(dtype) for s in inputs))


@pytest.mark.parametrize("dtype", NARROW)
def test_special_values(dtype: torch.dtype, isa: str) -> None:
    """NaN, infinities, zeros, subnormals and overflow of the result, in both operands."""
    torch.manual_seed(2)
    odd = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 6e-8, -6e-8, torch.finfo(dtype).max]
    x, w = torch.randn(9, 40), torch.randn(50, 40)
    for n, value in enumerate(odd):
        x[n % 9, n * 5], w[n * 6, (n * 7) % 40] = value, value
    same_bits(Lambda(lambda x, w: F.linear(x, w), w.to(dtype)), x.to(dtype))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 17, 257), (17, 33, 20), (2, 5, 0)])
def test_the_bits_are_those_of_the_definition(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    """What is lowered now equals one `matmul` node on 16-bit tensors, the meaning of the operator."""
    torch.manual_seed(3)
    x, w = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    types = [TensorType(tuple(t.shape), DType("bf16" if dtype is torch.bfloat16 else "f16")) for t in (x, w)]
    node = Node("matmul", (0, 1), {}, TensorType((m, n), types[0].dtype))
    plain = Graph([GraphInput("x", types[0])], [Constant("w", types[1], to_numpy(w))], [node], [2])
    (expected,) = reference.evaluate(plain, [to_numpy(x)])
    assert to_numpy(ree.compile(Lambda(torch.mm, w), x)(x)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", NARROW)
def test_accuracy(dtype: torch.dtype) -> None:
    """A result is the exact one, rounded: within half a unit in the last place and the error of the sum in f32."""
    torch.manual_seed(4)
    x, w = torch.randn(20, 500).to(dtype), torch.randn(60, 500).to(dtype)
    found = ree.compile(Lambda(F.linear, w), x)(x).double()
    exact = x.double() @ w.double().t()
    half = exact.abs() * torch.finfo(dtype).eps / 2
    sum_error = 500 * 2.0**-24 * (x.double().abs() @ w.double().abs().t())
    assert bool(((found - exact).abs() <= half + sum_error).all())
    assert bool(((found - exact).abs() > half / 4).any())


def test_one_cast_is_shared() -> None:
    """Products of one tensor read one widened copy."""
    model = Block(40, 72).to(torch.bfloat16)
    program = ree.compile(model, torch.zeros(3, 40, dtype=torch.bfloat16))
    reads = [node.inputs[0] for node in program.graph.nodes if node.op == "matmul"]
    assert len(reads) == 4 and len(set(reads)) == 2


def test_a_bfloat16_matrix_is_packed_in_half_the_memory(isa: str) -> None:
    torch.manual_seed(5)
    sizes = {}
    for dtype in (torch.float32, *NARROW):
        model, x = nn.Linear(256, 320, bias=False).to(dtype), torch.randn(3, 256).to(dtype)
        buffers = {slot.buffer for step in same_bits(model, x).plan(()).steps for _, slot in step.pointers}
        (sizes[dtype],) = [b.size_bytes for b in buffers if b.kind == "packed"]
    assert sizes[torch.bfloat16] == 320 * 256 * 2
    assert sizes[torch.float16] == sizes[torch.float32] > 2 * sizes[torch.bfloat16]


# -- mixed operands -------------------------------------------------------------------------


def random_of(rng: np.random.Generator, type: TensorType) -> np.ndarray:
    shape = type.extents()
    if type.dtype is DType.BF16:
        return (rng.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if type.dtype.is_int:
        return rng.integers(-128, 128, shape).astype(type.dtype.numpy)
    return rng.standard_normal(shape).astype(type.dtype.numpy)


def run(graph: Graph, *inputs: np.ndarray) -> np.ndarray:
    """The one output of a graph by its plan, held to the interpreter."""
    check(graph)
    out = np.empty(graph.type_of(graph.outputs[0]).extents(), graph.type_of(graph.outputs[0]).dtype.numpy)
    Planner(graph, Weights(graph.constants)).run().run([x.ctypes.data for x in inputs], [out.ctypes.data])
    (expected,) = reference.evaluate(graph, inputs)
    assert out.tobytes() == expected.tobytes()
    return out


def product(x: TensorType, w: TensorType, out: str, data: np.ndarray | None) -> Graph:
    """x @ w with a constant w (`data`) or a second input."""
    node = Node("matmul", (0, 1), {"out": out}, TensorType((*x.shape[:-1], w.shape[-1]), DType(out)))
    if data is None:
        return Graph([GraphInput("x", x), GraphInput("w", w)], [], [node], [2])
    return Graph([GraphInput("x", x)], [Constant("w", w, data)], [node], [2])


FLOATS = (DType.F32, DType.BF16, DType.F16)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("right", FLOATS)
@pytest.mark.parametrize("left", FLOATS)
def test_mixed_floats(left: DType, right: DType, constant: bool, isa: str) -> None:
    rng = np.random.default_rng(6)
    for batch, m, n, k in (((), 5, 33, 257), ((), 1, 40, 16), ((2,), 3, 5, 20)):
        x, w = TensorType((*batch, m, k), left), TensorType((*batch, k, n), right)
        a, b = random_of(rng, x), random_of(rng, w)
        found = run(product(x, w, "f32", b if constant else None), a, *([] if constant else [b]))
        np.testing.assert_array_equal(found, dot(*(wide(v, t.dtype) for v, t in ((a, x), (b, w)))))


def wide(data: np.ndarray, dtype: DType) -> np.ndarray:
    return (data.astype(np.uint32) << 16).view(np.float32) if dtype is DType.BF16 else data.astype(np.float32)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 17, 257), (17, 33, 1000), (2, 3, 0)])
def test_int8_sums_are_exact(m: int, n: int, k: int, constant: bool) -> None:
    x, w = TensorType((m, k), DType.I8), TensorType((k, n), DType.I8)
    rng = np.random.default_rng(7)
    a, b = random_of(rng, x), random_of(rng, w)
    found = run(product(x, w, "i32", b if constant else None), a, *([] if constant else [b]))
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.astype(np.int64))
    assert found.dtype == np.int32


# -- the attribute ----------------------------------------------------------------------------


def test_wrong_uses_of_the_attribute_are_refused() -> None:
    rule = operator("matmul")
    x, w = (lambda dtype: TensorType((2, 3), dtype)), (lambda dtype: TensorType((3, 4), dtype))
    for left, right, attrs, text in (
        (DType.BF16, DType.I32, {"out": "f32"}, "operands of f16, bf16, f32"),
        (DType.F64, DType.F64, {"out": "f32"}, "operands of f16, bf16, f32"),
        (DType.I8, DType.U8, {"out": "i32"}, "operands of i8 "),
        (DType.F32, DType.F32, {"out": "i32"}, "operands of i8 "),
        (DType.F32, DType.F32, {"out": "bf16"}, "one of f32, i32"),
        (DType.F32, DType.F32, {"out": None}, "one of f32, i32"),
        (DType.F32, DType.F32, {"out": ("f32",)}, "one of f32, i32"),
        (DType.F32, DType.BF16, {}, "without `out`"),
        (DType.BOOL, DType.BOOL, {}, "not bool"),
    ):
        with pytest.raises(DTypeError, match=text):
            rule.infer([x(left), w(right)], attrs)
    with pytest.raises(ShapeError):
        rule.infer([x(DType.F32), x(DType.BF16)], {"out": "f32"})
    assert rule.infer([x(DType.BF16), w(DType.F16)], {"out": "f32"}) == TensorType((2, 4), DType.F32)
    assert rule.infer([x(DType.I8), w(DType.I8)], {"out": "i32"}) == TensorType((2, 4), DType.I32)


def test_digests_of_products_without_it_stay() -> None:
    """The element programs of products as they were before the attribute, by digest."""
    known = {
        DType.F32: "b2e741a81c374c83dd0ddfe49f88f6911ac1e122fe9580dacf0852e0b8dab3ac",
        DType.BF16: "59df2e97565f8c7599a6bc1a827d4c308f68054cabcd8d6cc76907d85927331c",
        DType.I8: "47d8359f9a9ebe9015258793c8549c0a7c1d2cb21e1f3dd749c06be321e1be4a",
    }
    for dtype, expected in known.items():
        types = [TensorType((3, 5), dtype), TensorType((5, 7), dtype)]
        program = operator("matmul").program(types, TensorType((3, 7), dtype), {})
        assert digest(program).hex() == expected
    mixed = [TensorType((3, 5), DType.F32), TensorType((5, 7), DType.BF16)]
    other = operator("matmul").program(mixed, TensorType((3, 7), DType.F32), {"out": "f32"})
    assert digest(other).hex() not in known.values()


@pytest.mark.parametrize("dtype", NARROW)
def test_a_file_keeps_it(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(8)
    model, x = nn.Linear(40, 50).to(dtype), torch.randn(3, 40).to(dtype)
    program = ree.compile(model, x)
    program.save(tmp_path / "m.ree")
    loaded = ree.load(tmp_path / "m.ree")
    assert loaded.program_id == program.program_id
    assert [n.attrs for n in loaded.graph.nodes if n.op == "matmul"] == [{"out": "f32"}]
    assert to_numpy(loaded(x)).tobytes() == to_numpy(program(x)).tobytes()


# -- K-major constants ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NARROW)
def test_constants_turn_k_major(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(9)
    model, x = Lambda(torch.mm, torch.randn(40, 70).to(dtype)), torch.randn(5, 40).to(dtype)
    turned = same_bits(model, x)
    monkeypatch.setattr(passes, "k_major", lambda graph: graph)
    plain = same_bits(model, x)
    assert [c.type.extents() for p in (turned, plain) for c in p.graph.constants] == [(70, 40), (40, 70)]
    assert to_numpy(turned(x)).tobytes() == to_numpy(plain(x)).tobytes()


def test_the_printed_kernel_reads_a_16_bit_matrix_as_it_lies() -> None:
    """A product of 16-bit tensors without `out` has no kernel of its own, and would be slower K-major."""
    x, w = TensorType((5, 40), DType.BF16), TensorType((40, 70), DType.BF16)
    node = Node("matmul", (0, 1), {}, TensorType((5, 70), DType.BF16))
    data = random_of(np.random.default_rng(10), w)
    graph = Graph([GraphInput("x", x)], [Constant("w", w, data)], [node], [2])
    assert passes.k_major(graph) is graph


def test_committed_runs_and_proofs_cover_mixed_products() -> None:
    """A trace of a 16-bit model is proved and checked: the definition and the kernel agree element by element."""
    torch.manual_seed(11)
    model, x = Block(40, 72).to(torch.bfloat16), torch.randn(3, 40).to(torch.bfloat16)
    program = ree.compile(model, x)
    _, trace = program.run(x, commit=True)
    _, again = program.run(x, commit=True)
    assert trace.root == again.root
    ree.check(trace.prove(60), trace.receipt(SIGNER), None, [SIGNER.public])
