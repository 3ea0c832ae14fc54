"""Nested input and output structures (tuples, lists, dicts, leaves) as canonical JSON.

A structure is what torch's pytrees are, without torch: `flatten` takes arguments apart
against it, `unflatten` builds results. A leaf is "*" (a tensor) or {"value": v} (a number,
string, bool or None that the program was compiled for).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ree.errors import FormatError, InputError
from ree.limits import NESTING_MAX

TENSOR = "*"
Structure = Any  # "*" | {"value": v} | {"tuple": [...]} | {"list": [...]} | {"dict": [[key, s], ...]}

_CONSTANTS = (bool, int, float, str, type(None))


class Outputs(dict[str, Any]):
    """A dict of outputs whose items are attributes too, as the model's own output class has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def describe(value: Any, is_tensor: Any) -> Structure:
    """The structure of a nested value; `is_tensor` says which leaves are tensors."""
    if is_tensor(value):
        return TENSOR
    if isinstance(value, _CONSTANTS):
        return {"value": value}
    if isinstance(value, dict):
        return {"dict": [[str(key), describe(item, is_tensor)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [describe(item, is_tensor) for item in value]}
    raise InputError(f"{type(value).__name__} is neither a tensor nor a number, tuple, list or dict of them")


def flatten(structure: Structure, value: Any, where: str = "inputs") -> Iterator[Any]:
    """The tensors of `value` in order; InputError where it does not fit the structure."""
    if structure == TENSOR:
        yield value
        return
    ((kind, items),) = structure.items()
    if kind == "value":
        if type(value) is not type(items) or value != items:
            raise InputError(f"{where}: the program was compiled for {items!r}, not {value!r}")
    elif kind == "dict":
        if not isinstance(value, dict) or set(value) != {key for key, _ in items}:
            raise InputError(f"{where}: expected a dict with keys {[key for key, _ in items]}")
        for key, item in items:
            yield from flatten(item, value[key], f"{where}[{key!r}]")
    else:
        if not isinstance(value, tuple | list) or len(value) != len(items):
            found = f"{len(value)}" if isinstance(value, tuple | list) else type(value).__name__
            raise InputError(f"{where}: expected {len(items)} items, found {found}")
        for position, (item, part) in enumerate(zip(items, value, strict=True)):
            yield from flatten(item, part, f"{where}[{position}]")


def unflatten(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The nested value with these tensors as leaves."""
    remaining = iter(leaves)

    def build(part: Structure) -> Any:
        if part == TENSOR:
            return next(remaining)
        ((kind, items),) = part.items()
        if kind == "value":
            return items
        if kind == "dict":
            return Outputs((key, build(item)) for key, item in items)
        built = [build(item) for item in items]
        return tuple(built) if kind == "tuple" else built

    return build(structure)


def check(structure: Structure, depth: int = 0) -> int:
    """Number of tensor leaves of a structure read from a file; FormatError if it is none."""
    if depth > NESTING_MAX:
        raise FormatError("a structure is nested too deeply")
    if structure == TENSOR:
        return 1
    if not isinstance(structure, dict) or len(structure) != 1:
        raise FormatError("a structure is a tensor, a constant, a tuple, a list or a dict")
    ((kind, items),) = structure.items()
    if kind == "value" and isinstance(items, _CONSTANTS):
        return 0
    if kind in ("tuple", "list") and isinstance(items, list):
        return sum(check(item, depth + 1) for item in items)
    if kind == "dict" and isinstance(items, list):
        if any(not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str) for item in items):
            raise FormatError("a dict structure is a list of [key, structure]")
        return sum(check(item[1], depth + 1) for item in items)
    raise FormatError(f"unknown structure {kind!r}")
