"""Names of dynamic dimensions: the user's where there is one, else input and axis; unique, and in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import ree
from ree import cli, dims
from ree.file import canonical, describe

BATCH = Dim("batch", min=1, max=64)
X = torch.ones(4, 8)


class Plus(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Tail(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b[1:]])


class Nested(nn.Module):
    def forward(self, a: Tensor, b: dict[str, Any], *, c: Tensor) -> Tensor:
        return a.sum() + b["x"].sum() + b["y"][0].sum() + c.sum()


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] // 2, 2, 8).sum(1)


class Loss(nn.Module):
    """torch decomposes it, which makes a new graph."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.huber_loss(x, 2 * x, reduction="none")


def shapes(program: ree.Program) -> list[str]:
    return [str(i.type).removeprefix("f32") for i in program.graph.inputs]


CASES: dict[str, tuple[nn.Module, tuple[Any, ...], Any, list[str]]] = {
    "named": (nn.Linear(8, 3), (X,), ({0: BATCH},), ["[batch,8]"]),
    "automatic": (nn.Linear(8, 3), (X,), ({0: Dim.AUTO},), ["[input_0,8]"]),
    "dynamic": (nn.ReLU(), (X,), ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},), ["[input_0,input_1]"]),
    "both named": (Plus(), (X, X.clone()), ({0: BATCH}, {0: BATCH}), ["[batch,8]", "[batch,8]"]),
    "first named": (Plus(), (X, X.clone()), ({0: BATCH}, {0: Dim.AUTO}), ["[batch,8]", "[batch,8]"]),
    "second named": (Plus(), (X, X.clone()), ({0: Dim.AUTO}, {0: BATCH}), ["[batch,8]", "[batch,8]"]),
    "none named": (Plus(), (X, X.clone()), ({0: Dim.AUTO}, {0: Dim.AUTO}), ["[a_0,8]", "[a_0,8]"]),
    "one more": (Tail(), (X, torch.ones(5, 8)), ({0: BATCH}, {0: BATCH + 1}), ["[batch,8]", "[1+batch,8]"]),
    "twice": (nn.Linear(8, 3), (X,), ({0: 2 * BATCH},), ["[2*batch,8]"]),
    "decomposed": (Loss(), (X,), ({0: BATCH},), ["[batch,8]"]),
    "a name that is made": (nn.ReLU(), (X,), ({0: Dim.AUTO, 1: Dim("input_0")},), ["[input_0_2,input_0]"]),
    "not ASCII": (nn.ReLU(), (X,), ({0: Dim("größe")},), ["[größe,8]"]),
}


@pytest.mark.parametrize("name", CASES)
def test_names(name: str, tmp_path: Path) -> None:
    model, inputs, dynamic, expected = CASES[name]
    program = ree.compile(model.eval(), inputs, dynamic_shapes=dynamic)
    assert shapes(program) == expected
    assert all(symbol.isidentifier() for symbol in program.graph.symbols)
    exported = torch.export.export(model, inputs, dynamic_shapes=dynamic)
    assert shapes(ree.compile(exported)) == expected
    torch._dynamo.reset()
    again = ree.compile(model, inputs, dynamic_shapes=dynamic)
    assert again.program_id == program.program_id
    program.save(tmp_path / "m.ree")
    loaded = ree.load(tmp_path / "m.ree")
    assert shapes(loaded) == expected and loaded.graph.symbols == program.graph.symbols
    assert torch.equal(loaded(*inputs), program(*inputs))


def test_inputs_within_structures() -> None:
    dynamic = {
        "a": {0: Dim("n")},
        "b": {"x": {0: Dim("m")}, "y": [{1: Dim.AUTO}]},
        "c": {0: Dim.DYNAMIC, 1: Dim.AUTO},
    }
    inputs = {"a": X, "b": {"x": X.clone(), "y": [X.clone()]}, "c": X.clone()}
    program = ree.compile(Nested(), inputs, dynamic_shapes=dynamic)
    assert shapes(program) == ["[n,8]", "[m,8]", "[4,b_y_0_1]", "[c_0,c_1]"]


def test_a_file_of_torch_holds_no_names(tmp_path: Path) -> None:
    exported = torch.export.export(nn.Linear(8, 3), (X,), dynamic_shapes=({0: 2 * BATCH},))
    torch.export.save(exported, tmp_path / "m.pt2")
    program = ree.compile(torch.export.load(tmp_path / "m.pt2"))
    assert shapes(program) == ["[2*input_0_base,8]"]


def test_the_order_of_a_shape_does_not_follow_the_length_of_names() -> None:
    """Broadcasting takes the simpler of two dimensions that torch has proved equal."""
    long, short = (
        ree.compile(Plus(), (X, X.clone()), dynamic_shapes=({0: Dim(name)}, {0: Dim(name)}))
        for name in ("a_rather_long_name", "n")
    )
    text = canonical(describe(long.graph, 0, 0)).replace(b"a_rather_long_name", b"n")
    assert text == canonical(describe(short.graph, 0, 0))
    n, m = dims.symbol("a_rather_long_name"), dims.symbol("m")
    assert dims.complexity(n) < dims.complexity(m // 2) and dims.complexity(100000) < dims.complexity(m)


def test_a_dimension_that_only_a_multiple_of_it_gives() -> None:
    program = ree.compile(nn.Linear(8, 3).eval(), (X,), dynamic_shapes=({0: 2 * BATCH},))
    assert program(torch.ones(6, 8)).shape == (6, 3)
    with pytest.raises(ree.ShapeError, match=r"input input has shape \[7, 8\], the program takes f32\[2\*batch,8\]"):
        program(torch.ones(7, 8))
    with pytest.raises(ree.ShapeError, match=r"dynamic dimension batch is 100, not in \d+\.\.64"):
        program(torch.ones(200, 8))


def test_solve() -> None:
    n, m = dims.symbol("n"), dims.symbol("m")
    assert dims.solve(n, 5) == ("n", 5)
    assert dims.solve(3 * n - 1, 5) == ("n", 2)
    assert dims.solve(3 * n, 5) is None
    for other in (n * n, n + m, n // 2, 7):
        assert dims.solve(other, 4) is None


def test_errors_and_inspect_use_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = ree.compile(nn.Linear(8, 3).eval(), (X,), dynamic_shapes=({0: BATCH},))
    with pytest.raises(ree.ShapeError, match=r"dynamic dimension batch is 65, not in 1\.\.64"):
        program(torch.ones(65, 8))
    program.save(tmp_path / "m.ree")
    for size, code in (("batch=3", 0), ("batch=65", 2), ("input_0=3", 2)):
        with pytest.raises(SystemExit) as stop:
            cli.main(["inspect", str(tmp_path / "m.ree"), "--size", size])
        assert (stop.value.code or 0) == code
        captured = capsys.readouterr()
        assert "batch" in captured.out + captured.err


def test_a_file_with_a_name_that_is_no_identifier_is_refused(tmp_path: Path) -> None:
    program = ree.compile(nn.ReLU(), (X,), dynamic_shapes=({0: BATCH},))
    program.graph.symbols = {"a=b": (1, 64)}
    program.save(tmp_path / "m.ree")
    with pytest.raises(ree.FormatError, match="identifier"):
        ree.load(tmp_path / "m.ree")


def test_an_automatic_dimension_that_is_halved() -> None:
    program = ree.compile(Halves(), (X,), dynamic_shapes=({0: Dim.AUTO},))
    assert set(program.graph.symbols) <= {"x_0", "x_0_base"}
    assert program(torch.ones(6, 8)).shape == (3, 8)
