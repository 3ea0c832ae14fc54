"""Claims of a dishonest prover: wrong in one place, and as right as they can be everywhere else.

The demonstration and the tests hold every check against them. Nothing else uses this.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ree.commit.local import Check
from ree.commit.trace import Trace
from ree.errors import RunError
from ree.file import digest

Change = Callable[[np.ndarray], None]  # changes a stage's result, of its logical shape, in place


def with_results(trace: Trace, results: Sequence[np.ndarray]) -> Trace:
    """The claim that the trace's run gave these results (arrays of the logical shapes)."""
    stages = trace.manifest.stages
    roots = tuple(digest(array.transpose(stage.order)) for stage, array in zip(stages, results, strict=True))
    return Trace(dataclasses.replace(trace.manifest, roots=roots), trace.program, trace.inputs, lambda: results)


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
        super().__init__(trace.program.host_plan(trace.manifest.sizes), trace)
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
        flat = np.ascontiguousarray(array).reshape(-1)
        if array.dtype == bool:
            flat[element] = not flat[element]
        else:
            bits = flat.view(f"u{array.dtype.itemsize}")
            bits[element] ^= np.array(1 << bit % (8 * array.dtype.itemsize), bits.dtype)
        array[...] = flat.reshape(array.shape)

    return change
