"""Receipts on disk, in SQLite: those that clients were told of, bounded in number and age.

A receipt is written before its id is told. The database keeps a write-ahead log that is synced with each receipt, so
a process that is killed, or a machine that loses power, leaves a store that opens with all of them.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ree.errors import FormatError, InputError, LimitError
from ree.limits import GENERATION_RECEIPT_BYTES_MAX

APPLICATION_ID = 0x52454552  # "REER"
ID_CHARACTERS_MAX = 128
KEPT_DEFAULT = 100_000
_BUSY_MS = 10_000  # that another process may hold the lock; once that was too long, the next do not wait

# What each version changes, in order; `user_version` says how many of them a database has seen.
_MIGRATIONS = (
    """
    CREATE TABLE receipts (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        made_s INTEGER NOT NULL,
        envelope BLOB NOT NULL
    );
    """,
)


class Store:
    """Keeps the newest `kept` receipts, and none older than `age_s`; for any thread."""

    def __init__(self, path: str | os.PathLike[str], kept: int = KEPT_DEFAULT, age_s: float | None = None) -> None:
        """Open or make a store; ":memory:" keeps nothing after the process.

        InputError: it cannot be opened or written; FormatError: it is damaged, or no store of ours, or of a later
        version.
        """
        if kept < 1 or (age_s is not None and age_s <= 0):
            raise InputError("a store keeps at least one receipt, for longer than no time")
        self._path, self._kept, self._age_s = str(path), kept, age_s
        self._lock = threading.Lock()
        self._busy_ms = _BUSY_MS
        with self._naming():
            if self._path != ":memory:":
                Path(self._path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # receipts list the tokens that clients got: for the owner's eyes
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._database = sqlite3.connect(self._path, timeout=_BUSY_MS / 1000, check_same_thread=False)
        try:
            with self._naming():
                self._prepare()
                self._file = self._on_disk()
        except BaseException:
            self._database.close()
            raise

    def put(self, id: str, envelope: bytes) -> None:
        """Keep a receipt; one that is there already stays as it is.

        LimitError: too large; InputError: not written, or written to a file that is not at its place any more.
        """
        if not 0 < len(id) <= ID_CHARACTERS_MAX or len(envelope) > GENERATION_RECEIPT_BYTES_MAX:
            raise LimitError(f"a receipt of {len(envelope)} bytes with an id of {len(id)} characters cannot be kept")
        now = int(time.time())
        with self._lock, self._naming(), self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO receipts (id, made_s, envelope) VALUES (?, ?, ?)", (id, now, envelope)
            )
            self._prune(now)
            if self._on_disk() != self._file:
                raise InputError(f"{self._path}: the store was moved or removed")

    def get(self, id: str) -> bytes | None:
        """The envelope of a receipt, None if it is not here (any more)."""
        oldest_s = 0 if self._age_s is None else time.time() - self._age_s
        with self._lock, self._naming():
            row = self._database.execute(
                "SELECT envelope FROM receipts WHERE id = ? AND made_s >= ?", (id, oldest_s)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def count(self) -> int:
        """How many receipts are kept."""
        with self._lock, self._naming():
            return int(self._database.execute("SELECT count(*) FROM receipts").fetchone()[0])

    def close(self) -> None:
        """Nothing can be kept any more."""
        with self._lock:
            self._database.close()

    # -- inside ---------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        database = self._database
        database.isolation_level = None  # transactions are written out below
        version, application, tables = (
            database.execute(question).fetchone()[0]
            for question in ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
        )
        if application != APPLICATION_ID and (application or version or tables):
            raise FormatError(f"{self._path}: this database is no store of receipts")
        if version > len(_MIGRATIONS):
            raise FormatError(f"{self._path}: the store is of version {version}; this ree knows {len(_MIGRATIONS)}")
        database.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        faults = [row[0] for row in database.execute("PRAGMA integrity_check(1)")]
        if faults != ["ok"]:
            raise FormatError(f"{self._path}: the store is damaged: {' '.join(str(faults[0]).split())[:120]}")
        with self._transaction():
            done = database.execute("PRAGMA user_version").fetchone()[0]  # another process may have been quicker
            for number, change in enumerate(_MIGRATIONS[done:], start=done + 1):
                for statement in filter(str.strip, change.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {number}")
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._prune(int(time.time()))

    def _prune(self, now_s: int) -> None:
        last = self._database.execute("SELECT max(number) FROM receipts").fetchone()[0]
        if last is not None:
            self._database.execute("DELETE FROM receipts WHERE number <= ?", (last - self._kept,))
        if self._age_s is not None:
            self._database.execute("DELETE FROM receipts WHERE made_s < ?", (now_s - self._age_s,))

    def _on_disk(self) -> tuple[int, int] | None:
        """Which file is at the store's place now."""
        if self._path == ":memory:":
            return None
        found = os.stat(self._path)
        return found.st_dev, found.st_ino

    def _wait_for_lock(self, busy_ms: int) -> None:
        if busy_ms != self._busy_ms:
            self._database.execute(f"PRAGMA busy_timeout = {busy_ms}")
            self._busy_ms = busy_ms

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            self._wait_for_lock(0)  # whoever is next should not wait as long again
            raise
        self._wait_for_lock(_BUSY_MS)
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite ends some by itself
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors of SQLite and of files, as ours."""
        try:
            yield
        except sqlite3.OperationalError as error:  # cannot be opened, locked, disk full
            raise InputError(f"{self._path}: {error}") from None
        except sqlite3.Error as error:  # malformed, not a database, or closed
            raise FormatError(f"{self._path}: the store is damaged: {error}") from None
        except OSError as error:
            raise InputError(f"{error.filename or self._path}: {error.strerror or error}") from None
