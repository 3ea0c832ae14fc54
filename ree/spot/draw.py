"""Which elements a spot check looks at: drawn from the claim itself, in proportion to the work that they stand for.

The draw is a function of what the claim binds (Fiat and Shamir, 1986), so that whoever makes the claim cannot choose
it, and of a seed of the verifier's, so that he cannot even try many claims (docs/SECURITY.md).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from typing import Any

import blake3
import numpy as np

from ree.commit.stages import Stage, Stages
from ree.element.interpret import Frame, fma_chain, instruction
from ree.element.program import Instr
from ree.errors import LimitError

CONTEXT = "ree v1 spot check"
NO_SEED = bytes(32)
WORK_MAX = 1 << 62  # of one element
_NUMBER_BYTES = 32  # of one random number: the bias of its remainder is below 2^-128

Sample = tuple[int, int]  # (stage, element in C order)


def draw(stages: Stages, trace_root: bytes, samples: int, seed: bytes | None) -> list[Sample]:
    """`samples` elements, independently of one another; then one of each class of stage that has none among them.

    A class is an element program. Stages without elements are left out. More samples are the same and others, so that
    whoever proves does not get another draw with another number of them.
    """
    work = works(stages)
    ends = list(itertools.accumulate(work))
    if not ends or ends[-1] == 0:
        return []
    numbers = _numbers(trace_root, seed)
    found = []
    for _ in range(samples):
        number = bisect.bisect_right(ends, next(numbers) % ends[-1])
        found.append((number, next(numbers) % stages[number].type.numel()))
    seen = {stages[number].digest for number, _ in found}
    for stage in stages:
        if work[stage.index] and stage.digest not in seen:
            seen.add(stage.digest)
            found.append((stage.index, next(numbers) % stage.type.numel()))
    return found


def _numbers(trace_root: bytes, seed: bytes | None) -> Iterator[int]:
    """Random numbers below 2^256, from BLAKE3's output for what is drawn."""
    hasher = blake3.blake3(derive_key_context=CONTEXT)
    hasher.update(trace_root + (seed or NO_SEED))
    for n in itertools.count():
        yield int.from_bytes(hasher.digest(_NUMBER_BYTES, seek=_NUMBER_BYTES * n), "little")


def works(stages: Stages) -> list[int]:
    """The work of every stage; stages of one kind, such as those of equal layers, are counted once."""
    known: dict[Kinship, int] = {}
    found = []
    for stage in stages:
        if kinship(stage) not in known:
            known[kinship(stage)] = stage_work(stage)
        found.append(known[kinship(stage)])
    return found


Kinship = tuple[bytes, tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]


def kinship(stage: Stage) -> Kinship:
    """Equal for stages that differ in nothing but the tensors which they read and write, and where in these."""
    return stage.digest, stage.type.extents(), stage.params, tuple(port.layout.shape for port in stage.ports)


def stage_work(stage: Stage) -> int:
    """The work of a stage: how many values are computed for all of its elements together.

    A value counts once for each combination of the coordinates, and of the k's of the folds around it, on which it
    depends; a fold counts once for each of its items. Values that follow in the same way from the same ones are one.
    """
    return _Work(stage).total if stage.type.numel() else 0


def element_work(stage: Stage) -> int:
    """Instructions of one element, evaluated alone, the last in C order; a fold of n has n times its region and 1."""
    work = _Lengths(stage).element(stage.program.body, {})
    if work > WORK_MAX:
        raise LimitError(f"an element of stage {stage.index} with more than {WORK_MAX} instructions")
    return work


class _Lengths:
    """Lengths of folds in the last element; inside of a fold those at its last k. One that depends on data is 0."""

    def __init__(self, stage: Stage) -> None:
        extents = stage.type.extents()
        arrays = [_Shape(port.layout.shape) for port in stage.ports]
        indices = [np.array([n - 1], np.int64) for n in extents]
        self.program = stage.program
        self.frame = Frame(arrays, extents, stage.params, indices, (1,), np.ones(1, dtype=bool), fma_chain)

    def step(self, instr: Instr, known: dict[int, np.ndarray]) -> None:
        """Note what an instruction gives, if that follows without data."""
        if instr.op not in ("load", "load_if") and all(a in known for a in instr.args):
            values = [known[a] for a in instr.args]
            with np.errstate(all="ignore"):  # 1 / 0 is a value like others
                known[instr.results[0]] = instruction(self.program, instr, values, self.frame)

    def length(self, fold: Instr, known: dict[int, np.ndarray]) -> int:
        return max(0, int(known[fold.args[0]][0])) if fold.args[0] in known else 0

    def inside(self, fold: Instr, known: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """What is known at the last item of a fold."""
        assert fold.region is not None
        last = max(self.length(fold, known) - 1, 0)
        return {**known, fold.region.params[0]: np.array([last], np.int64)}

    def element(self, body: tuple[Instr, ...], outer: dict[int, np.ndarray]) -> int:
        known, work = dict(outer), 0
        for instr in body:
            work += 1
            if instr.region is None:
                self.step(instr, known)
            else:
                work += self.length(instr, known) * (1 + self.element(instr.region.body, self.inside(instr, known)))
        return work


class _Work:
    """Counts the values of a stage; each has a number that stands for how it is computed."""

    def __init__(self, stage: Stage) -> None:
        self._lengths = _Lengths(stage)
        self._extents = stage.type.extents()
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._depends: dict[int, frozenset[tuple[str, int]]] = {}  # number -> axes and folds
        self._items: dict[int, int] = {}  # number of a fold's k -> the fold's length
        self.total = 0
        self._block(stage.program.body, {}, {}, 0)
        if self.total > WORK_MAX:
            raise LimitError(f"stage {stage.index} has more than {WORK_MAX} values")

    def _number(self, key: tuple[Any, ...], depends: frozenset[tuple[str, int]]) -> tuple[int, bool]:
        """The number of a value, and whether it is new."""
        is_new = key not in self._numbers
        number = self._numbers.setdefault(key, len(self._numbers))
        self._depends.setdefault(number, depends)
        return number, is_new

    def _count(self, depends: frozenset[tuple[str, int]]) -> int:
        return math.prod(self._extents[n] if kind == "axis" else self._items[n] for kind, n in depends)

    def _block(
        self, body: tuple[Instr, ...], numbers: dict[int, int], known: dict[int, np.ndarray], depth: int
    ) -> None:
        for instr in body:
            args = tuple(numbers[a] for a in instr.args)
            depends = frozenset().union(*(self._depends[a] for a in args))
            if instr.region is not None:
                self._fold(instr, args, depends, numbers, known, depth)
                continue
            if instr.op == "index":
                depends = frozenset({("axis", int(instr.imm[0]))})
            number, is_new = self._number((instr.op, instr.imm, instr.types, args), depends)
            numbers[instr.results[0]] = number
            self._lengths.step(instr, known)
            self.total += self._count(depends) if is_new else 0

    def _fold(
        self,
        instr: Instr,
        args: tuple[int, ...],
        depends: frozenset[tuple[str, int]],
        numbers: dict[int, int],
        known: dict[int, np.ndarray],
        depth: int,
    ) -> None:
        region = instr.region
        assert region is not None
        k, _ = self._number(("k", depth, args[0]), frozenset())
        self._items[k] = self._lengths.length(instr, known)
        self._depends[k] = self._depends[args[0]] | {("fold", k)}
        inner = {**numbers, region.params[0]: k}
        for place, param in enumerate(region.params[1:]):  # carried values depend on all that the chain takes
            inner[param], _ = self._number(("carried", place, k, args), depends | {("fold", k)})
        self._block(region.body, inner, self._lengths.inside(instr, known), depth + 1)
        given = tuple(inner[r] for r in region.results)
        items = depends.union(*(self._depends[g] for g in given), {("fold", k)})
        result, is_new = self._number((instr.op, args, given), items - {("fold", k)})
        self.total += self._count(items) if is_new else 0
        for place, value in enumerate(instr.results):
            numbers[value], _ = self._number(("result", place, result), self._depends[result])


class _Shape:
    """An input of which only the shape is known."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def take(self, coordinates: object, made: object) -> np.ndarray:
        raise AssertionError("a length is computed from shapes alone")
