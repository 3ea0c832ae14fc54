"""Traces of a dishonest prover: claims that are wrong in one place, and as right as they can be everywhere else."""

from __future__ import annotations

import dataclasses
import random

import numpy as np

import ree
from ree.commit.trace import Manifest, Trace
from ree.tampering import Change, flip, lie, with_results

__all__ = ["Change", "elements", "flip", "lie", "nan_payload", "other_weights", "renamed", "with_results"]


def nan_payload(element: int) -> Change:
    """A NaN that is not the canonical one."""

    def change(array: np.ndarray) -> None:
        bits = {4: 0x7FC00001, 8: 0x7FF8000000000001, 2: 0x7E01}[array.dtype.itemsize]
        flat = np.ascontiguousarray(array).reshape(-1)
        flat.view(f"u{array.dtype.itemsize}")[element] = bits
        array[...] = flat.reshape(array.shape)

    return change


def other_weights(trace: Trace, other: ree.Program) -> Trace:
    """The run of a program with other weights, under the name of this one (stale weights)."""
    _, run = other.run_committed(list(trace.inputs), keep=True)
    return with_results(trace, list(run.tensors.values()))


def renamed(trace: Trace, **fields: object) -> Trace:
    """The claim with other fields in its manifest."""
    manifest: Manifest = dataclasses.replace(trace.manifest, **fields)  # type: ignore[arg-type]
    return Trace(manifest, trace.program, trace.inputs, trace._results)


def elements(rng: random.Random, trace: Trace) -> list[tuple[int, int]]:
    """(stage, element) for each stage that has any, one at random."""
    found = []
    for stage in trace.manifest.stages:
        if (count := stage.type.numel()) > 0:
            found.append((stage.index, rng.randrange(count)))
    return found
