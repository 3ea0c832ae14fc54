"""Launches that hash what others have written: a batch of results at once, before their memory is used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from blake3 import blake3

from ree.device.images import errors
from ree.device.step import Args, Step, load
from ree.plan.step import Buffer, Result, Slot
from ree_kernels.blake3 import CHUNK_BYTES, CV_BYTES
from ree_kernels.cuda import Device, Replay

_FILE = "blake3.cu"
_THREADS = 128  # chunks that a block hashes at a time
_ROUNDS_MAX = 4  # so often, before it joins them
_BLOCKS_MIN = 4  # for a multiprocessor, before blocks take several rounds
_INPUTS_MAX = 64  # of a launch, as in the file
_JOIN_THREADS = 256
_DEFINES = {"REE_BLAKE3_THREADS": _THREADS}
_EMPTY = blake3().digest()

# A chunk takes its thread some ten microseconds, however few there are: a batch should keep a device busy for longer.
BATCH_BYTES = 64 << 20


class _Input(NamedTuple):
    number: int
    slot: Slot
    n_bytes: int


class Hashing:
    """The BLAKE3 hashes of several places in device memory.

    `add` names a place, `flush` gives the launches that must run while all places named since the last one hold what
    is to be hashed. Those of `finish` may come once at the end, when the memory has long been used again. `read` gives
    the hashes, by number, when all have run.
    """

    def __init__(self, device: Device, places: int) -> None:
        self.device, self.places = device, places
        self._waiting: list[_Input] = []
        self._open: list[tuple[int, int, int]] = []  # values of groups: address and number; address of their root
        self._memory: list[object] = []
        self._empty: list[int] = []
        self._digests = self._allocate(max(1, places) * CV_BYTES)

    def add(self, number: int, slot: Slot, n_bytes: int) -> None:
        """Let the next `flush` hash place `number`."""
        if n_bytes:
            self._waiting.append(_Input(number, slot, n_bytes))
        else:
            self._empty.append(number)

    @property
    def waiting_bytes(self) -> int:
        """The size of the places that were named since the last `flush`."""
        return sum(item.n_bytes for item in self._waiting)

    def flush(self) -> list[Step]:
        """The launches that hash what was added, one for up to 64 places."""
        waiting, self._waiting = self._waiting, []
        return [self._groups(waiting[n : n + _INPUTS_MAX]) for n in range(0, len(waiting), _INPUTS_MAX)]

    def steps(self, number: int, slot: Slot, n_bytes: int) -> Sequence[Step]:
        """The launch that hashes one place, none if it is empty."""
        self.add(number, slot, n_bytes)
        return self.flush()

    def finish(self) -> Sequence[Step]:
        """The launch that joins the groups of every place that has several."""
        if not self._open:
            return []
        table = np.array(self._open, np.int64)
        args = Args(_FILE, "ree_blake3_roots_args")
        args.set(table=self._allocate(table.nbytes))
        with errors():
            self.device.write(int(args.values[0]), table.ctypes.data, table.nbytes)
        step = args.step("hash", "ree_blake3_roots", (len(table), 1, 1), _JOIN_THREADS, 0, _DEFINES)
        self._open = []
        return [step]

    def read(self) -> list[bytes]:
        """The hashes of all places."""
        digests = np.zeros((self.places, CV_BYTES), np.uint8)
        if self.places:
            with errors():
                self.device.read(digests.ctypes.data, self._digests, digests.nbytes)
        for number in self._empty:
            digests[number] = np.frombuffer(_EMPTY, np.uint8)
        return [digest.tobytes() for digest in digests]

    def _allocate(self, n_bytes: int) -> int:
        """The address of so much memory, which is kept."""
        with errors():
            memory = self.device.allocate(n_bytes)
        self._memory.append(memory)
        return int(memory.address)

    def _groups(self, inputs: Sequence[_Input]) -> Step:
        args = Args(_FILE, "ree_blake3_args")
        shapes = [self._shape(item.n_bytes) for item in inputs]
        open_groups = sum(groups for _, groups in shapes if groups > 1)
        values = self._allocate(open_groups * CV_BYTES) if open_groups else 0
        blocks = 0
        for n, (item, (rounds, groups)) in enumerate(zip(inputs, shapes, strict=True)):
            out = self._digests + item.number * CV_BYTES
            if groups > 1:
                self._open.append((values, groups, out))
                out, values = values, values + groups * CV_BYTES
            args.point(**{f"data[{n}]": item.slot})
            args.set(**{f"n_bytes[{n}]": item.n_bytes, f"first_block[{n}]": blocks})
            args.set(**{f"rounds[{n}]": rounds, f"out[{n}]": out})
            blocks += groups
        args.set(count=len(inputs))
        shared_bytes = max(rounds for rounds, _ in shapes) * _THREADS * CV_BYTES
        return args.step("hash", "ree_blake3_groups", (blocks, 1, 1), _THREADS, shared_bytes, _DEFINES)

    def _shape(self, n_bytes: int) -> tuple[int, int]:
        """Rounds of a block and number of blocks, each of which leaves one chaining value."""
        rounds, group_bytes = 1, _THREADS * CHUNK_BYTES
        enough_bytes = _BLOCKS_MIN * self.device.multiprocessors * group_bytes
        while rounds < _ROUNDS_MAX and n_bytes >= 2 * rounds * enough_bytes:
            rounds *= 2
        return rounds, -(-n_bytes // (rounds * group_bytes))


def committed(
    device: Device,
    steps: Sequence[Step],
    results: Sequence[Result],
    sizes_bytes: Sequence[int],
    batch_bytes: int = BATCH_BYTES,
) -> tuple[list[Step], Hashing]:
    """A plan's steps with those that hash its results, in batches of at least `batch_bytes`.

    A result's memory must stay as it is until its batch is hashed: buffers are to be placed for the steps given here.
    """
    hashing = Hashing(device, len(results))
    rows: list[Step] = []
    done = 0
    for number, (result, n_bytes) in enumerate(zip(results, sizes_bytes, strict=True)):
        rows += steps[done : result.after]
        done = result.after
        hashing.add(number, result.slot, n_bytes)
        if hashing.waiting_bytes >= batch_bytes:
            rows += hashing.flush()
    return [*rows, *steps[done:], *hashing.flush(), *hashing.finish()], hashing


def recorded(device: Device, address: int, n_bytes: int) -> tuple[Replay, Hashing]:
    """What hashes device memory when it is run, and the hash, which is then there."""
    hashing = Hashing(device, 1)
    steps = [*hashing.steps(0, Slot(Buffer("input", 0, n_bytes)), n_bytes), *hashing.finish()]
    load(device, steps)
    for step in steps:
        for position, _ in step.pointers:
            step.args[position] = address
    with errors():
        return device.record([step.launch() for step in steps]), hashing
