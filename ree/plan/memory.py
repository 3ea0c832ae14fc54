"""Places the buffers of a plan in one arena, so that buffers that live together never overlap."""

from __future__ import annotations

from dataclasses import dataclass

ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True)
class Interval:
    """A buffer's size and the steps (first, last; inclusive) during which it holds a value."""

    size_bytes: int
    first: int
    last: int


def place(intervals: list[Interval]) -> tuple[list[int], int]:
    """Offsets in bytes and the arena's size: largest first, each at the lowest free offset."""
    offsets = [0] * len(intervals)
    placed: list[int] = []
    total = 0
    for number in sorted(range(len(intervals)), key=lambda n: (-intervals[n].size_bytes, n)):
        item = intervals[number]
        size = -(-item.size_bytes // ALIGN_BYTES) * ALIGN_BYTES
        offset = 0
        neighbours = sorted(
            (offsets[other], offsets[other] + intervals[other].size_bytes)
            for other in placed
            if intervals[other].first <= item.last and item.first <= intervals[other].last
        )
        for start, end in neighbours:
            if offset + size <= start:
                break
            offset = max(offset, -(-end // ALIGN_BYTES) * ALIGN_BYTES)
        offsets[number] = offset
        placed.append(number)
        total = max(total, offset + size)
    return offsets, total
