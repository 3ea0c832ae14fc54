"""Committed runs: plans with the steps that hash their results, up to the trace root and the signed receipt.

Every data root that a trace binds is made by the processor in question: those of the results by the table of steps
that `Plan.run_committed` runs, those of inputs and weights by the same kernels. What follows from them alone is
computed here. This process' own part comes from `Program.run_committed`, as a user's would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn

import ree_kernels.cpu as cpu
from ree.commit import receipt
from ree.commit.keys import Signer
from ree.commit.rerun import claim_of
from ree.commit.stages import Kind, Source, Stages
from ree.commit.trace import Manifest, tensor_ids
from ree.plan.args import Args
from ree.plan.hashing import Hashing
from ree.plan.plan import Plan
from ree.plan.step import Buffer, Slot, Step
from ree.program import Program
from ree.types import DType, TensorType
from ree_kernels.blake3 import CV_BYTES, GROUP_CHUNKS
from tools.cross import models
from tools.cross.job import CHAINING, Case

SALT, NONCE, SEED = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
ISSUED_AT, DEVICE, VERSION = 1_800_000_000, "any processor", "any"
# bytes of results: around blocks, chunks, groups of chunks, and boxes of groups
SIZES = (0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 3073, 16383, 16384, 16385, 32768, 32769, 65537, 150_001, 1_048_583)
STATUS_BYTES = 8
QUICK_MODELS = ("language model", "residual network", "sort, scan, scatter")


@dataclass
class Committed(Case):
    """A committed run: outputs, the roots of all results, inputs and weights, then the trace root and the receipt.

    A job gives what comes before the trace root, and the status word.
    """

    def rows(self) -> list[tuple[Step, ...]]:
        """Hashes of inputs and weights, then the table of the committed run, then the hashes of empty tensors."""
        graph, own = self.plan.graph, len(self.plan.graph.outputs)
        read = [Slot(Buffer("input", n, array.nbytes)) for n, array in enumerate(self.inputs)]
        read += [Slot(Buffer("constant", n, c.type.size_bytes())) for n, c in enumerate(graph.constants)]
        hashing = Hashing(len(read))
        given = [step for n, slot in enumerate(read) for step in hashing.step(n, slot, slot.buffer.size_bytes)]
        rows: list[tuple[Step, ...]] = [(_exported(step, hashing, own + 1),) for step in [*given, *hashing.finish()]]
        for row in _table_rows(self.plan):
            rows.append(tuple(_exported(step, self.plan.committed_steps[1], own) for step in row))
        sizes = [graph.type_of(result.value).size_bytes() for result in self.plan.results]
        empty = [(result.slot, own, n) for n, result in enumerate(self.plan.results) if sizes[n] == 0]
        empty += [(slot, own + 1, n) for n, slot in enumerate(read) if slot.buffer.size_bytes == 0]
        return rows + [(_empty(*place),) for place in empty]

    def result(self, data: bytes) -> bytes:
        """The same bytes, then the trace root and the receipt that follow from them."""
        sizes = [t.size_bytes() for t in self.outputs]
        if len(data) != sum(sizes) + STATUS_BYTES:
            return data
        ends = np.cumsum(sizes)[-3:]
        results, given = _split(data[ends[0] : ends[1]]), _split(data[ends[1] : ends[2]])
        read = tensor_ids(self.stages, given[: len(self.inputs)], Kind.INPUT)
        weights = tensor_ids(self.stages, given[len(self.inputs) :], Kind.CONSTANT)
        return data + _evidence(Manifest(self.origin.program_id, (), self.stages, read, weights, tuple(results)))

    def run_here(self) -> bytes:
        """What `Program.run_committed` gives in this process."""
        arrays, trace = self.origin.run_committed(self.inputs)
        given = [trace.root_of(Source(Kind.INPUT, n)) for n in range(len(self.inputs))]
        data = b"".join([*(array.tobytes() for array in arrays), *trace.manifest.roots, *given])
        return data + b"".join(self.origin.weight_roots) + bytes(STATUS_BYTES) + _evidence(trace.manifest)

    @property
    def origin(self) -> Program:
        assert self.program is not None
        return self.program

    @property
    def stages(self) -> Stages:
        return self.origin.stages(())


def committed(case: Case) -> Committed:
    """The committed run of a case that comes from a program."""
    read = len(case.plan.graph.inputs) + len(case.plan.graph.constants)
    roots = [TensorType((CV_BYTES * count,), DType.U8) for count in (len(case.plan.results), read)]
    return Committed(f"{case.name}, committed", case.plan, case.inputs, [*case.outputs, *roots], case.program)


def _table_rows(plan: Plan) -> list[tuple[Step, ...]]:
    """The table that `Plan.run_committed` hands to the executor, as steps."""
    plan.compile()
    table, _ = plan._committed
    ffi, lib = cpu.runtime().ffi, cpu.runtime().lib
    steps = {step.args: step for step in plan.committed_steps[0]}
    found = []
    for row in table.rows[0 : table.length]:
        pair = ffi.cast("ree_pair *", row.args)
        parts = [pair.first, pair.second] if row.kernel == ffi.addressof(lib, "ree_both") else [row]
        found.append(tuple(steps[int(ffi.cast("uintptr_t", part.args))] for part in parts))
    return found


def _exported(step: Step, hashing: Hashing, output: int) -> Step:
    """The step; if it hashes, it writes to an output of the job instead of to this process' memory."""
    if step.address not in (cpu.address("ree_blake3_groups"), cpu.address("ree_blake3_root")):
        return step
    ffi, lib = cpu.kernels().ffi, cpu.kernels().lib
    struct = step.keep[0]
    groups = int(lib.ree_blake3_group_count(struct.n_bytes, struct.group_chunks))
    place = int(ffi.cast("uintptr_t", struct.out)) - hashing.digests.ctypes.data
    slots = {
        "cvs": Slot(Buffer(f"{CHAINING} {output}", place, CV_BYTES * groups)),
        "out": Slot(Buffer("output", output, hashing.digests.nbytes), place),
    }
    own = [(step.args + int(ffi.offsetof("ree_blake3_args", name)), slot) for name, slot in slots.items()]
    return dataclasses.replace(step, pointers=[*step.pointers, *own])


def _empty(slot: Slot, output: int, number: int) -> Step:
    """A step that hashes nothing, which a plan leaves to Python; slot: any memory."""
    args = Args("ree_blake3_args")
    args.point(data=slot, out=Slot(Buffer("output", output, 0), CV_BYTES * number))
    args.set(n_bytes=0, group_chunks=GROUP_CHUNKS, out_bytes=CV_BYTES)
    kernels = cpu.kernels()
    kernels.lib.ree_blake3_set_mode(kernels.ffi.addressof(args.struct, "mode"), kernels.ffi.NULL, 0)
    return args.step("hash", "ree_blake3_root", (1, 1), (1, 1))


def _split(data: bytes) -> list[bytes]:
    return [data[n : n + CV_BYTES] for n in range(0, len(data), CV_BYTES)]


def _evidence(manifest: Manifest) -> bytes:
    """The trace root and the envelope of the receipt, which has the same key, salts and texts everywhere."""
    signer = Signer(Ed25519PrivateKey.from_private_bytes(SEED))
    claim = dataclasses.replace(
        claim_of(manifest, SALT, NONCE), device=DEVICE, issued_at=ISSUED_AT, ree_version=VERSION
    )
    return manifest.root + receipt.make(claim, signer)


def _sized(*arrays: Tensor) -> tuple[Tensor, ...]:
    """Results of as many bytes as each input has."""
    return tuple(x ^ 85 for x in arrays)


def _hollow(x: Tensor, e: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """Empty results between others, and what is made of them."""
    rows = x[ids]
    return rows * 2.0, e @ x, (x[:, :0] * 3.0).sum(1), torch.sort(e.T.exp(), dim=0)[0], rows.sum(0) + x.sum(0)


class _Turned(nn.Module):
    """Results that lie in memory with their axes permuted, of several groups of chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 3, stride=2)
        self.deep = nn.Conv3d(1, 3, 2)

    def forward(self, x: Tensor, q: Tensor, deep: Tensor) -> tuple[Tensor, ...]:
        y = self.conv_1(x)
        z = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        return self.conv_2(y.sigmoid() - y), (z.transpose(1, 2).flatten(2) * 0.5).cumsum(1), self.deep(deep).exp().sum()


def sizes() -> Case:
    """Results of `SIZES` bytes."""
    random = np.random.default_rng(11)
    return models.case("sizes", _sized, *(torch.from_numpy(random.integers(0, 256, n, np.uint8)) for n in SIZES))


def quick(whole: Sequence[Case]) -> list[Committed]:
    """Some of these models, and results around every boundary of the hash."""
    return [committed(case) for case in whole if case.name in QUICK_MODELS] + [committed(sizes())]


def full(whole: Sequence[Case]) -> list[Committed]:
    """All of these models, results around every boundary of the hash, empty ones and ones with permuted axes."""
    torch.manual_seed(4)
    own = [
        sizes(),
        models.case("empty results", _hollow, models.normal(4, 6), torch.zeros(0, 4),
                    torch.zeros(0, dtype=torch.int64)),
        models.case("permuted axes", _Turned(), models.hard(2, 3, 61, 47), models.normal(2, 3, 70, 40),
                    models.normal(1, 1, 7, 9, 11)),
    ]  # fmt: skip
    return [committed(case) for case in [*whole, *own]]
