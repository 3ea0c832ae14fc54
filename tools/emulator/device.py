"""The emulator as a `ree_kernels.cuda.Device`: results, order and barriers of kernels are tested where no GPU is.

It is stricter than a GPU. KernelError is raised for a read or write outside an allocation, outside dynamic shared
memory or outside an array of fixed size; for a misaligned access; for a barrier or warp primitive that not all threads
reach; for a shift by too many bits. Shared and device memory are NaN until they are written. Other mistakes give wrong
data: the order in which threads run changes from block to block, and an asynchronous copy takes place when it is waited
for.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ree_kernels import KernelError
from ree_kernels.cuda import SOURCES, DeviceMemoryError, Launch

_HERE = Path(__file__).resolve().parent
_FLAGS = """-std=gnu++17 -O2 -fPIC -shared -pthread -w -fno-exceptions -fno-rtti -fno-strict-aliasing
    -ffp-contract=off -fno-math-errno -U_FORTIFY_SOURCE""".split()
# own symbols stay in their module; the runtime has what the sanitizers call
_KERNEL_FLAGS = """-DREE_EMULATED -fno-gnu-unique -fvisibility=hidden -Wl,-Bsymbolic -nodefaultlibs -lm -lc
    -fsanitize=alignment,bounds-strict,shift-exponent,integer-divide-by-zero -fno-sanitize-recover=all""".split()
_INCLUDES = [f"-I{SOURCES}", f"-I{_HERE}"]
_SHOWN_ERRORS = 5
_THREADS_MAX = 1024
_GRID_MAX = (2**31 - 1, 65535, 65535)
_NEAR_BYTES = 1 << 20  # how far outside an allocation an address is still taken for one that meant it


class _Kernel(ctypes.Structure):
    """`ree_emulated_kernel` of interface.h."""

    _fields_ = [("run", ctypes.c_void_p), ("args_bytes", ctypes.c_uint), ("threads_max", ctypes.c_uint)]


class _Launch(ctypes.Structure):
    """`Launch` of runtime.cc."""

    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        ("grid", ctypes.c_int64 * 3),
        ("block", ctypes.c_int64),
        ("shared_bytes", ctypes.c_int64),
        ("static_module", ctypes.c_uint64),
        ("static_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("workers", ctypes.c_int64),
    ]


class _Fault(ctypes.Structure):
    """`Fault` of runtime.cc."""

    _fields_ = [("kind", ctypes.c_int64), ("address", ctypes.c_uint64), ("text", ctypes.c_char * 480)]


_NO_FAULT, _MISUSE, _AT_ADDRESS = range(3)
_building = threading.RLock()  # entered again where memory is collected meanwhile


class Function(NamedTuple):
    """A kernel that can be launched; module: keeps the code loaded."""

    name: str
    module: ctypes.CDLL
    kernel: _Kernel
    static_module: int  # of the module's static shared memory: that of all its kernels
    static_bytes: int
    shared_bytes: int


class Module:
    """The kernels of an image."""

    def __init__(self, library: ctypes.CDLL, device: Emulator) -> None:
        self._library, self._device = library, device

    def function(self, name: str, shared_bytes: int) -> Function:
        """A kernel by its name, for launches with up to `shared_bytes` of dynamic shared memory."""
        try:
            kernel = _Kernel.in_dll(self._library, name)
        except ValueError:
            raise KernelError(f"the module has no kernel {name}") from None
        module, static = ctypes.c_uint64(), ctypes.c_uint64()
        _runtime().ree_emulator_static_shared(ctypes.byref(kernel), ctypes.byref(module), ctypes.byref(static))
        if not 0 <= shared_bytes <= self._device.shared_bytes_max:
            raise KernelError(f"{name}: {shared_bytes} bytes of shared memory of {self._device.shared_bytes_max}")
        return Function(name, self._library, kernel, module.value, static.value, shared_bytes)


class Memory:
    """Emulated device memory, its end before a page that cannot be touched; given back when nothing refers to it."""

    def __init__(self, address: int, n_bytes: int) -> None:
        self.address, self.n_bytes = address, n_bytes


class Replay:
    """Launches to be run again."""

    def __init__(self, device: Emulator, launches: Sequence[Launch]) -> None:
        self._device = device
        self._launches = [launch._replace(args=launch.args.copy()) for launch in launches]

    def run(self) -> None:
        for launch in self._launches:
            self._device.launch(launch)


class Emulator:
    """A CUDA device on the CPU; see `ree_kernels.cuda.Device`. Launches return when the kernel is done.

    memory_bytes: beyond which `allocate` raises DeviceMemoryError. seed: of the orders in which threads run.
    workers: OS threads that blocks are run by, up to 8. slow_doubles: what programs are planned for.
    """

    name = "emulator"
    target = "emulated"

    def __init__(
        self,
        capability: tuple[int, int] = (9, 0),
        multiprocessors: int = 4,
        memory_bytes: int = 8 << 30,
        seed: int = 0,
        workers: int = 2,
        slow_doubles: bool = False,
    ) -> None:
        self.capability, self.multiprocessors, self.memory_bytes = capability, multiprocessors, memory_bytes
        self.shared_bytes_max = 227 << 10
        self.compiler = _compiler()
        self.seed, self.workers, self.slow_doubles = seed, workers, slow_doubles
        self._allocated: dict[int, int] = {}

    def compile(self, text: str) -> bytes:
        """The shared object of a module's text; KernelError has the compiler's first errors."""
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, "kernel.cu")
            source.write_text(text, encoding="utf-8")
            return _compile(source, [*_processor_flags(), *_KERNEL_FLAGS, *_INCLUDES]).read_bytes()

    def load(self, image: bytes) -> Module:
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(image)
            file.flush()
            _runtime()  # has the symbols that the image lacks
            try:
                return Module(ctypes.CDLL(file.name), self)
            except OSError as error:
                raise KernelError(f"the image cannot be loaded: {error}") from None

    def allocate(self, n_bytes: int) -> Memory:
        """Memory of NaNs. Its address is a multiple of 16 alone, so that its end can be guarded."""
        left = self.memory_bytes - sum(self._allocated.values())
        address = _runtime().ree_emulator_allocate(n_bytes) if n_bytes <= left else None
        if address is None:
            raise DeviceMemoryError(f"{n_bytes} bytes asked for, {left} of {self.memory_bytes} left")
        self._allocated[address] = n_bytes
        memory = Memory(address, n_bytes)
        weakref.finalize(memory, _release, self._allocated, address).atexit = False
        return memory

    def write(self, address: int, source: int, n_bytes: int) -> None:
        self._check(address, n_bytes)
        ctypes.memmove(address, source, n_bytes)

    def read(self, target: int, address: int, n_bytes: int) -> None:
        self._check(address, n_bytes)
        ctypes.memmove(target, address, n_bytes)

    def copy(self, target: int, address: int, n_bytes: int) -> None:
        self._check(target, n_bytes)
        self._check(address, n_bytes)
        ctypes.memmove(target, address, n_bytes)

    def fill(self, address: int, value: int, n_bytes: int) -> None:
        self._check(address, n_bytes)
        ctypes.memset(address, value, n_bytes)

    def launch(self, launch: Launch) -> None:
        """Run a kernel; KernelError if it cannot be launched so or does what no kernel may."""
        function: Function = launch.function
        args = np.ascontiguousarray(launch.args, np.uint64)
        _check_launch(function, launch, args.nbytes)
        fault = _Fault()
        asked = _Launch(
            kernel=ctypes.addressof(function.kernel),
            args=args.ctypes.data,
            grid=tuple(launch.grid),
            block=launch.block,
            shared_bytes=launch.shared_bytes,
            static_module=function.static_module,
            static_bytes=function.static_bytes,
            seed=self.seed,
            workers=self.workers,
        )
        _runtime().ree_emulator_launch(ctypes.byref(asked), ctypes.byref(fault))
        if fault.kind != _NO_FAULT:
            where = self._nearest(fault.address) if fault.kind == _AT_ADDRESS else ""
            raise KernelError(f"{function.name}: {fault.text.decode(errors='replace')}{where}")

    def record(self, launches: Sequence[Launch]) -> Replay:
        return Replay(self, launches)

    def wait_for(self, stream: int) -> None:
        """Nothing, like the two below: what was started is done when the call returns."""

    def signal(self, stream: int) -> None: ...

    def synchronize(self) -> None: ...

    def _check(self, address: int, n_bytes: int) -> None:
        known = self._allocated.copy().items()  # a collected one may leave meanwhile
        if n_bytes and not any(start <= address and address + n_bytes <= start + size for start, size in known):
            raise KernelError(f"{n_bytes} bytes at {address:#x} are not in device memory{self._nearest(address)}")

    def _nearest(self, address: int) -> str:
        """In words, which allocation an address is close to."""
        known = self._allocated.copy()
        distances = [(max(start - address, address - start - size), start) for start, size in known.items()]
        distance, start = min(distances, default=(_NEAR_BYTES, 0))
        if distance >= _NEAR_BYTES:
            return ""
        side = "before the start" if address < start else f"from the start (of {known[start]})"
        return f": {abs(address - start)} bytes {side} of an allocation"


@functools.cache
def shared() -> Emulator:
    """The process's emulator."""
    return Emulator()


def _check_launch(function: Function, launch: Launch, args_bytes: int) -> None:
    name, kernel = function.name, function.kernel
    if not 1 <= launch.block <= min(_THREADS_MAX, kernel.threads_max):
        raise KernelError(f"{name}: {launch.block} threads of a block, which may have {kernel.threads_max}")
    if len(launch.grid) != 3 or not all(1 <= n <= most for n, most in zip(launch.grid, _GRID_MAX, strict=True)):
        raise KernelError(f"{name}: a grid of {launch.grid}")
    if not 0 <= launch.shared_bytes <= function.shared_bytes:
        raise KernelError(f"{name}: {launch.shared_bytes} bytes of shared memory, made for {function.shared_bytes}")
    if args_bytes != kernel.args_bytes:
        raise KernelError(f"{name}: {args_bytes} bytes of arguments, of {kernel.args_bytes}")


def _release(allocated: dict[int, int], address: int) -> None:
    _runtime().ree_emulator_release(address, allocated.pop(address))


def _runtime() -> ctypes.CDLL:
    """runtime.cc, compiled once in this process: a second one would not know the threads that kernels see."""
    with _building:
        return _build_runtime()


@functools.cache
def _build_runtime() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as directory:
        path = _compile(_HERE / "runtime.cc", ["-O3", *_processor_flags()], Path(directory))
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.ree_emulator_launch.restype = None
    library.ree_emulator_static_shared.restype = None
    library.ree_emulator_allocate.argtypes = [ctypes.c_uint64]
    library.ree_emulator_allocate.restype = ctypes.c_void_p
    library.ree_emulator_release.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    library.ree_emulator_release.restype = None
    return library


def _compile(source: Path, flags: Sequence[str], directory: Path | None = None) -> Path:
    """The shared object that a file becomes, beside it if not in `directory`."""
    out = (directory or source.parent) / f"{source.stem}.so"
    command = [_gxx(), *_FLAGS, "-x", "c++", source.name, "-o", str(out), *flags]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if "error:" in line or "undefined" in line] or lines
        raise KernelError("\n".join(errors[:_SHOWN_ERRORS]))
    return out


def _gxx() -> str:
    path = shutil.which("g++")
    if path is None:
        raise KernelError("the emulator needs g++")
    return path


@functools.cache
def _processor_flags() -> tuple[str, ...]:
    """Instructions that change speed alone, above all FMA: with or without them it is exact."""
    if platform.machine() != "x86_64":
        return ()
    flags = set(Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split())
    return ("-march=x86-64-v3",) if {"fma", "avx2", "bmi2", "movbe"} <= flags else ()


@functools.cache
def _compiler() -> str:
    """What an image depends on besides its text and the kernels' headers."""
    if shutil.which("g++") is None:
        return "none"
    version = subprocess.run([_gxx(), "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    headers = b"".join((_HERE / name).read_bytes() for name in ("emulated.cuh", "interface.h"))
    own = hashlib.sha256(headers + " ".join([*_FLAGS, *_KERNEL_FLAGS]).encode()).hexdigest()[:16]
    return " ".join(["g++", version, *_processor_flags(), own])
