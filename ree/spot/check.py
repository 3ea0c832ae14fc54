"""Checking a spot-check proof: no weights, no run, no torch; some elements are computed from what is opened."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ree import file, outline
from ree.commit import receipt as receipts
from ree.commit.elements import plain
from ree.commit.stages import Kind, Source, Stages
from ree.commit.trace import Manifest, list_id, tensor_ids
from ree.errors import Error, InputError, LimitError, VerificationError
from ree.limits import PROOF_WORK_MAX, TENSOR_BYTES_MAX
from ree.outline import Outline
from ree.spot.draw import Sample, draw, element_work, kinship, works
from ree.spot.format import Head, open_proof, read_openings
from ree.spot.openings import Opening, Served, size_of
from ree.spot.prove import check_arguments
from ree.spot.samples import compare
from ree.wire import DIGEST_BYTES, Reader

if TYPE_CHECKING:
    import numpy as np

    from ree.commit.keys import PublicKey
    from ree.commit.receipt import Receipt
    from ree.graph import Graph

CONFIDENCE = 0.99


@dataclass(frozen=True)
class Check:
    """A proof that holds, and what that says.

    samples: drawn in proportion to work; extra: one for each class of stage that had none; stages: that have any;
    found_fraction: of the elements, weighted by work: errors in so many are found with 99 % probability; single: the
    probability that one wrong element is found, on average; work_share: instructions of the samples over those of the
    run; size_bytes: of the proof; is_seeded: whether the draw depends on a seed of the checker's.
    """

    receipt: Receipt
    samples: int
    extra: int
    stages: int
    found_fraction: float
    single: float
    work_share: float
    size_bytes: int
    is_seeded: bool


def check(
    proof: bytes,
    receipt: bytes | str | dict[str, Any],
    program: Outline | None = None,
    trusted_keys: Collection[PublicKey] | None = None,
    seed: bytes | None = None,
    samples: int | None = None,
    inputs: Sequence[np.ndarray] | None = None,
    salt: bytes | None = None,
    nonce: bytes | None = None,
) -> Check:
    """What a proof shows about the run of a receipt; VerificationError if it does not hold.

    program: needed if the proof does not hold it; if it does, the receipt's program id binds it. seed: the one that
    was given to the prover; a proof with another, or with none, is then refused. samples: the proof must have at least
    so many. inputs: the run must be one on these (in order, in the program's dtypes), salt: opens the receipt's
    commitment to its input, nonce: the receipt must carry it; without them the run may be on any input.
    """
    if not isinstance(proof, bytes | bytearray | memoryview):
        raise InputError(f"a proof is bytes, not {type(proof).__name__}")
    check_arguments(1 if samples is None else samples, seed)
    for name, value in (("salt", salt), ("nonce", nonce)):
        if value is not None and (type(value) is not bytes or len(value) != DIGEST_BYTES):
            raise InputError(f"a {name} has {DIGEST_BYTES} bytes")
    found = receipts.read(receipt, trusted_keys)
    head, reader = open_proof(bytes(proof))
    if head.trace_root != found.claim.trace_root:
        raise VerificationError("the proof is about another run than the receipt")
    if seed is not None and head.seed != seed:
        raise VerificationError("the proof was not made with this seed")
    if seed is None and head.seed is not None:  # else the prover could have tried many
        raise VerificationError("the proof was made with a seed: whoever chose it must give it to the check")
    if samples is not None and head.samples < samples:
        raise VerificationError(f"the proof has {head.samples} samples, not {samples}")
    found.claim.expect(**({} if nonce is None else {"nonce": nonce}))
    known = _program(head, program, found.claim.program_id)
    try:
        return known.guarded(lambda: _check(found, head, reader, known, len(proof), salt, inputs))  # type: ignore[no-any-return]
    except (VerificationError, LimitError, InputError):
        raise
    except Error as error:  # of a hostile program
        raise VerificationError(f"the proof's program: {error}") from None


def _check(
    found: Receipt,
    head: Head,
    reader: Reader,
    program: Outline,
    size_bytes: int,
    salt: bytes | None,
    inputs: Sequence[np.ndarray] | None,
) -> Check:
    manifest = _manifest(head, program)
    if inputs is not None and _input_roots(inputs, manifest.stages.graph) != head.inputs:
        raise VerificationError("the proof is about a run on another input")
    if salt is not None:
        found.claim.open_input(salt, list_id(manifest.inputs))
    weights, outputs = list_id(manifest.weights), list_id(manifest.outputs)
    found.claim.expect(program_id=program.program_id, weights_id=weights, output_id=outputs, trace_root=manifest.root)
    samples = draw(manifest.stages, manifest.root, head.samples, head.seed)
    work = _work(manifest.stages, samples)
    openings = read_openings(reader, lambda source: _size_of(manifest.stages, program, source))
    _evaluate(manifest.stages, samples, openings, _roots(head, program))
    return _result(found, head, manifest.stages, samples, work, size_bytes)


def _input_roots(inputs: Sequence[np.ndarray], graph: Graph) -> tuple[bytes, ...]:
    """The data roots of inputs as a run takes them; InputError if they are none of this program at these sizes."""
    import numpy as np

    if len(inputs) != len(graph.inputs):
        raise InputError(f"the run has {len(graph.inputs)} inputs, not {len(inputs)}")
    for array, declared in zip(inputs, graph.inputs, strict=True):
        if array.dtype != np.dtype(declared.type.dtype.numpy) or array.shape != declared.type.extents():
            raise InputError(f"input {declared.name} is {array.dtype}{list(array.shape)}, the run's is {declared.type}")
    return tuple(file.digest(plain(array)) for array in inputs)


def program_of(proof: bytes) -> Outline:
    """The program that a self-contained proof holds; InputError if it holds none, VerificationError if it is none."""
    head, _ = open_proof(proof)
    if head.program is None:
        raise InputError("the proof does not hold the program: give it to the check")
    try:
        return outline.parse(head.program)
    except Error as error:
        raise VerificationError(f"the proof's program: {error}") from None


def _program(head: Head, program: Outline | None, program_id: bytes) -> Outline:
    if head.program is None and program is None:
        raise InputError("the proof does not hold the program: give it to the check")
    if program is None:
        assert head.program is not None
        try:
            program = outline.parse(head.program)
        except Error as error:
            raise VerificationError(f"the proof's program: {error}") from None
    elif head.program is not None and head.program != program.description:
        raise VerificationError("the proof holds another program")
    try:
        own = program.guarded(lambda: program.program_id)
    except Error as error:
        raise VerificationError(f"the proof's program: {error}") from None
    if own != program_id:
        raise VerificationError(f"the receipt is about program {program_id.hex()[:16]}, this is {own.hex()[:16]}")
    return program


def _manifest(head: Head, program: Outline) -> Manifest:
    """The manifest that the proof states; its root is still to be compared."""
    sizes = program.checked_sizes(head.sizes)
    _check_extents(program.static(sizes))
    stages = program.stages(sizes)
    if len(head.inputs) != len(program.graph.inputs) or len(head.results) != len(stages):
        raise VerificationError("the proof does not state the roots of the program's inputs and stages")
    inputs = tensor_ids(stages, head.inputs, Kind.INPUT)
    return Manifest(program.program_id, head.sizes, stages, inputs, program.weight_ids, head.results)


def _check_extents(graph: Graph) -> None:
    """VerificationError if a tensor of a static graph is none, or larger than any: its place would not fit an i64."""
    for value in range(graph.value_count):
        type = graph.type_of(value)
        if min(type.extents(), default=0) < 0 or type.size_bytes() > TENSOR_BYTES_MAX:
            raise VerificationError(f"the proof's program has a tensor {type} among its results")


def _roots(head: Head, program: Outline) -> dict[Kind, list[bytes]]:
    return {Kind.INPUT: list(head.inputs), Kind.CONSTANT: program.weight_roots, Kind.RESULT: list(head.results)}


def _size_of(stages: Stages, program: Outline, source: Source) -> int:
    counts = {
        Kind.INPUT: len(program.graph.inputs), Kind.CONSTANT: len(program.graph.constants), Kind.RESULT: len(stages),
    }  # fmt: skip
    if source.number >= counts[source.kind]:
        raise VerificationError(f"the proof opens {_name(source)}, which the program does not have")
    return size_of(stages, source)[1]


def _work(stages: Stages, samples: list[Sample]) -> int:
    costs = {kinship(stages[n]): element_work(stages[n]) for n in {kinship(stages[n]): n for n, _ in samples}.values()}
    work = sum(costs[kinship(stages[stage])] for stage, _ in set(samples))
    if work > PROOF_WORK_MAX:
        raise LimitError(f"checking {len(samples)} samples takes {work} instructions, more than {PROOF_WORK_MAX}")
    return work


def _evaluate(
    stages: Stages, samples: list[Sample], openings: dict[Source, Opening], roots: dict[Kind, list[bytes]]
) -> None:
    served: dict[Source, Served] = {}
    for source, opening in openings.items():
        dtype, size_bytes = size_of(stages, source)
        if opening.root(size_bytes) != roots[source.kind][source.number]:
            raise VerificationError(f"the proof's opening of {_name(source)} does not have its root")
        served[source] = Served(dtype, opening, _name(source))

    def tensor_of(source: Source) -> Served:
        if source not in served:
            raise VerificationError(f"the proof does not open {_name(source)}, which its samples read")
        return served[source]

    compare(stages, samples, tensor_of)
    for source, tensor in served.items():
        if not tensor.is_used:
            raise VerificationError(f"the proof opens more of {_name(source)} than its samples read")


def _name(source: Source) -> str:
    kinds = {Kind.INPUT: "input", Kind.CONSTANT: "weight", Kind.RESULT: "the result of stage"}
    return f"{kinds[source.kind]} {source.number}"


def _single(stages: Stages, drawn: int) -> float:
    """The probability that one wrong element is found by so many samples, the mean over all elements."""
    work = works(stages)
    total, elements = sum(work), sum(stage.type.numel() for stage in stages)
    if not total:
        return 0.0
    found = 0.0
    for stage, own in zip(stages, work, strict=True):
        if count := stage.type.numel():
            found += count * -math.expm1(drawn * math.log1p(-min(own / total / count, 1 - 1e-16)))
    return found / elements


def _result(found: Receipt, head: Head, stages: Stages, samples: list[Sample], work: int, size_bytes: int) -> Check:
    total = sum(works(stages))
    drawn = min(head.samples, len(samples))
    return Check(
        receipt=found,
        samples=drawn,
        extra=len(samples) - drawn,
        stages=len({stage for stage, _ in samples}),
        found_fraction=1 - (1 - CONFIDENCE) ** (1 / drawn) if drawn else 1.0,
        single=_single(stages, drawn),
        work_share=work / total if total else 0.0,
        size_bytes=size_bytes,
        is_seeded=head.seed is not None,
    )
