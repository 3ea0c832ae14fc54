"""Other processors give the bits of this one: jobs under qemu-user, and that a difference would be seen."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

import ree_kernels.cpu as cpu
from ree.commit import receipt
from tools.cross import build, committed, elements, models, targets
from tools.cross.__main__ import main
from tools.cross.committed import SIZES, Committed
from tools.cross.job import C_KERNELS, MAGIC, Case, Job, symbol_of
from tools.cross.proof import prove
from tools.cross.targets import QUICK, CrossError, Processor


@pytest.fixture
def need_tools() -> None:
    lacking = targets.missing(QUICK)
    if lacking:
        pytest.skip(lacking)


@pytest.mark.slow
def test_quick_part_is_equal_everywhere(need_tools: None, tmp_path: Path) -> None:
    path = tmp_path / "cross.json"
    assert main(["--quick", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    whole = models.quick()
    count = len(elements.quick()) + len(whole) + len(committed.quick(whole))
    assert found["equal"] and len(set(found["digests"].values())) == count
    assert set(found["processors"]) == {"aarch64 neon", "riscv64 portable", found["reference"]}
    for entry in found["processors"].values():
        assert entry["cases"] == entry["equal"] == count


@pytest.mark.slow
def test_contraction_is_refused(need_tools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels built with the compiler's own default on aarch64 do not pass."""
    flags = [flag for flag in build.COMMON_FLAGS if flag != "-ffp-contract=off"]
    assert len(flags) == len(build.COMMON_FLAGS) - 1
    monkeypatch.setattr(build, "COMMON_FLAGS", [*flags, "-ffp-contract=fast"])
    with pytest.raises(CrossError, match="fuses"):
        prove([elements.columns()], [Processor("aarch64", "portable")])


@pytest.mark.slow
def test_a_wrong_hash_is_seen_in_roots_alone(need_tools: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A processor that computes outputs as this one, and joins chunks otherwise, gives other traces."""
    sources = shutil.copytree(build.SOURCES, tmp_path / "c")
    right = (sources / "blake3.c").read_text()
    wrong = right.replace(".flags = mode->flags | PARENT}", ".flags = mode->flags}")
    assert wrong != right
    (sources / "blake3.c").write_text(wrong)
    monkeypatch.setattr(build, "SOURCES", sources)
    plain = models.perceptron()
    here, there = [], []
    for result in prove([plain, committed.committed(plain)], [Processor("aarch64", "neon")]):
        (here if "this process" in result.processor else there).append(result)
    assert [result.equal for result in here] == [True, True]
    assert [result.equal for result in there] == [True, False]


def _fake(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """A processor that gives this one's bytes, changed."""
    monkeypatch.setattr(build, "build", lambda *_: Path("runner"))
    monkeypatch.setattr(targets, "missing", lambda _: "")
    monkeypatch.setattr("tools.cross.proof._version", lambda _: "none")
    cases: dict[str, Case] = {}
    monkeypatch.setattr(build, "run", lambda _, __, job, *___: change(cases[job.stem].run_here()))
    monkeypatch.setattr("tools.cross.elements.quick", lambda: [elements.columns(), elements.memory()])
    monkeypatch.setattr("tools.cross.models.quick", list)
    monkeypatch.setattr("tools.cross.committed.quick", lambda _: [])
    cases.update({"0": elements.columns(), "1": elements.memory()})


@pytest.mark.parametrize(
    "change, code",
    [
        (lambda data: data, 0),
        (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], 1),
        (lambda data: data[:-1], 1),
        (lambda data: data + b"\0", 1),
        (lambda data: data[:-8] + b"\2" + data[-7:], 1),
    ],
)
def test_a_difference_is_reported(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path, change, code: int) -> None:
    _fake(monkeypatch, change)
    path = tmp_path / "cross.json"
    assert main(["--quick", "--json", str(path)]) == code
    assert ("DIFFERENT" in capsys.readouterr().out) == bool(code)
    found = json.loads(path.read_text())
    assert found["equal"] == (not code)
    assert (
        sorted(found["processors"]["riscv64 portable"]["different"])
        == ["column reductions", "gathers and bounds"][: 2 * code]
    )


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["--quick"]) == 2
    words = capsys.readouterr().err
    for tool in ("riscv64-linux-gnu-gcc", "qemu-riscv64", "apt-get install", "libc6-dev-riscv64-cross"):
        assert tool in words


@pytest.fixture(scope="module")
def plans() -> list[Case]:
    return models.full()


@pytest.fixture(scope="module")
def runs(plans: list[Case]) -> list[Committed]:
    return committed.full(plans)


def _called(cases: Iterable[Case]) -> set[int]:
    """The kernels of ree_kernels that steps call."""
    return {step.address for case in cases for row in case.rows() for step in row if not step.kernel}


def test_models_call_every_kernel(plans: list[Case], runs: list[Committed]) -> None:
    """A kernel that is not proved, or proved on one NaN, would look equal too."""
    whole = {name for name in C_KERNELS if name != "ree_reduce_columns"}  # which no plan calls
    assert _called(runs) >= {cpu.address(name) for name in whole}
    assert _called([*plans, *runs, elements.columns()]) == {cpu.address(name) for name in C_KERNELS}
    results = [case.run_here() for case in plans]
    assert len(set(results)) == len(plans)
    assert any(step.epilogue for case in plans for step in case.plan.steps)


def test_bounds_case_sets_the_status() -> None:
    assert elements.memory().run_here()[-8:] == (1).to_bytes(8, "little")
    assert elements.columns().run_here()[-8:] == bytes(8)


def test_job_tables_fill_the_file(plans: list[Case], runs: list[Committed]) -> None:
    for case in [*plans, *runs]:
        symbols = build.symbols_of(case.kernels())
        data = Job(case, symbols).encode()
        assert data.startswith(MAGIC)
        image_bytes, memory_bytes, packs, relocations, steps, outputs = struct.unpack_from("<6q", data, 8)
        tables = 11 * packs + 4 * relocations + 9 * steps + 2 * outputs
        assert len(data) == 56 + 8 * tables + image_bytes and memory_bytes >= image_bytes
        assert steps == sum(len(row) for row in case.rows()) and outputs == len(case.outputs) + 1
        for where, kind, number, offset in _relocations(data):
            assert 0 <= where <= image_bytes - 8 and where % 8 == 0
            limit = (memory_bytes + 1, packs, len(symbols))[kind]
            assert 0 <= (offset, number, number)[kind] < limit


def _relocations(data: bytes) -> list[tuple[int, ...]]:
    packs, count = struct.unpack_from("<2q", data, 24)
    start = 56 + 88 * packs
    return list(struct.iter_unpack("<4q", data[start : start + 32 * count]))


def test_no_address_of_this_process_is_left() -> None:
    """Two plans of one model lie elsewhere in memory: their jobs differ only where the runner writes pointers."""
    plain = [models.perceptron(), models.perceptron()]
    _compare_without_pointers(plain)
    _compare_without_pointers([committed.committed(case) for case in plain])


def _compare_without_pointers(cases: Sequence[Case]) -> None:
    jobs = []
    for case in cases:
        data = bytearray(Job(case, build.symbols_of(case.kernels())).encode())
        image = len(data) - struct.unpack_from("<q", data, 8)[0]
        for where, *_ in _relocations(bytes(data)):
            data[image + where : image + where + 8] = bytes(8)
        jobs.append(bytes(data))
    assert jobs[0] == jobs[1] and len(_relocations(jobs[0])) > 10


def test_symbols_follow_program_and_layout() -> None:
    cases = [elements.columns(), elements.memory(), elements.elementary(8, ("exp", "log"))]
    kernels = [kernel for case in cases for kernel in case.kernels().values()]
    again = list(elements.elementary(99, ("exp", "log")).kernels().values())
    assert len({symbol_of(kernel) for kernel in kernels}) == len(kernels) == 3
    assert {symbol_of(kernel) for kernel in again} <= {symbol_of(kernel) for kernel in kernels}


def test_committed_runs_cover_every_kind_of_result(runs: list[Committed]) -> None:
    stages = [stage for case in runs for stage in case.stages]
    assert {stage.type.size_bytes() for stage in stages} >= set(SIZES)
    turned = [stage for stage in stages if stage.order != tuple(range(len(stage.order)))]
    assert len({stage.order for stage in turned}) >= 3
    assert max(stage.type.size_bytes() for stage in turned) > 4 * 16384
    assert sum(stage.type.size_bytes() == 0 for stage in stages) >= 4
    assert any(len(row) == 2 for case in runs for row in case.rows())


def test_a_job_holds_no_root(runs: list[Committed]) -> None:
    """What it gives back was computed where it ran."""
    for case in runs:
        manifest = case.origin.run_committed(case.inputs)[1].manifest
        data = Job(case, build.symbols_of(case.kernels())).encode()
        assert not any(root in data for root in [*manifest.roots, *case.origin.weight_roots])


def test_trace_root_and_receipt_follow_from_the_roots(runs: list[Committed]) -> None:
    for case in runs:
        here, end = case.run_here(), sum(t.size_bytes() for t in case.outputs) + 8
        assert case.result(here[:end]) == here
        claim = receipt.verify_envelope(here[end + 32 :])
        assert claim.trace_root == here[end : end + 32] == case.origin.run_committed(case.inputs)[1].root


@pytest.mark.parametrize("back", [9, 8 + 32 * 7, 9 + 32 * 7], ids=["a weight", "the input", "a result"])
def test_a_wrong_root_changes_all_that_follows(back: int) -> None:
    case = committed.committed(models.perceptron())
    here, end = case.run_here(), sum(t.size_bytes() for t in case.outputs) + 8
    assert len(case.plan.graph.constants) == 6
    wrong = bytearray(here[:end])
    wrong[end - back] ^= 1
    got = case.result(bytes(wrong))
    assert got[end : end + 32] != here[end : end + 32] and got[end + 32 :] != here[end + 32 :]
    claims = [receipt.verify_envelope(data[end + 32 :]) for data in (here, got)]
    assert claims[0].trace_root != claims[1].trace_root
    assert case.result(here[: end - 1]) == here[: end - 1]
