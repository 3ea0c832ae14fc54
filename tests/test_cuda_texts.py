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
SPILL_BYTES_MAX = 0  # of kernels that are written by hand
PRINTED = "ree_fused"


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


def by_hand() -> dict[str, set[str]]:
    return {text: names for text, names in texts().items() if names != {PRINTED}}


def printed() -> list[str]:
    return [text for text, names in texts().items() if names == {PRINTED}]


def test_all_kinds_of_text_are_here() -> None:
    names = {name for kernels in texts().values() for name in kernels}
    wanted = "matmul conv attention sort scan scatter blake3 experts i8".split()
    missing = [part for part in wanted if not any(part in name for name in names)]
    assert not missing, f"no kernel for {missing} among {sorted(names)}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_by_hand(architecture: str) -> None:
    for text, names in by_hand().items():
        image = nvrtc.compile(text, architecture)
        assert image.kind == "cubin"
        found = nvrtc.resources(image)
        assert names <= set(found)
        for name in names:
            assert found[name].registers <= 255 and found[name].spill_bytes <= SPILL_BYTES_MAX, (name, found[name])
        complaints = audit(nvrtc.ptx(text, architecture), None if "f32_fma" in text or "fma" in own(text) else {})
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
        assert audit(nvrtc.ptx(whole, architecture), fma) == []
