"""The bytes of a spot-check proof (docs/SPEC.md, "Spot-check proofs"): one form for one proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ree.commit.bao import chunk_count
from ree.commit.stages import Kind, Source
from ree.errors import VerificationError
from ree.limits import HEADER_BYTES_MAX, PROOF_BYTES_MAX, PROOF_SAMPLES_MAX
from ree.spot.draw import NO_SEED
from ree.spot.openings import Opening, data_bytes
from ree.wire import Reader, Writer
from ree_kernels.blake3 import CHUNK_BYTES, CV_BYTES

MAGIC = b"reespot\x01"
_SELF_CONTAINED, _SEEDED = 1, 2
_ITEMS_MAX = 1 << 20  # of inputs, stages, sizes, tensors
_RUNS_MAX = 1 << 24  # of chunks of a tensor

SizeOf = Callable[[Source], int]


@dataclass(frozen=True)
class Head:
    """What stands before the openings.

    program: canonical JSON, None if the checker has it; inputs, results: data roots.
    """

    samples: int
    seed: bytes | None
    trace_root: bytes
    program: bytes | None
    sizes: tuple[int, ...]
    inputs: tuple[bytes, ...]
    results: tuple[bytes, ...]

    def write(self, out: Writer) -> None:
        flags = _SELF_CONTAINED * (self.program is not None) + _SEEDED * (self.seed is not None)
        out.u8(flags).u32(self.samples)
        if self.seed is not None:
            out.raw(self.seed)
        out.raw(self.trace_root)
        if self.program is not None:
            out.sized(self.program)
        out.u32(len(self.sizes))
        for size in self.sizes:
            out.u64(size)
        for roots in (self.inputs, self.results):
            out.u32(len(roots)).raw(b"".join(roots))

    @classmethod
    def read(cls, reader: Reader) -> Head:
        flags, samples = reader.u8(), reader.u32()
        if flags & ~(_SELF_CONTAINED | _SEEDED) or not 1 <= samples <= PROOF_SAMPLES_MAX:
            raise VerificationError(f"a proof of {samples} samples with flags {flags}")
        seed = reader.digest() if flags & _SEEDED else None
        if seed == NO_SEED:
            raise VerificationError("a proof with a seed of zeros, which stands for none")
        root = reader.digest()
        program = reader.sized(HEADER_BYTES_MAX) if flags & _SELF_CONTAINED else None
        sizes = tuple(reader.u64() for _ in range(reader.count(_ITEMS_MAX, 8)))
        return cls(samples, seed, root, program, sizes, reader.digests(_ITEMS_MAX), reader.digests(_ITEMS_MAX))


def encode(head: Head, openings: Sequence[tuple[Source, Opening]]) -> bytes:
    """The proof; the openings ascend by kind and number of their tensor."""
    out = Writer(MAGIC)
    head.write(out)
    out.u32(len(openings))
    for source, opening in openings:
        out.u8(source.kind).u32(source.number)
        runs = _runs(opening.chunks)
        out.u32(len(runs))
        end = 0
        for first, count in runs:
            out.leb(first - end).leb(count)
            end = first + count
        out.raw(opening.data).sized(opening.cvs)
    return out.bytes()


def open_proof(data: bytes) -> tuple[Head, Reader]:
    """The head of a proof, and a reader that stands before its openings."""
    if len(data) > PROOF_BYTES_MAX:
        raise VerificationError(f"a proof of more than {PROOF_BYTES_MAX} bytes")
    reader = Reader(data, "a spot-check proof")
    reader.magic(MAGIC)
    return Head.read(reader), reader


def read_openings(reader: Reader, size_of: SizeOf) -> dict[Source, Opening]:
    """The openings; size_of: bytes of a tensor, VerificationError if there is none such."""
    found: dict[Source, Opening] = {}
    last = (-1, -1)
    for _ in range(reader.count(_ITEMS_MAX, 9)):
        kind, number = reader.u8(), reader.u32()
        if (kind, number) <= last or kind not in list(Kind):
            raise VerificationError("the tensors of the proof are not in order")
        last = (kind, number)
        source = Source(Kind(kind), number)
        found[source] = _opening(reader, size_of(source))
    reader.finish()
    return found


def _opening(reader: Reader, size_bytes: int) -> Opening:
    chunks: list[int] = []
    limit, end = chunk_count(size_bytes), 0
    for position in range(reader.count(_RUNS_MAX, 2)):
        gap, count = reader.leb(), reader.leb()
        first = end + gap
        if (
            not count
            or (position and not gap)
            or first + count > limit
            or (len(chunks) + count - 1) * CHUNK_BYTES > reader.left
        ):
            raise VerificationError("the chunks of the proof are not in order")
        chunks += range(first, first + count)
        end = first + count
    if not chunks:
        raise VerificationError("the proof opens nothing of a tensor")
    data, cvs = reader.raw(data_bytes(size_bytes, chunks)), reader.sized(PROOF_BYTES_MAX)
    if len(cvs) % CV_BYTES:
        raise VerificationError("the chaining values of the proof have no whole number")
    return Opening(tuple(chunks), data, cvs)


def _runs(chunks: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring chunks as (first, how many)."""
    runs: list[tuple[int, int]] = []
    for chunk in chunks:
        if runs and sum(runs[-1]) == chunk:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((chunk, 1))
    return runs
