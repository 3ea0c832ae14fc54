"""Matrix product against PyTorch, one process, interleaved medians; JSON as the others.

Gflop/s of `ree_matmul` (B packed once) and of `torch.nn.functional.linear`, beside the processor's measured FMA
peak and read bandwidth. `--quick` runs fewer repetitions and shapes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import arguments, table, write

from ree_kernels import cpu

SHAPES = [  # m, k, n
    (512, 512, 512), (1024, 1024, 1024), (128, 768, 3072), (256, 4096, 4096), (2048, 768, 768),
    (1, 768, 3072), (1, 4096, 4096), (2, 4096, 4096), (4, 4096, 4096), (8, 4096, 4096), (13, 4096, 4096),
]  # fmt: skip
QUICK = [(512, 512, 512), (128, 768, 3072), (1, 4096, 4096)]


def ours(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Callable[[], None]:
    """A function that computes c = a @ b with b packed beforehand."""
    (m, k), n = a.shape, b.shape[1]
    kernels, runtime = cpu.kernels(), cpu.runtime()
    ffi, lib = kernels.ffi, kernels.lib
    packed = cpu.allocate(4 * int(lib.ree_pack_b_floats(n, k)))
    pointer = ffi.cast("float *", int(runtime.ffi.cast("uintptr_t", packed)))
    if lib.ree_pack_b(pointer, n, k, 0, n, ffi.cast("float *", b.ctypes.data), b.strides[0] // 4, b.strides[1] // 4):
        raise ValueError("ree_pack_b refused its arguments")
    args = ffi.new("ree_matmul_args *")
    args.a, args.b, args.c = ffi.cast("float *", a.ctypes.data), pointer, ffi.cast("float *", c.ctypes.data)
    args.a_row, args.a_k, args.c_row, args.m, args.n, args.k, args.b_packed = k, 1, n, m, n, k, 1
    plan = kernels.matmul_plan(m, n, k, cpu.threads(), True)
    steps = runtime.ffi.new("ree_step[1]")
    steps[0] = {
        "kernel": runtime.ffi.cast("ree_kernel", kernels.address("ree_matmul")),
        "args": runtime.ffi.cast("void *", int(ffi.cast("uintptr_t", args))),
        "rows": m, "cols": n, **plan._asdict(),
    }  # fmt: skip
    keep = (packed, args, a, b, c)

    def call(_keep: Any = keep) -> None:
        cpu.run(steps, 1)

    return call


def medians(calls: list[Callable[[], object]], seconds: float) -> list[tuple[float, float]]:
    """(median, minimum) time of each call in seconds; the calls take turns.

    One thread is timed by its own processor time, which other processes on the machine do not lengthen.
    """
    clock = time.thread_time if cpu.threads() == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for call, taken in zip(calls, times, strict=True):
            start = clock()
            call()
            taken.append(clock() - start)
    return [(statistics.median(t), min(t)) for t in times]


def measure(m: int, k: int, n: int, seconds: float) -> dict[str, object]:
    """One shape: Gflop/s of both, their ratio, and the shares of peak and bandwidth."""
    rng = np.random.default_rng(0)
    a, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
    c = np.empty((m, n), np.float32)
    lib, scratch = cpu.kernels().lib, np.ones(1 << 24, np.float32)
    probe_peak = cpu.kernels().ffi.cast("float *", scratch.ctypes.data)
    ta, tw = torch.from_numpy(a), torch.from_numpy(w)
    calls: list[Callable[[], object]] = [
        ours(a, w.T, c),
        lambda: torch.nn.functional.linear(ta, tw),
        lambda: lib.ree_bench_fma(PEAK_ROUNDS),
        lambda: lib.ree_bench_read(probe_peak, scratch.size),
    ]
    (mine, mine_min), (theirs, theirs_min), (peak, peak_min), (read, read_min) = medians(calls, seconds)
    error = float(np.abs(c - a.astype(np.float64) @ w.T).max())
    flops = 2.0 * m * n * k
    peak_flops = float(lib.ree_bench_fma(0)) * PEAK_ROUNDS
    weights = 4.0 * n * k
    return {
        "m": m, "k": k, "n": n, "max_abs_error": error,
        "ree_gflops": flops / mine / 1e9, "torch_gflops": flops / theirs / 1e9, "ratio": theirs / mine,
        "ree_gflops_best": flops / mine_min / 1e9, "torch_gflops_best": flops / theirs_min / 1e9,
        "fma_peak_gflops": peak_flops / peak / 1e9, "fma_peak_gflops_best": peak_flops / peak_min / 1e9,
        "share_of_peak": flops / mine * peak / peak_flops,
        "weights_gb_s": weights / mine / 1e9, "read_gb_s": scratch.nbytes / read / 1e9,
        "share_of_read": weights / mine * read / scratch.nbytes, "read_gb_s_best": scratch.nbytes / read_min / 1e9,
    }  # fmt: skip


PEAK_ROUNDS = 20000


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    cpu.threads(options.threads)
    torch.set_num_threads(options.threads)
    results = [measure(m, k, n, 0.5 if options.quick else 2.0) for m, k, n in (QUICK if options.quick else SHAPES)]
    head = ("m x k x n", "ree GF/s", "torch GF/s", "ratio", "share of FMA peak", "share of read bandwidth")
    keys = ("ree_gflops", "torch_gflops", "ratio", "share_of_peak", "share_of_read")
    print(table(head, [(f"{r['m']} x {r['k']} x {r['n']}", *(r[key] for key in keys)) for r in results]))
    write("matmul", {"isa": cpu.kernels().isa, "results": results}, options)


if __name__ == "__main__":
    main()
