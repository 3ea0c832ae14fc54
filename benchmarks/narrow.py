"""Functions that begin in binary32 (ree/element/narrow.py) against their definitions, on all 2**32 inputs.

Both programs are compiled and run as users run them, and their bits compared: the float-float error bounds and whatever
else the first phase rests on need no other proof. `python benchmarks/exhaustive.py --narrow` writes docs/narrow.json.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ree.element import activations, bell, functions, jit, narrow
from ree.element.encode import digest
from ree.element.llvm import Layout
from ree.element.program import Builder, Instr, Port, Program, Value, walk
from ree.types import DType, Type

BLOCK = 1 << 22
SMALLEST_COMPARED = 2.0**-28  # below, definitions may make less of their binary64 value than their rounding needs
EXAMPLES = 16
NAMES = tuple(narrow.NEAR)
POSITIVE = ("log", "log2", "log10", "log1p", "rsqrt")
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_void_p)


class _Args(ctypes.Structure):
    _fields_ = [("pointers", ctypes.c_void_p), ("params", ctypes.c_void_p), ("status", ctypes.c_void_p)]


class OnInputs:
    """A program of one f32 input, compiled; `run` gives its results, which the next run overwrites."""

    def __init__(self, program: Program) -> None:
        self.results = [np.zeros(BLOCK, dtype.numpy) for dtype in program.dtypes]
        self._kernel = jit.compile_kernel(program, Layout(((1,),) * (1 + len(self.results)), 0))
        self._function = _KERNEL(self._kernel.address)
        self._status = np.zeros(1, np.int64)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        pointers = np.array([x.ctypes.data, *(r.ctypes.data for r in self.results)], np.int64)
        params = np.array([len(x)] + [1] * len(pointers), np.int64)
        args = _Args(pointers.ctypes.data, params.ctypes.data, self._status.ctypes.data)
        self._function(ctypes.addressof(args), 0, 1, 0, len(x), None)
        return [r[: len(x)] for r in self.results]


def _program(results: Any, dtypes: list[DType]) -> Program:
    b = Builder([Port(DType.F32, 1)], 1)
    return b.finish(results(b, b.load(0, b.index(0))), dtypes)


def definition(name: str) -> Program:
    return _program(lambda b, x: [getattr(functions, name)(b, x)], [DType.F32])


def in_two_phases(name: str) -> Program:
    with functions.narrow_first():
        return definition(name)


def first_phase(name: str) -> Program:
    """The first phase alone: settled, and where it is in range the distance of its value from the definition's."""

    def results(b: Builder, x: Value) -> list[Value]:
        near = narrow.NEAR[name](b, x)
        _, settled = narrow.settle(b, near)
        exact = _wide(name)(b, b.convert(x, Type.F64))
        value = b.convert(near.value.high, Type.F64) + b.convert(near.value.low, Type.F64)
        if near.times is not None:
            value = value * b.convert(near.times, Type.F64)
        distance = b.op("abs", (value - exact) / exact)
        compared = (b.op("abs", x) >= SMALLEST_COMPARED) & exact.ne(0.0) & (b.op("abs", exact) < float("inf"))
        return [settled, near.usable, b.select(near.usable & compared, distance, 0.0)]

    return _program(results, [DType.BOOL, DType.BOOL, DType.F64])


def _wide(name: str) -> functions.Body:
    if name == "softplus":
        return lambda b, x: activations.softplus(b, x, 1.0, 20.0)
    return functions.UNIVARIATE[name]


@dataclass
class Comparison:
    """One function's two programs; the counts of all inputs that were compared.

    usable: inputs in the first phase's range, from `lowest` to `highest`; left: those of them that it did not settle.
    """

    name: str
    inputs: int = 0
    settled: int = 0
    usable: int = 0
    left: int = 0
    lowest: float = float("inf")
    highest: float = -float("inf")
    distance: float = 0.0
    mismatches: int = 0
    examples: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        programs = (definition(self.name), in_two_phases(self.name), first_phase(self.name))
        self._definition, self._both, self._first = (OnInputs(program) for program in programs)

    def compare(self, x: np.ndarray) -> None:
        """Run on up to BLOCK inputs."""
        (expected,), (found,) = self._definition.run(x), self._both.run(x)
        settled, usable, distance = self._first.run(x)
        differing = np.flatnonzero(expected.view(np.uint32) != found.view(np.uint32))
        self.mismatches += len(differing)
        self.examples += x[differing[: EXAMPLES - len(self.examples)]].tolist()
        self.inputs += len(x)
        self.settled += int(settled.sum())
        self.usable += int(usable.sum())
        self.left += int((usable & ~settled).sum())
        self.distance = max(self.distance, float(distance.max()))
        if usable.any():
            inside = x[usable]
            self.lowest = min(self.lowest, float(inside.min()))
            self.highest = max(self.highest, float(inside.max()))


def all_inputs() -> Iterator[np.ndarray]:
    for start in range(0, 1 << 32, BLOCK):
        yield np.arange(start, start + BLOCK, dtype=np.uint32).view(np.float32)


def typical_inputs(name: str, count: int = BLOCK) -> np.ndarray:
    """Normally distributed with deviation 2; their sizes, for functions of positive numbers."""
    x = (np.random.default_rng(11).standard_normal(count) * 2.0).astype(np.float32)
    return np.abs(x) if name in POSITIVE else x


def instructions(program: Program, type: Type) -> dict[str, int]:
    """Instructions that the program computes with values of this type, and those among them that are divisions."""
    types: dict[int, Type] = {}
    for instr in walk(program.body):
        types.update(zip(instr.results, instr.types, strict=True))

    def counts(instr: Instr) -> bool:
        return instr.op not in ("const", "index", "load") and type in {*instr.types, *(types[a] for a in instr.args)}

    found = [instr.op for instr in program.body if counts(instr)]
    return {"all": len(found), "divisions": sum(op in ("div", "sqrt") for op in found)}


def cost(name: str) -> dict[str, int]:
    """Instructions of the first phase, and of the binary64 that it takes the place of."""

    def first(b: Builder, x: Value) -> list[Value]:
        return list(narrow.settle(b, narrow.NEAR[name](b, x)))

    def wide(b: Builder, x: Value) -> list[Value]:
        if name == "gelu":  # which has a first phase of its own in binary64
            return [b.convert(bound, Type.F32) for bound in bell.gelu_near(b, b.convert(x, Type.F64))]
        return [getattr(functions, name)(b, x)]

    quick = _program(first, [DType.F32, DType.BOOL])
    slow = _program(wide, [DType.F32] * (2 if name == "gelu" else 1))
    every = sum(instr.op not in ("const", "index", "load") for instr in quick.body)
    return {
        "f32_instructions": every,
        "f32_divisions": instructions(quick, Type.F32)["divisions"],
        "f64_instructions": instructions(slow, Type.F64)["all"],
        "f64_divisions": instructions(slow, Type.F64)["divisions"],
    }


def bound(name: str) -> float:
    b = Builder([Port(DType.F32, 1)], 1)
    return narrow.NEAR[name](b, b.load(0, b.index(0))).bound


def check(name: str) -> dict[str, Any]:
    """All 2**32 inputs of one function."""
    started = time.perf_counter()
    comparison = Comparison(name)
    for x in all_inputs():
        comparison.compare(x)
    seconds = time.perf_counter() - started
    typical = Comparison(name)
    typical.compare(typical_inputs(name))
    return {
        "program": digest(in_two_phases(name)).hex(),
        "inputs": comparison.inputs,
        "mismatches": comparison.mismatches,
        "examples": [float(x).hex() for x in comparison.examples],
        "settled": comparison.settled,
        "settled_share": round(comparison.settled / comparison.inputs, 6),
        "range": [str(comparison.lowest), str(comparison.highest)],  # infinities are no JSON
        "left_in_range": comparison.left,
        "left_of_typical_per_million": round(1e6 * (typical.inputs - typical.settled) / typical.inputs, 1),
        "distance_log2": round(float(np.log2(comparison.distance)), 2),
        "bound_log2": round(float(np.log2(bound(name))), 2),
        **cost(name),
        "seconds": round(seconds, 1),
    }


def is_good(row: dict[str, Any]) -> bool:
    return row["mismatches"] == 0 and row["distance_log2"] <= row["bound_log2"]


def table(results: dict[str, Any]) -> list[str]:
    """Lines of docs/FUNCTIONS.md."""
    lines = [
        "",
        "## Beginning in binary32",
        "",
        "Where binary64 is slow (1:32 or 1:64 of binary32), kernels begin with a first phase in pairs of binary32",
        "numbers (`ree/element/narrow.py`): a value with a bound on its error. Where everything within the bound",
        "rounds to the same number, that is the result; else the definition in binary64 is run, behind a branch.",
        "Written by `benchmarks/exhaustive.py --narrow`, which ran both on all 2^32 inputs and compared the bits:",
        "that is the proof. *Range* is where the first phase may settle a result, beside arguments with known ones",
        "such as 0 or, for exp, those below -104; *distance* is the largest between its value and the definition's",
        "there, relative to it, for inputs of 2^-28 or more; *left* is how many of a million normally distributed",
        "inputs (deviation 2; their sizes, for log and rsqrt) go to binary64. Instructions are counted without",
        "constants, divisions and roots among them in brackets; those in binary64 are what the first phase takes",
        "the place of.",
        "",
        "| function | mismatches of 2^32 | settled | range | distance | bound | left | binary32 | binary64 |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in results.items():
        low, high = (f"{float(x):.6g}" for x in row["range"])
        cells = [
            name,
            row["mismatches"],
            f"{100 * row['settled_share']:.1f} %",
            f"{low} .. {high}",
            f"2^{row['distance_log2']}",
            f"2^{row['bound_log2']}",
            row["left_of_typical_per_million"],
            f"{row['f32_instructions']} ({row['f32_divisions']})",
            f"{row['f64_instructions']} ({row['f64_divisions']})",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, ""]
