"""The errors that `ree` raises: one root, one class for each kind of cause.

A caller who catches `ree.Error` has caught everything that bad input can cause.
"""

from __future__ import annotations


class Error(Exception):
    """Root of every error that ree raises on purpose."""


class CaptureError(Error):
    """The model cannot be captured as a graph (data-dependent control flow, graph break)."""


class UnsupportedError(Error):
    """The model uses an operator, dtype or option that ree does not define."""


class GraphError(Error):
    """A graph or an element program breaks the grammar (a bug of ree or a hostile file)."""


class ShapeError(Error):
    """Shapes do not fit the operator or the program's declared inputs."""


class DTypeError(Error):
    """A dtype does not fit the operator or the program's declared inputs."""


class InputError(Error):
    """Inputs at a call do not fit the program (count, names, kind of object)."""


class RunError(Error):
    """The program met a value that its operators refuse (an index out of range)."""


class FormatError(Error):
    """A file is truncated, corrupted, or no file of ours."""


class DeviceError(Error):
    """The processor, or the process's floating-point state, cannot give the defined bits."""


class LimitError(Error):
    """A bound from ree.limits was exceeded."""


class VerificationError(Error):
    """A claim was checked and found wrong."""
