"""The canonical encoding of element programs: fixed numbers, fixed vectors, no trace of numbering."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ree.element.encode import DTYPE_NUMBERS, OPCODES, TYPE_NUMBERS, digest, encode
from ree.element.program import FOLDS, INSTRUCTIONS, Block, Builder, Instr, Port, Program
from ree.types import DType, Type

VECTORS = json.loads((Path(__file__).parent / "vectors" / "element_programs.json").read_text())


def _scale() -> Program:
    b = Builder([Port(DType.F32, 1)], 1)
    return b.finish([b.load(0, b.index(0)) * 2.5], [DType.F32])


def _matmul() -> Program:
    b = Builder([Port(DType.F32, 2), Port(DType.BF16, 2)], 2)
    i, j = b.indices()
    total = b.fold_dot(b.extent(0, 1), lambda k: (b.load(0, i, k), b.load(1, k, j)))
    return b.finish([total], [DType.F32])


def _everything() -> Program:
    """Nested folds, a chain, load_if, bound, params, conversions, two results."""
    b = Builder([Port(DType.I64, 2), Port(DType.F64, 0)], 2)
    i, j = b.indices()
    row = b.fold_max(b.extent(0, 0), lambda k: b.fold_isum(b.param(1), lambda n: b.load(0, b.bound(k, 7), n) + k))
    picked = b.load_if(i < j, row, 0, i - 1, j)
    x, y = b.chain(b.extent(-1, 1), [b.f64(-0.0), picked], lambda k, x, y: [b.fma(x, x, b.load(1)), y ^ k])
    narrow = b.round(b.convert(x, Type.F32), DType.F16)
    return b.finish([narrow, b.bitcast(y, Type.U64)], [DType.F16, DType.U64])


PROGRAMS: dict[str, Callable[[], Program]] = {"scale": _scale, "matmul": _matmul, "everything": _everything}


def test_every_operation_has_its_own_number() -> None:
    names = set(INSTRUCTIONS) | {f"fold:{kind}" for kind in FOLDS}
    assert set(OPCODES) == names
    assert len(set(OPCODES.values())) == len(OPCODES)
    assert set(TYPE_NUMBERS) == set(Type) and len(set(TYPE_NUMBERS.values())) == len(Type)
    assert set(DTYPE_NUMBERS) == set(DType) and len(set(DTYPE_NUMBERS.values())) == len(DType)


def test_numbers_never_change() -> None:
    known = VECTORS["numbers"]
    assert {name: OPCODES[name] for name in known["opcodes"]} == known["opcodes"]
    assert {name: TYPE_NUMBERS[Type(name)] for name in known["types"]} == known["types"]
    assert {name: DTYPE_NUMBERS[DType(name)] for name in known["dtypes"]} == known["dtypes"]
    assert set(known["opcodes"]) == set(OPCODES), "a new number belongs in the vector file"


@pytest.mark.parametrize("name", PROGRAMS)
def test_vectors(name: str) -> None:
    program = PROGRAMS[name]()
    assert encode(program).hex() == VECTORS["programs"][name]["bytes"]
    assert digest(program).hex() == VECTORS["programs"][name]["digest"]


def _renumber(program: Program, new: Callable[[int], int]) -> Program:
    def block(body: tuple[Instr, ...]) -> tuple[Instr, ...]:
        return tuple(
            replace(
                i,
                args=tuple(map(new, i.args)),
                results=tuple(map(new, i.results)),
                region=i.region
                and Block(
                    tuple(map(new, i.region.params)),
                    i.region.param_types,
                    block(i.region.body),
                    tuple(map(new, i.region.results)),
                ),
            )
            for i in body
        )

    return replace(program, body=block(program.body), results=tuple(map(new, program.results)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_value_numbers_leave_no_trace(name: str) -> None:
    program = PROGRAMS[name]()
    assert encode(_renumber(program, lambda v: 7919 - 3 * v)) == encode(program)


def test_different_programs_differ() -> None:
    program = _scale()
    variants = [encode(build()) for build in PROGRAMS.values()]
    variants.append(encode(replace(program, dtypes=(DType.BF16,))))
    variants.append(encode(replace(program, inputs=(Port(DType.BF16, 1),))))
    for position, instr in enumerate(program.body):
        body = list(program.body)
        body[position] = replace(instr, imm=(3, *instr.imm[1:])) if instr.imm else replace(instr, op="add")
        variants.append(encode(replace(program, body=tuple(body))))
    assert len(set(variants)) == len(variants)
