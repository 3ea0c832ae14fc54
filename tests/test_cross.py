"""Other processors give the bits of this one: jobs under qemu-user, and that a difference would be seen."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

import ree_kernels.cpu as cpu
from ree.commit import receipt
from tools.cross import build, committed, draws, elements, language, models, streamed, targets
from tools.cross.__main__ import main
from tools.cross.committed import SIZES, Committed
from tools.cross.job import C_KERNELS, MAGIC, Case, Job, symbol_of
from tools.cross.proof import prove
from tools.cross.streamed import Streamed
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
    whole = [*models.quick(), *language.quick()]
    count = len(elements.quick()) + len(whole) + len(committed.quick(whole)) + len(streamed.quick()) + 1
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
    _break(monkeypatch, tmp_path, [("blake3", ".flags = mode->flags | PARENT}", ".flags = mode->flags}")])
    plain = models.perceptron()
    assert _equal([plain, committed.committed(plain)]) == [True, False]


def _break(monkeypatch: pytest.MonkeyPatch, directory: Path, changes: Sequence[tuple[str, str, str]]) -> None:
    """Let the proof compile kernels in which a text of a source is another."""
    sources = shutil.copytree(build.SOURCES, directory / "c")
    for name, right, wrong in changes:
        text = (sources / f"{name}.c").read_text()
        assert right in text
        (sources / f"{name}.c").write_text(text.replace(right, wrong))
    monkeypatch.setattr(build, "SOURCES", sources)


def _equal(cases: Sequence[Case]) -> list[bool]:
    """Whether each case is equal on one other processor."""
    results = prove(cases, [Processor("aarch64", "neon")])
    assert all(result.equal for result in results[: len(cases)])  # this process
    return [result.equal for result in results[len(cases) :]]


def _fake(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """A processor that gives this one's bytes, changed."""
    monkeypatch.setattr(build, "build", lambda *_: Path("runner"))
    monkeypatch.setattr(targets, "missing", lambda _: "")
    monkeypatch.setattr("tools.cross.proof._version", lambda _: "none")
    cases: dict[str, Case] = {}
    monkeypatch.setattr(build, "run", lambda _, __, job, *___: change(cases[job.stem].run_here()))
    monkeypatch.setattr("tools.cross.elements.quick", lambda: [elements.columns(), elements.memory()])
    for empty in ("models", "language", "streamed"):
        monkeypatch.setattr(f"tools.cross.{empty}.quick", list)
    monkeypatch.setattr("tools.cross.committed.quick", lambda _: [])
    monkeypatch.setattr("tools.cross.draws.draws", elements.hashes)
    cases.update({"0": elements.columns(), "1": elements.memory(), "2": elements.hashes()})


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
        == ["column reductions", "gathers and bounds", "hashes"][: 3 * code]
    )


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["--quick"]) == 2
    words = capsys.readouterr().err
    for tool in ("riscv64-linux-gnu-gcc", "qemu-riscv64", "apt-get install", "libc6-dev-riscv64-cross"):
        assert tool in words


@pytest.fixture(scope="module")
def plans() -> list[Case]:
    return [*models.full(), *language.full()]


@pytest.fixture(scope="module")
def runs(plans: list[Case]) -> list[Committed]:
    return committed.full(plans)


@pytest.fixture(scope="module")
def streams() -> list[Streamed]:
    return streamed.quick()


def _called(cases: Iterable[Case]) -> set[int]:
    """The kernels of ree_kernels that steps call."""
    return {step.address for case in cases for row in case.rows() for step in row if not step.kernel}


def test_models_call_every_kernel(plans: list[Case], runs: list[Committed], streams: list[Streamed]) -> None:
    """A kernel that is not proved, or proved on one NaN, would look equal too."""
    apart = {"ree_reduce_columns", "ree_cached_append", "ree_cached_attention"}  # which no committed run calls
    assert _called(runs) >= {cpu.address(name) for name in C_KERNELS if name not in apart}
    assert _called([*plans, *runs, *streams, elements.columns()]) == {cpu.address(name) for name in C_KERNELS}
    results = [case.run_here() for case in plans]
    assert len(set(results)) == len(plans)
    assert any(step.epilogue for case in plans for step in case.plan.steps)


def test_bounds_case_sets_the_status() -> None:
    assert elements.memory().run_here()[-8:] == (1).to_bytes(8, "little")
    assert language.wrong_expert().run_here()[-8:] == (1).to_bytes(8, "little")
    assert elements.columns().run_here()[-8:] == bytes(8)


def test_job_tables_fill_the_file(plans: list[Case], runs: list[Committed], streams: list[Streamed]) -> None:
    for case in [*plans, *runs, *streams, draws.draws()]:
        symbols = build.symbols_of(case.kernels())
        data = Job(case, symbols).encode()
        assert data.startswith(MAGIC)
        image_bytes, memory_bytes, packs, relocations, steps, outputs = struct.unpack_from("<6q", data, 8)
        tables = 13 * packs + 4 * relocations + 9 * steps + 2 * outputs
        assert len(data) == 56 + 8 * tables + image_bytes and memory_bytes >= image_bytes
        assert steps == sum(len(row) for row in case.rows()) and outputs == len(case.outputs) + 1
        for where, kind, number, offset in _relocations(data):
            assert 0 <= where <= image_bytes - 8 and where % 8 == 0
            limit = (memory_bytes + 1, packs, len(symbols))[kind]
            assert 0 <= (offset, number, number)[kind] < limit


def _relocations(data: bytes) -> list[tuple[int, ...]]:
    packs, count = struct.unpack_from("<2q", data, 24)
    start = 56 + 104 * packs
    return list(struct.iter_unpack("<4q", data[start : start + 32 * count]))


def test_no_address_of_this_process_is_left() -> None:
    """Two plans of one model lie elsewhere in memory: their jobs differ only where the runner writes pointers."""
    plain = [models.perceptron(), models.perceptron()]
    _compare_without_pointers(plain)
    _compare_without_pointers([committed.committed(case) for case in plain])
    steps = streamed.feeding(7, 3)
    _compare_without_pointers([streamed.streamed("", streamed.model("mixtral", "bf16"), steps) for _ in plain])


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


# -- language models -------------------------------------------------------------------------


def _run_joined(case: Streamed) -> bytes:
    """What the job's table gives here, without the status word."""
    slots = [slot for step in case.plan.steps for _, slot in step.all_pointers() if slot.buffer.kind == "state"]
    sizes = {slot.buffer.number: slot.buffer.size_bytes for slot in slots}
    memory = [cpu.allocate(sizes.get(number, 64)) for number in range(max(sizes) + 1)]
    for number, part in enumerate(memory):
        cpu.runtime().ffi.memmove(part, bytes(sizes.get(number, 64)), sizes.get(number, 64))
    addresses = [int(cpu.runtime().ffi.cast("uintptr_t", part)) for part in memory]
    results = [np.zeros(t.size_bytes(), np.uint8) for t in case.outputs]
    case.plan.run([x.ctypes.data for x in case.inputs], [r.ctypes.data for r in results], addresses)
    return b"".join(r.tobytes() for r in results)


def test_joined_steps_give_what_an_engine_gives(streams: list[Streamed]) -> None:
    for case in streams:
        assert _run_joined(case) == case.run_here()[:-8]
        assert any(row is None for step in case.steps for row in step)


def test_later_steps_read_the_cache(streams: list[Streamed]) -> None:
    """Another token in the first step changes the logits of its sequence in the second, and of no other there."""
    case = streams[0]
    start, rows = case.outputs[0].size_bytes(), len(case.steps[1])
    before = np.frombuffer(_run_joined(case), np.uint8)
    case.inputs[0][2] ^= 1
    after = np.frombuffer(_run_joined(case), np.uint8)
    case.inputs[0][2] ^= 1
    second = [x[start : start + case.outputs[1].size_bytes()].reshape(rows, -1) for x in (before, after)]
    changed = [row.slot for row, a, b in zip(case.steps[1], *second, strict=True) if row and a.tobytes() != b.tobytes()]
    assert changed == [0]


def test_steps_share_the_cache_alone(streams: list[Streamed]) -> None:
    for case in streams:
        buffers = {slot.buffer for step in case.plan.steps for _, slot in step.all_pointers()}
        kinds = {(b.kind, b.number) for b in buffers if b.kind not in ("constant", "packed")}
        assert len(kinds) == sum(b.kind not in ("constant", "packed") for b in buffers)
        count = len(case.steps)
        assert {n for kind, n in kinds if kind == "output"} == set(range(count))
        assert {n for kind, n in kinds if kind == "input"} == set(range(streamed.INPUTS * count))
        assert {n for kind, n in kinds if kind == "state"} == set(range(1, 7))  # of two layers


def test_a_cache_has_room_for_the_widest_panels(streams: list[Streamed]) -> None:
    """Two layers, two heads of keys, three slots: floats for keys, for values in panels, a flag for each chunk."""
    sizes = {
        slot.buffer.number: slot.buffer.size_bytes
        for step in streams[1].plan.steps
        for _, slot in step.all_pointers()
        if slot.buffer.kind == "state"
    }
    heads, chunks, width = 3 * 2, streamed.CONTEXT // 256, 12
    assert sizes[1] == sizes[4] == 4 * heads * streamed.CONTEXT * width
    assert sizes[2] == sizes[5] == 4 * heads * streamed.CONTEXT * 64
    assert sizes[3] == sizes[6] == heads * chunks


def test_draws_are_those_of_the_vectors() -> None:
    case, data = draws.draws(), draws.draws().run_here()
    vectors, start = draws.vectors(), 0
    assert len(case.draws) > len(vectors) > 20
    for vector in vectors.values():
        top = min(draws.TOP, len(vector["logits"]) // 8)
        token, bits, *largest = np.frombuffer(data, np.uint64, 2 + top, start).tolist()
        logprobs = np.frombuffer(data, "<u4", 1 + top, start + 8 * (2 + top))
        assert (token, f"{bits:016x}") == (vector["token"], vector["random_bits"])
        stated = [(number, f"{value:08x}") for number, value in zip(largest, logprobs[1:].tolist(), strict=True)]
        assert stated == [tuple(pair) for pair in vector["top"]]
        assert logprobs[0] == np.frombuffer(bytes.fromhex(vector["logprobs"]), "<u4")[token]
        start += 8 * (2 + top) + 4 * (1 + top)


@pytest.mark.slow
def test_wrong_parts_of_a_language_model_are_seen(
    need_tools: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, streams: list[Streamed]
) -> None:
    """A window of one key less, an expert's neighbour, sums that start twice, and a wrong sign of a logarithm."""
    changes = [
        ("attention_cached", "row->end - g->window, 0", "row->end - g->window + 1, 0"),
        ("experts", "m.b = matrix(g, expert, panel)", "m.b = matrix(g, expert ^ (expert == 1), panel)"),
        ("matmul_i8", "t.factor = k0 ? 1", "t.factor = k0 ? 2"),
        ("sample", ": (x) - max) - log_sum", ": (x) - max) + log_sum"),
    ]
    _break(monkeypatch, tmp_path, changes)
    cases = [*streams, *language.quick(), draws.draws(), models.perceptron()]
    assert _equal(cases) == [True, False, False, False, False, False, True]
