"""Runs of JIT-compiled kernels: NumPy arrays in, NumPy arrays out, through the kernels' own convention."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from ree.element import jit
from ree.element.interpret import interpret
from ree.element.llvm import Layout
from ree.element.program import Program

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_void_p)
Box = tuple[int, int, int, int]


class _Args(ctypes.Structure):
    _fields_ = [("pointers", ctypes.c_void_p), ("params", ctypes.c_void_p), ("status", ctypes.c_void_p)]


def element_strides(array: np.ndarray) -> list[int]:
    return [stride // array.itemsize for stride in array.strides]


def layout_of(arrays: Sequence[np.ndarray], params: int, known: bool = True) -> Layout:
    """Layout of inputs and results; known: strides 0 and 1 are told to the compiler."""
    strides = tuple(tuple(s if known and s in (0, 1) else None for s in element_strides(a)) for a in arrays)
    return Layout(strides, params)


def run_kernel(
    program: Program,
    inputs: Sequence[np.ndarray],
    results: Sequence[np.ndarray],
    shape: tuple[int, ...],
    params: Sequence[int] = (),
    isa: str | None = None,
    boxes: Sequence[Box] | None = None,
    known: bool = True,
) -> int:
    """Compile, run over all boxes (None: one) into `results`; returns the status."""
    arrays = [*inputs, *results]
    kernel = jit.compile_kernel(program, layout_of(arrays, len(params), known), isa)
    pointers = np.array([a.ctypes.data for a in arrays], dtype=np.int64)
    numbers = [*params, *shape]
    for array in arrays:
        numbers += element_strides(array)
    packed = np.array([*numbers, 0], dtype=np.int64)
    status = np.zeros(1, dtype=np.int64)
    args = _Args(pointers.ctypes.data, packed.ctypes.data, status.ctypes.data)
    rows = int(np.prod(shape[:-1])) if shape else 1
    columns = shape[-1] if shape else 1
    function = _KERNEL(kernel.address)
    for box in boxes or [(0, rows, 0, columns)]:
        function(ctypes.addressof(args), *box, None)
    return int(status[0])


def check_kernel(
    program: Program,
    inputs: Sequence[np.ndarray],
    shape: tuple[int, ...],
    params: Sequence[int] = (),
    isas: Sequence[str] | None = None,
    boxes: Sequence[Box] | None = None,
    known: bool = True,
) -> None:
    """Assert that kernels of all ISAs give the interpreter's bits."""
    expected = interpret(program, inputs, shape, params)
    for isa in isas or jit.isas():
        results = [np.full(shape, 77, dtype=e.dtype) for e in expected]
        assert run_kernel(program, inputs, results, shape, params, isa, boxes, known) == 0
        for number, (got, want) in enumerate(zip(results, expected, strict=True)):
            assert got.tobytes() == want.tobytes(), describe(isa, number, inputs, got, want)


def describe(isa: str, number: int, inputs: Sequence[np.ndarray], got: np.ndarray, want: np.ndarray) -> str:
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[got.itemsize]
    a, b = got.reshape(-1).view(bits), want.reshape(-1).view(bits)
    where = np.flatnonzero(a != b)
    at = int(where[0])
    near = [i.reshape(-1)[at] for i in inputs if i.size == got.size]
    values = f"{got.reshape(-1)[at]} not {want.reshape(-1)[at]}"
    return f"{isa}: result {number}: {len(where)} differ, at {at}: {values} from {near}"
