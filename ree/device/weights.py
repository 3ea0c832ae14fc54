"""A program's constants in device memory."""

from __future__ import annotations

import numpy as np

from ree.device.images import errors
from ree.plan.weights import Forms, Weights
from ree_kernels.cuda import Device, Memory


class DeviceWeights(Forms[Memory]):
    """Constants on one device, shared by all plans of a program; packed on the host."""

    def __init__(self, weights: Weights, device: Device) -> None:
        super().__init__()
        self._host, self.device = weights, device

    def array(self, number: int) -> np.ndarray:
        """The plain data of a constant, on the host."""
        return self._host.array(number)

    def keep(self, array: np.ndarray) -> Memory:
        array = np.ascontiguousarray(array)
        with errors():
            memory = self.device.allocate(max(1, array.nbytes))
            if array.nbytes:
                self.device.write(memory.address, array.ctypes.data, array.nbytes)
        return memory

    def place(self, form: Memory) -> tuple[int, int]:
        return int(form.address), int(form.n_bytes)
