"""Writes docs/OPERATORS.md from the definitions: `python -m tools.operators [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from ree.element.program import FOLDS, INSTRUCTIONS
from ree.ops.spec import lowerings, operators

TARGET = Path(__file__).parent.parent / "docs" / "OPERATORS.md"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def text() -> str:
    instructions = [
        (f"`{name}`", "any" if rule.arity < 0 else str(rule.arity), rule.result, rule.meaning)
        for name, rule in INSTRUCTIONS.items()
    ]
    found = operators()
    parts = [
        "# Operators",
        "Written by `python -m tools.operators` from the definitions; do not edit. Meaning and order: [SPEC](SPEC.md).",
        "## Instructions of element programs",
        table(("instruction", "operands", "result", "meaning"), instructions),
        "## Folds",
        table(("fold", "meaning"), [(f"`{kind}`", meaning) for kind, meaning in FOLDS.items()]),
        f"## Operators ({len(found)})",
        table(("operator", "kind", "meaning"), [(f"`{o.name}`", o.kind, o.doc) for o in found.values()]),
        f"## ATen operators that lower to them ({len(lowerings())})",
        " ".join(f"`{target}`" for target in lowerings()),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text() == text() else "docs/OPERATORS.md is old: run python -m tools.operators")
    TARGET.write_text(text())
