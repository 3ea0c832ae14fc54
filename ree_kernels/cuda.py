"""The second device: what runs CUDA C, and how its kernels are asked for.

`device()` is a GPU through its driver (ree_kernels/cuda_driver.py), unless another one was put in its place with `use`:
tests run the same texts on the CPU. Kernel texts lie in ree_kernels/cuda/, ree.cuh being their prelude.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ree_kernels import KernelError

SOURCES = Path(__file__).resolve().parent / "cuda"


class DeviceMemoryError(KernelError):
    """The device has no memory for what was asked."""


class Launch(NamedTuple):
    """One kernel over a grid; args: the bytes of its argument struct, as uint64."""

    function: Any
    grid: tuple[int, int, int]
    block: int
    shared_bytes: int
    args: np.ndarray


class Memory(Protocol):
    """Device memory, 256-byte aligned; it goes back when nothing refers to it any more."""

    address: int
    n_bytes: int


class Replay(Protocol):
    """Launches that were recorded, to be run again as one."""

    def run(self) -> None: ...


class Module(Protocol):
    """A loaded image."""

    def function(self, name: str, shared_bytes: int) -> Any:
        """A kernel by its name, ready for so much dynamic shared memory; for `Launch`."""
        ...


class Device(Protocol):
    """What runs kernels. All methods keep one order: that in which they are called (one stream).

    name: for people; target, compiler: what an image depends on besides its text; multiprocessors: how many;
    shared_bytes_max: dynamic shared memory that a block can have; capability: as CUDA numbers them, (9, 0);
    memory_bytes: of the whole device; slow_doubles: f64 takes more than four times the time of f32.
    Every method raises KernelError (DeviceMemoryError).
    """

    name: str
    target: str
    compiler: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes_max: int
    memory_bytes: int
    slow_doubles: bool

    def compile(self, text: str) -> bytes:
        """The image of a module's text."""
        ...

    def load(self, image: bytes) -> Module: ...

    def allocate(self, n_bytes: int) -> Memory: ...

    def write(self, address: int, source: int, n_bytes: int) -> None:
        """Host memory at `source` to the device; the host memory may be changed afterwards."""
        ...

    def read(self, target: int, address: int, n_bytes: int) -> None:
        """Device memory to the host at `target`; it is there when the call returns."""
        ...

    def copy(self, target: int, address: int, n_bytes: int) -> None:
        """Device memory to device memory."""
        ...

    def fill(self, address: int, value: int, n_bytes: int) -> None:
        """Set bytes of device memory."""
        ...

    def launch(self, launch: Launch) -> None:
        """Start a kernel; its arguments may be changed afterwards."""
        ...

    def record(self, launches: Sequence[Launch]) -> Replay:
        """The launches as one thing to run; their arguments are those of now."""
        ...

    def wait_for(self, stream: int) -> None:
        """Let what is started from now on wait for what was started on another stream (its driver's handle)."""
        ...

    def signal(self, stream: int) -> None:
        """Let another stream wait for what was started here."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was started; a fault of a kernel is raised here."""
        ...


_used: list[Device] = []


@contextlib.contextmanager
def use(device: Device) -> Iterator[Device]:
    """Let `device()` give this one meanwhile."""
    _used.append(device)
    try:
        yield device
    finally:
        _used.remove(device)


def device(ordinal: int = 0) -> Device:
    """A device of this process; KernelError if there is none, or none that can be trusted."""
    return _used[-1] if _used else _driver(ordinal)


@functools.cache
def _driver(ordinal: int) -> Device:
    from ree_kernels.cuda_driver import Driver

    return Driver(ordinal)


@functools.cache
def source(name: str) -> str:
    """The text of a file of kernels."""
    return (SOURCES / name).read_text()


@functools.cache
def fields(file: str, struct: str) -> tuple[str, ...]:
    """The names of an argument struct's fields, in order; an array `i64 x[4]` gives x[0] .. x[3]."""
    found = re.search(rf"struct {struct} \{{(.*?)\}};", source(file), flags=re.S)
    if found is None:
        raise KernelError(f"{file} has no struct {struct}")
    body = re.sub(r"/\*.*?\*/|//[^\n]*", "", found[1], flags=re.S)
    names: list[str] = []
    for declaration in body.split(";"):
        for part in declaration.split(","):
            match = re.search(r"(\w+)\s*(?:\[(\d+)\])?\s*$", part)
            if match is not None:
                names += [f"{match[1]}[{n}]" for n in range(int(match[2]))] if match[2] else [match[1]]
    return tuple(names)
