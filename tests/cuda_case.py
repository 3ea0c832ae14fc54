"""A program on the emulated device and on the processor, compared byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import ree
from ree.device.hashing import recorded
from ree.program import Program
from ree_kernels import cuda
from tools.emulator import device as emulator


def on_device(program: Program) -> Program:
    """The same program on the emulated device."""
    with cuda.use(emulator.shared()):
        return program.to("cuda")


def same_on_device(model: Any, inputs: Sequence[Any], **options: Any) -> Program:
    """Compile a model, run it on both, compare the outputs' bytes; gives the program on the device."""
    program = ree.compile(model, tuple(inputs), **options)
    other = on_device(program)
    same_outputs(program, other, inputs)
    return other


def same_outputs(program: Program, other: Program, inputs: Sequence[Any]) -> None:
    """Run both programs on the inputs and compare every byte."""
    expected, found = program.run_flat(inputs), other.run_flat(inputs)
    for number, (a, b) in enumerate(zip(program.output_bytes(expected), other.output_bytes(found), strict=True)):
        if a != b:
            dtype = program.graph.type_of(program.graph.outputs[number]).dtype
            size = f"u{dtype.size_bytes}"
            differing = np.flatnonzero(np.frombuffer(a, size) != np.frombuffer(b, size))
            raise AssertionError(f"output {number}: {len(differing)} elements differ, the first is {differing[0]}")


def kernels_of(program: Program, where: Callable[[Any], bool] = lambda step: True) -> list[str]:
    """The kernels that a static program launches, in order."""
    return [step.kernel for step in program.plan(()).steps if where(step)]


def hash_there(device: cuda.Device, address: int, n_bytes: int) -> bytes:
    """The BLAKE3 hash of device memory, made there."""
    replay, hashing = recorded(device, address, n_bytes)
    replay.run()
    return hashing.read()[0]
