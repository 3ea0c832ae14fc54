"""The command line: what it writes, its exit codes, and one clear line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file

import ree
from ree import cli

FACTORY = """
import torch

def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    return model, (torch.randn(4, 8),), ({0: torch.export.Dim("batch", min=1, max=100)},)

class Two(torch.nn.Module):
    def forward(self, a, b):
        return {"sum": a + b, "parts": (a - b, a * b)}

def two():
    return Two(), (torch.ones(3), torch.ones(3))

class Branch(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def branch():
    return Branch(), (torch.ones(3),)

def wrong():
    return 3

def raises():
    raise KeyError("nothing here")
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command, in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a factory file, two compiled programs, and inputs for them."""
    path = tmp_path_factory.mktemp("cli")
    (path / "models.py").write_text(FACTORY)
    for name in ("make", "two"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["compile", f"{path}/models.py:{name}", "-o", f"{path}/{name}.ree"])
        assert not stop.value.code
    save_file({"any": np.linspace(-1, 1, 40, dtype="f4").reshape(5, 8)}, path / "make.safetensors")
    save_file({"b": np.full(3, 2, "f4"), "a": np.arange(3, dtype="f4")}, path / "two.safetensors")
    return path


def test_run_gives_what_torch_gives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(
        capsys, "run", folder / "make.ree", "--input", folder / "make.safetensors", "-o", folder / "out.safetensors"
    )
    assert code == 0
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    expected = model(torch.linspace(-1, 1, 40).reshape(5, 8)).detach()
    found = load_file(folder / "out.safetensors")
    assert list(found) == ["out_0"]
    torch.testing.assert_close(torch.from_numpy(found["out_0"]), expected)


def test_inputs_go_by_name_and_outputs_keep_theirs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "two-out.safetensors"
    code, text, _ = run(capsys, "run", folder / "two.ree", "-i", folder / "two.safetensors", "-o", output, "--json")
    assert code == 0
    assert set(json.loads(text)["outputs"]) == {"sum", "parts.0", "parts.1"}
    found = load_file(output)
    assert found["sum"].tolist() == [2.0, 3.0, 4.0]
    assert found["parts.0"].tolist() == [-2.0, -1.0, 0.0]


def test_expected_digest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("run", folder / "make.ree", "-i", folder / "make.safetensors")
    _, text, _ = run(capsys, *arguments, "--json", "--threads", 1)
    digest = json.loads(text)["digest"]
    assert run(capsys, *arguments, "--expect", digest, "--threads", 2)[0] == 0
    code, _, err = run(capsys, *arguments, "--expect", "00" * 16)
    assert code == 1
    assert digest in err


TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.mark.parametrize("declared", TORCH_DTYPES)
def test_inputs_of_every_float_dtype(declared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file's bf16 is a program's bf16; any other dtype is named as it is."""
    torch.manual_seed(0)
    dtype = TORCH_DTYPES[declared]
    model, x = torch.nn.Linear(8, 3).eval().to(dtype), torch.randn(4, 8)
    program = ree.compile(model, x.to(dtype))
    program.save(tmp_path / "m.ree")
    save_torch_file({"x": x.to(dtype)}, tmp_path / "same")
    code, _, _ = run(capsys, "run", tmp_path / "m.ree", "-i", tmp_path / "same", "-o", tmp_path / "y")
    assert code == 0
    assert torch.equal(load_torch_file(tmp_path / "y")["out_0"], program(x.to(dtype)))
    for other, wrong in {**TORCH_DTYPES, "f64": torch.float64, "i16": torch.int16}.items():
        if other != declared:
            save_torch_file({"x": x.to(wrong)}, tmp_path / "other")
            code, _, err = run(capsys, "run", tmp_path / "m.ree", "-i", tmp_path / "other")
            assert (code, err) == (2, f"ree: input input is {other}, the program takes {declared}\n")


def test_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "inspect", folder / "make.ree", "--json")
    found = json.loads(text)
    assert code == 0
    assert found["operators"]["matmul"] == 2
    (name,) = found["dynamic"]
    assert found["flops"] == 2 * 8 * (8 * 16 + 16 * 3)
    assert found["weights_bytes"] >= 4 * (8 * 16 + 16 + 16 * 3 + 3)
    assert len(found["program_id"]) == 64
    _, text, _ = run(capsys, "inspect", folder / "make.ree", "--size", f"{name}=1", "--json")
    assert json.loads(text)["flops"] == found["flops"] // 8
    code, text, _ = run(capsys, "inspect", folder / "make.ree")
    assert code == 0
    assert "matmul" in text


def test_compile_from_pt2_and_its_program_id(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = torch.export.export(torch.nn.Linear(3, 4), (torch.ones(2, 3),))
    torch.export.save(exported, str(folder / "m.pt2"))
    ids = []
    for name in ("a.ree", "b.ree"):
        code, text, _ = run(capsys, "compile", folder / "m.pt2", "-o", folder / name, "--json", "--no-cache")
        assert code == 0
        ids.append(json.loads(text)["program_id"])
    assert ids[0] == ids[1]
    assert (folder / "a.ree").read_bytes() == (folder / "b.ree").read_bytes()


def test_bench_of_a_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "bench", folder / "make.ree", "--rounds", 1, "--json")
    assert code == 0
    assert json.loads(text)["engines"]["ree"]["median_ms"] > 0


def bad_cases(folder: Path) -> dict[str, tuple[object, ...]]:
    (folder / "text.safetensors").write_text("no tensors")
    (folder / "text.pt2").write_text("no program")
    (folder / "text.ree").write_text("no program")
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "odd").mkdir(exist_ok=True)
    (folder / "odd" / "config.json").write_text('{"architectures": ["os"]}')
    save_file({"a": np.ones(3, "f4")}, folder / "one.safetensors")
    save_file({"x": np.ones((5, 9), "f4")}, folder / "shape.safetensors")
    save_file({"x": np.ones((5, 8), "f8")}, folder / "dtype.safetensors")
    program, inputs = folder / "make.ree", folder / "make.safetensors"
    return {
        "no command": ("frobnicate",),
        "missing argument": ("compile",),
        "missing option": ("compile", folder / "models.py:make"),
        "no such source": ("compile", folder / "absent", "-o", folder / "x.ree"),
        "no such factory": ("compile", f"{folder}/models.py:absent", "-o", folder / "x.ree"),
        "factory of something else": ("compile", f"{folder}/models.py:wrong", "-o", folder / "x.ree"),
        "factory that raises": ("compile", f"{folder}/models.py:raises", "-o", folder / "x.ree"),
        "control flow": ("compile", f"{folder}/models.py:branch", "-o", folder / "x.ree"),
        "text as pt2": ("compile", folder / "text.pt2", "-o", folder / "x.ree"),
        "folder that is no model": ("compile", folder / "empty", "-o", folder / "x.ree"),
        "folder of no model class": ("compile", folder / "odd", "-o", folder / "x.ree"),
        "output in no folder": ("compile", f"{folder}/models.py:two", "-o", folder / "absent" / "x.ree"),
        "no such program": ("run", folder / "absent.ree", "-i", inputs),
        "text as program": ("run", folder / "text.ree", "-i", inputs),
        "tensors as program": ("inspect", inputs),
        "text as tensors": ("run", program, "-i", folder / "text.safetensors"),
        "no such tensors": ("run", program, "-i", folder / "absent.safetensors"),
        "missing input": ("run", folder / "two.ree", "-i", folder / "one.safetensors"),
        "wrong shape": ("run", program, "-i", folder / "shape.safetensors"),
        "wrong dtype": ("run", program, "-i", folder / "dtype.safetensors"),
        "no threads": ("run", program, "-i", inputs, "--threads", "0"),
        "unwritable output": ("run", program, "-i", inputs, "-o", folder / "absent" / "x.safetensors"),
        "unknown dimension": ("inspect", program, "--size", "depth=3"),
        "size without number": ("inspect", program, "--size", "batch"),
        "audit of nothing": ("audit", folder / "absent"),
        "bench of nothing": ("bench", folder / "absent.ree"),
    }


def test_bad_input_is_one_line_and_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, arguments in bad_cases(folder).items():
        code, _, err = run(capsys, *arguments)
        assert code == 2, f"{name}: exit code {code}"
        assert err.startswith("ree: "), f"{name}: {err!r}"
        assert err.count("\n") == 1, f"{name}: {err!r}"
        assert "Traceback" not in err, name
        assert not (folder / "x.ree").exists(), f"{name}: left a file"


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys)
    assert code == 2
    assert "compile" in text


def test_fresh_process(folder: Path) -> None:
    command = [sys.executable, "-m", "ree.cli", "inspect", str(folder / "text.ree")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
