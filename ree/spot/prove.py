"""Making a spot-check proof: compute the samples, note what they touch, open that."""

from __future__ import annotations

from ree.commit.stages import Kind, Source
from ree.commit.trace import Trace
from ree.errors import InputError
from ree.limits import PROOF_BYTES_MAX, PROOF_SAMPLES_MAX
from ree.spot.draw import NO_SEED, draw
from ree.spot.format import Head, encode
from ree.spot.openings import Opening, Recorded
from ree.spot.samples import touch
from ree.wire import DIGEST_BYTES

SAMPLES = 459  # of which one finds an error in 1 % of the work with 99 % probability


def prove(trace: Trace, samples: int = SAMPLES, seed: bytes | None = None, self_contained: bool = True) -> bytes:
    """A proof that randomly drawn elements of a run follow from what they read (docs/SPEC.md, "Spot-check proofs").

    seed: 32 bytes of whoever will check it, chosen after he saw the receipt; self_contained: the proof holds the
    program (without weights), so that the checker needs no file. A proof of a claim that is wrong where it is looked at
    is made as any other, and refused by the check; VerificationError: it reads an index that is out of range.
    """
    check_arguments(samples, seed)
    manifest = trace.manifest
    stages = manifest.stages
    tensors: dict[Source, Recorded] = {}

    def tensor_of(source: Source) -> Recorded:
        if source not in tensors:
            tensors[source] = Recorded(stages.type_of(source)[0], trace.memory(source))
        return tensors[source]

    touch(stages, draw(stages, manifest.root, samples, seed), tensor_of)
    return _encode(trace, samples, seed, self_contained, tensors)


def _encode(
    trace: Trace, samples: int, seed: bytes | None, self_contained: bool, tensors: dict[Source, Recorded]
) -> bytes:
    manifest = trace.manifest
    touched = sorted((source.kind, source.number) for source, tensor in tensors.items() if tensor.touched)
    openings = []
    for kind, number in touched:
        source = Source(kind, number)
        opening = Opening.of(tensors[source].memory, tensors[source].touched)
        openings.append((source, opening))
    inputs = tuple(trace.root_of(Source(Kind.INPUT, n)) for n in range(len(manifest.inputs)))
    program = trace.program.description if self_contained else None
    head = Head(samples, seed, manifest.root, program, manifest.sizes, inputs, manifest.roots)
    proof = encode(head, openings)
    if len(proof) > PROOF_BYTES_MAX:
        raise InputError(f"a proof of {len(proof)} bytes, more than {PROOF_BYTES_MAX}: take fewer samples")
    return proof


def check_arguments(samples: int, seed: bytes | None) -> None:
    """InputError for a number of samples or a seed that is none."""
    if type(samples) is not int or not 1 <= samples <= PROOF_SAMPLES_MAX:
        raise InputError(f"samples={samples!r}: an integer in 1..{PROOF_SAMPLES_MAX} is expected")
    if seed is not None and (type(seed) is not bytes or len(seed) != DIGEST_BYTES or seed == NO_SEED):
        raise InputError(f"a seed has {DIGEST_BYTES} bytes, not all zero")
