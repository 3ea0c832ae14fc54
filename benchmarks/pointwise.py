"""Elementary functions against PyTorch, 2^20 elements, one process, interleaved; JSON on standard output.

Nanoseconds for each element (standard normal inputs) of JIT-compiled kernels, alone on one thread and through the pool,
and of the same functions in PyTorch on as many threads. `--quick` runs fewer repetitions.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import arguments, table, write

from ree.element import jit
from ree.element.llvm import Layout
from ree.measure import interleaved
from ree.ops.spec import operator
from ree.types import DType, TensorType
from ree_kernels import cpu

N = 1 << 20
GRAIN = 1 << 14
WIDE = ", wide"  # inputs with a deviation of 2: more of them leave the range in which gelu is cheap
FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "exp": lambda x, out: torch.exp(x, out=out),
    "tanh": lambda x, out: torch.tanh(x, out=out),
    "erf": lambda x, out: torch.erf(x, out=out),
    "sigmoid": lambda x, out: torch.sigmoid(x, out=out),
    "gelu": lambda x, out: torch.ops.aten.gelu.out(x, out=out),
    "gelu_tanh": lambda x, out: torch.ops.aten.gelu.out(x, approximate="tanh", out=out),
}


class _Args(ctypes.Structure):
    _fields_ = [("pointers", ctypes.c_void_p), ("params", ctypes.c_void_p), ("status", ctypes.c_void_p)]


def ours(name: str, x: np.ndarray, out: np.ndarray) -> Callable[[], None]:
    """A function that runs the operator's kernel over vectors x and out, on the pool."""
    type = TensorType(x.shape, DType.F32)
    program = operator(name).program([type], type, {})
    kernel = jit.compile_kernel(program, Layout(((1,), (1,)), 0), cpu.kernels().isa)
    pointers = np.array([x.ctypes.data, out.ctypes.data], np.int64)
    params = np.array([x.size, 1, 1], np.int64)
    status = np.zeros(1, np.int64)
    args = _Args(pointers.ctypes.data, params.ctypes.data, status.ctypes.data)
    ffi = cpu.runtime().ffi
    steps = ffi.new("ree_step[1]")
    steps[0] = {
        "kernel": ffi.cast("ree_kernel", kernel.address), "args": ffi.cast("void *", ctypes.addressof(args)),
        "rows": 1, "cols": x.size, "row_grain": 1, "col_grain": GRAIN, "scratch_bytes": 0,
    }  # fmt: skip
    keep = (kernel, pointers, params, status, args, x, out)

    def call(_keep: Any = keep) -> None:
        cpu.run(steps, 1)

    return call


def measure(name: str, threads: int, rounds: int) -> dict[str, object]:
    """One function on so many threads: median ns per element of ree and torch."""
    cpu.threads(threads)
    torch.set_num_threads(threads)
    function, wide = name.removesuffix(WIDE), name.endswith(WIDE)
    x = (np.random.default_rng(0).standard_normal(N) * (2 if wide else 1)).astype(np.float32)
    out = np.zeros_like(x)
    other = torch.zeros(N)
    given = torch.from_numpy(x)
    runs = {"ree": ours(function, x, out), "torch": lambda: FUNCTIONS[function](given, other)}
    taken = interleaved(runs, rounds, timed_per_visit=10)
    mine, theirs = (statistics.median(taken[engine]) / N * 1e9 for engine in ("ree", "torch"))
    row = {"function": name, "threads": threads, "ree_ns": round(mine, 3), "torch_ns": round(theirs, 3)}
    return row | {"ratio": round(mine / theirs, 2)}


def main() -> None:
    options = arguments(__doc__).parse_args()
    before = cpu.threads()
    counts = sorted({1, options.threads})
    rows = [measure(name, n, 2 if options.quick else 7) for n in counts for name in (*FUNCTIONS, "gelu" + WIDE)]
    cpu.threads(before)
    print(table(tuple(rows[0]), [tuple(row.values()) for row in rows]))
    write("pointwise", {"elements": N, "isa": cpu.kernels().isa, "results": rows}, options)


if __name__ == "__main__":
    main()
