"""Texts become images without a GPU; what is in them keeps to the arithmetic."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ree_kernels import KernelError, cuda, nvrtc
from tests.ptx_audit import audit

ARCHITECTURES = ["sm_75", "sm_80", "sm_90a", "sm_100a"]
PROBE = cuda.source("probe.cu")

KERNEL = """
extern "C" __global__ void k(float *x, double *y, const int *n)
{
    const int i = threadIdx.x;
    %s
}
"""


def kernel(body: str) -> str:
    return KERNEL % body


def section_names(cubin: bytes) -> list[str]:
    """Names of an ELF file's sections."""
    start, size, count, names = (
        int.from_bytes(cubin[at : at + n], "little") for at, n in ((40, 8), (58, 2), (60, 2), (62, 2))
    )
    headers = [cubin[start + size * index :][:size] for index in range(count)]
    offsets = [int.from_bytes(header[24:32], "little") for header in headers]
    table = cubin[offsets[names] :]
    starts = [int.from_bytes(header[:4], "little") for header in headers]
    return [table[at : table.index(b"\0", at)].decode() for at in starts]


# -- images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_probe_compiles(architecture: str) -> None:
    image = nvrtc.compile(PROBE, architecture)
    assert image.kind == "cubin"
    assert image.data[:4] == b"\x7fELF" and int.from_bytes(image.data[18:20], "little") == 190  # CUDA
    names = section_names(image.data)
    kernels = ["f32", "f32_sum", "f32_plain", "f64", "f64_sum", "f64_plain", "formats"]
    assert {f".text.ree_probe_{name}" for name in kernels} == {name for name in names if name.startswith(".text")}
    assert image == nvrtc.compile(PROBE, architecture)._replace(log=image.log), "the same text, the same bytes"


def test_every_device_that_nvrtc_knows() -> None:
    numbers = [number for number in nvrtc.architectures() if number >= 75]
    assert len(numbers) >= 9
    for number in numbers:
        major, minor = divmod(number, 10)
        architecture = nvrtc.architecture((major, minor))
        assert architecture.startswith(f"sm_{number}")
        assert nvrtc.compile(kernel("x[i] = 1;"), architecture).kind == "cubin"


def test_ptx_is_an_image_too() -> None:
    image = nvrtc.compile(PROBE, "compute_80")
    assert image.kind == "ptx"
    assert image.data.endswith(b"\0") and b".target sm_80" in image.data, "the driver reads it as a C string"
    assert image.data.rstrip(b"\0").decode() == nvrtc.ptx(PROBE, "sm_80")


def test_lines_for_profilers() -> None:
    text = kernel("x[i] = x[i + 1];")
    plain, lined = (section_names(nvrtc.compile(text, "sm_80", lineinfo=on).data) for on in (False, True))
    assert ".debug_line" in lined and ".debug_line" not in plain


def test_architecture_of_a_device() -> None:
    known = [50, 75, 80, 86, 87, 89, 90, 100, 120]
    cases = {(7, 5): "sm_75", (8, 6): "sm_86", (8, 8): "compute_87", (9, 0): "sm_90a", (10, 0): "sm_100a",
             (10, 3): "compute_100", (12, 0): "sm_120a", (12, 1): "compute_120", (15, 0): "compute_120"}  # fmt: skip
    assert {capability: nvrtc.architecture(capability, known) for capability in cases} == cases
    with pytest.raises(KernelError, match=r"compute capability 7\.2: 7\.5 or later is needed"):
        nvrtc.architecture((7, 2), known)
    with pytest.raises(KernelError, match=r"compiles for no device of compute capability 8\.0"):
        nvrtc.architecture((8, 0), [86, 90])
    assert {75, 80, 86, 89, 90, 100, 120} <= set(nvrtc.architectures())


def test_version() -> None:
    major, minor, build = map(int, nvrtc.version().split("."))
    assert (major, minor) >= (12, 8) and build > 0


def test_in_many_threads() -> None:
    texts = [kernel(f"x[i] = {number}.0f;") for number in range(4)]
    alone = [nvrtc.compile(text, "sm_80").data for text in texts]
    together: dict[int, bytes] = {}

    def work(number: int) -> None:
        together[number] = nvrtc.compile(texts[number], "sm_80").data

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(4)] == alone


# -- headers --------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder that stands in for the kernels' own."""
    monkeypatch.setattr(cuda, "SOURCES", tmp_path)
    cuda.source.cache_clear()
    yield tmp_path
    cuda.source.cache_clear()


def test_headers_include_headers(sources: Path) -> None:
    (sources / "outer.cuh").write_text('#pragma once\n  # include "inner.cuh"\n#include "outer.cuh"\n')
    (sources / "inner.cuh").write_text("#define VALUE 7\n")
    (sources / "other.cuh").write_text("#error not asked for\n")
    text = '// #include "other.cuh"\n#include "outer.cuh"\n' + kernel("x[i] = VALUE;")
    assert nvrtc.headers(text) == {name: (sources / name).read_text() for name in ("outer.cuh", "inner.cuh")}
    assert nvrtc.compile(text, "sm_80").kind == "cubin"


def test_a_header_that_is_not_there_is_none_of_the_project() -> None:
    assert set(nvrtc.headers(PROBE)) == {"ree.cuh"}, "the emulator's header is not asked for"
    with pytest.raises(KernelError, match=r'cannot open source file "nothing\.cuh"'):
        nvrtc.compile('#include "nothing.cuh"\n', "sm_80")


# -- errors ---------------------------------------------------------------------------------------------


def test_errors_of_a_text() -> None:
    with pytest.raises(KernelError) as caught:
        nvrtc.compile(kernel("a = 1; b = 2; c = 3; d = 4; e = 5;"), "sm_90a")
    text = str(caught.value)
    assert text.startswith("kernels do not compile for sm_90a: kernels.cu(5): error: ")
    assert '"a" is undefined' in text and '"c" is undefined' in text and "; and 2 more" in text
    assert '"d"' not in text and "\n" not in text


def test_an_unknown_architecture() -> None:
    with pytest.raises(KernelError, match=r"do not compile for sm_11: .*invalid value for --gpu-architecture"):
        nvrtc.compile("", "sm_11")


def test_no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc._bindings.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    try:
        with pytest.raises(KernelError, match=r"packages that are not installed .*: pip install 'ree\[cuda\]'"):
            nvrtc.compile("", "sm_80")
    finally:
        nvrtc._bindings.cache_clear()


class Broken:
    """Bindings without NVRTC, or with one that fails."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def nvrtcCreateProgram(self, *arguments: Any) -> tuple[Any, ...]:
        if self.error is not None:
            raise self.error
        import cuda.bindings.nvrtc

        return cuda.bindings.nvrtc.nvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY, None


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("Failed to dlopen libnvrtc.so.12\nmore"), r"no NVRTC \(Failed to dlopen libnvrtc.so.12\): pip"),
        (None, "nvrtcCreateProgram failed: NVRTC_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_no_nvrtc(monkeypatch: pytest.MonkeyPatch, error: Exception | None, says: str) -> None:
    monkeypatch.setattr(nvrtc, "_bindings", lambda: Broken(error))
    with pytest.raises(KernelError, match=says) as caught:
        nvrtc.compile("", "sm_80")
    assert "\n" not in str(caught.value)


# -- resources ------------------------------------------------------------------------------------------


def test_resources() -> None:
    text = """
    extern "C" __global__ void little(float *x) { x[threadIdx.x] = 1; }
    extern "C" __global__ void shares(float *x)
    {
        __shared__ float s[300];
        s[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = s[(threadIdx.x + 1) % 32];
    }
    extern "C" __global__ void __launch_bounds__(1024) spills(float *x, int n)
    {
        float v[200];
        for (int i = 0; i < 200; i++)
            v[i] = x[i * n];
        for (int j = 0; j < n; j++)
            for (int i = 0; i < 200; i++)
                v[i] = fmaf(v[i], v[(i + 7) % 200], v[i]);
        for (int i = 0; i < 200; i++)
            x[i * n + threadIdx.x] = v[i];
    }
    """
    for architecture in ARCHITECTURES:
        found = nvrtc.resources(nvrtc.compile(text, architecture))
        assert set(found) == {"little", "shares", "spills"}
        little, shares, spills = (found[name] for name in ("little", "shares", "spills"))
        assert 1 <= little.registers <= 16 and little[1:] == (0, 0, 0)
        assert shares.shared_bytes >= 1200 and shares.spill_bytes == shares.stack_bytes == 0
        assert spills.registers <= 64 and spills.stack_bytes > 0 and spills.spill_bytes > 0
    assert nvrtc.resources(nvrtc.compile(text, "compute_80")) == {}


def test_the_probe_does_not_spill() -> None:
    for architecture in ARCHITECTURES:
        found = nvrtc.resources(nvrtc.compile(PROBE, architecture))
        assert len(found) == 7 and all(kernel.spill_bytes == kernel.stack_bytes == 0 for kernel in found.values())


# -- arithmetic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_probe_keeps_to_the_arithmetic(architecture: str) -> None:
    ptx = nvrtc.ptx(PROBE, architecture)
    assert audit(ptx, fma={"f32": 1, "f64": 1}) == []
    assert audit(ptx, fma={"f32": 1}) == ["1 fma of f64, where 0 are asked for"], "the audit does see them"


PLAIN = (
    "x[i] = x[i] * x[i + 1] + x[i + 2]; x[i + 3] = x[i] / x[i + 4] - sqrtf(x[i + 5]); y[i] = y[i] * y[1] - y[2] / y[3];"
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_c_is_held_by_the_options(architecture: str) -> None:
    ptx = nvrtc.ptx(kernel(PLAIN), architecture)
    assert audit(ptx, fma={}) == []
    for name in ("mul.rn.f32", "add.rn.f32", "div.rn.f32", "sqrt.rn.f32", "mul.rn.f64", "div.rn.f64"):
        assert name in ptx, "with its rounding, or the driver's compiler may fuse it"


@pytest.mark.parametrize(
    ("option", "instead", "complaint"),
    [
        ("--fmad=false", "--fmad=true", "fma of f32, where 0 are asked for"),
        ("--ftz=false", "--ftz=true", "flushes subnormals"),
        ("--prec-div=true", "--prec-div=false", "is an approximation"),
        ("--prec-sqrt=true", "--prec-sqrt=false", "is an approximation"),
    ],
)
def test_each_option_is_needed(monkeypatch: pytest.MonkeyPatch, option: str, instead: str, complaint: str) -> None:
    monkeypatch.setattr(nvrtc, "OPTIONS", tuple(instead if part == option else part for part in nvrtc.OPTIONS))
    assert any(complaint in line for line in audit(nvrtc.ptx(kernel(PLAIN), "sm_80"), fma={}))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("x[i] = __expf(x[i]);", "ex2.approx"),
        ("x[i] = __logf(x[i]);", "lg2.approx"),
        ("x[i] = __sinf(x[i]) + __cosf(x[i]);", "sin.approx"),
        ("x[i] = __fdividef(x[i], x[i + 1]);", "div.approx"),
        ("x[i] = rsqrtf(x[i]);", "rsqrt.approx"),
        ("x[i] = fmaf(x[i], x[i + 1], x[i + 2]);", "1 fma of f32"),
        ("y[i] = fma(y[i], y[i + 1], y[i + 2]);", "1 fma of f64"),
        ("x[i] = __fmul_rz(x[i], x[i + 1]);", "mul.rz.f32"),
        ("x[i] = __fadd_ru(x[i], x[i + 1]);", "add.rp.f32"),
        ("x[i] = __double2float_rz(y[i]);", "narrows"),
        ("atomicAdd(x, x[i]);", "combines floats in any order"),
        ("atomicAdd(y, y[i]);", "combines floats in any order"),
        ("x[i] = __saturatef(x[i] + x[i + 1]);", ""),
    ],
)
def test_the_audit_of_what_the_compiler_writes(body: str, complaint: str) -> None:
    complaints = audit(nvrtc.ptx(kernel(body), "sm_80"), fma={})
    assert any(complaint in line for line in complaints) if complaint else complaints == [], complaints


@pytest.mark.parametrize(
    ("instruction", "complaint"),
    [
        ("add.f32 %f1, %f2, %f3", "is fused or"),
        ("mul.f64 %fd1, %fd2, %fd3", "is fused or"),
        ("@%p1 sub.f32 %f1, %f2, %f3", "is fused or"),
        ("@!%p1 add.ftz.f32 %f1, %f2, %f3", "flushes"),
        ("mad.f32 %f1, %f2, %f3, %f4", "as the device likes"),
        ("mad.rn.f64 %fd1, %fd2, %fd3, %fd4", "as the device likes"),
        ("fma.rz.f32 %f1, %f2, %f3, %f4", "rounds otherwise"),
        ("fma.rn.f32x2 %rd1, %rd2, %rd3, %rd4", "1 fma of f32"),
        ("fma.rn.bf16x2 %r1, %r2, %r3, %r4", "in 16 bits"),
        ("add.rn.f16 %h1, %h2, %h3", "in 16 bits"),
        ("div.full.f32 %f1, %f2, %f3", "approximation"),
        ("rcp.approx.ftz.f64 %fd1, %fd2", "approximation"),
        ("tanh.approx.f32 %f1, %f2", "approximation"),
        ("red.global.add.f32 [%rd1], %f1", "any order"),
        ("atom.global.add.noftz.f16x2 %r1, [%rd1], %r2", "any order"),
        ("atom.shared.add.f64 %fd1, [%rd1], %fd2", "any order"),
        ("redux.sync.min.NaN.f32 %f1, %f2, %r1", "any order"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f2}", "order of its own"),
        ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%fd1}, {%fd2}, {%fd3}, {%fd4}", "order of its own"),
        ("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%f1}, {%r1}, {%r2}, {%f2}", "order of its own"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f1}, %rd1, %rd2, 1, 1, 1, 0, 0", "order of its own"),
        ("tcgen05.mma.cta_group::1.kind::f16 [%r1], %rd1, %rd2, %r2, %p1", "order of its own"),
        ("cvt.rz.bf16.f32 %h1, %f1", "narrows"),
        ("add.rn.sat.f32 %f1, %f2, %f3", "clamps"),
    ],
)
def test_the_audit_of_single_instructions(instruction: str, complaint: str) -> None:
    text = ".visible .entry k()\n{\n\t.reg .f32 %%f<9>;\n\n$L__BB0_1:\n\t%s; // as it stands\n\tret;\n}\n"
    complaints = audit(text % instruction, fma={})
    assert any(complaint in line for line in complaints), complaints
    assert audit(text.replace("\t%s;", "\t// %s;") % instruction, fma={}) == [], "not in a comment"


@pytest.mark.parametrize(
    "instruction",
    [
        "add.rn.f32 %f1, %f2, %f3", "div.rn.f64 %fd1, %fd2, %fd3", "sqrt.rn.f32 %f1, %f2", "rcp.rn.f32 %f1, %f2",
        "max.f32 %f1, %f2, %f3", "neg.f32 %f1, %f2", "cvt.rn.f32.f64 %f1, %fd1", "cvt.rzi.s32.f32 %r1, %f1",
        "cvt.rmi.f32.f32 %f1, %f2", "mad.lo.s32 %r1, %r2, %r3, %r4", "mul.wide.u32 %rd1, %r1, 4",
        "add.s64 %rd1, %rd2, 1", "atom.global.max.u32 %r1, [%rd1], 2",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1}, {%r2}, {%r3}, {%r4}",
        "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%r1}, %rd1, %rd2, 1", "dp4a.s32.s32 %r1, %r2, %r3, %r4",
        "tcgen05.mma.cta_group::1.kind::i8 [%r1], %rd1, %rd2, %r2, %p1", "ld.global.f32 %f1, [%rd1]",
    ],
)  # fmt: skip
def test_the_audit_lets_good_instructions_pass(instruction: str) -> None:
    assert audit(f"{{\n\t{instruction};\n}}\n", fma={}) == []


def test_the_audit_allows_what_is_asked_for() -> None:
    text = "{\n\tfma.rn.f32 %f1, %f2, %f3, %f4;\n\t@%p1 fma.rn.f32 %f1, %f2, %f3, %f4;\n}\n"
    assert audit(text) == audit(text, fma={"f32": 2}) == []
    assert audit(text, fma={"f32": 1}) == ["2 fma of f32, where 1 are asked for"]
