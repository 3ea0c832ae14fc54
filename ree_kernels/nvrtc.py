"""CUDA C to an image through NVRTC; needs no GPU.

The options below are part of the results' bits: no contraction, subnormals kept, division and square roots correctly
rounded. `ree.cuh` asks for all this by itself; the options hold what is written without it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ree_kernels import KernelError
from ree_kernels import cuda as kernels

INSTALL = "pip install 'ree[cuda]'"
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
CAPABILITY_MIN = (7, 5)
OWN_INSTRUCTIONS = 90  # from here on, sm_NNa has instructions that no other number runs
SHOWN_ERRORS = 3


class Image(NamedTuple):
    """What a device loads; kind: "cubin" (machine code of one architecture) or "ptx" (compiled by the driver)."""

    data: bytes
    log: str
    kind: str


class Resources(NamedTuple):
    """What a kernel takes: registers of a thread, bytes of static shared memory of a block, local bytes of a thread.

    spill_bytes: of the stores and loads that registers are saved with.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


def compile(text: str, architecture: str, lineinfo: bool = False) -> Image:
    """The image of a text for "sm_90a", or PTX for "compute_90"; KernelError has the first errors.

    lineinfo: with the lines of the text, for profilers.
    """
    cubin = architecture.startswith("sm_")
    extra = [*(["--generate-line-info"] if lineinfo else []), *(["--ptxas-options=-v"] if cubin else [])]
    return _build(text, architecture, extra)


def ptx(text: str, architecture: str) -> str:
    """The PTX that an image for `architecture` is made from."""
    return _build(text, architecture.replace("sm_", "compute_"), []).data.decode().rstrip("\0")


def architecture(capability: tuple[int, int], known: Sequence[int] | None = None) -> str:
    """What to compile for: the device itself or, if NVRTC does not know it, the newest virtual device below it.

    known: numbers as `architectures()` gives them, which is the default.
    """
    number = 10 * capability[0] + capability[1]
    if capability < CAPABILITY_MIN:
        least = ".".join(map(str, CAPABILITY_MIN))
        raise KernelError(f"compute capability {capability[0]}.{capability[1]}: {least} or later is needed")
    known = architectures() if known is None else known
    if number in known:
        return f"sm_{number}a" if number >= OWN_INSTRUCTIONS else f"sm_{number}"
    below = [n for n in known if n < number]
    if not below:
        raise KernelError(f"NVRTC {version()} compiles for no device of compute capability {number / 10}")
    return f"compute_{max(below)}"


@functools.cache
def version() -> str:
    """NVRTC's own version, such as "12.9.86"."""
    build = re.search(r"V(\d+\.\d+\.\d+)", ptx("", f"sm_{architectures()[0]}"))
    return build[1] if build is not None else ".".join(str(part) for part in _call("nvrtcVersion"))


@functools.cache
def architectures() -> tuple[int, ...]:
    """Compute capabilities that NVRTC knows, as 10 * major + minor, ascending."""
    return tuple(sorted(_call("nvrtcGetSupportedArchs")))


def headers(text: str) -> dict[str, str]:
    """The project's headers that a text includes, also through one another; an image depends on them as on the text."""
    found: dict[str, str] = {}
    waiting = [text]
    while waiting:
        for name in re.findall(r'^\s*#\s*include\s+"([\w.]+)"', waiting.pop(), flags=re.M):
            if name not in found and (kernels.SOURCES / name).is_file():
                found[name] = kernels.source(name)
                waiting.append(found[name])
    return found


def resources(image: Image) -> dict[str, Resources]:
    """What each kernel of a cubin takes, by name; as the assembler reported it."""
    found: dict[str, Resources] = {}
    parts = re.split(r"Compiling entry function '(\w+)'", image.log)
    for name, report in zip(parts[1::2], parts[2::2], strict=True):
        stack = re.search(
            rf"Function properties for {name}\s.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill",
            report,
            flags=re.S,
        )
        used = re.search(r"Used (\d+) registers([^\n]*)", report)
        if stack is None or used is None:
            raise KernelError(f"{name}: NVRTC {version()} does not say what it takes: {report.strip()[:200]}")
        shared = re.search(r"(\d+) bytes smem", used[2])
        found[name] = Resources(
            int(used[1]), int(shared[1]) if shared else 0, int(stack[1]), int(stack[2]) + int(stack[3])
        )
    return found


def _build(text: str, architecture: str, extra: list[str]) -> Image:
    included = headers(text)
    contents = [content.encode() for content in included.values()]
    program = _call(
        "nvrtcCreateProgram",
        text.encode(),
        b"kernels.cu",
        len(included),
        contents,
        [name.encode() for name in included],
    )
    try:
        options = [option.encode() for option in (*OPTIONS, f"-arch={architecture}", *extra)]
        status = _bindings().nvrtcCompileProgram(program, len(options), options)[0]
        log = _bytes("ProgramLog", program).decode(errors="replace").rstrip("\0 \n")
        if int(status):
            raise KernelError(f"kernels do not compile for {architecture}: {_errors(log) or status.name}")
        kind = "cubin" if architecture.startswith("sm_") else "ptx"
        return Image(_bytes(kind.upper(), program), log, kind)
    finally:
        _bindings().nvrtcDestroyProgram(program)


def _errors(log: str) -> str:
    errors = [" ".join(line.split()) for line in log.splitlines() if "error:" in line]
    more = f"; and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
    return "; ".join(errors[:SHOWN_ERRORS]) + more


def _bytes(what: str, program: Any) -> bytes:
    buffer = bytearray(_call(f"nvrtcGet{what}Size", program))
    _call(f"nvrtcGet{what}", program, buffer)
    return bytes(buffer)


def _call(name: str, *arguments: Any) -> Any:
    """A function of NVRTC: its one result, or a list of several."""
    try:
        status, *results = getattr(_bindings(), name)(*arguments)
    except RuntimeError as error:  # how the bindings say that the library is not there
        raise KernelError(f"no NVRTC ({str(error).splitlines()[0]}): {INSTALL}") from None
    if int(status):
        raise KernelError(f"{name} failed: {status.name}")
    return results[0] if len(results) == 1 else results


@functools.cache
def _bindings() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise KernelError(f"CUDA needs packages that are not installed ({error}): {INSTALL}") from None
    return nvrtc
