"""Philox4x32-10 against its published vectors, and the distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ree.element.interpret import interpret
from ree.element.program import Builder
from ree.errors import UnsupportedError
from ree.ops.random import philox
from ree.ops.spec import operator
from ree.types import DType, TensorType, Type
from tests.aten_case import run

# counter, key, words: kat_vectors of the Random123 distribution, philox4x32 with 10 rounds
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    b = Builder([], 1)
    words = philox(b, [b.const(c, Type.U32) for c in counter], [b.const(k, Type.U32) for k in key])
    results = interpret(b.finish(words, [DType.U32] * 4), [], (1,))
    assert tuple(int(r[0]) for r in results) == expected


def _plain_philox(counter: list[int], key: list[int]) -> list[int]:
    for _ in range(10):
        left, right = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            right >> 32 ^ counter[1] ^ key[0], right & 0xFFFFFFFF, left >> 32 ^ counter[3] ^ key[1], left & 0xFFFFFFFF
        ]  # fmt: skip
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def _words(shape: tuple[int, ...], **attrs: int) -> np.ndarray:
    full = {"shape": shape, "seed": 0, "stream": 0, "word": 0, **attrs}
    op = operator("philox")
    out = op.infer([], full)
    return interpret(op.program([], out, full), [], shape)[0]


def test_addresses() -> None:
    seed = 0x0123456789ABCDEF
    for word in range(4):
        found = _words((2, 3), seed=seed, stream=5, word=word)
        expected = [_plain_philox([i, 0, 5, 0], [seed & 0xFFFFFFFF, seed >> 32])[word] for i in range(6)]
        np.testing.assert_array_equal(found.ravel(), expected)
    assert (_words((6,), stream=5) == _words((2, 3), stream=5).ravel()).all()
    assert (_words((3,), stream=5) != _words((3,), stream=6)).all()


def test_uniform_and_normal_look_so() -> None:
    like = torch.zeros(40, 50)
    (u,) = run(torch.rand_like, like)
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.005
    np.testing.assert_array_equal(u, (_words((40, 50)) >> 8).astype(np.float32) * np.float32(2**-24))
    (d,) = run(torch.rand_like, like.double())
    assert d.dtype == np.float64 and d.min() >= 0 and d.max() < 1
    np.testing.assert_allclose(d, _words((40, 50)).astype(np.float64) * 2.0**-32, atol=2.0**-27)
    for dtype, bits in ((torch.float16, 11), (torch.bfloat16, 8)):
        (narrow,) = run(lambda x, d=dtype: torch.rand_like(x, dtype=d).float(), like)
        np.testing.assert_array_equal(narrow, (_words((40, 50)) >> (32 - bits)).astype(np.float32) * 2.0**-bits)


def test_normal() -> None:
    (z,) = run(torch.randn_like, torch.zeros(40, 50))
    high, low = (_words((40, 50), word=w).astype(np.float64) // 256 for w in (0, 1))
    expected = np.sqrt(-2 * np.log((high + 1) * 2.0**-24)) * np.cos(2 * math.pi * low * 2.0**-24)
    np.testing.assert_allclose(z, expected, atol=3e-6, rtol=3e-6)
    assert abs(z.mean()) < 0.06 and abs(z.std() - 1) < 0.05
    (shifted,) = run(lambda m: torch.normal(m, 2.0), torch.full((40, 50), 3.0))
    np.testing.assert_allclose(shifted, z * 2 + 3, rtol=1e-6)


def test_integers_permutations_and_masks() -> None:
    (n,) = run(lambda x: torch.randint_like(x, -3, 4), torch.zeros(700, dtype=torch.int64))
    np.testing.assert_array_equal(n, (_words((700,)).astype(np.uint64) * 7 >> 32).astype(np.int64) - 3)
    assert set(n) == set(range(-3, 4))
    (order,) = run(lambda x: torch.randperm(20), torch.zeros(1))
    np.testing.assert_array_equal(order, np.argsort(_words((20,)), kind="stable"))
    (kept,) = run(lambda x: torch.bernoulli(x), torch.tensor([0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]))
    assert kept[0] == 0 and kept[1] == 1 and set(kept) == {0.0, 1.0}


def test_dropout() -> None:
    x = torch.arange(1.0, 201.0)
    out, mask = run(lambda x: torch.native_dropout(x, 0.25, True), x)
    np.testing.assert_array_equal(out, np.where(mask, x.numpy() * np.float32(1 / 0.75), 0))
    assert 0.65 < mask.mean() < 0.85
    np.testing.assert_array_equal(run(lambda x: torch.native_dropout(x, 0.25, False), x)[0], x.numpy())


def test_each_node_draws_from_its_own_stream() -> None:
    first, second = run(lambda x: (torch.rand_like(x), torch.rand_like(x)), torch.zeros(8))
    assert (first != second).all()
    again = run(lambda x: (torch.rand_like(x), torch.rand_like(x)), torch.zeros(8))
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])


def test_impossible_ranges_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="randint"):
        run(lambda x: torch.randint_like(x, 0, 2**40), torch.zeros(3, dtype=torch.int64))
    widest = {"low": 0, "count": 1 << 32}
    assert operator("unit_integer").infer([TensorType((2,), DType.U32)], widest).dtype is DType.I64
