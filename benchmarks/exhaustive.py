"""Every univariate elementary function on all 2**32 inputs: how many results are misrounded?

For each input the kernel that users run gives the rounded result, and a screen says whether
the binary64 value before rounding lies within 2**-48 (relative) of where the rounding
changes (a wider margin for two of them), whether NaN came out at the wrong place, or whether
a cheaper form that users run (gelu has one) gives another result. Only those inputs go to
MPFR. The screen is sound while the binary64 value is better than that; it is checked against
MPFR on samples of every binade, and against torch's binary64 functions on every 257th input.

Writes docs/functions.json and docs/FUNCTIONS.md. With --narrow the functions that may begin in binary32 are compared
with their definitions instead (benchmarks/narrow.py); writes docs/narrow.json and docs/FUNCTIONS.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gmpy2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))

import truth  # noqa: E402

from benchmarks import narrow  # noqa: E402
from ree.element import functions, jit  # noqa: E402
from ree.element.functions import UNIVARIATE  # noqa: E402
from ree.element.llvm import Layout  # noqa: E402
from ree.element.program import Builder, Program  # noqa: E402
from ree.types import DType, Type  # noqa: E402

SCREEN = 2.0**-48
# the left tail of gelu_tanh is e**(2 u) with u far from 0; sigmoid is nudged off ties near 0 on purpose
WIDER_SCREEN = {"gelu_tanh": 2.0**-43, "sigmoid": 2.0**-39}
BLOCK = 1 << 22
STRIDE = 257
# x Phi(x) and its like are x/2 + O(x**2): on odd subnormals a tie, which no binary64 value breaks
HALVES = ("gelu", "gelu_tanh", "silu")
SMALLEST_HALVED = 2.0**-125  # below, x/2 is subnormal
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_void_p)


class _Args(ctypes.Structure):
    _fields_ = [("pointers", ctypes.c_void_p), ("params", ctypes.c_void_p), ("status", ctypes.c_void_p)]


def screen_width(name: str) -> float:
    return WIDER_SCREEN.get(name, SCREEN)


def screen_program(name: str) -> Program:
    """Results for the inputs with bits param(0) + i: float32 result, binary64 value, "near a change"."""
    b = Builder([], 1)
    x = b.bitcast(b.convert(b.index(0) * b.param(1) + b.param(0), Type.U32), Type.F32)
    y = UNIVARIATE[name](b, b.convert(x, Type.F64))
    result = getattr(functions, name)(b, x)
    other = b.bitcast(result, Type.I32).ne(b.bitcast(b.convert(y, Type.F32), Type.I32))  # a cheaper form disagrees
    width = screen_width(name)
    above, below = (b.convert(y * (1.0 + sign * width), Type.F32) for sign in (1, -1))
    low, high = truth.domain(name)
    defined = (x >= b.f32(low)) & (x <= b.f32(high))
    near = (y.eq(y) & above.ne(below)) | (y.eq(y) ^ defined) | other
    return b.finish([result, y, near], [DType.F32, DType.F64, DType.BOOL])


class Screen:
    """The screen of one function, compiled."""

    def __init__(self, name: str) -> None:
        self.result = np.zeros(BLOCK, np.float32)
        self.value = np.zeros(BLOCK, np.float64)
        self.near = np.zeros(BLOCK, bool)
        kernel = jit.compile_kernel(screen_program(name), Layout(((1,), (1,), (1,)), 2))
        self._kernel, self._function = kernel, _KERNEL(kernel.address)
        outputs = (self.result, self.value, self.near)
        self._pointers = np.array([a.ctypes.data for a in outputs], dtype=np.int64)
        self._status = np.zeros(1, dtype=np.int64)

    def run(self, start: int, step: int = 1, count: int = BLOCK) -> None:
        params = np.array([start, step, BLOCK, 1, 1, 1], dtype=np.int64)
        args = _Args(self._pointers.ctypes.data, params.ctypes.data, self._status.ctypes.data)
        self._function(ctypes.addressof(args), 0, 1, 0, count, None)


def candidates(screen: Screen, start: int = 0, stop: int = 1 << 32) -> tuple[np.ndarray, np.ndarray]:
    """Bits of the inputs that the screen names, and their results."""
    bits, results = [], []
    for base in range(start, stop, BLOCK):
        screen.run(base)
        found = np.flatnonzero(screen.near)
        bits.append((found + base).astype(np.uint32))
        results.append(screen.result[found])
    return np.concatenate(bits), np.concatenate(results)


def sampled_error(name: str, screen: Screen, per_binade: int = 40) -> float:
    """Largest relative error of the binary64 value on random inputs of every binade (MPFR)."""
    random = np.random.default_rng(7)
    low, high = truth.domain(name)
    worst = 0.0
    for top in range(512):
        screen.run(top << 23, 1 << 12, 1 << 11)
        for i in random.integers(0, 1 << 11, per_binade):
            x = float(np.uint32((top << 23) + (int(i) << 12)).view(np.float32))
            if low <= x <= high and np.isfinite(x):
                worst = max(worst, _relative_error(name, x, float(screen.value[i])))
    return worst


def _relative_error(name: str, x: float, value: float) -> float:
    """|value / exact - 1|, 0 where both round to the same float32 whatever the error."""
    exact = truth.exact(name, x)
    with np.errstate(all="ignore"):
        rounded = np.float32(value)
    edge = exact == 0 or abs(exact) < 2.0**-150 or abs(exact) >= 2.0**128
    saturated = rounded == truth.to_float32(exact) and (abs(rounded) == 1 or float(rounded) == x)
    if edge or saturated or rounded == 2:
        return 0.0 if rounded == truth.to_float32(exact) else 1.0
    return float(abs((gmpy2.mpfr(value, 200) - exact) / exact))


def references() -> dict[str, Callable[[Any], Any]]:
    """The functions in torch's binary64."""
    import torch

    special = torch.special
    root = 0.5**0.5
    composed = ("gelu", "gelu_tanh", "silu", "mish", "log_sigmoid")
    return {
        **{name: getattr(torch, name) for name in UNIVARIATE if name not in composed},
        "gelu": lambda x: x * special.erfc(-x * root) / 2,
        "gelu_tanh": lambda x: x / (1 + torch.exp(-2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "silu": lambda x: x / (1 + torch.exp(-x)),
        "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
        "log_sigmoid": lambda x: torch.where(x < 0, x, 0.0) - torch.log1p(torch.exp(-x.abs())),
    }


def coarse_disagreements(name: str, screen: Screen) -> int:
    """Inputs, of every 257th, where torch's binary64 function differs by more than 2**-22 of the result."""
    import torch

    function = references()[name]
    found = 0
    for start in range(0, 1 << 32, BLOCK * STRIDE):
        count = min(BLOCK, -(-((1 << 32) - start) // STRIDE))
        screen.run(start, STRIDE, count)
        bits = (start + STRIDE * np.arange(count, dtype=np.int64)).astype(np.uint32)
        expected = function(torch.from_numpy(bits.view(np.float32).astype(np.float64))).numpy()
        got = screen.result[:count].astype(np.float64)
        with np.errstate(all="ignore"):
            expected = expected.astype(np.float32).astype(np.float64)
            close = np.abs(got - expected) <= np.abs(expected) * 2.0**-22 + 2.0**-148
        found += int((~close & (got != expected) & ~(np.isnan(got) & np.isnan(expected))).sum())
    return found


def check(name: str) -> dict[str, Any]:
    """All 2**32 inputs of one function."""
    started = time.perf_counter()
    screen = Screen(name)
    bits, results = candidates(screen)
    screened_s = time.perf_counter() - started
    inputs = bits.view(np.float32)
    checked = np.abs(inputs) >= SMALLEST_HALVED if name in HALVES else np.ones(len(bits), dtype=bool)
    low, high = truth.domain(name)
    misrounded = []
    for x, got in zip(inputs[checked].tolist(), results[checked], strict=True):
        want = truth.correct(name, x) if low <= x <= high else np.float32(np.nan)
        if got.tobytes() != want.tobytes() and not (np.isnan(got) and np.isnan(want)):
            misrounded.append(x)
    error = sampled_error(name, screen)
    return {
        "inputs": 1 << 32,
        "misrounded": len(misrounded),
        "examples": [float(x).hex() for x in misrounded[:16]],
        "candidates": int(checked.sum()),
        "ties_left_to_even": int((~checked).sum()),
        "error_before_rounding_log2": round(float(np.log2(error)), 2) if error else None,
        "screen_is_sound": bool(error < screen_width(name) / 2),
        "coarse_disagreements": coarse_disagreements(name, screen),
        "operations": len(definition(name).body),
        "seconds": round(screened_s, 1),
    }


def definition(name: str) -> Program:
    b = Builder([], 1)
    x = b.bitcast(b.convert(b.index(0), Type.U32), Type.F32)
    return b.finish([getattr(functions, name)(b, x)], [DType.F32])


def table(results: dict[str, Any], narrow_results: dict[str, Any]) -> str:
    """docs/FUNCTIONS.md."""
    lines = [
        "# Elementary functions",
        "",
        "Written by `benchmarks/exhaustive.py`. Each function was run on all 2^32 float32 inputs and its results",
        "compared with correct rounding (MPFR). *Error* is the largest relative error of the binary64 value before",
        "its one rounding, over samples of every binade; *checked* is how many inputs lay so close to a change of the",
        "rounding that MPFR decided; *ops* counts instructions of the element program, constants included.",
        "",
        "| function | misrounded of 2^32 | error before rounding | checked | ops |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in results.items():
        note = " (a)" if row["ties_left_to_even"] else ""
        error = row["error_before_rounding_log2"]
        lines.append(f"| {name}{note} | {row['misrounded']} | 2^{error} | {row['candidates']} | {row['operations']} |")
    lines += [
        "",
        "(a) For inputs below 2^-125 the result is x/2 plus far less than binary64 can show; where x/2 is a tie it",
        "goes to even, at most 0.5000...1 units in the last place from the exact value. These are not counted.",
    ]
    return "\n".join([*lines, *(narrow.table(narrow_results) if narrow_results else [""])])


def is_good(row: dict[str, Any]) -> bool:
    return row["screen_is_sound"] and row["coarse_disagreements"] == 0


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="functions (default: all)")
    parser.add_argument("--narrow", action="store_true", help="compare those that begin in binary32 with the others")
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    paths = [options.output / "functions.json", options.output / "narrow.json"]
    path, order = (paths[1], list(narrow.NAMES)) if options.narrow else (paths[0], list(UNIVARIATE))
    failed = 0
    for name in options.names or order:
        row = narrow.check(name) if options.narrow else check(name)
        failed += not (narrow.is_good(row) if options.narrow else is_good(row))
        print(name, json.dumps(row), flush=True)
        known = {**load(path), name: row}
        path.write_text(json.dumps({n: known[n] for n in order if n in known}, indent=1) + "\n")
        (options.output / "FUNCTIONS.md").write_text(table(load(paths[0]), load(paths[1])))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
