"""JSON from outside, its depth bounded whatever recursion limit some library has set for the process."""

from __future__ import annotations

import json
import re
from typing import Any

from ree.limits import NESTING_MAX

_DEPTH_MAX = 8 * NESTING_MAX
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # an unclosed one to the end: one pass over hostile text
_OTHERS = re.compile(r"[^][{}]+")


def loads(text: str | bytes) -> Any:
    """The value of a JSON text; RecursionError if it is nested too deeply, else errors as json.loads gives them."""
    decoded = text if isinstance(text, str) else bytes(text).decode("utf-8")
    depth = deepest = 0
    for bracket in _OTHERS.sub("", _STRINGS.sub("", decoded)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > _DEPTH_MAX:
        raise RecursionError("JSON is nested too deeply")
    return json.loads(decoded)
