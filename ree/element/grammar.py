"""The grammar of element programs: instructions, folds, and the data that programs are made of.

`INSTRUCTIONS` and `FOLDS` are the whole grammar. A new instruction must be added here and to
each printer: ree/element/interpret.py (NumPy, the authority), llvm*.py (CPU).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

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


def neutral_bits(kind: str, type: Type) -> int:
    """The bits of what an order-free fold of nothing gives."""
    if kind in ("isum", "any", "all"):
        return int(kind == "all")
    if type.is_float:
        infinity = 0x7F800000 if type is Type.F32 else 0x7FF0000000000000
        return infinity | ((1 << (type.bits - 1)) if kind == "max" else 0)
    top = 1 << (type.bits - 1)
    least, most = (top, top - 1) if type.is_signed else (0, 2 * top - 1)
    return least if kind == "max" else most


def walk(body: tuple[Instr, ...]) -> list[Instr]:
    """All instructions, those of regions after their fold."""
    found = []
    for instr in body:
        found.append(instr)
        if instr.region is not None:
            found.extend(walk(instr.region.body))
    return found


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
