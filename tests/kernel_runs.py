"""Runs a kernel of `ree_kernels` over its index space: in random boxes, and on the pool."""

from __future__ import annotations

from typing import Any

import numpy as np

from ree_kernels import cpu
from ree_kernels.cpu import Kernels

DTYPES = ("bool", "i8", "u8", "i16", "i32", "i64", "u32", "u64", "f16", "bf16", "f32", "f64")  # as dtype.h numbers them


def pointer(kernels: Kernels, array: np.ndarray, kind: str = "void *") -> Any:
    return kernels.ffi.cast(kind, array.ctypes.data)


def random_cuts(rng: np.random.Generator, extent: int, unit: int = 1) -> list[int]:
    """0 = first cut, ..., extent: up to 4 cuts between at multiples of `unit`."""
    places = np.arange(unit, extent, unit)
    inner = rng.choice(places, min(len(places), int(rng.integers(0, 5))), replace=False) if len(places) else []
    return [0, *sorted(int(p) for p in inner), extent]


def run_boxes(
    kernels: Kernels, name: str, args: Any, rows: int, cols: int, scratch_bytes: int, rng: np.random.Generator
) -> None:
    """Call the kernel box by box, in random order, for a random split of rows and columns."""
    scratch = np.full(scratch_bytes + 64, 0xFF, np.uint8)  # NaNs, if it is read before it is written
    base = scratch.ctypes.data + (-scratch.ctypes.data % 64)
    r, c = random_cuts(rng, rows), random_cuts(rng, cols)
    boxes = [(r0, r1, c0, c1) for r0, r1 in zip(r, r[1:], strict=False) for c0, c1 in zip(c, c[1:], strict=False)]
    for box in rng.permutation(boxes):
        function = getattr(kernels.lib, name)
        function(kernels.ffi.cast("void *", args), *(int(v) for v in box), kernels.ffi.cast("void *", base))


def run_pool(
    kernels: Kernels,
    name: str,
    args: Any,
    shape: tuple[int, int],
    grain: tuple[int, int],
    scratch_bytes: int,
    threads: int,
) -> None:
    """Run the kernel as one step of a plan on so many threads."""
    runtime = cpu.runtime()
    before = cpu.threads()
    steps = runtime.ffi.new("ree_step[1]")
    steps[0].kernel = runtime.ffi.cast("ree_kernel", kernels.address(name))
    steps[0].args = runtime.ffi.cast("void *", int(kernels.ffi.cast("uintptr_t", args)))
    steps[0].rows, steps[0].cols = shape
    steps[0].row_grain, steps[0].col_grain = grain
    steps[0].scratch_bytes = scratch_bytes
    try:
        cpu.threads(threads)
        cpu.run(steps, 1)
    finally:
        cpu.threads(before)


def special_floats(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Normal numbers with NaN, infinities, both zeros, subnormals, huge values and many equal ones among them."""
    tiny, huge = np.finfo(dtype).tiny, np.finfo(dtype).max
    odd = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, tiny / 8, -tiny / 4, huge, -huge, 1.0, -1.0]
    values = rng.standard_normal(shape).astype(dtype)
    return np.where(rng.random(shape) < 0.3, rng.choice(np.array(odd, dtype), shape), values).astype(dtype)


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def canonical(array: np.ndarray) -> np.ndarray:
    """The array with every NaN the canonical one."""
    quiet = {4: np.uint32(0x7FC00000), 8: np.uint64(0x7FF8000000000000)}[array.dtype.itemsize]
    return np.where(np.isnan(array), quiet, bits(array)).view(array.dtype)
