"""Mistakes at the command line: `run`, `inspect`, `bench`, `audit` answer with one line, code 2 and nothing written."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ree
from ree import audit, cli

FACTORY = """
import torch

def plain():
    return torch.nn.Linear(8, 3), (torch.ones(2, 8),)

def no_tensor():
    return torch.nn.Linear(8, 3), (3,)

def no_inputs():
    return torch.nn.Linear(8, 3), ()

def nothing():
    return None

def stops():
    raise SystemExit(0)

class Stop(torch.nn.Module):
    def forward(self, x):
        raise SystemExit(0)

def stop():
    return Stop(), (torch.ones(3),)

class Two(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError("first line\\n\\nsecond line")

def two_lines():
    return Two(), (torch.ones(3),)
"""
LONG = "x" * 5000
HERE = "m.ree -i x.st".split()

CASES: dict[str, list[str]] = {
    **{
        f"run {what}": ["run", what, "-i", "x.st"]
        for what in ("", ".", "folder", "empty", "/dev/null", "m.ree/x", LONG)
    },
    "run of tensors": ["run", "x.st", "-i", "x.st"],
    **{
        f"input {what}": ["run", "m.ree", "-i", what]
        for what in ("", ".", "folder", "empty", "/dev/null", "x.st/x", LONG)
    },
    "input without tensors": ["run", "m.ree", "-i", "none.st"],
    "input that is a program": ["run", "m.ree", "-i", "m.ree"],
    "input too long": ["run", "m.ree", "-i", "long.st"],
    "input of other rank": ["run", "m.ree", "-i", "flat.st"],
    "missing key": ["run", "two.ree", "-i", "x.st"],
    "index out of range": ["run", "table.ree", "-i", "index.st"],
    **{
        f"output {what}": ["run", *HERE, "-o", what]
        for what in ("", ".", "folder", "absent/y", "m.ree/y", "y" * 300, LONG, "pipe", "link")
    },
    **{f"threads {n}": ["run", *HERE, "--threads", n] for n in ("", "0", "-1", "nan", "1e3", "257", "9" * 30)},
    **{f"expect {what}": ["run", *HERE, "--expect", what] for what in ("", "zz", "0" * 31, "0" * 64)},
    "unknown option": ["run", *HERE, "--nothing"],
    "one more argument": ["run", *HERE, "more"],
    **{f"inspect {what}": ["inspect", what] for what in ("", ".", "folder", "empty", "/dev/null", "m.ree/x", LONG)},
    **{
        f"size {text}": ["inspect", "m.ree", "--size", text]
        for text in (
            "",
            "batch",
            "=3",
            "batch=",
            "batch=-1",
            "batch=0",
            "batch=65",
            "batch=nan",
            "batch=1e3",
            "batch=2.0",
        )
    },
    **{f"size {text}": ["inspect", "m.ree", "--size", text] for text in ("other=3", "batch=３", f"batch={'9' * 5000}")},
    "size twice": ["inspect", "m.ree", "--size", "batch=3", "--size", "batch=4"],
    **{
        f"{command} {what}": [command, what]
        for command in ("bench", "audit")
        for what in (
            *("", ".", "folder", "empty", "absent", "/dev/null", "models.py", "x.st", "empty.pt2", "x.st/x", LONG, ":"),
            *("models.py:", "models.py:absent", "models.py:nothing", "models.py:stops", "models.py:stop"),
            *("models.py:no_tensor", "models.py:no_inputs", "models.py:two_lines", "empty.py:f", "folder.py:f"),
        )
    },
    "bench of an empty program": ["bench", "empty.ree"],
    "bench of a folder": ["bench", "folder.ree"],
    **{f"rounds {n}": ["bench", "m.ree", "--rounds", n] for n in ("", "0", "-1", "nan", "1.5", "10001", "9" * 30)},
    **{f"bench threads {n}": ["bench", "m.ree", "--threads", n] for n in ("", "0", "-1", "nan", "257", "9" * 30)},
    "audit of a program": ["audit", "m.ree"],
    **{command: [command] for command in ("run", "inspect", "bench", "audit")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mistakes")
    batch = torch.export.Dim("batch", min=1, max=64)
    linear, table, two = torch.nn.Linear(8, 3).eval(), torch.nn.Embedding(10, 4), torch.nn.Bilinear(8, 8, 1)
    x = torch.ones(2, 8)
    ree.compile(linear, x, dynamic_shapes=({0: batch},)).save(path / "m.ree")
    ree.compile(table, torch.tensor([1])).save(path / "table.ree")
    ree.compile(two, (x, x.clone())).save(path / "two.ree")
    tensors = {"x": x, "none": None, "long": torch.ones(65, 8), "flat": torch.ones(8), "index": torch.tensor([10])}
    for name, tensor in tensors.items():
        save_file({} if tensor is None else {"x": tensor}, path / f"{name}.st")
    (path / "models.py").write_text(FACTORY)
    for name in ("empty", "empty.ree", "empty.pt2", "empty.py"):
        (path / name).touch()
    for name in ("folder", "folder.ree", "folder.py"):
        (path / name).mkdir()
    os.mkfifo(path / "pipe")
    (path / "link").symlink_to("/dev/null")
    return path


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every command runs in the folder and leaves it as it was."""
    monkeypatch.chdir(folder)
    before = {p: p.lstat().st_mode for p in folder.rglob("*") if "__pycache__" not in p.parts}
    yield
    after = {p: p.lstat().st_mode for p in folder.rglob("*") if "__pycache__" not in p.parts}
    assert after == before


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command, in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CASES, ids=lambda name: name[:40])
def test_one_line_and_code_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (CASES[name], [*CASES[name], "--json"]):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("ree: ") and err.endswith("\n") and err.count("\n") == 1
        assert len(err) > 15 and "Traceback" not in err


def test_a_device_stays_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    """Replacing a file by name would put a file in its place."""
    for name in ("pipe", "link", "folder"):
        code, _, err = run(capsys, "run", *HERE, "-o", name)
        assert code == 2 and name in err
    assert stat.S_ISFIFO(os.stat("pipe").st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_many_names_are_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({f"key{n}": torch.ones(1) for n in range(500)}, tmp_path / "many.st")
    _, _, err = run(capsys, "run", "m.ree", "-i", str(tmp_path / "many.st"))
    assert len(err) < 200 and "and 494 more" in err


def test_what_may_not_be_read_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    for name in ("a.ree", "a.st", "a.pt2", "a.py"):
        (tmp_path / name).write_bytes(Path("m.ree").read_bytes())
        (tmp_path / name).chmod(0)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    closed.chmod(0)
    cases = [
        ["run", str(tmp_path / "a.ree"), "-i", "x.st"],
        ["run", "m.ree", "-i", str(tmp_path / "a.st")],
        ["run", *HERE, "-o", str(closed / "y")],
        ["inspect", str(tmp_path / "a.ree")],
        ["bench", str(tmp_path / "a.ree")],
        *(
            [c, str(tmp_path / name)]
            for c in ("audit", "bench")
            for name in ("a.pt2", "a.py:plain", "closed", "closed/m")
        ),
    ]
    user = os.geteuid()
    for arguments in cases:
        if user == 0:
            os.chmod(Path.cwd(), 0o755)
            os.seteuid(65534)  # root may read everything
        try:
            code, out, err = run(capsys, *arguments)
        finally:
            os.seteuid(user)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "Permission denied" in err, err
    closed.chmod(0o755)
    assert not list(closed.iterdir())


def process(command: str, **streams: object) -> subprocess.CompletedProcess[str]:
    root = str(Path(cli.__file__).parent.parent)
    text = f"{sys.executable} -m ree.cli {command}"
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.run(text, shell=True, env=environment, stderr=subprocess.PIPE, text=True, check=False, **streams)  # type: ignore[call-overload,no-any-return]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["inspect m.ree", "inspect m.ree --json", "run m.ree -i x.st", "--help"])
def test_output_that_cannot_be_written(command: str) -> None:
    done = process(f"{command} >/dev/full")
    assert (done.returncode, done.stderr) == (2, "ree: No space left on device\n")


@pytest.mark.parametrize("command", ["inspect m.ree", "inspect m.ree --json"])
def test_a_reader_that_goes(command: str) -> None:
    """Quietly, and not with the code of a failed verification."""
    done = process(f"{command} | true; echo ${{PIPESTATUS[0]}}", stdout=subprocess.PIPE, executable="/bin/bash")
    assert (done.stdout, done.stderr) in (("2\n", ""), ("0\n", ""))  # 0: all was written before `true` ended


def test_closed_streams() -> None:
    assert process("inspect m.ree >&-").returncode == 0
    assert process("inspect absent >&-").returncode == 2


def test_json_is_json_also_with_infinities_and_nan(capsys: pytest.CaptureFixture[str]) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x / x.sum()).exp()

    report = audit.audit(Odd(), (torch.zeros(33),), {})
    json.dumps(report.to_json(), allow_nan=False)
    code, out, _ = run(capsys, "inspect", "m.ree", "--size", "batch=64", "--json")
    assert code == 0 and json.loads(out)["planned_at"] == {"batch": 64}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_are_not_dense_are_listed_not_run() -> None:
    class Sparse(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            quantised = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8).dequantize()
            return torch.sparse.mm(x.to_sparse(), quantised + 1)

    report = audit.audit(Sparse(), (torch.eye(8),), {})
    assert [o.target for o in report.operators] == ["aten.add.Tensor"]
    assert report.skipped["aten.quantize_per_tensor.default"] == "takes or gives tensors that are not dense"
