"""Which internal values of a stage's element are committed to, and which follow without them.

The element program of a stage is split into *blocks*: its body, and the regions of its folds. A value is

* a constant, or *control*: an integer or truth value that follows from coordinates, extents, parameters and the
  numbers k of the folds around it alone. Nobody needs to be told those;
* *loaded*: a load at control coordinates. It is opened from the tensor. Inside a chunk of a fold that holds only if the
  elements of the chunk lie side by side (or are one), so that one opening has them all;
* a *cell*: every other one, and every partial result of a fold. Cells are what a prover commits to when he answers a
  challenge; `ree.referee.cells` says where each lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ree.element.program import INSTRUCTIONS, Instr, Program, const_value
from ree.errors import UnsupportedError
from ree.plan.layout import Layout
from ree.types import Type

_CONTROL_TYPES = (Type.I64, Type.BOOL)
_CONTROL_LEAVES = ("index", "extent", "param")


class Role(Enum):
    """How a value of an element program is known."""

    CONSTANT = "constant"
    CONTROL = "control"
    LOADED = "loaded"
    CARRIED = "carried"  # a chain's parameter: a cell of the iteration before
    CELL = "cell"


@dataclass(eq=False)
class Block:
    """A body of instructions: that of the program, or of a fold's region.

    cells: values that have a cell in each instance, in order; folds: those in it, in order.
    """

    body: tuple[Instr, ...]
    fold: Fold | None
    cells: list[int] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)

    @property
    def k(self) -> int:
        """The parameter that counts (of a region)."""
        assert self.fold is not None and self.fold.instr.region is not None
        return self.fold.instr.region.params[0]


@dataclass(eq=False)
class Fold:
    """A fold: the block that it stands in, its region, and whether sizes inside of it depend on its k."""

    instr: Instr
    home: Block
    region: Block = field(init=False)
    varies: bool = False
    sized_by: tuple[int, ...] = ()  # the k's of folds around it on which the number of its cells depends
    free: frozenset[int] = frozenset()  # values from outside that its region uses

    @property
    def kind(self) -> str:
        return self.instr.op.removeprefix("fold:")

    @property
    def is_chain(self) -> bool:
        return self.kind == "chain"

    @property
    def results(self) -> tuple[int, ...]:
        """What the region gives."""
        assert self.instr.region is not None
        return self.instr.region.results

    @property
    def carried(self) -> tuple[int, ...]:
        """The parameters that a chain hands on."""
        assert self.instr.region is not None
        return self.instr.region.params[1:]


class Scheme:
    """The roles of all values of an element program whose inputs lie as `layouts` say."""

    def __init__(self, program: Program, layouts: tuple[Layout, ...]) -> None:
        self.program = program
        self._layouts = layouts
        self.role: dict[int, Role] = {}
        self.home: dict[int, Block] = {}
        self.type: dict[int, Type] = {}
        self.instr: dict[int, Instr] = {}
        self.fold_of: dict[int, Fold] = {}  # a fold's result, or a chain's parameter -> the fold
        self.depends: dict[int, frozenset[int]] = {}  # control value -> the k's that it depends on
        self._slopes: dict[tuple[int, int], int | None] = {}
        self._needed: dict[int, tuple[int, ...]] = {}
        self.top = Block(program.body, None)
        self._fill(self.top)

    def _fill(self, block: Block) -> None:
        for instr in block.body:
            for value, type in zip(instr.results, instr.types, strict=True):
                self.home[value], self.type[value], self.instr[value] = block, type, instr
            if instr.region is not None:
                self._fold(instr, block)
                continue
            (value,) = instr.results
            self.role[value] = self._role(instr, block)
            if self.role[value] is Role.CELL:
                block.cells.append(value)

    def _role(self, instr: Instr, block: Block) -> Role:
        (value,) = instr.results
        if instr.op == "const":
            self.depends[value] = frozenset()
            return Role.CONSTANT
        if instr.op in _CONTROL_LEAVES:
            self.depends[value] = frozenset()
            return Role.CONTROL
        steered = all(self._is_control(a) for a in instr.args)
        if instr.op == "load":
            return Role.LOADED if steered and self._lies_together(instr, block) else Role.CELL
        if steered and instr.op in INSTRUCTIONS and instr.op != "load_if" and instr.types[0] in _CONTROL_TYPES:
            self.depends[value] = frozenset().union(*(self.depends[a] for a in instr.args))
            return Role.CONTROL
        return Role.CELL

    def _is_control(self, value: int) -> bool:
        return value in self.depends and self.type[value] in _CONTROL_TYPES

    def _lies_together(self, load: Instr, block: Block) -> bool:
        """Whether the elements that a chunk loads are neighbours in memory, ascending, or one and the same."""
        if block.fold is None or block.fold.is_chain:
            return True
        step = 0
        for coordinate, stride in zip(load.args, self._layouts[int(load.imm[0])].strides, strict=True):
            slope = self._slope(coordinate, block.k)
            if slope is None:
                return False
            step += slope * stride
        return step in (0, 1)

    def _slope(self, value: int, k: int) -> int | None:
        """By how much a control value grows with k; None if that is not the same everywhere."""
        for v in (value,) if value == k or k not in self.depends[value] else self.needed(value):
            if (v, k) not in self._slopes:
                self._slopes[v, k] = self._slope_of(v, k)
        return self._slopes[value, k]

    def _slope_of(self, value: int, k: int) -> int | None:
        if value == k:
            return 1
        if k not in self.depends[value]:
            return 0
        instr = self.instr[value]
        if instr.op not in ("add", "sub", "mul"):
            return None
        left, right = (1 if a == k else self._slopes.get((a, k), 0) for a in instr.args)
        if left is None or right is None:
            return None
        if instr.op == "mul":
            return self._scaled(instr, left, right)
        return left + right if instr.op == "add" else left - right

    def _scaled(self, product: Instr, left: int, right: int) -> int | None:
        """The slope of a product of which one factor is a constant."""
        for slope, other in ((left, product.args[1]), (right, product.args[0])):
            if self.role.get(other) is Role.CONSTANT:
                return slope * int(const_value(int(self.instr[other].imm[0]), Type.I64))
        return None

    def _fold(self, instr: Instr, block: Block) -> None:
        fold, region = Fold(instr, block), instr.region
        assert region is not None
        if not self._is_control(instr.args[0]):
            raise UnsupportedError(f"the length of a {instr.op} depends on data: its steps cannot be laid out")
        block.folds.append(fold)
        for value in instr.results:
            self.role[value], self.fold_of[value] = Role.CELL, fold
        k, *carried = region.params
        self.role[k], self.type[k], self.depends[k] = Role.CONTROL, Type.I64, frozenset({k})
        for value, type in zip(carried, region.param_types[1:], strict=True):
            self.role[value], self.type[value], self.fold_of[value] = Role.CARRIED, type, fold
        fold.region = Block(region.body, fold)
        self.home.update(dict.fromkeys(region.params, fold.region))
        self._fill(fold.region)
        if not fold.is_chain:  # a result that is a fold's has its own cell here, beside those of the chunk's others
            copied = [r for r in dict.fromkeys(region.results) if self._is_inner_fold(r, fold.region)]
            fold.region.cells += copied
        fold.varies = any(k in inner.sized_by for inner in fold.region.folds)
        sized_by = self.depends[instr.args[0]].union(*(inner.sized_by for inner in fold.region.folds))
        fold.sized_by = tuple(sorted(sized_by - {k}))
        fold.free = self._free(fold)

    def _is_inner_fold(self, value: int, region: Block) -> bool:
        instr = self.instr.get(value)  # none: k itself
        return self.home[value] is region and instr is not None and instr.region is not None

    def needed(self, value: int) -> tuple[int, ...]:
        """The instructions' values that a control value or constant follows from, in an order that computes it."""
        if value not in self._needed:
            found: dict[int, None] = {}
            waiting = [value]
            while waiting:
                v = waiting[-1]
                left = [a for a in self.instr[v].args if a in self.instr and a not in found] if v not in found else []
                if not left:
                    found[waiting.pop()] = None
                waiting += left
            self._needed[value] = tuple(found)
        return self._needed[value]

    def _free(self, fold: Fold) -> frozenset[int]:
        used: set[int] = set(fold.instr.args) | set(fold.results)
        for instr in fold.region.body:
            used.update(instr.args)
        for inner in fold.region.folds:
            used |= inner.free
        return frozenset(v for v in used if self.home[v] is not fold.region)
