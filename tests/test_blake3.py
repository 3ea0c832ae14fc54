"""Our BLAKE3 equals the `blake3` package: every class of length, every instruction set, any threads and pieces."""

from __future__ import annotations

from collections.abc import Iterator

import blake3 as package
import numpy as np
import pytest

from ree_kernels import blake3, cpu
from ree_kernels.blake3 import CHUNK_BYTES, CV_BYTES, Hasher
from ree_kernels.cpu import Kernels
from tests.kernel_runs import pointer, run_boxes

# around blocks, chunks, vectors of chunks, batches of 256 chunks, and where the pool is used
LENGTHS = [
    *range(3), 31, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 3073, 4096, 4097, 5120, 5121,
    6144, 6145, 7168, 7169, 8192, 8193, 16383, 16384, 16385, 17408, 31744, 32767, 32768, 32769, 49153, 65535, 65536,
    65537, 102400, 262143, 262144, 262145, 278528, 1048575, 1048576, 1048577, 3000001, (4 << 20) + 1024,
]  # fmt: skip
DATA = np.resize(np.arange(251, dtype=np.uint8), max(LENGTHS) + 64)  # the official test vectors' input: i mod 251
KEY = b"whats the Elvish word for friend"
CONTEXT = "BLAKE3 2019-12-27 16:29:52 test vectors context"


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = cpu.threads()
    yield
    cpu.threads(before)


@pytest.fixture(params=cpu.supported())
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return cpu.load(request.param)


def expected(data: np.ndarray, length: int = 32, **mode: object) -> bytes:
    return package.blake3(data.tobytes(), **mode).digest(length)


def test_known_values() -> None:
    """Two hashes from the paper's test vectors, lest package and kernel err together."""
    assert blake3.hash(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blake3.hash(b"abc").hex() == "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(kernels: Kernels, length: int) -> None:
    assert blake3.hash(DATA[:length], kernels=kernels) == expected(DATA[:length])


def test_every_number_of_chunks(kernels: Kernels) -> None:
    """Trees of 1 to 70 chunks, whole and with a short last one."""
    for length in [n * CHUNK_BYTES + extra for n in range(71) for extra in (0, 1, 577)]:
        assert blake3.hash(DATA[:length], kernels=kernels) == expected(DATA[:length]), length


@pytest.mark.parametrize("length", [0, 1, 64, 1024, 1025, 31744, 102400, 300000])
def test_modes_and_output(kernels: Kernels, length: int) -> None:
    data = DATA[:length]
    for bytes_out in (0, 1, 32, 63, 64, 65, 131, 1000):
        assert blake3.hash(data, bytes_out, kernels=kernels) == expected(data, bytes_out)
    assert blake3.hash(data, 131, key=KEY, kernels=kernels) == expected(data, 131, key=KEY)
    assert blake3.hash(data, 131, context=CONTEXT, kernels=kernels) == expected(data, 131, derive_key_context=CONTEXT)
    for mode, theirs in (({"key": KEY}, {"key": KEY}), ({"context": CONTEXT}, {"derive_key_context": CONTEXT})):
        hasher = Hasher(kernels=kernels, **mode).update(data)
        assert hasher.digest(100, seek=70) == expected(data, 170, **theirs)[70:]


def test_modes_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not both"):
        blake3.hash(b"", key=KEY, context=CONTEXT)
    with pytest.raises(ValueError, match="32 bytes"):
        Hasher(key=b"short")


def test_any_alignment(kernels: Kernels) -> None:
    for offset in range(1, 64, 7):
        part = DATA[offset : offset + 70000]
        assert blake3.hash(part, kernels=kernels) == expected(part)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(kernels: Kernels, threads: int) -> None:
    cpu.threads(threads)
    for length in (262145, 1048576, 3000001):
        assert blake3.hash(DATA[:length], kernels=kernels) == expected(DATA[:length])
        assert Hasher(kernels=kernels).update(DATA[:length]).digest() == expected(DATA[:length])
    assert blake3.chaining_values(DATA[:3000001], kernels=kernels) == slow_cvs(DATA[:3000001], 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_pieces(kernels: Kernels, threads: int) -> None:
    """A digest after every piece, of pieces around all sizes that are treated apart."""
    cpu.threads(threads)
    rng = np.random.default_rng(threads)
    sizes = [0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 16384, 131072, 262144, 262145, 1048576, 1050000]
    for _ in range(12):
        ours, theirs, at = Hasher(kernels=kernels), package.blake3(), 0
        for _ in range(8):
            end = min(len(DATA), at + int(rng.choice(sizes)) * int(rng.integers(0, 3)))
            ours.update(DATA[at:end])
            theirs.update(DATA[at:end].tobytes())
            assert ours.digest() == theirs.digest(), (at, end)
            at = end


def test_whole_groups_at_once() -> None:
    """Where the pool takes exactly all that there is, the last join is still that of the root."""
    cpu.threads(2)
    for length in (1 << 20, (1 << 20) + 131072, 2 << 20, 4 << 20):
        for first in (0, 1, 1024, 131072, 131073):
            hasher = Hasher().update(DATA[:first]).update(DATA[first:length])
            assert hasher.digest() == expected(DATA[:length])


def slow_cvs(data: np.ndarray, group_chunks: int) -> bytes:
    """Chaining values of groups from nodes one by one."""
    chunks = [data[i : i + CHUNK_BYTES] for i in range(0, max(1, len(data)), CHUNK_BYTES)]
    level = [blake3.chunk(c, n) for n, c in enumerate(chunks)]
    while group_chunks > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [blake3.parent(b"".join(pair)) if len(pair) == 2 else pair[0] for pair in pairs]
        group_chunks //= 2
    return b"".join(level)


@pytest.mark.parametrize("group_chunks", [1, 2, 16, 64, 256])
def test_chaining_values(kernels: Kernels, group_chunks: int) -> None:
    for length in (0, 1, 1024, 1025, 16384, 16385, 70000, 262144, 300001):
        values = blake3.chaining_values(DATA[:length], group_chunks, kernels=kernels)
        assert values == slow_cvs(DATA[:length], group_chunks)
    part = DATA[262144:700001]
    values = blake3.chaining_values(part, group_chunks, first_chunk=256, kernels=kernels)
    assert values == slow_cvs(DATA[:700001], group_chunks)[256 // group_chunks * CV_BYTES :]


def test_counters_beyond_32_bits(kernels: Kernels) -> None:
    """Lanes on both sides of a carry."""
    first = (1 << 32) - 5
    values = blake3.chaining_values(DATA[: 40 * CHUNK_BYTES], first_chunk=first, kernels=kernels)
    for n in range(40):
        one = blake3.chunk(DATA[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES], first + n, kernels=kernels)
        assert values[n * CV_BYTES : (n + 1) * CV_BYTES] == one


def test_root_from_parts(kernels: Kernels) -> None:
    """Parts hashed on their own, then joined."""
    data, part = DATA[:1000000], 64 * CHUNK_BYTES
    values = b"".join(
        blake3.chaining_values(data[at : at + part], 16, at // CHUNK_BYTES, kernels=kernels)
        for at in range(0, len(data), part)
    )
    while len(values) > 2 * CV_BYTES:
        values = blake3.parents(values, kernels=kernels)
    assert blake3.parent(values, is_root=True, kernels=kernels) == expected(data)
    assert blake3.chunk(DATA[:1000], 0, is_root=True, kernels=kernels) == expected(DATA[:1000])


@pytest.mark.parametrize("group_chunks, length", [(1, 40000), (16, 500000), (256, 2000001), (16, 9), (1, 0)])
def test_boxes_in_any_order(kernels: Kernels, group_chunks: int, length: int) -> None:
    """The kernels of a plan: groups in random boxes, then the root."""
    rng = np.random.default_rng(length)
    data, out = DATA[:length].copy(), np.zeros(32, np.uint8)
    groups = int(kernels.lib.ree_blake3_group_count(length, group_chunks))
    cvs = np.zeros(groups * CV_BYTES, np.uint8)
    args = kernels.ffi.new("ree_blake3_args *")
    args.data, args.cvs, args.out = (pointer(kernels, a, "uint8_t *") for a in (data, cvs, out))
    args.n_bytes, args.group_chunks, args.out_bytes = length, group_chunks, 32
    kernels.lib.ree_blake3_set_mode(kernels.ffi.addressof(args, "mode"), kernels.ffi.NULL, 0)
    run_boxes(kernels, "ree_blake3_groups", args, 1, groups, 0, rng)
    assert cvs.tobytes() == slow_cvs(data, group_chunks)
    scratch = int(kernels.lib.ree_blake3_root_scratch_bytes(groups))
    run_boxes(kernels, "ree_blake3_root", args, 1, 1, scratch, rng)
    assert out.tobytes() == expected(data)
    assert cvs.tobytes() == slow_cvs(data, group_chunks)  # they are only read


# -- openings of some chunks ----------------------------------------------------------------------------


def opening(data: np.ndarray, chunks: list[int]) -> tuple[bytes, bytes]:
    """Bytes of chunks, and chaining values of the largest subtrees without any, node by node."""
    opened, leaves = set(chunks), [data[i : i + CHUNK_BYTES] for i in range(0, max(1, len(data)), CHUNK_BYTES)]

    def cv(first: int, n: int) -> bytes:
        if n == 1:
            return blake3.chunk(leaves[first], first)
        left = 1 << (n - 1).bit_length() - 1
        return blake3.parent(cv(first, left) + cv(first + left, n - left))

    def others(first: int, n: int) -> bytes:
        if opened.isdisjoint(range(first, first + n)):
            return cv(first, n)
        if n == 1:
            return b""
        left = 1 << (n - 1).bit_length() - 1
        return others(first, left) + others(first + left, n - left)

    return b"".join(leaves[c].tobytes() for c in chunks), others(0, len(leaves))


def some_chunks(rng: np.random.Generator, n: int) -> list[list[int]]:
    """Sets of chunks out of n: one, the first, the last, all, all but one, runs, and random ones."""
    found = [[0], [n - 1], list(range(n)), [c for c in range(n) if c != n // 2] or [0]]
    for _ in range(4):
        start, end = sorted(rng.integers(0, n, 2))
        found.append(list(range(start, end + 1)))
        found.append([int(c) for c in np.flatnonzero(rng.random(n) < rng.choice([0.05, 0.5, 0.95]))] or [0])
    return found


def test_openings_have_the_root(kernels: Kernels) -> None:
    """Every small tree, those around a batch of 256 chunks and larger ones, whole and with a short last chunk."""
    rng = np.random.default_rng(5)
    counts = [*range(1, 20), 31, 32, 33, 255, 256, 257, 300, 511, 512, 513, 700]
    for length in [0, *(n * CHUNK_BYTES - short for n in counts for short in (0, 1, 1023))]:
        data = DATA[:length]
        n = max(1, -(-length // CHUNK_BYTES))
        for chunks in some_chunks(rng, n) if n > 4 else subsets(n):
            held, cvs = opening(data, chunks)
            assert blake3.opening_root(length, chunks, held, cvs, kernels=kernels) == expected(data), (length, chunks)


def subsets(n: int) -> list[list[int]]:
    return [[c for c in range(n) if bits >> c & 1] for bits in range(1, 1 << n)]


def test_openings_with_too_few_or_too_many_values(kernels: Kernels) -> None:
    rng = np.random.default_rng(6)
    for n in (1, 2, 3, 8, 9, 257, 300):
        length = n * CHUNK_BYTES - 5
        for chunks in some_chunks(rng, n):
            held, cvs = opening(DATA[:length], chunks)
            for bad in (cvs[:-CV_BYTES], cvs + bytes(CV_BYTES), b"", cvs * 3):
                found = blake3.opening_root(length, chunks, held, bad, kernels=kernels)
                assert bad == cvs or found is None, (n, chunks)


def test_openings_bind_every_byte(kernels: Kernels) -> None:
    length = 9 * CHUNK_BYTES + 100
    held, cvs = opening(DATA[:length], [2, 3, 9])
    root = expected(DATA[:length])
    for part, others in ((held, (cvs,)), (cvs, (held,))):
        for at in range(0, len(part), 31):
            changed = part[:at] + bytes([part[at] ^ 4]) + part[at + 1 :]
            both = (changed, *others) if part is held else (*others, changed)
            assert blake3.opening_root(length, [2, 3, 9], *both, kernels=kernels) not in (root, None)
    for other in (length - 1, length + 1, length - CHUNK_BYTES, 100 * length):
        try:
            assert blake3.opening_root(other, [2, 3, 9], held, cvs, kernels=kernels) != root
        except ValueError:
            continue
    assert blake3.opening_root(length, [2, 3, 8], held[:-100] + bytes(1024), cvs, kernels=kernels) != root


def test_an_opening_of_an_input_larger_than_memory(kernels: Kernels) -> None:
    """A chunk of 2^52 bytes: its counter has more than 32 bits, its path 42 nodes."""
    n_chunks, at = 1 << 42, (1 << 41) + 12345
    cv, first, path = blake3.chunk(DATA[:CHUNK_BYTES], at), at, []
    for level in range(42):
        sibling = package.blake3(bytes([level])).digest()
        is_left, is_root = first % 2 == 0, level == 41
        cv = blake3.parent(cv + sibling if is_left else sibling + cv, is_root)
        path.append((is_left, sibling))
        first //= 2
    # from left to right: on the way down those to the left of the chunk, then on the way up those to its right
    cvs = [s for is_left, s in reversed(path) if not is_left] + [s for is_left, s in path if is_left]
    found = blake3.opening_root(
        n_chunks * CHUNK_BYTES, [at], DATA[:CHUNK_BYTES].tobytes(), b"".join(cvs), kernels=kernels
    )
    assert found == cv


def test_wrong_openings_are_refused() -> None:
    one = bytes(CHUNK_BYTES)
    for n_bytes, chunks, data, cvs in (
        (3000, [], b"", b""),
        (3000, [1, 1], one * 2, b""),
        (3000, [1, 0], one * 2, b""),
        (3000, [-1], one, b""),
        (3000, [3], one, b""),
        (3000, [1 << 70], one, b""),
        (3000, [1], one[:-1], b""),
        (3000, [1], one + b"x", b""),
        (3000, [2], one, b""),
        (3000, [1], one, bytes(31)),
        (0, [0], b"x", b""),
        (0, [1], b"", b""),
    ):
        with pytest.raises(ValueError, match="chunks"):
            blake3.opening_root(n_bytes, chunks, data, cvs)


def test_wrong_groups_and_nodes_are_refused() -> None:
    for group_chunks, first in ((0, 0), (3, 0), (512, 0), (16, 8), (2, 1), (1, -1)):
        with pytest.raises(ValueError, match="no groups"):
            blake3.chaining_values(b"", group_chunks, first)
    with pytest.raises(ValueError, match="chunk"):
        blake3.chunk(bytes(1025), 0)
    with pytest.raises(ValueError, match="children"):
        blake3.parent(bytes(63))
    with pytest.raises(ValueError, match="values"):
        blake3.parents(bytes(65))
    with pytest.raises((ValueError, BufferError)):
        blake3.hash(np.zeros((4, 4))[:, 1])
