"""Prints digests of saved programs under threads, run orders and floating-point states; torch is not loaded.

`python -m tests.digest_worker FOLDER`: FOLDER holds NAME.ree and NAME.npy.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import ree
from ree_kernels import cpu

FTZ_DAZ_ROUND_UP = 0x8040 | 0x4000  # bits of MXCSR


def digests(folder: Path) -> dict[str, list[str]]:
    programs = {path.stem: ree.load(path) for path in sorted(folder.glob("*.ree"))}
    inputs = {name: np.load(folder / f"{name}.npy") for name in programs}
    found: dict[str, list[str]] = {name: [] for name in programs}

    def run(order: list[str]) -> None:
        for name in order:
            output = programs[name].run_flat([inputs[name]])[0]
            found[name].append(hashlib.sha256(output.tobytes()).hexdigest())

    for threads in (1, 2, 3, 7):
        ree.threads(threads)
        run(sorted(programs))
        run(sorted(programs, reverse=True))
    library = cpu.runtime().lib
    state = library.ree_fp_state()
    try:
        library.ree_set_fp_state(state | FTZ_DAZ_ROUND_UP)
        run(sorted(programs))
    finally:
        library.ree_set_fp_state(state)
    return found


if __name__ == "__main__":
    print(json.dumps(digests(Path(sys.argv[1]))))
    assert "torch" not in sys.modules
