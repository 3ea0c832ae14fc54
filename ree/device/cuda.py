"""Programs on a GPU through CUDA."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ree.device import images
from ree.device.backend import StateMemory, TensorsThere, is_torch
from ree.errors import DeviceError, InputError
from ree_kernels import cuda

if TYPE_CHECKING:
    from ree.graph import Graph
    from ree.plan.stream import Stream
    from ree.plan.weights import Weights


class CudaBackend:
    """Plans for one GPU; the copies of each program's weights there are kept as long as the program's own."""

    def __init__(self, ordinal: int, device: Any) -> None:
        self.ordinal, self.device = ordinal, device
        self.text = f"cuda {device.target} {device.name}"

    def plan(self, graph: Graph, weights: Weights, stream: Stream | None = None) -> Any:
        from ree.device.planner import DevicePlanner
        from ree.device.weights import DeviceWeights

        there = weights.elsewhere.setdefault(self, DeviceWeights(weights, self.device))
        return DevicePlanner(graph, there, stream).run()

    def packed_bytes(self, weights: Weights) -> int:
        return weights.elsewhere[self].packed_bytes if self in weights.elsewhere else 0

    def arena(self) -> Any:
        from ree.device.plan import DeviceArena

        return DeviceArena(self.device)

    def state_memory(self, n_bytes: int) -> StateMemory:
        return DeviceMemory(self.device, n_bytes)

    def tensors_there(self, tensors: Sequence[Any], names: Sequence[str]) -> TensorsThere | None:
        on_device = [is_torch(tensor) and tensor.device.type == "cuda" for tensor in tensors]
        if not any(on_device):
            return None
        for tensor, name, there in zip(tensors, names, on_device, strict=False):
            where = tensor.device if is_torch(tensor) else "the host"
            if not there or tensor.device.index != self.ordinal:
                raise InputError(f"input {name} is on {where}; all must be on cuda:{self.ordinal}, or all on the host")
        return TorchTensors(self.ordinal, self.device, sys.modules["torch"])


_backends: dict[tuple[int, int], CudaBackend] = {}


def backend(ordinal: int) -> CudaBackend:
    """The backend of a GPU by its number; DeviceError if there is none, or none that can be trusted."""
    with images.errors():
        device = cuda.device(ordinal)
    return _backends.setdefault((ordinal, id(device)), CudaBackend(ordinal, device))


class DeviceMemory:
    """Memory for a plan's state on a device."""

    def __init__(self, device: Any, n_bytes: int) -> None:
        self._device = device
        with images.errors():
            self._memory = device.allocate(max(1, n_bytes))
        self.clear(0, n_bytes)

    @property
    def address(self) -> int:
        return int(self._memory.address)

    def clear(self, offset: int, n_bytes: int) -> None:
        with images.errors():
            if n_bytes:
                self._device.fill(self.address + offset, 0, n_bytes)


class TorchTensors:
    """Tensors of torch that lie on a GPU; see `ree.device.backend.TensorsThere`."""

    align_bytes = 16  # what kernels read at once

    def __init__(self, ordinal: int, device: Any, torch: Any) -> None:
        self.name, self.device, self.torch = f"cuda:{ordinal}", device, torch

    def __enter__(self) -> None:
        self._stream = self.torch.cuda.current_stream(self.name).cuda_stream
        with images.errors():
            self.device.wait_for(self._stream)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with images.errors():
                self.device.signal(self._stream)
        except DeviceError:
            if kind is None:  # else the first error says more
                raise

    def on_host(self, tensors: Sequence[Any]) -> list[Any]:
        """The tensors, copied to the host."""
        return [tensor.cpu() for tensor in tensors]

    def from_host(self, tensors: Sequence[Any]) -> list[Any]:
        """Tensors of the host, copied to the device."""
        return [tensor.to(self.name) for tensor in tensors]
