"""BLAKE3 against the `blake3` package, 64 MiB and 1 MiB, one process, interleaved; JSON in benchmarks/results.

GB/s of a whole hash under every instruction set of the processor; the package always takes its best one, on one
thread or on as many as it likes. `--quick` runs the best instruction set alone, and fewer repetitions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import blake3
import numpy as np
from common import arguments, table, write

from ree.measure import interleaved
from ree_kernels import blake3 as ours
from ree_kernels import cpu

SIZES = {"64 MiB": 64 << 20, "1 MiB": 1 << 20}
TIMED_BYTES = 64 << 20  # hashed in a visit at least


def measure(isa: str, size: str, threads: int, rounds: int) -> dict[str, object]:
    """One size on one thread or all: median GB/s of ree, whole and in increments, and of the package."""
    cpu.threads(threads)
    kernels, theirs = cpu.load(isa), 1 if threads == 1 else blake3.blake3.AUTO
    data = np.random.default_rng(0).integers(0, 256, SIZES[size], np.uint8)
    runs: dict[str, Callable[[], bytes]] = {
        "ree": lambda: ours.hash(data, kernels=kernels),
        "hasher": lambda: ours.Hasher(kernels=kernels).update(data).digest(),
        "package": lambda: blake3.blake3(data, max_threads=theirs).digest(),
    }
    assert len({run() for run in runs.values()}) == 1
    taken = interleaved(runs, rounds, timed_per_visit=max(3, TIMED_BYTES // data.nbytes))
    speed = {name: data.nbytes / statistics.median(times) / 1e9 for name, times in taken.items()}
    row: dict[str, object] = {"isa": isa, "size": size, "threads": threads}
    row |= {f"{name}_gb_s": round(value, 2) for name, value in speed.items()}
    best = data.nbytes / min(taken["package"]) / 1e9  # its threads do not spread in every run
    row |= {"package_best_gb_s": round(best, 2)}
    return row | {"ratio": round(speed["ree"] / speed["package"], 2)}


def main() -> None:
    options = arguments(__doc__).parse_args()
    before = cpu.threads()
    isas = cpu.supported()[-1:] if options.quick else cpu.supported()
    counts, rounds = sorted({1, options.threads}), 3 if options.quick else 7
    rows = [measure(isa, size, n, rounds) for isa in isas for size in SIZES for n in counts]
    cpu.threads(before)
    print(table(tuple(rows[0]), [tuple(row.values()) for row in rows]))
    write("hashing", {"package": blake3.__version__, "results": rows}, options)


if __name__ == "__main__":
    main()
