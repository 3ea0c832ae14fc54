"""Cross-compiles the kernels and the runner, emits the JIT's objects, and links one executable for each processor."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from ree.element import jit
from ree.plan.fuse import Kernel
from ree_kernels.build import COMMON_FLAGS, RUNTIME_SOURCES, SOURCES, kernel_names
from tools.cross.job import C_KERNELS, OWN_KERNELS
from tools.cross.targets import CrossError, Processor

OWN_SOURCES = [Path(__file__).resolve().with_name(f"{name}.c") for name in ("runner", "draw")]
# what an emitted object may ask of the C library: exact functions alone
ALLOWED = {"fma", "fmaf", "memcpy", "memmove", "memset"}
_WORKERS = min(4, os.cpu_count() or 1)


def symbols_of(kernels: Mapping[str, Kernel]) -> list[str]:
    """Every kernel that the runner links, in the order of its table."""
    return [*C_KERNELS, *OWN_KERNELS, *sorted(kernels)]


def build(processor: Processor, kernels: Mapping[str, Kernel], directory: Path) -> Path:
    """The static executable that runs jobs over these kernels; CrossError with the tool's words if one fails.

    directory: shared by the processors, so that those with equal targets share emitted objects.
    """
    own = directory / processor.name.replace(" ", "-")
    own.mkdir(parents=True, exist_ok=True)
    table = own / "symbols.c"
    table.write_text(_table(symbols_of(kernels)))
    sources = [*OWN_SOURCES, table, *(SOURCES / f"{name}.c" for name in (*kernel_names(), *RUNTIME_SOURCES))]
    compiled = [own / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(_WORKERS) as pool:  # gcc works beside LLVM
        done = [pool.submit(_compile, processor, *pair) for pair in zip(sources, compiled, strict=True)]
        emitted = _emit(processor, kernels, directory)
        for future in done:
            future.result()
    _check_undefined(processor, emitted)
    listed = own / "objects.txt"
    listed.write_text("\n".join(str(path) for path in [*compiled, *emitted]))
    executable = own / "runner"
    _call([processor.tool("gcc"), "-static", "-pthread", f"@{listed}", "-lm", "-o", str(executable)])
    return executable


def run(processor: Processor, executable: Path, job: Path, threads: int, timeout_s: float) -> bytes:
    """The output bytes of a job under the processor's emulator."""
    out = job.with_suffix(".out")
    _call([*processor.emulator, str(executable), str(job), str(out), str(threads)], timeout_s)
    return out.read_bytes()


def _compile(processor: Processor, source: Path, target: Path) -> None:
    flags = [*COMMON_FLAGS, *processor.flags, "-pthread", f"-I{SOURCES}"]
    _call([processor.tool("gcc"), *flags, "-c", str(source), "-o", str(target)])


def _emit(processor: Processor, kernels: Mapping[str, Kernel], directory: Path) -> list[Path]:
    """The objects of the kernels as ree's printer and LLVM make them for this processor."""
    target = jit.machine_target(processor.machine, processor.isa)
    shared = directory / blake3(target.text.encode()).hexdigest()[:16]
    shared.mkdir(exist_ok=True)
    paths = [shared / f"{name}.o" for name in sorted(kernels)]
    for path in paths:
        if not path.exists():
            kernel = kernels[path.stem]
            where = (target.triple, target.cpu, target.features)
            path.write_bytes(jit.emit_object(kernel.program, kernel.structure(), *where, path.stem))
    return paths


def _check_undefined(processor: Processor, objects: Sequence[Path]) -> None:
    """Hold emitted objects to `ALLOWED`: no other function of the C library may reach a result."""
    if not objects:
        return
    listing = _call([processor.tool("nm"), "-u", *map(str, objects)])
    found = {words[1] for line in listing.splitlines() if len(words := line.split()) == 2 and words[0] == "U"}
    if found - ALLOWED:
        raise CrossError(f"{processor.name}: emitted objects call {', '.join(sorted(found - ALLOWED))}")


def _table(symbols: Sequence[str]) -> str:
    declarations = "\n".join(
        f"void {name}(const void *, int64_t, int64_t, int64_t, int64_t, void *);" for name in symbols
    )
    return (
        f'#include "abi.h"\n{declarations}\n'
        f"const ree_kernel ree_symbols[] = {{{', '.join(symbols)}}};\n"
        f"const int64_t ree_symbol_count = {len(symbols)};\n"
    )


def _call(command: list[str], timeout_s: float = 600) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise CrossError(f"{command[0]} took longer than {timeout_s:.0f} s") from None
    if done.returncode:
        raise CrossError(f"{' '.join(command[:2])} ... failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return done.stdout
