"""Builds the kernels: one shared object per instruction set, and the runtime.

Every `c/NAME.c` with a `c/NAME.h` is a kernel source and is compiled into each module `_ISA`;
the pool is compiled once into `_runtime`. Installation builds them through setup.py;
`python -m ree_kernels.build [MODULE ...]` builds them in place.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from pathlib import Path

from cffi import FFI

PACKAGE = Path(__file__).resolve().parent
SOURCES = PACKAGE / "c"
RUNTIME = "runtime"
RUNTIME_SOURCES = ("pool",)

COMMON_FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-unused-function"]
ISA_FLAGS = {
    "portable": [],
    "avx2": ["-DREE_ISA_AVX2", "-mavx2", "-mfma"],
    "avx512": [
        "-DREE_ISA_AVX512", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma",
        "-mprefer-vector-width=512",
    ],
    "neon": ["-DREE_ISA_NEON"],
}  # fmt: skip


def isas(machine: str = platform.machine()) -> list[str]:
    """Instruction sets that are built for a machine, best last."""
    special = {"x86_64": ["avx2", "avx512"], "AMD64": ["avx2", "avx512"], "aarch64": ["neon"], "arm64": ["neon"]}
    return ["portable", *special.get(machine, [])]


def kernel_names() -> list[str]:
    """Names of the kernel sources: those with a header of their own."""
    names = sorted(path.stem for path in SOURCES.glob("*.c"))
    return [name for name in names if name not in RUNTIME_SOURCES and (SOURCES / f"{name}.h").exists()]


def _declarations(header: str) -> str:
    """A header as cffi reads it: without preprocessor lines."""
    return re.sub(r"^#.*$", "", (SOURCES / f"{header}.h").read_text(), flags=re.M)


def builder_of(module: str, headers: list[str], sources: list[str], flags: list[str], directory: Path) -> FFI:
    ffi = FFI()
    for header in ["abi", *headers]:
        ffi.cdef(_declarations(header))
    ffi.set_source(
        f"ree_kernels._{module}",
        "\n".join(f'#include "{header}.h"' for header in headers),
        sources=[str(directory / f"{name}.c") for name in sources],
        include_dirs=[str(directory)],
        depends=[str(directory / path.name) for path in sorted(SOURCES.glob("*.h"))],
        extra_compile_args=[*COMMON_FLAGS, *flags],
        extra_link_args=["-pthread"],
        libraries=["m"],
    )
    return ffi


def builder(module: str, directory: Path) -> FFI:
    """The cffi builder of a module (`runtime` or an instruction set); `directory` is that of the C sources."""
    if module == RUNTIME:
        return builder_of(RUNTIME, ["runtime"], list(RUNTIME_SOURCES), ["-pthread"], directory)
    return builder_of(module, kernel_names(), kernel_names(), ISA_FLAGS[module], directory)


def build_in_place(module: str) -> Path:
    """Compile a module beside this file; the old one stays until the new one is complete."""
    with tempfile.TemporaryDirectory() as directory:
        built = Path(builder(module, SOURCES).compile(tmpdir=directory, verbose=False))
        target = PACKAGE / built.name
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        fresh.write_bytes(built.read_bytes())
        fresh.chmod(0o755)
        os.replace(fresh, target)
    return target


def main(modules: list[str]) -> None:
    """Build the named modules, or all of this machine's."""
    for module in modules or [RUNTIME, *isas()]:
        print(build_in_place(module).name)


if __name__ == "__main__":
    main(sys.argv[1:])
