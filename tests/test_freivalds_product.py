"""Freivalds' check of products of bytes: its arithmetic against Python's integers, and wrong products of many kinds."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3
import numpy as np
import pytest

from ree.errors import InputError, LimitError, VerificationError
from ree.freivalds import field, product
from ree.freivalds.field import CONTEXT, P, draw
from ree.freivalds.product import K_MAX, K_MAX_ANY, PackedMatrix, check_product
from ree_kernels import cpu
from ree_kernels.build import COMMON_FLAGS, ISA_FLAGS, SOURCES
from ree_kernels.cpu import Kernels
from ree_kernels.freivalds import both_sides, parts_of
from ree_kernels.matmul_i8 import pack_matrix_i8, unpack_column_i8

SEED = bytes(range(32))
INT32 = np.iinfo(np.int32)


@pytest.fixture(params=cpu.supported(), scope="module")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return cpu.load(request.param)


def random_bytes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.integers(-128, 128, shape, np.int8)
    return np.where(rng.random(shape) < 0.2, rng.choice(np.array([-128, 127], np.int8), shape), values)


def exact(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    true = x.astype(np.int64) @ w.astype(np.int64)
    assert true.size == 0 or (true.min() >= INT32.min and true.max() <= INT32.max)
    return true.astype(np.int32)


def case(t: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng([t, k, n])
    x, w = random_bytes(rng, (t, k)), random_bytes(rng, (k, n))
    return x, w, exact(x, w)


# -- the field ----------------------------------------------------------------------------------


def test_draw_is_what_its_definition_says() -> None:
    data = blake3.blake3(SEED, derive_key_context=CONTEXT).digest(8 * 2 * 37)
    words = [int.from_bytes(data[at : at + 8], "little") & P for at in range(0, len(data), 8)]
    assert P not in words
    assert draw(SEED, 2, 37).tolist() == [words[:37], words[37:]]
    assert draw(SEED, 1, 5).tolist() == [words[:5]]
    assert draw(SEED, 2, 0).shape == (2, 0)
    assert draw(bytes(32), 2, 37).tolist() != draw(SEED, 2, 37).tolist()


def test_draw_does_not_depend_on_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(SEED, 2, 100)
    monkeypatch.setattr(field, "_WORDS_AT_ONCE", 7)
    np.testing.assert_array_equal(draw(SEED, 2, 100), whole)


def test_p_itself_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(_seed: bytes, _wanted: int) -> Iterator[np.ndarray]:
        yield np.array([P, 5, P | 7 << 61, 6 | 1 << 61], np.uint64)
        yield np.array([P], np.uint64)
        yield np.array([P - 1, 0, 9], np.uint64)

    monkeypatch.setattr(field, "_words", words)
    assert draw(SEED, 2, 2).tolist() == [[5, 6], [P - 1, 0]]


def test_the_numbers_use_all_of_the_range() -> None:
    numbers = draw(SEED, 2, 5000)
    assert numbers.dtype == np.uint64 and (numbers < P).all() and len(np.unique(numbers)) == 10_000
    for bit in range(61):
        assert 4700 < ((numbers >> np.uint64(bit)) & np.uint64(1)).sum() < 5300  # 6 standard deviations


@pytest.mark.parametrize("length", [0, 31, 33])
def test_other_seeds_are_refused(length: int) -> None:
    with pytest.raises(InputError, match="32 bytes"):
        draw(bytes(length), 2, 3)


# -- both sides against Python's integers ---------------------------------------------------------


def combine(r: np.ndarray, v: np.ndarray) -> list[list[int]]:
    """r v modulo p in Python's integers."""
    columns = v.T.tolist()
    return [[sum(a * b for a, b in zip(row, col, strict=True)) % P for col in columns] for row in r.tolist()]


def sides(r: np.ndarray, x: np.ndarray, w: np.ndarray, y: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
    u = np.array(combine(r, x), dtype=object)
    return combine(u, w), combine(r, y)


def random_field(rng: np.random.Generator, t: int) -> np.ndarray:
    values = rng.integers(0, P, (2, t), np.uint64)
    return np.where(rng.random((2, t)) < 0.2, rng.choice(np.array([0, 1, P - 1], np.uint64), (2, t)), values)


@pytest.mark.parametrize(
    "t,k,n", [(1, 1, 1), (3, 5, 7), (16, 31, 32), (2, 32, 33), (65, 64, 63), (64, 97, 15), (129, 3, 130), (1, 200, 65)]
)
def test_both_sides(kernels: Kernels, t: int, k: int, n: int) -> None:
    rng = np.random.default_rng([t, k, n])
    x, w, r = random_bytes(rng, (t, k)), random_bytes(rng, (k, n)), random_field(rng, t)
    y = rng.integers(INT32.min, INT32.max, (t, n), np.int32, endpoint=True)
    y[rng.random((t, n)) < 0.2] = INT32.min
    left, right = both_sides(kernels, r, x, pack_matrix_i8(kernels, w), y)
    assert (left.tolist(), right.tolist()) == sides(r, x, w, y)


@pytest.mark.parametrize("t", [2047, 2048, 2049, 6000])
@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("in_x,in_y", [(-128, INT32.min), (127, INT32.max)])
def test_the_largest_sums_of_many_rows(kernels: Kernels, t: int, n: int, in_x: int, in_y: int) -> None:
    """Every part of a number is as large as can be, and every product has the same sign."""
    x, w, y = np.full((t, n), in_x, np.int8), np.eye(n, dtype=np.int8), np.full((t, n), in_y, np.int32)
    r = np.full((2, t), P - 1, np.uint64)
    r[1] = (1 << 60) - 1
    left, right = both_sides(kernels, r, x, pack_matrix_i8(kernels, w), y)
    numbers = (P - 1, (1 << 60) - 1)
    assert left.tolist() == [[t * number * in_x % P] * n for number in numbers]
    assert right.tolist() == [[t * number * in_y % P] * n for number in numbers]


@pytest.mark.parametrize("k", [65_792, 65_793, 65_794, 131_587, K_MAX])
@pytest.mark.parametrize("in_w", [-128, 127])
def test_the_largest_sums_of_many_columns(kernels: Kernels, k: int, in_w: int) -> None:
    """Most bytes of r x are 255, by -128: the sums of bytes come as near to the end of 32 bits as they can."""
    x, w, y = np.ones((1, k), np.int8), np.full((k, 3), in_w, np.int8), np.array([[1, 2, 3]], np.int32)
    r = np.array([[P - 1], [(1 << 61) - (1 << 56) - 1]], np.uint64)
    left, right = both_sides(kernels, r, x, pack_matrix_i8(kernels, w), y)
    assert left.tolist() == [[int(number) * k * in_w % P] * 3 for number in r[:, 0]]
    assert right.tolist() == [[int(number) * value % P for value in (1, 2, 3)] for number in r[:, 0]]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(kernels: Kernels, threads: int) -> None:
    rng = np.random.default_rng(threads)
    x, w, y = random_bytes(rng, (40, 700)), random_bytes(rng, (700, 900)), rng.integers(-9, 9, (40, 900), np.int32)
    r, packed = random_field(rng, 40), pack_matrix_i8(kernels, w)
    before = cpu.threads()
    try:
        cpu.threads(1)
        alone = both_sides(kernels, r, x, packed, y)
        cpu.threads(threads)
        together = both_sides(kernels, r, x, packed, y)
    finally:
        cpu.threads(before)
    np.testing.assert_array_equal(alone, together)
    assert alone[1].tolist() == combine(r, y)


# machine, instruction set, the emulator's processor
ELSEWHERE = [("aarch64", "neon", "cortex-a57"), ("riscv64", "portable", "rv64")]


@pytest.mark.parametrize("machine,isa,processor", ELSEWHERE)
def test_other_processors(machine: str, isa: str, processor: str, tmp_path: Path) -> None:
    """The kernels compiled for another machine combine rows and join bytes as Python's integers under an emulator."""
    compiler, emulator = f"{machine}-linux-gnu-gcc", f"qemu-{machine}"
    if not shutil.which(compiler) or not shutil.which(emulator):
        pytest.skip(f"no {compiler} or no {emulator}")
    sources = [str(Path(__file__).with_name("run_freivalds.c")), str(SOURCES / "freivalds.c")]
    options = [*COMMON_FLAGS, *ISA_FLAGS[isa], "-Werror", "-static", f"-I{SOURCES}"]
    subprocess.run([compiler, *options, *sources, "-o", str(tmp_path / "run")], check=True)
    rng = np.random.default_rng(5)
    for t, n in ((1, 1), (70, 37), (3, 128), (2050, 8)):
        r, sums = random_field(rng, t), rng.integers(INT32.min, INT32.max, (32, n), np.int32, endpoint=True)
        for v in (random_bytes(rng, (t, n)), rng.integers(INT32.min, INT32.max, (t, n), np.int32, endpoint=True)):
            head = struct.pack("<3q", t, n, v.itemsize == 1)
            data = head + parts_of(r).tobytes() + v.tobytes() + sums.tobytes()
            command = [emulator, "-cpu", processor, str(tmp_path / "run")]
            done = subprocess.run(command, input=data, capture_output=True, check=True)
            folded, joined = np.frombuffer(done.stdout, np.uint64, 4 * n).reshape(2, 2, n)
            digits = np.frombuffer(done.stdout, np.uint8, 16 * n, 32 * n).reshape(2, 8, n)
            assert folded.tolist() == combine(r, v)
            np.testing.assert_array_equal(digits.transpose(0, 2, 1), folded.view(np.uint8).reshape(2, n, 8))
            whole = sums.reshape(2, 2, 8, n).astype(object).sum(0)
            expected = [[sum(int(d) << 8 * place for place, d in enumerate(col)) % P for col in one.T] for one in whole]
            assert joined.tolist() == expected


# -- right and wrong products -----------------------------------------------------------------------

SHAPES = [(1, 1, 1), (2, 3, 4), (17, 65, 33), (64, 256, 128), (300, 40, 77)]


@pytest.mark.parametrize("t,k,n", [*SHAPES, (0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)])
def test_right_products_pass(kernels: Kernels, t: int, k: int, n: int) -> None:
    x, w, y = case(t, k, n)
    packed = PackedMatrix(pack_matrix_i8(kernels, w), k, n)
    for number in range(4):
        seed = bytes([number]) * 32
        check_product(x, w, y, seed, kernels=kernels)
        check_product(x, packed, y, seed, kernels=kernels)


def swap_rows(y: np.ndarray) -> None:
    y[[0, -1]] = y[[-1, 0]]


def swap_columns(y: np.ndarray) -> None:
    y[:, [0, -1]] = y[:, [-1, 0]]


def compensate_in_a_column(y: np.ndarray) -> None:
    y[0, 2] += 1
    y[1, 2] -= 1


def compensate_in_a_row(y: np.ndarray) -> None:
    y[1, 0] += 5
    y[1, 3] -= 5


def compensate_four(y: np.ndarray) -> None:
    """Sums of rows and of columns stay as they are."""
    y[0, 0] += 7
    y[1, 1] += 7
    y[0, 1] -= 7
    y[1, 0] -= 7


def second_differences(y: np.ndarray) -> None:
    y[:3, 1] += np.array([1, -2, 1], np.int32)


WRONG: dict[str, Callable[[np.ndarray], None]] = {
    "swapped rows": swap_rows,
    "swapped columns": swap_columns,
    "compensating in a column": compensate_in_a_column,
    "compensating in a row": compensate_in_a_row,
    "compensating in both": compensate_four,
    "second differences": second_differences,
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("t,k,n", [s for s in SHAPES if s[0] > 2])
def test_wrong_products_are_refused(kernels: Kernels, kind: str, t: int, k: int, n: int) -> None:
    x, w, y = case(t, k, n)
    WRONG[kind](y)
    row, col = min(np.argwhere(y != exact(x, w)).tolist(), key=lambda place: (place[1], place[0]))
    for number in range(4):
        with pytest.raises(VerificationError, match=rf"element \[{row}, {col}\]"):
            check_product(x, w, y, bytes([number]) * 32, kernels=kernels)


@pytest.mark.parametrize("by", [1, -1, 1 << 16, 1 << 31, -(1 << 31), 0xFFFF])
def test_any_single_wrong_element_is_named(kernels: Kernels, by: int) -> None:
    t, k, n = 5, 37, 66
    x, w, y = case(t, k, n)
    packed = PackedMatrix(pack_matrix_i8(kernels, w), k, n)
    rng = np.random.default_rng(by & 0xFF)
    for row, col in [(0, 0), (t - 1, n - 1), *zip(rng.integers(0, t, 20), rng.integers(0, n, 20), strict=True)]:
        wrong = y.copy()
        wrong[row, col] = np.array(int(y[row, col]) + by).astype(np.int32)  # by 2^31 is another number of 32 bits
        stated = rf"element \[{row}, {col}\] is {y[row, col]}, not {wrong[row, col]}$"
        with pytest.raises(VerificationError, match=stated):
            check_product(x, packed, wrong, SEED, kernels=kernels)


def test_a_wrong_operand_is_refused(kernels: Kernels) -> None:
    x, w, y = case(9, 50, 40)
    x[3, 7] ^= 1
    with pytest.raises(VerificationError):
        check_product(x, w, y, SEED, kernels=kernels)
    x[3, 7] ^= 1
    w[49, 39] ^= -128
    with pytest.raises(VerificationError, match=r"\d, 39\]"):
        check_product(x, w, y, SEED, kernels=kernels)


def test_who_knows_the_vectors_can_cheat(monkeypatch: pytest.MonkeyPatch) -> None:
    """That wrong products are found is the work of both vectors: with others that an attacker chose, they pass."""
    x, w, y = case(6, 20, 30)
    swap_rows(y)
    for rows in ((0, 1), (0,), (1,), ()):
        r = draw(SEED, 2, 6)
        for i in rows:
            r[i, -1] = r[i, 0]
        monkeypatch.setattr(product, "draw", lambda *_, r=r: r)
        if len(rows) == 2:
            check_product(x, w, y, SEED)
        else:
            with pytest.raises(VerificationError):
                check_product(x, w, y, SEED)


def test_strides() -> None:
    x, w, y = case(31, 70, 50)
    wide = np.zeros((62, 140), np.int8)
    wide[::2, ::2] = x
    tall = np.zeros((62, 50), np.int32)
    tall[1::2] = y
    for left in (x, np.asfortranarray(x), wide[::2, ::2], x[::-1][::-1]):
        for right in (w, np.asfortranarray(w), w[:, ::-1].copy()[:, ::-1]):
            for result in (y, np.asfortranarray(y), tall[1::2], y[::-1].copy()[::-1]):
                check_product(left, right, result, SEED)
    tall[3, 4] += 1
    with pytest.raises(VerificationError, match=r"\[1, 4\]"):
        check_product(x, w, tall[1::2], SEED)


def test_unaligned_results() -> None:
    x, w, y = case(3, 5, 4)
    room = np.zeros(y.nbytes + 1, np.uint8)
    moved = room[1:].view(np.int32).reshape(y.shape)
    moved[:] = y
    check_product(x, w, moved, SEED)


def test_columns_are_unpacked(kernels: Kernels) -> None:
    for k, n in ((1, 1), (5, 70), (64, 33), (1027, 40)):
        w = random_bytes(np.random.default_rng([k, n]), (k, n))
        packed = pack_matrix_i8(kernels, w)
        for col in range(n):
            np.testing.assert_array_equal(unpack_column_i8(kernels, packed, k, col), w[:, col])


# -- bounds -------------------------------------------------------------------------------------------


def test_bounds_are_exact() -> None:
    assert K_MAX_ANY * 128 * 128 <= INT32.max < (K_MAX_ANY + 1) * 128 * 128
    assert K_MAX * 128 * 127 <= INT32.max < (K_MAX + 1) * 128 * 127
    assert (K_MAX_ANY, K_MAX) == (131_071, 132_104)


@pytest.mark.parametrize("in_x,in_w,k", [(-128, -128, K_MAX_ANY), (-128, -127, K_MAX), (127, -128, K_MAX)])
def test_the_longest_sums(in_x: int, in_w: int, k: int) -> None:
    x, w = np.full((2, k), in_x, np.int8), np.full((k, 2), in_w, np.int8)
    check_product(x, w, exact(x, w), SEED)
    with pytest.raises(VerificationError, match=r"\[1, 0\]"):
        check_product(x, w, exact(x, w) - np.array([[0], [1]], np.int32), SEED)


def test_sums_that_may_wrap_are_refused() -> None:
    k = K_MAX_ANY + 1
    x, w, y = np.full((1, k), -128, np.int8), np.full((k, 1), -128, np.int8), np.zeros((1, 1), np.int32)
    packed = PackedMatrix(pack_matrix_i8(cpu.kernels(), w), k, 1)
    for right in (w, packed):
        with pytest.raises(LimitError, match="131071"):
            check_product(x, right, y, SEED)
    longer = np.ones((1, K_MAX + 1), np.int8)
    with pytest.raises(LimitError, match="132104"):
        check_product(longer, longer.T, y, SEED)


@pytest.mark.parametrize(
    "x,w,y",
    [
        ((2, 3, np.uint8), (3, 4, np.int8), (2, 4, np.int32)),
        ((2, 3, np.int8), (3, 4, np.uint8), (2, 4, np.int32)),
        ((2, 3, np.int8), (3, 4, np.int8), (2, 4, np.int64)),
        ((2, 3, np.int8), (3, 4, np.int8), (2, 4, ">i4")),
        ((2, 3, np.int8), (4, 3, np.int8), (2, 4, np.int32)),
        ((2, 3, np.int8), (3, 4, np.int8), (2, 5, np.int32)),
        ((2, 3, np.int8), (3, 4, np.int8), (1, 4, np.int32)),
    ],
)
def test_what_does_not_fit_is_refused(x: tuple, w: tuple, y: tuple) -> None:
    arrays = [np.zeros(given[:2], given[2]) for given in (x, w, y)]
    with pytest.raises(InputError):
        check_product(*arrays, SEED)


def test_ranks_are_checked() -> None:
    x, w, y = np.zeros((2, 3), np.int8), np.zeros((3, 4), np.int8), np.zeros((2, 4), np.int32)
    for given in ((x[0], w, y), (x, w[0], y), (x, w, y[0]), (x[None], w, y)):
        with pytest.raises(InputError):
            check_product(*given, SEED)


def test_a_packed_matrix_of_another_size_is_refused() -> None:
    x, w, y = case(2, 30, 40)
    data = pack_matrix_i8(cpu.kernels(), w)
    for packed in (
        PackedMatrix(data[:-1], 30, 40),
        PackedMatrix(data.view(np.int8), 30, 40),
        PackedMatrix(data, 3000, 40),
        PackedMatrix(data, 30, 4000),
        PackedMatrix(np.repeat(data, 2)[::2], 30, 40),
    ):
        with pytest.raises(InputError):
            check_product(np.zeros((2, packed.k), np.int8), packed, np.zeros((2, packed.n), np.int32), SEED)
    with pytest.raises(InputError):
        check_product(x, PackedMatrix(data, -30, 1 << 90), y, SEED)
    check_product(x, PackedMatrix(data, 30, 40), y, SEED)
