"""Trace files: what was written is read, whatever was altered is refused; kept results may lie in a file."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

import ree
from ree.commit.stages import Kind, Source
from ree.commit.trace import Trace
from tests.fuzz_trace import join, repaired, split
from tests.test_cli import run
from tests.test_trace import CASES, Lambda, compiled, traced

ROOT = Path(__file__).resolve().parent.parent


def assert_same(found: Trace, expected: Trace) -> None:
    """Same root, and the same tensors, bit for bit."""
    assert found.root == expected.root and found.program_id == expected.program_id
    assert len(found.tensors) == len(expected.tensors) and len(found.inputs) == len(expected.inputs)
    pairs = [*zip(found.inputs, expected.inputs, strict=True)]
    pairs += [(found.tensors[n], array) for n, array in expected.tensors.items()]
    assert not any(array.flags.writeable for array in found.tensors.values())
    for got, want in pairs:
        assert got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()
    for kind, count in ((Kind.INPUT, len(found.inputs)), (Kind.RESULT, len(found.tensors))):
        for source in (Source(kind, n) for n in range(count)):
            assert found.memory(source).tobytes() == expected.memory(source).tobytes()
            assert found.root_of(source) == expected.root_of(source)


@pytest.mark.parametrize("tensors", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str, tensors: bool, tmp_path: Path) -> None:
    _, trace, program = traced(name)
    trace.save(tmp_path / "a.trace", tensors)
    found = Trace.load(tmp_path / "a.trace", program)
    assert_same(found, trace)
    found.save(tmp_path / "b.trace", tensors)
    assert (tmp_path / "a.trace").read_bytes() == (tmp_path / "b.trace").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.trace", "b.trace"]


def test_a_file_is_what_common_tools_read(tmp_path: Path) -> None:
    """Tensors lie as they are committed to: BLAKE3 of their bytes is their data root."""
    _, trace, _ = traced("convolution")
    trace.save(tmp_path / "a.trace")
    header, body = split((tmp_path / "a.trace").read_bytes())
    for stage, root in zip(trace.manifest.stages, trace.manifest.roots, strict=True):
        entry = header[f"r{stage.index}"]
        assert blake3.blake3(body[slice(*entry["data_offsets"])]).digest() == root
        assert entry["shape"] == [stage.type.extents()[axis] for axis in stage.order]
    with safe_open(tmp_path / "a.trace", "np") as opened:
        assert set(opened.keys()) == set(header) - {"__metadata__"}
        assert np.array_equal(opened.get_tensor("i0"), trace.inputs[0])
        described = json.loads(opened.metadata()["ree.trace"])
    assert described["root"] == trace.root.hex() and described["program_id"] == trace.program_id.hex()


def test_dynamic_sizes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, x = Lambda(CASES["product with epilogue"][0]).eval(), torch.randn(7, 24)
    program = ree.compile(model, (x,), dynamic_shapes={"args": ({0: torch.export.Dim("batch", min=1, max=9)},)})
    for size in (7, 3):
        _, trace = program.run(x[:size], commit=True)
        trace.save(tmp_path / "a.trace", size == 7)
        found = ree.load_trace(tmp_path / "a.trace", program)
        assert found.manifest.sizes == (size,)
        assert_same(found, trace)
    for wrong in ([0], [10], [], [3, 3], [True], ["3"], [1 << 70]):
        altered(tmp_path / "a.trace", sizes=wrong)
        with pytest.raises(ree.FormatError):
            ree.load_trace(tmp_path / "altered.trace", program)
    altered(tmp_path / "a.trace", sizes=[4])
    with pytest.raises(ree.Error):
        ree.load_trace(tmp_path / "altered.trace", program)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = ree.compile(nn.Sequential(nn.Linear(8, 3), nn.ReLU()).eval().to(dtype), torch.randn(4, 8).to(dtype))
    _, trace = program.run(torch.randn(4, 8).to(dtype), keep=True)
    trace.save(tmp_path / "a.trace")
    assert_same(ree.load_trace(tmp_path / "a.trace", program), trace)
    with safe_open(tmp_path / "a.trace", "pt") as opened:
        assert opened.get_tensor("i0").dtype is dtype


def test_reading_needs_no_torch_and_reads_one_tensor_at_a_time(tmp_path: Path) -> None:
    _, trace, program = traced("norm and softmax")
    program.save(tmp_path / "m.ree")
    trace.save(tmp_path / "a.trace")
    code = (
        "import sys, numpy as np, ree\n"
        "trace = ree.load_trace('a.trace', ree.load('m.ree'))\n"
        "reads, fromfile = [], np.fromfile\n"
        "np.fromfile = lambda *args, **kwargs: reads.append(args) or fromfile(*args, **kwargs)\n"
        "assert trace.root.hex() and not reads\n"
        "held = trace.tensors[1]\n"
        "assert len(reads) == 1 and trace.tensors[1].base is held.base and len(reads) == 1\n"
        "del held\n"
        "trace.tensors[1]\n"
        "assert len(reads) == 2 and 'torch' not in sys.modules\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)


# -- what is refused --------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[ree.Program, Trace, Path]:
    """A program, its trace, and a folder with the trace's files `full.trace` and `roots.trace`."""
    program, inputs = compiled("product read twice")
    _, trace = program.run(*inputs, keep=True)
    folder = tmp_path_factory.mktemp("trace")
    trace.save(folder / "full.trace")
    trace.save(folder / "roots.trace", tensors=False)
    return program, trace, folder


def altered(path: Path, **members: Any) -> None:
    """`altered.trace` beside the file: other members in the manifest, with a correct digest."""
    header, body = split(path.read_bytes())
    described = {**json.loads(header["__metadata__"]["ree.trace"]), **members}
    (path.parent / "altered.trace").write_bytes(join(header, body, described))


def described(path: Path) -> dict[str, Any]:
    return dict(json.loads(split(path.read_bytes())[0]["__metadata__"]["ree.trace"]))


def test_every_truncation_is_refused(case: tuple[ree.Program, Trace, Path], tmp_path: Path) -> None:
    program, _, folder = case
    for data in ((folder / "full.trace").read_bytes(), (folder / "roots.trace").read_bytes()):
        for length in [*range(64), *range(64, len(data), 41), len(data) - 1]:
            (tmp_path / "cut.trace").write_bytes(data[:length])
            with pytest.raises(ree.FormatError):
                ree.load_trace(tmp_path / "cut.trace", program)
        (tmp_path / "cut.trace").write_bytes(data + b"x")
        with pytest.raises(ree.FormatError):
            ree.load_trace(tmp_path / "cut.trace", program)


@pytest.mark.parametrize(
    ("members", "kind", "words"),
    [
        ({"version": 2}, ree.FormatError, "version 2"),
        ({"version": True}, ree.FormatError, "header"),
        ({"program_id": "ab" * 31}, ree.FormatError, "digest"),
        ({"program_id": "ab" * 32}, ree.VerificationError, "a trace of program abababababababab..., not of"),
        ({"sizes": [1]}, ree.FormatError, "sizes"),
        ({"sizes": None}, ree.FormatError, "malformed"),
        ({"weights": "00" * 32}, ree.VerificationError, "weights"),
        ({"root": "00" * 32}, ree.VerificationError, "trace root"),
        ({"root": 3}, ree.FormatError, "malformed"),
        ({"inputs": []}, ree.FormatError, "0 inputs"),
        ({"inputs": ["00" * 32]}, ree.VerificationError, "trace root"),
        ({"roots": []}, ree.FormatError, "0 results"),
        ({"more": 1}, ree.FormatError, "header"),
    ],
)
def test_an_altered_manifest(members: Any, kind: Any, words: str, case: tuple[ree.Program, Trace, Path]) -> None:
    program, _, folder = case
    altered(folder / "full.trace", **members)
    with pytest.raises(kind, match=words) as caught:
        ree.load_trace(folder / "altered.trace", program)
    assert "altered.trace: " in str(caught.value) and "\n" not in str(caught.value)


def test_reordered_roots(case: tuple[ree.Program, Trace, Path]) -> None:
    program, trace, folder = case
    roots = described(folder / "full.trace")["roots"]
    assert len(roots) > 1
    altered(folder / "full.trace", roots=roots[::-1])
    with pytest.raises(ree.VerificationError, match="trace root"):
        ree.load_trace(folder / "altered.trace", program)
    # with a root that fits them it is another trace, whose tensors nobody has
    for name, words in (("full.trace", "the tensor of stage 0 is not"), ("roots.trace", "cannot be had.*at stage 0")):
        _, body = split((folder / name).read_bytes())
        lie = described(folder / name) | {"roots": roots[::-1]}
        (folder / "altered.trace").write_bytes(repaired(program, lie, name == "full.trace", body))
        found = ree.load_trace(folder / "altered.trace", program)
        assert found.root != trace.root
        with pytest.raises(ree.VerificationError, match=words):
            _ = found.tensors[0]


def test_a_file_that_was_altered_without_care(case: tuple[ree.Program, Trace, Path]) -> None:
    program, _, folder = case
    header, body = split((folder / "full.trace").read_bytes())
    metadata = header["__metadata__"]
    target = folder / "altered.trace"
    for wrong, words in (
        ({**header, "__metadata__": {**metadata, "ree.trace": metadata["ree.trace"] + " "}}, "digest"),
        ({**header, "__metadata__": {"ree.trace": metadata["ree.trace"]}}, "malformed"),
        ({**header, "__metadata__": {**metadata, "more": "x"}}, "header"),
        ({**header, "__metadata__": {}}, "not a trace file"),
        ({**header, "i0": {**header["i0"], "dtype": "I32"}}, "header"),
        ({**header, "r0": {**header["r0"], "data_offsets": [0, 1 << 62]}}, "header"),
        ({name: entry for name, entry in header.items() if name != "r1"}, "header"),
        ([], "malformed"),
    ):
        target.write_bytes(join(wrong, body))
        with pytest.raises(ree.FormatError, match=words):
            ree.load_trace(target, program)
    for wrong_path in (folder / "missing", folder, "a\0b", None):
        with pytest.raises(ree.Error):
            ree.load_trace(wrong_path, program)  # type: ignore[arg-type]
    with pytest.raises(ree.InputError, match="Program"):
        ree.load_trace(folder / "full.trace", "m.ree")  # type: ignore[arg-type]


def test_an_altered_byte_of_each_tensor(case: tuple[ree.Program, Trace, Path]) -> None:
    program, trace, folder = case
    data = (folder / "full.trace").read_bytes()
    header, body = split(data)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        changed = bytearray(data)
        changed[len(data) - len(body) + entry["data_offsets"][1] - 1] ^= 1
        (folder / "altered.trace").write_bytes(changed)
        found = ree.load_trace(folder / "altered.trace", program)
        kind, number = ("stage", found.tensors) if name[0] == "r" else ("input", found.inputs)
        with pytest.raises(ree.VerificationError, match=f"the tensor of {kind} {name[1:]} is not the one that"):
            _ = number[int(name[1:])]
        others = [n for n in trace.tensors if f"r{n}" != name]
        assert all(found.tensors[n].tobytes() == trace.tensors[n].tobytes() for n in others)


def test_an_altered_input_of_a_file_with_roots_only(case: tuple[ree.Program, Trace, Path]) -> None:
    program, _, folder = case
    data = bytearray((folder / "roots.trace").read_bytes())
    data[-1] ^= 1
    (folder / "altered.trace").write_bytes(data)
    found = ree.load_trace(folder / "altered.trace", program)
    with pytest.raises(ree.VerificationError, match="the tensor of input 0 is not"):
        _ = found.tensors[0]


def test_swapped_tensors(tmp_path: Path) -> None:
    """Two results of one shape: only their roots tell them apart."""
    program = ree.compile(Lambda(lambda m, x: (x.sum(0), x.mean(0))).eval(), torch.randn(3, 5))
    _, trace = program.run(torch.randn(3, 5), keep=True)
    trace.save(tmp_path / "a.trace")
    header, body = split((tmp_path / "a.trace").read_bytes())
    (a, b), (c, d) = header["r0"]["data_offsets"], header["r1"]["data_offsets"]
    assert (b, b - a) == (c, d - c)
    (tmp_path / "a.trace").write_bytes(join(header, body[:a] + body[c:d] + body[a:b] + body[d:]))
    found = ree.load_trace(tmp_path / "a.trace", program)
    for number in range(2):
        with pytest.raises(ree.VerificationError, match=f"the tensor of stage {number} is not"):
            _ = found.tensors[number]


def test_a_file_of_another_program(case: tuple[ree.Program, Trace, Path]) -> None:
    _, _, folder = case
    other, _ = compiled("sort")
    with pytest.raises(
        ree.VerificationError, match=r"a trace of program [0-9a-f]{16}\.\.\., not of [0-9a-f]{16}\.\.\."
    ):
        ree.load_trace(folder / "full.trace", other)


def test_a_file_that_changes_after_it_was_read(case: tuple[ree.Program, Trace, Path], tmp_path: Path) -> None:
    program, trace, folder = case
    target = tmp_path / "a.trace"
    target.write_bytes((folder / "full.trace").read_bytes())
    found = ree.load_trace(target, program)
    held = found.tensors[0]
    target.write_bytes(b"")
    assert held.tobytes() == trace.tensors[0].tobytes()
    with pytest.raises(ree.VerificationError, match="stage 1"):
        _ = found.tensors[1]
    target.unlink()
    with pytest.raises(ree.FormatError):
        _ = found.tensors[1]


def test_mutations_are_refused_or_another_trace() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_trace", "300", "7"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused" in done.stdout


# -- full disks ----------------------------------------------------------------------------


@contextlib.contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """As if the disk had no more room for a file than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failing(code: int) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("reserves", [True, False])
def test_a_full_disk_leaves_nothing_of_a_trace(
    reserves: bool, case: tuple[ree.Program, Trace, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the file system says so at once, or in the middle of the writing."""
    program, trace, _ = case
    if not reserves:
        monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    target = tmp_path / "a.trace"
    with file_size_limit(512), pytest.raises(ree.FormatError, match="cannot write"):
        trace.save(target)
    assert list(tmp_path.iterdir()) == []
    trace.save(target)
    assert_same(ree.load_trace(target, program), trace)
    before = target.read_bytes()
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(ree.FormatError, match="No space left"):
        trace.save(target)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


@pytest.fixture
def spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of files for kept results; other temporary files, such as torch's, go elsewhere."""
    folder = tmp_path / "spills"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(tempfile.TemporaryFile, dir=folder))
    return folder


def mapped(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("name", CASES)
def test_kept_in_a_file_or_in_memory_are_the_same(name: str, spills: Path) -> None:
    program, inputs = compiled(name)
    plain, trace = program.run(*inputs, keep=True)
    spilt, other = program.run(*inputs, keep=True, keep_bytes_max=-1)
    assert trace and other and list(spills.iterdir()) == []
    # outputs are the caller's and were copied: the file goes at once where there is no other result
    assert mapped(spills) is any(result.slot.buffer.kind != "output" for result in program.plan(()).results)
    assert_same(other, trace)
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (plain, spilt)), strict=True):
        assert torch.equal(a, b)
    held = other.tensors[0]
    del other
    assert held.tobytes() == trace.tensors[0].tobytes()
    del held
    gc.collect()
    assert not mapped(spills)


def test_the_file_lies_where_the_environment_says(tmp_path: Path) -> None:
    program, inputs = compiled("convolution")
    program.save(tmp_path / "m.ree")
    np.save(tmp_path / "x.npy", inputs[0].numpy())
    (tmp_path / "spills").mkdir()
    code = (
        "import os, numpy as np, ree\n"
        "_, trace = ree.load('m.ree').run(np.load('x.npy'), keep=True, keep_bytes_max=0)\n"
        "assert os.environ['TMPDIR'] in open('/proc/self/maps').read() and os.listdir('spills') == []\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "spills")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)


def test_results_are_computed_again_into_a_file(spills: Path) -> None:
    program, inputs = compiled("convolution")
    _, trace = program.run(*inputs, commit=True, keep_bytes_max=0)
    assert trace and not mapped(spills)
    again = trace.tensors
    assert mapped(spills)
    assert [a.tobytes() for a in again.values()] == [
        a.tobytes()
        for a in program.run(*inputs, keep=True)[1].tensors.values()  # type: ignore[union-attr]
    ]


def test_memory_is_used_below_the_limit(spills: Path) -> None:
    program, inputs = compiled("convolution")
    kept_bytes = program.plan(()).kept_bytes
    _, memory = program.run(*inputs, keep=True, keep_bytes_max=kept_bytes)
    assert memory and not mapped(spills)
    _, spilt = program.run(*inputs, keep=True, keep_bytes_max=kept_bytes - 1)
    assert spilt and mapped(spills)


def test_no_room_for_kept_results(spills: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, inputs = compiled("convolution")
    runs: list[int] = []
    plan = program.plan(())
    original = plan.run_committed
    monkeypatch.setattr(plan, "run_committed", lambda *args: runs.append(1) or original(*args))
    with file_size_limit(64), pytest.raises(ree.LimitError, match="no room for tensors to keep"):
        program.run(*inputs, keep=True, keep_bytes_max=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
        with pytest.raises(ree.LimitError, match="No space left"):
            program.run(*inputs, keep=True, keep_bytes_max=0)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", functools.partial(tempfile.TemporaryFile, dir=spills / "missing"))
        with pytest.raises(ree.LimitError):
            program.run(*inputs, keep=True, keep_bytes_max=0)
    assert not runs and not mapped(spills) and list(spills.iterdir()) == []
    assert program.run(*inputs, keep=True, keep_bytes_max=0)[1] and runs


# -- the command line -----------------------------------------------------------------------


@pytest.mark.parametrize("roots_only", [False, True])
def test_run_writes_a_trace(roots_only: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, (x,) = compiled("norm and softmax")
    program.save(tmp_path / "m.ree")
    save_file({"x": x.numpy()}, tmp_path / "x")
    target = tmp_path / "a.trace"
    arguments = ["run", tmp_path / "m.ree", "-i", tmp_path / "x", "--trace", target]
    arguments += ["--roots-only"] if roots_only else []
    code, out, _ = run(capsys, *arguments)
    _, trace = program.run(x, keep=True)
    assert trace and code == 0 and f"trace root {trace.root.hex()}\n" in out and f"trace {target}\n" in out
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0 and json.loads(out)["trace"] == str(target) and json.loads(out)["trace_root"] == trace.root.hex()
    assert ("r0" in split(target.read_bytes())[0]) is not roots_only
    assert_same(ree.load_trace(target, ree.load(tmp_path / "m.ree")), trace)


def test_mistakes_with_the_trace_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, (x,) = compiled("norm and softmax")
    program.save(tmp_path / "m.ree")
    save_file({"x": x.numpy()}, tmp_path / "x")
    arguments = ["run", tmp_path / "m.ree", "-i", tmp_path / "x"]
    code, out, err = run(capsys, *arguments, "--roots-only")
    assert (code, out) == (2, "") and "--trace" in err
    code, out, err = run(capsys, *arguments, "--trace", tmp_path)
    assert (code, out) == (2, "") and "folder" in err and err.count("\n") == 1
