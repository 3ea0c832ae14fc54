"""The attention kernel against its definition, on every instruction set, bit for bit.

The hook is a Python function here: any deterministic function of the scores will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ree.element.fma import fma32
from ree_kernels import cpu
from ree_kernels.cpu import Kernels
from tests.kernel_runs import pointer, run_pool


@pytest.fixture(params=cpu.supported(), scope="module")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return cpu.load(request.param)


@dataclass(frozen=True)
class Case:
    """Extents of an attention; `blocked` keys get p = 0 through the hook, as a mask makes it."""

    b: int
    h: int
    hk: int
    t: int
    s: int
    d: int
    dv: int
    causal: bool
    blocked: bool = False

    def length(self, t: int) -> int:
        return min(self.s, t + 1) if self.causal else self.s


CASES = [
    Case(1, 2, 2, 16, 16, 8, 8, True), Case(2, 3, 3, 17, 33, 5, 7, False), Case(1, 4, 2, 30, 30, 64, 64, True),
    Case(2, 6, 2, 1, 40, 16, 16, False), Case(1, 2, 1, 1, 257, 20, 40, True), Case(1, 1, 1, 3, 513, 9, 3, False),
    Case(1, 1, 1, 290, 290, 4, 33, True), Case(1, 2, 2, 5, 9, 257, 1, False), Case(1, 1, 1, 20, 7, 3, 2, True),
    Case(1, 1, 1, 4, 0, 8, 5, False), Case(2, 2, 1, 3, 0, 8, 5, True), Case(1, 2, 2, 3, 6, 0, 4, False),
    Case(1, 1, 1, 19, 300, 8, 6, False, blocked=True), Case(1, 4, 4, 31, 31, 16, 16, True, blocked=True),
]  # fmt: skip


def fold(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """dot of a [..., k] and b [..., k] (broadcast) in the chunked order."""
    total = np.zeros(np.broadcast_shapes(a.shape, b.shape)[:-1], np.float32)
    for start in range(0, a.shape[-1], 256):
        chain = np.zeros_like(total)
        for i in range(start, min(a.shape[-1], start + 256)):
            chain = fma32(a[..., i], b[..., i], chain)
        total = total + chain
    return total


def sum_fold(values: np.ndarray) -> np.float32:
    """`sum` of a vector, from its definition."""
    sums = []
    for start in range(0, max(len(values), 1), 256):
        lanes = [np.float32(0)] * 16
        for i, x in enumerate(values[start : start + 256]):
            lanes[i % 16] = lanes[i % 16] + x
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [lanes[i] + lanes[i + half] for i in range(half)]
        sums.append(lanes[0])
    return sums[0] if len(sums) == 1 else sum_fold(np.array(sums))


def weights(scores: np.ndarray, blocked: bool) -> np.ndarray:
    """p of one row of scores, float32: exp in float64 rounded once; every third key blocked if asked."""
    if not len(scores):
        return scores
    p = np.exp(np.minimum((scores - np.fmax.reduce(scores)).astype(np.float64) / 8, 0.0)).astype(np.float32)
    if blocked:
        p[np.arange(len(p)) % 3 == 1] = 0.0
    return p


def reference(case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """out [b, t, h, dv]."""
    out = np.zeros((case.b, case.t, case.h, case.dv), np.float32)
    with np.errstate(all="ignore"):
        for b, h, t in np.ndindex(case.b, case.h, case.t):
            head, length = h // (case.h // case.hk), case.length(t)
            p = weights(fold(q[b, h, t], k[b, head, :length]), case.blocked)
            total = sum_fold(p)
            o = fold(p, v[b, head, :length].T)
            out[b, t, h] = 0.0 if total == 0 else o / total
    return np.where(np.isnan(out), np.float32(np.nan), out)


def hook_for(kernels: Kernels, case: Case) -> Any:
    """The hook as a C callback: scores to p in place, 0 beyond each row's length."""
    ffi = kernels.ffi

    @ffi.callback("ree_kernel")
    def hook(args: Any, r0: int, r1: int, c0: int, c1: int, _scratch: Any) -> None:
        jit = ffi.cast("ree_jit_args *", args)
        assert jit.pointers[0] == jit.pointers[2] and int(ffi.cast("intptr_t", jit.pointers[1])) == 1234
        assert c0 == 0 and jit.params[0] == 99
        for row in range(r0, r1):
            address = int(ffi.cast("uintptr_t", jit.pointers[0])) + 4 * row * score_row(case)
            line = np.frombuffer(ffi.buffer(ffi.cast("float *", address), 4 * score_row(case)), np.float32)
            length = case.length(row % case.t)
            with np.errstate(all="ignore"):
                line[:length] = weights(line[:length].copy(), case.blocked)
            line[length:c1] = 0.0

    return hook


def score_row(case: Case) -> int:
    return case.s + 3


def run(
    kernels: Kernels, case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray, grain: int, threads: int
) -> np.ndarray:
    """out [b, t, h, dv] by the kernel, in boxes of `grain` rows."""
    ffi = kernels.ffi
    out = np.full((case.b, case.t, case.h, case.dv), 7.0, np.float32)
    args = ffi.new("ree_attention_args *")
    views = {"q": q, "k": k, "v": v, "out": out.transpose(0, 2, 1, 3)}
    for name, x in views.items():
        setattr(args, name, pointer(kernels, x, "float *"))
        for axis, stride in zip(("batch", "head", "token"), x.strides, strict=False):
            setattr(args, f"{name}_{axis}", stride // 4)
    args.batch, args.heads, args.k_heads, args.t, args.s = case.b, case.h, case.hk, case.t, case.s
    args.d, args.d_v, args.causal, args.score_row = case.d, case.dv, case.causal, score_row(case)
    hook = hook_for(kernels, case)
    pointers = ffi.new("void *[3]", [ffi.NULL, ffi.cast("void *", 1234), ffi.NULL])
    params = ffi.new("int64_t[1]", [99])
    jit = ffi.new("ree_jit_args *", {"pointers": pointers, "params": params})
    args.hook, args.hook_args, args.hook_pointers = hook, jit, 3
    rows = case.b * case.h * case.t
    scratch = int(kernels.lib.ree_attention_scratch_bytes(min(grain, rows), score_row(case), case.dv))
    run_pool(kernels, "ree_attention", args, (rows, case.dv), (grain, case.dv), scratch, threads)
    assert pointers[0] == ffi.NULL == pointers[2]  # only a copy is patched
    return out


def operands(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v as [b, h, token, d] views of [b, token, h, d] memory."""
    rng = np.random.default_rng(seed)
    shapes = ((case.t, case.h, case.d), (case.s, case.hk, case.d), (case.s, case.hk, case.dv))
    q, k, v = (rng.standard_normal((case.b, *shape), np.float32).transpose(0, 2, 1, 3) for shape in shapes)
    return q, k, v


def same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got.view(np.uint32), expected.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_definition(kernels: Kernels, case: Case) -> None:
    q, k, v = operands(case, 1)
    expected = reference(case, q, k, v)
    for grain, threads in ((1000, 1), (7, 2), (16, 3)):
        same_bits(run(kernels, case, q, k, v, grain, threads), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_infinite_values_reach_only_rows_that_see_them(kernels: Kernels, causal: bool) -> None:
    case = Case(1, 2, 1, 21, 21, 8, 6, causal)
    q, k, v = operands(case, 2)
    v[0, 0, 5, 1], v[0, 0, 9, 2], v[0, 0, 20, :3] = np.inf, np.nan, -np.inf
    k[0, 0, 17, 0] = np.nan
    expected = reference(case, q, k, v)
    assert not causal or np.isfinite(expected[0, :5]).all()
    same_bits(run(kernels, case, q, k, v, 1000, 1), expected)
    same_bits(run(kernels, case, q, k, v, 9, 2), expected)


def test_all_blocked_gives_zero(kernels: Kernels) -> None:
    case = Case(1, 1, 1, 2, 2, 3, 4, False, blocked=True)
    q, k, v = operands(case, 3)
    k[0, 0, 0] = np.float32(-1e30) * q[0, 0, 0]  # the one open key's weight underflows for row 0
    k[0, 0, 1] = q[0, 0, 0]
    expected = reference(case, q, k, v)
    assert not expected[0, 0].any()
    same_bits(run(kernels, case, q, k, v, 2, 1), expected)


def test_decode_equals_prefill(kernels: Kernels) -> None:
    """The last row of a causal prefill is the single row that a cached step computes."""
    whole = Case(1, 2, 1, 300, 300, 8, 8, True)
    q, k, v = operands(whole, 4)
    full = run(kernels, whole, q, k, v, 64, 2)
    for t in (0, 15, 255, 256, 299):
        step = Case(1, 2, 1, 1, t + 1, 8, 8, False)
        one = run(kernels, step, q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], 2, 1)
        same_bits(one[:, 0], full[:, t])


def test_sum_over_more_chunk_sums_than_a_chunk_holds() -> None:
    """The denominator's fold has a third level beyond 256 * 256 keys."""
    case = Case(1, 1, 1, 1, 256 * 256 + 300, 1, 1, False)
    q, k, v = operands(case, 6)
    same_bits(run(cpu.kernels(), case, q, k, v, 1, 1), reference(case, q, k, v))
