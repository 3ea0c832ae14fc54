"""Kernel texts as loaded functions: from memory, from disk, or from the device's compiler, in this order."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from ree import cache
from ree.errors import DeviceError, LimitError
from ree_kernels import KernelError
from ree_kernels.cuda import SOURCES, Device, DeviceMemoryError

_MAGIC = b"REECUDA1"
_MODULES_MAX = 2048  # that are kept loaded, the last used
_COMPILERS_MAX = 8  # threads; a compilation takes some tenths of a second


class Wanted(NamedTuple):
    """A kernel: the text of its module, its name, and the dynamic shared memory that it will ask for."""

    text: str
    name: str
    shared_bytes: int


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """What a device raises, as ree's own errors: LimitError for want of memory, else DeviceError."""
    try:
        yield
    except DeviceMemoryError as error:
        raise LimitError(_line(error)) from None
    except KernelError as error:
        raise DeviceError(_line(error)) from None


def _line(error: KernelError) -> str:
    return " ".join(str(error).split())


class _Loaded:
    """The modules of one device."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.modules: OrderedDict[bytes, Any] = OrderedDict()


_loaded: weakref.WeakKeyDictionary[Device, _Loaded] = weakref.WeakKeyDictionary()


def _renew_locks() -> None:
    """A forked child has no device: what is loaded is its parent's."""
    _loaded.clear()


os.register_at_fork(after_in_child=_renew_locks)


def functions(device: Device, wanted: Sequence[Wanted]) -> list[Any]:
    """The kernels on a device; DeviceError if a text does not compile or an image does not load."""
    loaded = _loaded.setdefault(device, _Loaded())
    with loaded.lock, errors():
        keys = [_key(device, w.text) for w in wanted]
        missing = {key: w.text for key, w in zip(keys, wanted, strict=True) if key not in loaded.modules}
        for key, image in _images(device, missing).items():
            loaded.modules[key] = device.load(image)
        for key in keys:
            loaded.modules.move_to_end(key)
        found = [loaded.modules[key].function(w.name, w.shared_bytes) for key, w in zip(keys, wanted, strict=True)]
        while len(loaded.modules) > _MODULES_MAX:  # a plan that uses one keeps it through its functions
            loaded.modules.popitem(last=False)
        return found


def _images(device: Device, texts: dict[bytes, str]) -> dict[bytes, bytes]:
    images: dict[bytes, bytes] = {}
    for key in texts:
        found = cache.read(_path(key), _MAGIC, key)
        if found is not None:
            images[key] = found
    rest = [key for key in texts if key not in images]
    if rest:
        with ThreadPoolExecutor(min(_COMPILERS_MAX, len(rest), os.cpu_count() or 1)) as pool:
            made = pool.map(lambda key: device.compile(texts[key]), rest)
            for key, image in zip(rest, made, strict=True):
                images[key] = image
                cache.write(_path(key), _MAGIC, key, image)
    return images


def _key(device: Device, text: str) -> bytes:
    """Everything that an image depends on, hashed."""
    where = f"{device.target}\0{device.compiler}\0{_headers()}\0"
    return blake3(where.encode() + text.encode(), derive_key_context="ree v1 device image cache").digest()


@functools.cache
def _headers() -> str:
    """The digest of all headers that a text may include."""
    return blake3(b"\0".join(path.read_bytes() for path in sorted(SOURCES.glob("*.cuh")))).hexdigest()


def _path(key: bytes) -> Path:
    return cache.directory() / f"{key.hex()}.image"
