"""Holds an element program to the grammar: every value defined once and before it is used, every type as ruled."""

from __future__ import annotations

from ree.element.grammar import FOLDS, INSTRUCTIONS, Instr, Program
from ree.errors import GraphError
from ree.types import Type


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
