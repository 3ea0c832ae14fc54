"""Element programs: the language in which every operator is defined.

An element program says how ONE output element follows from an operator's inputs: a typed
SSA list of instructions over the element's coordinates, with loads from the inputs and
folds (reductions) whose order is part of their meaning. The grammar is in grammar.py, what
holds a program to it in check.py, what builds and inlines programs in builder.py; all of it
is imported from here.
"""

from __future__ import annotations

from ree.element.builder import Builder, Operand, Value, emit, prune
from ree.element.check import check
from ree.element.grammar import (
    DOT_CHUNK,
    FOLDS,
    INSTRUCTIONS,
    OUT,
    SUM_LANES,
    Block,
    Instr,
    Port,
    Program,
    Rule,
    const_bits,
    const_value,
    format_program,
    neutral_bits,
    walk,
)

__all__ = [
    "DOT_CHUNK",
    "FOLDS",
    "INSTRUCTIONS",
    "OUT",
    "SUM_LANES",
    "Block",
    "Builder",
    "Instr",
    "Operand",
    "Port",
    "Program",
    "Rule",
    "Value",
    "check",
    "const_bits",
    "const_value",
    "emit",
    "format_program",
    "neutral_bits",
    "prune",
    "walk",
]
