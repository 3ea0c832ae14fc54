"""BLAKE3 on a device equals the package `blake3`: lengths around every size, any alignment, batches, traces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

import ree
from ree.device.hashing import Hashing, committed
from ree.device.images import functions
from ree.device.step import Step
from ree.plan.memory import place_buffers
from ree.plan.step import Buffer, Result, Slot
from ree_kernels.cuda import Device, Launch
from tests.cuda_case import hash_there, on_device
from tools.emulator import device as emulator
from tools.emulator.device import Emulator

KIB, GROUP_BYTES = 1024, 128 * 1024  # a block's chunks
DATA = np.random.default_rng(0).integers(0, 256, (5 << 20) + 64, np.uint8)


def expected(data: np.ndarray) -> bytes:
    return bytes(blake3(data.tobytes()).digest())


def hashed(device: Device, data: np.ndarray, offset: int = 0) -> bytes:
    """The hash of data that lies at the end of an allocation, `offset` bytes behind an aligned address."""
    memory = device.allocate(offset + data.size)
    if data.size:
        device.write(memory.address + offset, data.ctypes.data, data.size)
    return hash_there(device, memory.address + offset, data.size)


LENGTHS = [
    *(0, 1, 3, 4, 5, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049, 3072),
    *(31 * KIB, 32 * KIB - 1, 32 * KIB, 32 * KIB + 1, 33 * KIB + 77, 64 * KIB, 96 * KIB + 1),
    *(GROUP_BYTES - 1, GROUP_BYTES, GROUP_BYTES + 1, 2 * GROUP_BYTES, 3 * GROUP_BYTES + 1025, (1 << 20) + 5),
]


@pytest.mark.parametrize("offset", [0, 1, 2, 4, 8, 15])
def test_lengths(offset: int) -> None:
    device = emulator.shared()
    for length in LENGTHS:
        assert hashed(device, DATA[:length], offset) == expected(DATA[:length]), length


@given(st.integers(0, 300_000), st.integers(0, 31))
@settings(deadline=None, max_examples=60)
def test_any_length_and_place(length: int, offset: int) -> None:
    assert hashed(emulator.shared(), DATA[7 : 7 + length], offset) == expected(DATA[7 : 7 + length])


@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1, (2 << 20) - 1, 2 << 20, 5 << 20])
def test_blocks_that_take_several_rounds(length: int) -> None:
    """With one multiprocessor, so that few bytes are many."""
    assert hashed(Emulator(multiprocessors=1), DATA[:length]) == expected(DATA[:length])


def run(device: Device, steps: Sequence[Step], address: int) -> None:
    """Run steps whose slots lie in memory at `address`."""
    for step, function in zip(steps, functions(device, [s.wanted for s in steps]), strict=True):
        for position, slot in step.pointers:
            step.args[position] = address + slot.offset_bytes
        device.launch(Launch(function, step.grid, step.block, step.shared_bytes, step.args))


def test_many_places_at_once() -> None:
    """More than a launch takes, of all sizes; the memory is overwritten before they are finished."""
    device, rng = emulator.shared(), np.random.default_rng(1)
    lengths = [int(n) for n in rng.choice([0, 1, 900, 1024, 5000, 70_000, 140_000, 300_000], 150)]
    offsets = np.cumsum([0, *lengths]).tolist()
    data = rng.integers(0, 256, offsets[-1], np.uint8)
    memory, hashing = device.allocate(data.size), Hashing(device, len(lengths))
    device.write(memory.address, data.ctypes.data, data.size)
    buffer = Buffer("arena", 0, data.size)
    for number, length in enumerate(lengths):
        hashing.add(number, Slot(buffer, offsets[number]), length)
    assert hashing.waiting_bytes == data.size
    steps = hashing.flush()
    assert len(steps) == 3 and hashing.flush() == []
    run(device, steps, memory.address)
    device.fill(memory.address, 0xFF, data.size)
    run(device, hashing.finish(), memory.address)
    parts = [data[a : a + n] for a, n in zip(offsets, lengths, strict=False)]
    assert hashing.read() == [expected(part) for part in parts]


def test_nothing_to_hash() -> None:
    hashing = Hashing(emulator.shared(), 0)
    assert not hashing.flush() and not hashing.finish() and hashing.read() == []


# -- traces -----------------------------------------------------------------------------------------------


class Chain(torch.nn.Module):
    """Results of several sizes, some of which reuse each other's memory, and an empty one."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sums = torch.softmax(torch.cumsum(x, 0), 1)
        order = torch.argsort(sums, 1)
        best = torch.cumsum(torch.softmax(torch.cumsum(sums, 1), 0), 1)
        return best.sum(1), order, best[:0].cumsum(1)


@pytest.mark.parametrize("shape", [(3, 5), (40, 300)])
@pytest.mark.parametrize("keep", [False, True])
def test_trace(shape: tuple[int, int], keep: bool) -> None:
    x = torch.from_numpy(np.random.default_rng(2).standard_normal(shape).astype(np.float32))
    program = ree.compile(Chain(), (x,))
    other = on_device(program)
    _, trace = program.run(x, commit=True, keep=keep)
    for _ in range(2):  # recorded, then replayed
        _, found = other.run(x, commit=True, keep=keep)
        assert trace is not None and found is not None and found.root == trace.root


@pytest.mark.parametrize("batch_bytes", [0, 10_000, 1 << 30])
def test_batches_hold_their_results(batch_bytes: int) -> None:
    """Memory that is placed for the steps with their hashes is not used again before these."""
    x = torch.zeros((20, 2000))
    plan = on_device(ree.compile(Chain(), (x,))).plan(())
    sizes = [plan.graph.type_of(result.value).size_bytes() for result in plan.results]
    steps, _ = committed(plan.device, plan.steps, plan.results, sizes, batch_bytes)
    hashes = [n for n, step in enumerate(steps) if step.name == "hash"]
    assert [step for step in steps if step.name != "hash"] == plan.steps
    assert len(hashes) == {0: len([n for n in sizes if n]) + 1, 1 << 30: 2}.get(batch_bytes, len(hashes))
    offsets, _ = place_buffers(steps)
    for result in plan.results:
        if result.slot.buffer.kind == "arena":
            assert_untouched(steps, result, offsets)


def assert_untouched(steps: Sequence[Step], result: Result, offsets: dict[Buffer, int]) -> None:
    """No step between a result's own and its hash has another buffer where it lies."""
    buffer = result.slot.buffer
    uses = [n for n, step in enumerate(steps) if any(slot.buffer is buffer for _, slot in step.pointers)]
    start, end = offsets[buffer], offsets[buffer] + buffer.size_bytes
    assert any(steps[n].name == "hash" for n in uses)
    for step in steps[uses[0] : uses[-1]]:
        for _, slot in step.pointers:
            other = slot.buffer
            if other.kind == "arena" and other is not buffer:
                assert offsets[other] >= end or offsets[other] + other.size_bytes <= start
