"""Functions that begin in binary32 give the bits of their definitions, and do so on devices with slow binary64."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ree
from benchmarks import narrow as compared
from benchmarks.narrow import Comparison
from ree.element import functions, narrow
from ree.element.encode import digest
from ree.element.interpret import interpret
from ree.element.program import Builder, Value
from ree_kernels import cuda
from tests.cuda_case import same_outputs
from tests.test_functions import HARD, SPECIAL
from tools.emulator.device import Emulator

STRIDE = 1021  # over all bit patterns: every binade has more than 8000 of them
AROUND = 256  # neighbours, on both sides
# where first phases begin or end, or divide their arguments
ENDS = [
    2.0**-126,
    2.0**-100,
    2.0**-28,
    0.34657359,
    0.41421356,
    0.5,
    0.70710677,
    0.78539816,
    1.41421354,
    3.925,
    7.0,
    8.4,
]
ENDS += [
    9.0,
    9.1,
    12.0,
    14.5,
    20.0,
    30.0,
    60.0,
    69.0,
    70.0,
    75.0,
    87.0,
    88.0,
    104.0,
    120.0,
    125.5,
    127.5,
    150.0,
    2.0**17,
]
ENDS += [2.0**100]


def around(points: Sequence[float]) -> np.ndarray:
    """Points of both signs with their neighbours, and what lies around 0, infinities and NaN."""
    bits = np.array([*points, 0.0, np.inf, np.nan], np.float32).view(np.uint32).astype(np.int64)
    near = bits[:, None] + np.arange(-AROUND, AROUND + 1)
    return np.concatenate([near, near + (1 << 31)]).reshape(-1).astype(np.uint32).view(np.float32)


def sample() -> np.ndarray:
    return np.arange(0, 1 << 32, STRIDE, dtype=np.int64)[: compared.BLOCK].astype(np.uint32).view(np.float32)


def test_all_inputs_were_compared() -> None:
    """docs/narrow.json is of the programs that are built today; `benchmarks/exhaustive.py --narrow` writes it."""
    proved = json.loads((Path(__file__).parent.parent / "docs" / "narrow.json").read_text())
    assert proved.keys() == narrow.NEAR.keys()
    for name, row in proved.items():
        assert row["program"] == digest(compared.in_two_phases(name)).hex(), name
        assert row["inputs"] == 1 << 32 and compared.is_good(row), name


@pytest.mark.parametrize("name", narrow.NEAR)
def test_the_bits_of_the_definition(name: str) -> None:
    comparison = Comparison(name)
    comparison.compare(around([*ENDS, *SPECIAL, *HARD.get(name, [])]))
    comparison.compare(sample())
    assert comparison.inputs > 4_000_000
    assert comparison.mismatches == 0, [x.hex() for x in comparison.examples]
    assert comparison.distance < compared.bound(name)


@pytest.mark.parametrize("name", narrow.NEAR)
def test_usual_arguments_are_settled(name: str) -> None:
    x = compared.typical_inputs(name)
    settled = compared.OnInputs(compared.first_phase(name)).run(x)[0]
    assert settled.mean() > 1 - 2e-4
    simple = np.array([1.0] if name in compared.POSITIVE else [0.0, -0.0, 1.0, -1.0], np.float32)
    assert compared.OnInputs(compared.first_phase(name)).run(simple)[0].all()


def test_masked_scores_are_settled() -> None:
    x = np.array([-np.inf, -3.4028235e38, -1e9, -1e4, 0.0], np.float32)
    assert compared.OnInputs(compared.first_phase("exp")).run(x)[0].all()


@pytest.mark.parametrize("name", ["exp", "log", "erf", "gelu"])
def test_too_tight_a_bound_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = narrow.NEAR[name]

    def wrong(b: Builder, x: Value) -> narrow.Near:
        return replace(right(b, x), bound=right(b, x).bound / 64)

    monkeypatch.setitem(narrow.NEAR, name, wrong)
    comparison = Comparison(name)
    comparison.compare(compared.typical_inputs(name))
    assert comparison.mismatches > 0
    assert comparison.distance > compared.bound(name)


@pytest.mark.parametrize("name", narrow.NEAR)
def test_in_the_interpreter(name: str) -> None:
    random = np.random.default_rng(5)
    usual = random.standard_normal(100) * 4
    with np.errstate(invalid="ignore"):  # signalling NaNs
        x = np.concatenate([usual, SPECIAL, -np.array(SPECIAL), [np.nan]]).astype(np.float32)
    results = [interpret(p, [x], x.shape)[0] for p in (compared.definition(name), compared.in_two_phases(name))]
    assert results[0].tobytes() == results[1].tobytes()


def test_definitions_are_those_outside() -> None:
    outside = {name: digest(compared.definition(name)) for name in narrow.NEAR}
    with pytest.raises(ZeroDivisionError), functions.narrow_first():
        assert all(digest(compared.definition(name)) != outside[name] for name in narrow.NEAR)
        with functions.narrow_first(False):
            assert digest(compared.definition("exp")) == outside["exp"]
        raise ZeroDivisionError
    assert {name: digest(compared.definition(name)) for name in narrow.NEAR} == outside


def test_softplus_with_parameters() -> None:
    assert narrow.has_softplus(1.0, 20.0)
    assert not narrow.has_softplus(2.0, 20.0) and not narrow.has_softplus(1.0, 0.1)


# -- on a device ---------------------------------------------------------------------------------------------


class _Functions(torch.nn.Module):
    """Functions alone, in a row's fold, and behind a product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 20)
        self.norm = torch.nn.RMSNorm(12)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        gates = torch.nn.functional.gelu(self.linear(self.norm(x)))
        return [
            torch.softmax(x * 3.0, -1),
            gates,
            torch.nn.functional.silu(x),
            torch.tanh(x),
            torch.log(x.abs()),
            torch.cos(x * 40.0) + torch.nn.functional.softplus(x),
            torch.nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
        ]


def inputs() -> torch.Tensor:
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(1)) * 3
    x[0, :6] = torch.tensor([0.0, -0.0, 100.0, -100.0, float("inf"), 1e-40])
    return x


def outside_branches(text: str) -> list[str]:
    """Lines of a kernel that compute in binary64, constants apart, and always run."""
    heads, found = [], []
    for line in text.splitlines():
        if re.search(r"\bf64_(?!of_bits)\w+\(|_of_f64\(", line) and not any(h.startswith("if (!v") for h in heads):
            found.append(line)
        if line.rstrip().endswith("{"):
            heads.append(line.strip())
        elif line.strip().startswith("}") and heads:
            heads.pop()
    return found


def test_a_device_with_slow_doubles() -> None:
    program = ree.compile(_Functions().eval(), (inputs(),))
    found = {}
    for slow in (False, True):
        with cuda.use(Emulator(slow_doubles=slow)):
            other = program.to("cuda")
        same_outputs(program, other, [inputs()])
        assert other.run(inputs(), commit=True)[1].root == program.run(inputs(), commit=True)[1].root
        found[slow] = [step.text for step in other.plan(()).steps]
    wide = [text for text in found[True] if "f64_fma" in text]
    assert len(wide) >= 5
    assert not any(outside_branches(text) for text in wide)
    assert sum(bool(outside_branches(text)) for text in found[False]) >= 5


@pytest.mark.parametrize("name", ["exp", "rsqrt", "tanh", "gelu"])
def test_folds_have_the_branch_too(name: str) -> None:
    model = {
        "exp": lambda x: torch.logsumexp(x, -1),
        "rsqrt": lambda x: torch.rsqrt(x.abs()).sum(-1),
        "tanh": lambda x: torch.tanh(x).sum(-1),
        "gelu": lambda x: torch.nn.functional.gelu(x).sum(-1),
    }[name]

    class Fold(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return model(x)

    program = ree.compile(Fold(), (inputs(),))
    with cuda.use(Emulator(slow_doubles=True)):
        other = program.to("cuda")
    same_outputs(program, other, [inputs()])
    assert not any(outside_branches(step.text) for step in other.plan(()).steps)
