"""One run of the demonstration in a process of its own: `python -m ree.demo_worker REQUEST`.

REQUEST is JSON with engine ("ree" or "torch"), threads, batches, folder and output; the answer
on standard output is JSON with time_ms and digest for each batch size. The process for ree never imports torch.
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


def work(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Embed all sentences with each batch size; the embeddings go to `output`-BATCH.npy."""
    import numpy as np

    folder = Path(request["folder"])
    ids, mask = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("input_ids", "attention_mask"))
    embed = {"ree": _ree, "torch": _torch}[request["engine"]](folder, request["threads"])
    answers = []
    for size in request["batches"]:
        parts = [slice(n, n + size) for n in range(0, len(ids), size)]
        found, seconds = _timed(lambda parts=parts: np.concatenate([embed(ids[p], mask[p]) for p in parts]))  # type: ignore[misc]
        np.save(f"{request['output']}-{size}.npy", found)
        answers.append({"time_ms": seconds * 1e3, "digest": measure.digest([found])})
    return answers


def _timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The result and the median of RUNS runs; a long run is made once."""
    times: list[float] = []
    while len(times) < RUNS and not (times and times[0] > LONG_RUN_S):
        start = time.perf_counter()
        found = run()
        times.append(time.perf_counter() - start)
    timed = times[1:] or times  # the first run warms up, unless it is the only one
    return found, sorted(timed)[len(timed) // 2]


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
