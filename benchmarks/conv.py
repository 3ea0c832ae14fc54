"""Convolution against PyTorch at the shapes of ResNet-50, batch 1, 224 x 224; JSON on standard output.

Gflop/s of `ree_conv` (weights packed once, channels last) and of `torch.nn.functional.conv2d` in both of its
memory formats, medians and best times of interleaved runs, beside the processor's measured FMA peak. `--quick`
runs fewer repetitions and shapes.
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
from ree_kernels.conv import Conv, fill, pack_weights, schedule

LAYERS = [  # channels, outputs, input size, kernel, stride, padding, times in the network
    (3, 64, 224, 7, 2, 3, 1), (64, 64, 56, 1, 1, 0, 1), (64, 64, 56, 3, 1, 1, 3), (64, 256, 56, 1, 1, 0, 4),
    (256, 64, 56, 1, 1, 0, 2), (256, 128, 56, 1, 1, 0, 1), (128, 128, 56, 3, 2, 1, 1), (256, 512, 56, 1, 2, 0, 1),
    (128, 512, 28, 1, 1, 0, 4), (512, 128, 28, 1, 1, 0, 3), (128, 128, 28, 3, 1, 1, 3), (512, 256, 28, 1, 1, 0, 1),
    (256, 256, 28, 3, 2, 1, 1), (512, 1024, 28, 1, 2, 0, 1), (256, 1024, 14, 1, 1, 0, 6), (1024, 256, 14, 1, 1, 0, 5),
    (256, 256, 14, 3, 1, 1, 5), (1024, 512, 14, 1, 1, 0, 1), (512, 512, 14, 3, 2, 1, 1), (1024, 2048, 14, 1, 2, 0, 1),
    (512, 2048, 7, 1, 1, 0, 3), (2048, 512, 7, 1, 1, 0, 2), (512, 512, 7, 3, 1, 1, 2),
]  # fmt: skip
QUICK = [LAYERS[0], LAYERS[2], LAYERS[16], LAYERS[20]]
PEAK_ROUNDS = 20000


def ours(conv: Conv, x: np.ndarray, w: np.ndarray, out: np.ndarray) -> Callable[[], None]:
    """A function that convolves x [n, c, h, w] (any strides) into out [pixels, outputs]."""
    kernels, runtime = cpu.kernels(), cpu.runtime()
    packed = pack_weights(kernels, conv, w)
    args = kernels.ffi.new("ree_conv_args *")
    fill(args, conv, [s // 4 for s in x.strides], conv.outputs)
    args.x, args.w, args.out = (kernels.ffi.cast("float *", a.ctypes.data) for a in (x, packed, out))
    cut = schedule(kernels, conv)
    steps = runtime.ffi.new("ree_step[1]")
    steps[0] = {
        "kernel": runtime.ffi.cast("ree_kernel", kernels.address("ree_conv")),
        "args": runtime.ffi.cast("void *", int(kernels.ffi.cast("uintptr_t", args))),
        "rows": cut.rows, "cols": cut.cols, "row_grain": cut.row_grain, "col_grain": cut.col_grain,
        "scratch_bytes": cut.scratch_bytes,
    }  # fmt: skip
    keep = (packed, args, x, out)

    def call(_keep: Any = keep) -> None:
        cpu.run(steps, 1)

    return call


def times(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of every run; the calls take turns, and the first run of each turn is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["ree"]) < 5:
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return taken


def measure(layer: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """One layer: Gflop/s of each, the ratio to the faster of torch's formats, the share of the FMA peak."""
    channels, outputs, size, kernel, stride, padding, count = layer
    conv = Conv(1, channels, outputs, 1, (size,) * 2, (kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1))
    rng = np.random.default_rng(0)
    x = np.moveaxis(rng.standard_normal((1, size, size, channels), np.float32), -1, 1)
    w = rng.standard_normal((outputs, channels, kernel, kernel), np.float32)
    out = np.empty((conv.rows, outputs), np.float32)
    plain = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(w)
    last = tuple(t.to(memory_format=torch.channels_last) for t in plain)
    taken = times(
        {
            "ree": ours(conv, x, w, out),
            "torch": lambda: torch.nn.functional.conv2d(*plain, stride=stride, padding=padding),
            "torch_channels_last": lambda: torch.nn.functional.conv2d(*last, stride=stride, padding=padding),
            "peak": lambda: cpu.kernels().lib.ree_bench_fma(PEAK_ROUNDS),
        },
        seconds,
    )
    exact = torch.nn.functional.conv2d(*(t.double() for t in plain), stride=stride, padding=padding)
    error = float(np.abs(np.moveaxis(out.reshape(1, *conv.out_shape, outputs), -1, 1) - exact.numpy()).max())
    flops = 2.0 * conv.rows * conv.depth * outputs
    work = dict.fromkeys(taken, flops) | {"peak": float(cpu.kernels().lib.ree_bench_fma(0)) * PEAK_ROUNDS}
    median = {name: statistics.median(t) for name, t in taken.items()}
    rates = {name: round(work[name] / median[name] / 1e9, 1) for name in taken}
    best = {name: round(work[name] / min(t) / 1e9, 1) for name, t in taken.items()}
    return {
        "channels": channels, "outputs": outputs, "size": size, "kernel": kernel, "stride": stride, "count": count,
        "max_abs_error": error, "gflops": rates, "gflops_best": best,
        "ms": {name: round(1e3 * t, 4) for name, t in median.items() if name != "peak"},
        "ratio": round(min(median["torch"], median["torch_channels_last"]) / median["ree"], 3),
        "share_of_peak_best": round(best["ree"] / best["peak"], 3),
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    cpu.threads(options.threads)
    torch.set_num_threads(options.threads)
    results = [measure(layer, 0.5 if options.quick else 1.5) for layer in (QUICK if options.quick else LAYERS)]
    network = {name: sum(r["count"] * r["ms"][name] for r in results) for name in results[0]["ms"]}
    print(table(("engine", "sum of layers ms"), list(network.items())))
    write("conv", {"isa": cpu.kernels().isa, "network_ms": network, "results": results}, options)


if __name__ == "__main__":
    main()
