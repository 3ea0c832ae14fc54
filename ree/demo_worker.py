"""One run of the demonstration in a process of its own: `python -m ree.demo_worker REQUEST`.

REQUEST is JSON with engine ("ree" or "torch"), threads, batch, folder and output; the answer
on standard output is JSON with time_ms and digest. The process for ree never imports torch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ree import measure

if TYPE_CHECKING:
    import numpy as np

RUNS = 4
LONG_RUN_S = 2.0  # a run that takes longer is made once


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Embed all sentences, `batch` at a time; time is the median of some runs over all of them."""
    import numpy as np

    folder = Path(request["folder"])
    ids, mask = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("input_ids", "attention_mask"))
    embed = {"ree": _ree, "torch": _torch}[request["engine"]](folder, request["threads"])
    size = request["batch"]

    def run() -> np.ndarray:
        return np.concatenate([embed(ids[n : n + size], mask[n : n + size]) for n in range(0, len(ids), size)])

    times: list[float] = []
    while len(times) < RUNS and not (times and times[0] > LONG_RUN_S):
        start = time.perf_counter()
        found = run()
        times.append(time.perf_counter() - start)
    timed = times[1:] or times  # the first run warms up, unless it is the only one
    np.save(request["output"], found)
    return {"time_ms": sorted(timed)[len(timed) // 2] * 1e3, "digest": measure.digest([found])}


def _ree(folder: Path, threads: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    import ree

    ree.threads(threads)
    program = ree.load(folder / "model.ree")
    return lambda ids, mask: program.run_flat([ids, mask])[0]


def _torch(folder: Path, threads: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    import torch

    torch.set_num_threads(threads)
    module = torch.export.load(str(folder / "model.pt2")).module()

    def embed(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()  # type: ignore[no-any-return]

    return embed


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
