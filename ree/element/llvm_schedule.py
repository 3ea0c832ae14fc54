"""What a kernel's schedule depends on: which values vary with the column, and what lanes are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ree.element.program import Instr, Program, const_value
from ree.types import Type

_ARM_MIN = 32  # cost of a select's arm from which a branch around it pays
_PINNED = frozenset({"load", "load_if", "bound"})  # never moved into an arm: they touch memory
_BY_LANES = ("sum", "max", "min", "isum", "any", "all")  # folds that can run in lanes over k
Step = int | None  # how much an i64 grows with a variable; None: unknown
Cost = Callable[[Instr, Sequence[Instr]], int]  # of the arm of a select


def free_values(instr: Instr) -> tuple[set[int], set[int]]:
    """Values of outer scopes that an instruction uses, and axes whose coordinate its region reads."""
    used: set[int] = set(instr.args)
    axes: set[int] = set()
    defined: set[int] = set()

    def visit(body: Sequence[Instr]) -> None:
        for inner in body:
            used.update(inner.args)
            defined.update(inner.results)
            if inner.op == "index":
                axes.add(int(inner.imm[0]))
            if inner.region is not None:
                defined.update(inner.region.params)
                visit(inner.region.body)
                used.update(inner.region.results)

    if instr.region is not None:
        defined.update(instr.region.params)
        visit(instr.region.body)
        used.update(instr.region.results)
    return used - defined, axes


@dataclass(frozen=True)
class Arm:
    """The instructions that only the last operand of `select` needs: to be run only if a lane chooses it."""

    select: Instr
    body: tuple[Instr, ...]


def arm_length(_: Instr, arm: Sequence[Instr]) -> int:
    """The plain cost of an arm."""
    return len(arm)


def split_arms(body: Sequence[Instr], wanted: Collection[int], cost: Cost = arm_length) -> list[Instr | Arm]:
    """The body in order, with every select whose last operand is costly replaced by an `Arm`.

    wanted: values that are used outside the body. No instruction with a region or an effect moves.
    """
    uses: dict[int, int] = {}
    for instr in body:
        for value in free_values(instr)[0]:
            uses[value] = uses.get(value, 0) + 1
    for value in wanted:
        uses[value] = uses.get(value, 0) + 1
    defined = {instr.results[0]: n for n, instr in enumerate(body) if len(instr.results) == 1}
    moved: dict[int, list[int]] = {}  # number of a select -> numbers of its arm
    taken: set[int] = set()
    for number in reversed(range(len(body))):
        if body[number].op == "select" and number not in taken and body[number].args[2] not in body[number].args[:2]:
            arm = _only_for(body, defined, uses, body[number])
            if cost(body[number], [body[n] for n in arm]) >= _ARM_MIN:
                moved[number] = arm
                taken.update(arm)
    result: list[Instr | Arm] = []
    for number, instr in enumerate(body):
        if number in moved:
            result.append(Arm(instr, tuple(body[n] for n in moved[number])))
        elif number not in taken:
            result.append(instr)
    return result


def _only_for(body: Sequence[Instr], defined: dict[int, int], uses: dict[int, int], select: Instr) -> list[int]:
    """Numbers of the instructions, ascending, that serve nothing but the last operand of a select."""
    left = dict(uses)
    found: list[int] = []
    waiting = [select.args[2]]
    while waiting:
        value = waiting.pop()
        left[value] -= 1
        number = defined.get(value)
        if number is None or left[value] > 0 or body[number].region is not None or body[number].op in _PINNED:
            continue
        found.append(number)
        waiting.extend(set(body[number].args))
    return sorted(found)


def size(body: Sequence[Instr], wanted: Collection[int], cost: Cost = arm_length) -> int:
    """Number of instructions that always run, those of regions included."""
    total = 0
    for part in split_arms(body, wanted, cost):
        region = None if isinstance(part, Arm) else part.region
        total += 1 + (size(region.body, region.results, cost) if region else 0)
    return total


def varies_with_column(program: Program) -> set[int]:
    """Values of the program's body that depend on the last coordinate."""
    last = program.rank - 1
    varying: set[int] = set()
    for instr in program.body:
        used, axes = free_values(instr)
        column = instr.op == "index" and int(instr.imm[0]) == last
        if column or last in axes or used & varying:
            varying.update(instr.results)
    return varying


def lanes_are_columns(program: Program, strides: Sequence[Sequence[int | None]]) -> bool:
    """Whether lanes are best laid along the columns.

    They are not where elements reduce over inputs contiguous in k (a row sum whose result
    is a vector): there each column is computed alone, with lanes along k.
    """
    if program.rank == 0:
        return False
    votes = _Votes(program, strides)
    votes.visit(program.body, None, False)
    return votes.along_k <= votes.along_columns


class _Votes:
    """Counts the loads, in folds that vary with the column, that are contiguous along k or columns."""

    def __init__(self, program: Program, strides: Sequence[Sequence[int | None]]) -> None:
        self.last = program.rank - 1
        self.strides = strides
        self.varying = varies_with_column(program)
        self.steps: dict[int, tuple[Step, Step]] = {}  # value -> step along columns, along k
        self.constants: dict[int, int] = {}
        self.along_k = self.along_columns = 0

    def visit(self, body: Sequence[Instr], k: int | None, counts: bool) -> None:
        for instr in body:
            self._instruction(instr, counts)
            region = instr.region
            if region is not None:
                for value in region.params:
                    self.steps[value] = (None, None)
                self.steps[region.params[0]] = (0, 1)
                by_lanes = instr.op.removeprefix("fold:") in _BY_LANES
                self.visit(region.body, region.params[0], by_lanes and (counts or instr.results[0] in self.varying))

    def _instruction(self, instr: Instr, counts: bool) -> None:
        for result in instr.results:
            self.steps[result] = (None, None)
        args = [self.steps.get(a, (None, None)) for a in instr.args]
        if instr.op == "const" and instr.types[0] is Type.I64:
            self.constants[instr.results[0]] = int(const_value(int(instr.imm[0]), Type.I64))
            self.steps[instr.results[0]] = (0, 0)
        elif instr.op == "param":
            self.steps[instr.results[0]] = (0, 0)
        elif instr.op == "index":
            self.steps[instr.results[0]] = (int(instr.imm[0] == self.last), 0)
        elif instr.op in ("add", "sub"):
            sign = 1 if instr.op == "add" else -1
            (a, c), (b, d) = args
            self.steps[instr.results[0]] = (_sum(a, b, sign), _sum(c, d, sign))
        elif instr.op == "mul":
            self.steps[instr.results[0]] = self._product(instr, args)
        elif instr.op in ("load", "load_if") and counts:
            coordinates = args if instr.op == "load" else args[2:]
            self._vote(coordinates, self.strides[int(instr.imm[0])])

    def _product(self, instr: Instr, args: list[tuple[Step, Step]]) -> tuple[Step, Step]:
        for number in (0, 1):
            factor = self.constants.get(instr.args[1 - number])
            if factor is not None:
                column, k = args[number]
                return _scale(column, factor), _scale(k, factor)
        if all(step == (0, 0) for step in args):
            return (0, 0)
        return (None, None)

    def _vote(self, coordinates: Sequence[tuple[Step, Step]], strides: Sequence[int | None]) -> None:
        column: Step = 0
        along: Step = 0
        for (a, b), stride in zip(coordinates, strides, strict=True):
            column = _sum(column, _scale(a, stride), 1)
            along = _sum(along, _scale(b, stride), 1)
        self.along_k += along == 1 and column not in (0, 1)
        self.along_columns += column == 1 and along != 1


def _sum(a: Step, b: Step, sign: int) -> Step:
    return None if a is None or b is None else a + sign * b


def _scale(step: Step, factor: int | None) -> Step:
    if step == 0 or factor == 0:
        return 0
    return None if step is None or factor is None else step * factor
