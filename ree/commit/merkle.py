"""A Merkle tree over 32-byte leaves: root, paths, and the descent to the first leaf in which two trees differ.

Neighbours are joined level by level and an odd last node moves up as it is, which gives the left-full
shape of RFC 6962 and BLAKE3. Leaves are digests of another domain than parents, so that none passes for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import blake3

from ree.errors import VerificationError

PARENT_CONTEXT = "ree v1 parent"
EMPTY_CONTEXT = "ree v1 empty tree"
LEAVES_MAX = 1 << 24


def parent(left: bytes, right: bytes) -> bytes:
    return blake3.blake3(left + right, derive_key_context=PARENT_CONTEXT).digest()


class Tree:
    """All levels of a tree, leaves first."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.levels: list[list[bytes]] = [list(leaves)]
        while len(self.levels[-1]) > 1:
            below = self.levels[-1]
            above = [parent(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
            self.levels.append(above + below[len(below) - len(below) % 2 :])

    @property
    def root(self) -> bytes:
        """The root; that of no leaves is a constant of its own."""
        return self.levels[-1][0] if self.levels[0] else blake3.blake3(derive_key_context=EMPTY_CONTEXT).digest()

    def path(self, index: int) -> list[bytes]:
        """The siblings from leaf `index` up to the root."""
        found = []
        for level in self.levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                found.append(level[sibling])
            index //= 2
        return found


def path_length(index: int, count: int) -> int:
    """How many siblings the path of leaf `index` of `count` has."""
    length = 0
    while count > 1:
        length += (index ^ 1) < count
        index, count = index // 2, (count + 1) // 2
    return length


def root_of_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes:
    """The root of the tree of `count` leaves in which `leaf` stands at `index`; VerificationError if it is no path."""
    if not 0 <= index < count <= LEAVES_MAX or len(path) != path_length(index, count):
        raise VerificationError(f"a path of {len(path)} nodes is none of leaf {index} of {count}")
    siblings = iter(path)
    node = leaf
    while count > 1:
        if (index ^ 1) < count:
            sibling = next(siblings)
            node = parent(sibling, node) if index % 2 else parent(node, sibling)
        index, count = index // 2, (count + 1) // 2
    return node


def first_difference(count: int, a: Callable[[int, int], bytes], b: Callable[[int, int], bytes]) -> int | None:
    """The first leaf in which two trees of `count` leaves differ, None if their roots are equal.

    a, b: node (level, index) of each tree, level 0 the leaves; only the nodes on the way down are asked for.
    """
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    level, index = len(sizes) - 1, 0
    if not count or a(level, 0) == b(level, 0):
        return None
    while level > 0:
        level, index = level - 1, index * 2
        if index + 1 < sizes[level] and a(level, index) == b(level, index):
            index += 1
    return index
