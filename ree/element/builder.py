"""Builds element programs: instructions as Python arithmetic, regions as functions, one program inlined in another.

`emit` inlines a program, which is what fusion is; `prune` leaves out what no result needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ree.element.check import check
from ree.element.grammar import INSTRUCTIONS, Block, Instr, Port, Program, const_bits, const_value, walk
from ree.errors import GraphError, LimitError
from ree.limits import ELEMENT_VALUES_MAX
from ree.types import DType, Type


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A value under construction; operators build instructions, Python numbers become constants."""

    builder: Builder
    id: int
    type: Type

    def _binary(self, op: str, other: Operand, swap: bool = False) -> Value:
        right = self.builder.as_value(other, self.type)
        return self.builder.op(op, right, self) if swap else self.builder.op(op, self, right)

    def __add__(self, other: Operand) -> Value:
        return self._binary("add", other)

    def __radd__(self, other: Operand) -> Value:
        return self._binary("add", other, swap=True)

    def __sub__(self, other: Operand) -> Value:
        return self._binary("sub", other)

    def __rsub__(self, other: Operand) -> Value:
        return self._binary("sub", other, swap=True)

    def __mul__(self, other: Operand) -> Value:
        return self._binary("mul", other)

    def __rmul__(self, other: Operand) -> Value:
        return self._binary("mul", other, swap=True)

    def __truediv__(self, other: Operand) -> Value:
        return self._binary("div", other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self._binary("div", other, swap=True)

    def __neg__(self) -> Value:
        return self.builder.op("neg", self)

    def __and__(self, other: Operand) -> Value:
        return self._binary("and", other)

    def __or__(self, other: Operand) -> Value:
        return self._binary("or", other)

    def __xor__(self, other: Operand) -> Value:
        return self._binary("xor", other)

    def __invert__(self) -> Value:
        return self.builder.op("not", self)

    def __lshift__(self, other: Operand) -> Value:
        return self._binary("shl", other)

    def __rshift__(self, other: Operand) -> Value:
        return self._binary("shr", other)

    def __lt__(self, other: Operand) -> Value:
        return self._binary("lt", other)

    def __le__(self, other: Operand) -> Value:
        return self._binary("le", other)

    def __gt__(self, other: Operand) -> Value:
        return self._binary("gt", other)

    def __ge__(self, other: Operand) -> Value:
        return self._binary("ge", other)

    def eq(self, other: Operand) -> Value:
        return self._binary("eq", other)

    def ne(self, other: Operand) -> Value:
        return self._binary("ne", other)


Operand = Value | int | float | bool


@dataclass
class _Scope:
    body: list[Instr] = field(default_factory=list)
    known: dict[tuple[object, ...], Value] = field(default_factory=dict)


class Builder:
    """Builds an element program; equal pure instructions of a scope become one value.

    inputs: one `Port` per input tensor; rank: axes of the output's index space.
    """

    def __init__(self, inputs: Sequence[Port], rank: int) -> None:
        self.inputs = tuple(inputs)
        self.rank = rank
        self._scopes = [_Scope()]
        self._count = 0
        self._depth: dict[int, int] = {}  # value -> number of the scope that holds it
        self._i64: dict[int, int] = {}  # value -> the integer, for i64 constants

    # -- leaves ---------------------------------------------------------------
    def const(self, value: int | float | bool, type: Type) -> Value:
        return self._emit("const", (), type, (const_bits(value, type),))

    def const_from_bits(self, bits: int, type: Type) -> Value:
        return self._emit("const", (), type, (bits,))

    def index(self, axis: int) -> Value:
        """The output element's coordinate along `axis` (i64)."""
        return self._emit("index", (), Type.I64, (axis,))

    def indices(self) -> list[Value]:
        return [self.index(axis) for axis in range(self.rank)]

    def extent(self, source: int, axis: int) -> Value:
        """Extent of an axis of input number `source`, or of the output (`OUT`)."""
        return self._emit("extent", (), Type.I64, (source, axis))

    def param(self, slot: int) -> Value:
        return self._emit("param", (), Type.I64, (slot,))

    def as_value(self, operand: Operand, type: Type) -> Value:
        return operand if isinstance(operand, Value) else self.const(operand, type)

    def i64(self, value: int) -> Value:
        return self.const(value, Type.I64)

    def f32(self, value: float) -> Value:
        return self.const(value, Type.F32)

    def f64(self, value: float) -> Value:
        return self.const(value, Type.F64)

    # -- memory ---------------------------------------------------------------
    def load(self, source: int, *coordinates: Operand) -> Value:
        """Element of input `source` at the given coordinates (one per axis, in bounds)."""
        port = self.inputs[source]
        args = tuple(self.as_value(c, Type.I64).id for c in coordinates)
        return self._emit("load", args, port.dtype.element, (source,))

    def load_if(self, condition: Value, other: Operand, source: int, *coordinates: Operand) -> Value:
        """`condition ? input[coordinates] : other`, with no access where the condition is false."""
        type = self.inputs[source].dtype.element
        args: tuple[int, ...] = (condition.id, self.as_value(other, type).id)
        args += tuple(self.as_value(c, Type.I64).id for c in coordinates)
        return self._emit("load_if", args, type, (source,))

    def bound(self, index: Value, extent: Operand) -> Value:
        """The index itself; the run fails with RunError where it is not in 0 .. extent-1."""
        return self.op("bound", index, self.as_value(extent, Type.I64))

    # -- arithmetic -------------------------------------------------------------
    def op(self, name: str, *operands: Operand) -> Value:
        """An instruction of `INSTRUCTIONS` whose result type is "same" or "bool"."""
        rule = INSTRUCTIONS[name]
        pick = 1 if name == "select" else 0
        typed = [v for v in operands[pick:] if isinstance(v, Value)]
        if not typed:
            raise GraphError(f"{name} needs one typed operand")
        type = typed[0].type
        values = [self.as_value(v, Type.BOOL if name == "select" and n == 0 else type) for n, v in enumerate(operands)]
        folded = self._fold_integers(name, values)
        if folded is not None:
            return folded
        result = Type.BOOL if rule.result == "bool" else type
        return self._emit(name, tuple(v.id for v in values), result, ())

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        return self.op("fma", *self._like(a, b, c))

    def sqrt(self, a: Value) -> Value:
        return self.op("sqrt", a)

    def min(self, a: Operand, b: Operand) -> Value:
        return self.op("min", *self._like(a, b))

    def max(self, a: Operand, b: Operand) -> Value:
        return self.op("max", *self._like(a, b))

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        return self.op("select", condition, *self._like(a, b))

    def convert(self, a: Value, to: Type) -> Value:
        """Conversion by value (see INSTRUCTIONS); the identity gives `a` itself."""
        return a if a.type is to else self._emit("convert", (a.id,), to, (to.value,))

    def bitcast(self, a: Value, to: Type) -> Value:
        return self._emit("bitcast", (a.id,), to, (to.value,))

    def round(self, a: Value, dtype: DType) -> Value:
        """The value as a store to `dtype` and a load would give it; identity where exact."""
        if dtype.element is not a.type:
            raise GraphError(f"{a.type.value} is not the element type of {dtype.value}")
        if dtype in (DType.F32, DType.F64, DType.I32, DType.I64, DType.U32, DType.U64, DType.BOOL):
            return a
        return self._emit("round", (a.id,), a.type, (dtype.value,))

    # -- folds ------------------------------------------------------------------
    def fold_dot(self, n: Operand, region: Callable[[Value], tuple[Value, Value]]) -> Value:
        return self._fold("dot", n, region)[0]

    def fold_sum(self, n: Operand, region: Callable[[Value], Value]) -> Value:
        return self._fold("sum", n, lambda k: (region(k),))[0]

    def fold_max(self, n: Operand, region: Callable[[Value], Value]) -> Value:
        return self._fold("max", n, lambda k: (region(k),))[0]

    def fold_min(self, n: Operand, region: Callable[[Value], Value]) -> Value:
        return self._fold("min", n, lambda k: (region(k),))[0]

    def fold_isum(self, n: Operand, region: Callable[[Value], Value]) -> Value:
        return self._fold("isum", n, lambda k: (region(k),))[0]

    def fold_any(self, n: Operand, region: Callable[[Value], Value]) -> Value:
        return self._fold("any", n, lambda k: (region(k),))[0]

    def fold_all(self, n: Operand, region: Callable[[Value], Value]) -> Value:
        return self._fold("all", n, lambda k: (region(k),))[0]

    def chain(self, n: Operand, start: Sequence[Value], region: Callable[..., Sequence[Value]]) -> list[Value]:
        """Sequential left fold: `region(k, *carried)` gives the next carried values."""
        return self._fold("chain", n, region, start)

    def _fold(
        self, kind: str, n: Operand, region: Callable[..., Sequence[Value]], start: Sequence[Value] = ()
    ) -> list[Value]:
        count = self.as_value(n, Type.I64)
        self._scopes.append(_Scope())
        params = [self._new(Type.I64), *(self._new(value.type) for value in start)]
        results = list(region(*params))
        scope = self._scopes.pop()
        block = Block(
            tuple(p.id for p in params), tuple(p.type for p in params), tuple(scope.body), tuple(r.id for r in results)
        )
        types = tuple(r.type for r in results[:1] if kind != "chain") or tuple(v.type for v in start)
        outputs = [self._new(type) for type in types]
        args = (count.id, *(v.id for v in start))
        instr = Instr(f"fold:{kind}", args, tuple(o.id for o in outputs), types, (), block)
        self._scopes[-1].body.append(instr)
        return outputs

    def scope_of(self, value: Value) -> object:
        """The region that holds a value, as a token for `in_scope`."""
        return self._scopes[self._depth[value.id]]

    def in_scope(self, scope: object) -> bool:
        """True while the region of this token is still open."""
        return any(scope is open_scope for open_scope in self._scopes)

    # -- finish -----------------------------------------------------------------
    def finish(self, results: Sequence[Value], dtypes: Sequence[DType]) -> Program:
        """The checked program that stores these values with these storage dtypes."""
        if len(self._scopes) != 1:
            raise GraphError("finish inside a region")
        program = Program(
            self.inputs, self.rank, tuple(self._scopes[0].body), tuple(r.id for r in results), tuple(dtypes)
        )
        program = prune(program)
        check(program)
        return program

    # -- inside -------------------------------------------------------------------
    def _new(self, type: Type, depth: int | None = None) -> Value:
        if self._count >= ELEMENT_VALUES_MAX:
            raise LimitError(f"an element program with more than {ELEMENT_VALUES_MAX} values")
        self._depth[self._count] = len(self._scopes) - 1 if depth is None else depth
        self._count += 1
        return Value(self, self._count - 1, type)

    def _like(self, *operands: Operand) -> list[Value]:
        type = next((v.type for v in operands if isinstance(v, Value)), None)
        if type is None:
            raise GraphError("one operand must be a value")
        return [self.as_value(v, type) for v in operands]

    def _emit(self, op: str, args: tuple[int, ...], type: Type, imm: tuple[int | str, ...]) -> Value:
        key = (op, args, type, imm)
        for scope in reversed(self._scopes):
            if key in scope.known:
                return scope.known[key]
        # what does not depend on a region's parameters is hoisted out of it; an access is not,
        # since the region may run zero times
        stays = op in ("load", "load_if", "bound")
        depth = len(self._scopes) - 1 if stays else max((self._depth[a] for a in args), default=0)
        scope = self._scopes[depth]
        value = self._new(type, depth)
        scope.body.append(Instr(op, args, (value.id,), (type,), imm))
        scope.known[key] = value
        if op == "const" and type is Type.I64:
            self._i64[value.id] = int(const_value(int(imm[0]), type))
        return value

    def _fold_integers(self, name: str, values: list[Value]) -> Value | None:
        """i64 index arithmetic with neutral elements or two constants needs no instruction."""
        if name not in ("add", "sub", "mul") or values[0].type is not Type.I64:
            return None
        a, b = (self._i64.get(value.id) for value in values)
        if a is not None and b is not None:
            return self.i64({"add": a + b, "sub": a - b, "mul": a * b}[name])
        if b == 0 and name in ("add", "sub"):
            return values[0]
        if a == 0 and name == "add":
            return values[1]
        if name == "mul" and 0 in (a, b):
            return self.i64(0)
        if name == "mul" and 1 in (a, b):
            return values[0] if b == 1 else values[1]
        return None


def emit(
    program: Program,
    builder: Builder,
    index: Sequence[Value],
    load: Callable[[int, list[Value]], Value],
    extent: Callable[[int, int], Value],
    load_if: Callable[[Value, Value, int, list[Value]], Value],
) -> list[Value]:
    """Inline a program into a builder: coordinates, loads and extents are given by the caller.

    Returns the values of the results, rounded to their storage dtypes, so that a fused
    consumer sees what it would have loaded.
    """
    values: dict[int, Value] = {}

    def run(body: tuple[Instr, ...]) -> None:
        for instr in body:
            args = [values[a] for a in instr.args]
            if instr.op == "index":
                values[instr.results[0]] = index[int(instr.imm[0])]
            elif instr.op == "extent":
                values[instr.results[0]] = extent(int(instr.imm[0]), int(instr.imm[1]))
            elif instr.op == "load":
                values[instr.results[0]] = load(int(instr.imm[0]), args)
            elif instr.op == "load_if":
                values[instr.results[0]] = load_if(args[0], args[1], int(instr.imm[0]), args[2:])
            elif instr.region is not None:
                emit_fold(instr, instr.region, args)
            elif INSTRUCTIONS[instr.op].result in ("same", "bool") and not instr.imm:
                values[instr.results[0]] = builder.op(instr.op, *args)
            else:
                values[instr.results[0]] = builder._emit(instr.op, tuple(a.id for a in args), instr.types[0], instr.imm)

    def emit_fold(instr: Instr, region: Block, args: list[Value]) -> None:
        def body(*params: Value) -> list[Value]:
            for number, param in zip(region.params, params, strict=True):
                values[number] = param
            run(region.body)
            return [values[r] for r in region.results]

        outputs = builder._fold(instr.op.removeprefix("fold:"), args[0], body, args[1:])
        values.update(zip(instr.results, outputs, strict=True))

    run(program.body)
    return [builder.round(values[r], d) for r, d in zip(program.results, program.dtypes, strict=True)]


def prune(program: Program) -> Program:
    """The program without instructions whose results nobody needs (`bound` stays)."""
    needed = set(program.results)

    def sweep(body: tuple[Instr, ...]) -> tuple[Instr, ...]:
        kept = []
        for instr in reversed(body):
            if instr.op != "bound" and not needed.intersection(instr.results) and not _has_bound(instr):
                continue
            if instr.region is not None:
                needed.update(instr.region.results)
                region = instr.region
                block = Block(region.params, region.param_types, sweep(region.body), region.results)
                instr = Instr(instr.op, instr.args, instr.results, instr.types, instr.imm, block)
            needed.update(instr.args)
            kept.append(instr)
        return tuple(reversed(kept))

    return Program(program.inputs, program.rank, sweep(program.body), program.results, program.dtypes)


def _has_bound(instr: Instr) -> bool:
    return instr.region is not None and any(inner.op == "bound" for inner in walk(instr.region.body))
