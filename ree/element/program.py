"""Element programs: the language in which every operator is defined.

An element program says how ONE output element follows from an operator's inputs: a typed
SSA list of instructions over the element's coordinates, with loads from the inputs and
folds (reductions) whose order is part of their meaning. `INSTRUCTIONS` and `FOLDS` are the
whole grammar; `check` holds a program to it; `emit` inlines one program into another,
which is what fusion is.

Printers: ree/element/interpret.py (NumPy, the authority), llvm.py (CPU), later CUDA and
the referee. A new instruction must be added here and to each printer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ree.errors import GraphError
from ree.types import DType, Type

OUT = -1  # the "input" number that stands for the output in `extent`

_FLOATS = frozenset({Type.F32, Type.F64})
_SIGNED = frozenset({Type.I32, Type.I64})
_INTS = frozenset({Type.I32, Type.I64, Type.U32, Type.U64})
_BITS = _INTS | {Type.BOOL}
_ALL = _BITS | _FLOATS


@dataclass(frozen=True, slots=True)
class Rule:
    """Grammar of one instruction: argument count, the types it takes, how its result is typed.

    result: "same" (as the arguments), "bool", "i64", or "to" (named by the instruction).
    """

    arity: int
    types: frozenset[Type]
    result: str
    meaning: str


INSTRUCTIONS: dict[str, Rule] = {
    # leaves: arity 0, `imm` holds what they name
    "index": Rule(0, _ALL, "i64", "coordinate of the output element along axis imm[0]"),
    "extent": Rule(0, _ALL, "i64", "extent of axis imm[1] of input imm[0] (-1: the output)"),
    "param": Rule(0, _ALL, "i64", "run-time integer number imm[0] of a fused program"),
    "const": Rule(0, _ALL, "to", "the value whose bits are imm[0]"),
    # memory: args are the coordinates (i64), within bounds whenever the load is made
    "load": Rule(-1, frozenset({Type.I64}), "to", "element of input imm[0], widened to its element type"),
    "load_if": Rule(-1, _ALL, "to", "args[0] ? element of input imm[0] at args[2:] : args[1]; no access if false"),
    "bound": Rule(2, frozenset({Type.I64}), "same", "args[0] if 0 <= args[0] < args[1]; else the run fails (RunError)"),
    # arithmetic: IEEE 754 round to nearest even; integers wrap
    "add": Rule(2, _INTS | _FLOATS, "same", "a + b"),
    "sub": Rule(2, _INTS | _FLOATS, "same", "a - b"),
    "mul": Rule(2, _INTS | _FLOATS, "same", "a * b"),
    "div": Rule(2, _INTS | _FLOATS, "same", "a / b; integers truncate, x/0 = 0, MIN/-1 = MIN"),
    "rem": Rule(2, _INTS, "same", "a - div(a, b) * b, sign of a; x rem 0 = x"),
    "fma": Rule(3, _FLOATS, "same", "a * b + c, rounded once"),
    "sqrt": Rule(1, _FLOATS, "same", "square root, rounded once"),
    "neg": Rule(1, _INTS | _FLOATS, "same", "-a (floats: flips the sign bit)"),
    "abs": Rule(1, _SIGNED | _FLOATS, "same", "|a| (floats: clears the sign bit; |MIN| = MIN)"),
    "min": Rule(2, _INTS | _FLOATS, "same", "smaller; NaN if either is NaN; -0 < +0"),
    "max": Rule(2, _INTS | _FLOATS, "same", "larger; NaN if either is NaN; -0 < +0"),
    "floor": Rule(1, _FLOATS, "same", "toward -inf"),
    "ceil": Rule(1, _FLOATS, "same", "toward +inf"),
    "trunc": Rule(1, _FLOATS, "same", "toward zero"),
    "rint": Rule(1, _FLOATS, "same", "to nearest integer, ties to even"),
    "copysign": Rule(2, _FLOATS, "same", "|a| with the sign of b (a NaN b counts as positive)"),
    # bits
    "and": Rule(2, _BITS, "same", "bitwise and"),
    "or": Rule(2, _BITS, "same", "bitwise or"),
    "xor": Rule(2, _BITS, "same", "bitwise exclusive or"),
    "not": Rule(1, _BITS, "same", "bitwise complement (bool: logical)"),
    "shl": Rule(2, _INTS, "same", "a << b; 0 if b is outside 0..bits-1"),
    "shr": Rule(2, _INTS, "same", "a >> b, arithmetic if signed; sign fill (or 0) if b is outside 0..bits-1"),
    # comparison: IEEE (false with NaN, except ne)
    "eq": Rule(2, _ALL, "bool", "a == b"),
    "ne": Rule(2, _ALL, "bool", "a != b"),
    "lt": Rule(2, _INTS | _FLOATS, "bool", "a < b"),
    "le": Rule(2, _INTS | _FLOATS, "bool", "a <= b"),
    "gt": Rule(2, _INTS | _FLOATS, "bool", "a > b"),
    "ge": Rule(2, _INTS | _FLOATS, "bool", "a >= b"),
    "select": Rule(3, _ALL, "same", "args[0] (bool) ? args[1] : args[2]"),
    # conversion, imm[0] = target type
    "convert": Rule(1, _ALL, "to", "by value; float to int truncates, saturates, NaN gives 0; x to bool is x != 0"),
    "bitcast": Rule(1, _INTS | _FLOATS, "to", "same bits at equal width; a NaN is made canonical first"),
    "round": Rule(1, _ALL, "same", "rounded to dtype imm[0] and widened again, as a store and load would"),
}

FOLDS: dict[str, str] = {
    # kind: meaning; the region gets k (i64) = 0 .. n-1, and for `chain` the carried values
    "dot": "region gives (a, b) f32: FMA chains from +0 over chunks of 256, chunk sums added in order from +0",
    "sum": "region gives a float: chunks of 256 as 16 lanes x 16 steps, fixed tree, then again over chunk sums",
    "max": "region gives one value: order-free maximum (as `max`); empty: -inf or the type's minimum",
    "min": "region gives one value: order-free minimum (as `min`); empty: +inf or the type's maximum",
    "isum": "region gives an integer: wrapping sum",
    "any": "region gives a bool",
    "all": "region gives a bool",
    "chain": "carried values start at args[1:]; the region gives the next ones; k ascending, strictly in sequence",
}

DOT_CHUNK = 256
SUM_LANES = 16


@dataclass(frozen=True, slots=True)
class Block:
    """A region: parameters, instructions, and the values it gives."""

    params: tuple[int, ...]
    param_types: tuple[Type, ...]
    body: tuple[Instr, ...]
    results: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instr:
    """One instruction; value numbers are unique in a program. `fold:KIND` carries a region."""

    op: str
    args: tuple[int, ...]
    results: tuple[int, ...]
    types: tuple[Type, ...]
    imm: tuple[int | str, ...] = ()
    region: Block | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a program: storage dtype and rank."""

    dtype: DType
    rank: int


@dataclass(frozen=True, slots=True)
class Program:
    """An element program over an index space of `rank` axes.

    Definitions have one result; fused programs may store several, all over the same index
    space. A result is rounded to its storage dtype, and a NaN stored is canonical.
    """

    inputs: tuple[Port, ...]
    rank: int
    body: tuple[Instr, ...]
    results: tuple[int, ...]
    dtypes: tuple[DType, ...]


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


def const_bits(value: int | float | bool, type: Type) -> int:
    """The bits of a constant of this type; floats are rounded to nearest, NaN is canonical."""
    if type is Type.BOOL:
        return int(bool(value))
    if type.is_int:
        return int(value) & ((1 << type.bits) - 1)
    number = float(value)
    if number != number:
        return 0x7FC00000 if type is Type.F32 else 0x7FF8000000000000
    if type is Type.F64:
        return int(struct.unpack("<Q", struct.pack("<d", number))[0])
    try:
        return int(struct.unpack("<I", struct.pack("<f", number))[0])
    except OverflowError:  # beyond float32: rounds to infinity
        return 0xFF800000 if number < 0 else 0x7F800000


def const_value(bits: int, type: Type) -> int | float | bool:
    """Inverse of `const_bits`."""
    if type is Type.BOOL:
        return bool(bits)
    if type is Type.F32:
        return float(struct.unpack("<f", struct.pack("<I", bits))[0])
    if type is Type.F64:
        return float(struct.unpack("<d", struct.pack("<Q", bits))[0])
    if type.is_signed and bits >> (type.bits - 1):
        return bits - (1 << type.bits)
    return bits


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


def walk(body: tuple[Instr, ...]) -> list[Instr]:
    """All instructions, those of regions after their fold."""
    found = []
    for instr in body:
        found.append(instr)
        if instr.region is not None:
            found.extend(walk(instr.region.body))
    return found


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


def check(program: Program) -> None:
    """Hold a program to the grammar; GraphError names the first instruction that breaks it."""
    types = _check_body(program, program.body, {})
    for result, dtype in zip(program.results, program.dtypes, strict=True):
        if types.get(result) is not dtype.element:
            raise GraphError(f"result %{result} is no {dtype.element.value}")


def _check_body(program: Program, body: tuple[Instr, ...], outer: dict[int, Type]) -> dict[int, Type]:
    types = dict(outer)
    for instr in body:
        for arg in instr.args:
            if arg not in types:
                raise GraphError(f"{instr.op} uses %{arg} before it is defined")
        args = [types[a] for a in instr.args]
        if instr.op.startswith("fold:"):
            _check_fold(program, instr, args, types)
        else:
            _check_instr(program, instr, args)
        for result, type in zip(instr.results, instr.types, strict=True):
            if result in types:
                raise GraphError(f"%{result} is defined twice")
            types[result] = type
    return types


def _check_instr(program: Program, instr: Instr, args: list[Type]) -> None:
    rule = INSTRUCTIONS.get(instr.op)
    if rule is None:
        raise GraphError(f"unknown instruction {instr.op!r}")
    if rule.arity >= 0 and len(args) != rule.arity:
        raise GraphError(f"{instr.op} takes {rule.arity} operands, not {len(args)}")
    if instr.op in ("load", "load_if"):
        source = int(instr.imm[0])
        coordinates = args if instr.op == "load" else args[2:]
        if not 0 <= source < len(program.inputs) or len(coordinates) != program.inputs[source].rank:
            raise GraphError(f"{instr.op} of input {source} does not fit its rank")
        if any(c is not Type.I64 for c in coordinates):
            raise GraphError(f"{instr.op}: a coordinate is not i64")
        if instr.types[0] is not program.inputs[source].dtype.element:
            raise GraphError(f"{instr.op} of input {source} has the wrong type")
        if instr.op == "load_if" and (args[0] is not Type.BOOL or args[1] is not instr.types[0]):
            raise GraphError("load_if takes a bool and a default of the loaded type")
        return
    if instr.op == "index" and not 0 <= int(instr.imm[0]) < program.rank:
        raise GraphError(f"index {instr.imm[0]} of a space of {program.rank} axes")
    operands = args[1:] if instr.op == "select" else args
    if instr.op == "select" and args[0] is not Type.BOOL:
        raise GraphError("select needs a bool")
    if any(t not in rule.types for t in operands) or len(set(operands)) > 1:
        raise GraphError(f"{instr.op} does not take {[t.value for t in args]}")
    expected = {"bool": Type.BOOL, "i64": Type.I64}.get(rule.result) or (operands[0] if rule.result == "same" else None)
    if expected is not None and instr.types[0] is not expected:
        raise GraphError(f"{instr.op} gives {expected.value}, not {instr.types[0].value}")


def _check_fold(program: Program, instr: Instr, args: list[Type], types: dict[int, Type]) -> None:
    kind = instr.op.removeprefix("fold:")
    region = instr.region
    if kind not in FOLDS or region is None:
        raise GraphError(f"unknown fold {kind!r}")
    inner = dict(types)
    inner.update(zip(region.params, region.param_types, strict=True))
    inner = _check_body(program, region.body, inner)
    given = tuple(inner[r] for r in region.results)
    allowed: dict[str, bool] = {
        "dot": given == (Type.F32, Type.F32) and instr.types == (Type.F32,),
        "sum": len(given) == 1 and given[0].is_float and instr.types == given,
        "max": len(given) == 1 and given[0] is not Type.BOOL and instr.types == given,
        "min": len(given) == 1 and given[0] is not Type.BOOL and instr.types == given,
        "isum": len(given) == 1 and given[0].is_int and instr.types == given,
        "any": given == (Type.BOOL,) == instr.types,
        "all": given == (Type.BOOL,) == instr.types,
        "chain": given == instr.types == tuple(args[1:]) and region.param_types[1:] == given,
    }
    if args[:1] != [Type.I64] or region.param_types[:1] != (Type.I64,) or not allowed[kind]:
        raise GraphError(f"fold {kind} is ill-typed")


def format_program(program: Program) -> str:
    """The program as text, one instruction a line (for people and for golden tests)."""
    lines: list[str] = []

    def show(body: tuple[Instr, ...], indent: str) -> None:
        for i in body:
            left = ", ".join(f"%{r}:{t.value}" for r, t in zip(i.results, i.types, strict=True))
            right = " ".join([*(f"%{a}" for a in i.args), *(f"#{v}" for v in i.imm)])
            lines.append(f"{indent}{left} = {i.op} {right}".rstrip())
            if i.region is not None:
                params = ", ".join(f"%{p}" for p in i.region.params)
                lines.append(f"{indent}  ({params}):")
                show(i.region.body, indent + "    ")
                lines.append(f"{indent}    give " + " ".join(f"%{r}" for r in i.region.results))

    show(program.body, "")
    stores = (f"%{r}:{d.value}" for r, d in zip(program.results, program.dtypes, strict=True))
    lines.append("store " + " ".join(stores))
    return "\n".join(lines)
