"""The probe of a CUDA device: a right one passes, and everything that could be wrong with one is found and named."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ree_kernels import KernelError, cuda_probe
from ree_kernels.cuda_probe import F32, F64, Format, probe
from tools.emulator import device as emulator

needs_emulator = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class Altered(emulator.Emulator):
    """An emulator of a device, or of a compiler, that does something wrong."""

    def __init__(self, alter: Callable[[str], str]) -> None:
        super().__init__()
        self.alter = alter

    def compile(self, text: str) -> bytes:
        return super().compile(self.alter(text))


@needs_emulator
def test_a_right_device_passes() -> None:
    probe(emulator.Emulator())


FLUSH = """
REE_INLINE f32 flush(f32 x) { return (f32_bits(x) & 0x7f800000u) ? x : f32_of_bits(f32_bits(x) & 0x80000000u); }
REE_INLINE f64 flush(f64 x) { return f64_abs(x) < 0x1p-1022 ? f64_of_bits(f64_bits(x) & (1ull << 63)) : x; }
"""


def altered(defines: str) -> Altered:
    """With other definitions of the prelude's functions."""
    return Altered(lambda text: text.replace('#include "ree.cuh"', f'#include "ree.cuh"\n{FLUSH}{defines}\n', 1))


@needs_emulator
@pytest.mark.parametrize(
    ("defines", "cause", "operation"),
    [
        ("#define f32_add(a, b) flush(f32_add(a, b))", "subnormal results become zero", "f32 add"),
        ("#define f32_mul(a, b) f32_mul(flush(a), b)", "subnormal operands are not taken", "f32 mul"),
        ("#define f64_div(a, b) flush(f64_div(a, b))", "subnormal results become zero", "f64 div"),
        ("#define f32_div(a, b) f32_mul(a, f32_div(1.0f, b))", "not rounded as IEEE", "f32 div"),
        ("#define f64_sqrt(a) f64_of_f32(f32_sqrt(f32_of_f64(a)))", "not rounded as IEEE", "f64 sqrt"),
        ("#define f32_fma(a, b, c) f32_add(f32_mul(a, b), c)", "not rounded as IEEE", "f32 fma"),
        ("#define f64_fma(a, b, c) f64_add(f64_mul(a, b), c)", "not rounded as IEEE", "f64 fma"),
        ("#define f32_sub(a, b) f32_of_f64(f64_sub(a, b) + 1e-45)", "not rounded as IEEE", "f32 sub"),
        ("#define f32_canonical(a) (a)", "NaN is not handled", "f32 add"),
        ("#define f32_max(a, b) ((a) > (b) ? (a) : (b))", "not rounded as IEEE|NaN is not handled", "f32 max"),
        ("#define f64_rint(a) f64_floor((a) + 0.5)", "not rounded as IEEE", "f64 rint"),
        ("#define i32_of_float(a) static_cast<i32>(static_cast<i64>(a))", ".", "f(32|64) to int32"),
        ("#define f32_of_u64(a) f32_of_f64(f64_of_u64(a))", "conversions are wrong", "uint64 to f32"),
        ("#define bf16_of_f32(a) static_cast<u16>(f32_bits(a) >> 16)", "conversions are wrong", "f32 to bf16"),
        ("#define f32_of_f64(a) flush(f32_of_f64(a))", "conversions are wrong", "f64 to f32"),
        ("#define f16_of_f32(a) f16_of_f32(flush(a) * 1.0001f)", "conversions are wrong", "f32 to f16"),
    ],
)
def test_a_wrong_operation_is_found(defines: str, cause: str, operation: str) -> None:
    with pytest.raises(
        KernelError, match=f"the device emulator cannot be trusted: .*({cause}).*{operation} of "
    ) as caught:
        probe(altered(defines))
    assert "\n" not in str(caught.value)


@needs_emulator
@pytest.mark.parametrize("form", ["f32", "f64"])
@pytest.mark.parametrize("plain", [False, True])
def test_contraction_is_found(form: str, plain: bool) -> None:
    """One type's sum of a product is fused, in functions or in plain C."""
    where = "x * y + z" if plain else "F##_add(F##_mul(x, y), z)"
    apart, fused = "T##_add(T##_mul(x, y), z)", "T##_fma(x, y, z)"
    kinds = {kind: fused if kind == form else apart for kind in ("f32", "f64")}
    lines = [f"REE_INLINE T sum_T(T x, T y, T z) {{ return {body}; }}" for body in kinds.values()]
    functions = "\n".join(line.replace("T##", kind).replace("T", kind) for kind, line in zip(kinds, lines, strict=True))
    first = "#define REE_PROBE("
    device = Altered(lambda text: text.replace(where, "sum_##F(x, y, z)").replace(first, f"{functions}\n{first}", 1))
    with pytest.raises(KernelError, match=rf"contraction, .*: {form} x \* y \+ z of "):
        probe(device)


@needs_emulator
def test_a_compiler_that_contracts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "_KERNEL_FLAGS", [*emulator._KERNEL_FLAGS, "-ffp-contract=fast"])
    if not {"-march=x86-64-v3"} & set(emulator._processor_flags()):
        pytest.skip("this processor has nothing to contract to")
    with pytest.raises(KernelError, match="contraction, a product is not rounded before the sum"):
        probe(emulator.Emulator())


@needs_emulator
def test_a_kernel_that_does_not_run_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    device = emulator.Emulator()
    monkeypatch.setattr(device, "launch", lambda launch: None)
    with pytest.raises(KernelError, match="cannot be trusted"):
        probe(device)


# -- what is expected, by other means ---------------------------------------------------------------------


@pytest.mark.parametrize("form", [F32, F64])
def test_operands_meet_every_edge(form: Format) -> None:
    functions, sums, plain = (cases for cases in cuda_probe.all_cases() if cases.format == form)
    assert [cases.kernel for cases in (sums, plain)] == [f"ree_probe_{form.name}_sum", f"ree_probe_{form.name}_plain"]
    bits = np.concatenate([functions.operands.ravel(), *functions.results.values()]).astype(np.uint64)
    size = bits & np.uint64(form.sign - 1)
    infinity = int(form.encode(np.inf))
    least = form.least_normal
    for kind in (size == 0, (size > 0) & (size < least), size == infinity, size > infinity):
        for sign in (0, form.sign):
            assert (kind & (bits & np.uint64(form.sign) == sign)).any()
    subnormal = {
        name: int(((values & np.uint64(form.sign - 1) > 0) & (values & np.uint64(form.sign - 1) < least)).sum())
        for name, values in functions.results.items()
        if name in ("add", "sub", "mul", "div", "fma")
    }
    assert all(count > 20 for count in subnormal.values()), subnormal
    assert (sums.results[cuda_probe.SUM] != functions.results["fma"]).sum() > 200, "contraction shows"


def test_fma_against_the_c_library() -> None:
    """math.fma is there from Python 3.13 on; before, the kernels' own FMA chain has it, but for z = -0."""
    from ree_kernels.cpu import dot_lanes

    functions = cuda_probe.all_cases()[0]
    x, y, z = (np.where(np.isnan(row), np.float32(1), row) for row in map(F32.decode, functions.operands))
    z = z + np.float32(0)
    with np.errstate(all="ignore"):
        wanted = F32.encode([cuda_probe._fma(F32, *case) for case in zip(x, y, z, strict=True)])
    one = np.ones_like(x)
    got = dot_lanes(np.stack([z, x]), np.stack([one, y]), np.full(x.size, 2, np.int64))
    assert np.array_equal(F32.encode(got + np.float32(0)), F32.encode(F32.decode(wanted) + np.float32(0)))


def test_f64_fma_of_known_cases() -> None:
    step = 2.0**-52
    cases: list[tuple[Any, ...]] = [
        (1 + step, 1 + step, -(1 + 2 * step), step * step),
        (2.0**-600, 2.0**-600, 0.0, 0.0),
        (-(2.0**-600), 2.0**-600, 0.0, -0.0),
        (2.0**-537, 2.0**-537, 2.0**-1074, 2.0**-1073),
        (2.0**-537, 2.0**-538, 0.0, 0.0),  # half of the least, to even
        (1.5 * 2.0**-537, 2.0**-538, 0.0, 2.0**-1074),
        (2.0**600, 2.0**600, -math.inf, -math.inf),
        (2.0**1023, 2.0, -(2.0**1023), 2.0**1023),
        (2.0**1023, 2.0, 0.0, math.inf),
        (3.0, -2.0, 6.0, 0.0),
        (-0.0, 1.0, -0.0, -0.0),
        (-0.0, 1.0, 0.0, 0.0),
        (math.inf, 0.0, 1.0, math.nan),
        (math.inf, 1.0, -math.inf, math.nan),
    ]
    for x, y, z, wanted in cases:
        assert F64.encode(cuda_probe._fma(F64, x, y, z)) == F64.encode(wanted), (x, y, z)
