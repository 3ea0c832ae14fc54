"""Every CUDA text compiles for every kind of card, and its PTX holds nothing that could change a bit."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from ree.device.step import Step
from ree.lm.rows import POSITIONS
from ree.plan.stream import Stream
from ree_kernels import cuda, nvrtc
from tests.cuda_case import on_device
from tests.ptx_audit import audit
from tools.cross import language, models, streamed
from tools.emulator import device as emulator

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")
READ = "sm_90a"  # whose PTX is read; that of the others comes from the same text by the same options
SPILL_BYTES_MAX = 0  # of kernels that are written by hand
PRINTED = "ree_fused"
DEFINING = ("ree.cuh", "values.cuh", "folds.cuh")


@functools.cache
def texts() -> dict[str, set[str]]:
    """Every text of the proof's programs and of a language model's steps, with the names of its kernels."""
    found: dict[str, set[str]] = {}
    for step in _steps():
        found.setdefault(step.text, set()).add(step.kernel)
    return found


def _steps() -> Iterator[Step]:
    for case in (*models.full(), *language.full()):
        assert case.program is not None
        yield from on_device(case.program).plan(()).committed_steps[0]
    with cuda.use(emulator.shared()):
        for architecture in ("llama", "gemma2"):
            program = streamed.model(architecture, "bf16").to("cuda")
            for rows in (1, 40):
                stream = Stream(POSITIONS, streamed.CONTEXT)
                yield from program.streamed_plan(streamed.binding(program, rows, 1), stream).steps


def own(text: str) -> str:
    """A text without the headers that it includes."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("#include"))


def whole(text: str) -> str:
    """A text with the headers that it includes, but for those that only define what an fma is."""
    included = nvrtc.headers(text)
    return own(text) + "".join(own(content) for name, content in included.items() if name not in DEFINING)


def by_hand() -> dict[str, set[str]]:
    return {text: names for text, names in texts().items() if names != {PRINTED}}


def printed() -> list[str]:
    return [text for text, names in texts().items() if names == {PRINTED}]


def test_every_file_of_kernels_is_among_them() -> None:
    files = sorted(path.name for path in cuda.SOURCES.glob("*.cu"))
    missing = [name for name in files if not any(text.endswith(cuda.source(name)) for text in by_hand())]
    assert len(files) > 10 and missing == ["probe.cu"]  # which tests/test_nvrtc.py compiles
    assert printed()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_by_hand(architecture: str) -> None:
    spilling = []
    for text, names in by_hand().items():
        image = nvrtc.compile(text, architecture)
        assert image.kind == "cubin"
        found = nvrtc.resources(image)
        assert names <= set(found)
        spilling += [(name, taken) for name, taken in found.items() if taken.spill_bytes > SPILL_BYTES_MAX]
    assert not spilling


def test_ptx_of_kernels_by_hand() -> None:
    for text, names in by_hand().items():
        complaints = audit(nvrtc.ptx(text, READ), None if "_fma(" in whole(text) else {})
        assert not complaints, (names, complaints)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_printed_kernels(architecture: str) -> None:
    """All in one module: each has a name of its own, which is no part of what is compiled."""
    with_fma = [text for text in printed() if "_fma(" in own(text) or "_dot" in own(text)]
    without = [text for text in printed() if text not in with_fma]
    assert with_fma and without
    for group, fma in ((without, {}), (with_fma, None)):
        whole = "\n".join(text.replace(PRINTED, f"kernel_{number}") for number, text in enumerate(group))
        found = nvrtc.resources(nvrtc.compile(whole, architecture))
        assert len(found) == len(group)
        if architecture == READ:
            assert audit(nvrtc.ptx(whole, architecture), fma) == []
