"""The weights of a model folder: where each tensor lies in its safetensors files, and tensors over read-only maps.

Format: a file is u64 little-endian header length, JSON header, data (safetensors' README, "Format"); several
files have an index, model.safetensors.index.json, whose `weight_map` says which file holds which tensor.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ree import extents, nesting
from ree.errors import FormatError, InputError, LimitError, UnsupportedError
from ree.extents import Extent
from ree.limits import NAME_BYTES_MAX, NODES_MAX, RANK_MAX, TENSOR_BYTES_MAX
from ree.types import DType

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_BYTES_MAX = 64 << 20
FILES_MAX = 4096
# what safetensors headers call them: torch's name, bytes of an element
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "BOOL": ("bool", 1), "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip
_ARRAYS = {
    "float64": DType.F64, "float32": DType.F32, "float16": DType.F16, "bfloat16": DType.BF16, "int64": DType.I64,
    "int32": DType.I32, "int16": DType.I16, "int8": DType.I8, "uint8": DType.U8, "bool": DType.BOOL,
}  # fmt: skip
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies; dtype: torch's name of it; offset: of its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size_bytes: int


class Shards(Mapping[str, Place]):
    """The tensors of a model folder by name, each checked to lie within its file.

    A file must not be changed or shortened while tensors of it are in use.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = dict(sorted(places.items()))
        self._maps: dict[Path, mmap.mmap] = {}
        self._mapped: dict[Path, torch.Tensor] = {}

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Read the headers. InputError if a file is missing, FormatError or UnsupportedError if one is not sound."""
        if (folder / SINGLE).is_file():
            return cls(_places(folder / SINGLE))
        if (folder / INDEX).is_file():
            return cls(_indexed(folder))
        pickled = next((p for p in sorted(folder.iterdir()) if p.suffix in _PICKLED), None)
        if pickled is not None:
            raise InputError(
                f"{folder}: the weights are pickled ({pickled.name}), and reading those could run code; "
                f"save the model as safetensors"
            )
        raise InputError(f"{folder}: no {SINGLE} or {INDEX}")

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def size_bytes(self) -> int:
        """Of all tensors together."""
        return sum(place.size_bytes for place in self._places.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors, by name."""
        return tuple(sorted({place.path for place in self._places.values()}))

    def array(self, name: str) -> tuple[np.ndarray, DType]:
        """The tensor as an array over the map of its file (bf16 as uint16), and its dtype; as `tensor`, without torch.

        UnsupportedError if it has a dtype that ree does not know.
        """
        place = self._place(name)
        dtype = _ARRAYS.get(place.dtype)
        if dtype is None:
            raise UnsupportedError(f"tensor {name!r} has dtype {place.dtype}")
        if place.size_bytes == 0:
            return np.empty(place.shape, dtype.numpy), dtype
        data = np.frombuffer(self._bytes(place.path), np.uint8)[place.offset : place.offset + place.size_bytes]
        if data.size != place.size_bytes:
            raise FormatError(f"{place.path}: the file has been shortened")
        if place.offset % dtype.size_bytes:
            data = data.copy()
        return data.view(dtype.numpy).reshape(place.shape), dtype

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor over the map of its file, which it keeps alive; it must not be written to.

        Nothing is copied, but where a tensor does not start at a multiple of its element's size. InputError if there
        is none of this name, FormatError if the file has become shorter.
        """
        import torch

        place = self._place(name)
        dtype = getattr(torch, place.dtype)
        if place.size_bytes == 0:
            return torch.empty(place.shape, dtype=dtype)
        mapped = self._map(place.path)
        data = mapped[place.offset : place.offset + place.size_bytes]
        if data.numel() != place.size_bytes:
            raise FormatError(f"{place.path}: the file has been shortened")
        if place.offset % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(place.shape)

    def _place(self, name: str) -> Place:
        place = self._places.get(name)
        if place is None:
            raise InputError(f"the model folder holds no tensor {name!r}")
        return place

    def _bytes(self, path: Path) -> mmap.mmap:
        """A map of a file; a write to it would end the process."""
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: an empty file
                raise FormatError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        return self._maps[path]

    def _map(self, path: Path) -> torch.Tensor:
        """The bytes of a file as a tensor over its map."""
        import torch

        if path not in self._mapped:
            mapping = self._bytes(path)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
                self._mapped[path] = torch.frombuffer(mapping, dtype=torch.uint8)
        return self._mapped[path]


def _indexed(folder: Path) -> dict[str, Place]:
    path = folder / INDEX
    names: dict[str, list[str]] = {}
    for name, file in _weight_map(path).items():
        names.setdefault(file, []).append(name)
    if len(names) > FILES_MAX:
        raise LimitError(f"{path}: more than {FILES_MAX} files")
    found: dict[str, Place] = {}
    for file, wanted in sorted(names.items()):
        if not (folder / file).is_file():
            raise InputError(f"{folder}: {file}, which {INDEX} names, is missing")
        places = _places(folder / file)
        for name in wanted:
            if name not in places:
                raise FormatError(f"{folder / file}: no tensor {name!r}, which {INDEX} says it holds")
            found[name] = places[name]
    return found


def _weight_map(path: Path) -> dict[str, str]:
    """File by tensor; every file is a plain name, so that an index cannot point out of its folder."""
    if path.stat().st_size > INDEX_BYTES_MAX:
        raise LimitError(f"{path}: larger than {INDEX_BYTES_MAX} bytes")
    try:
        index = nesting.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise FormatError(f"{path}: not JSON") from None
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise FormatError(f"{path}: no weight_map")
    for name, file in found.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or file != Path(file).name or "\0" in file:
            raise FormatError(f"{path}: tensor {name[:NAME_BYTES_MAX]!r} is in no safetensors file of this folder")
    return found


def _places(path: Path) -> dict[str, Place]:
    try:
        _, tensors = extents.tensors(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except RecursionError:
        raise FormatError(f"{path}: the header is nested too deeply") from None
    except (ValueError, TypeError, OverflowError) as error:
        text = str(error)
        raise FormatError(text if text.startswith(str(path)) else f"{path}: the header is malformed") from None
    if len(tensors) > NODES_MAX:
        raise LimitError(f"{path}: more than {NODES_MAX} tensors")
    return {name: _place(path, name, extent) for name, extent in tensors.items()}


def _place(path: Path, name: str, extent: Extent) -> Place:
    """A tensor whose bytes are as many as its dtype and shape say; that they lie in the file, `extents` has checked."""
    if len(name) > NAME_BYTES_MAX:
        raise FormatError(f"{path}: the name of a tensor has {len(name)} characters")
    shape: Any = extent.shape
    known = isinstance(extent.dtype, str) and extent.dtype in DTYPES
    if not known:
        raise UnsupportedError(f"{path}: tensor {name!r} has dtype {str(extent.dtype)[:40]}")
    dtype, item_bytes = DTYPES[extent.dtype]
    if len(shape) > RANK_MAX or not all(type(n) is int and 0 <= n <= TENSOR_BYTES_MAX for n in shape):
        raise FormatError(f"{path}: tensor {name!r} has a malformed shape")
    size_bytes = item_bytes
    for n in shape:
        size_bytes *= n
    if type(extent.offset) is not int or extent.size_bytes != size_bytes or size_bytes > TENSOR_BYTES_MAX:
        raise FormatError(f"{path}: the bytes of tensor {name!r} do not fit its dtype and shape")
    return Place(dtype, shape, path, extent.offset, size_bytes)
