"""BLAKE3 and Bao in plain Python, by the letter of their specifications; slow, and independent of ree.

`python -m tests.bao_reference` writes tests/vectors/bao.json.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "vectors" / "bao.json"
CHUNK, BLOCK = 1024, 64
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8


def _mix(v: list[int], a: int, b: int, c: int, d: int, words: tuple[int, int]) -> None:
    for word, turn_d, turn_b in ((words[0], 16, 12), (words[1], 8, 7)):
        v[a] = (v[a] + v[b] + word) & 0xFFFFFFFF
        v[d] = _rotate(v[d] ^ v[a], turn_d)
        v[c] = (v[c] + v[d]) & 0xFFFFFFFF
        v[b] = _rotate(v[b] ^ v[c], turn_b)


def _rotate(x: int, n: int) -> int:
    return (x >> n | x << (32 - n)) & 0xFFFFFFFF


def _compress(cv: bytes, block: bytes, counter: int, flags: int) -> bytes:
    h = [int.from_bytes(cv[i : i + 4], "little") for i in range(0, 32, 4)]
    padded = block.ljust(BLOCK, b"\0")
    m = [int.from_bytes(padded[i : i + 4], "little") for i in range(0, BLOCK, 4)]
    v = [*h, *IV[:4], counter & 0xFFFFFFFF, counter >> 32, len(block), flags]
    for _ in range(7):
        for i in range(4):
            _mix(v, i, 4 + i, 8 + i, 12 + i, (m[2 * i], m[2 * i + 1]))
        for i in range(4):
            _mix(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, (m[8 + 2 * i], m[9 + 2 * i]))
        m = [m[p] for p in PERMUTATION]
    return b"".join((x ^ y).to_bytes(4, "little") for x, y in zip(v[:8], v[8:], strict=True))


_KEY = b"".join(word.to_bytes(4, "little") for word in IV)


@functools.cache
def chunk_value(data: bytes, number: int, is_root: bool) -> bytes:
    """The chaining value of a chunk."""
    blocks = [data[i : i + BLOCK] for i in range(0, max(len(data), 1), BLOCK)]
    cv = _KEY
    for i, block in enumerate(blocks):
        last = i == len(blocks) - 1
        flags = CHUNK_START * (i == 0) | CHUNK_END * last | ROOT * (last and is_root)
        cv = _compress(cv, block, number, flags)
    return cv


@functools.cache
def parent_value(children: bytes, is_root: bool) -> bytes:
    return _compress(_KEY, children, 0, PARENT | ROOT * is_root)


def left_bytes(n_bytes: int) -> int:
    """Bytes of the left subtree: the largest power of two of chunks that leaves a byte for the right one."""
    size = CHUNK
    while 2 * size < n_bytes:
        size *= 2
    return size


def value(data: bytes, offset: int = 0, is_root: bool = True) -> bytes:
    """The chaining value of a subtree over these bytes, which start at `offset`; the hash if it is the root's."""
    if len(data) <= CHUNK:
        return chunk_value(data, offset // CHUNK, is_root)
    left = left_bytes(len(data))
    return parent_value(value(data[:left], offset, False) + value(data[left:], offset + left, False), is_root)


def slice_of(data: bytes, start: int, length: int) -> bytes:
    """The Bao slice of a range."""
    length = max(length, 1)
    if start >= len(data):
        start, length = max(len(data) - 1, 0), 1

    def walk(part: bytes, offset: int) -> bytes:
        if len(data) and (offset + len(part) <= start or offset >= start + length):
            return b""
        if len(part) <= CHUNK:
            return part
        left = left_bytes(len(part))
        node = value(part[:left], offset, False) + value(part[left:], offset + left, False)
        return node + walk(part[:left], offset) + walk(part[left:], offset + left)

    return len(data).to_bytes(8, "little") + walk(data, 0)


def outboard_of(data: bytes) -> bytes:
    """The Bao outboard."""

    def walk(part: bytes, offset: int) -> bytes:
        if len(part) <= CHUNK:
            return b""
        left = left_bytes(len(part))
        node = value(part[:left], offset, False) + value(part[left:], offset + left, False)
        return node + walk(part[:left], offset) + walk(part[left:], offset + left)

    return len(data).to_bytes(8, "little") + walk(data, 0)


# -- vectors ---------------------------------------------------------------------------------

LENGTHS = (0, 1, 1023, 1024, 1025, 2048, 2049, 3072, 4097, 5120, 8193, 16384, 16385, 17409, 33793)


def input_bytes(n_bytes: int) -> bytes:
    return bytes(i % 251 for i in range(n_bytes))


def _slice_vector(data: bytes, start: int, length: int) -> dict[str, Any]:
    encoded = slice_of(data, start, length)
    corruptions = {0, 7, len(encoded) - 1, *range(8, len(encoded), max(64, len(encoded) // 12))}
    return {
        "start": start,
        "length": length,
        "n_bytes": len(encoded),
        "hash": value(encoded).hex(),
        "corruptions": sorted(corruptions),
    }


def content() -> str:
    """The vector file, one case a line."""
    cases = []
    for n_bytes in LENGTHS:
        data = input_bytes(n_bytes)
        ranges = {(0, 0), (0, 1), (0, n_bytes), (n_bytes, 0), (n_bytes + 1, 5000), (n_bytes // 2, 1025)}
        ranges |= {(max(0, n_bytes - 1), 1), (1023, 2), (1024, 1024)}
        outboard = outboard_of(data)
        cases.append({
            "n_bytes": n_bytes,
            "root": value(data).hex(),
            "outboard": {"n_bytes": len(outboard), "hash": value(outboard).hex()},
            "slices": [_slice_vector(data, *r) for r in sorted(ranges)],
        })  # fmt: skip
    comment = (
        "Written by `python -m tests.bao_reference`. Byte i of an input is i mod 251. `hash` is the plain BLAKE3 of the"
        " encoding. A reader who knows an input's length refuses a slice with any byte changed, such as those at"
        " `corruptions`, a slice with a byte less or more, and each slice for another input."
    )
    lines = ",\n".join(json.dumps(case) for case in cases)
    return f'{{"_comment": {json.dumps(comment)},\n"cases": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    PATH.write_text(content(), encoding="utf-8")
