"""What is proved on a device: the cases of tools.cross, generations and trace roots, each as bytes to be compared.

Every case has a name and gives its bytes for a device: "cpu" (what the committed digests are of) or "cuda".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from ree.device.images import errors
from ree.device.planner import fused_step
from ree.device.step import Step, load
from ree.errors import RunError
from ree.program import Program
from ree_kernels import cuda
from tools.cross import elements, language, models, streamed
from tools.cross.job import Case as CrossCase

TOKENS = 64
PROMPT = (5, 17, 3, 96, 41, 8, 8, 60)


@dataclass(frozen=True)
class Case:
    """A name, and what gives the bytes on a device."""

    name: str
    run: Callable[[str], bytes]


def quick() -> Iterator[Case]:
    """A part of everything, for an emulated device."""
    for case in elements.quick():
        if _is_printed(case):
            yield Case(f"{case.name}, a part", lambda device, case=case: _printed(case, device))  # type: ignore[misc]
    for case in (*models.quick(), *language.quick()):
        yield from _program_cases(case)
    yield generation("llama", "fp32", 16)


def full() -> Iterator[Case]:
    """Every instruction, function and fold, every kernel at its boundary shapes, models, generations, trace roots."""
    for case in elements.full():
        if _is_printed(case):
            yield Case(case.name, lambda device, case=case: _printed(case, device))  # type: ignore[misc]
    for case in (*models.full(), *language.full(), language.wrong_expert(), deep_convolution()):
        yield from _program_cases(case)
    for architecture in streamed.OWN:
        for dtype in ("fp32", "bf16", "int8"):
            yield generation(architecture, dtype, TOKENS)


def deep_convolution() -> CrossCase:
    """Few places, many channels: chunks go to blocks of their own."""
    torch.manual_seed(7)
    return models.case("deep convolution", torch.nn.Conv2d(96, 20, 3), models.hard(1, 96, 4, 4))


# -- element programs, one by one --------------------------------------------------------------
def _is_printed(case: CrossCase) -> bool:
    """Whether all of a case's steps are element programs (the processor's own kernels have no other text)."""
    return all(step.kernel is not None for step in case.plan.steps)


def _printed(case: CrossCase, device: str) -> bytes:
    if device == "cpu":
        return case.run_here()
    with errors():
        return _Sheet(case, cuda.device()).run()


class _Sheet:
    """A case's element programs as launches over memory of their own."""

    def __init__(self, case: CrossCase, device: cuda.Device) -> None:
        self.case, self.device = case, device
        self.inputs = [self._copied(np.ascontiguousarray(array)) for array in case.inputs]
        self.outputs = [self._copied(np.zeros(max(1, t.size_bytes()), np.uint8)) for t in case.outputs]
        self.status = self._copied(np.zeros(1, np.int64))

    def _copied(self, array: np.ndarray) -> cuda.Memory:
        memory = self.device.allocate(max(8, array.nbytes))
        if array.nbytes:
            self.device.write(memory.address, array.ctypes.data, array.nbytes)
        return memory

    def run(self) -> bytes:
        steps = [self._step(step) for step in self.case.plan.steps if prod(step.shape)]
        load(self.device, steps)
        for step in steps:
            self.device.launch(step.launch())
        found = [np.zeros(t.size_bytes(), np.uint8) for t in self.case.outputs]
        status = np.zeros(1, np.int64)
        for array, memory in zip((*found, status), (*self.outputs, self.status), strict=True):
            if array.nbytes:
                self.device.read(array.ctypes.data, memory.address, array.nbytes)
        return b"".join(array.tobytes() for array in found) + int(status[0]).to_bytes(8, "little")

    def _step(self, step: object) -> Step:
        made = fused_step(step.name, step.kernel, [slot for _, slot in step.pointers])  # type: ignore[attr-defined]
        memories = {"input": self.inputs, "output": self.outputs, "status": [self.status]}
        for position, slot in made.pointers:
            made.args[position] = memories[slot.buffer.kind][slot.buffer.number].address + slot.offset_bytes
        return made


# -- programs -------------------------------------------------------------------------------------
def _program_cases(case: CrossCase) -> Iterator[Case]:
    """A program's outputs, and the root of its trace."""
    program = case.program
    assert program is not None
    yield Case(case.name, lambda device: outputs(program.to(device), case.inputs))
    yield Case(f"{case.name}: trace root", lambda device: trace_root(program.to(device), case.inputs))


def outputs(program: Program, inputs: list[np.ndarray]) -> bytes:
    """The bytes of a program's outputs, or that it refuses its inputs."""
    try:
        return b"".join(program.output_bytes(program.run_flat(inputs)))
    except RunError:
        return b"refused"


def trace_root(program: Program, inputs: list[np.ndarray]) -> bytes:
    """The root of the trace of a run, or that it refuses its inputs."""
    try:
        return program.run_committed(inputs)[1].root
    except RunError:
        return b"refused"


# -- generations -------------------------------------------------------------------------------------
def generation(architecture: str, dtype: str, tokens: int) -> Case:
    """Tokens that a small language model draws one by one after a prompt, with their logits."""
    return Case(
        f"{tokens} tokens of {architecture} in {dtype}",
        lambda device: generated(streamed.model(architecture, dtype).to(device), tokens),
    )


def generated(program: Program, tokens: int) -> bytes:
    """The likeliest tokens after `PROMPT` (i64) and the logits that they were chosen by, step by step over a cache."""
    from ree.lm.engine import Engine, Row

    engine = Engine(program, context=len(PROMPT) + tokens)
    slot = engine.open()
    last = len(PROMPT) - 1
    logits = engine.step([Row(token, n, slot, n == last) for n, token in enumerate(PROMPT)])
    found, parts = [], []
    for position in range(len(PROMPT), len(PROMPT) + tokens):
        found.append(int(np.argmax(logits[0])))
        parts.append(logits.tobytes())
        logits = engine.step([Row(found[-1], position, slot, True)])
    return np.array(found, np.int64).tobytes() + b"".join(parts)
