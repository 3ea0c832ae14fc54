"""All cells of an element, computed in order: what a prover answers with, and what a challenger compares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ree.element.interpret import instruction
from ree.element.program import Instr
from ree.errors import GraphError, RunError
from ree.referee import folds
from ree.referee.cells import CHUNK, Cells, decode, encode, levels
from ree.referee.scheme import Block, Fold, Role
from ree.types import Type

Environment = dict[int, np.ndarray]


class Evaluation:
    """The cells of one element, whose frame's inputs give elements.

    lies: cells that get other bits, with everything after them following from those: how a dishonest prover would
    answer (tests use it). failed: the first cell whose step gives nothing, such as an index out of range; None if all
    give something. The cells from there on are 0.
    """

    def __init__(self, cells: Cells, lies: Mapping[int, int] | None = None) -> None:
        self.cells, self.lies = cells, lies or {}
        self.values = np.zeros(cells.count, np.uint64)
        self.order = np.full(cells.count, -1, np.int64)  # when each cell was computed, -1: never
        self.failed: int | None = None
        self._error: RunError | GraphError | None = None
        self._writes = 0
        environment: Environment = {}
        try:
            with np.errstate(all="ignore"):
                self._block(cells.scheme.top, {}, environment)
        except (RunError, GraphError) as error:
            if self.failed is None:  # a step that needs no cell: no run of this program gives anything
                raise
            self._error = error
        self._environment = environment

    @property
    def result(self) -> np.ndarray:
        """The element ([1]); RunError, GraphError: a step gives nothing."""
        if self._error is not None:
            raise self._error
        return self._environment[self.cells.scheme.program.results[0]]

    def _write(self, address: int, values: np.ndarray, type: Type) -> np.ndarray:
        """Store neighbouring cells; gives what was stored, lies included."""
        bits = encode(values)
        for lie in self.lies:
            if address <= lie < address + len(bits):
                bits[lie - address] = self.lies[lie]
        self.values[address : address + len(bits)] = bits
        self.order[address : address + len(bits)] = self._writes
        self._writes += 1
        return decode(bits, type) if self.lies else values

    def _block(self, block: Block, ks: dict[int, int], environment: Environment, lanes: int = 1) -> None:
        """Run a block's instructions for `lanes` iterations from those of ks on."""
        scheme = self.cells.scheme
        for instr in block.body:
            if instr.region is not None:
                fold = next(f for f in block.folds if f.instr is instr)
                self._nested(fold, ks, environment, lanes)
                continue
            (value,) = instr.results
            found = self._instruction(instr, [environment[a] for a in instr.args], block, ks, lanes)
            if scheme.role[value] is Role.CELL:
                found = np.broadcast_to(found, (lanes,)) if len(found) != lanes else found
                found = self._write(self.cells.address(value, ks, block), found, scheme.type[value])
            environment[value] = found

    def _instruction(
        self, instr: Instr, args: list[np.ndarray], block: Block, ks: dict[int, int], lanes: int
    ) -> np.ndarray:
        scheme, frame = self.cells.scheme, self.cells.frame
        try:
            return instruction(scheme.program, instr, args, frame)
        except (RunError, GraphError):
            (value,) = instr.results
            if scheme.role[value] is Role.CELL:
                self.failed = self.cells.address(value, ks, block) + self._failing(instr, args, lanes)
            raise

    def _failing(self, instr: Instr, args: list[np.ndarray], lanes: int) -> int:
        """The first lane in which an instruction gives nothing."""
        for lane in range(lanes - 1):
            try:
                one = [a if len(a) == 1 else a[lane : lane + 1] for a in args]
                instruction(self.cells.scheme.program, instr, one, self.cells.frame)
            except (RunError, GraphError):
                return lane
        return lanes - 1

    def _nested(self, fold: Fold, ks: dict[int, int], environment: Environment, lanes: int) -> None:
        """A fold in each lane of its block."""
        scheme, home = self.cells.scheme, fold.home
        rows = []
        for lane in range(lanes):
            inner = ks if home.fold is None else {**ks, home.k: ks[home.k] + lane}
            known = {v: a if len(a) == 1 else a[lane : lane + 1] for v, a in environment.items() if v in fold.free}
            rows.append(self._chain(fold, inner, known) if fold.is_chain else [self._chunks(fold, inner, known)])
        for number, value in enumerate(fold.instr.results):
            found = np.concatenate([row[number] for row in rows])
            if value in home.cells:
                found = self._write(self.cells.address(value, ks, home), found, scheme.type[value])
            environment[value] = found

    def _chunks(self, fold: Fold, ks: dict[int, int], known: Environment) -> np.ndarray:
        region, type = fold.region, self.cells.scheme.type[fold.instr.results[0]]
        n, part = self.cells.length(fold, ks), self.cells.parts(fold, ks)
        total = folds.start(fold.kind, type)
        sums = []
        for first in range(0, max(n, 1), CHUNK):
            lanes = min(n - first, CHUNK)
            items = []
            if n:
                inner = {**known, region.k: np.arange(first, first + lanes, dtype=np.int64)}
                self._block(region, {**ks, region.k: first}, inner, lanes)
                items = [np.broadcast_to(inner[r], (lanes,)) for r in fold.results]
                total = folds.part(fold.kind, total, items)
            total = self._write(part, total, type)
            sums.append(total)
            part += 1
        for size in levels(fold, n)[1:]:
            below = np.concatenate(sums)
            sums = []
            for number in range(size):
                total = folds.part("sum", total, [below[CHUNK * number : CHUNK * (number + 1)]])
                sums.append(self._write(part, total, type))
                part += 1
        return sums[-1]

    def _chain(self, fold: Fold, ks: dict[int, int], known: Environment) -> list[np.ndarray]:
        scheme, region = self.cells.scheme, fold.region
        carried = [known[a] for a in fold.instr.args[1:]]
        for k in range(self.cells.length(fold, ks) + 1):
            if k:
                inner = {**known, region.k: np.array([k - 1], np.int64)}
                inner.update(zip(fold.carried, carried, strict=True))
                self._block(region, {**ks, region.k: k - 1}, inner)
                carried = [inner[r] for r in fold.results]
            place = self.cells.carried(fold, 0, k, ks)
            for number, value in enumerate(fold.carried):
                carried[number] = self._write(place + number, carried[number], scheme.type[value])
        return carried
