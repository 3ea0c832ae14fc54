"""Mutates spot-check proofs: each is refused with a `ree.Error`, or is the one proof of what it claims, which is right.

`python -m tests.fuzz_spot COUNT [SEED]` tries COUNT mutations; the seed is printed. Most mutations come with ids that
are mended (a trace root over mutated results, a program id over a mutated program, a receipt signed over both), so that
they reach what stands behind these. The helpers that take proofs apart and make hostile ones serve tests/test_spot.py.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import ree
from ree import outline
from ree.commit import receipt as receipts
from ree.commit.bao import chunk_count
from ree.commit.rerun import claim_of
from ree.commit.stages import Kind, Source
from ree.commit.trace import Manifest, Trace, tensor_ids
from ree.errors import Error, VerificationError
from ree.file import canonical, digest
from ree.outline import Outline
from ree.spot.draw import draw, works
from ree.spot.format import MAGIC, Head, encode, open_proof, read_openings
from ree.spot.openings import Opening, size_of
from ree.types import TensorType
from ree.wire import Writer
from ree_kernels import blake3
from tests import dishonest, fuzz_file
from tests.receipt_vectors import SALT, SIGNER
from tests.test_trace import CASES, Lambda, evaluated, traced

SECONDS_MAX = 2.0  # of processor time for one check; it takes a few milliseconds
MESSAGE_CHARACTERS_MAX = 1000
NAMES = (
    "attention", "product read twice", "batched product", "gather", "sort", "integers", "scan and scatter", "views",
    "bf16", "bools", "f64",
)  # fmt: skip
FILLER = bytes(range(1, 33))
NUMBERS = (0, 1, 2, 127, 128, 255, 459, 1 << 16, 1 << 20, (1 << 20) + 1, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)
WIDE = (0, 1, 3, 5, 1 << 31, 1 << 40, (1 << 62) - 1, 1 << 63, (1 << 64) - 1)
ELEMENTS_MAX, WORK_MAX = 1 << 13, 1 << 19  # of mutated programs that are run

# besides the classes of tests/test_trace.py: dtypes of 1, 2 and 8 bytes, rank 0, a short last chunk, aliased ports
MORE: dict[str, Callable[[], tuple[Callable[..., Any], tuple[torch.Tensor, ...]]]] = {
    "bf16": lambda: (lambda m, x: torch.softmax(x * 3, -1), (torch.randn(3, 300).bfloat16(),)),
    "f64": lambda: (lambda m, x: (x.sum(), x.cumsum(0)), (torch.randn(300, dtype=torch.float64),)),
    "bools": lambda: (lambda m, x, y: (x & y, x.any(), ~x[0, 0]), (torch.rand(9, 130) > 0.5, torch.rand(9, 130) > 0.5)),
    "one tensor twice": lambda: (lambda m, x: torch.mm(x, x) * x, (torch.randn(24, 24),)),
    "few elements": lambda: (lambda m, x: x + 1, (torch.randn(2),)),
    "an output that is the input": lambda: (lambda m, x: (x, m.w, x * 2), (torch.randn(3),)),
    "layers": lambda: (_layers, (torch.randn(6, 24),)),
}


def _layers(m: Lambda, x: torch.Tensor) -> torch.Tensor:
    for n in range(3):
        x = F.layer_norm(x + torch.relu(F.linear(x, m.w + n)), (24,))
    return x


@cache
def run(name: str) -> tuple[Trace, ree.Program, bytes]:
    """An honest run with its receipt."""
    if name in CASES:
        _, trace, program = traced(name, keep=True)
    else:
        torch.manual_seed(1)
        function, inputs = MORE[name]()
        program = ree.compile(Lambda(function).eval(), inputs)
        _, found = program.run(*inputs, commit=True, keep=True)
        assert found is not None
        trace = found
    return trace, program, trace.receipt(SIGNER)


# -- proofs and claims, taken apart and made -----------------------------------------------------------


def parts(proof: bytes, trace: Trace) -> tuple[Head, dict[Source, Opening]]:
    """Head and openings of a proof that is in order."""
    head, reader = open_proof(proof)
    return head, read_openings(reader, lambda source: size_of(trace.manifest.stages, source)[1])


def joined(head: Head, openings: dict[Source, Opening]) -> bytes:
    return encode(head, list(openings.items()))


def opened_whole(trace: Trace) -> dict[Source, Opening]:
    """All chunks of all tensors that a stage reads or gives."""
    stages = trace.manifest.stages
    sources = {port.source for stage in stages for port in stage.ports}
    sources |= {Source(Kind.RESULT, n) for n in range(len(stages))}
    memory = {source: trace.memory(source) for source in sorted(sources, key=lambda s: (s.kind, s.number))}
    return {s: Opening.of(m, range(chunk_count(len(m)))) for s, m in memory.items()}


def manifest_of(
    program: Outline, sizes: tuple[int, ...], inputs: Sequence[bytes], results: Sequence[bytes]
) -> Manifest:
    """The manifest of a run of a program with these data roots."""
    stages = program.stages(sizes)
    ids = tensor_ids(stages, inputs, Kind.INPUT), tensor_ids(stages, program.weight_roots, Kind.CONSTANT)
    return Manifest(program.program_id, sizes, stages, *ids, tuple(results))


def signed(manifest: Manifest) -> bytes:
    return receipts.make(claim_of(manifest, SALT), SIGNER)


def hostile(description: bytes, sizes: tuple[int, ...] = (), samples: int = 3) -> tuple[bytes, bytes]:
    """A proof that opens nothing, and a receipt; their ids fit a program as far as it has any."""
    inputs: Sequence[bytes] = (FILLER,)
    results: Sequence[bytes] = (FILLER,)
    try:
        program = outline.parse(description)
        inputs, results = ([FILLER] * n for n in (len(program.graph.inputs), len(program.stages(sizes))))
        manifest = manifest_of(program, sizes, inputs, results)
        receipt = signed(manifest)
    except Exception:  # whatever a hostile program does to its author
        manifest = tables()[0].trace.manifest
        receipt = signed(manifest)
    head = Head(samples, None, manifest.root, description, sizes, tuple(inputs), tuple(results))
    return encode(head, []), receipt


def prove_or_open(claim: Trace, samples: int, seed: bytes) -> bytes:
    """The proof of a claim; with all chunks open, if a sample cannot be computed."""
    try:
        return claim.prove(samples, seed)
    except VerificationError:
        inputs = tuple(claim.root_of(Source(Kind.INPUT, n)) for n in range(len(claim.inputs)))
        head = Head(samples, seed, claim.root, claim.program.description, (), inputs, claim.manifest.roots)
        return joined(head, opened_whole(claim))


def edited(program: Outline, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """A program's description with something changed."""
    described = json.loads(program.description)
    edit(described)
    return canonical(described)


def embedding(rows: int, columns: int) -> bytes:
    """The description of a gather of rows from a weight of this shape, which nobody has."""
    torch.manual_seed(1)
    program = ree.compile(nn.Embedding(11, 8).eval(), (torch.zeros(3, dtype=torch.long),))
    text = program.description.replace(b"[11,8]", b"[%d,%d]" % (rows, columns)).replace(b"[3,8]", b"[3,%d]" % columns)
    return text.replace(b"[11]", b"[%d]" % rows)


def path_to(chunk: np.ndarray, at: int, levels: int) -> tuple[bytes, bytes]:
    """(root, chaining values) of a tree of 2^levels chunks that has this one; the others are made up."""
    cv, first, left, right = blake3.chunk(chunk, at), at, [], []
    for level in range(levels):
        sibling = blake3.hash(bytes([level]))
        both = cv + sibling if first % 2 == 0 else sibling + cv
        (right if first % 2 == 0 else left).append(sibling)
        cv, first = blake3.parent(both, is_root=level == levels - 1), first // 2
    return cv, b"".join([*left[::-1], *right])


# -- the corpus -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """An honest run with its receipt, and a proof of it."""

    trace: Trace
    receipt: bytes
    samples: int
    seed: bytes | None

    @property
    def proof(self) -> bytes:
        return self.trace.prove(self.samples, self.seed)


@dataclass(frozen=True)
class Case:
    """A proof to check. claim: whose receipt it is held against; None if nobody can have proven it."""

    kind: str
    proof: bytes
    receipt: bytes
    claim: Trace | None
    seed: bytes | None = None
    lie: tuple[int, int] | None = None  # the claim's one wrong element
    is_good: bool = False  # must be accepted


@cache
def tables() -> list[Table]:
    found = []
    for number, name in enumerate(NAMES):
        trace, _, _ = run(name)
        for samples, seed in ((3, None), (25, FILLER if number % 2 else None)):
            found.append(Table(trace, signed(trace.manifest), samples, seed))
    torch.manual_seed(1)
    model, x = Lambda(lambda m, x: F.softmax(F.linear(x, m.w), -1)).eval(), torch.randn(40, 24)
    batch = torch.export.Dim("batch", min=2, max=90)
    program = ree.compile(model, (x,), dynamic_shapes={"args": ({0: batch},)})
    for rows in (3, 40):
        _, dynamic = program.run(x[:rows], commit=True, keep=True)
        assert dynamic is not None
        found.append(Table(dynamic, signed(dynamic.manifest), 9, None))
    return found


def mutations(rng: random.Random, count: int) -> Iterator[Case]:
    """`count` cases, all kinds in turn."""
    makers: list[Callable[[random.Random, Table], Case]] = [
        _bytes, _fields, _fields, _head, _openings, _openings, _roots, _lie, _program, _program, _rebuilt,
    ]  # fmt: skip
    for number in range(count):
        yield makers[number % len(makers)](rng, rng.choice(tables()))


# -- bytes and fields -----------------------------------------------------------------------------------


def _bytes(rng: random.Random, table: Table) -> Case:
    return Case("bytes", mutate_bytes(rng, table.proof), table.receipt, table.trace, table.seed)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut, repeated, put in, or those of another proof."""
    at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(7)
    if kind < 2:
        altered = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            altered[rng.randrange(min(len(altered), rng.choice([100, 1 << 30])))] = rng.randrange(256)
        return bytes(altered)
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[end:]
    if kind == 4:
        return data[:at] + data[at:end] * 2 + data[end:]
    if kind == 5:
        return data[:at] + rng.randbytes(rng.choice([1, 4, 32, 1024])) + data[at:]
    other = rng.choice(tables()).proof
    return data[:at] + other[at:]


def tokens(head: Head, openings: dict[Source, Opening]) -> list[bytes]:
    """The fields of a proof one by one; together they are its bytes."""
    flags = (head.program is not None) + 2 * (head.seed is not None)
    found = [MAGIC, bytes([flags]), u32(head.samples)]
    found += [head.seed or b"", head.trace_root]
    found += [] if head.program is None else [u32(len(head.program)), head.program]
    found += [u32(len(head.sizes)), *(n.to_bytes(8, "little") for n in head.sizes)]
    found += [u32(len(head.inputs)), *head.inputs, u32(len(head.results)), *head.results, u32(len(openings))]
    for source, opening in openings.items():
        runs = runs_of(opening.chunks)
        found += [bytes([source.kind]), u32(source.number), u32(len(runs))]
        found += [leb(n) for run in runs for n in run]
        found += [opening.data, u32(len(opening.cvs)), opening.cvs]
    return found


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def leb(value: int) -> bytes:
    return Writer().leb(value).bytes()


def runs_of(chunks: Sequence[int]) -> list[tuple[int, int]]:
    """(chunks left out, chunks in it) of each run."""
    found: list[tuple[int, int]] = []
    end = 0
    for chunk in chunks:
        if found and chunk == end:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((chunk - end, 1))
        end = chunk + 1
    return found


def mutate_token(rng: random.Random, token: bytes, all_of_them: Sequence[bytes]) -> bytes:
    """Another field of the same width, or of any."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(all_of_them)
    if kind < 0.3:
        return rng.choice([b"", token * 2, token[:-1], token + b"\0"])
    if len(token) == 4:
        value = int.from_bytes(token, "little")
        return u32(rng.choice([*NUMBERS, max(0, value - 1), value + 1, value * 2]) % (1 << 32))
    if len(token) == 8:
        return rng.choice([*WIDE, int.from_bytes(token, "little") + 1]).to_bytes(9, "little")[:8]
    if len(token) == 32:
        return rng.choice([bytes(32), rng.randbytes(32), *(t for t in all_of_them if len(t) == 32)])
    if 1 <= len(token) <= 2:
        longer = token[:-1] + bytes([token[-1] | 128, 0])
        return rng.choice([leb(rng.choice(WIDE)), longer, b"\x80" * 9 + b"\x01", b"\xff" * 12, leb(rng.randrange(300))])
    altered = bytearray(token or b"x")
    altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
    return bytes(altered)


def _fields(rng: random.Random, table: Table) -> Case:
    found = tokens(*parts(table.proof, table.trace))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at, other, kind = rng.randrange(len(found)), rng.randrange(len(found)), rng.random()
        if kind < 0.7:
            found[at] = mutate_token(rng, found[at], found)
        elif kind < 0.8:
            found.insert(at, found[other])
        elif kind < 0.9:
            found[at], found[other] = found[other], found[at]
        elif len(found) > 1:
            del found[at]
    return Case("fields", b"".join(found), table.receipt, table.trace, table.seed)


def _head(rng: random.Random, table: Table) -> Case:
    """Fields of the head that are none of this run, or of another number of samples or seed."""
    head, openings = parts(table.proof, table.trace)
    other = rng.choice(tables())
    theirs, _ = parts(other.proof, other.trace)
    names = rng.sample(
        ["samples", "seed", "trace_root", "program", "sizes", "inputs", "results"], rng.choice([1, 1, 2])
    )
    fields = {name: getattr(theirs, name) for name in names}
    if rng.random() < 0.3:
        fields["samples"] = rng.choice([1, 2, 3, 4, 24, 26, 200])
    if rng.random() < 0.2:
        fields["sizes"] = tuple(rng.choice(WIDE) for _ in range(rng.choice([0, 1, 1, 2])))
    head = dataclasses.replace(head, **fields)
    seed = rng.choice([table.seed, head.seed])
    return Case("head", joined(head, openings), table.receipt, table.trace, seed)


# -- openings -------------------------------------------------------------------------------------------


def _openings(rng: random.Random, table: Table) -> Case:
    head, openings = parts(table.proof, table.trace)
    return Case(
        "openings", encode(head, mutate_openings(rng, table.trace, openings)), table.receipt, table.trace, head.seed
    )


def mutate_openings(rng: random.Random, trace: Trace, openings: dict[Source, Opening]) -> list[tuple[Source, Opening]]:
    """Other chunks with what belongs to them, or what does not; tensors that change places, come or go."""
    found = list(openings.items())
    for _ in range(rng.choice([1, 1, 2])):
        if not found:
            return [(Source(Kind.RESULT, 0), Opening((0,), b"", b""))]
        at, kind = rng.randrange(len(found)), rng.randrange(8)
        source, opening = found[at]
        if kind < 3 and source in openings:
            found[at] = source, rechunked(rng, trace.memory(source), opening)
        elif kind == 3:
            data = bytearray(opening.data or b"x")
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            found[at] = source, dataclasses.replace(opening, data=bytes(data))
        elif kind == 4:
            cvs = [opening.cvs[i : i + 32] for i in range(0, len(opening.cvs), 32)] or [bytes(32)]
            cvs[rng.randrange(len(cvs))] = rng.choice([b"", rng.randbytes(32), *cvs])
            found[at] = source, dataclasses.replace(opening, cvs=b"".join(cvs))
        elif kind == 5:
            found[at] = rng.choice(found)[0], opening
        elif kind == 6:
            del found[at]
        else:
            number = rng.choice([source.number, (source.number + 1) % (1 << 32), 0, (1 << 32) - 1])
            found.insert(rng.randrange(len(found) + 1), (Source(rng.choice(list(Kind)), number), opening))
    return found


def rechunked(rng: random.Random, memory: np.ndarray, opening: Opening) -> Opening:
    """Chunks more or less, opened as they should be."""
    count = chunk_count(len(memory))
    chunks = set(opening.chunks) ^ {rng.randrange(count) for _ in range(rng.choice([1, 1, 2]))}
    return Opening.of(memory, sorted(chunks or {rng.randrange(count)}))


# -- other claims -----------------------------------------------------------------------------------------


def _roots(rng: random.Random, table: Table) -> Case:
    """A claim with roots of nothing, under a receipt of its own; the proof opens the honest tensors."""
    head, openings = parts(table.proof, table.trace)
    roots = {"inputs": list(head.inputs), "results": list(head.results)}
    which = rng.choice([name for name in roots if roots[name]])
    roots[which][rng.randrange(len(roots[which]))] = rng.choice([rng.randbytes(32), *head.inputs, *head.results])
    manifest = manifest_of(table.trace.program, head.sizes, roots["inputs"], roots["results"])
    fields = {name: tuple(value) for name, value in roots.items()}
    trace = Trace(manifest, table.trace.program, table.trace.inputs, table.trace._results)
    head = dataclasses.replace(head, trace_root=manifest.root, **fields)
    is_same = manifest.root == table.trace.root
    return Case("roots", joined(head, openings), signed(manifest), trace if is_same else None, head.seed)


def _lie(rng: random.Random, table: Table) -> Case:
    """A lie under a receipt of its own, with its proof, or with everything opened, or with a mutated proof."""
    stage, element = rng.choice(dishonest.elements(rng, table.trace))
    claim = dishonest.lie(table.trace, stage, dishonest.flip(element, rng.randrange(64)), follow=rng.random() < 0.7)
    receipt, lie = signed(claim.manifest), (stage, element)
    kind = rng.random()
    try:
        proof = claim.prove(table.samples, table.seed)
    except Error:  # it cannot be computed
        proof, kind = table.proof, 0.0
    head, openings = parts(proof, claim)
    head = dataclasses.replace(head, trace_root=claim.root, results=claim.manifest.roots)
    if kind < 0.2:
        openings = opened_whole(claim)
    elif kind < 0.5:
        return Case("lie", encode(head, mutate_openings(rng, claim, openings)), receipt, claim, head.seed, lie)
    return Case("lie", joined(head, openings), receipt, claim, head.seed, lie)


# -- other programs ---------------------------------------------------------------------------------------------


def mutated_program(rng: random.Random, trace: Trace) -> bytes:
    """A description with something changed, in canonical form if there is one."""
    described = json.loads(trace.program.description)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        described = fuzz_file.mutate_tree(rng, copy.deepcopy(described))
    try:
        return canonical(described)
    except (ValueError, TypeError):
        return json.dumps(described).encode()


def _program(rng: random.Random, table: Table) -> Case:
    """A mutated program whose proof opens nothing, or what that of another opens."""
    description = mutated_program(rng, table.trace)
    sizes = table.trace.manifest.sizes if rng.random() < 0.8 else (rng.choice(WIDE),)
    proof, receipt = hostile(description, sizes, rng.choice([1, 3, 100]))
    if rng.random() < 0.3:
        head, _ = open_proof(proof)
        _, openings = parts(table.proof, table.trace)
        proof = joined(head, openings)
    return Case("program", proof, receipt, None)


def _rebuilt(rng: random.Random, table: Table) -> Case:
    """An honest run of a mutated program, by the interpreter: its proof must be accepted."""
    for _ in range(20):
        claim = rebuilt(rng, mutated_program(rng, table.trace))
        if claim is not None:
            proof = claim.prove(table.samples)
            return Case("rebuilt", proof, signed(claim.manifest), claim, is_good=True)
    return Case("rebuilt", table.proof, table.receipt, table.trace, table.seed, is_good=True)


def rebuilt(rng: random.Random, description: bytes) -> Trace | None:
    """A run of a program with weights and inputs of ours; None if there is none, or it is large."""
    try:
        found = outline.parse(description)
        sizes = found.checked_sizes([max(low, min(3, high)) for low, high in found.graph.symbols.values()])
        static = found.static(sizes)
        types = [static.type_of(v) for v in range(static.value_count)]
        if sum(t.numel() for t in types) > ELEMENTS_MAX or sum(works(found.stages(sizes))) > WORK_MAX:
            return None
        weights = [array_of(rng, c.type) for c in found.graph.constants]
        constants = [dataclasses.replace(c, data=a) for c, a in zip(found.graph.constants, weights, strict=True)]
        graph = dataclasses.replace(found.graph, constants=constants)
        program = Outline(graph, found.input_structure, found.output_structure, trusted=False)
        inputs = [array_of(rng, i.type) for i in static.inputs]
        results = evaluated(program.stages(sizes), {Kind.INPUT: inputs, Kind.CONSTANT: weights})
    except Error:
        return None
    stages = program.stages(sizes)
    roots = [digest(a.transpose(stage.order)) for stage, a in zip(stages, results, strict=True)]
    manifest = manifest_of(program, sizes, [digest(a) for a in inputs], roots)
    return Trace(manifest, program, inputs, lambda: results)  # type: ignore[arg-type]


def array_of(rng: random.Random, type: TensorType) -> np.ndarray:
    dtype, count = type.dtype, type.numel()
    values = np.random.default_rng(rng.randrange(1 << 30)).standard_normal(count) * 3
    found = values > 0 if dtype.value == "bool" else np.abs(values) if dtype.value == "u8" else values
    if dtype.value == "bf16":
        return (found.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).reshape(type.extents())
    return found.astype(dtype.numpy).reshape(type.extents())


# -- the oracle ---------------------------------------------------------------------------------------------------


def attempt(case: Case) -> str:
    """Check one proof: "refused" or "accepted". Any other outcome is an error."""
    start = time.process_time()
    try:
        found = ree.check(case.proof, case.receipt, None, [SIGNER.public], case.seed)
        outcome = "accepted"
    except Error as error:
        outcome = "refused"
        assert 10 < len(str(error)) < MESSAGE_CHARACTERS_MAX and str(error).isprintable(), repr(error)
        assert not case.is_good, f"an honest proof is refused: {error}"
    many = int.from_bytes(case.proof[9:13], "little") > 1 << 17  # which are a second's work to draw
    assert time.process_time() - start < SECONDS_MAX * (4 if many else 1)
    if outcome == "accepted":
        assert case.claim is not None, "nobody can have proven this"
        head, _ = parts(case.proof, case.claim)
        assert case.proof == case.claim.prove(head.samples, head.seed), "two proofs of one claim"
        assert head.seed == case.seed and found.size_bytes == len(case.proof)
        samples = draw(case.claim.manifest.stages, case.claim.root, head.samples, head.seed)
        assert case.lie not in samples, "a lie that was drawn"
    return f"{case.kind} {outcome}"


def fuzz(count: int, seed: int) -> Counter[str]:
    """How often each outcome was met."""
    outcomes: Counter[str] = Counter()
    rng = random.Random(seed)
    for number, case in enumerate(mutations(rng, count)):
        try:
            outcomes[attempt(case)] += 1
        except BaseException:
            print(f"seed {seed}, mutation {number} ({case.kind}): {case.proof.hex()}", file=sys.stderr)
            raise
    return outcomes


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}:", dict(sorted(fuzz(int(sys.argv[1]), seed).items())))
