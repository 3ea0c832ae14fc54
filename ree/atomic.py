"""Files that take the place of others only once they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".part"


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` at the end of the block; if that raises, nothing is left of it.

    mode: of the new file, less the user's mask. OSError: it cannot be written, or is a folder or a
    device (/dev/null), in whose place it would put a file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, f"it is a {'folder' if path.is_dir() else 'device'}", str(path))
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}{SUFFIX}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
