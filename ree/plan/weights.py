"""Constants as kernels want them: plain arrays, and matrices packed once into panels."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from ree.graph import Constant
from ree.plan.layout import Layout

Form = TypeVar("Form")


def strided(data: np.ndarray, layout: Layout) -> np.ndarray:
    """An array seen through a layout over its elements."""
    flat = data.reshape(-1)[layout.offset :]
    return np.lib.stride_tricks.as_strided(flat, layout.shape, tuple(s * data.itemsize for s in layout.strides))


class Forms(ABC, Generic[Form]):
    """A program's constants in the forms that kernels read, each made once, when it is first used.

    A packed form is keyed by constant, layout and kind, so that tied weights are packed once for each use that differs.
    Programs on several devices share them, and so do their threads.
    """

    def __init__(self) -> None:
        self._plain: dict[int, Form] = {}
        self._packed: list[Form] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._lock = threading.RLock()

    @abstractmethod
    def array(self, number: int) -> np.ndarray:
        """The plain data of a constant, on the host."""

    @abstractmethod
    def keep(self, array: np.ndarray) -> Form:
        """An array where kernels read it."""

    @abstractmethod
    def place(self, form: Form) -> tuple[int, int]:
        """The address and the size in bytes of what was kept."""

    def address(self, kind: str, number: int) -> int:
        """Address of a plain ("constant") or "packed" buffer."""
        with self._lock:
            if kind == "packed":
                return self.place(self._packed[number])[0]
            if number not in self._plain:
                self._plain[number] = self.keep(self.array(number))
            return self.place(self._plain[number])[0]

    def packed(self, key: tuple[Any, ...], make: Callable[[], np.ndarray]) -> tuple[int, int]:
        """Number and size in bytes of the packed form `key`, made by `make` the first time."""
        with self._lock:
            if key not in self._numbers:
                self._packed.append(self.keep(make()))
                self._numbers[key] = len(self._packed) - 1
            number = self._numbers[key]
            return number, self.place(self._packed[number])[1]

    @property
    def packed_bytes(self) -> int:
        """Of all packed forms together."""
        return sum(self.place(form)[1] for form in self._packed)

    def renew_lock(self) -> None:
        """In a forked child nobody is there to release a lock that was held."""
        self._lock = threading.RLock()


class Weights(Forms[np.ndarray]):
    """The constants of a program on this machine; elsewhere: by device their copies there, which go when they go."""

    def __init__(self, constants: list[Constant]) -> None:
        super().__init__()
        self.constants = constants
        self.elsewhere: dict[Any, Any] = {}

    def renew_lock(self) -> None:
        super().renew_lock()
        for there in self.elsewhere.values():
            there.renew_lock()

    def array(self, number: int) -> np.ndarray:
        """The plain data of a constant; what comes from a file is read anew and not kept."""
        return self.constants[number].array()

    def keep(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array)

    def place(self, form: np.ndarray) -> tuple[int, int]:
        return int(form.ctypes.data), int(form.nbytes)

    def packed_array(self, number: int) -> np.ndarray:
        """A packed form by its number."""
        return self._packed[number]

    def recipe(self, number: int) -> tuple[Any, ...]:
        """The key under which a packed form was made: kind, constant, and how it is seen."""
        return next(key for key, found in self._numbers.items() if found == number)
