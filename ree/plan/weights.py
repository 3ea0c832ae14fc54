"""Constants as kernels want them: plain arrays, and matrices packed once into panels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ree.graph import Constant
from ree.plan.layout import Layout


def strided(data: np.ndarray, layout: Layout) -> np.ndarray:
    """An array seen through a layout over its elements."""
    flat = data.reshape(-1)[layout.offset :]
    return np.lib.stride_tricks.as_strided(flat, layout.shape, tuple(s * data.itemsize for s in layout.strides))


@dataclass(eq=False)
class Weights:
    """The constants of a program, with packed forms made on demand and shared by all its plans.

    A packed matrix is keyed by constant, layout and kind, so that tied weights are packed once
    for each use that differs.
    """

    constants: list[Constant]
    _plain: dict[int, np.ndarray] = field(default_factory=dict)
    _packed: list[Any] = field(default_factory=list)
    _numbers: dict[tuple[Any, ...], int] = field(default_factory=dict)
    elsewhere: dict[Any, Any] = field(default_factory=dict)  # by device: their copies there, which go when they go
    _lock: Any = field(default_factory=threading.RLock)  # programs for several devices share them

    def address(self, kind: str, number: int) -> int:
        """Address of a plain ("constant") or "packed" buffer."""
        if kind == "packed":
            return int(self._packed[number].ctypes.data)
        with self._lock:
            if number not in self._plain:
                self._plain[number] = np.ascontiguousarray(self.array(number))
            return int(self._plain[number].ctypes.data)

    def renew_lock(self) -> None:
        """In a forked child nobody is there to release a lock that was held."""
        self._lock = threading.RLock()

    def array(self, number: int) -> np.ndarray:
        """The plain data of a constant; what comes from a file is read anew and not kept."""
        return self.constants[number].array()

    def packed(self, key: tuple[Any, ...], make: Callable[[], np.ndarray]) -> tuple[int, int]:
        """Number and size in bytes of the packed form `key`, made by `make` the first time."""
        with self._lock:
            if key not in self._numbers:
                self._packed.append(make())
                self._numbers[key] = len(self._packed) - 1
            number = self._numbers[key]
            return number, int(self._packed[number].nbytes)

    def packed_array(self, number: int) -> np.ndarray:
        """A packed form by its number."""
        found: np.ndarray = self._packed[number]
        return found

    @property
    def packed_bytes(self) -> int:
        """Of all packed forms together."""
        return int(sum(form.nbytes for form in self._packed))

    def recipe(self, number: int) -> tuple[Any, ...]:
        """The key under which a packed form was made: kind, constant, and how it is seen."""
        return next(key for key, found in self._numbers.items() if found == number)
