"""Redoing one step of an element: at most 256 FMAs, or one instruction, from what is opened to the referee."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ree.element import scalar
from ree.element.interpret import instruction
from ree.errors import GraphError, RunError
from ree.referee import folds
from ree.referee.cells import CELL_BYTES, CHUNK, Cells, Kind, Step, constant, decode, encode, levels
from ree.referee.ports import Range
from ree.referee.scheme import Fold, Role


@dataclass
class Work:
    """What a referee has done: fused multiply-adds, and other instructions (additions of a fold among them)."""

    fmas: int = 0
    instructions: int = 0


@dataclass
class Redo:
    """Recomputes single steps; `read` gives ranges of the committed cells' bytes, the frame's inputs elements."""

    cells: Cells
    read: Range
    work: Work = field(default_factory=Work)

    def cell(self, address: int) -> int:
        """The bits of a committed cell."""
        return int(self._cells(address, 1)[0])

    def expected(self, step: Step) -> int | None:
        """The bits that the step gives; None if it is one that no run makes (an index out of range)."""
        try:
            with np.errstate(all="ignore"):
                return int(encode(self._value_of(step))[0])
        except (RunError, GraphError):
            return None

    def stored(self) -> np.ndarray | None:
        """The element as memory holds it ([1]); None as above."""
        program = self.cells.scheme.program
        try:
            with np.errstate(all="ignore"):
                return scalar.store(self._value(program.results[0], {}), program.dtypes[0])
        except (RunError, GraphError):
            return None

    def _value_of(self, step: Step) -> np.ndarray:
        match step.kind:
            case Kind.INSTRUCTION:
                assert step.instr is not None
                args = [self._value(a, step.ks) for a in step.instr.args]
                self.work.fmas += step.instr.op == "fma"
                self.work.instructions += step.instr.op != "fma"
                return instruction(self.cells.scheme.program, step.instr, args, self.cells.frame)
            case Kind.COPY:
                return self._value(step.value, step.ks)
            case Kind.CARRIED:
                return self._carried(step)
        return self._part(step)

    def _carried(self, step: Step) -> np.ndarray:
        fold = step.fold
        assert fold is not None
        k, outer = step.ks[fold.region.k], {v: n for v, n in step.ks.items() if v != fold.region.k}
        if k == 0:
            return self._value(fold.instr.args[1 + step.part], outer)
        return self._value(fold.results[step.part], {**outer, fold.region.k: k - 1})

    def _part(self, step: Step) -> np.ndarray:
        """The partial result of one chunk of a fold."""
        fold, ks = step.fold, step.ks
        assert fold is not None
        n, type = self.cells.length(fold, ks), self.cells.scheme.type[fold.instr.results[0]]
        before = folds.start(fold.kind, type)
        sizes = levels(fold, n)
        if step.level:
            below = self.cells.parts(fold, ks) + sum(sizes[: step.level - 1])
            first = CHUNK * step.part
            count = min(sizes[step.level - 1] - first, CHUNK)
            return self._fold(fold, before, [decode(self._cells(below + first, count), type)])
        if n == 0:
            return before
        if step.part and fold.kind != "sum":
            before = decode(self._cells(step.address - 1, 1), type)
        first = CHUNK * step.part
        lanes = min(n - first, CHUNK)
        items = [self._lanes(r, fold, {**ks, fold.region.k: first}, lanes) for r in fold.results]
        return self._fold(fold, before, items)

    def _fold(self, fold: Fold, before: np.ndarray, items: list[np.ndarray]) -> np.ndarray:
        if fold.kind == "dot":
            self.work.fmas += len(items[0])
            self.work.instructions += 1
        else:
            self.work.instructions += len(items[0])
        return folds.part(fold.kind, before, items)

    def _lanes(self, value: int, fold: Fold, ks: dict[int, int], lanes: int) -> np.ndarray:
        """A result of a fold's region in several iterations, from that of ks on."""
        role, home = self.cells.scheme.role[value], self.cells.scheme.home[value]
        inside = home is fold.region
        if role is Role.CELL and inside:
            address = self.cells.address(value, ks, fold.region)
            return decode(self._cells(address, lanes), self.cells.scheme.type[value])
        if role is Role.CELL:
            return np.broadcast_to(self._value(value, ks), (lanes,))
        k = fold.region.k
        return np.broadcast_to(self._value(value, {**ks, k: np.arange(ks[k], ks[k] + lanes)}), (lanes,))

    def _value(self, value: int, ks: Mapping[int, np.ndarray | int]) -> np.ndarray:
        """A value in one iteration of the folds around it (or in several, if it needs no cells)."""
        scheme = self.cells.scheme
        role = scheme.role[value]
        if role is Role.CONSTANT:
            return constant(scheme, value)
        if role is Role.CONTROL:
            return self.cells.control(value, ks)
        if role is Role.LOADED:
            instr = scheme.instr[value]
            coordinates = [self._value(a, ks) for a in instr.args]
            return instruction(scheme.program, instr, coordinates, self.cells.frame)
        around = {v: int(np.ravel(k)[0]) for v, k in ks.items()}
        return decode(self._cells(self.cells.address(value, around), 1), scheme.type[value])

    def _cells(self, address: int, count: int) -> np.ndarray:
        return np.frombuffer(self.read(address * CELL_BYTES, count * CELL_BYTES), "<u8")
