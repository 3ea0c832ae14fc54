"""Mixtures of experts: the operator, its kernel on every instruction set, and layers and models of transformers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ree
from ree import reference
from ree.capture import capture, to_numpy
from ree.element.interpret import interpret
from ree.errors import CaptureError, DTypeError, RunError, ShapeError, UnsupportedError
from ree.lm import experts
from ree.ops.spec import operator
from ree.types import DType, TensorType
from ree_kernels import cpu
from ree_kernels.cpu import Kernels
from ree_kernels.experts import cut, pack_matrices, packing
from tests import dishonest
from tests.kernel_runs import pointer, run_boxes, run_pool, special_floats
from tests.receipt_vectors import SIGNER

# rows, experts, k, n
SHAPES = (
    [(rows, 3, 33, 37) for rows in (0, 1, 2, 5, 15, 29, 64, 257)]
    + [(9, 4, k, 17) for k in (0, 1, 16, 255, 256, 257, 513)]
    + [(9, 4, 19, n) for n in (1, 15, 16, 17, 31, 32, 33, 129, 257)]
    + [(1, 1, 40, 130), (8, 64, 20, 24), (300, 2, 5, 40), (45, 1, 300, 40)]
)


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    experts.register()


@pytest.fixture(params=cpu.supported(), scope="module")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return cpu.load(request.param)


# -- the kernel -----------------------------------------------------------------------------


def is_bf16(w: np.ndarray) -> bool:
    return w.dtype == np.uint16


def defined(x: np.ndarray, w: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """The operator's definition, interpreted."""
    dtypes = (DType.F32, DType.BF16 if is_bf16(w) else DType.F32, DType.I64)
    types = [TensorType(a.shape, dtype) for a, dtype in zip((x, w, expert), dtypes, strict=True)]
    op = operator("expert_matmul")
    out = op.infer(types, {})
    return interpret(op.program(types, out, {}), [x, w, expert], out.extents())[0]


def arguments(kernels: Kernels, x: np.ndarray, w: np.ndarray, expert: np.ndarray, out: np.ndarray) -> tuple[Any, Any]:
    """The kernel's arguments, and what they point into."""
    count, n, k = w.shape
    packed = pack_matrices(kernels, (matrix.T for matrix in w), (count, k, n), is_bf16(w))
    status = np.zeros(1, np.int64)
    args = kernels.ffi.new("ree_experts_args *")
    args.x, args.w, args.out = (pointer(kernels, a, "float *") for a in (x, packed, out))
    args.expert, args.status = pointer(kernels, expert, "int64_t *"), pointer(kernels, status, "int64_t *")
    args.x_row, args.x_k, args.expert_step = x.strides[0] // 4, x.strides[1] // 4, expert.strides[0] // 8
    args.out_row, args.rows, args.n, args.k, args.experts = n, len(x), n, k, count
    args.w_packed = packing(kernels, is_bf16(w))
    return args, (packed, status)


def products(kernels: Kernels, x: np.ndarray, w: np.ndarray, expert: np.ndarray, rng: Any) -> tuple[np.ndarray, int]:
    """Results by random boxes (a generator) or on so many threads (a number), and the status."""
    count, n, k = w.shape
    out = np.full((len(x), n), 7.0, np.float32)
    args, (_, status) = arguments(kernels, x, w, expert, out)
    if isinstance(rng, int):
        rows, cols, scratch = cut(kernels, len(x), (count, k, n), rng, is_bf16(w))
        run_pool(kernels, "ree_experts", args, out.shape, (rows, cols), scratch, rng)
    else:
        scratch = int(kernels.lib.ree_experts_scratch_bytes(len(x), n, k, count, packing(kernels, is_bf16(w))))
        run_boxes(kernels, "ree_experts", args, *out.shape, scratch, rng)
    return out, int(status[0])


def case(
    rows: int, count: int, k: int, n: int, bf16: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng([rows, count, k, n])
    x, w = rng.standard_normal((rows, k), np.float32), rng.standard_normal((count, n, k), np.float32)
    if bf16:
        w = (w.view(np.uint32) >> 16).astype(np.uint16)
    return x, w, rng.integers(0, count, rows), rng


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows,count,k,n", SHAPES)
def test_kernel(kernels: Kernels, rows: int, count: int, k: int, n: int, bf16: bool) -> None:
    x, w, expert, rng = case(rows, count, k, n, bf16)
    expected = defined(x, w, expert)
    for way in (rng, 1, 3):
        found, status = products(kernels, x, w, expert, way)
        assert status == 0 and found.tobytes() == expected.tobytes()


def test_kernel_with_special_values(kernels: Kernels) -> None:
    x, w, expert, rng = case(23, 3, 300, 35)
    x[::4], w[1, ::3] = special_floats(rng, x[::4].shape), special_floats(rng, w[1, ::3].shape)
    assert products(kernels, x, w, expert, rng)[0].tobytes() == defined(x, w, expert).tobytes()


@pytest.mark.parametrize("bf16", [False, True])
def test_kernel_reads_operands_where_they_lie(kernels: Kernels, bf16: bool) -> None:
    x, w, expert, rng = case(31, 3, 40, 70, bf16)
    expected = defined(x, w, expert)
    wide = np.repeat(expert, 3)[::3]
    turned = np.ascontiguousarray(w.transpose(0, 2, 1)).transpose(0, 2, 1)
    assert products(kernels, np.asfortranarray(x), turned, wide, rng)[0].tobytes() == expected.tobytes()


def test_kernel_with_several_blocks_of_rows(kernels: Kernels) -> None:
    rows = 2 * int(kernels.lib.ree_experts_block()) + 5
    x, w, expert, rng = case(rows, 5, 3, 7)
    expected = defined(x, w, expert)
    for way in (rng, 1, 2):
        assert products(kernels, x, w, expert, way)[0].tobytes() == expected.tobytes()


def test_kernel_refuses_what_is_no_expert(kernels: Kernels) -> None:
    x, w, expert, rng = case(20, 3, 8, 9)
    expected = defined(x, w, expert)
    for bad in (-1, 3, 1 << 40, -(1 << 63)):
        wrong = expert.copy()
        wrong[11] = bad
        found, status = products(kernels, x, w, wrong, rng)
        assert status == 1 and (found[11] == 7.0).all()
        assert np.delete(found, 11, 0).tobytes() == np.delete(expected, 11, 0).tobytes()


# -- the operator in programs ---------------------------------------------------------------


class Experts(torch.nn.Module):
    """A product with constant weights, as they lie ([E, O, I]) or from another order of their axes."""

    def __init__(self, weight: torch.Tensor, turned: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.transpose(1, 2).contiguous() if turned else weight)
        self.turned = turned

    def forward(self, x: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
        weight = self.weight.transpose(1, 2) if self.turned else self.weight
        out: torch.Tensor = torch.ops.ree.expert_linear(x, weight, expert)
        return out


class Given(torch.nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.ree.expert_linear(x, weight, expert)
        return out


def tensors(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, w = torch.randn(21, 70, generator=generator), torch.randn(5, 39, 70, generator=generator)
    return x.to(dtype), w.to(dtype), torch.randint(0, 5, (21,), generator=generator)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_constant_weights(dtype: torch.dtype, turned: bool) -> None:
    x, w, expert = tensors(dtype)
    model = Experts(w, turned)
    program = ree.compile(model, (x, expert))
    assert "expert_matmul" in [step.name for step in program.plan(()).steps if step.kernel is None]
    found = program(x, expert).detach()
    graph = capture(model, (x, expert)).graph
    assert to_numpy(found).tobytes() == reference.evaluate(graph, [to_numpy(x), expert.numpy()])[0].tobytes()
    exact = (w.double()[expert] @ x.double().unsqueeze(-1)).squeeze(-1)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_given_have_the_same_bits(dtype: torch.dtype) -> None:
    x, w, expert = tensors(dtype)
    found = ree.compile(Given(), (x, w, expert))(x, w, expert)
    assert torch.equal(found, ree.compile(Experts(w), (x, expert))(x, expert))


def test_a_row_does_not_depend_on_the_others() -> None:
    x, w, expert = tensors(torch.float32)
    program = ree.compile(Experts(w), (x, expert), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},) * 2)
    whole = program(x, expert)
    for row in range(len(x)):
        assert torch.equal(program(x[row : row + 1], expert[row : row + 1])[0], whole[row])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert torch.equal(program(x[order], expert[order]), whole[order])


def test_what_is_no_expert_is_refused_and_the_program_lives_on() -> None:
    x, w, expert = tensors(torch.float32)
    inputs: list[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]] = [
        (Experts(w), (x, expert)),
        (Given(), (x, w, expert)),
    ]
    for model, good in inputs:
        program = ree.compile(model, good)
        expected = program(*good)
        for bad in (5, -1, 1 << 40):
            wrong = expert.clone()
            wrong[4] = bad
            with pytest.raises(RunError):
                program(*good[:-1], wrong)
            with pytest.raises(RunError):
                model(*good[:-1], wrong)
        assert torch.equal(program(*good), expected)


def test_shape_rule() -> None:
    def infer(x: TensorType, w: TensorType, expert: TensorType) -> TensorType:
        return operator("expert_matmul").infer([x, w, expert], {})

    x, w, expert = TensorType((4, 6), DType.F32), TensorType((3, 5, 6), DType.F32), TensorType((4,), DType.I64)
    assert infer(x, w, expert) == TensorType((4, 5), DType.F32)
    assert infer(x, TensorType(w.shape, DType.BF16), expert) == TensorType((4, 5), DType.F32)
    for wrong in (
        (TensorType((4, 6), DType.F64), w, expert),
        (x, TensorType(w.shape, DType.F64), expert),
        (x, w, TensorType((4,), DType.I32)),
    ):
        with pytest.raises(DTypeError):
            infer(*wrong)
    for shapes in (
        ((5, 6), (3, 5, 6), (4,)),
        ((4, 7), (3, 5, 6), (4,)),
        ((4, 6), (5, 6), (4,)),
        ((4, 6), w.shape, (4, 1)),
    ):
        with pytest.raises(ShapeError):
            infer(*(TensorType(s, t.dtype) for s, t in zip(shapes, (x, w, expert), strict=True)))


def test_an_element_is_proved_and_disputed() -> None:
    x, w, expert = tensors(torch.float32)
    program = ree.compile(Experts(w), (x, expert))
    _, trace = program.run(x, expert, commit=True)
    assert trace is not None
    receipt = trace.receipt(SIGNER)
    ree.check(trace.prove(samples=20), receipt, program)
    claim = dishonest.lie(trace, 0, dishonest.flip(17), follow=False)
    assert ree.dispute(program, trace, claim).wrong == ("b",)


# -- torch's side ---------------------------------------------------------------------------


def test_the_operator_is_a_proper_one_of_torch() -> None:
    x, w, expert = tensors(torch.float32)
    torch.library.opcheck(torch.ops.ree.expert_linear.default, (x, w, expert))
    torch.library.opcheck(torch.ops.ree.expert_linear.default, (x[:0], w, expert[:0]))


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "Mixtral": {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "num_experts": 8,
        "num_experts_per_tok": 4,
    },
    "GptOss": {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}


class Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(tokens, use_cache=False).logits
        return logits


def build(name: str, implementation: str = experts.IMPLEMENTATION) -> torch.nn.Module:
    """A small model with seeded weights, its biases among them. GPT-OSS has no attention but its own."""
    import transformers

    transformers.logging.set_verbosity_error()
    attention = "eager" if name == "GptOss" else "sdpa"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=100, attn_implementation=attention, experts_implementation=implementation, **SIZES, **MODELS[name]
    )
    model: torch.nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.3 if weight.dim() > 1 else 1.0))
    return Logits(model).eval()


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 100, (batch, length), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def compiled() -> dict[str, ree.Program]:
    dynamic = {0: torch.export.Dim("batch", min=1, max=16), 1: torch.export.Dim("length", min=2, max=64)}
    return {name: ree.compile(build(name), (tokens(2, 16),), dynamic_shapes=(dynamic,)) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_layers_compute_what_those_of_transformers_do(name: str, implementation: str) -> None:
    inputs = tokens(2, 9)
    with torch.no_grad():
        expected = build(name, implementation).double()(inputs)
        torch.testing.assert_close(build(name).double()(inputs), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_model_has_the_bits_of_the_interpreter(name: str, compiled: dict[str, ree.Program]) -> None:
    inputs = tokens(1, 5)
    graph = capture(build(name), (inputs,)).graph
    assert [node.op for node in graph.nodes].count("expert_matmul") == 2 * SIZES["num_hidden_layers"]
    expected = reference.evaluate(graph, [inputs.numpy()])[0]
    assert compiled[name](inputs).detach().numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_model_is_as_close_as_torch(name: str, compiled: dict[str, ree.Program]) -> None:
    inputs = tokens(2, 16)
    model = build(name)
    with torch.no_grad():
        eager = model(inputs).double()
        exact = model.double()(inputs)
    ours = (compiled[name](inputs).double() - exact).norm()
    assert ours <= 2 * (eager - exact).norm()


@pytest.mark.parametrize("name", MODELS)
def test_rows_and_prefixes_have_the_same_bits_alone(name: str, compiled: dict[str, ree.Program]) -> None:
    inputs = tokens(5, 24)
    whole = compiled[name](inputs)
    for row in range(5):
        assert torch.equal(compiled[name](inputs[row : row + 1]), whole[row : row + 1]), row
    if name == "GptOss":
        return  # its own attention adds a sink behind the last key, so where the sum meets it depends on the length
    for length in (2, 3, 16, 23):
        assert torch.equal(compiled[name](inputs[:, :length]), whole[:, :length]), length


def test_models_have_one_digest_on_every_isa(compiled: dict[str, ree.Program], tmp_path: Path) -> None:
    """Fresh processes, without torch: threads 1, 2, 3, 7, and a changed floating-point state."""
    expected = {}
    for name, program in compiled.items():
        program.save(tmp_path / f"{name}.ree")
        np.save(tmp_path / f"{name}.npy", tokens(2, 16).numpy())
        expected[name] = hashlib.sha256(program(tokens(2, 16)).detach().numpy().tobytes()).hexdigest()
    for isa in cpu.supported():
        done = subprocess.run(
            [sys.executable, "-m", "tests.digest_worker", str(tmp_path)],
            env={**os.environ, "REE_ISA": isa},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert {name: set(found) for name, found in json.loads(done.stdout).items()} == {
            name: {digest} for name, digest in expected.items()
        }, isa


def layer(change: Callable[[Any], None]) -> torch.nn.Module:
    """The expert layer of a small Mixtral, changed."""
    found: torch.nn.Module = build("Mixtral").model.model.layers[0].mlp.experts  # type: ignore[union-attr,assignment]
    change(found)
    return found


def test_experts_spread_over_processes_are_refused() -> None:
    spread = layer(lambda module: setattr(module, "_is_expert_parallel", True))
    inputs = (torch.randn(3, 32), torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2))
    with pytest.raises(UnsupportedError):
        spread(*inputs)
    with pytest.raises(CaptureError, match="several processes"):
        ree.compile(spread, inputs)


def test_a_layer_without_gate_and_with_a_norm_behind_each_expert() -> None:
    def change(module: Any) -> None:
        module.has_gate, module.has_post_expert_norm = False, True
        module.up_proj = torch.nn.Parameter(module.gate_up_proj.detach()[:, :48].contiguous())
        module.post_expert_norm = torch.nn.LayerNorm(32)

    changed = layer(change)
    generator = torch.Generator().manual_seed(2)
    inputs = (
        torch.randn(6, 32, generator=generator),
        torch.randint(0, 8, (6, 3), generator=generator),
        torch.ones(6, 3),
    )
    found = ree.compile(changed, inputs)(*inputs)
    changed.config._experts_implementation = "batched_mm"  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(found, changed(*inputs), rtol=1e-4, atol=1e-5)
