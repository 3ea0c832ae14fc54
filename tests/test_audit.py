"""The audit: what it records, how it compares, and what it finds in a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ree import audit, audit_replay
from ree.errors import UnsupportedError

PROCESSES = {
    "everything portable": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "ATen portable": audit.PROCESSES["ATen portable"],
}


@pytest.fixture(scope="module")
def report() -> audit.Report:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(300, 513), torch.nn.GELU(), torch.nn.LayerNorm(513), torch.nn.Linear(513, 7)
    ).eval()
    return audit.audit(model, (torch.randn(33, 300),), PROCESSES)


def test_finds_the_operators_and_where_they_stand(report: audit.Report) -> None:
    found = {o.target: o for o in report.operators}
    assert {"aten.addmm.default", "aten.gelu.default", "aten.native_layer_norm.default"} <= found.keys()
    assert "aten.t.default" not in found  # a view computes nothing
    assert sum(o.calls for o in report.operators if o.target == "aten.addmm.default") == 2


def test_every_setting_was_checked(report: audit.Report) -> None:
    for operator in report.operators:
        assert {"the same call again", "2 threads", "3 threads", *PROCESSES} <= set(operator.checked)
    gelu = next(o for o in report.operators if o.target == "aten.gelu.default")
    assert {"batch of 1", "batch of 3"} <= set(gelu.checked)


def test_gelu_changes_with_the_instruction_set(report: audit.Report) -> None:
    gelu = next(o for o in report.operators if o.target == "aten.gelu.default")
    change = next(c for c in gelu.changes if c.setting == "everything portable")
    assert 0 < change.differing <= change.elements == 33 * 513
    assert change.ulp_max >= 1
    assert 0 < change.relative_max < 1e-3
    assert "approximates the function" in gelu.cause


def test_report_is_json(report: audit.Report) -> None:
    data = json.loads(json.dumps(report.to_json()))
    assert data["reproduces"] is False
    assert len(data["operators"]) == len(report.operators)


def test_exact_operators_reproduce() -> None:
    class Exact(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + 1.5) * 3.0

    found = audit.audit(Exact(), (torch.randn(17, 65),), {"ATen portable": PROCESSES["ATen portable"]})
    assert found.reproduces
    assert all(o.cause == "" for o in found.operators)


def test_random_operators_are_listed_not_run() -> None:
    class Random(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    calls, skipped = audit.record(Random(), (torch.zeros(4),))
    assert [c.target for c in calls] == ["aten.add.Tensor"]
    assert skipped == {"aten.rand_like.default": "draws random numbers"}


def test_model_that_fails_is_one_error() -> None:
    with pytest.raises(UnsupportedError, match="does not run"):
        audit.record(torch.nn.Linear(3, 4), (torch.zeros(2, 5),))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1.0, 1.0, (0, 0)),
        (1.0, 1.0 + 2**-23, (1, 1)),
        (0.0, -0.0, (1, 0)),
        (-(2.0**-149), 2.0**-149, (1, 2)),
        (float("nan"), float("nan"), (0, 0)),
        (1.0, float("inf"), (1, 0)),
    ],
)
def test_difference_counts_bits_and_ulps(a: float, b: float, expected: tuple[int, int]) -> None:
    assert audit.difference(torch.tensor([a, 7.0]), torch.tensor([b, 7.0]))[:2] == expected


def test_calls_survive_the_folder(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    arguments = (base.view(4, 6).t(), base[:6].expand(4, 6), [1, None, True], float("inf"), torch.float64)
    call = audit_replay.Call("aten.add.Tensor", arguments, {"alpha": 2})
    audit_replay.save([call], tmp_path)
    (loaded,) = audit_replay.load(tmp_path)
    assert loaded.kwargs == {"alpha": 2}
    assert loaded.args[2:] == ([1, None, True], float("inf"), torch.float64)
    for before, after in zip(arguments[:2], loaded.args[:2], strict=True):
        assert torch.equal(before, after)
        assert before.stride() == after.stride()


def test_mutating_calls_leave_their_arguments_alone() -> None:
    x = torch.ones(3)
    call = audit_replay.Call("aten.add_.Tensor", (x, 1), {})
    assert audit_replay.run(call)[0].tolist() == [2.0, 2.0, 2.0]
    assert x.tolist() == [1.0, 1.0, 1.0]
