"""Bao outboards and slices equal a slow reference; nothing but a slice of the right input passes as one."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from ree.commit import bao
from ree.commit.bao import Outboard, verify_slice
from ree.errors import Error, InputError, VerificationError
from ree.limits import TENSOR_BYTES_MAX
from ree_kernels import blake3
from tests import bao_reference as reference
from tests.bao_reference import input_bytes

VECTORS = json.loads(reference.PATH.read_text(encoding="utf-8"))["cases"]
SMALL = (0, 1, 1023, 1024, 1025, 2048, 2049, 3072, 3073, 4096, 4097, 5121, 6145, 7169, 8192, 8193)
EDGES = (-1, 0, 1)


@pytest.mark.parametrize("case", VECTORS, ids=lambda c: str(c["n_bytes"]))
def test_vectors(case: dict) -> None:
    data, root = input_bytes(case["n_bytes"]), bytes.fromhex(case["root"])
    outboard = Outboard.of(data)
    assert outboard.root == root
    encoded = outboard.encode(data)
    assert len(encoded) == case["outboard"]["n_bytes"] and blake3.hash(encoded).hex() == case["outboard"]["hash"]
    for s in case["slices"]:
        start, length = s["start"], s["length"]
        part = outboard.slice(data, start, length)
        assert len(part) == s["n_bytes"] and blake3.hash(part).hex() == s["hash"]
        assert verify_slice(root, part, start, length) == data[start : start + length]
        refused(root, part[:-1], start, length)
        refused(root, part + b"\0", start, length)
        for place in s["corruptions"]:
            refused(root, flipped(part, place, 1), start, length, case["n_bytes"])


def test_vector_file_is_what_the_reference_writes() -> None:
    assert reference.PATH.read_text(encoding="utf-8") == reference.content()


def refused(root: bytes, encoded: bytes, start: int, length: int, n_bytes: int | None = None) -> None:
    with pytest.raises(VerificationError):
        verify_slice(root, encoded, start, length, n_bytes)


def flipped(data: bytes, place: int, bits: int) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def edges(n_bytes: int) -> list[int]:
    """Places around every chunk's start and the end."""
    return sorted({max(0, at + d) for at in (*range(0, n_bytes + 1, 1024), n_bytes) for d in EDGES} | {n_bytes + 5000})


@pytest.mark.parametrize("n_bytes", SMALL)
def test_every_slice_of_small_inputs(n_bytes: int) -> None:
    """All ranges between chunk edges equal the reference, and verify to the bytes of the range."""
    data = input_bytes(n_bytes)
    outboard = Outboard.of(data)
    for start in edges(n_bytes):
        for end in [e for e in edges(n_bytes) if e >= start]:
            encoded = outboard.slice(data, start, end - start)
            assert encoded == reference.slice_of(data, start, end - start)
            assert len(encoded) == bao.slice_bytes(n_bytes, start, end - start)
            assert verify_slice(outboard.root, encoded, start, end - start, n_bytes) == data[start:end]


@pytest.mark.parametrize("group_chunks", [1, 2, 4, 16, 64, 256])
@pytest.mark.parametrize("n_bytes", [0, 1, 1024, 1025, 16384, 16385, 20000, 65536, 65537, 70001, 262145])
def test_groups_of_any_size_give_the_same_slices(n_bytes: int, group_chunks: int) -> None:
    data = input_bytes(n_bytes)
    whole, grouped = Outboard.of(data, 1), Outboard.of(data, group_chunks)
    assert whole.root == grouped.root == blake3.hash(data)
    assert whole.encode(data) == grouped.encode(data)
    rng = random.Random(n_bytes)
    ranges = [(rng.randrange(n_bytes + 2000), rng.randrange(n_bytes + 2000)) for _ in range(8)]
    for start, length in [(0, n_bytes), (n_bytes, 1), (16384, 16384), (16383, 2), *ranges]:
        encoded = grouped.slice(data, start, length)
        assert encoded == whole.slice(data, start, length)
        assert verify_slice(whole.root, encoded, start, length) == data[start : start + length]


@pytest.mark.parametrize("n_bytes", [17409, 33793])
def test_outboard_equals_the_reference(n_bytes: int) -> None:
    data = input_bytes(n_bytes)
    for group_chunks in (1, 16):
        assert Outboard.of(data, group_chunks).encode(data) == reference.outboard_of(data)


def test_outboard_from_chaining_values() -> None:
    """As a run leaves them: values of groups that several threads wrote, and a root."""
    data = input_bytes(100_000)
    outboard = Outboard(blake3.hash(data), len(data), blake3.chaining_values(data, 16), 16)
    assert outboard.slice(data, 5000, 70_000) == reference.slice_of(data, 5000, 70_000)
    for cvs in (b"", bytes(32), blake3.chaining_values(data, 16)[:-1]):
        with pytest.raises(InputError):
            Outboard(blake3.hash(data), len(data), cvs, 16)


def test_reader_is_asked_for_the_groups_of_the_range_alone() -> None:
    data, asked = input_bytes(300_000), []

    def read(offset: int, n_bytes: int) -> bytes:
        asked.append((offset, n_bytes))
        return data[offset : offset + n_bytes]

    outboard = Outboard.of(data)
    encoded = outboard.slice(read, 40_000, 3000)
    assert encoded == reference.slice_of(data, 40_000, 3000) and asked == [(32_768, 16_384)]
    asked.clear()
    outboard.slice(read, 299_999, 1)
    assert asked == [(294_912, 5088)]


@pytest.mark.parametrize(
    "source", [b"", bytes(299_999), lambda offset, n: bytes(n - 1), lambda offset, n: bytes(n + 1)]
)
def test_other_data_is_an_error(source: bytes | Callable) -> None:
    with pytest.raises(InputError):
        Outboard.of(bytes(300_000)).slice(source, 0, 1)


def test_arrays_and_views_are_inputs() -> None:
    array = np.arange(5000, dtype=np.float32).reshape(50, 100)
    outboard = Outboard.of(array)
    assert outboard.root == blake3.hash(array.tobytes())
    encoded = outboard.slice(array, 4096, 400)
    assert verify_slice(outboard.root, memoryview(encoded), 4096, 400) == array.tobytes()[4096:4496]
    assert Outboard.of(np.zeros((0, 3))).root == blake3.hash(b"")
    for start, length in ((-1, 1), (0, -1)):
        with pytest.raises(InputError):
            outboard.slice(array, start, length)


RANGES = [
    (8193, 1024, 1025),
    (8193, 8192, 1),
    (3073, 0, 3073),
    (1024, 0, 1024),
    (0, 0, 0),
    (5121, 9000, 1),
    (2049, 9, 0),
]


@pytest.mark.parametrize("n_bytes, start, length", RANGES)
def test_every_byte_counts(n_bytes: int, start: int, length: int) -> None:
    data = input_bytes(n_bytes)
    encoded, root = Outboard.of(data).slice(data, start, length), blake3.hash(data)
    for place in range(len(encoded)):
        refused(root, flipped(encoded, place, 1 << place % 8), start, length, n_bytes)
    for place in range(len(root)):
        refused(flipped(root, place, 1), encoded, start, length)
    for cut in range(len(encoded)):
        refused(root, encoded[:cut], start, length)
    for extra in (b"\0", encoded, bytes(1024)):
        refused(root, encoded + extra, start, length)


@pytest.mark.parametrize("n_bytes", [0, 1, 1024, 1025, 2049, 8192, 8193])
def test_the_final_chunk_is_checked_before_a_length_is_believed(n_bytes: int) -> None:
    """Whatever the header claims, a range that is empty, touches the end or lies beyond it gives what the input has."""
    data = input_bytes(n_bytes)
    outboard = Outboard.of(data)
    starts = [0, max(0, n_bytes - 1), n_bytes, n_bytes + 1, n_bytes + 2000]
    for start, length in [(s, n) for s in starts for n in (0, 1, 4096)]:
        encoded = outboard.slice(data, start, length)
        for claimed in {
            *range(max(0, n_bytes - 3), n_bytes + 4),
            0,
            1,
            1024,
            1025,
            2048,
            4096,
            16384,
            1 << 40,
            1 << 63,
        }:
            changed = claimed.to_bytes(8, "little") + encoded[8:]
            try:
                found = verify_slice(outboard.root, changed, start, length)
            except VerificationError:
                assert claimed != n_bytes
            else:
                assert found == data[start : start + length]
                assert claimed == n_bytes or start + length < n_bytes  # else the length would have been believed
    # an empty slice of nothing would pass under any root, were its one chunk not checked
    for start in (0, 1, 5000):
        refused(blake3.hash(b"x"), bytes(8), start, 0)
        refused(blake3.hash(b"x"), bytes(8), start, 1)


def test_slices_of_other_ranges_are_refused() -> None:
    """Or they hold the chunks of the range that was asked for."""
    data = input_bytes(8193)
    outboard = Outboard.of(data)
    ranges = [(0, 1), (0, 1025), (1024, 1), (1024, 2048), (4096, 4096), (7000, 1193), (8192, 1), (9000, 0), (0, 8193)]
    for made in ranges:
        encoded = outboard.slice(data, *made)
        for start, length in ranges:
            same = bao.chunk_range(8193, start, length) == bao.chunk_range(8193, *made)
            if same:
                assert verify_slice(outboard.root, encoded, start, length) == data[start : start + length]
            else:
                refused(outboard.root, encoded, start, length)


def test_ranges_and_lengths_out_of_bounds_are_refused() -> None:
    root, encoded = blake3.hash(b""), bytes(8)
    for start, length in ((-1, 1), (0, -1), (-1, -1), (TENSOR_BYTES_MAX + 1, 0), (0, 1 << 70)):
        refused(root, encoded, start, length)
    refused(root, (TENSOR_BYTES_MAX + 1).to_bytes(8, "little"), 0, 1)
    refused(root, b"\xff" * 8, 0, 1)


def test_memory_follows_the_slice_and_not_its_header() -> None:
    """A header that claims a terabyte costs nothing."""
    encoded = TENSOR_BYTES_MAX.to_bytes(8, "little") + bytes(2000)
    tracemalloc.start()
    try:
        refused(bytes(32), encoded, 0, TENSOR_BYTES_MAX)
        refused(bytes(32), TENSOR_BYTES_MAX.to_bytes(8, "little") + bytes(30 * 64 + 1024), 1 << 39, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def mutate(rng: random.Random, encoded: bytes, other: bytes) -> bytes:
    """A slice with bytes changed, taken out, put in, swapped or grafted from another slice."""
    changed = bytearray(encoded)
    kind = rng.randrange(6)
    at, size = rng.randrange(len(changed) + 1), rng.choice((1, 2, 8, 32, 64, 1024))
    if kind == 0:
        for _ in range(rng.choice((1, 2, 30))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[at : at + size]
    elif kind == 2:
        changed[at:at] = rng.randbytes(size)
    elif kind == 3:
        changed[:8] = rng.choice((rng.randrange(1 << 16), rng.randrange(1 << 64), len(changed))).to_bytes(8, "little")
    elif kind == 4:
        changed[at : at + size] = other[at : at + size]
    else:
        first, second = (rng.randrange(max(1, len(changed) - size)) for _ in range(2))
        a, b = bytes(changed[first : first + size]), bytes(changed[second : second + size])
        changed[first : first + size], changed[second : second + size] = b, a
    return bytes(changed)


def fuzz(count: int, seed: int) -> dict[str, int]:
    """Mutated slices: refused, or the bytes are those of the input. Anything but a VerificationError passes through."""
    rng = random.Random(seed)
    outcome = {"refused": 0, "right": 0}
    inputs = [(data, Outboard.of(data)) for data in map(input_bytes, (0, 1, 1024, 1025, 5000, 8193, 40_000))]
    for _ in range(count):
        data, outboard = rng.choice(inputs)
        start, length = (rng.choice((0, 1, 1024, rng.randrange(len(data) + 2000))) for _ in range(2))
        source, origin = rng.choice(inputs)
        other = origin.slice(source, rng.randrange(len(source) + 2000), length)
        encoded = mutate(rng, outboard.slice(data, start, length), other)
        if rng.random() < 0.1:
            start, length = (
                rng.choice((start, rng.randrange(-5, 1 << 66))),
                rng.choice((length, rng.randrange(-5, 1 << 14))),
            )
        try:
            found = verify_slice(outboard.root, encoded, start, length)
        except VerificationError:
            outcome["refused"] += 1
        else:
            assert found == data[start : start + length]
            outcome["right"] += 1
    return outcome


def test_mutations() -> None:
    outcome = fuzz(2000, seed=1)
    assert outcome["refused"] > 1500


def test_verification_errors_are_errors_of_ree() -> None:
    assert issubclass(VerificationError, Error)
    with pytest.raises(Error, match="header"):
        verify_slice(bytes(32), b"", 0, 1)
