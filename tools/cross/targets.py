"""The processors that are proved, their compilers and emulators."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ree_kernels.build import ISA_FLAGS, isas
from ree_kernels.cpu import supported

HOST = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
PACKAGES = {
    "aarch64": ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user"),
    "riscv64": ("gcc-riscv64-linux-gnu", "libc6-dev-riscv64-cross", "qemu-user"),
    "x86_64": ("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross", "qemu-user"),
}


class CrossError(Exception):
    """The proof cannot be made: a tool is missing or fails."""


# instructions beyond an instruction set: flags of gcc that let kernels use them, an emulated processor with them
FEATURES = {"": ([], []), "dotprod": (["-march=armv8.2-a+dotprod"], ["-cpu", "max"])}


@dataclass(frozen=True)
class Processor:
    """An instruction set of a machine, perhaps with one of `FEATURES`; native where the machine is this one."""

    machine: str
    isa: str
    feature: str = ""

    @property
    def name(self) -> str:
        return f"{self.machine} {self.isa} {self.feature}".rstrip()

    @property
    def flags(self) -> list[str]:
        return ISA_FLAGS[self.isa] + FEATURES[self.feature][0]

    @property
    def is_native(self) -> bool:
        return self.machine == HOST

    def tool(self, name: str) -> str:
        """The compiler (`gcc`) or a binary tool (`nm`) for this machine."""
        cross = f"{self.machine}-linux-gnu-{name}"
        return name if self.is_native and shutil.which(cross) is None else cross

    @property
    def emulator(self) -> list[str]:
        return [] if self.is_native else [f"qemu-{self.machine}", *FEATURES[self.feature][1]]

    def missing(self) -> list[str]:
        """Tools that this processor needs and that are not installed."""
        wanted = [self.tool("gcc"), self.tool("nm"), *self.emulator[:1]]
        lacking = [tool for tool in wanted if shutil.which(tool) is None]
        if not lacking and not _has_static_libc(self.tool("gcc")):
            lacking.append(f"{self.machine} libc.a")
        return lacking


@functools.cache
def _has_static_libc(compiler: str) -> bool:
    """gcc answers with a bare name for a library that it does not find."""
    found = subprocess.run([compiler, "-print-file-name=libc.a"], capture_output=True, text=True, check=False)
    return Path(found.stdout.strip()).is_absolute()


QUICK = [Processor("aarch64", "neon"), Processor("riscv64", "portable")]


def processors() -> list[Processor]:
    """All instruction sets of this processor, natively, and of the others that have kernels."""
    here = [Processor(HOST, isa) for isa in supported()]
    others = [Processor(machine, isa) for machine in ("aarch64", "riscv64") if machine != HOST for isa in isas(machine)]
    featured = [Processor(machine, isa, "dotprod") for machine, isa in (("aarch64", "neon"),) if machine != HOST]
    return here + others + featured


def missing(processors: list[Processor]) -> str:
    """What is not installed and how to get it, in one line; empty if all is there."""
    lacking = {tool: processor for processor in processors for tool in processor.missing()}
    if not lacking:
        return ""
    packages = dict.fromkeys(name for processor in lacking.values() for name in PACKAGES[processor.machine])
    return f"no {', '.join(lacking)} (Debian: apt-get install --no-install-recommends {' '.join(packages)})"
