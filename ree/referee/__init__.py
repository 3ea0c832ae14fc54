"""Disputes: two claims about one run, or one claim against itself, down to a step that a referee redoes."""

from __future__ import annotations

import importlib
from typing import Any

# what those need who play on different machines, and where it stands
_PUBLIC = {
    "Referee": "judge",
    "Game": "game",
    "Rules": "game",
    "replay": "game",
    "Position": "players",
    "challenge": "players",
}


def __getattr__(name: str) -> Any:
    """Imported when it is used: `import ree` loads none of it."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"ree.referee.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
