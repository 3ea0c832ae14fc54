"""JSON without latitude: no duplicate keys, no NaN, no fractions; one canonical text for each value.

For small texts from strangers. Every fault is a VerificationError of one line.
"""

from __future__ import annotations

import json
import reprlib
from typing import Any, NoReturn

from ree.errors import VerificationError

INTEGER_DIGITS_MAX = 20
OPENINGS_MAX = 512  # brackets and braces, those in strings among them: bounds the depth whatever Python's own limit is


def canonical(value: Any) -> bytes:
    """Sorted keys, no spaces, ASCII; for the values that receipts hold this is RFC 8785."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse(text: bytes | str, what: str) -> Any:
    """The value of a JSON text; VerificationError, which names `what`, on anything that is not strict."""
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        if decoded.count("[") + decoded.count("{") > OPENINGS_MAX:
            raise _Refused("too many brackets")
        return json.loads(
            decoded, object_pairs_hook=_object, parse_int=_integer, parse_float=_refuse, parse_constant=_refuse
        )
    except (ValueError, RecursionError) as error:  # _Refused among them; the caller's own stack may be deep
        reason = str(error) if isinstance(error, _Refused) else "not JSON"
        raise VerificationError(f"{what} is malformed: {reason}") from None


def members(value: Any, required: set[str], optional: set[str], what: str) -> dict[str, Any]:
    """`value` as an object that has all `required` members and none beyond the `optional` ones."""
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise VerificationError(f"{what} is malformed: an object is expected")
    missing, unknown = required - value.keys(), value.keys() - required - optional
    if missing:
        raise VerificationError(f"{what} is malformed: {min(missing)!r} is missing")
    if unknown:
        raise VerificationError(f"{what} is malformed: {reprlib.repr(min(unknown))} is unknown")
    return value


class _Refused(ValueError):
    """JSON that is well-formed, but not strict."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("a key stands twice")
    return found


def _integer(text: str) -> int:
    if len(text) > INTEGER_DIGITS_MAX:
        raise _Refused(f"a number has more than {INTEGER_DIGITS_MAX} digits")
    return int(text)


def _refuse(text: str) -> NoReturn:
    raise _Refused(f"{text[:INTEGER_DIGITS_MAX]} is no integer")
