"""ree: a deterministic compiler for machine learning. Same program, same input, same bits, everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ree.errors import (
    CaptureError,
    DeviceError,
    DTypeError,
    Error,
    FormatError,
    GraphError,
    InputError,
    LimitError,
    RunError,
    ShapeError,
    UnsupportedError,
    VerificationError,
)

if TYPE_CHECKING:
    from ree.api import Program, Signer, check, compile, dispute, load, load_trace, threads, verify

__version__ = "0.1.0"
_LAZY = ("Program", "Signer", "check", "compile", "dispute", "load", "load_trace", "threads", "verify")

__all__ = [
    "CaptureError",
    "DTypeError",
    "DeviceError",
    "Error",
    "FormatError",
    "GraphError",
    "InputError",
    "LimitError",
    "Program",
    "RunError",
    "ShapeError",
    "Signer",
    "UnsupportedError",
    "VerificationError",
    "check",
    "compile",
    "dispute",
    "load",
    "load_trace",
    "threads",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports what needs NumPy and the kernels only when it is used, so that `import ree` is quick."""
    if name in _LAZY:
        import ree.api

        return getattr(ree.api, name)
    if name == "referee":
        import ree.referee

        return ree.referee
    raise AttributeError(f"module 'ree' has no attribute {name!r}")
