"""A GPU through its driver: the Device of cuda.py, over cuda-bindings and NVRTC.

Every public method makes the device's primary context current while it works, one thread after another; so any thread
may call it, beside any other library that uses the GPU.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ree_kernels import KernelError, cuda, cuda_probe, nvrtc
from ree_kernels.cuda import DeviceMemoryError, Launch
from ree_kernels.cuda_api import Api, Context

CHUNK_BYTES = 4 << 20  # of a large copy
SMALL_BYTES = 16 << 10  # what goes to the device through buffers of its own, so as not to wait for large copies
SMALL_COUNT = 64

# of cuLaunchKernel's `extra`, as cuda.h defines them
PARAM_END, PARAM_BUFFER_POINTER, PARAM_BUFFER_SIZE = 0, 1, 2

_probed: set[tuple[Any, int]] = set()
_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()


def _abandon() -> None:
    for driver in _drivers:
        driver._context.abandon()


os.register_at_fork(after_in_child=_abandon)


def device_count() -> int:
    """CUDA devices of this machine; 0 where the driver or the packages for it are missing."""
    try:
        api = Api()
        api.call("cuInit", 0)
        return int(api.call("cuDeviceGetCount"))
    except KernelError:
        return 0


class Driver:
    """One GPU; see `cuda.Device`.

    ordinal: its number, as CUDA counts; api: a module with the functions of cuda.bindings.driver; probe: what the
    device must pass, once in a process. l2_bytes, clock_khz: for schedules and reports.
    KernelError if there is no such device, or if it cannot be used or trusted.
    """

    def __init__(
        self, ordinal: int = 0, api: Any = None, probe: Callable[[cuda.Device], None] = cuda_probe.probe
    ) -> None:
        self.ordinal = ordinal
        self._api = Api(api)
        self._call = self._api.call
        self._held: dict[int, tuple[Any, ...]] = {}  # what the driver gave, and the call that gives it back
        self._keys = itertools.count()
        self._dead: deque[int] = deque()
        self._context = Context(self._api, self._free_dead)
        self._stream: Any = None
        _drivers.add(self)
        try:
            self._open()
            if (self._api.module, ordinal) not in _probed:
                probe(self)
                _probed.add((self._api.module, ordinal))
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        call, constants = self._call, self._api.module
        call("cuInit", 0)
        count = call("cuDeviceGetCount")
        if not 0 <= self.ordinal < count:
            raise KernelError(f"no CUDA device {self.ordinal}: this machine has {count}")
        device = call("cuDeviceGet", self.ordinal)
        self.name = self._api.device = call("cuDeviceGetName", 256, device).split(b"\0")[0].decode().strip()

        def attribute(name: str) -> int:
            kind = getattr(constants.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(call("cuDeviceGetAttribute", kind, device))

        self.capability = (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR"))
        self.multiprocessors = attribute("MULTIPROCESSOR_COUNT")
        self.shared_bytes_max = attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        self.l2_bytes = attribute("L2_CACHE_SIZE")
        self.clock_khz = attribute("CLOCK_RATE")
        self.slow_doubles = attribute("SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO") > 4
        self.memory_bytes = int(call("cuDeviceTotalMem", device))
        try:
            self.target = nvrtc.architecture(self.capability)
        except KernelError as error:
            raise KernelError(f"{self.name}: {error}") from None
        self.compiler = " ".join(["nvrtc", nvrtc.version(), *nvrtc.OPTIONS])
        self._context.open(device)
        with self._context:
            self._stream = call("cuStreamCreate", constants.CUstream_flags.CU_STREAM_NON_BLOCKING)
            self._hold("cuStreamDestroy", self._stream)
            self._signal = self._event()
            self._large, self._small = _Staging(self, 2, CHUNK_BYTES), _Staging(self, SMALL_COUNT, SMALL_BYTES)

    def close(self) -> None:
        """Give everything back; what was made with this device must not be used any more."""
        self._context.close(self._free_all)
        self._api.lost = self._api.lost or f"{self._api.device} is closed"

    # -- programs ----------------------------------------------------------------------------------

    def compile(self, text: str) -> bytes:
        return nvrtc.compile(text, self.target).data

    def load(self, image: bytes) -> Module:
        with self._context:
            try:
                return Module(self, self._call("cuModuleLoadData", image))
            except KernelError as error:
                if self._api.lost is not None:
                    raise
                made = f"made for {self.target} by NVRTC {nvrtc.version()}"
                raise type(error)(f"{error}; {made}, the driver is for CUDA {self._driver_version()}") from None

    def launch(self, launch: Launch) -> None:
        with self._context:
            self._start(launch)

    def record(self, launches: Sequence[Launch]) -> Replay:
        with self._context:
            # other calls of this thread, such as those of a garbage collection, are none of the recording's business
            mode = self._api.module.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
            self._call("cuStreamBeginCapture", self._stream, mode)
            try:
                for launch in launches:
                    self._start(launch)
            except BaseException:
                graph = self._api.attempt("cuStreamEndCapture", self._stream)[1]
                if graph is not None:
                    self._api.attempt("cuGraphDestroy", graph)
                raise
            graph = self._call("cuStreamEndCapture", self._stream)
            try:
                replayed = self._call("cuGraphInstantiate", graph, 0)
            finally:
                self._api.attempt("cuGraphDestroy", graph)
            return Replay(self, replayed, launches)

    def synchronize(self) -> None:
        with self._context:
            self._call("cuStreamSynchronize", self._stream)

    def time(self, work: Callable[[], object] | cuda.Replay, rounds: int) -> list[float]:
        """Milliseconds that each of some rounds of work takes on the device, one after another."""
        run = work if callable(work) else work.run
        with self._context:
            start, end = self._event(timing=True), self._event(timing=True)
        try:
            return [self._round(run, start, end) for _ in range(rounds)]
        finally:
            self._dead += (start.key, end.key)

    # -- memory ------------------------------------------------------------------------------------

    def allocate(self, n_bytes: int) -> Allocation:
        with self._context:
            try:
                address = self._call("cuMemAllocAsync", max(n_bytes, 1), self._stream)
            except DeviceMemoryError:
                gc.collect()  # what only cycles refer to
                self._free_dead()
                self._call("cuStreamSynchronize", self._stream)
                try:
                    address = self._call("cuMemAllocAsync", max(n_bytes, 1), self._stream)
                except DeviceMemoryError:
                    raise DeviceMemoryError(f"{self.name} has no memory for {n_bytes} bytes") from None
            return Allocation(self, int(address), n_bytes)

    def write(self, address: int, source: int, n_bytes: int) -> None:
        with self._context:
            staging = self._small if n_bytes <= SMALL_BYTES else self._large
            for at in range(0, n_bytes, staging.n_bytes):
                size = min(staging.n_bytes, n_bytes - at)
                buffer = staging.take()
                ctypes.memmove(buffer.address, source + at, size)
                self._call("cuMemcpyHtoDAsync", address + at, buffer.address, size, self._stream)
                self._call("cuEventRecord", buffer.event.handle, self._stream)

    def read(self, target: int, address: int, n_bytes: int) -> None:
        with self._context:
            coming: deque[tuple[Buffer, int, int]] = deque()
            for at in range(0, n_bytes, CHUNK_BYTES):
                size = min(CHUNK_BYTES, n_bytes - at)
                if len(coming) == len(self._large.buffers):
                    self._arrive(target, *coming.popleft())
                buffer = self._large.take()
                self._call("cuMemcpyDtoHAsync", buffer.address, address + at, size, self._stream)
                self._call("cuEventRecord", buffer.event.handle, self._stream)
                coming.append((buffer, at, size))
            while coming:
                self._arrive(target, *coming.popleft())

    def copy(self, target: int, address: int, n_bytes: int) -> None:
        if n_bytes:
            with self._context:
                self._call("cuMemcpyDtoDAsync", target, address, n_bytes, self._stream)

    def fill(self, address: int, value: int, n_bytes: int) -> None:
        if n_bytes:
            with self._context:
                self._call("cuMemsetD8Async", address, value, n_bytes, self._stream)

    # -- other users of the device -----------------------------------------------------------------

    def wait_for(self, stream: int) -> None:
        """Let all that is started from now on wait for what another stream has been given; stream: its handle."""
        with self._context:
            self._call("cuEventRecord", self._signal.handle, stream)
            self._call("cuStreamWaitEvent", self._stream, self._signal.handle, 0)

    def signal(self, stream: int) -> None:
        """Let another stream wait for all that was started here; stream: its handle."""
        with self._context:
            self._call("cuEventRecord", self._signal.handle, self._stream)
            self._call("cuStreamWaitEvent", stream, self._signal.handle, 0)

    def owns(self, address: int) -> int | None:
        """The ordinal of the device whose memory an address is in; None for memory that is on no device."""
        attributes = self._api.module.CUpointer_attribute
        with self._context:
            status, kind = self._api.attempt(
                "cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address
            )
            if int(status) or int(kind) != self._api.module.CUmemorytype.CU_MEMORYTYPE_DEVICE:
                return None
            return int(self._call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address))

    # -- inside the context ------------------------------------------------------------------------

    def _start(self, launch: Launch) -> None:
        args = np.ascontiguousarray(launch.args, np.uint64)
        size = ctypes.c_size_t(args.nbytes)
        extra = (ctypes.c_void_p * 5)(
            PARAM_BUFFER_POINTER, args.ctypes.data, PARAM_BUFFER_SIZE, ctypes.addressof(size), PARAM_END
        )
        shape = (*launch.grid, launch.block, 1, 1, launch.shared_bytes)
        try:
            handle, at = launch.function.handle, ctypes.addressof(extra)
            self._call("cuLaunchKernel", handle, *shape, self._stream, 0, at)
        except KernelError as error:
            if self._api.lost is not None:
                raise
            what = f"grid {launch.grid}, block {launch.block}, {launch.shared_bytes} bytes of shared memory"
            raise type(error)(f"{launch.function.name}: {error}; {what}") from None

    def _round(self, run: Callable[[], object], start: Event, end: Event) -> float:
        with self._context:
            self._call("cuEventRecord", start.handle, self._stream)
        run()
        with self._context:
            self._call("cuEventRecord", end.handle, self._stream)
            self._call("cuEventSynchronize", end.handle)
            return float(self._call("cuEventElapsedTime", start.handle, end.handle))

    def _arrive(self, target: int, buffer: Buffer, at: int, size: int) -> None:
        self._call("cuEventSynchronize", buffer.event.handle)
        ctypes.memmove(target + at, buffer.address, size)

    def _event(self, timing: bool = False) -> Event:
        flags = self._api.module.CUevent_flags
        handle = self._call("cuEventCreate", flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING)
        return Event(handle, self._hold("cuEventDestroy", handle))

    def _driver_version(self) -> str:
        version = int(self._call("cuDriverGetVersion"))
        return f"{version // 1000}.{version % 1000 // 10}"

    def _hold(self, *release: Any) -> int:
        """Remember what must be given back, by a function's name and arguments."""
        key = next(self._keys)
        self._held[key] = release
        return key

    def _hold_for(self, owner: object, *release: Any) -> None:
        """The same, given back by the first call after the owner's end, which may come at any time in any thread."""
        weakref.finalize(owner, self._dead.append, self._hold(*release)).atexit = False

    def _free_dead(self) -> None:
        while self._dead:
            name, *arguments = self._held[self._dead[0]]
            if name == "cuModuleUnload":  # its kernels may still run
                self._call("cuStreamSynchronize", self._stream)
            del self._held[self._dead.popleft()]
            self._call(name, *arguments)

    def _free_all(self) -> None:
        if self._stream is not None:
            self._api.attempt("cuStreamSynchronize", self._stream)
        for name, *arguments in reversed(self._held.values()):
            self._api.attempt(name, *arguments)
        self._held.clear()


class Allocation:
    """Device memory; see `cuda.Memory`."""

    def __init__(self, device: Driver, address: int, n_bytes: int) -> None:
        self.address, self.n_bytes = address, n_bytes
        device._hold_for(self, "cuMemFreeAsync", address, device._stream)


class Function(NamedTuple):
    """A kernel that is ready to be launched; its module stays loaded as long as it is there."""

    handle: Any
    name: str
    module: Module


class Module:
    """A loaded image."""

    def __init__(self, device: Driver, handle: Any) -> None:
        self._device, self._handle = device, handle
        device._hold_for(self, "cuModuleUnload", handle)

    def function(self, name: str, shared_bytes: int) -> Function:
        """A kernel by its name; shared_bytes: the dynamic shared memory that its blocks may ask for."""
        device, call = self._device, self._device._call
        attributes = device._api.module.CUfunction_attribute
        with device._context:
            try:
                handle = call("cuModuleGetFunction", self._handle, name.encode())
            except KernelError as error:
                raise type(error)(f"{name}: {error}") from None
            fixed = call("cuFuncGetAttribute", attributes.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, handle)
            if fixed + shared_bytes > device.shared_bytes_max:
                wanted = f"{fixed} and {shared_bytes} bytes of shared memory, fixed and dynamic"
                raise KernelError(f"{name}: {wanted}; a block of {device.name} has {device.shared_bytes_max}")
            limit = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            if shared_bytes > call("cuFuncGetAttribute", limit, handle):
                call("cuFuncSetAttribute", handle, limit, shared_bytes)
            return Function(handle, name, self)


class Replay:
    """Recorded launches; see `cuda.Replay`."""

    def __init__(self, device: Driver, handle: Any, launches: Sequence[Launch]) -> None:
        self._device, self._handle = device, handle
        self._functions = [launch.function for launch in launches]  # their modules stay loaded
        device._hold_for(self, "cuGraphExecDestroy", handle)

    def run(self) -> None:
        with self._device._context:
            self._device._call("cuGraphLaunch", self._handle, self._device._stream)


class Event(NamedTuple):
    """A point in a stream; key: of what must be given back."""

    handle: Any
    key: int


class Buffer(NamedTuple):
    """Pinned host memory; event: the copy that uses it."""

    address: int
    event: Event


class _Staging:
    """Pinned buffers that are used in turn, so that copies run while the next ones are prepared."""

    def __init__(self, device: Driver, count: int, n_bytes: int) -> None:
        self._device, self.n_bytes = device, n_bytes
        start = int(device._call("cuMemHostAlloc", count * n_bytes, 0))
        device._hold("cuMemFreeHost", start)
        self.buffers = [Buffer(start + n_bytes * index, device._event()) for index in range(count)]
        self._turn = itertools.cycle(self.buffers)

    def take(self) -> Buffer:
        """The next buffer, once its last copy has ended."""
        buffer = next(self._turn)
        self._device._call("cuEventSynchronize", buffer.event.handle)
        return buffer
