"""Spot-check proofs by the letter of docs/SPEC.md: a reader, a tree and a draw that share no code with `ree.spot`."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import blake3
import pytest

import ree
from ree.commit.stages import Kind, Source, Stage
from ree.commit.trace import Trace
from ree.spot.draw import draw, works
from tests.bao_reference import chunk_value, parent_value
from tests.receipt_vectors import SIGNER, filled
from tests.test_trace import CASES, traced

CHUNK = 1024
SEED = filled(13)


@dataclass(frozen=True)
class Opened:
    """What a proof opens of one tensor; runs: (chunks left out before, chunks in it)."""

    kind: int
    number: int
    runs: tuple[tuple[int, int], ...]
    data: bytes = b""
    cvs: bytes = b""

    @property
    def chunks(self) -> list[int]:
        found: list[int] = []
        for gap, count in self.runs:
            start = (found[-1] + 1 if found else 0) + gap
            found += range(start, start + count)
        return found


@dataclass(frozen=True)
class Proof:
    """A proof, field by field."""

    flags: int
    samples: int
    seed: bytes
    trace_root: bytes
    program: bytes
    sizes: tuple[int, ...]
    inputs: tuple[bytes, ...]
    results: tuple[bytes, ...]
    tensors: tuple[Opened, ...]


def leb(value: int) -> bytes:
    """Unsigned LEB128 in its shortest form."""
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + leb(value // 128)


def write(proof: Proof) -> bytes:
    out = [b"reespot\x01", struct.pack("<BI", proof.flags, proof.samples), proof.seed, proof.trace_root]
    out.append(struct.pack("<I", len(proof.program)) + proof.program if proof.flags & 1 else b"")
    out.append(struct.pack(f"<I{len(proof.sizes)}Q", len(proof.sizes), *proof.sizes))
    for roots in (proof.inputs, proof.results):
        out.append(struct.pack("<I", len(roots)) + b"".join(roots))
    out.append(struct.pack("<I", len(proof.tensors)))
    for opened in proof.tensors:
        out.append(struct.pack("<BII", opened.kind, opened.number, len(opened.runs)))
        out += [leb(n) for run in opened.runs for n in run]
        out += [opened.data, struct.pack("<I", len(opened.cvs)), opened.cvs]
    return b"".join(out)


def read(data: bytes, length_of: Callable[[int, int], int]) -> Proof:
    """The fields of a proof that is in order; length_of: bytes of a tensor, by kind and number."""
    place = 0

    def take(count: int) -> bytes:
        nonlocal place
        place += count
        return data[place - count : place]

    def number(width: int = 4) -> int:
        return int.from_bytes(take(width), "little")

    def short() -> int:
        byte = take(1)[0]
        return byte if byte < 128 else byte - 128 + 128 * short()

    def roots() -> tuple[bytes, ...]:
        return tuple(take(32) for _ in range(number()))

    def tensor() -> Opened:
        kind, which = number(1), number()
        opened = Opened(kind, which, tuple((short(), short()) for _ in range(number())))
        size = sum(max(0, min(CHUNK, length_of(kind, which) - CHUNK * n)) for n in opened.chunks)
        return replace(opened, data=take(size), cvs=take(number()))

    assert take(8) == b"reespot\x01"
    flags, samples = number(1), number()
    seed, root = take(32) if flags & 2 else b"", take(32)
    program = take(number()) if flags & 1 else b""
    sizes = tuple(number(8) for _ in range(number()))
    found = Proof(
        flags, samples, seed, root, program, sizes, roots(), roots(), tuple(tensor() for _ in range(number()))
    )
    assert place == len(data)
    return found


def root_of(opened: Opened, length: int) -> bytes:
    """The data root of a tensor of this length, from what is opened: the tree of BLAKE3 in plain Python."""
    pieces = [opened.data[i : i + CHUNK] for i in range(0, len(opened.data), CHUNK)]
    chunks = dict(zip(opened.chunks, pieces, strict=True))
    cvs = iter([opened.cvs[i : i + 32] for i in range(0, len(opened.cvs), 32)])

    def node(first: int, count: int, is_root: bool) -> bytes:
        if not any(first <= n < first + count for n in chunks):
            return next(cvs)
        if count == 1:
            return chunk_value(chunks[first], first, is_root)
        left = 1 << ((count - 1).bit_length() - 1)
        return parent_value(node(first, left, False) + node(first + left, count - left, False), is_root)

    found = node(0, max(1, -(-length // CHUNK)), True)
    assert next(cvs, None) is None
    return found


def drawn(root: bytes, samples: int, seed: bytes, stages: Sequence[tuple[int, int, bytes]]) -> list[tuple[int, int]]:
    """(stage, element) of every sample; stages: (work, number of elements, digest of the element program) of each."""
    hasher = blake3.blake3(derive_key_context="ree v1 spot check")
    hasher.update(root + (seed or bytes(32)))
    output = hasher.digest(32 * (2 * samples + len(stages)))
    numbers = (int.from_bytes(output[i : i + 32], "little") for i in range(0, len(output), 32))
    total, found = sum(work for work, _, _ in stages), []
    for _ in range(samples if total else 0):
        at, stage = next(numbers) % total, 0
        while at >= stages[stage][0]:
            at, stage = at - stages[stage][0], stage + 1
        found.append((stage, next(numbers) % stages[stage][1]))
    seen = {stages[stage][2] for stage, _ in found}
    for stage, (work, count, digest) in enumerate(stages):
        if work and digest not in seen:
            seen.add(digest)
            found.append((stage, next(numbers) % count))
    return found


def length_in(trace: Trace) -> Callable[[int, int], int]:
    def length(kind: int, number: int) -> int:
        dtype, shape, _ = trace.manifest.stages.type_of(Source(Kind(kind), number))
        return dtype.size_bytes * math.prod(shape)

    return length


@pytest.mark.parametrize("seed", [None, SEED])
@pytest.mark.parametrize("self_contained", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_proof_is_what_the_specification_says(name: str, self_contained: bool, seed: bytes | None) -> None:
    """Every byte has its meaning, every opening its root, and the drawn elements are among what is opened."""
    _, trace, program = traced(name, keep=True)
    stages, length, samples = trace.manifest.stages, length_in(trace), 7
    proof = trace.prove(samples, seed, self_contained)
    found = read(proof, length)
    assert write(found) == proof
    assert (found.flags, found.samples) == (self_contained + 2 * (seed is not None), samples)
    assert (found.seed, found.trace_root) == (seed or b"", trace.root)
    assert found.program == (program.description if self_contained else b"")
    assert found.results == trace.manifest.roots and found.sizes == trace.manifest.sizes
    roots = {Kind.INPUT: found.inputs, Kind.CONSTANT: program.weight_roots, Kind.RESULT: found.results}
    for opened in found.tensors:
        kind, number = Kind(opened.kind), opened.number
        assert root_of(opened, length(kind, number)) == roots[kind][number]
        memory = trace.memory(Source(kind, number)).tobytes()
        assert opened.data == b"".join(memory[CHUNK * n : CHUNK * (n + 1)] for n in opened.chunks)
    described = [(work, s.type.numel(), s.digest) for work, s in zip(works(stages), stages, strict=True)]
    elements = drawn(trace.root, samples, seed or b"", described)
    assert elements == draw(stages, trace.root, samples, seed)
    results = {opened.number: opened.chunks for opened in found.tensors if opened.kind == Kind.RESULT}
    for stage, element in elements:
        assert place_of(stages[stage], element) // CHUNK in results[stage]
    check = ree.check(proof, trace.receipt(SIGNER), None if self_contained else program, [SIGNER.public], seed)
    assert check.samples + check.extra == len(elements)


def place_of(stage: Stage, element: int) -> int:
    """Where an element, numbered in C order, lies in its tensor, in bytes."""
    extents, at = stage.type.extents(), {}
    for axis in reversed(range(len(extents))):
        element, at[axis] = divmod(element, extents[axis])
    place = 0
    for axis in stage.order:
        place = place * extents[axis] + at[axis]
    return place * stage.type.dtype.size_bytes


def test_what_another_writer_may_not_write() -> None:
    """A proof written here is taken, and none that orders, repeats, leaves out or adds."""
    _, trace, _ = traced("product with epilogue", keep=True)
    found = read(trace.prove(7), length_in(trace))
    receipt = trace.receipt(SIGNER)
    assert ree.check(write(found), receipt).samples == 7
    for changed in (
        replace(found, tensors=found.tensors[::-1]),
        replace(found, tensors=(*found.tensors, found.tensors[-1])),
        replace(found, tensors=found.tensors[1:]),
        replace(found, flags=found.flags | 4),
        replace(found, flags=found.flags | 2, seed=bytes(32)),
        replace(found, flags=found.flags | 2, seed=SEED),
        replace(found, results=found.results[::-1] if len(found.results) > 1 else (*found.results, SEED)),
    ):
        with pytest.raises(ree.VerificationError):
            ree.check(write(changed), receipt)
