"""A plan as a file that another processor runs: pointers become relocations, kernels become numbers.

The layout is that of runner.c. Nothing in a job depends on an instruction set: weights are plain and packed by the
runner, and boxes start at multiples of every panel width.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from blake3 import blake3

import ree_kernels.cpu as cpu
from ree.element.encode import digest
from ree.errors import RunError
from ree.plan.fuse import Kernel
from ree.plan.plan import Plan
from ree.plan.schedules import strided
from ree.plan.step import Buffer, Slot, Step
from ree.program import Program
from ree.types import TensorType
from tools.cross.targets import CrossError

MAGIC = b"REEJOB1\n"
ALIGN_BYTES = 64
PANEL_COLS_MAX = 64  # a multiple of every instruction set's ree_panel_cols()

# kernels of ree_kernels that a step may call, and runner.c's number for how their scratch is sized
C_KERNELS = {
    "ree_matmul": 1,
    "ree_conv": 2,
    "ree_attention": 3,
    "ree_argsort": 4,
    "ree_argtopk": 4,
    "ree_reduce_columns": 5,
    "ree_matmul_i8": 6,
    "ree_experts": 7,
    "ree_cached_attention": 8,
    "ree_cached_append": 0,
    "ree_scan": 0,
    "ree_scatter_axis": 0,
    "ree_scatter_rows": 0,
    "ree_blake3_groups": 0,
    "ree_blake3_root": 0,
    "ree_blake3_roots": 0,
}
PANELLED = ("ree_matmul", "ree_matmul_i8", "ree_conv")
OWN_KERNELS = ("cross_draw",)  # kernels of this folder; steps that call them have their names
CHAINING = "chaining values"  # start of a kind of buffer: what hashing steps hand to one another
TO_MEMORY, TO_PACK, TO_KERNEL = range(3)
PACK_MATMUL, PACK_CONV, PACK_MATMUL_BF16, PACK_MATMUL_I8 = range(4)
PACKS = {"matmul_bf16": PACK_MATMUL_BF16, "matmul_i8": PACK_MATMUL_I8}  # other products are of floats


@dataclass
class Case:
    """A plan with inputs to run it on; `outputs` are the types of what it gives, `program` is where it is from."""

    name: str
    plan: Plan
    inputs: list[np.ndarray]
    outputs: list[TensorType]
    program: Program | None = None

    def rows(self) -> list[tuple[Step, ...]]:
        """What a job runs; two steps in one row run as one (`ree_both`)."""
        return [(step,) for step in self.plan.steps]

    def result(self, data: bytes) -> bytes:
        """What is compared, from the bytes that a job gave."""
        return data

    def run_here(self) -> bytes:
        """Outputs and status word as this process computes them, as one string of bytes."""
        results = [np.zeros(t.size_bytes(), np.uint8) for t in self.outputs]
        status = 0
        try:
            self.plan.run([x.ctypes.data for x in self.inputs], [r.ctypes.data for r in results])
        except RunError:
            status = 1
        return b"".join(r.tobytes() for r in results) + status.to_bytes(8, "little")

    def kernels(self) -> dict[str, Kernel]:
        """The JIT-compiled kernels of the plan by symbol."""
        steps = [part for step in self.plan.steps for part in (step, *step.nested())]
        return {symbol_of(step.kernel): step.kernel for step in steps if step.kernel is not None}


def symbol_of(kernel: Kernel) -> str:
    """The name of a JIT-compiled kernel: a function of its program and layout."""
    return f"ree_jit_{blake3(digest(kernel.program) + kernel.structure().text.encode()).hexdigest()[:32]}"


@dataclass
class Job:
    """Collects the tables of a job. symbols: every kernel that the runner links, in its order."""

    case: Case
    symbols: Sequence[str]
    _image: bytearray = field(default_factory=bytearray)
    _relocations: list[tuple[int, int, int, int]] = field(default_factory=list)
    _packs: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _steps: list[tuple[int, ...]] = field(default_factory=list)
    _places: dict[tuple[str, int], int] = field(default_factory=dict)
    _zeros: dict[tuple[str, int], int] = field(default_factory=dict)  # sizes of buffers beyond the image
    _arena: dict[tuple[str, int], int] = field(default_factory=dict)  # offsets of buffers in the plan's arena
    _structs: dict[int, int] = field(default_factory=dict)  # places of argument structs by their address here

    def encode(self) -> bytes:
        """The file's bytes."""
        self._numbers = {name: number for number, name in enumerate(self.symbols)}
        self._kernel_at = {cpu.address(name): name for name in C_KERNELS}
        for number, array in enumerate(self.case.inputs):
            self._places["input", number] = self._put(array.tobytes())
        pending: list[tuple[int, Slot]] = []
        status: list[int] = []
        for row in self.case.rows():
            for number, step in enumerate(row):
                args = self._arguments(step, pending, status)
                self._steps.append((*self._row(step, args), number))
        for _, slot in pending:
            self._hold(slot.buffer)
        memory_bytes = self._place_zeros()
        for where, slot in pending:
            self._point(where, slot)
        self._relocations += [(where, TO_MEMORY, 0, self._places["status", 0]) for where in status]
        return self._assemble(memory_bytes)

    def _assemble(self, memory_bytes: int) -> bytes:
        outputs = [(self._places["output", n], t.size_bytes()) for n, t in enumerate(self.case.outputs)]
        outputs.append((self._places["status", 0], 8))
        packs = [self._packs[n] for n in sorted(self._packs)]
        tables = (packs, self._relocations, self._steps, outputs)
        head = struct.pack("<6q", len(self._image), memory_bytes, *(len(table) for table in tables))
        rows = b"".join(struct.pack(f"<{len(row)}q", *row) for table in tables for row in table)
        return MAGIC + head + rows + bytes(self._image)

    # -- memory --------------------------------------------------------------------------
    def _put(self, data: bytes) -> int:
        """Append to the image; the offset."""
        self._image += bytes(-len(self._image) % ALIGN_BYTES)
        offset = len(self._image)
        self._image += data
        return offset

    def _hold(self, buffer: Buffer) -> None:
        """Give a buffer its memory, once."""
        key = (buffer.kind, buffer.number)
        if key in self._places or key in self._zeros or key in self._arena:
            return
        weights = self.case.plan.weights
        if buffer.kind == "constant":
            self._places[key] = self._put(np.ascontiguousarray(weights.array(buffer.number)).tobytes())
        elif buffer.kind == "packed":
            self._places[key] = self._pack(buffer.number)
        elif buffer.kind == "arena":
            self._arena[key] = self.case.plan._offsets[buffer]  # memory is used again here as it is in the plan
        elif buffer.kind in ("output", "state") or buffer.kind.startswith(CHAINING):
            self._zeros[key] = buffer.size_bytes
        else:
            raise CrossError(f"{self.case.name}: no data for {buffer}")

    def _place_zeros(self) -> int:
        """Places of what is not in the image: outputs, arena, the status word; the memory's size."""
        outputs = {("output", n): t.size_bytes() for n, t in enumerate(self.case.outputs)}
        arena = ("arena", -1)
        buffers = {**self._zeros, **outputs, arena: self.case.plan.arena_bytes, ("status", 0): 8}
        end = len(self._image)
        for key, size_bytes in buffers.items():
            self._places[key] = -(-end // ALIGN_BYTES) * ALIGN_BYTES
            end = self._places[key] + size_bytes
        self._places |= {key: self._places[arena] + offset for key, offset in self._arena.items()}
        return end

    def _point(self, where: int, slot: Slot) -> None:
        place = self._places[slot.buffer.kind, slot.buffer.number]
        if slot.buffer.kind == "packed":
            self._relocations.append((where, TO_PACK, place, slot.offset_bytes))
        else:
            self._relocations.append((where, TO_MEMORY, 0, place + slot.offset_bytes))

    def _pack(self, number: int) -> int:
        """The recipe by which the runner packs weights; its number."""
        weights = self.case.plan.weights
        kind, constant, *rest = weights.recipe(number)
        if kind.startswith("matmul"):
            (k, n), (source_k, source_col), offset = rest
            plain = _plain(weights.array(constant))
            start = self._put(plain.tobytes()) + plain.itemsize * offset
            row = (PACKS.get(kind, PACK_MATMUL), start, n, k, source_k, source_col, 1, 0, *5 * (0,))
        elif kind == "experts":
            count, n, k = rest[0].shape
            plain = _plain(strided(weights.array(constant), rest[0]))
            how = PACK_MATMUL_BF16 if plain.dtype == np.uint16 else PACK_MATMUL
            row = (how, self._put(plain.tobytes()), n, k, 1, k, count, n * k, *5 * (0,))
        elif kind == "conv":
            layout, groups, transposed = rest
            plain = _plain(strided(weights.array(constant), layout))
            first, second = layout.shape[0], layout.shape[1] * groups
            channels, outputs = (first, second) if transposed else (second, first)
            sizes = (channels, outputs, groups, prod(layout.shape[2:]), int(transposed))
            row = (PACK_CONV, self._put(plain.tobytes()), *6 * (0,), *sizes)
        else:
            raise CrossError(f"{self.case.name}: no recipe for packed weights of a {kind}")
        self._packs[len(self._packs)] = row
        return len(self._packs) - 1

    # -- steps -----------------------------------------------------------------------------
    def _row(self, step: Step, args: int) -> tuple[int, ...]:
        name = self._symbol(step)
        rows, cols = step.shape
        row_grain, col_grain = step.grain
        if name in PANELLED:
            col_grain = -(-col_grain // PANEL_COLS_MAX) * PANEL_COLS_MAX
        kind = C_KERNELS.get(name, 0)
        return (self._numbers[name], args, rows, cols, row_grain, col_grain, kind, step.scratch_bytes)

    def _symbol(self, step: Step) -> str:
        if step.kernel is not None:
            return symbol_of(step.kernel)
        if step.name in OWN_KERNELS:
            return step.name
        if step.address not in self._kernel_at:
            raise CrossError(f"{self.case.name}: step {step.name} calls a kernel that runner.c does not know")
        return self._kernel_at[step.address]

    def _arguments(self, step: Step, pending: list[tuple[int, Slot]], status: list[int]) -> int:
        """Copy a step's argument struct and what it points to; its place in the image.

        pending: (place of a pointer, what it points to); status: places of pointers to the status word.
        """
        start, memory = self._copy(step)
        self._structs[step.args] = start

        def place(address: int) -> int:
            for base, size_bytes, offset in memory:
                if base <= address < base + size_bytes:
                    return offset + address - base
            raise CrossError(f"{self.case.name}: step {step.name} has a pointer outside of its arguments")

        pending += [(place(address), slot) for address, slot in step.pointers]
        if step.status:
            status.append(place(step.status))
        hooks = [(step.epilogue, *step.epilogue_fields)] if step.epilogue else []
        for hook, function, args in [*hooks, *step.hooks]:
            number = self._numbers[self._symbol(hook)]
            self._relocations.append((place(function), TO_KERNEL, number, 0))
            self._relocations.append((place(args), TO_MEMORY, 0, self._arguments(hook, pending, status)))
        return start

    def _copy(self, step: Step) -> tuple[int, list[tuple[int, int, int]]]:
        """The struct's place, and (address here, bytes, place in the image) of all memory of the arguments."""
        if step.kernel is None:
            name = self._symbol(step)
            if name == "ree_blake3_roots":
                return self._copy_roots(step)
            size_bytes = step.keep[0].nbytes if name in OWN_KERNELS else _struct_bytes(step.keep[0])
            # the two steps of attention over a cache have one struct
            shared = self._structs.get(step.args)
            offset = self._put(_bytes_at(step.args, size_bytes)) if shared is None else shared
            return offset, [(step.args, size_bytes, offset)]
        pointers, params, args = step.keep[:3]
        memory = [(a.ctypes.data, a.nbytes, self._put(a.tobytes())) for a in (pointers, params, args)]
        start = memory[2][2]
        for field_number in (0, 1):
            self._relocations.append((start + 8 * field_number, TO_MEMORY, 0, memory[field_number][2]))
        return start, memory

    def _copy_roots(self, step: Step) -> tuple[int, list[tuple[int, int, int]]]:
        """The same for a table of pointers to the structs of earlier steps."""
        table: np.ndarray = step.keep[0]
        start = self._put(bytes(table.nbytes))
        for number, address in enumerate(table.tolist()):
            self._relocations.append((start + 8 * number, TO_MEMORY, 0, self._structs[address]))
        return start, [(step.args, table.nbytes, start)]


def _plain(data: np.ndarray) -> np.ndarray:
    """Weights without strides; those in float16, which no kernel packs, as float32."""
    return np.ascontiguousarray(data, np.float32 if data.dtype == np.float16 else None)


def _struct_bytes(pointer: Any) -> int:
    ffi = cpu.kernels().ffi
    return int(ffi.sizeof(ffi.typeof(pointer).item))


def _bytes_at(address: int, size_bytes: int) -> bytes:
    return ctypes.string_at(address, size_bytes)
