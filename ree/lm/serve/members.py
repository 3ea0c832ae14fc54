"""JSON objects from strangers: each member is taken with its type, and what is left over is unknown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from ree import nesting
from ree.lm.serve.refusal import invalid

INTEGER_MAX = 1 << 64
SHOWN_MAX = 40


def document(body: bytes) -> dict[str, Any]:
    """The object that a body holds. ApiError 400: it holds none."""
    try:
        nesting.loads(body)  # so that the next line cannot recurse too deeply
        found = json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError:  # not JSON, not UTF-8, or a number of thousands of digits
        raise invalid("the body is not JSON in UTF-8") from None
    if type(found) is not dict:
        raise invalid("the body is not a JSON object")
    return found


class Members:
    """An object whose members are taken one by one; null counts as absent. Every fault is an ApiError 400."""

    def __init__(self, value: Any, where: str = "") -> None:
        """where: the path of the object in the request, with a dot at its end."""
        if type(value) is not dict:
            raise invalid(f"'{where.rstrip('.')}' must be an object, not {shown(value)}", where.rstrip("."))
        self._left = dict(value)
        self._where = where

    def take(self, name: str) -> Any:
        """A member's value, None if it is absent."""
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        """A text that can be written as UTF-8."""
        value = self.take(name)
        if value is not None and not is_text(value):
            raise self.wrong(name, "a text", value)
        return value

    def boolean(self, name: str) -> bool | None:
        value = self.take(name)
        if value is not None and type(value) is not bool:
            raise self.wrong(name, "true or false", value)
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.take(name)
        if value is not None and (type(value) is not int or not low <= value <= high):
            raise self.wrong(name, f"an integer from {low} to {high}", value)
        return value

    def number(self, name: str) -> float | int | None:
        """A finite number."""
        value = self.take(name)
        if value is not None and not is_number(value):
            raise self.wrong(name, "a number", value)
        return value

    def only(self, name: str, allowed: Iterable[Any], why: str) -> None:
        """A member that may have these values alone, beside null."""
        value = self.take(name)
        if value is not None and _text_of(value) not in {_text_of(a) for a in allowed}:
            raise invalid(f"'{self._where}{name}': {why}", self._where + name, "unsupported_parameter")

    def close(self, ignored: Iterable[str] = ()) -> None:
        """Nothing but `ignored` may be left."""
        unknown = sorted(self._left.keys() - set(ignored))
        if unknown:
            name = self._where + shown(unknown[0])[1:-1]
            raise invalid(f"'{name}' is not a parameter that is known here", name, "unknown_parameter")

    def wrong(self, name: str, expected: str, value: Any) -> Exception:
        """The error for a member of a wrong type."""
        path = self._where + name
        return invalid(f"'{path}' must be {expected}, not {shown(value)}", path, "invalid_type")


def is_text(value: Any) -> bool:
    """True for a text without half surrogate pairs, which JSON can write and UTF-8 cannot."""
    return type(value) is str and not any("\ud800" <= c <= "\udfff" for c in value)


def is_number(value: Any) -> bool:
    """True for a finite number that is no larger than any parameter can be."""
    if type(value) is int:
        return abs(value) <= INTEGER_MAX
    return type(value) is float and math.isfinite(value)


def shown(value: Any) -> str:
    """A value in an error message: short, and in ASCII."""
    if type(value) in (dict, list):
        return "an object" if type(value) is dict else "a list"
    return ascii(value[:SHOWN_MAX] if type(value) is str else value)[: 2 * SHOWN_MAX]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """ApiError 400: a name stands twice, and readers differ in which value they take."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise invalid(f"the member {shown(name)} stands twice")
        found[name] = value
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _text_of(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
