"""`python -m tools.device.texts`: what every CUDA kernel takes on every kind of card, as docs/GPU_KERNELS.md.

Compiled by NVRTC, without a GPU: registers of a thread, static shared memory of a block, bytes that are spilled.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from ree.device.step import Step
from ree.lm.rows import POSITIONS
from ree.plan.stream import Stream
from ree.program import Program
from ree_kernels import cuda, nvrtc
from tools.cross import language, models, streamed
from tools.device.cases import deep_convolution
from tools.emulator import device as emulator

TARGET = Path(__file__).resolve().parent.parent.parent / "docs" / "GPU_KERNELS.md"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")
PRINTED = "ree_fused"
WORDS = (
    "The hand-written kernels of the proof's programs and language models (`tools/device/texts.py`), compiled by NVRTC"
)


@functools.cache
def texts() -> dict[str, set[str]]:
    """Every text of the proof's programs and of a language model's steps, with the names of its kernels."""
    found: dict[str, set[str]] = {}
    for step in _steps():
        found.setdefault(step.text, set()).add(step.kernel)
    return found


def by_hand() -> dict[str, set[str]]:
    """The texts of hand-written kernels."""
    return {text: names for text, names in texts().items() if names != {PRINTED}}


def printed() -> list[str]:
    """The texts that are printed from element programs."""
    return [text for text, names in texts().items() if names == {PRINTED}]


def _steps() -> Iterator[Step]:
    with cuda.use(emulator.shared()):
        for case in (*models.full(), *language.full(), deep_convolution()):
            assert case.program is not None
            yield from case.program.to("cuda").plan(()).committed_steps[0]
        for architecture in ("llama", "gemma2"):
            program = streamed.model(architecture, "bf16").to("cuda")
            for rows in (1, 40):
                yield from _streamed(program, rows)


def _streamed(program: Program, rows: int) -> list[Step]:
    plan = program.streamed_plan(streamed.binding(program, rows, 1), Stream(POSITIONS, streamed.CONTEXT))
    return list(plan.steps)


def table() -> str:
    """The kernels in Markdown: of variants of one kernel, the most that any takes."""
    most: dict[str, dict[str, nvrtc.Resources]] = {}
    for text in by_hand():
        for architecture in ARCHITECTURES:
            for name, taken in nvrtc.resources(nvrtc.compile(text, architecture)).items():
                known = most.setdefault(name, {}).get(architecture, nvrtc.Resources(0, 0, 0, 0))
                most[name][architecture] = nvrtc.Resources(*map(max, known, taken))
    head = "| kernel | " + " | ".join(f"{a}: registers | shared | spilled" for a in ARCHITECTURES) + " |"
    lines = [head, "|---|" + "---:|" * (3 * len(ARCHITECTURES))]
    for name, by_architecture in sorted(most.items()):
        cells = [by_architecture[a] for a in ARCHITECTURES]
        shown = " | ".join(f"{c.registers} | {c.shared_bytes} | {c.spill_bytes}" for c in cells)
        lines.append(f"| `{name}` | {shown} |")
    return "\n".join(lines)


def main() -> int:
    """Write the table."""
    about = (
        f"{WORDS} {nvrtc.version()}: registers of a thread, bytes of static shared memory of a block, bytes spilled."
    )
    head = "# Kernels for GPUs\n\nWritten by `python -m tools.device.texts`; do not edit."
    TARGET.write_text(f"{head} {about}\n\n{table()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
