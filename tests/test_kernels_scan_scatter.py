"""Scan and scatter kernels equal the operators' definitions, written out here in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ree_kernels import cpu
from tests.kernel_runs import DTYPES, bits, canonical, pointer, run_boxes, run_pool, special_floats

SCANS = ("cumsum", "cumprod", "cummax", "cummin")
REDUCES = ("set", "add", "mul", "min", "max")
INTEGERS = ("i8", "u8", "i16", "i32", "i64", "u32", "u64")
NUMPY = {"bool": "bool", "f32": "float32", "f64": "float64", "f16": "float16", "bf16": "uint16"} | {
    d: ("uint" if d[0] == "u" else "int") + d[1:] for d in INTEGERS
}


def values(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype in ("f32", "f64"):
        mixed = special_floats(rng, shape, NUMPY[dtype])
        return np.where(rng.random(shape) < 0.1, mixed, rng.standard_normal(shape)).astype(NUMPY[dtype])
    if dtype in ("f16", "bf16"):
        return rng.integers(0, 1 << 16, shape).astype(np.uint16)
    if dtype == "bool":
        return rng.random(shape) < 0.3
    info = np.iinfo(NUMPY[dtype])
    return rng.integers(info.min, info.max, shape, NUMPY[dtype], endpoint=True)


def running(op: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scan of [rows, n, cols] along axis 1, one step at a time: values and indices."""
    out, at = np.empty_like(x), np.zeros(x.shape, np.int64)
    acc = np.zeros_like(x[:, 0]) if op == "cumsum" else np.ones_like(x[:, 0]) if op == "cumprod" else x[:, 0].copy()
    index = np.zeros(acc.shape, np.int64)
    with np.errstate(all="ignore"):
        for k in range(x.shape[1]):
            v = x[:, k]
            if op == "cumsum":
                acc = acc + v
            elif op == "cumprod":
                acc = acc * v
            else:
                better = v >= acc if op == "cummax" else v <= acc
                take = (v != v) | ((acc == acc) & better)
                acc, index = np.where(take, v, acc), np.where(take, k, index)
            out[:, k], at[:, k] = acc, index
    return (canonical(out) if x.dtype.kind == "f" else out), at


def scan(isa: str, op: str, dtype: str, x: np.ndarray, seed: int, threads: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Run the kernel over x [rows, n, cols] of any strides."""
    kernels = cpu.load(isa)
    out, at = np.empty(x.shape, x.dtype), np.full(x.shape, -1, np.int64)
    args = kernels.ffi.new("ree_scan_args *")
    args.x, args.out = pointer(kernels, x), pointer(kernels, out)
    if op in ("cummax", "cummin"):
        args.indices = pointer(kernels, at, "int64_t *")
    args.n, args.op, args.dtype = x.shape[1], SCANS.index(op), DTYPES.index(dtype)
    args.x_row, args.x_step, args.x_col = (s // x.itemsize for s in x.strides)
    args.out_row, args.out_step, args.out_col = (s // x.itemsize for s in out.strides)
    rows, cols = x.shape[0], x.shape[2]
    if threads:
        run_pool(kernels, "ree_scan", args, (rows, cols), (2, 9), 0, threads)
    else:
        run_boxes(kernels, "ree_scan", args, rows, cols, 0, np.random.default_rng(seed))
    return out, at


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("op", SCANS)
@pytest.mark.parametrize("dtype", ["f32", "f64", *INTEGERS])
def test_scan(isa: str, op: str, dtype: str) -> None:
    rng = np.random.default_rng(len(op + dtype))
    for shape in ((1, 1, 1), (37, 50, 1), (3, 9, 133), (5, 300, 1), (2, 7, 2)):
        x = values(rng, dtype, shape)
        if shape[0] == 3:
            x = np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0)  # columns far apart
        out, at = scan(isa, op, dtype, x, shape[1])
        expected, index = running(op, x)
        assert np.array_equal(bits(out), bits(expected))
        if op in ("cummax", "cummin"):
            assert np.array_equal(at, index)


def test_scan_of_bool() -> None:
    x = values(np.random.default_rng(0), "bool", (4, 20, 3))
    for op in ("cummax", "cummin"):
        out, at = scan(cpu.supported()[-1], op, "bool", x, 1)
        expected, index = running(op, x)
        assert np.array_equal(out, expected) and np.array_equal(at, index)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_scan_threads(threads: int) -> None:
    x = values(np.random.default_rng(3), "f32", (7, 60, 40))
    out, at = scan(cpu.supported()[-1], "cummax", "f32", x, 0, threads)
    expected, index = running("cummax", x)
    assert np.array_equal(bits(out), bits(expected)) and np.array_equal(at, index)


def test_running_extremes_pick_what_torch_picks() -> None:
    x = np.random.default_rng(4).choice(np.array([np.nan, 0.0, -0.0, 1, 2, np.inf], np.float32), (50, 12, 1))
    for op, theirs in (("cummax", torch.cummax), ("cummin", torch.cummin)):
        _, at = scan(cpu.supported()[-1], op, "f32", x, 0)
        assert np.array_equal(at, theirs(torch.from_numpy(x), 1).indices.numpy())


# -- scatter --------------------------------------------------------------------------------


def combine(op: str, old: Any, new: Any) -> Any:
    """One write, in the array's own dtype."""
    if op == "set":
        return new
    if old.dtype == np.bool_:
        return old | new if op in ("add", "max") else old & new
    with np.errstate(all="ignore"):
        if op in ("add", "mul"):
            return old + new if op == "add" else old * new
        if old.dtype.kind == "f" and old == new:  # -0 is below +0
            return old if np.signbit(old) == (op == "min") else new
        return np.minimum(old, new) if op == "min" else np.maximum(old, new)


def wrap(index: int, extent: int) -> int:
    return index if 0 <= index < extent else index + extent if -extent <= index < 0 else -1


def scatter_reference(op: str, out: np.ndarray, axis: int, index: np.ndarray, src: np.ndarray) -> np.ndarray:
    """Writes in ascending source order (C order has it ascending along the axis too); a written NaN is canonical."""
    out = out.copy()
    src = canonical(src) if src.dtype in (np.float32, np.float64) and op == "set" else src
    for place in np.ndindex(index.shape):
        target = list(place)
        target[axis] = wrap(int(index[place]), out.shape[axis])
        if target[axis] >= 0:
            out[tuple(target)] = combine(op, out[tuple(target)], src[place])
    return canonical(out) if out.dtype in (np.float32, np.float64) and op != "set" else out


def run_axis(
    isa: str, op: str, dtype: str, out: np.ndarray, axis: int, index: np.ndarray, src: np.ndarray, threads: int = 0
) -> int:
    """Scatter into `out` in place; returns the status word."""
    kernels = cpu.load(isa)
    status = np.zeros(1, np.int64)
    args = kernels.ffi.new("ree_scatter_axis_args *")
    args.out, args.src = pointer(kernels, out), pointer(kernels, src)
    args.index, args.status = pointer(kernels, index, "int64_t *"), pointer(kernels, status, "int64_t *")
    args.n, args.extent = index.shape[axis], out.shape[axis]
    args.op, args.dtype = REDUCES.index(op), DTYPES.index(dtype)
    slices = [a for a in range(out.ndim) if a != axis]
    extents = [index.shape[a] for a in slices] or [1]
    args.rank = len(extents)
    for i, extent in enumerate(extents):
        args.shape[i] = extent
    for name, array in (("out", out), ("index", index), ("src", src)):
        strides = [s // array.itemsize for s in array.strides]
        setattr(args, f"{name}_step", strides[axis])
        for i, a in enumerate(slices):
            getattr(args, f"{name}_stride")[i] = strides[a]
    rows, cols = int(np.prod(extents[:-1])), extents[-1]
    if threads:
        run_pool(kernels, "ree_scatter_axis", args, (rows, cols), (1, 3), 0, threads)
    else:
        run_boxes(kernels, "ree_scatter_axis", args, rows, cols, 0, np.random.default_rng(rows + cols))
    return int(status[0])


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("op", REDUCES)
@pytest.mark.parametrize("dtype", ["bool", "f32", "f64", *INTEGERS])
def test_scatter_axis(isa: str, op: str, dtype: str) -> None:
    rng = np.random.default_rng(len(op + dtype))
    for shape, part, axis in (
        ((6,), (9,), 0), ((5, 4, 7), (5, 4, 11), 2), ((5, 4, 7), (3, 9, 6), 1), ((2, 3, 4, 5), (7, 2, 4, 3), 0),
    ):  # fmt: skip
        out, src = values(rng, dtype, shape), values(rng, dtype, tuple(n + 1 for n in part))
        index = rng.integers(-shape[axis], shape[axis], part)
        expected = scatter_reference(op, out, axis, index, src)
        assert run_axis(isa, op, dtype, out, axis, index, src) == 0
        assert np.array_equal(bits(out), bits(expected))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_scatter_sets_narrow_floats(dtype: str) -> None:
    rng = np.random.default_rng(1)
    out, src, index = values(rng, dtype, (4, 5)), values(rng, dtype, (4, 9)), rng.integers(0, 5, (4, 9))
    src[0, ::2] = {"f16": 0xFC01, "bf16": 0xFF81}[dtype]  # NaNs with payload and sign
    infinity, nan = {"f16": (0x7C00, 0x7E00), "bf16": (0x7F80, 0x7FC0)}[dtype]
    expected = scatter_reference("set", out, 1, index, np.where((src & 0x7FFF) > infinity, np.uint16(nan), src))
    run_axis(cpu.supported()[-1], "set", dtype, out, 1, index, src)
    assert np.array_equal(out, expected)


def test_scatter_takes_any_byte_but_zero_for_true() -> None:
    src = np.array([[2, 0, 255]], np.uint8).view(bool)
    for op, expected in (("set", [1, 0, 1]), ("max", [1, 0, 1]), ("min", [0, 0, 0])):
        out = np.zeros((1, 3), bool)
        run_axis(cpu.supported()[-1], op, "bool", out, 1, np.array([[0, 1, 2]]), src)
        assert out.view(np.uint8).tolist() == [expected]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_scatter_threads(threads: int) -> None:
    rng = np.random.default_rng(threads)
    out, src, index = values(rng, "f32", (9, 5, 8)), values(rng, "f32", (9, 40, 8)), rng.integers(0, 5, (9, 40, 8))
    expected = scatter_reference("add", out, 1, index, src)
    run_axis(cpu.supported()[-1], "add", "f32", out, 1, index, src, threads)
    assert np.array_equal(bits(out), bits(expected))


@pytest.mark.parametrize("wrong", [-6, 5, 1 << 40, -(1 << 63)])
def test_index_outside_writes_nothing(wrong: int) -> None:
    out, src = np.arange(15, dtype=np.float32).reshape(3, 5), np.full((3, 2), 9, np.float32)
    index = np.array([[0, wrong], [1, 1], [-5, -1]])
    expected = scatter_reference("set", out, 1, index, src)
    assert run_axis(cpu.supported()[-1], "set", "f32", out, 1, index, src) == 1
    assert np.array_equal(out, expected)
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    before = rows.copy()
    assert run_rows(cpu.supported()[-1], "add", "f32", rows, np.array([wrong]), src[:1]) == 1
    assert np.array_equal(rows, before)


def run_rows(
    isa: str, op: str, dtype: str, out: np.ndarray, index: np.ndarray, src: np.ndarray, threads: int = 0
) -> int:
    kernels = cpu.load(isa)
    status = np.zeros(1, np.int64)
    args = kernels.ffi.new("ree_scatter_rows_args *")
    args.out, args.src = pointer(kernels, out), pointer(kernels, src)
    args.index, args.status = pointer(kernels, index, "int64_t *"), pointer(kernels, status, "int64_t *")
    args.n, args.extent, args.op, args.dtype = len(index), len(out), REDUCES.index(op), DTYPES.index(dtype)
    args.index_step, args.out_row = index.strides[0] // 8, out.strides[0] // out.itemsize
    args.src_row, args.src_col = (s // src.itemsize for s in src.strides)
    if threads:
        run_pool(kernels, "ree_scatter_rows", args, out.shape, (2, 16), 0, threads)
    else:
        run_boxes(kernels, "ree_scatter_rows", args, *out.shape, 0, np.random.default_rng(len(index)))
    return int(status[0])


@pytest.mark.parametrize("isa", cpu.supported())
@pytest.mark.parametrize("op", REDUCES)
@pytest.mark.parametrize("dtype", ["f32", "i64", "u8"])
def test_scatter_rows(isa: str, op: str, dtype: str) -> None:
    rng = np.random.default_rng(len(op))
    for extent, n, inner in ((1, 1, 1), (7, 30, 40), (11, 5, 3)):
        out, src = values(rng, dtype, (extent, inner)), values(rng, dtype, (n, inner))
        index = rng.integers(-extent, extent, n)
        for source in (src, np.broadcast_to(src[:1], src.shape), np.broadcast_to(src[:, :1], src.shape)):
            whole = np.repeat(index[:, None], inner, 1)
            mine, expected = out.copy(), scatter_reference(op, out, 0, whole, source)
            assert run_rows(isa, op, dtype, mine, index, source) == 0
            assert np.array_equal(bits(mine), bits(expected))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_scatter_rows_threads(threads: int) -> None:
    rng = np.random.default_rng(threads)
    out, src, index = values(rng, "f32", (13, 50)), values(rng, "f32", (60, 50)), rng.integers(0, 13, 60)
    expected = scatter_reference("add", out, 0, np.repeat(index[:, None], 50, 1), src)
    run_rows(cpu.supported()[-1], "add", "f32", out, index, src, threads)
    assert np.array_equal(bits(out), bits(expected))
