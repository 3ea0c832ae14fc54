"""Programs on this machine's processor."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ree.device.backend import StateMemory, TensorsThere, is_torch
from ree.errors import InputError

if TYPE_CHECKING:
    from ree.graph import Graph
    from ree.plan.stream import Stream
    from ree.plan.weights import Weights

_LINE_BYTES = 64


class CpuBackend:
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
        return HostMemory(n_bytes)

    def tensors_there(self, tensors: Sequence[Any], names: Sequence[str]) -> TensorsThere | None:
        for tensor, name in zip(tensors, names, strict=False):
            if is_torch(tensor) and tensor.device.type != "cpu":
                raise InputError(f"input {name} is on {tensor.device}, the program runs on the CPU")
        return None


BACKEND = CpuBackend()


class HostMemory:
    """Memory for a plan's state, aligned to a cache line; pages that nobody has touched cost nothing."""

    def __init__(self, n_bytes: int) -> None:
        import numpy as np

        memory = np.zeros(n_bytes + _LINE_BYTES, np.uint8)
        skip = -memory.ctypes.data % _LINE_BYTES
        self._bytes = memory[skip : skip + n_bytes]

    @property
    def address(self) -> int:
        return int(self._bytes.ctypes.data)

    def clear(self, offset: int, n_bytes: int) -> None:
        self._bytes[offset : offset + n_bytes] = 0
