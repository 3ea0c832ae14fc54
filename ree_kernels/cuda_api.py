"""The CUDA driver's functions as calls that raise, and the context that they work in."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from ree_kernels import KernelError
from ree_kernels.cuda import DeviceMemoryError
from ree_kernels.nvrtc import INSTALL

MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"

# after these the driver answers nothing but errors in this process
LOST = {
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel used memory that it does not have",
    "CUDA_ERROR_MISALIGNED_ADDRESS": "a kernel used a misaligned address",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE": "a kernel used an address of another kind of memory",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": "a kernel ran into an illegal instruction",
    "CUDA_ERROR_INVALID_PC": "a kernel jumped nowhere",
    "CUDA_ERROR_HARDWARE_STACK_ERROR": "a kernel's stack overflowed or was damaged",
    "CUDA_ERROR_ASSERT": "an assertion in a kernel failed",
    "CUDA_ERROR_LAUNCH_FAILED": "a kernel failed",
    "CUDA_ERROR_LAUNCH_TIMEOUT": "a kernel took longer than the display allows",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "memory errors that cannot be corrected",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE": "NVLink errors that cannot be corrected",
    "CUDA_ERROR_CONTAINED": "memory errors that cannot be corrected",
    "CUDA_ERROR_EXTERNAL_DEVICE": "a device beside it failed",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": "its context was destroyed by other code of this process",
}

OLD_DRIVER = "update the driver, or install a cuda-bindings and an NVRTC that are not newer than it"
OTHER_IMAGE = f"the driver cannot load this image; {OLD_DRIVER}"
FORKED = "CUDA cannot be used after a fork; start processes with spawn"
REASONS = {
    "CUDA_ERROR_NO_DEVICE": "no CUDA device",
    "CUDA_ERROR_STUB_LIBRARY": "no CUDA driver: libcuda.so.1 is the stub of a toolkit",
    "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER": f"the CUDA driver is too old; {OLD_DRIVER}",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the CUDA driver's library and kernel module differ in version; restart",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "a forward compatibility package that this device does not support",
    "CUDA_ERROR_SYSTEM_NOT_READY": "the driver's services are not running yet",
    "CUDA_ERROR_NOT_INITIALIZED": FORKED,
    "CUDA_ERROR_DEVICE_NOT_LICENSED": "the device has no licence to compute",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process has the device to itself",
    "CUDA_ERROR_DEINITIALIZED": "the driver is shutting down",
    "CUDA_ERROR_NOT_PERMITTED": "the system does not permit this",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": OTHER_IMAGE,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": OTHER_IMAGE,
    "CUDA_ERROR_INVALID_IMAGE": OTHER_IMAGE,
    "CUDA_ERROR_INVALID_PTX": OTHER_IMAGE,
    "CUDA_ERROR_INVALID_SOURCE": OTHER_IMAGE,
    "CUDA_ERROR_JIT_COMPILER_NOT_FOUND": "the driver has no compiler for PTX",
    "CUDA_ERROR_NOT_FOUND": "there is nothing of this name",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "a block does not have so many registers or so much shared memory",
}


class Api:
    """The functions of cuda.bindings.driver; device: what messages name."""

    def __init__(self, module: Any = None) -> None:
        self.module = _bindings() if module is None else module
        self.device = "CUDA"
        self.lost: str | None = None

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a function; KernelError if it fails, or if the device is lost."""
        if self.lost is not None:
            raise KernelError(self.lost)
        status, result = self.attempt(name, *arguments)
        if int(status):
            raise self.error(name, status)
        return result

    def attempt(self, name: str, *arguments: Any) -> tuple[Any, Any]:
        """The status and result of a function, lost or not; for what must be tried whatever happened."""
        try:
            status, *results = getattr(self.module, name)(*arguments)
        except RuntimeError as error:  # how the bindings say that a library or a function is not there
            if not has_library():
                raise KernelError("no CUDA driver: this machine has no libcuda.so.1") from None
            raise KernelError(f"the CUDA driver does not do {name} ({_line(error)}); {OLD_DRIVER}") from None
        return status, results[0] if results else None

    def error(self, function: str, status: Any) -> KernelError:
        code = getattr(status, "name", f"error {int(status)}")
        if code in LOST:
            self.lost = f"{self.device} is lost, start a new process: {LOST[code]} ({code})"
            return KernelError(self.lost)
        kind = DeviceMemoryError if code == MEMORY else KernelError
        return kind(f"{self.device}: {REASONS.get(code, 'a call failed')} ({function}: {code})")


class Context:
    """A device's primary context, which it shares with other libraries; `with context:` makes it this thread's.

    One thread at a time is inside; entered: called whenever one has come in.
    """

    def __init__(self, api: Api, entered: Callable[[], None]) -> None:
        self._api, self._entered = api, entered
        self._lock = threading.RLock()
        self._device: Any = None
        self._handle: Any = None

    def open(self, device: Any) -> None:
        self._handle = self._api.call("cuDevicePrimaryCtxRetain", device)
        self._device = device

    def close(self, last: Callable[[], None]) -> None:
        """Give the context up, after `last` was called in it; errors are of no interest any more."""
        with self._lock:
            if self._device is None:
                return
            if not int(self._api.attempt("cuCtxPushCurrent", self._handle)[0]):
                last()
                self._api.attempt("cuCtxPopCurrent")
            self._api.attempt("cuDevicePrimaryCtxRelease", self._device)
            self._device = None

    def abandon(self) -> None:
        """After a fork: there is no context, and a lock's owner may not be there, either."""
        self._api.lost, self._device, self._lock = FORKED, None, threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._api.call("cuCtxPushCurrent", self._handle)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._entered()
        except BaseException:
            self._leave()
            raise

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        status = self._leave()
        if int(status) and error is None:
            raise self._api.error("cuCtxPopCurrent", status)

    def _leave(self) -> Any:
        try:
            return self._api.attempt("cuCtxPopCurrent")[0]
        finally:
            self._lock.release()


def has_library() -> bool:
    """Whether the machine has the driver's library."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise KernelError(f"CUDA needs packages that are not installed ({error}): {INSTALL}") from None
    return driver
