"""Feeds token sequences to engines of saved programs in several ways and prints digests of the logits; needs no torch.

`python -m tests.lm_worker FOLDER`: FOLDER holds NAME.ree and tokens.npy, i64 [sequences, tokens].
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import ree
from ree.lm.engine import Engine, Row


def feed(engine: Engine, sequences: list[list[int]], seed: int) -> list[np.ndarray]:
    """All logits of sequences that share an engine, in chunks of random lengths, in random order."""
    rng = np.random.default_rng(seed)
    slots = [engine.open() for _ in sequences]
    fed = [0] * len(sequences)
    logits: list[list[np.ndarray]] = [[] for _ in sequences]
    while any(f < len(s) for f, s in zip(fed, sequences, strict=True)):
        rows: list[Row] = []
        owners: list[int] = []
        for n in rng.permutation(len(sequences)):
            left = min(len(sequences[n]) - fed[n], engine.rows_max - len(rows))
            for _ in range(int(rng.integers(0, left + 1)) if left else 0):
                rows.append(Row(sequences[n][fed[n]], fed[n], slots[n], True))
                owners.append(int(n))
                fed[n] += 1
        if rows:
            for owner, found in zip(owners, engine.step(rows), strict=True):
                logits[owner].append(found)
    for slot in slots:
        engine.close(slot)
    return [np.array(found) for found in logits]


def main(folder: Path) -> None:
    tokens = np.load(folder / "tokens.npy")
    sequences = [row[: len(row) - 3 * n].tolist() for n, row in enumerate(tokens)]
    found = {}
    for path in sorted(folder.glob("*.ree")):
        engine = Engine(ree.load(path), tokens.shape[1], len(sequences), 32)
        digests = []
        for threads in (1, 2, 3):
            ree.threads(threads)
            digests += [hashlib.sha256(x.tobytes()).hexdigest() for x in feed(engine, sequences, threads)]
        found[path.stem] = digests
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
