"""JSON from outside: values as json gives them, and a depth that no recursion limit decides."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import ree
from ree import loaders, nesting


@pytest.mark.parametrize("value", [{}, [], [[{"a[": ["}]", '"[', "\\"]}]], "[[[" * 1000, {"k": "{" * 999}, 3, None])
def test_values_are_those_of_json(value: object) -> None:
    text = json.dumps(value)
    assert nesting.loads(text) == nesting.loads(text.encode()) == value


def test_depth_is_bounded_whatever_the_recursion_limit(tmp_path: Path) -> None:
    """A library that raises the limit (eth-account does) would let deep JSON overflow the stack of C."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        for text in ("[" * 100_000, '{"a":' * 100_000, "[" * 300 + "]" * 300, '"' + '\\"' * 100_000 + "[" * 9):
            with pytest.raises((RecursionError, ValueError)):
                nesting.loads(text)
        (tmp_path / "config.json").write_text("[" * 100_000)
        with pytest.raises(ree.InputError):
            loaders.load(str(tmp_path))
    finally:
        sys.setrecursionlimit(before)
