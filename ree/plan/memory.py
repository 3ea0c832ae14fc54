"""Places the buffers of a plan in one arena, so that buffers that live together never overlap."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ree.plan.step import Buffer, Slot

ALIGN_BYTES = 64


class _Step(Protocol):
    def all_pointers(self) -> Iterable[tuple[Any, Slot]]: ...


def place_buffers(steps: Sequence[_Step], kept: Collection[Buffer] = ()) -> tuple[dict[Buffer, int], int]:
    """The offset in bytes of each buffer that steps have in an arena, and its size; those of `kept` stay to the end."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for number, step in enumerate(steps):
        for _, slot in step.all_pointers():
            if slot.buffer.kind == "arena":
                first.setdefault(slot.buffer, number)
                last[slot.buffer] = len(steps) if slot.buffer in kept else number
    items = list(first)
    offsets, total = place([Interval(b.size_bytes, first[b], last[b]) for b in items])
    return dict(zip(items, offsets, strict=True)), total


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
