"""Packed bfloat16 B: the bits of the float32 kernel on the widened matrix, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ree_kernels import cpu
from ree_kernels.cpu import Kernels
from ree_kernels.pack import pack_matrix
from tests.kernel_runs import run_boxes, run_pool, special_floats
from tests.test_kernels_matmul import arguments, dot, same_bits

EDGES = (0, 1, 15, 16, 17, 31, 32, 33, 255, 256, 257)
SHAPES = (
    [(m, 70, 33) for m in EDGES]  # m, n, k
    + [(m, 33, 258) for m in (2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 18, 28, 29)]
    + [(m, n, 19) for m in (1, 3, 17) for n in (*EDGES, 127, 128, 129)]
    + [(m, 37, k) for m in (1, 6, 16, 40) for k in (*EDGES, 513)]
)


@pytest.fixture(params=cpu.supported(), scope="module")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return cpu.load(request.param)


def narrow(x: np.ndarray) -> np.ndarray:
    """float32 cut to the bits of a bfloat16: any 16 bits are one."""
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)


def widen(b: np.ndarray) -> np.ndarray:
    return (b.astype(np.uint32) << 16).view(np.float32)


def product(kernels: Kernels, a: np.ndarray, b: np.ndarray, form: int, how: np.random.Generator | int) -> np.ndarray:
    """a @ packed b (form 1: widened first) by random boxes (a generator) or on threads of the pool (a number)."""
    (m, k), n = a.shape, b.shape[1]
    packed = pack_matrix(kernels, b if form == 2 else widen(b))
    c = np.full((m, n), 7.0, np.float32)
    args = arguments(kernels, a, packed, c, n, True)
    args.b_packed = form
    if isinstance(how, int):
        row, col, scratch = kernels.matmul_plan(m, n, k, how, form)
        run_pool(kernels, "ree_matmul", args, (m, n), (row, col), scratch, how)
    else:
        run_boxes(kernels, "ree_matmul", args, m, n, int(kernels.lib.ree_matmul_scratch_bytes(m, k, form)), how)
    return c


@pytest.mark.parametrize("m,n,k", SHAPES)
def test_bits_of_the_widened_matrix(kernels: Kernels, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng([m, n, k])
    a, b = rng.standard_normal((m, k), np.float32), narrow(rng.standard_normal((k, n), np.float32))
    expected = product(kernels, a, b, 1, 1)
    same_bits(product(kernels, a, b, 2, rng), expected)
    same_bits(product(kernels, a, b, 2, 2), expected)


@pytest.mark.parametrize("m,n,k", [(1, 129, 257), (4, 64, 300), (9, 40, 513), (17, 70, 20), (60, 33, 257)])
def test_the_order_is_that_of_dot(kernels: Kernels, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng([m, n, k, 1])
    a, b = rng.standard_normal((m, k), np.float32), narrow(rng.standard_normal((k, n), np.float32))
    same_bits(product(kernels, a, b, 2, rng), dot(a, widen(b)))


@pytest.mark.parametrize("m,n,k", [(1, 100, 300), (3, 129, 257), (15, 40, 513), (40, 70, 20)])
def test_special_values(kernels: Kernels, m: int, n: int, k: int) -> None:
    """A few columns of infinities, NaNs, subnormals and zeros; then every 16-bit pattern that there is."""
    rng = np.random.default_rng([m, n])
    a, b = rng.standard_normal((m, k), np.float32), narrow(rng.standard_normal((k, n), np.float32))
    b[:, ::7] = narrow(special_floats(rng, (k, len(range(0, n, 7)))))
    a[rng.integers(m), :] = special_floats(rng, (k,))
    same_bits(product(kernels, a, b, 2, rng), product(kernels, a, b, 1, 1))
    anything = rng.integers(0, 1 << 16, (k, n)).astype(np.uint16)
    same_bits(product(kernels, a, anything, 2, rng), product(kernels, a, anything, 1, 1))


def test_every_bfloat16_has_its_value(kernels: Kernels) -> None:
    """1 * b + 0 is b: quieted and canonical if it is a NaN, +0 for -0."""
    b = np.arange(1 << 16, dtype=np.uint16)[None, :]
    one = np.ones((1, 1), np.float32)
    value = widen(b)
    expected = np.where(np.isnan(value), np.float32(np.nan), np.where(value == 0, np.float32(0), value))
    same_bits(product(kernels, one, b, 2, 2), expected)
    same_bits(product(kernels, np.ones((40, 1), np.float32), b, 2, 2), np.broadcast_to(expected, (40, 1 << 16)).copy())


@pytest.mark.parametrize(
    "k,n", [(1, 1), (3, 33), (8, 64), (9, 65), (257, 31), (70, 5000), (9000, 300), (0, 40), (5, 0)]
)
def test_packing_does_not_depend_on_strides_or_threads(kernels: Kernels, k: int, n: int) -> None:
    b = np.random.default_rng([k, n]).integers(0, 1 << 16, (k, n)).astype(np.uint16)
    wide = np.zeros((k, 2 * n + 1), np.uint16)
    wide[:, 1 : 2 * n : 2] = b
    columns = kernels.panel_cols
    panels = -(-n // columns)
    flat = np.zeros((k, panels * columns), np.uint16)
    flat[:, :n] = b
    lanes = int(kernels.lib.ree_vector_floats())
    turns = flat.reshape(k, panels, columns // (2 * lanes), 2, lanes).transpose(1, 0, 2, 4, 3).reshape(-1)
    before = cpu.threads()
    try:
        for threads in (1, 3):
            cpu.threads(threads)
            for source in (b, np.asfortranarray(b), wide[:, 1 : 2 * n : 2]):
                np.testing.assert_array_equal(pack_matrix(kernels, source)[: turns.size], turns)
    finally:
        cpu.threads(before)


@pytest.mark.parametrize("m,n,k", [(1, 300, 20), (4, 129, 300), (20, 70, 40), (45, 700, 270)])
def test_epilogue_sees_each_element_once_and_complete(kernels: Kernels, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((m, k), np.float32), narrow(rng.standard_normal((k, n), np.float32))
    out, c = np.zeros((m, n), np.float32), np.zeros((m, n), np.float32)

    @kernels.ffi.callback("ree_kernel")
    def double_it(_args: Any, r0: int, r1: int, c0: int, c1: int, _scratch: Any) -> None:
        out[r0:r1, c0:c1] += 2 * c[r0:r1, c0:c1]

    packed = pack_matrix(kernels, b)
    args = arguments(kernels, a, packed, c, n, True)
    args.b_packed, args.epilogue = 2, double_it
    run_boxes(kernels, "ree_matmul", args, m, n, int(kernels.lib.ree_matmul_scratch_bytes(m, k, 2)), rng)
    same_bits(out, 2 * dot(a, widen(b)))


@pytest.mark.parametrize("m", [1, 5, 40])
def test_batches_share_the_matrix(kernels: Kernels, m: int) -> None:
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((3, m, 300), np.float32), narrow(rng.standard_normal((300, 70), np.float32))
    c = np.zeros((3 * m, 70), np.float32)
    packed = pack_matrix(kernels, b)
    args = arguments(kernels, a, packed, c, 70, True)
    args.b_packed = 2
    scratch = int(kernels.lib.ree_matmul_scratch_bytes(3 * m, 300, 2))
    run_boxes(kernels, "ree_matmul", args, 3 * m, 70, scratch, rng)
    same_bits(c, dot(a, widen(b)).reshape(3 * m, 70))
