"""Holds a build of the kernels to IEEE arithmetic before anything is computed with it."""

from __future__ import annotations

from typing import Any

from ree_kernels import KernelError


def probe(isa: str, module: Any, runtime: Any) -> None:
    """Run `ree_probe` in the default floating-point state; KernelError says what is wrong.

    module: the cffi module of an instruction set; runtime: that of the pool.
    """
    saved = runtime.lib.ree_fp_enter()
    try:
        wrong = module.lib.ree_probe()
    finally:
        runtime.lib.ree_set_fp_state(saved)
    if wrong != module.ffi.NULL:
        raise KernelError(f"the {isa} kernels cannot be trusted here: {module.ffi.string(wrong).decode()}")
