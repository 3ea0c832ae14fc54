"""The product of bytes against NumPy's integers modulo 2^32, on every instruction set and by every way."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ree_kernels import cpu
from ree_kernels.build import COMMON_FLAGS, ISA_FLAGS, SOURCES
from ree_kernels.cpu import Kernels
from ree_kernels.matmul_i8 import matmul_i8_plan, pack_matrix_i8
from tests.kernel_runs import pointer, run_boxes, run_pool

WAYS = ("ree_matmul_i8", "ree_matmul_i8_pairs")
EDGES = (0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257)
SHAPES = (  # m, n, k
    [(m, 33, 70) for m in (*EDGES, *range(2, 15), 27, 28, 29)]
    + [(m, n, 21) for m in (1, 5, 18) for n in EDGES]
    + [(m, 37, k) for m in (1, 3, 16) for k in (*EDGES, 2, 3, 4, 5)]
    + [(m, 35, k) for m in (2, 30) for k in (1023, 1024, 1025, 2048, 2051)]
    + [(257, 257, 257), (1, 1, 1), (0, 0, 0)]
)
GUARD = 0x5A5A5A5A


@pytest.fixture(params=cpu.supported(), scope="module")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return cpu.load(request.param)


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product in 64 bits, cut to 32."""
    return (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)


def random_bytes(rng: np.random.Generator, shape: tuple[int, ...], unsigned: bool = False) -> np.ndarray:
    """All bytes, the extreme ones often."""
    low, high, dtype = (0, 255, np.uint8) if unsigned else (-128, 127, np.int8)
    values = rng.integers(low, high, shape, dtype, endpoint=True)
    return np.where(rng.random(shape) < 0.2, rng.choice(np.array([low, high], dtype), shape), values)


def product(
    kernels: Kernels, way: str, a: np.ndarray, packed: np.ndarray, n: int, rng: np.random.Generator | int
) -> np.ndarray:
    """C by random boxes (a generator) or on so many threads of the pool (a number); what is around C must not change.

    a: int8 or uint8 [m, k], its rows at any distance.
    """
    m, k = a.shape
    around = np.full((m + 2, n + 7), GUARD, np.int32)
    args = kernels.ffi.new("ree_matmul_i8_args *")
    args.a, args.b = pointer(kernels, a, "int8_t *"), pointer(kernels, packed, "int8_t *")
    args.c = pointer(kernels, around[1:, 3:], "int32_t *")
    args.a_row, args.c_row = a.strides[0], n + 7
    args.m, args.n, args.k, args.a_unsigned = m, n, k, a.dtype == np.uint8
    if isinstance(rng, int):
        row, col, scratch = matmul_i8_plan(kernels, m, n, k, rng)
        run_pool(kernels, way, args, (m, n), (row, col), scratch, rng)
    else:
        run_boxes(kernels, way, args, m, n, int(kernels.lib.ree_matmul_i8_scratch_bytes(m, k)), rng)
    c = around[1 : m + 1, 3 : n + 3].copy()
    around[1 : m + 1, 3 : n + 3] = GUARD
    assert (around == GUARD).all()
    return c


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("m,n,k", SHAPES)
def test_shapes(kernels: Kernels, way: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng([m, n, k])
    b = random_bytes(rng, (k, n))
    packed = pack_matrix_i8(kernels, b)
    for unsigned in (False, True):
        a = random_bytes(rng, (m, k), unsigned)
        expected = exact(a, b)
        np.testing.assert_array_equal(product(kernels, way, a, packed, n, rng), expected)
        np.testing.assert_array_equal(product(kernels, way, a, packed, n, 1), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("in_a,in_b", [(-128, -128), (-128, 127), (127, -128), (127, 127), (255, -128), (255, 127)])
def test_extremes(kernels: Kernels, way: str, in_a: int, in_b: int) -> None:
    """Every product of pairs is as far from zero as can be; the last sums leave 32 bits."""
    for m, k in ((1, 12), (20, 260), (2, 132_500)):
        a = np.full((m, k), in_a, np.uint8 if in_a > 127 else np.int8)
        b = np.full((k, 19), in_b, np.int8)
        expected = np.array(k * in_a * in_b).astype(np.int32)
        assert (product(kernels, way, a, pack_matrix_i8(kernels, b), 19, 1) == expected).all()


@pytest.mark.parametrize("way", WAYS)
def test_sums_wrap(kernels: Kernels, way: str) -> None:
    rng = np.random.default_rng(0)
    k = 150_001
    a, b = rng.integers(120, 128, (3, k), np.int8), rng.integers(120, 128, (k, 17), np.int8)
    true = a.astype(np.int64) @ b.astype(np.int64)
    assert (true > np.iinfo(np.int32).max).all()
    np.testing.assert_array_equal(product(kernels, way, a, pack_matrix_i8(kernels, b), 17, rng), true.astype(np.int32))


@pytest.mark.parametrize("way", WAYS)
def test_every_byte_by_every_byte(kernels: Kernels, way: str) -> None:
    for a in (np.arange(256, dtype=np.uint8)[:, None], np.arange(-128, 128).astype(np.int8)[:, None]):
        b = np.arange(-128, 128).astype(np.int8)[None, :]
        np.testing.assert_array_equal(product(kernels, way, a, pack_matrix_i8(kernels, b), 256, 1), exact(a, b))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("m,n,k", [(1, 700, 1500), (7, 5000, 300), (67, 150, 260), (300, 1100, 40)])
def test_threads(kernels: Kernels, threads: int, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(threads)
    a, b = random_bytes(rng, (m, k)), random_bytes(rng, (k, n))
    np.testing.assert_array_equal(product(kernels, WAYS[0], a, pack_matrix_i8(kernels, b), n, threads), exact(a, b))


def test_a_cut_at_every_row_and_column(kernels: Kernels) -> None:
    rng = np.random.default_rng(1)
    n = 2 * int(kernels.lib.ree_panel_i8_cols()) + 1
    a, b = random_bytes(rng, (3, 1030)), random_bytes(rng, (1030, n))
    c, packed = np.zeros((3, n), np.int32), pack_matrix_i8(kernels, b)
    args = kernels.ffi.new("ree_matmul_i8_args *")
    args.a, args.b = pointer(kernels, a, "int8_t *"), pointer(kernels, packed, "int8_t *")
    args.c, args.a_row, args.c_row = pointer(kernels, c, "int32_t *"), 1030, n
    args.m, args.n, args.k = 3, n, 1030
    scratch = int(kernels.lib.ree_matmul_i8_scratch_bytes(1, 1030))
    run_pool(kernels, WAYS[0], args, (3, n), (1, 1), scratch, 2)
    np.testing.assert_array_equal(c, exact(a, b))


def test_rows_of_a_larger_matrix(kernels: Kernels) -> None:
    rng = np.random.default_rng(2)
    a, b = random_bytes(rng, (40, 99))[::2, 5:75], random_bytes(rng, (70, 50))
    np.testing.assert_array_equal(product(kernels, WAYS[0], a, pack_matrix_i8(kernels, b), 50, rng), exact(a, b))


def layouts(b: np.ndarray) -> dict[str, np.ndarray]:
    """Matrices equal to b, with different strides."""
    wide = np.zeros((2 * b.shape[0], 3 * b.shape[1]), np.int8)
    wide[::2, ::3] = b
    odd = np.zeros((b.shape[1], b.shape[0] + 3), np.int8)
    odd[:, 1:-2] = b.T
    backwards = np.ascontiguousarray(b[::-1, ::-1])[::-1, ::-1]
    return {"rows": b, "columns": np.asfortranarray(b), "strided": wide[::2, ::3], "odd": odd[:, 1:-2].T,
            "backwards": backwards}  # fmt: skip


@pytest.mark.parametrize("k,n", [(0, 5), (1, 1), (3, 33), (4, 16), (257, 31), (70, 2000), (5000, 300)])
def test_pack(kernels: Kernels, k: int, n: int) -> None:
    """The bytes that the product reads are the same for every layout of the source and any number of threads."""
    b = random_bytes(np.random.default_rng([k, n]), (k, n))
    cols, steps = int(kernels.lib.ree_panel_i8_cols()), -(-k // 4)
    panels = -(-n // cols)
    padded = np.zeros((4 * steps, panels * cols), np.int8)
    padded[:k, :n] = b
    by_panel = padded.reshape(steps, 4, panels, cols).transpose(2, 0, 3, 1).reshape(panels, 4 * steps * cols)
    sums = padded.astype(np.int32).sum(0).astype(np.int32).reshape(panels, cols).view(np.int8)
    expected = np.concatenate([np.hstack([sums, by_panel]).ravel(), np.zeros(4 * cols, np.int8)])
    before = cpu.threads()
    try:
        for threads in (1, 3):
            cpu.threads(threads)
            for name, source in layouts(b).items():
                packed = pack_matrix_i8(kernels, source)
                assert packed.ctypes.data % 64 == 0
                np.testing.assert_array_equal(packed.view(np.int8), expected, err_msg=name)
    finally:
        cpu.threads(before)


@pytest.mark.parametrize("m,n,k", [(0, 0, 0), (1, 1, 1), (1, 100_000, 4096), (512, 2048, 2048), (15, 30, 1 << 20)])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_plans_can_be_run(kernels: Kernels, m: int, n: int, k: int, threads: int) -> None:
    plan = matmul_i8_plan(kernels, m, n, k, threads)
    assert plan.row_grain >= 1 and plan.col_grain >= 1
    assert plan.col_grain % int(kernels.lib.ree_panel_i8_cols()) == 0
    assert plan.scratch_bytes == int(kernels.lib.ree_matmul_i8_scratch_bytes(plan.row_grain, k))


def test_scratch_is_enough(kernels: Kernels) -> None:
    """Nothing behind the scratch is written, for boxes of few and of many rows."""
    rng = np.random.default_rng(3)
    for m, k in ((1, 1), (1, 3000), (6, 1025), (14, 2049), (15, 2049), (90, 100)):
        a, packed = random_bytes(rng, (m, k)), pack_matrix_i8(kernels, random_bytes(rng, (k, 20)))
        c = np.zeros((m, 20), np.int32)
        size = int(kernels.lib.ree_matmul_i8_scratch_bytes(m, k))
        room = np.full(size + 128, 0xA5, np.uint8)
        start = -room.ctypes.data % 64
        args = kernels.ffi.new("ree_matmul_i8_args *")
        args.a, args.b = pointer(kernels, a, "int8_t *"), pointer(kernels, packed, "int8_t *")
        args.c, args.a_row, args.c_row = pointer(kernels, c, "int32_t *"), k, 20
        args.m, args.n, args.k = m, 20, k
        for way in WAYS:
            function = getattr(kernels.lib, way)
            scratch = kernels.ffi.cast("void *", room.ctypes.data + start)
            function(kernels.ffi.cast("void *", args), 0, m, 0, 20, scratch)
            assert (room[:start] == 0xA5).all() and (room[start + size :] == 0xA5).all()


# machine, instruction set, more flags, the emulator's processor
ELSEWHERE = [
    ("aarch64", "neon", [], "cortex-a57"),
    ("aarch64", "neon", ["-march=armv8.2-a+dotprod"], "max"),
    ("aarch64", "portable", [], "cortex-a57"),
    ("riscv64", "portable", [], "rv64"),
]


@pytest.mark.parametrize("machine,isa,flags,processor", ELSEWHERE)
def test_other_processors(machine: str, isa: str, flags: list[str], processor: str, tmp_path: Path) -> None:
    """The kernel compiled for another machine gives NumPy's products under an emulator."""
    compiler, emulator = f"{machine}-linux-gnu-gcc", f"qemu-{machine}"
    if not shutil.which(compiler) or not shutil.which(emulator):
        pytest.skip(f"no {compiler} or no {emulator}")
    sources = [str(Path(__file__).with_name("run_matmul_i8.c")), str(SOURCES / "matmul_i8.c")]
    options = [*COMMON_FLAGS, *ISA_FLAGS[isa], *flags, "-Werror", "-static", f"-I{SOURCES}"]
    subprocess.run([compiler, *options, *sources, "-o", str(tmp_path / "run")], check=True)
    rng = np.random.default_rng(4)
    for m, n, k in ((1, 40, 1027), (2, 17, 64), (5, 33, 2), (13, 31, 1024), (6, 16, 300)):
        for unsigned in (False, True):
            a, b = random_bytes(rng, (m, k), unsigned), random_bytes(rng, (k, n))
            for by_columns in (False, True):
                source = np.ascontiguousarray(b.T if by_columns else b)
                head = struct.pack("<5q", m, n, k, unsigned, by_columns)
                command = [emulator, "-cpu", processor, str(tmp_path / "run")]
                data = head + a.tobytes() + source.tobytes()
                done = subprocess.run(command, input=data, capture_output=True, check=True)
                both = np.frombuffer(done.stdout, np.int32).reshape(len(WAYS), m, n)
                np.testing.assert_array_equal(both, np.broadcast_to(exact(a, b), both.shape))
