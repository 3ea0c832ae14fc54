"""argsort and top-k equal a stable sort in plain Python, for every dtype, ISA and split."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from ree_kernels import cpu
from tests.kernel_runs import DTYPES, pointer, run_boxes, run_pool, special_floats

NUMPY = {
    "bool": "bool", "i8": "int8", "u8": "uint8", "i16": "int16", "i32": "int32", "i64": "int64", "u32": "uint32",
    "u64": "uint64", "f16": "float16", "bf16": "uint16", "f32": "float32", "f64": "float64",
}  # fmt: skip


def keys_of(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random keys with many ties and every kind of special value."""
    if dtype == "bf16":
        return (special_floats(rng, shape).view(np.uint32) >> 16).astype(np.uint16)
    if dtype in ("f16", "f32", "f64"):
        return special_floats(rng, shape, NUMPY[dtype])
    if dtype == "bool":
        return rng.random(shape) < 0.5
    info = np.iinfo(NUMPY[dtype])
    full = rng.integers(info.min, info.max, shape, NUMPY[dtype], endpoint=True)
    few = rng.integers(max(info.min, -3), 4, shape).astype(NUMPY[dtype])
    ends = rng.choice(np.array([info.min, info.max, 0], NUMPY[dtype]), shape)
    return np.choose(rng.integers(0, 3, shape), [full, few, ends]).astype(NUMPY[dtype])


def reference(row: np.ndarray, dtype: str, descending: bool) -> list[int]:
    """Indices in order: Python's stable sort with a three-way comparison."""
    values = (row.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else row
    numbers = values.tolist()

    def compare(i: int, j: int) -> int:
        a, b = numbers[i], numbers[j]
        if a != a or b != b:
            order = int(a != a) - int(b != b)
        else:
            order = int(a > b) - int(a < b)
        return -order if descending else order

    return sorted(range(len(numbers)), key=functools.cmp_to_key(compare))


def run(
    isa: str, x: np.ndarray, dtype: str, k: int, descending: bool, name: str, seed: int, threads: int = 0
) -> np.ndarray:
    kernels = cpu.load(isa)
    rows, n = x.shape
    out = np.full((rows, k + 2), -7, np.int64)
    args = kernels.ffi.new("ree_sort_args *")
    args.x, args.out = pointer(kernels, x), pointer(kernels, out, "int64_t *")
    args.n, args.k, args.dtype, args.descending = n, k, DTYPES.index(dtype), descending
    args.x_row, args.x_step, args.out_row = x.strides[0] // x.itemsize, x.strides[1] // x.itemsize, k + 2
    scratch_bytes = int(kernels.lib.ree_sort_scratch_bytes(n, args.dtype))
    if threads:
        run_pool(kernels, name, args, (rows, k), (1, k), scratch_bytes, threads)
    else:
        run_boxes(kernels, name, args, rows, k, scratch_bytes, np.random.default_rng(seed))
    assert (out[:, k:] == -7).all()
    return out[:, :k]


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("descending", [False, True])
def test_argsort(isa: str, dtype: str, descending: bool) -> None:
    for n in (1, 2, 47, 48, 49, 300, 1025):
        x = keys_of(np.random.default_rng(n), dtype, (3, n))
        found = run(isa, x, dtype, n, descending, "ree_argsort", n)
        assert found.tolist() == [reference(row, dtype, descending) for row in x]


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("descending", [False, True])
def test_topk_is_the_head_of_argsort(isa: str, dtype: str, descending: bool) -> None:
    for n, k in ((1, 1), (5, 5), (100, 1), (700, 7), (1500, 1499)):
        x = keys_of(np.random.default_rng(n), dtype, (3, n))
        found = run(isa, x, dtype, k, descending, "ree_argtopk", n)
        assert found.tolist() == [reference(row, dtype, descending)[:k] for row in x]


@pytest.mark.parametrize("name", ["ree_argsort", "ree_argtopk"])
def test_strided_keys(name: str) -> None:
    x = keys_of(np.random.default_rng(1), "f32", (90, 8)).T[::2]
    found = run(cpu.supported()[-1], x, "f32", 90, False, name, 1)
    assert found.tolist() == [reference(row, "f32", False) for row in x]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(threads: int) -> None:
    x = keys_of(np.random.default_rng(2), "f32", (11, 400))
    found = run(cpu.supported()[-1], x, "f32", 400, True, "ree_argsort", 2, threads)
    assert found.tolist() == [reference(row, "f32", True) for row in x]


@pytest.mark.parametrize("pattern", ["equal", "sorted", "reversed", "one bucket"])
def test_patterns_that_slow_other_sorts(pattern: str) -> None:
    n = 200_000
    ramp = np.arange(n, dtype=np.float32)
    rows = {"equal": np.ones(n), "sorted": ramp, "reversed": ramp[::-1], "one bucket": 1 + (ramp * 7919 % n) / n / 4}
    x = np.ascontiguousarray(rows[pattern][None], np.float32)
    expected = np.argsort(x[0], kind="stable")
    isa = cpu.supported()[-1]
    assert np.array_equal(run(isa, x, "f32", n, False, "ree_argsort", 3)[0], expected)
    assert np.array_equal(run(isa, x, "f32", 50, False, "ree_argtopk", 3)[0], expected[:50])
