"""Layouts: how a value lies in memory, and which views are only another layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape, strides and offset in elements over a base buffer; strides may be 0 or negative."""

    shape: Shape
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def is_contiguous(self) -> bool:
        return self.offset == 0 and _same(self.shape, self.strides, contiguous(self.shape).strides)


def _same(shape: Shape, a: Sequence[int], b: Sequence[int]) -> bool:
    return all(x == y or n == 1 for n, x, y in zip(shape, a, b, strict=True))


def contiguous(shape: Shape, order: Sequence[int] | None = None) -> Layout:
    """Dense layout with the axes in memory order `order` (outermost first; default: C order)."""
    strides = [0] * len(shape)
    step = 1
    for axis in reversed(order if order is not None else range(len(shape))):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return Layout(shape, tuple(strides))


def view(op: str, attrs: Mapping[str, Any], shape: Shape, source: Layout) -> Layout | None:
    """The layout of a view operator's result over the same buffer, or None if it needs a copy."""
    if op == "reshape":
        return _reshape(source, shape)
    if op == "permute":
        return Layout(shape, tuple(source.strides[a] for a in attrs["axes"]), source.offset)
    if op == "broadcast":
        first = len(shape) - len(source.shape)
        pairs = zip(source.shape, source.strides, shape[first:], strict=True)
        return Layout(shape, (0,) * first + tuple(s if n == m else 0 for n, s, m in pairs), source.offset)
    if op == "slice":
        strides = list(source.strides)
        axis = attrs["axis"]
        offset = source.offset + attrs["start"] * strides[axis]
        strides[axis] *= attrs["step"]
        return Layout(shape, tuple(strides), offset)
    if op == "flip":
        strides, offset = list(source.strides), source.offset
        for axis in attrs["axes"]:
            offset += (shape[axis] - 1) * strides[axis]
            strides[axis] = -strides[axis]
        return Layout(shape, tuple(strides), offset)
    return None


def merge_batch(a: Layout, b: Layout) -> list[tuple[int, int, int]]:
    """The batch axes of a matrix product, (extent, stride in a, stride in b), merged where both walk evenly.

    b may have none: it is the same for all.
    """
    merged: list[tuple[int, int, int]] = []
    strides_b = b.strides[:-2] or (0,) * (len(a.shape) - 2)
    for extent, step_a, step_b in zip(a.shape[:-2], a.strides[:-2], strides_b, strict=True):
        if extent == 1:
            continue
        if merged and merged[-1][1] == extent * step_a and merged[-1][2] == extent * step_b:
            merged[-1] = (merged[-1][0] * extent, step_a, step_b)
        else:
            merged.append((extent, step_a, step_b))
    return merged


def aligned_groups(source: Shape, target: Shape) -> list[tuple[list[int], list[int]]]:
    """Splits a reshape into groups of (source axes, target axes) of equal element count.

    Axes of extent 1 belong to no group. Shapes must have equal, non-zero element counts.
    """
    groups = []
    left = [a for a, n in enumerate(source) if n != 1]
    right = [a for a, n in enumerate(target) if n != 1]
    while left or right:
        a, b = [left.pop(0)], [right.pop(0)]
        size_a, size_b = source[a[0]], target[b[0]]
        while size_a != size_b:
            if size_a < size_b:
                a.append(left.pop(0))
                size_a *= source[a[-1]]
            else:
                b.append(right.pop(0))
                size_b *= target[b[-1]]
        groups.append((a, b))
    return groups


def _reshape(source: Layout, shape: Shape) -> Layout | None:
    if 0 in shape:
        return Layout(shape, contiguous(shape).strides, source.offset)
    strides = [0] * len(shape)
    for old, new in aligned_groups(source.shape, shape):
        for outer, inner in pairwise(old):
            if source.strides[outer] != source.shape[inner] * source.strides[inner]:
                return None
        step = source.strides[old[-1]]
        for axis in reversed(new):
            strides[axis] = step
            step *= shape[axis]
    return Layout(shape, tuple(strides), source.offset)
