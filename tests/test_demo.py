"""The demonstration's second part: every lie is caught, and the honest claim by nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from ree import demo, demo_checks, demo_generation
from ree.commit.keys import generate
from ree.demo_checks import HONEST, Line


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    folder: Path = tmp_path_factory.mktemp("demo")
    demo.prepare(folder)
    return demo_checks.checks(folder)


def test_every_lie_is_caught_and_no_honest_claim(lines: list[Line]) -> None:
    assert demo_checks.failures(lines) == []
    verdicts = {(line.claim, line.check.split(",")[0]): line.objects for line in lines}
    assert len({line.claim for line in lines}) == 5 and len(lines) >= 15
    for (claim, check), objects in verdicts.items():
        if check != "spot check":
            assert objects == (claim != HONEST), (claim, check)
    assert verdicts["all weights, to bf16", "spot check"]  # one bit it finds by chance alone


def test_every_lie_about_a_generation_is_caught(tmp_path: Path) -> None:
    generate(tmp_path / "provider.pem")
    lines = demo_generation.checks(tmp_path)
    assert demo_checks.failures(lines) == []
    assert {line.claim for line in lines if line.objects} == {"a token", "the seed", "a weight"}
    assert {line.check.split(",")[0] for line in lines if not line.objects} == {"one pass", "Freivalds"}


def test_what_goes_wrong_is_named() -> None:
    good = Line(HONEST, "dispute", False, "", 0.0, 0, "")
    bad = [Line(HONEST, "dispute", True, "stage 3", 0.0, 0, ""), Line("a weight", "dispute", False, "", 0.0, 0, "")]
    assert demo_checks.failures([good]) == []
    assert demo_checks.failures(bad) == [
        "dispute objects to an honest claim: stage 3",
        "dispute does not notice that a weight was altered",
    ]
