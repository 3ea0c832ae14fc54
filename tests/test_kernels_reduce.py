"""Column reductions equal the `sum` and `max` folds, written out here in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from ree_kernels import cpu
from tests.kernel_runs import bits, canonical, pointer, run_boxes, run_pool, special_floats

OPS = ("sum", "max", "min")


def chunk_sum(x: np.ndarray) -> np.ndarray:
    """Sum of n <= 256 rows: 16 lanes from +0, then the tree."""
    lanes = np.zeros((16, x.shape[1]), np.float32)
    for k, row in enumerate(x):
        lanes[k % 16] = lanes[k % 16] + row
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def reference(op: str, x: np.ndarray) -> np.ndarray:
    """Fold of [n, cols] along its rows."""
    with np.errstate(all="ignore"):
        if op == "sum":
            while True:
                x = np.stack([chunk_sum(x[k : k + 256]) for k in range(0, max(1, len(x)), 256)])
                if len(x) == 1:
                    return canonical(x[0])
        best = np.maximum if op == "max" else np.minimum
        result = np.full(x.shape[1], -np.inf if op == "max" else np.inf, np.float32)
        for row in x:
            zeros = (result == 0) & (row == 0)
            sign = np.signbit(result) & np.signbit(row) if op == "max" else np.signbit(result) | np.signbit(row)
            result = np.where(zeros, np.where(sign, np.float32(-0.0), np.float32(0.0)), best(result, row))
        return canonical(result.astype(np.float32))


def run(isa: str, op: str, x: np.ndarray, seed: int, threads: int = 0) -> np.ndarray:
    kernels = cpu.load(isa)
    rows, n, cols = x.shape
    out = np.empty((rows, cols), np.float32)
    args = kernels.ffi.new("ree_reduce_args *")
    args.x, args.out = pointer(kernels, x, "float *"), pointer(kernels, out, "float *")
    args.n, args.x_row, args.x_k, args.out_row, args.op = n, x.strides[0] // 4, x.strides[1] // 4, cols, OPS.index(op)
    scratch_bytes = int(kernels.lib.ree_reduce_scratch_bytes(n))
    if threads:
        run_pool(kernels, "ree_reduce_columns", args, (rows, cols), (1, 16), scratch_bytes, threads)
    else:
        run_boxes(kernels, "ree_reduce_columns", args, rows, cols, scratch_bytes, np.random.default_rng(seed))
    return out


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 255, 256, 257, 513, 4100])
def test_definition(isa: str, op: str, n: int) -> None:
    rng = np.random.default_rng(n)
    for cols in (1, 7, 64, 150):
        wide = rng.standard_normal((2, n, cols + 3), np.float32)
        if cols == 64:
            wide = np.where(rng.random(wide.shape) < 0.3 / max(n, 1), special_floats(rng, wide.shape), wide)
        x = wide[:, :, 1 : 1 + cols]
        assert np.array_equal(bits(run(isa, op, x, n)), bits(np.stack([reference(op, item) for item in x])))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("isa", cpu.supported())
def test_special_values(isa: str, op: str) -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 20):
        x = special_floats(rng, (1, n, 200))
        assert np.array_equal(bits(run(isa, op, x, n))[0], bits(reference(op, x[0])))


def test_two_levels_of_chunk_sums() -> None:
    x = np.random.default_rng(2).standard_normal((1, 256 * 256 + 300, 3), np.float32)
    assert np.array_equal(bits(run(cpu.supported()[-1], "sum", x, 0))[0], bits(reference("sum", x[0])))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(threads: int) -> None:
    x = np.random.default_rng(threads).standard_normal((3, 700, 90), np.float32)
    found = run(cpu.supported()[-1], "sum", x, 0, threads)
    assert np.array_equal(bits(found), bits(np.stack([reference("sum", item) for item in x])))
