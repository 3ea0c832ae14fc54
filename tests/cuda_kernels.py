"""Runs of printed CUDA kernels: many of them in one module, each compared with the interpreter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ree.element import cuda as printer
from ree.element.interpret import interpret
from ree.element.program import Program
from ree_kernels.cuda import Device, Launch
from tests.jit_case import describe, element_strides, layout_of

BLOCK = 96  # no power of two, and threads enough for half-warps to be left over


@dataclass
class Case:
    """A program over arrays, and its kernels: one for each form."""

    program: Program
    inputs: Sequence[np.ndarray]
    shape: tuple[int, ...]
    params: Sequence[int]
    kernels: dict[str, printer.Text]
    forms: Sequence[str]


@dataclass
class Batch:
    """Collects kernels, compiles them together, runs them, and compares every byte."""

    device: Device
    cases: list[Case] = field(default_factory=list)

    def add(
        self,
        program: Program,
        inputs: Sequence[np.ndarray],
        shape: tuple[int, ...],
        params: Sequence[int] = (),
        known: bool = True,
        forms: Sequence[str] = ("flat", "rows", "single"),
    ) -> None:
        """known: strides 0 and 1 are told to the compiler."""
        dense = [np.zeros(shape, dtype.numpy) for dtype in program.dtypes]
        layout = layout_of([*inputs, *dense], len(params), known)
        forms = [form for form in forms if shape or form != "rows"]
        names = {form: f"kernel_{len(self.cases)}_{form}" for form in forms}
        texts = {form: printer.print_kernel(program, layout, form, name) for form, name in names.items()}
        self.cases.append(Case(program, inputs, shape, params, texts, forms))

    def check(self) -> None:
        text = "\n".join(t.text for case in self.cases for t in case.kernels.values())
        module = self.device.load(self.device.compile(text))
        for number, case in enumerate(self.cases):
            expected = interpret(case.program, case.inputs, case.shape, case.params)
            for form in case.forms:
                function = module.function(f"kernel_{number}_{form}", 0)
                found, status = self._run(case, form, function, [np.full_like(e, 77) for e in expected])
                assert status == 0
                for result, (got, want) in enumerate(zip(found, expected, strict=True)):
                    assert got.tobytes() == want.tobytes(), describe(form, result, case.inputs, got, want)

    def _run(self, case: Case, form: str, function: Any, results: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
        device, kept = self.device, []
        addresses = []
        for array in (*case.inputs, *results, np.zeros(1, np.int64)):
            base, low, n_bytes = _span(array)
            memory = device.allocate(max(1, n_bytes))
            device.write(memory.address, base + low, n_bytes)
            kept.append(memory)
            addresses.append(memory.address - low)
        strides = [element_strides(array) for array in (*case.inputs, *results)]
        values = {"status": lambda f: addresses[-1], "port": lambda f: addresses[f.number]}
        values |= {"param": lambda f: case.params[f.number], "extent": lambda f: case.shape[f.axis]}
        values |= {"stride": lambda f: strides[f.number][f.axis]}
        text = case.kernels[form]
        args = np.array([values[f.kind](f) for f in text.fields] or [0], np.int64).view(np.uint64)
        rows, count = math.prod(case.shape[:-1]), math.prod(case.shape)
        grid = {"flat": -(-count // (BLOCK * text.elements_per_thread)), "rows": rows, "single": count}[form]
        if grid:
            device.launch(Launch(function, (grid, 1, 1), BLOCK, 0, args))
        status = np.zeros(1, np.int64)
        for array, address in zip((*results, status), addresses[len(case.inputs) :], strict=True):
            if array.nbytes:
                device.read(array.ctypes.data, address, array.nbytes)
        return results, int(status[0])


def _span(array: np.ndarray) -> tuple[int, int, int]:
    """Of a strided array: the address of its first element, how far below it the lowest one lies, bytes in all."""
    if array.size == 0:
        return array.ctypes.data, 0, 0
    reaches = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
    low = sum(min(0, r) for r in reaches)
    return array.ctypes.data, low, sum(max(0, r) for r in reaches) - low + array.itemsize
