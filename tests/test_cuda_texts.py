"""Every CUDA text compiles for every kind of card, and its PTX holds nothing that could change a bit."""

from __future__ import annotations

import pytest

from ree_kernels import cuda, nvrtc
from tests.ptx_audit import audit
from tools.device.texts import ARCHITECTURES, PRINTED, by_hand, printed

READ = "sm_90a"  # whose PTX is read; that of the others comes from the same text by the same options
REGISTERS_MAX = 255
DEFINING = ("ree.cuh", "values.cuh", "folds.cuh")  # headers that only define what an fma is
APART = ["probe.cu"]  # compiled by test_nvrtc.py


def own(text: str) -> str:
    """A text with the headers that it includes, but for those that define the arithmetic."""
    included = nvrtc.headers(text)
    return text + "".join(content for name, content in included.items() if name not in DEFINING)


def test_every_file_of_kernels_is_among_them() -> None:
    files = sorted(path.name for path in cuda.SOURCES.glob("*.cu"))
    missing = [name for name in files if not any(text.endswith(cuda.source(name)) for text in by_hand())]
    assert len(files) > 10 and missing == APART
    assert printed()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_by_hand(architecture: str) -> None:
    for text, names in by_hand().items():
        image = nvrtc.compile(text, architecture)
        found = nvrtc.resources(image)
        assert image.kind == "cubin" and names <= set(found)
        assert all(taken.registers <= REGISTERS_MAX and not taken.spill_bytes for taken in found.values()), found


def test_ptx_of_kernels_by_hand() -> None:
    for text, names in by_hand().items():
        complaints = audit(nvrtc.ptx(text, READ), None if "_fma(" in own(text) else {})
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
