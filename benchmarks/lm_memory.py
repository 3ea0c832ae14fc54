"""Peak memory of loading a language model and generating with it: a fresh process for each dtype.

Anonymous memory is what the process itself has written; pages of the model's files, which the system can drop and read
again at any time, come on top of it as long as nothing else wants the room. The factor is over the bytes of the weights
as the program has them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from common import ROOT, arguments, table, write
from lm_models import make

TIMEOUT_S = 600
SAMPLE_S = 0.002
DTYPES = {"tiny": ("fp32", "int8"), "A": ("fp32", "bf16", "int8"), "B": ("bf16", "int8")}


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    return 0


class Peak:
    """The most anonymous memory while it is open."""

    def __enter__(self) -> Peak:
        self.before = status_bytes("RssAnon")
        self.most = self.before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.most = max(self.most, status_bytes("RssAnon"))

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def worker(folder: Path, dtype: str, threads: int) -> dict[str, int]:
    """Bytes before, at the peak of loading, and of the weights."""
    import torch  # noqa: F401 (its own memory counts as before)
    import transformers  # noqa: F401

    import ree
    from ree.lm.generate import Wanted, generate
    from ree.lm.model import LanguageModel

    ree.threads(threads)
    with Peak() as peak:
        model = LanguageModel.open(folder, dtype)
        generate(model.engine(), model.folder.tokenizer, Wanted([5, 6, 7], max_new_tokens=4))
    weights = sum(constant.type.size_bytes() for constant in model.program.graph.constants)
    return {
        "before_bytes": peak.before, "peak_bytes": peak.most, "weights_bytes": weights,
        "packed_bytes": model.program.weights.packed_bytes,
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, help="where model folders lie, or are written and stay")
    parser.add_argument("--models", nargs="*", choices=tuple(DTYPES))
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(Path(options.worker[0]), options.worker[1], options.threads)))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models or (("tiny",) if options.quick else ("A", "B")):
            folder = make(name, options.folder or Path(temporary))
            for dtype in DTYPES[name]:
                found[f"{name} {dtype}"] = _measure(folder, dtype, options.threads)
    head = ["model", "weights MB", "packed MB", "anonymous peak MB", "of that before", "factor"]
    rows = [
        [name, *(f[f"{part}_bytes"] / 1e6 for part in ("weights", "packed", "peak", "before")), f["factor"]]
        for name, f in found.items()
    ]
    print(table(head, rows))
    write("lm_memory", {"models": found}, options)


def _measure(folder: Path, dtype: str, threads: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--threads", str(threads), "--worker", str(folder), dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {**result, "factor": (result["peak_bytes"] - result["before_bytes"]) / result["weights_bytes"]}


if __name__ == "__main__":
    main()
