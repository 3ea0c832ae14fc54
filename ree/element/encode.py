"""Canonical bytes of an element program, and its digest: what an operator's identity rests on.

    program := version  inputs  rank  dtypes  body  results
    inputs  := count (dtype rank)*          dtypes  := count dtype*
    body    := count instr*                 results := count value*
    instr   := opcode  count value*  count type*  count immediate*  region?
    region  := count type*  body  results   (fold opcodes only; the types of its parameters)

All numbers are unsigned LEB128, shortest form. Values are numbered densely in the order in
which they are defined (a region's parameters before its body), so the numbering of the
builder leaves no trace. An immediate is a type or dtype number (convert, bitcast, round), the
bits of a constant, or a small integer in zigzag form.
"""

from __future__ import annotations

from collections.abc import Iterable

from ree.element.program import Block, Instr, Program
from ree.types import DType, Type

VERSION = 1
DIGEST_CONTEXT = "ree v1 element program"

# A number, once given, is never given to anything else.
OPCODES: dict[str, int] = {
    "index": 1,
    "extent": 2,
    "param": 3,
    "const": 4,
    "load": 8,
    "load_if": 9,
    "bound": 10,
    "add": 16,
    "sub": 17,
    "mul": 18,
    "div": 19,
    "rem": 20,
    "fma": 21,
    "sqrt": 22,
    "neg": 23,
    "abs": 24,
    "min": 25,
    "max": 26,
    "floor": 27,
    "ceil": 28,
    "trunc": 29,
    "rint": 30,
    "copysign": 31,
    "and": 40,
    "or": 41,
    "xor": 42,
    "not": 43,
    "shl": 44,
    "shr": 45,
    "eq": 48,
    "ne": 49,
    "lt": 50,
    "le": 51,
    "gt": 52,
    "ge": 53,
    "select": 54,
    "convert": 56,
    "bitcast": 57,
    "round": 58,
    "fold:dot": 64,
    "fold:sum": 65,
    "fold:max": 66,
    "fold:min": 67,
    "fold:isum": 68,
    "fold:any": 69,
    "fold:all": 70,
    "fold:chain": 71,
}

TYPE_NUMBERS: dict[Type, int] = {
    Type.BOOL: 1,
    Type.I32: 2,
    Type.I64: 3,
    Type.U32: 4,
    Type.U64: 5,
    Type.F32: 6,
    Type.F64: 7,
}

DTYPE_NUMBERS: dict[DType, int] = {
    DType.BOOL: 1,
    DType.I8: 2,
    DType.U8: 3,
    DType.I16: 4,
    DType.I32: 5,
    DType.I64: 6,
    DType.U32: 7,
    DType.U64: 8,
    DType.F16: 9,
    DType.BF16: 10,
    DType.F32: 11,
    DType.F64: 12,
}


def encode(program: Program) -> bytes:
    """The canonical bytes; programs that differ only in value numbers have the same."""
    numbers: dict[int, int] = {}
    out = bytearray([VERSION])
    out += _leb(len(program.inputs))
    for port in program.inputs:
        out += _leb(DTYPE_NUMBERS[port.dtype]) + _leb(port.rank)
    out += _leb(program.rank)
    out += _list(DTYPE_NUMBERS[dtype] for dtype in program.dtypes)
    out += _body(program.body, numbers)
    out += _list(numbers[r] for r in program.results)
    return bytes(out)


def digest(program: Program) -> bytes:
    """BLAKE3 (derive_key) of the canonical bytes: 32 bytes."""
    import blake3

    return blake3.blake3(encode(program), derive_key_context=DIGEST_CONTEXT).digest()


def _body(body: tuple[Instr, ...], numbers: dict[int, int]) -> bytes:
    out = bytearray(_leb(len(body)))
    for instr in body:
        out += _leb(OPCODES[instr.op])
        out += _list(numbers[a] for a in instr.args)
        out += _list(TYPE_NUMBERS[t] for t in instr.types)
        out += _list(_immediate(instr.op, value) for value in instr.imm)
        if instr.region is not None:
            out += _region(instr.region, numbers)
        _number(instr.results, numbers)
    return bytes(out)


def _region(region: Block, numbers: dict[int, int]) -> bytes:
    _number(region.params, numbers)
    types = _list(TYPE_NUMBERS[t] for t in region.param_types)
    body = _body(region.body, numbers)
    return types + body + _list(numbers[r] for r in region.results)


def _number(values: tuple[int, ...], numbers: dict[int, int]) -> None:
    for value in values:
        numbers[value] = len(numbers)


def _immediate(op: str, value: int | str) -> int:
    if op in ("convert", "bitcast"):
        return TYPE_NUMBERS[Type(str(value))]
    if op == "round":
        return DTYPE_NUMBERS[DType(str(value))]
    number = int(value)
    if op == "const":
        return number
    return number << 1 if number >= 0 else (-number << 1) - 1


def _list(numbers: Iterable[int]) -> bytes:
    items = list(numbers)
    return _leb(len(items)) + b"".join(_leb(item) for item in items)


def _leb(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
