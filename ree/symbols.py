"""Names of a captured program's dynamic dimensions: the user's own, or made of an input's name and an axis.

torch.export calls them s43 and the like. `torch.export.Dim("batch")` is called batch again where torch
still knows the name (a .pt2 file does not hold it); any other dimension, Dim.AUTO among them, is called
INPUT_AXIS, as in x_0. Every name is an identifier, and no two are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def names(inputs: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """torch's symbols in the shapes of these inputs (name, fake tensor), and what they are called instead."""
    extents = [
        (f"{name}_{axis}", extent.node)
        for name, tensor in inputs
        for axis, extent in enumerate(tensor.shape)
        if not isinstance(extent, int)
    ]
    given: dict[str, str] = {}
    for environment in {id(node.shape_env): node.shape_env for _, node in extents}.values():
        for symbol, name in _given(environment):
            given.setdefault(symbol, name)
    occurring = list(dict.fromkeys(str(s) for _, node in extents for s in _symbols(node.expr)))
    found: dict[str, str] = {}
    for symbol in occurring:
        if symbol in given:
            found[symbol] = _unused(given[symbol], found)
    for place, node in extents:
        for symbol in map(str, _symbols(node.expr)):
            # the extent is an expression, 2*x_0_base, where torch knows more of it than that it varies
            wanted = place if node.expr.is_Symbol else f"{place}_base"
            found.setdefault(symbol, _unused(wanted, found))
    return found


def _given(environment: Any) -> Iterator[tuple[str, str]]:
    """(torch's symbol, the user's name for it), in the order of the inputs."""
    known = getattr(environment, "source_name_to_debug_name", {})
    for symbol, sources in getattr(environment, "var_to_sources", {}).items():
        for source in sources:
            where = source.name if isinstance(source.name, str) else source.name()
            name = known.get(where, where)  # the root of 2*batch has no place but its name
            if name.isidentifier():
                yield str(environment.replace(symbol)), name


def _symbols(expression: Any) -> list[Any]:
    return sorted(expression.free_symbols, key=str)


def _unused(name: str, found: dict[str, str]) -> str:
    """The name, or the first of name_2, name_3, ... that no symbol has."""
    taken = set(found.values())
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
