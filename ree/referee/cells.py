"""Where the internal values of one element lie: a numbering of its cells, computed from coordinates alone.

A block's instance has its own cells first, then those of its folds in order. A fold in chunks of 256 has, for each
chunk, the cells of its region (all lanes of the first, then of the second, ...), then what is nested in each lane;
after the last chunk its partial results, one for each chunk (a `sum`: of each level). A chain has what it carries at
the start, then for each k the cells of its region, what is nested in it, and what it carries on. So whatever a step
reads is one run of cells for each operand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from ree.element import scalar
from ree.element.interpret import Elements, Frame, fma_chain, instruction
from ree.element.program import DOT_CHUNK, Instr, const_value
from ree.errors import LimitError
from ree.referee.scheme import Block, Fold, Role, Scheme
from ree.types import Type

CELL_BYTES = 8
CHUNK = DOT_CHUNK
CELLS_MAX = 1 << 24
LENGTHS_MAX = 1 << 16  # of folds in one element, where they depend on the folds around them

Ks = Mapping[int, int]  # a region's parameter -> which iteration


class Kind(Enum):
    """What makes the value of a cell."""

    INSTRUCTION = "instruction"
    COPY = "copy"  # a nested fold's result, beside the cells of its region
    PART = "part"  # one chunk of a fold
    CARRIED = "carried"  # what a chain hands on
    STORE = "store"  # the element itself: the step after all cells


@dataclass(frozen=True)
class Step:
    """One step of an element: what it computes, and in which iterations of the folds around it."""

    address: int
    kind: Kind
    ks: Ks
    instr: Instr | None = None
    value: int = -1  # of the program, of a copy
    fold: Fold | None = None
    part: int = 0  # which partial result, or which carried value
    level: int = 0  # of a sum: 0 sums the region's results, 1 those sums, ...

    def __str__(self) -> str:
        if self.kind is Kind.PART:
            assert self.fold is not None
            return f"chunk {self.part} of {self.fold.instr.op}" + (f", level {self.level}" if self.level else "")
        name = self.instr.op if self.instr is not None else self.kind.value
        return f"{name} at cell {self.address}"


class Cells:
    """The cells of one element: how many, where each lies, and which step makes it.

    frame: coordinates, extents, parameters and inputs of the element (inputs are asked for their shapes only).
    """

    def __init__(self, scheme: Scheme, frame: Frame) -> None:
        self.scheme, self.frame = scheme, frame
        self._sizes: dict[tuple[Fold, tuple[int, ...]], int] = {}
        self._sums: dict[tuple[Fold, tuple[int, ...]], list[int]] = {}
        self.count = len(scheme.top.cells) + self._nested(scheme.top, {})
        if self.count > CELLS_MAX:
            raise LimitError(f"an element with {self.count} internal values, more than {CELLS_MAX}")

    # -- control values -----------------------------------------------------------------
    def control(self, value: int, ks: Mapping[int, np.ndarray | int]) -> np.ndarray:
        """A control value or constant; ks: numbers, or arrays of equal length for several lanes."""
        known = {k: np.atleast_1d(np.asarray(n, np.int64)) for k, n in ks.items()}
        for v in () if value in known else self.scheme.needed(value):
            instr = self.scheme.instr[v]
            known[v] = instruction(self.scheme.program, instr, [known[a] for a in instr.args], self.frame)
        return known[value]

    def length(self, fold: Fold, ks: Ks) -> int:
        """How many elements a fold takes."""
        return max(0, int(self.control(fold.instr.args[0], ks)[0]))

    # -- sizes --------------------------------------------------------------------------
    def _nested(self, block: Block, ks: Ks) -> int:
        """Cells of the folds in one instance of a block."""
        return sum(self._size(fold, ks) for fold in block.folds)

    def _size(self, fold: Fold, ks: Ks) -> int:
        key = (fold, tuple(ks[k] for k in fold.sized_by))
        if key not in self._sizes:
            if len(self._sizes) >= LENGTHS_MAX:
                raise LimitError(f"an element whose folds have more than {LENGTHS_MAX} lengths")
            n, region = self.length(fold, ks), fold.region
            inner = n * len(region.cells) + self._lanes(fold, ks, n)
            own = len(fold.carried) * (n + 1) if fold.is_chain else sum(levels(fold, n))
            if inner + own > CELLS_MAX:
                raise LimitError(f"an element with more than {CELLS_MAX} internal values")
            self._sizes[key] = inner + own
        return self._sizes[key]

    def _lanes(self, fold: Fold, ks: Ks, k: int) -> int:
        """Cells nested in the first k iterations of a fold."""
        if not fold.region.folds or k == 0:
            return 0
        if not fold.varies:
            return k * self._nested(fold.region, {**ks, fold.region.k: 0})
        sums = self._sums.setdefault((fold, tuple(ks[k] for k in fold.sized_by)), [0])
        for i in range(len(sums) - 1, k):
            sums.append(sums[i] + self._nested(fold.region, {**ks, fold.region.k: i}))
            if sums[-1] > CELLS_MAX:
                raise LimitError(f"an element with more than {CELLS_MAX} internal values")
        return sums[k]

    # -- addresses ------------------------------------------------------------------------
    def _start(self, fold: Fold, ks: Ks) -> int:
        """The first cell of a fold; ks: of the folds around it."""
        before = fold.home.folds[: fold.home.folds.index(fold)]
        return self._nested_start(fold.home, ks) + sum(self._size(f, ks) for f in before)

    def _nested_start(self, block: Block, ks: Ks) -> int:
        fold, own = block.fold, len(block.cells)
        if fold is None:
            return own
        k = ks[block.k]
        base = self._start(fold, ks) + self._lanes(fold, ks, k)
        if fold.is_chain:
            return base + len(fold.carried) * (k + 1) + own * (k + 1)
        return base + own * min(self.length(fold, ks), k - k % CHUNK + CHUNK)

    def _cell(self, block: Block, place: int, ks: Ks) -> int:
        fold, own = block.fold, len(block.cells)
        if fold is None:
            return place
        k = ks[block.k]
        if fold.is_chain:
            return self._start(fold, ks) + self._lanes(fold, ks, k) + len(fold.carried) * (k + 1) + own * k + place
        first = k - k % CHUNK
        lanes = min(self.length(fold, ks) - first, CHUNK)
        return self._start(fold, ks) + own * first + self._lanes(fold, ks, first) + place * lanes + k % CHUNK

    def parts(self, fold: Fold, ks: Ks) -> int:
        """The first partial result of a fold in chunks."""
        n = self.length(fold, ks)
        return self._start(fold, ks) + n * len(fold.region.cells) + self._lanes(fold, ks, n)

    def carried(self, fold: Fold, number: int, k: int, ks: Ks) -> int:
        """What a chain carries after k iterations."""
        own = len(fold.region.cells) + len(fold.carried)
        return self._start(fold, ks) + self._lanes(fold, ks, k) + k * own + number

    def result(self, value: int, ks: Ks) -> int:
        """The cell that holds a fold's result."""
        fold = self.scheme.fold_of[value]
        n = self.length(fold, ks)
        if fold.is_chain:
            return self.carried(fold, fold.instr.results.index(value), n, ks)
        return self.parts(fold, ks) + sum(levels(fold, n)) - 1

    def address(self, value: int, ks: Ks, block: Block | None = None) -> int:
        """The cell of a value; block: the one whose lanes read it (a fold's result has a copy there)."""
        home = self.scheme.home[value]
        if self.scheme.role[value] is Role.CARRIED:
            fold = self.scheme.fold_of[value]
            return self.carried(fold, fold.carried.index(value), ks[home.k], ks)
        if value in self.scheme.fold_of and not (block is home and value in home.cells):
            return self.result(value, ks)
        return self._cell(home, home.cells.index(value), ks)

    # -- steps --------------------------------------------------------------------------------
    def step(self, address: int) -> Step:
        """The step that makes a cell; after the last cell the one that stores the element."""
        if address == self.count:
            return Step(address, Kind.STORE, {})
        return self._find(self.scheme.top, address, {}, 0)

    def _find(self, block: Block, address: int, ks: Ks, start: int) -> Step:
        """start: of the block's instance, if it is no chunk's lane; of what is nested in it, else."""
        rest = address - start
        if block.fold is None or block.fold.is_chain:
            if rest < len(block.cells):
                return self._instruction(block, rest, address, ks)
            rest -= len(block.cells)
        for fold in block.folds:
            size = self._size(fold, ks)
            if rest < size:
                return self._in_fold(fold, address, ks)
            rest -= size
        raise AssertionError("no such cell")

    def _instruction(self, block: Block, place: int, address: int, ks: Ks) -> Step:
        value = block.cells[place]
        kind = Kind.COPY if value in self.scheme.fold_of else Kind.INSTRUCTION
        instr = None if kind is Kind.COPY else self.scheme.instr[value]
        return Step(address, kind, ks, instr, value)

    def _in_fold(self, fold: Fold, address: int, ks: Ks) -> Step:
        if fold.is_chain:
            return self._in_chain(fold, address, ks)
        parts = self.parts(fold, ks)
        if address >= parts:
            part, level = address - parts, 0
            for size in levels(fold, self.length(fold, ks)):
                if part < size:
                    return Step(address, Kind.PART, ks, fold=fold, part=part, level=level)
                part, level = part - size, level + 1
        own, k = len(fold.region.cells), fold.region.k
        first = CHUNK * self._last(lambda j: self._cell_base(fold, CHUNK * j, ks) <= address, self._chunks(fold, ks))
        lanes = min(self.length(fold, ks) - first, CHUNK)
        rest = address - self._cell_base(fold, first, ks)
        if rest < own * lanes:
            return self._instruction(fold.region, rest // lanes, address, {**ks, k: first + rest % lanes})
        lane = first + self._last(lambda i: self._nested_start(fold.region, {**ks, k: first + i}) <= address, lanes)
        inner = {**ks, k: lane}
        return self._find(fold.region, address, inner, self._nested_start(fold.region, inner))

    def _in_chain(self, fold: Fold, address: int, ks: Ks) -> Step:
        width, n = len(fold.carried), self.length(fold, ks)
        k = self._last(lambda i: self.carried(fold, 0, i, ks) <= address, n + 1)
        place = address - self.carried(fold, 0, k, ks)
        if place < width:
            return Step(address, Kind.CARRIED, {**ks, fold.region.k: k}, fold=fold, part=place)
        inner = {**ks, fold.region.k: k}
        return self._find(fold.region, address, inner, self.carried(fold, 0, k, ks) + width)

    def _cell_base(self, fold: Fold, first: int, ks: Ks) -> int:
        return self._start(fold, ks) + len(fold.region.cells) * first + self._lanes(fold, ks, first)

    def _chunks(self, fold: Fold, ks: Ks) -> int:
        return -(-self.length(fold, ks) // CHUNK)

    @staticmethod
    def _last(holds: Callable[[int], bool], count: int) -> int:
        """The last of 0 .. count-1 for which a condition holds that holds up to some number, 0 among them."""
        low, high = 0, count - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if holds(middle) else (low, middle - 1)
        return low


def levels(fold: Fold, n: int) -> list[int]:
    """How many partial results a fold of n elements in chunks has; a `sum` has several levels, down to one."""
    sizes = [max(1, -(-n // CHUNK))]
    while fold.kind == "sum" and sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // CHUNK))
    return sizes


def frame_of(arrays: Sequence[Elements], shape: Sequence[int], params: Sequence[int], element: int) -> Frame:
    """The frame of one element, numbered in C order."""
    at = np.unravel_index([element], shape) if shape else ()
    indices = [np.asarray(i, dtype=np.int64) for i in at]
    return Frame(arrays, tuple(shape), params, indices, (1,), np.ones(1, dtype=bool), fma_chain)


def encode(values: np.ndarray) -> np.ndarray:
    """Values as cells (u64): their bits, zero-extended, NaN canonical."""
    plain = np.ascontiguousarray(scalar.canonical(values))
    return plain.view(np.dtype(f"u{plain.itemsize}")).astype(np.uint64)


def decode(cells: np.ndarray, type: Type) -> np.ndarray:
    """Inverse of `encode`; what does not fit the type loses its upper bits."""
    dtype: np.dtype[Any] = np.dtype(scalar.NUMPY[type].__name__)
    narrow = cells.astype(np.dtype(f"u{dtype.itemsize}"))
    return (narrow & 1).astype(bool) if dtype.kind == "b" else narrow.view(dtype)


def constant(scheme: Scheme, value: int) -> np.ndarray:
    """A constant of the program."""
    type = scheme.type[value]
    return np.array([const_value(int(scheme.instr[value].imm[0]), type)], dtype=scalar.NUMPY[type])
