"""The cache on disk: entries that are trusted only as far as their own digests go.

An entry is a file: what wrote it, its key, its length, its content, and BLAKE3 over all of that. One that is
truncated, altered, renamed or another's is as good as none, and a cache that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from blake3 import blake3

from ree import atomic

_DIGEST_BYTES = 32
_LENGTH_BYTES = 8
_THREADED_BYTES_MIN = 1 << 20
_ABANDONED_S = 3600  # an unfinished file of this age has no writer any more


def directory() -> Path:
    """REE_CACHE, or `ree` in the user's cache directory."""
    own = os.environ.get("REE_CACHE", "")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "ree"


def read(path: Path, magic: bytes, key: bytes) -> bytes | None:
    """The content stored under a key; None if there is none, or the file is not what was written."""
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    head = len(magic) + len(key) + _LENGTH_BYTES
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(data) < head + _DIGEST_BYTES or _digest(body) != digest:
        return None
    length = int.from_bytes(body[head - _LENGTH_BYTES : head], "little")
    if body[: head - _LENGTH_BYTES] != magic + key or len(body) != head + length:
        return None
    return bytes(body[head:])


def write(path: Path, magic: bytes, key: bytes, content: bytes) -> bool:
    """Store content under a key, atomically; whether it could be."""
    body = magic + key + len(content).to_bytes(_LENGTH_BYTES, "little") + content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path, mode=0o600) as file:
            file.write(body)
            file.write(_digest(body))
    except OSError:
        return False
    return True


def _digest(data: bytes | memoryview) -> bytes:
    threads = blake3.AUTO if len(data) > _THREADED_BYTES_MIN else 1
    found: bytes = blake3(data, max_threads=threads).digest()
    return found


def mark_used(path: Path) -> None:
    """Note that an entry was of use: `trim` takes those first that were not for the longest time."""
    with contextlib.suppress(OSError):
        os.utime(path)


def trim(folder: Path, bytes_max: int) -> None:
    """Remove the entries of a folder that were unused for the longest time, until all are at most so many bytes."""
    entries: list[tuple[int, int, Path]] = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # another process may remove it meanwhile
                status = path.stat()
                if path.suffix == atomic.SUFFIX and status.st_mtime < time.time() - _ABANDONED_S:
                    path.unlink()
                elif path.suffix != atomic.SUFFIX:
                    entries.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= bytes_max:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
