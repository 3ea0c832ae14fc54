"""The documents: Python examples run, links lead somewhere, each has one title."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

import ree.api
from tests import lm_folders

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_library_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "ree" not in entry_points(group="torch_dynamo_backends").names:  # run from a checkout, not installed
        torch._dynamo.register_backend(ree.api.backend, name="ree")
    text = (ROOT / "docs" / "LIBRARY.md").read_text(encoding="utf-8")
    blocks = [code for language, code in FENCE.findall(text) if language == "python"]
    assert len(blocks) >= 5
    names: dict[str, Any] = {"folder": lm_folders.make(tmp_path / "folder")}
    for block in blocks:
        exec(compile(block, "docs/LIBRARY.md", "exec"), names)  # noqa: S102 (our own text)
    with torch.inference_mode():
        torch.testing.assert_close(names["y"], names["model"](names["x"]))


def test_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"model": torch.nn.Linear(3, 4), "example": torch.ones(2, 3)}
    for language, code in FENCE.findall(text):
        if language == "python":
            exec(compile(code, "README.md", "exec"), names)  # noqa: S102 (our own text)
    assert (tmp_path / "model.ree").exists()
    assert names["output"].shape == (2, 4)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = FENCE.sub("", text)
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    for target in re.findall(r"\]\(([^)#\s]+)\)", prose):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
