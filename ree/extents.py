"""Where the tensors of model files lie: safetensors files and the stored members of .pt2 files.

Only headers are read. What is found is a guess until its bytes have been compared.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ree import nesting
from ree.limits import HEADER_BYTES_MAX

_ZIP_HEADER_BYTES = 30  # of a member, before its name and extra field, whose lengths end it


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a file; dtype: its code in safetensors files, "" where it is not known; shape: None where it is not."""

    offset: int
    size_bytes: int
    dtype: str = ""
    shape: tuple[int, ...] | None = None


def extents(path: Path) -> Iterator[Extent]:
    """The tensors of a file; none if it is of no known kind. OSError, ValueError or zipfile.BadZipFile if malformed."""
    if path.suffix == ".safetensors":
        yield from tensors(path)[1].values()
    elif path.suffix == ".pt2":
        yield from _members(path)


def tensors(path: Path) -> tuple[dict[str, str], dict[str, Extent]]:
    """Metadata and tensors by name of a safetensors file; OSError or ValueError if it is none."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(HEADER_BYTES_MAX, size_bytes - 8):
            raise ValueError(f"{path} is no safetensors file")
        header: Any = nesting.loads(file.read(length))
    found = {}
    try:
        metadata = header.pop("__metadata__", {})
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= size_bytes - 8 - length:
                raise ValueError(f"{path}: tensor {name!r} lies outside of the file")
            found[name] = Extent(8 + length + start, end - start, entry["dtype"], tuple(entry["shape"]))
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} has a malformed header") from None
    return metadata, found


def _members(path: Path) -> Iterator[Extent]:
    """Members of a zip archive that lie in it as they are."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.compress_type == zipfile.ZIP_STORED:
                yield Extent(_data_offset(file, member), member.file_size)


def _data_offset(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    file.seek(member.header_offset)
    header = file.read(_ZIP_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack("<HH", header[-4:]) if len(header) == _ZIP_HEADER_BYTES else (0, 0)
    return member.header_offset + _ZIP_HEADER_BYTES + name_bytes + extra_bytes
