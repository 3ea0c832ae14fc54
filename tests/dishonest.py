"""Traces of a dishonest prover: claims that are wrong in one place, and as right as they can be everywhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable

import blake3
import numpy as np

import ree
from ree.commit.local import Check
from ree.commit.trace import Manifest, Trace
from ree.errors import RunError

Change = Callable[[np.ndarray], None]  # changes a stage's result, of its logical shape, in place


def memory(trace: Trace, stage: int, array: np.ndarray) -> bytes:
    """A result as it is committed to."""
    return np.ascontiguousarray(array.transpose(trace.manifest.stages[stage].order)).tobytes()


def with_results(trace: Trace, results: list[np.ndarray]) -> Trace:
    """The claim that a run gave these results."""
    roots = [blake3.blake3(memory(trace, n, array)).digest() for n, array in enumerate(results)]
    return Trace(dataclasses.replace(trace.manifest, roots=tuple(roots)), trace.program, trace.inputs, lambda: results)


def lie(trace: Trace, stage: int, change: Change, follow: bool = True) -> Trace:
    """A claim with another result at one stage; follow: what comes after is computed from that."""
    results = [array.copy() for array in trace.tensors.values()]
    change(results[stage])
    if follow:
        with contextlib.suppress(RunError):  # no run can follow an index that is out of range
            _Follow(trace, stage, results).run()
    return with_results(trace, results)


class _Follow(Check):
    """Runs the program with a result of ours at one stage."""

    def __init__(self, trace: Trace, stage: int, results: list[np.ndarray]) -> None:
        super().__init__(trace.program.plan(trace.manifest.sizes), trace)
        self.stage, self.results = stage, results

    def refused(self, number: int) -> int:
        raise RunError("an index is out of range")

    def compare(self, number: int) -> None:
        order = self.trace.manifest.stages[number].order
        found = self.memory(number, [self.results[number].shape[axis] for axis in order])
        if number == self.stage:
            found[...] = self.results[number].transpose(order)
        elif number > self.stage:
            self.results[number] = found.transpose(np.argsort(order)).copy()


def flip(element: int, bit: int = 0) -> Change:
    """Flips a bit of one element: bit 0 of a float is one unit in the last place."""

    def change(array: np.ndarray) -> None:
        size = array.dtype.itemsize
        if array.dtype == bool:
            flat = array.reshape(-1)
            flat[element] = not flat[element]
            array[...] = flat.reshape(array.shape)
            return
        flat = np.ascontiguousarray(array).reshape(-1).view(f"u{size}")
        flat[element] ^= np.array(1 << bit % (8 * size), flat.dtype)
        array[...] = flat.view(array.dtype).reshape(array.shape)

    return change


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
