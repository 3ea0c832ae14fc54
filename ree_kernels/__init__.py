"""Kernels of `ree` in C: built at installation, chosen for the processor at run time."""


class KernelError(RuntimeError):
    """The kernels cannot be built, loaded, trusted or run on this machine."""
