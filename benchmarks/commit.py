"""Cost of committing to every result of a run: time over a run without, beside the limit that hashing alone sets.

Plain runs, committed ones and committed ones that keep all tensors take turns in one process. The limit is the bytes
committed to over the rate of BLAKE3 on all threads (64 MiB, the same kernels), as a share of the plain run.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from common import arguments, table, write

MODELS = ("gpt2", "bert", "resnet50")
ROUNDS, ROUNDS_QUICK = 15, 3
RATE_BYTES = 64 << 20


def rate_bytes_s() -> float:
    """Bytes a second of BLAKE3 on the threads that runs use: the median of some runs."""
    from ree_kernels import blake3

    data = np.random.default_rng(0).integers(0, 256, RATE_BYTES, np.uint8)
    taken = []
    for _ in range(12):
        start = time.perf_counter()
        blake3.hash(data)
        taken.append(time.perf_counter() - start)
    return RATE_BYTES / statistics.median(taken[2:])


def measure_model(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """Medians in ms, and shares of the plain run, of one model of the zoo."""
    import ree
    from benchmarks import zoo
    from ree.measure import interleaved, medians_ms

    case = zoo.CASES[name]()
    ree.threads(threads)
    program = ree.compile(case.module, case.inputs)
    runs = {
        "plain": lambda: program(*case.inputs),
        "commit": lambda: program.run(*case.inputs, commit=True),
        "keep": lambda: program.run(*case.inputs, commit=True, keep=True),
    }
    for run in runs.values():
        run()
    rate = rate_bytes_s()
    times = medians_ms(interleaved(runs, rounds))
    stages = program.stages()
    size_bytes = sum(stage.type.size_bytes() for stage in stages)
    limit_ms = size_bytes / rate * 1e3
    return {
        "time_ms": times,
        "stages": len(stages),
        "committed_bytes": size_bytes,
        "blake3_gb_s": rate / 1e9,
        "overhead": times["commit"] / times["plain"] - 1,
        "overhead_keep": times["keep"] / times["plain"] - 1,
        "limit": limit_ms / times["plain"],
        "cost_to_limit": (times["commit"] - times["plain"]) / limit_ms,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*")
    options = parser.parse_args()
    names = options.models or (("mlp",) if options.quick else MODELS)
    rounds = ROUNDS_QUICK if options.quick else ROUNDS
    models = {name: measure_model(name, rounds, options.threads) for name in names}
    rows = [
        [name, m["time_ms"]["plain"], m["committed_bytes"] / 1e6, m["blake3_gb_s"]]
        + [100 * m[key] for key in ("overhead", "overhead_keep", "limit")]
        + [m["cost_to_limit"]]
        for name, m in models.items()
    ]
    head = ["model", "plain ms", "MB committed", "BLAKE3 GB/s", "commit + %", "keep + %", "limit %", "cost / limit"]
    print(table(head, rows))
    write("commit", {"models": models}, options)


if __name__ == "__main__":
    main()
