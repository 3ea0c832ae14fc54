"""Structured logs: one JSON object a line. Nothing that a client wrote or got is in them unless that was asked for."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

PLACES_MAX = 4  # innermost frames that are told of an error


class Log:
    """Writes lines, from any thread. prompts: whether texts of clients may stand in them."""

    def __init__(self, file: TextIO | None = None, prompts: bool = False) -> None:
        self._file = file or sys.stderr
        self.prompts = prompts
        self._lock = threading.Lock()

    def line(self, event: str, **members: Any) -> None:
        """One line; members that are None are left out. A log that cannot be written stops nothing."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        given = {name: value for name, value in members.items() if value is not None}
        text = json.dumps({"time": now.replace("+00:00", "Z"), "event": event, **given}, default=str)
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._file.write(text + "\n")
            self._file.flush()

    def fault(self, where: str, error: BaseException, **members: Any) -> None:
        """Something that never should have failed: the kind of error and its place, its text only with `prompts`."""
        frames = traceback.extract_tb(error.__traceback__)[-PLACES_MAX:]
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
        text = str(error) if self.prompts else None
        self.line("fault", where=where, kind=type(error).__name__, places=places, text=text, **members)


class Forward(logging.Handler):
    """Messages of the HTTP library, as lines of ours; without tracebacks, which may quote what a client sent."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.line("http", level=record.levelname.lower(), message=record.getMessage().strip())
