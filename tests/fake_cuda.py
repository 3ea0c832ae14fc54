"""A stand-in for cuda.bindings.driver: host memory for the device's, Python functions for kernels, errors on demand.

It is as lazy as a device may be: what a stream is given is done when somebody waits for it, not before. Whoever reuses
a buffer too early, or leaves out a wait, gets wrong data.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver as real

Kernel = Callable[[np.ndarray, tuple[int, int, int], int, int], None]  # (args, grid, block, shared bytes)
SUCCESS = real.CUresult.CUDA_SUCCESS
STATIC_SHARED_LIMIT = 48 << 10


class Failure(Exception):
    """Ends a call with an error code."""

    def __init__(self, code: str) -> None:
        self.code = getattr(real.CUresult, f"CUDA_ERROR_{code}")


class FakeCuda:
    """The functions of the driver that the project uses.

    kernels: by name; calls: the names of all calls; alive: objects by kind; fail: errors by the number of a call;
    sticky: the error of a lost device.
    """

    CUresult = real.CUresult
    CUdevice_attribute = real.CUdevice_attribute
    CUfunction_attribute = real.CUfunction_attribute
    CUpointer_attribute = real.CUpointer_attribute
    CUmemorytype = real.CUmemorytype
    CUstream_flags = real.CUstream_flags
    CUevent_flags = real.CUevent_flags
    CUstreamCaptureMode = real.CUstreamCaptureMode

    def __init__(self, capability: tuple[int, int] = (9, 0), memory_bytes: int = 1 << 30, count: int = 1) -> None:
        self.capability, self.memory_bytes, self.count = capability, memory_bytes, count
        self.double_ratio = 2
        self.kernels: dict[str, Kernel] = {}
        self.fixed_shared: dict[str, int] = {}
        self.calls: list[str] = []
        self.fail: dict[int, str] = {}
        self.sticky: Failure | None = None
        self.alive: Counter[str] = Counter()
        self.memory: dict[int, Any] = {}  # device memory, by address
        self.pinned: dict[int, Any] = {}
        self.limits: dict[Any, int] = {}  # dynamic shared memory, by function
        self.streams: dict[int, deque[Callable[[], None]]] = {0: deque()}
        self.captured: list[Callable[[], None]] | None = None
        self.done: Counter[int] = Counter()  # how often an event has been reached
        self.recorded: Counter[int] = Counter()
        self.where: dict[int, int] = {}  # the stream of an event's last record
        self.stacks = threading.local()
        self._numbers = itertools.count(1000)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = getattr(self, f"_{name}")

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            code = self.fail.get(len(self.calls) - 1)
            failure = self.sticky if code is None else Failure(code)
            try:
                if name == "cuCtxPopCurrent":  # tells earlier errors, but takes the context off
                    result = function(*arguments)
                    if failure is not None:
                        raise failure
                elif failure is not None:
                    if name == "cuStreamEndCapture":  # ends it even so
                        self.captured = None
                    raise failure
                else:
                    result = function(*arguments)
            except Failure as raised:
                if raised.code.name in STICKY:
                    self.sticky = raised
                return (raised.code, None)
            return (SUCCESS,) if result is None else (SUCCESS, result)

        return call

    @property
    def stack(self) -> list[int]:
        """The contexts of this thread."""
        if not hasattr(self.stacks, "contexts"):
            self.stacks.contexts = []
        return self.stacks.contexts

    # -- devices and contexts ----------------------------------------------------------------------

    def _cuInit(self, flags: int) -> None:
        if self.count == 0:
            raise Failure("NO_DEVICE")

    def _cuDriverGetVersion(self) -> int:
        return 12040

    def _cuDeviceGetCount(self) -> int:
        return self.count

    def _cuDeviceGet(self, ordinal: int) -> int:
        return ordinal

    def _cuDeviceGetName(self, length: int, device: int) -> bytes:
        return f"Fake {device}".encode().ljust(length, b"\0")

    def _cuDeviceTotalMem(self, device: int) -> int:
        return self.memory_bytes

    def _cuDeviceGetAttribute(self, attribute: Any, device: int) -> int:
        return {
            "COMPUTE_CAPABILITY_MAJOR": self.capability[0],
            "COMPUTE_CAPABILITY_MINOR": self.capability[1],
            "MULTIPROCESSOR_COUNT": 132,
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 227 << 10,
            "L2_CACHE_SIZE": 50 << 20,
            "CLOCK_RATE": 1_980_000,
            "SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO": self.double_ratio,
        }[attribute.name.removeprefix("CU_DEVICE_ATTRIBUTE_")]

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        self.alive["context"] += 1
        return 7 + device

    def _cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.alive["context"] -= 1

    def _cuCtxPushCurrent(self, context: int) -> None:
        self.stack.append(context)

    def _cuCtxPopCurrent(self) -> int:
        if not self.stack:
            raise Failure("INVALID_CONTEXT")
        return self.stack.pop()

    def _inside(self) -> None:
        if not self.stack:
            raise Failure("INVALID_CONTEXT")

    # -- streams and events ------------------------------------------------------------------------

    def _new(self, kind: str) -> int:
        self._inside()
        self.alive[kind] += 1
        return next(self._numbers)

    def _cuStreamCreate(self, flags: int) -> int:
        stream = self._new("stream")
        self.streams[stream] = deque()
        return stream

    def _cuStreamDestroy(self, stream: int) -> None:
        self._run(stream)
        del self.streams[stream]
        self.alive["stream"] -= 1

    def _cuStreamSynchronize(self, stream: int) -> None:
        self._inside()
        if self.captured is not None:
            raise Failure("STREAM_CAPTURE_UNSUPPORTED")
        self._run(stream)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Give a stream something to do."""
        if stream not in self.streams:
            raise Failure("INVALID_HANDLE")
        if self.captured is not None and stream != 0:
            self.captured.append(work)
        else:
            self.streams[stream].append(work)

    def _run(self, stream: int, until: Callable[[], bool] = lambda: False) -> None:
        queue = self.streams[stream]
        while queue and not until():
            queue.popleft()()

    def _cuEventCreate(self, flags: int) -> int:
        return self._new("event")

    def _cuEventDestroy(self, event: int) -> None:
        self.alive["event"] -= 1

    def _cuEventRecord(self, event: int, stream: int) -> None:
        self._inside()
        self.recorded[event] += 1
        self.where[event] = stream
        self.enqueue(stream, lambda: self.done.update([event]))

    def _reach(self, event: int, times: int) -> None:
        if event in self.where:
            self._run(self.where[event], lambda: self.done[event] >= times)

    def _cuEventSynchronize(self, event: int) -> None:
        self._inside()
        self._reach(event, self.recorded[event])

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        times = self.recorded[event]
        self.enqueue(stream, lambda: self._reach(event, times))

    def _cuEventElapsedTime(self, start: int, end: int) -> float:
        if self.done[start] < self.recorded[start] or self.done[end] < self.recorded[end]:
            raise Failure("NOT_READY")
        return 0.5

    # -- memory ------------------------------------------------------------------------------------

    def _cuMemAllocAsync(self, n_bytes: int, stream: int) -> int:
        self._inside()
        if n_bytes <= 0:
            raise Failure("INVALID_VALUE")
        if n_bytes + sum(len(block) for block in self.memory.values()) > self.memory_bytes:
            raise Failure("OUT_OF_MEMORY")
        block = ctypes.create_string_buffer(b"\xcd" * n_bytes, n_bytes)
        self.memory[ctypes.addressof(block)] = block
        self.alive["memory"] += 1
        return ctypes.addressof(block)

    def _cuMemFreeAsync(self, address: int, stream: int) -> None:
        self._inside()
        if address not in self.memory:
            raise Failure("INVALID_VALUE")
        self.alive["memory"] -= 1
        self.enqueue(stream, lambda: self.memory.pop(address, None) and None)

    def _cuMemHostAlloc(self, n_bytes: int, flags: int) -> int:
        self._inside()
        block = ctypes.create_string_buffer(n_bytes)
        self.pinned[ctypes.addressof(block)] = block
        self.alive["pinned"] += 1
        return ctypes.addressof(block)

    def _cuMemFreeHost(self, address: int) -> None:
        del self.pinned[address]
        self.alive["pinned"] -= 1

    def check(self, address: int, n_bytes: int, blocks: dict[int, Any] | None = None) -> None:
        """A fault if memory is not all in one block of the device."""
        known = self.memory if blocks is None else blocks
        if not any(start <= address and address + n_bytes <= start + len(block) for start, block in known.items()):
            raise Failure("ILLEGAL_ADDRESS")

    def _move(self, target: int, source: int, n_bytes: int, on_device: list[int], on_host: list[int], to: int) -> None:
        self._inside()

        def work() -> None:
            for address in on_device:
                self.check(address, n_bytes)
            for address in on_host:
                self.check(address, n_bytes, self.pinned)
            ctypes.memmove(target, source, n_bytes)

        self.enqueue(to, work)

    def _cuMemcpyHtoDAsync(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        self._move(target, source, n_bytes, [target], [source], stream)

    def _cuMemcpyDtoHAsync(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        self._move(target, source, n_bytes, [source], [target], stream)

    def _cuMemcpyDtoDAsync(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        self._move(target, source, n_bytes, [target, source], [], stream)

    def _cuMemsetD8Async(self, address: int, value: int, n_bytes: int, stream: int) -> None:
        self._inside()

        def work() -> None:
            self.check(address, n_bytes)
            ctypes.memset(address, value, n_bytes)

        self.enqueue(stream, work)

    def _cuPointerGetAttribute(self, attribute: Any, address: int) -> int:
        for blocks, kind in ((self.memory, "DEVICE"), (self.pinned, "HOST")):
            if any(start <= address < start + len(block) for start, block in blocks.items()):
                if attribute == real.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
                    return 0
                return getattr(real.CUmemorytype, f"CU_MEMORYTYPE_{kind}")
        raise Failure("INVALID_VALUE")

    # -- modules and launches ----------------------------------------------------------------------

    def _cuModuleLoadData(self, image: bytes) -> int:
        if image.startswith(b"!"):
            raise Failure(image[1:].decode())
        return self._new("module")

    def _cuModuleUnload(self, module: int) -> None:
        self._inside()
        if any(work.__name__ == "run_kernel" for queue in self.streams.values() for work in queue):
            raise Failure("ILLEGAL_INSTRUCTION")
        self.alive["module"] -= 1

    def _cuModuleGetFunction(self, module: int, name: bytes) -> str:
        self._inside()
        if name.decode() not in self.kernels:
            raise Failure("NOT_FOUND")
        return name.decode()

    def _cuFuncGetAttribute(self, attribute: Any, function: str) -> int:
        fixed = self.fixed_shared.get(function, 0)
        if attribute == real.CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
            return fixed
        return self.limits.get(function, STATIC_SHARED_LIMIT - fixed)

    def _cuFuncSetAttribute(self, function: str, attribute: Any, value: int) -> None:
        self.limits[function] = value

    def _cuLaunchKernel(self, function: str, *rest: int) -> None:
        x, y, z, block, block_y, block_z, shared_bytes, stream, params, extra = rest
        self._inside()
        allowed = self._cuFuncGetAttribute(None, function)
        if min(x, y, z, block) < 1 or block > 1024 or (block_y, block_z) != (1, 1) or shared_bytes > allowed or params:
            raise Failure("INVALID_VALUE")
        fields = (ctypes.c_uint64 * 5).from_address(extra)
        assert (fields[0], fields[2], fields[4]) == (1, 2, 0)
        n_bytes = ctypes.c_size_t.from_address(fields[3]).value
        args = np.frombuffer(ctypes.string_at(fields[1], n_bytes), np.uint64)

        def run_kernel() -> None:
            self.kernels[function](args, (x, y, z), block, shared_bytes)

        self.enqueue(stream, run_kernel)

    def _cuStreamBeginCapture(self, stream: int, mode: Any) -> None:
        self._inside()
        if self.captured is not None:
            raise Failure("ILLEGAL_STATE")
        self.captured = []

    def _cuStreamEndCapture(self, stream: int) -> tuple[Callable[[], None], ...]:
        self._inside()
        if self.captured is None:
            raise Failure("ILLEGAL_STATE")
        works, self.captured = tuple(self.captured), None
        self.alive["graph"] += 1
        return works

    def _cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        self._new("replay")
        return graph

    def _cuGraphDestroy(self, graph: Any) -> None:
        self.alive["graph"] -= 1

    def _cuGraphExecDestroy(self, graph: Any) -> None:
        self.alive["replay"] -= 1

    def _cuGraphLaunch(self, graph: Any, stream: int) -> None:
        self._inside()
        for work in graph:
            self.enqueue(stream, work)


STICKY = {
    f"CUDA_ERROR_{name}" for name in ("ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION", "LAUNCH_FAILED", "ECC_UNCORRECTABLE")
}
