"""The matrix product kernel against the definition of `dot`, on every instruction set, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from ree.element.fma import fma32
from ree_kernels import KernelError, cpu
from ree_kernels.cpu import Kernels
from ree_kernels.pack import pack_matrix
from tests.kernel_runs import pointer, random_cuts, run_boxes, run_pool, special_floats

EDGES = (0, 1, 15, 16, 17, 255, 256, 257, 513)
SHAPES = (
    [(m, 33, 257) for m in (0, 1, 2, 3, 4, 5, 6, 7, 13, 14, 15, 16, 17, 29)]  # m, n, k
    + [(5, n, 19) for n in EDGES]
    + [(1, n, 258) for n in (1, 127, 128, 129, 257)]
    + [(3, 37, k) for k in EDGES]
    + [(17, 35, k) for k in (0, 1, 256, 513)]
    + [(257, 17, 3), (255, 1, 16), (1, 1, 1)]
)


@pytest.fixture(params=cpu.supported(), scope="module")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return cpu.load(request.param)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [..., m, k] @ b [..., k, n] in the chunked order, NaN canonical."""
    k = a.shape[-1]
    total = np.zeros(np.broadcast_shapes((*a.shape[:-1], 1), (*b.shape[:-2], 1, b.shape[-1])), np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, k, 256):
            chain = np.zeros_like(total)
            for i in range(start, min(k, start + 256)):
                chain = fma32(a[..., :, i, None], b[..., None, i, :], chain)
            total = total + chain
    return np.where(np.isnan(total), np.float32(np.nan), total)


def same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got.view(np.uint32), expected.astype(np.float32).view(np.uint32))


def pack(kernels: Kernels, b: np.ndarray, slices: list[int] | None = None) -> np.ndarray:
    """b [k, n] with any strides, packed at once or from copies of its column slices."""
    k, n = b.shape
    size = int(kernels.lib.ree_pack_b_floats(n, k))
    room = np.full(size + 16, np.nan, np.float32)
    packed = room[-(room.ctypes.data // 4) % 16 :][:size]
    cuts = slices or [0, n]
    for c0, c1 in itertools.pairwise(cuts):
        part = b[:, c0:c1] if slices is None else np.array(b[:, c0:c1])
        status = kernels.lib.ree_pack_b(
            pointer(kernels, packed, "float *"), n, k, c0, c1 - c0, pointer(kernels, part, "float *"),
            part.strides[0] // 4, part.strides[1] // 4,
        )  # fmt: skip
        assert status == 0
    return packed


def arguments(kernels: Kernels, a: np.ndarray, b: np.ndarray, c: np.ndarray, n: int, packed: bool) -> Any:
    """Arguments for a [*batch, m, k]; b packed, or [*batch, k, n] where extent 1 is broadcast by a 0 stride."""
    args = kernels.ffi.new("ree_matmul_args *")
    args.a, args.b, args.c = (pointer(kernels, x, "float *") for x in (a, b, c))
    args.a_row, args.a_k = a.strides[-2] // 4, a.strides[-1] // 4
    args.m, args.n, args.k, args.c_row, args.b_packed = a.shape[-2], n, a.shape[-1], n, packed
    args.batch_dims = a.ndim - 2
    for d, extent in enumerate(a.shape[:-2]):
        args.batch[d], args.a_batch[d] = extent, a.strides[d] // 4
        args.b_batch[d] = 0 if packed else b.strides[d] // 4
    if not packed:
        args.b_k, args.b_col = b.strides[-2] // 4, b.strides[-1] // 4
    return args


def product(
    kernels: Kernels, a: np.ndarray, b: np.ndarray, packed: np.ndarray | None, rng: np.random.Generator | int
) -> np.ndarray:
    """C by random boxes (a generator) or on so many threads of the pool (a number)."""
    rows, n = int(np.prod(a.shape[:-1])), b.shape[-1]
    c = np.full((rows, n), 7.0, np.float32)
    args = arguments(kernels, a, b if packed is None else packed, c, n, packed is not None)
    if isinstance(rng, int):
        m, batch = a.shape[-2], int(np.prod(a.shape[:-2]))
        row, col, scratch = kernels.matmul_plan(m, n, a.shape[-1], rng, packed is not None, batch)
        run_pool(kernels, "ree_matmul", args, (rows, n), (row, col), scratch, rng)
    else:
        scratch = int(kernels.lib.ree_matmul_scratch_bytes(rows, a.shape[-1], packed is not None))
        run_boxes(kernels, "ree_matmul", args, rows, n, scratch, rng)
    return c.reshape(*a.shape[:-1], n)


@pytest.mark.parametrize("m,n,k", SHAPES)
def test_packed(kernels: Kernels, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng([m, n, k])
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    expected = dot(a, b)
    packed = pack(kernels, b)
    same_bits(product(kernels, a, b, packed, rng), expected)
    same_bits(product(kernels, a, b, packed, 1), expected)


@pytest.mark.parametrize("m,n,k", [(1, 100, 300), (3, 129, 257), (15, 40, 513), (40, 70, 20)])
@pytest.mark.parametrize("mixed", range(3))
def test_special_values(kernels: Kernels, m: int, n: int, k: int, mixed: int) -> None:
    rng = np.random.default_rng([m, mixed])
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    if mixed == 0:  # subnormal results and underflowing chains
        a, b = a * np.float32(1e-23), b * np.float32(1e-19)
    elif mixed == 1:  # a few specials, so that most outputs stay finite
        a[rng.integers(m), :] = special_floats(rng, (k,))
        b[:, rng.integers(n)] = special_floats(rng, (k,))
    else:
        a, b = special_floats(rng, (m, k)), special_floats(rng, (k, n))
    expected = dot(a, b)
    same_bits(product(kernels, a, b, pack(kernels, b), rng), expected)
    same_bits(product(kernels, a, b, None, rng), expected)


def test_negative_zero_is_removed_by_the_total(kernels: Kernels) -> None:
    a, b = np.full((2, 1), -0.0, np.float32), np.ones((1, 3), np.float32)
    same_bits(product(kernels, a, b, pack(kernels, b), 1), np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("transposed", ["a", "b", "ab", ""])
@pytest.mark.parametrize("m,n,k", [(1, 65, 257), (15, 33, 300), (31, 70, 41)])
def test_strides(kernels: Kernels, m: int, n: int, k: int, transposed: str) -> None:
    rng = np.random.default_rng([m, n])
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    expected = dot(a, b)
    a = np.asfortranarray(a) if "a" in transposed else a
    b = np.asfortranarray(b) if "b" in transposed else b
    same_bits(product(kernels, a, b, pack(kernels, b), rng), expected)
    same_bits(product(kernels, a, b, None, rng), expected)


@pytest.mark.parametrize("batch", [(3,), (2, 3), (2, 1, 3, 2)])
@pytest.mark.parametrize("m,n,k", [(1, 40, 17), (5, 33, 257), (16, 17, 20)])
def test_batches(kernels: Kernels, batch: tuple[int, ...], m: int, n: int, k: int) -> None:
    rng = np.random.default_rng([m, *batch])
    a = rng.standard_normal((*batch, m, k), np.float32)
    b = rng.standard_normal((*batch[:-1], 1, k, n), np.float32)
    wide = np.broadcast_to(b, (*batch, k, n))
    expected = dot(a, wide)
    same_bits(product(kernels, a, wide, None, rng), expected)
    same_bits(product(kernels, a, wide, None, 2), expected)
    shared = b.reshape(-1, k, n)[0]
    same_bits(product(kernels, a, shared, pack(kernels, shared), rng), dot(a, shared))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(kernels: Kernels, threads: int) -> None:
    rng = np.random.default_rng(threads)
    a, b = rng.standard_normal((67, 260), np.float32), rng.standard_normal((260, 150), np.float32)
    same_bits(product(kernels, a, b, pack(kernels, b), threads), dot(a, b))


def test_pack_from_slices(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    b = rng.standard_normal((70, 5 * kernels.panel_cols - 3), np.float32)
    cuts = [0, kernels.panel_cols, 3 * kernels.panel_cols, b.shape[1]]
    same_bits(pack(kernels, b, cuts), pack(kernels, b))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("k,n", [(1, 1), (3, 33), (257, 31), (70, 5000), (9000, 300)])
def test_pack_on_the_pool(kernels: Kernels, k: int, n: int, transposed: bool) -> None:
    b = np.random.default_rng([k, n]).standard_normal((n, k) if transposed else (k, n), np.float32)
    b = b.T if transposed else b
    before = cpu.threads()
    try:
        for threads in (1, 3):
            cpu.threads(threads)
            same_bits(pack_matrix(kernels, b), pack(kernels, b))
    finally:
        cpu.threads(before)


def test_pack_refuses_bad_slices(kernels: Kernels) -> None:
    room = np.zeros(4096, np.float32)
    to = pointer(kernels, room, "float *")
    for c0, cols in ((1, 3), (0, 3), (0, 41), (-32, 32)):
        assert kernels.lib.ree_pack_b(to, 40, 10, c0, cols, to, 40, 1) != 0
    assert not room.any()


@pytest.mark.parametrize("m,n,k", [(1, 300, 20), (4, 129, 300), (45, 700, 270)])
def test_epilogue_sees_each_element_once_and_complete(kernels: Kernels, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    a[0, 0] = np.nan
    out, c = np.zeros((m, n), np.float32), np.zeros((m, n), np.float32)
    cuts_seen: list[tuple[int, int, int, int]] = []

    @kernels.ffi.callback("ree_kernel")
    def double_it(_args: Any, r0: int, r1: int, c0: int, c1: int, _scratch: Any) -> None:
        cuts_seen.append((r0, r1, c0, c1))
        out[r0:r1, c0:c1] += 2 * c[r0:r1, c0:c1]

    args = arguments(kernels, a, pack_kept := pack(kernels, b), c, n, True)
    args.epilogue = double_it
    scratch = int(kernels.lib.ree_matmul_scratch_bytes(m, k, True))
    run_boxes(kernels, "ree_matmul", args, m, n, scratch, rng)
    expected = dot(a, b)
    np.testing.assert_array_equal(out, 2 * expected)
    assert sum((r1 - r0) * (c1 - c0) for r0, r1, c0, c1 in cuts_seen) == m * n
    assert pack_kept.size


def test_isas_share_their_random_splits() -> None:
    """Boxes that start inside a panel read packed B across it: cut at every column."""
    for isa in cpu.supported():
        kernels = cpu.load(isa)
        rng = np.random.default_rng(1)
        n, k = 2 * kernels.panel_cols + 1, 9
        a, b = rng.standard_normal((2, k), np.float32), rng.standard_normal((k, n), np.float32)
        packed, c = pack(kernels, b), np.zeros((2, n), np.float32)
        args = arguments(kernels, a, packed, c, n, True)
        run_pool(kernels, "ree_matmul", args, (2, n), (1, 1), int(kernels.lib.ree_matmul_scratch_bytes(1, k, True)), 2)
        same_bits(c, dot(a, b))
        assert random_cuts(rng, n)[-1] == n


def test_unknown_isa_and_kernel_are_refused() -> None:
    with pytest.raises(KernelError, match="this processor runs"):
        cpu.load("z80")
    with pytest.raises(KernelError, match="no kernel named"):
        cpu.address("ree_no_such_kernel")
