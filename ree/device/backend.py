"""Where programs run: what makes plans for a device that is named, and memory and tensors that lie there."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from ree.errors import DeviceError

if TYPE_CHECKING:
    from ree.graph import Graph
    from ree.plan.stream import Stream
    from ree.plan.weights import Weights

CPU = "cpu"
_NAME = re.compile(r"cuda(?::(0|[1-9][0-9]{0,2}))?")


class StateMemory(Protocol):
    """Memory where a program runs, all zeros at first."""

    @property
    def address(self) -> int: ...

    def clear(self, offset: int, n_bytes: int) -> None:
        """Set bytes to zero."""
        ...


class TensorsThere(AbstractContextManager[None], Protocol):
    """Tensors of torch that lie on a device already; as a context, what runs inside is in the order of torch's work.

    name: of the device, as torch has it; torch: the module; align_bytes: of an address that kernels can read.
    """

    name: str
    torch: Any
    align_bytes: int

    def on_host(self, tensors: Sequence[Any]) -> list[Any]:
        """The tensors, copied to the host."""
        ...

    def from_host(self, tensors: Sequence[Any]) -> list[Any]:
        """Tensors of the host, copied to the device."""
        ...


class Backend(Protocol):
    """Makes plans for one device; text: what it is, for people."""

    @property
    def text(self) -> str: ...

    def plan(self, graph: Graph, weights: Weights, stream: Stream | None = None) -> Any: ...

    def arena(self) -> Any: ...

    def packed_bytes(self, weights: Weights) -> int: ...

    def state_memory(self, n_bytes: int) -> StateMemory: ...

    def tensors_there(self, tensors: Sequence[Any], names: Sequence[str]) -> TensorsThere | None:
        """What to do with tensors that lie on the device, None if they lie on the host; InputError if neither."""
        ...


def backend_of(name: str) -> Backend:
    """The backend of "cpu", "cuda" or "cuda:N"; DeviceError for another name, or if there is no such device."""
    if name == CPU:
        from ree.device.cpu import BACKEND

        return BACKEND
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise DeviceError(f"device {name!r} is not supported; use 'cpu', 'cuda' or 'cuda:N'")
    from ree.device.cuda import backend

    return backend(int(found[1] or 0))


def is_torch(tensor: Any) -> bool:
    """Whether it is a tensor of torch, which need not be there."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)
