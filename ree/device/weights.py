"""A program's constants in device memory: as they are, and in the forms that kernels read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ree.device.images import errors
from ree.plan.weights import Weights
from ree_kernels.cuda import Device


class DeviceWeights:
    """Constants on one device, shared by all plans of a program; each form is copied there when it is first used."""

    def __init__(self, weights: Weights, device: Device) -> None:
        self._host = weights
        self._lock = threading.RLock()  # programs on several devices share them
        self.device = device
        self._plain: dict[int, Any] = {}
        self._packed: list[Any] = []
        self._numbers: dict[tuple[Any, ...], int] = {}

    def array(self, number: int) -> np.ndarray:
        """The plain data of a constant, on the host."""
        return self._host.array(number)

    def packed(self, key: tuple[Any, ...], make: Callable[[], np.ndarray]) -> tuple[int, int]:
        """Number and size in bytes of the packed form `key`, made on the host by `make` the first time."""
        with self._lock:
            if key not in self._numbers:
                self._packed.append(self._upload(make()))
                self._numbers[key] = len(self._packed) - 1
            number = self._numbers[key]
            return number, int(self._packed[number].n_bytes)

    @property
    def packed_bytes(self) -> int:
        """Of all packed forms together."""
        return int(sum(form.n_bytes for form in self._packed))

    def address(self, kind: str, number: int) -> int:
        """The device address of a plain ("constant") or "packed" buffer."""
        with self._lock:
            if kind == "packed":
                return int(self._packed[number].address)
            if number not in self._plain:
                self._plain[number] = self._upload(self.array(number))
            return int(self._plain[number].address)

    def _upload(self, array: np.ndarray) -> Any:
        array = np.ascontiguousarray(array)
        with errors():
            memory = self.device.allocate(max(1, array.nbytes))
            if array.nbytes:
                self.device.write(memory.address, array.ctypes.data, array.nbytes)
        return memory
