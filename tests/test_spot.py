"""Spot-check proofs: honest ones hold, whatever is drawn and wrong is found, and nothing else passes for a proof."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import ree
from ree import outline
from ree.commit import receipt as receipts
from ree.commit.bao import chunk_count
from ree.commit.keys import PublicKey
from ree.commit.rerun import claim_of
from ree.commit.stages import Kind, Source
from ree.commit.trace import Trace
from ree.errors import Error, FormatError, InputError, LimitError, VerificationError
from ree.file import canonical
from ree.limits import PROOF_SAMPLES_MAX, PROOF_WORK_MAX
from ree.spot import check as checking
from ree.spot import format as formats
from ree.spot.draw import draw, element_work, works
from ree.spot.format import Head, encode, read_openings
from ree.spot.openings import Opening
from ree.wire import Reader, Writer
from ree_kernels import blake3, cpu
from ree_kernels.blake3 import CHUNK_BYTES
from tests import dishonest, fuzz_spot, spot_vectors
from tests.fuzz_spot import MORE, edited, embedding, hostile, joined, leb, manifest_of, parts, path_to, run, signed
from tests.receipt_vectors import OTHER, SALT, SIGNER
from tests.test_random_graphs import random_program
from tests.test_trace import CASES, Lambda, compiled

ROOT = Path(__file__).resolve().parent.parent
SEED = bytes(range(1, 33))
SECONDS_MAX = 2.0


def seeds(start: int = 1) -> Iterator[bytes]:
    return (n.to_bytes(32, "little") for n in itertools.count(start))


def seed_that_draws(trace: Trace, samples: int, at: tuple[int, int]) -> bytes:
    """A seed with which this element is a sample."""
    manifest = trace.manifest
    return next(s for s in seeds() if at in draw(manifest.stages, manifest.root, samples, s))


def refused(proof: bytes, receipt: bytes, match: str | None = None, **given: Any) -> None:
    start = time.process_time()
    with pytest.raises(VerificationError, match=match) as found:
        ree.check(proof, receipt, **given)
    assert time.process_time() - start < SECONDS_MAX and len(str(found.value)) < 1000


# -- honest proofs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_honest_proofs_hold(name: str, tmp_path: Path) -> None:
    """With and without the program, with and without a seed, from memory and from a file, byte for byte the same."""
    trace, program, receipt = run(name)
    program.save(tmp_path / "m.ree")
    loaded = outline.load(tmp_path / "m.ree")
    classes = {s.digest for s in trace.manifest.stages if s.type.numel()}
    for inside, seed, samples in itertools.product((True, False), (None, SEED), (1, 40, 459)):
        proof = trace.prove(samples, seed, inside)
        assert proof == trace.prove(samples, seed, inside)
        for known in (program, loaded, *([None] if inside else [])):
            found = ree.check(proof, receipt, known, [SIGNER.public], seed)
            assert found.samples + found.extra == len(draw(trace.manifest.stages, trace.root, samples, seed))
            assert found.samples == (samples if classes else 0) and found.extra < max(1, len(classes))
            assert found.is_seeded == (seed is not None) and found.size_bytes == len(proof)
            assert found.receipt.signer == SIGNER.public and 0 <= found.single <= 1
            assert not classes or found.found_fraction == pytest.approx(1 - 0.01 ** (1 / samples))
        if not inside:
            with pytest.raises(InputError, match="does not hold the program"):
                ree.check(proof, receipt, seed=seed)


@given(st.randoms(use_true_random=True))
def test_random_programs(rng: random.Random) -> None:
    """Of random graphs: honest proofs hold, and a lie is found where it is drawn."""
    program, arrays = random_program(rng)
    _, trace = program.run_committed(arrays, keep=True)
    ree.check(trace.prove(20, SEED), trace.receipt(SIGNER), seed=SEED)
    lies = dishonest.elements(rng, trace)
    for at in rng.sample(lies, min(len(lies), 2)):
        claim = dishonest.lie(trace, at[0], dishonest.flip(at[1], rng.randrange(64)))
        drawn = draw(claim.manifest.stages, claim.root, 20, SEED)
        if at in drawn:
            refused(fuzz_spot.prove_or_open(claim, 20, SEED), claim.receipt(SIGNER), seed=SEED)


def test_dynamic_programs(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, x = Lambda(CASES["product with epilogue"][0]).eval(), torch.randn(9, 24)
    batch = torch.export.Dim("batch", min=2, max=9)
    program = ree.compile(model, (x,), dynamic_shapes={"args": ({0: batch},)})
    program.save(tmp_path / "m.ree")
    proofs = []
    for rows in (2, 3, 9):
        _, trace = program.run(x[:rows], commit=True, keep=True)
        assert trace is not None
        receipt = trace.receipt(SIGNER)
        for known in (None, outline.load(tmp_path / "m.ree"), program):
            ree.check(trace.prove(30), receipt, known)
        proofs.append((trace, receipt, trace.prove(30)))
    (trace, receipt, proof), (_, other, _) = proofs[:2]
    refused(proof, other, "another run")
    head, openings = parts(proof, trace)
    for sizes in ((), (3,), (1,), (10,), (1 << 40,), ((1 << 64) - 1,), (2,) * 9999):
        refused(joined(dataclasses.replace(head, sizes=sizes), openings), receipt)


WORKER = """
import hashlib, json, sys
import numpy as np
import ree
folder = sys.argv[1]
receipt = open(folder + "/receipt", "rb").read()
if len(sys.argv) > 2:  # checks alone: no program file, no inputs
    found = ree.check(open(folder + "/proof", "rb").read(), receipt)
    print(json.dumps([found.samples, "torch" in sys.modules]))
else:
    program = ree.load(folder + "/m.ree")
    inputs = [np.load(f"{folder}/{n}.npy") for n in range(len(program.input_names))]
    _, trace = program.run_committed(inputs, keep=True)
    proof = trace.prove(60)
    ree.check(proof, receipt)
    print(json.dumps([hashlib.sha256(proof).hexdigest(), "torch" in sys.modules]))
"""


def worker(isa: str, *arguments: str) -> Any:
    env = os.environ | {"REE_ISA": isa, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", WORKER, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_proof_on_all_instruction_sets_checked_without_torch(tmp_path: Path) -> None:
    trace, program, receipt = run("attention")
    program.save(tmp_path / "m.ree")
    for n, x in enumerate(compiled("attention")[1]):
        np.save(tmp_path / f"{n}.npy", x.numpy())
    proof = trace.prove(60)
    (tmp_path / "proof").write_bytes(proof)
    (tmp_path / "receipt").write_bytes(receipt)
    for isa in cpu.supported():
        assert worker(isa, str(tmp_path)) == [hashlib.sha256(proof).hexdigest(), False], isa
    assert worker(cpu.supported()[0], str(tmp_path), "check") == [60, False]


# -- lies ------------------------------------------------------------------------------------------------


def changes(rng: random.Random, trace: Trace, at: tuple[int, int]) -> Iterator[dishonest.Change]:
    """One unit in the last place, another bit, and a NaN with a payload."""
    stage, element = at
    yield dishonest.flip(element)
    yield dishonest.flip(element, rng.randrange(1, 64))
    if trace.manifest.stages[stage].type.dtype.is_float:
        yield dishonest.nan_payload(element)
    elif trace.manifest.stages[stage].type.dtype.size_bytes == 1:
        yield lambda array: array.view(np.uint8).reshape(-1).__setitem__(element, 2)  # a bool that is neither


@pytest.mark.parametrize("name", [*CASES, *MORE])
@pytest.mark.parametrize("follow", [True, False])
def test_a_wrong_element_is_found_where_it_is_drawn(name: str, follow: bool) -> None:
    """In any stage, by any bit; and not found where nothing that is drawn is it or reads it."""
    trace, _, _ = run(name)
    rng = random.Random(1)
    for at in dishonest.elements(rng, trace):
        for change in changes(rng, trace, at):
            claim = dishonest.lie(trace, at[0], change, follow)
            receipt = claim.receipt(SIGNER)
            seed = seed_that_draws(claim, 200, at)
            with pytest.raises(VerificationError, match=re.escape("stage")) as found:
                ree.check(claim.prove(200, seed), receipt, seed=seed)
            named = re.search(
                r"element \[[\d, ]*\] of stage (\d+) is .*\(dispute it at (\d+):(\d+)\)", str(found.value)
            )
            stage, element = (int(named[2]), int(named[3])) if named else (-1, -1)
            if follow and "no run can read" not in str(found.value):
                assert (stage, element) == at
            assert named is None or int(named[1]) == stage >= at[0]
            assert named is not None or "no run can read" in str(found.value)


@pytest.mark.parametrize("name", ["product with epilogue", "attention", "sort", "layers"])
def test_what_is_not_drawn_is_not_seen(name: str) -> None:
    """The limit of all spot checks: right but for one element and what follows, it passes if that is not drawn."""
    trace, _, _ = run(name)
    for at in dishonest.elements(random.Random(2), trace):
        claim = dishonest.lie(trace, at[0], dishonest.flip(at[1]))
        manifest = claim.manifest
        seed = next(s for s in itertools.islice(seeds(), 200) if at not in draw(manifest.stages, manifest.root, 3, s))
        assert ree.check(claim.prove(3, seed), claim.receipt(SIGNER), seed=seed).samples == 3


def test_stale_weights_other_sums_and_swapped_results_are_found() -> None:
    torch.manual_seed(2)
    x = torch.randn(7, 24)
    fresh, stale = (ree.compile(Lambda(CASES["product with epilogue"][0]).eval(), (x,)) for _ in range(2))
    _, honest = fresh.run(x, commit=True, keep=True)
    assert honest is not None
    product, _, _ = run("batched product")

    def resummed(array: np.ndarray) -> None:  # torch's order of the sum: a few units in the last place
        left, right = (torch.from_numpy(a.copy()) for a in product.inputs)
        array[...] = torch.bmm(left, right).numpy()

    twice, _, _ = run("product read twice")
    results = list(twice.tensors.values())
    results[1], results[2] = results[2], results[1]
    for claim in (
        dishonest.other_weights(honest, stale),
        dishonest.lie(product, 0, resummed),
        dishonest.with_results(twice, results),
        dishonest.with_results(twice, [np.zeros_like(r) for r in results]),
    ):
        refused(claim.prove(), claim.receipt(SIGNER), "from what it read follows")


def test_wrong_elements_are_found_as_often_as_they_should_be() -> None:
    """A share f of the elements of the one stage, wherever it lies: 1 - (1 - f)^s over seeds, within 4 sigma."""
    trace, program, _ = run("product with epilogue")
    count, rng = trace.manifest.stages[0].type.numel(), random.Random(3)
    for share, samples, where in ((0.2, 5, "anywhere"), (0.05, 20, "first rows")):
        wrong = range(round(share * count)) if where == "first rows" else rng.sample(range(count), round(share * count))

        def change(array: np.ndarray, wrong: Sequence[int] = wrong) -> None:
            for element in wrong:
                dishonest.flip(element)(array)

        claim = dishonest.lie(trace, 0, change)
        receipt, caught, tries = claim.receipt(SIGNER), 0, 300
        for seed in itertools.islice(seeds(), tries):
            try:
                ree.check(claim.prove(samples, seed, self_contained=False), receipt, program, seed=seed)
            except VerificationError:
                caught += 1
        expected = 1 - (1 - len(wrong) / count) ** samples
        assert abs(caught / tries - expected) < 4 * (expected * (1 - expected) / tries) ** 0.5


# -- the draw ----------------------------------------------------------------------------------------------


def test_the_draw_is_proportional_to_work_and_covers_every_class() -> None:
    trace, _, _ = run("attention")
    stages, root = trace.manifest.stages, trace.root
    work, drawn, buckets = works(stages), Counter[int](), Counter[int]()
    for seed in itertools.islice(seeds(), 60):
        found = draw(stages, root, 200, seed)
        assert {stages[stage].digest for stage, _ in found} == {stage.digest for stage in stages}
        assert all(0 <= element < stages[stage].type.numel() for stage, element in found)
        drawn.update(stage for stage, _ in found[:200])
        buckets.update(element % 16 for stage, element in found[:200] if stage == 1)
    shares = [w / sum(work) for w in work]
    assert chi_square([drawn[n] for n in range(len(work))], shares) < 2 + 6 * 2
    assert chi_square([buckets[n] for n in range(16)], [1 / 16] * 16) < 15 + 5 * 30**0.5


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> float:
    total = sum(counts)
    return sum((n - total * p) ** 2 / (total * p) for n, p in zip(counts, shares, strict=True))


def test_the_draw_follows_from_the_claim_alone() -> None:
    """Salt, time and signer change nothing; root, number of samples and seed change everything."""
    trace, _, _ = run("attention")
    stages, proof = trace.manifest.stages, trace.prove(30)
    claim = claim_of(trace.manifest, SALT)
    for signer, salt, time_s in ((SIGNER, SALT, 5), (OTHER, bytes(range(32)), 4_000_000_000)):
        other = dataclasses.replace(claim_of(trace.manifest, salt, nonce=SEED), issued_at=time_s)
        ree.check(proof, receipts.make(other, signer))
    assert claim.trace_root == trace.root
    first = draw(stages, trace.root, 30, None)
    for root, samples, seed in ((SEED, 30, None), (trace.root, 31, None), (trace.root, 30, SEED)):
        assert draw(stages, root, samples, seed)[:30] != first
    assert draw(stages, trace.root, 30, None) == first


def test_work_by_hand() -> None:
    m, n, k = 7, 24, 24
    product = m * n * k + m * k + n * k + m + n + 1  # FMAs, both loads, coordinates, the length
    assert works(run("product read twice")[0].manifest.stages)[0] == product
    b, m, n, k = 3, 5, 4, 300
    assert works(run("batched product")[0].manifest.stages)[0] == b * m * n * k + b * m * k + b * k * n + b + m + n + 1

    rows, n = 5, 24  # the deviations' load is that of the sum: they follow in the same way from the same values
    per_element = 1 + 1 + 1 + 3 + 2  # load, load in folds, sum; deviation, square, sum; deviation, product
    per_row = 1 + 1 + 1 + 1 + 1 + 1 + 1  # mean, variance, + eps, two conversions, root, reciprocal
    norm = rows * n * per_element + rows * per_row + rows + n + 4  # length, as a float, two constants
    assert works(run("norm and softmax")[0].manifest.stages)[0] == norm


def test_scores_count_once_and_not_for_each_channel() -> None:
    b, h, q, k, d = 2, 3, 9, 9, 8
    torch.manual_seed(1)
    given = tuple(torch.randn(b, h, q, d) for _ in range(3))
    program = ree.compile(Lambda(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v)).eval(), given)
    _, trace = program.run(*given, commit=True)
    assert trace is not None
    (work,) = works(trace.manifest.stages)
    least = 2 * b * h * q * k * d + 3 * b * h * q * d  # two products; q, k and v are loaded
    assert least < work < least + 40 * b * h * q * k + 10 * b * h * q * d
    assert element_work(trace.manifest.stages[0]) > 3 * k * d  # one alone has them all, and for each fold again


# -- what is refused ------------------------------------------------------------------------------------------


def test_nonsense_arguments() -> None:
    trace, _, receipt = run("few elements")
    proof = trace.prove(3)
    for samples in (0, -1, PROOF_SAMPLES_MAX + 1, 1.0, True, None, "3"):
        with pytest.raises(InputError, match="samples"):
            trace.prove(samples)  # type: ignore[arg-type]
    for seed in (b"", bytes(32), bytes(31), bytes(range(33)), "0" * 32, 1, bytearray(SEED)):
        with pytest.raises(InputError, match="seed"):
            trace.prove(3, seed)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="seed"):
            ree.check(proof, receipt, seed=seed)  # type: ignore[arg-type]
    for nonsense in (None, "reespot", 5, [proof]):
        with pytest.raises(InputError, match="bytes"):
            ree.check(nonsense, receipt)  # type: ignore[arg-type]
    assert ree.check(bytearray(proof), receipt).samples == ree.check(memoryview(proof), receipt).samples == 3


def test_proofs_of_something_else() -> None:
    trace, _, receipt = run("product with epilogue")
    other, other_program, other_receipt = run("batched product")
    seeded = trace.prove(30, SEED)
    proof, bare = trace.prove(30), trace.prove(30, self_contained=False)
    refused(proof, other_receipt, "another run")
    refused(bare, receipt, "program", program=other_program)
    refused(proof, receipt, "another program", program=other_program)
    refused(other.prove(30), receipt, "another run")
    refused(seeded, receipt, "seed")  # of whomever: the prover could have tried many
    refused(proof, receipt, "this seed", seed=SEED)
    refused(seeded, receipt, "this seed", seed=SEED[::-1])
    refused(proof, trace.receipt(OTHER), "trust", trusted_keys=[SIGNER.public])
    claim = claim_of(trace.manifest, SALT)
    for fields in ({"output_id": SEED}, {"weights_id": SEED}, {"program_id": SEED}, {"trace_root": SEED}):
        refused(proof, receipts.make(dataclasses.replace(claim, **fields), SIGNER))


def test_heads_that_are_altered() -> None:
    trace, _, receipt = run("product read twice")
    head, openings = parts(trace.prove(30), trace)
    assert joined(head, openings) == trace.prove(30)
    swapped = (head.results[1], head.results[0], *head.results[2:])
    assert head.program is not None
    for fields in (
        {"samples": 1},
        {"samples": 0},
        {"samples": PROOF_SAMPLES_MAX + 1},
        {"seed": SEED},
        {"seed": bytes(32)},
        {"trace_root": SEED},
        {"program": None},
        {"program": b""},
        {"program": head.program + b" "},
        {"program": head.program.replace(b"[7,24]", b"[7,25]")},
        {"sizes": (1,)},
        {"inputs": ()},
        {"inputs": head.inputs * 2},
        {"results": head.results[1:]},
        {"results": (*head.results, SEED)},
        {"results": swapped},
    ):
        bad = joined(dataclasses.replace(head, **fields), openings)  # type: ignore[arg-type]
        with pytest.raises((VerificationError, InputError)) as found:
            ree.check(bad, receipt)
        assert type(found.value) is VerificationError or fields == {"program": None}


def test_openings_that_are_altered() -> None:
    """A value with another opening, other weights, an opening too few or too many, chunks in another order."""
    trace, _, receipt = run("batched product")
    head, openings = parts(trace.prove(2), trace)
    assert {s.kind for s in openings} == {Kind.INPUT, Kind.RESULT} and len(openings) == 4
    large = max(openings, key=lambda s: len(openings[s].cvs))
    opening, memory = openings[large], trace.memory(large)

    def having(source: Source, other: Opening) -> bytes:
        return joined(head, openings | {source: other})

    refused(having(large, dataclasses.replace(opening, cvs=opening.cvs[:-32])), receipt, "root")
    refused(having(large, dataclasses.replace(opening, cvs=opening.cvs + bytes(32))), receipt, "root")
    refused(having(large, dataclasses.replace(opening, cvs=opening.cvs[:-1])), receipt, "whole number")
    for field in ("data", "cvs"):
        value = getattr(opening, field)
        for at in (0, len(value) // 2, len(value) - 1):
            changed = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
            refused(having(large, dataclasses.replace(opening, **{field: changed})), receipt, "root")
    unused = next(c for c in range(chunk_count(len(memory))) if c not in opening.chunks)
    refused(having(large, Opening.of(memory, sorted([*opening.chunks, unused]))), receipt, "more of")
    refused(having(large, Opening.of(memory, opening.chunks[1:] or [unused])), receipt, "not open all|more of")
    for source in openings:
        refused(joined(head, {s: o for s, o in openings.items() if s != source}), receipt, "does not open")
    refused(encode(head, list(openings.items())[::-1]), receipt, "order")
    refused(encode(head, [*openings.items(), list(openings.items())[-1]]), receipt, "order")
    refused(joined(head, openings | {Source(Kind.RESULT, 99): opening}), receipt, "does not have")


def test_weights_that_are_others() -> None:
    torch.manual_seed(2)
    x = torch.randn(7, 24)
    fresh, stale = (ree.compile(Lambda(CASES["product with epilogue"][0]).eval(), (x,)) for _ in range(2))
    traces = [program.run(x, commit=True, keep=True)[1] for program in (fresh, stale)]
    (head, own), (_, others) = (parts(trace.prove(30), trace) for trace in traces)
    weights = {source: o for source, o in others.items() if source.kind is Kind.CONSTANT}
    receipt = traces[0].receipt(SIGNER)
    assert ree.check(joined(head, own), receipt).samples == 30
    refused(joined(head, own | weights), receipt, "weight 0 does not have its root")
    claim = dishonest.other_weights(traces[0], stale)
    head, openings = parts(claim.prove(30), claim)
    refused(joined(head, openings | weights), claim.receipt(SIGNER), "weight 0 does not have its root")


def test_a_proof_is_not_cut_or_prolonged() -> None:
    trace, _, receipt = run("gather")
    proof = trace.prove(3)
    for length in [*range(0, len(proof), max(1, len(proof) // 300)), len(proof) - 1]:
        refused(proof[:length], receipt)
    for tail in (b"\0", b"\n", proof):
        refused(proof + tail, receipt, "followed|order|truncated")


def test_a_result_that_no_run_gives_because_its_index_is_outside() -> None:
    """The prover cannot compute this sample; whatever he opens, the check finds that no run could read it."""
    trace, _, _ = run("gather")
    claim = dishonest.lie(trace, 0, dishonest.flip(5, 40), follow=False)
    seed = seed_that_draws(claim, 9, (1, 5 * 24 + 3))
    refused(fuzz_spot.prove_or_open(claim, 9, seed), claim.receipt(SIGNER), "no run can read|follows", seed=seed)
    with pytest.raises(VerificationError):
        claim.prove(9, seed)


def test_an_empty_tensor_has_nothing_to_open() -> None:
    trace, _, receipt = run("nothing")
    head, openings = parts(trace.prove(5), trace)
    assert not openings
    for source in (Source(Kind.INPUT, 0),):
        refused(joined(head, {source: Opening((0,), b"", b"")}), receipt, "more of input 0")
        refused(joined(head, {source: Opening((), b"", b"")}), receipt, "opens nothing")


# -- hostile bytes -----------------------------------------------------------------------------------------------


def test_numbers_have_one_form() -> None:
    for value in (0, 1, 127, 128, 300, (1 << 63) - 1):
        assert Reader(Writer().leb(value).bytes(), "x").leb() == value
    for bad in (b"", b"\x80", b"\x80\x00", b"\xff\x00", b"\x80" * 9 + b"\x01", b"\xff" * 100, b"\x80" * 8 + b"\x00"):
        with pytest.raises(VerificationError):
            Reader(bad, "x").leb()


def raw_opening(*numbers: int, rest: bytes = b"") -> bytes:
    """Runs of chunks of result 0, and what follows."""
    out = Writer().u32(1).u8(Kind.RESULT).u32(0).u32(len(numbers) // 2)
    for number in numbers:
        out.leb(number)
    return out.raw(rest).bytes()


def test_runs_of_chunks() -> None:
    tail, size = bytes(4 * CHUNK_BYTES), 4 * CHUNK_BYTES - 3

    def read(*numbers: int, rest: bytes = tail) -> dict[Source, Opening]:
        return read_openings(Reader(raw_opening(*numbers, rest=rest), "a proof"), lambda _: size)

    good = read(1, 2, rest=bytes(2 * CHUNK_BYTES) + bytes(4))
    assert good[Source(Kind.RESULT, 0)].chunks == (1, 2)
    for numbers in ((), (0, 0), (4, 1), (0, 5), (0, 1, 0, 1), (0, 1, 1, 0), (1 << 62, 1), (0, 1 << 62), (3, 1, 1, 1)):
        with pytest.raises(VerificationError):
            read(*numbers)


def test_many_runs_cost_no_more_than_the_bytes_that_name_them() -> None:
    """Each run fits what is left, all together do not: memory follows what is there, not what is named."""
    runs = [n for gap in (0, *[1] * 200_000) for n in (gap, 390)]
    data = Writer().u32(1).u8(Kind.RESULT).u32(0).u32(len(runs) // 2).raw(b"".join(map(leb, runs))).bytes()
    reader = Reader(data, "a proof")
    tracemalloc.start()
    try:
        with pytest.raises(VerificationError, match="not in order"):
            read_openings(reader, lambda _: 1 << 40)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("at", ["sizes", "inputs", "results", "tensors"])
def test_counts_are_held_against_what_is_left(at: str) -> None:
    trace, _, receipt = run("few elements")
    head, _ = parts(trace.prove(1), trace)
    assert head.program is not None
    out = Writer(formats.MAGIC).u8(1).u32(1).raw(head.trace_root).sized(head.program)
    for field in ("sizes", "inputs", "results", "tensors"):
        if field == at:
            out.u32(1 << 19)
            break
        roots = getattr(head, field)
        out.u32(len(roots)).raw(b"".join(roots))
    refused(out.bytes() + bytes(1 << 12), receipt, "items|program")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, _, receipt = run("attention")
    proof = trace.prove(50)
    monkeypatch.setattr(checking, "PROOF_WORK_MAX", 1000)
    with pytest.raises(LimitError, match="instructions"):
        ree.check(proof, receipt)
    monkeypatch.undo()
    monkeypatch.setattr(formats, "PROOF_BYTES_MAX", len(proof) - 1)
    refused(proof, receipt, "more than")
    monkeypatch.undo()
    monkeypatch.setattr("ree.spot.prove.PROOF_BYTES_MAX", len(proof) - 1)
    with pytest.raises(InputError, match="fewer samples"):
        trace.prove(50)


# -- hostile programs: the receipt's ids are theirs --------------------------------------------------------------------


def only_refused(description: bytes, sizes: tuple[int, ...] = (), samples: int = 3) -> str:
    """What is said of a hostile program, by a `ree.Error`, soon, and without much memory."""
    proof, receipt = hostile(description, sizes, samples)
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises((VerificationError, LimitError)) as found:
            ree.check(proof, receipt)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < SECONDS_MAX
    return str(found.value)


def _nested(depth: int) -> Any:
    value: Any = "*"
    for _ in range(depth):
        value = {"tuple": [value]}
    return value


def test_descriptions_that_say_no_program() -> None:
    program = run("product with epilogue")[1]
    dim = [[1, [["floordiv", [[1, [["sym", "s"]]]], 0]]]]
    for edit in (
        lambda d: d.update(version=2),
        lambda d: d.update(extra=1),
        lambda d: d.update(structure=[_nested(31), _nested(40)]),
        lambda d: d.update(structure=[_nested(300), "*"]),
        lambda d: d["inputs"][0][1].__setitem__(1, [1 << 62, 1 << 62]),
        lambda d: d["inputs"][0][1].__setitem__(1, [-7, 24]),
        lambda d: d["inputs"][0][1].__setitem__(1, [1] * 300),
        lambda d: d["inputs"][0][1].__setitem__(1, [True, 24]),
        lambda d: d["inputs"][0][1].__setitem__(1, [dim, 24]),
        lambda d: d["constants"][0].__setitem__(2, "00" * 31),
        lambda d: d["constants"][0].__setitem__(2, "AB" * 32),
        lambda d: d["constants"].pop(),
        lambda d: d["nodes"].pop(),
        lambda d: d["nodes"].extend(d["nodes"]),
        lambda d: d["nodes"][0][2].update({"x": 10**400}),
        lambda d: d["nodes"][0].__setitem__(1, [5, -1]),
        lambda d: d.update(outputs=[99]),
        lambda d: d.update(outputs=[]),
        lambda d: d.update(symbols={"s": [1, 5]}),
        lambda d: d.update(symbols={"s": [5, 1]}),
        lambda d: d.update(symbols={"s": [-(1 << 61), 1 << 61]}),
        lambda d: d.update(symbols={"a b": [1, 2]}),
    ):
        only_refused(edited(program, edit))
    whole = program.description
    for text in (b"", b"{}", b"[]", b"null", b"[" * 5000, b"\xff", whole[:-1], whole + b" ", b"\xef\xbb\xbf" + whole):
        only_refused(text)
    for text in (whole.replace(b'"nodes"', b'"nodes":[],"nodes"', 1), whole.replace(b":", b": ", 1)):
        with pytest.raises(FormatError):
            outline.parse(text)
    assert outline.parse(whole).program_id == program.program_id


def test_dynamic_sizes_that_no_tensor_can_have() -> None:
    """Extents that are negative, or whose product is beyond any address, once the sizes are put in."""
    torch.manual_seed(1)
    model, x = Lambda(lambda m, x: (x * 2, x.sum(-1))).eval(), torch.randn(9, 24)
    batch = torch.export.Dim("batch", min=2, max=9)
    program = ree.compile(model, (x,), dynamic_shapes={"args": ({0: batch},)})
    text = program.description
    (name,) = json.loads(text)["symbols"]
    for low, high, sizes in (
        (2, 1 << 61, (1 << 61,)),
        (2, 1 << 61, (1 << 40,)),
        (2, 9, ((1 << 64) - 1,)),
        (9, 2, (5,)),
        (-5, -1, (3,)),
    ):
        only_refused(edited(program, lambda d, low=low, high=high: d["symbols"].update({name: [low, high]})), sizes)
    symbol = json.dumps([[1, [["sym", name]]]], separators=(",", ":")).encode()
    minus = text.replace(symbol, symbol.replace(b"[[1,", b"[[-1,"))
    assert minus != text
    only_refused(minus, (3,))


def test_weights_larger_than_memory_are_never_there() -> None:
    """A weight of 2^38 bytes of which one chunk is known: the check's memory follows the proof."""
    row, columns = 123_456_789, 256
    data = np.arange(columns, dtype=np.float32)
    root, cvs = path_to(data.view(np.uint8), row, 28)
    described = json.loads(embedding(1 << 28, columns))
    described["constants"][0][2] = root.hex()
    program = outline.parse(canonical(described))
    stages = program.stages()
    index = np.full(3, row, np.int64)
    memory = [index.view(np.uint8), np.tile(data, 3).view(np.uint8)]
    assert len(stages) == 1 and {p.source for p in stages[0].ports} == {Source(Kind.INPUT, 0), Source(Kind.CONSTANT, 0)}
    inputs, results = ((blake3.hash(m),) for m in memory)
    manifest = manifest_of(program, (), inputs, results)
    receipt = signed(manifest)
    elements = {element for _, element in draw(stages, manifest.root, 40, None)}
    touched = sorted({element * 4 // CHUNK_BYTES for element in elements})
    openings = {
        Source(Kind.INPUT, 0): Opening.of(memory[0], [0]),
        Source(Kind.CONSTANT, 0): Opening((row,), data.tobytes(), cvs),
        Source(Kind.RESULT, 0): Opening.of(memory[1], touched),
    }
    head = Head(40, None, manifest.root, program.description, (), inputs, results)
    tracemalloc.start()
    try:
        assert ree.check(joined(head, openings), receipt).samples == 40
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    wrong = openings | {Source(Kind.CONSTANT, 0): Opening((row + 1,), data.tobytes(), cvs)}
    refused(joined(head, wrong), receipt, "root")


def test_work_without_end_is_refused_before_it_is_done() -> None:
    program = ree.compile(Lambda(lambda m, x: x.sum(-1)).eval(), (torch.randn(3, 24),))
    long = PROOF_WORK_MAX  # numbers in a row
    description = program.description.replace(b"[3,24]", b"[3,%d]" % long)
    assert description != program.description
    assert "instructions" in only_refused(description)
    with pytest.raises(Error, match="large"):
        outline.parse(program.description.replace(b"[3,24]", b"[3,%d]" % (1 << 61)))


def test_fuzz() -> None:
    outcomes = fuzz_spot.fuzz(500, 1)
    assert sum(outcomes.values()) == 500 and outcomes["rebuilt accepted"] > 40
    assert all(
        outcomes[f"{kind} refused"] for kind in ("bytes", "fields", "head", "openings", "roots", "lie", "program")
    )


def test_vectors() -> None:
    """The file is what this release makes; its proofs hold, and each change of one is refused for what it is."""
    vectors = json.loads(spot_vectors.PATH.read_text(encoding="utf-8"))
    assert vectors == spot_vectors.content()
    stages = {vector.name: vector.trace.manifest.stages for vector in spot_vectors.vectors()}
    trusted, others = ([PublicKey.from_hex(vectors[name])] for name in ("public_key", "other_key"))
    for name, found in vectors["proofs"].items():
        proof, seed = bytes.fromhex(found["proof"]), found["seed"] and bytes.fromhex(found["seed"])
        program, receipt = outline.parse(found["program"].encode()), found["receipt"]
        assert ree.check(proof, receipt, program, trusted, seed).samples == found["samples"]
        for drawn in found["draws"]:
            of, root = drawn["seed"] and bytes.fromhex(drawn["seed"]), bytes.fromhex(found["trace_root"])
            assert draw(stages[name], root, drawn["samples"], of) == [tuple(sample) for sample in drawn["drawn"]]
        refused(proof, receipt, program=program, seed=seed, trusted_keys=others)
        for _, change in found["refuse"]:
            refused(spot_vectors.spliced(proof, change), receipt, program=program, seed=seed)
