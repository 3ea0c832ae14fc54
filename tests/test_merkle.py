"""The Merkle tree of traces: shape, paths, and the descent to the first difference."""

from __future__ import annotations

import hashlib

import pytest

from ree.commit.merkle import LEAVES_MAX, Tree, first_difference, parent, path_length, root_of_path
from ree.errors import VerificationError


def leaves(count: int) -> list[bytes]:
    return [hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(count)]


def left_full(nodes: list[bytes]) -> bytes:
    """The root by RFC 6962's recursion: the left side is the largest power of two that leaves something right."""
    if len(nodes) == 1:
        return nodes[0]
    split = 1
    while split * 2 < len(nodes):
        split *= 2
    return parent(left_full(nodes[:split]), left_full(nodes[split:]))


@pytest.mark.parametrize("count", [*range(1, 35), 100, 255, 256, 257])
def test_shape_and_paths(count: int) -> None:
    nodes = leaves(count)
    tree = Tree(nodes)
    assert tree.root == left_full(nodes)
    for index in range(count):
        path = tree.path(index)
        assert len(path) == path_length(index, count)
        assert root_of_path(nodes[index], index, count, path) == tree.root


def test_no_other_leaf_place_or_path_gives_the_root() -> None:
    for count in (2, 3, 5, 8, 13):
        nodes = leaves(count)
        tree = Tree(nodes)
        for index in range(count):
            path = tree.path(index)
            for other in range(count):
                try:
                    same = root_of_path(nodes[index], other, count, path) == tree.root
                except VerificationError:
                    same = False
                assert same == (other == index)
            assert root_of_path(nodes[(index + 1) % count], index, count, path) != tree.root
            for at in range(len(path)):
                wrong = [*path[:at], bytes([path[at][0] ^ 1]) + path[at][1:], *path[at + 1 :]]
                assert root_of_path(nodes[index], index, count, wrong) != tree.root
            for wrong in (path[:-1], [*path, path[-1]]):
                with pytest.raises(VerificationError):
                    root_of_path(nodes[index], index, count, wrong)


@pytest.mark.parametrize(("index", "count"), [(-1, 4), (4, 4), (0, 0), (0, LEAVES_MAX + 1), (1 << 70, 1 << 71)])
def test_places_outside_are_refused(index: int, count: int) -> None:
    with pytest.raises(VerificationError):
        root_of_path(bytes(32), index, count, [])


def test_an_empty_tree_has_a_root_of_its_own() -> None:
    assert Tree([]).root not in {Tree([bytes(32)]).root, bytes(32)}
    assert Tree([]).path(0) == []


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 100, 1000])
def test_descent_to_the_first_difference(count: int) -> None:
    a = Tree(leaves(count))
    asked: list[tuple[int, int]] = []

    def node(level: int, index: int) -> bytes:
        asked.append((level, index))
        return a.levels[level][index]

    assert first_difference(count, node, lambda level, index: a.levels[level][index]) is None
    for wrong in {0, 1, count // 2, count - 1} & set(range(count)):
        for last in {wrong, count - 1}:
            changed = leaves(count)
            changed[wrong], changed[last] = bytes(32), bytes(32)
            b = Tree(changed)
            asked.clear()
            assert first_difference(count, node, lambda level, index, b=b: b.levels[level][index]) == wrong
            assert len(asked) <= count.bit_length() + 2
    assert first_difference(0, node, node) is None
