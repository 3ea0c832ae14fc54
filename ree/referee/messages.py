"""The three messages of a dispute as canonical bytes (docs/SPEC.md, "Disputes").

Each names the one that it answers by its digest, so none fits another game. VerificationError: what is no message.
"""

from __future__ import annotations

from dataclasses import dataclass

import blake3

from ree.commit.trace import Head
from ree.errors import VerificationError
from ree.wire import Reader, Writer

VERSION = 1
MAGIC = b"reegame" + bytes([VERSION])
CONTEXT = "ree v1 dispute message"
PATH_MAX = 24  # of a trace's tree: 2^24 stages
PORTS_MAX = 1 << 12
SIZES_MAX = 1 << 10
SLICE_BYTES_MAX = 16 << 10  # 256 elements of 8 bytes, a leaf at either end, and parents up to 2^40 bytes
OPENINGS_MAX = 16
MESSAGE_BYTES_MAX = 64 << 10


def digest(message: bytes) -> bytes:
    """What the next message names this one by (32 bytes)."""
    return blake3.blake3(message, derive_key_context=CONTEXT).digest()


@dataclass(frozen=True)
class Challenge:
    """Names an element of a stage, and opens the claim's trace root to the tensors that it concerns.

    element: number of the element in C order; operands, result: data roots of the stage's ports and of what it gave;
    path: the siblings of the stage's leaf.
    """

    stage: int
    element: int
    operands: tuple[bytes, ...]
    result: bytes
    path: tuple[bytes, ...]
    head: Head

    def encode(self) -> bytes:
        out = Writer(MAGIC, b"C").u64(self.stage).u64(self.element)
        for digests in (self.operands, (self.result,), self.path):
            out.u32(len(digests)).raw(b"".join(digests))
        out.raw(self.head.program_id).u32(len(self.head.sizes))
        for size in self.head.sizes:
            out.u64(size)
        out.raw(self.head.inputs).raw(self.head.weights).raw(self.head.outputs).u64(self.head.stages)
        return out.bytes()

    @classmethod
    def decode(cls, message: bytes) -> Challenge:
        reader = _open(message, b"C", "a challenge")
        stage, element = reader.u64(), reader.u64()
        operands, result, path = reader.digests(PORTS_MAX), reader.digests(1), reader.digests(PATH_MAX)
        program_id = reader.digest()
        sizes = tuple(reader.u64() for _ in range(reader.count(SIZES_MAX, 8)))
        head = Head(program_id, sizes, reader.digest(), reader.digest(), reader.digest(), reader.u64())
        reader.finish()
        return cls(stage, element, operands, b"".join(result), path, head)


@dataclass(frozen=True)
class Response:
    """Opens the challenged element, and commits to its internal values; output: a Bao slice of the result.

    cells: BLAKE3 of all cells, which are sent along and not looked at by the referee.
    """

    challenge: bytes
    cells: bytes
    output: bytes

    def encode(self) -> bytes:
        return Writer(MAGIC, b"R").raw(self.challenge).raw(self.cells).sized(self.output).bytes()

    @classmethod
    def decode(cls, message: bytes) -> Response:
        reader = _open(message, b"R", "a response")
        found = cls(reader.digest(), reader.digest(), reader.sized(SLICE_BYTES_MAX))
        reader.finish()
        return found


@dataclass(frozen=True)
class Proof:
    """Names the step that is wrong, and opens what the referee reads to redo it, in the order in which he does."""

    response: bytes
    step: int
    openings: tuple[bytes, ...]

    def encode(self) -> bytes:
        out = Writer(MAGIC, b"P").raw(self.response).u64(self.step).u32(len(self.openings))
        for opening in self.openings:
            out.sized(opening)
        return out.bytes()

    @classmethod
    def decode(cls, message: bytes) -> Proof:
        reader = _open(message, b"P", "a proof of a wrong step")
        response, step = reader.digest(), reader.u64()
        openings = tuple(reader.sized(SLICE_BYTES_MAX) for _ in range(reader.count(OPENINGS_MAX, 4)))
        reader.finish()
        return cls(response, step, openings)


def _open(message: bytes, kind: bytes, what: str) -> Reader:
    if len(message) > MESSAGE_BYTES_MAX:
        raise VerificationError(f"{what} of {len(message)} bytes, more than {MESSAGE_BYTES_MAX}")
    reader = Reader(message, what)
    reader.magic(MAGIC + kind)
    return reader
