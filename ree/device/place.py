"""Where programs run: a device's name, what makes plans for it, and tensors that lie there already."""

from __future__ import annotations

import platform
import re
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ree.device import images
from ree.errors import DeviceError, InputError

if TYPE_CHECKING:
    from ree.graph import Graph
    from ree.plan.stream import Stream
    from ree.plan.weights import Weights

CPU = "cpu"
_LINE_BYTES = 64
ALIGN_BYTES = 16  # of what a device's kernels read at once
_NAME = re.compile(r"cuda(?::(0|[1-9][0-9]{0,2}))?")


class StateMemory(Protocol):
    """Memory where a program runs, all zeros at first."""

    @property
    def address(self) -> int: ...

    def clear(self, offset: int, n_bytes: int) -> None:
        """Set bytes to zero."""
        ...


class Maker(Protocol):
    """Makes plans for one device; text: what it is, for people."""

    @property
    def text(self) -> str: ...

    def plan(self, graph: Graph, weights: Weights, stream: Stream | None = None) -> Any: ...

    def arena(self) -> Any: ...

    def packed_bytes(self, weights: Weights) -> int: ...

    def state_memory(self, n_bytes: int) -> StateMemory: ...

    def place_of(self, tensors: Sequence[Any], names: Sequence[str]) -> Place | None:
        """The device's place if the tensors lie there, None if they lie on the host; InputError if neither."""
        ...


def maker_of(name: str) -> Maker:
    """What makes plans for "cpu", "cuda" or "cuda:N"; DeviceError for another name, or if there is no such device."""
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if name == CPU:
        return _CPU_MAKER
    if found is None:
        raise DeviceError(f"device {name!r} is not supported; use 'cpu', 'cuda' or 'cuda:N'")
    return _cuda_maker(int(found[1] or 0))


class _CpuMaker:
    """Plans for this machine's processor."""

    @property
    def text(self) -> str:
        import ree_kernels.cpu as cpu

        return f"cpu {platform.machine()} {cpu.kernels().isa}"

    def plan(self, graph: Graph, weights: Weights, stream: Stream | None = None) -> Any:
        import ree_kernels.cpu as cpu
        from ree.plan.planner import Planner

        with cpu.default_fp_state():
            return Planner(graph, weights, stream).run()

    def packed_bytes(self, weights: Weights) -> int:
        return weights.packed_bytes

    def arena(self) -> Any:
        from ree.plan.plan import Arena

        return Arena()

    def state_memory(self, n_bytes: int) -> StateMemory:
        return _HostMemory(n_bytes)

    def place_of(self, tensors: Sequence[Any], names: Sequence[str]) -> Place | None:
        for tensor, name in zip(tensors, names, strict=False):
            if _is_torch(tensor) and tensor.device.type != "cpu":
                raise InputError(f"input {name} is on {tensor.device}, the program runs on the CPU")
        return None


_CPU_MAKER = _CpuMaker()


class _HostMemory:
    """Aligned to a cache line; pages that nobody has touched cost nothing."""

    def __init__(self, n_bytes: int) -> None:
        memory = np.zeros(n_bytes + _LINE_BYTES, np.uint8)
        skip = -memory.ctypes.data % _LINE_BYTES
        self._bytes = memory[skip : skip + n_bytes]

    @property
    def address(self) -> int:
        return self._bytes.ctypes.data

    def clear(self, offset: int, n_bytes: int) -> None:
        self._bytes[offset : offset + n_bytes] = 0


class _DeviceMemory:
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


class _CudaMaker:
    """Plans for one GPU; the copies of each program's weights there are kept as long as the program's own."""

    def __init__(self, ordinal: int, device: Any) -> None:
        self.ordinal, self.device = ordinal, device
        self.text = f"cuda {device.target} {device.name}"
        self._lock = threading.Lock()

    def plan(self, graph: Graph, weights: Weights, stream: Stream | None = None) -> Any:
        from ree.device.planner import DevicePlanner
        from ree.device.weights import DeviceWeights

        with self._lock:
            there = weights.elsewhere.setdefault(self, DeviceWeights(weights, self.device))
        return DevicePlanner(graph, there, stream).run()

    def packed_bytes(self, weights: Weights) -> int:
        return weights.elsewhere[self].packed_bytes if self in weights.elsewhere else 0

    def arena(self) -> Any:
        from ree.device.plan import DeviceArena

        return DeviceArena(self.device)

    def state_memory(self, n_bytes: int) -> StateMemory:
        return _DeviceMemory(self.device, n_bytes)

    def place_of(self, tensors: Sequence[Any], names: Sequence[str]) -> Place | None:
        on_device = [_is_torch(tensor) and tensor.device.type == "cuda" for tensor in tensors]
        if not any(on_device):
            return None
        for tensor, name, there in zip(tensors, names, on_device, strict=False):
            where = tensor.device if _is_torch(tensor) else "the host"
            if not there or tensor.device.index != self.ordinal:
                raise InputError(f"input {name} is on {where}, others or the program on cuda:{self.ordinal}")
        return Place(self.ordinal, self.device, sys.modules["torch"])


_makers: dict[tuple[int, int], _CudaMaker] = {}


def _cuda_maker(ordinal: int) -> _CudaMaker:
    from ree_kernels import cuda

    with images.errors():
        device = cuda.device(ordinal)
    return _makers.setdefault((ordinal, id(device)), _CudaMaker(ordinal, device))


def _is_torch(tensor: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


class Place:
    """A GPU on which tensors of torch lie; as a context, what runs inside is in the order of torch's own work there."""

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

    def aligned(self, tensors: Sequence[Any]) -> list[Any]:
        """The tensors, those that kernels cannot read as they lie copied."""
        dense = [tensor.contiguous() for tensor in tensors]
        return [tensor.clone() if tensor.data_ptr() % ALIGN_BYTES else tensor for tensor in dense]

    def on_host(self, tensors: Sequence[Any]) -> list[Any]:
        """The tensors, copied to the host."""
        return [tensor.cpu() for tensor in tensors]

    def from_host(self, tensors: Sequence[Any]) -> list[Any]:
        """Tensors of the host, copied to the device."""
        return [tensor.to(self.name) for tensor in tensors]
