"""Program files: the round trip, and refusal of everything that is no program file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import ree
from ree import dims, structure


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, object]:
        y = self.inner(x) * scale
        return {"y": y, "parts": [y[:1], (y[1:],)], "n": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("file") / "m.ree"
    batch = torch.export.Dim("batch", min=1, max=32)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU()).eval()
    ree.compile(model, torch.randn(3, 6), dynamic_shapes=({0: batch},)).save(path)
    return path


def test_round_trip_keeps_structure_bits_and_id(tmp_path: Path) -> None:
    model = Structured().eval()
    x, scale = torch.randn(3, 6), torch.randn(4)
    program = ree.compile(model, {"x": x, "scale": scale})
    program.save(tmp_path / "m.ree")
    loaded = ree.load(tmp_path / "m.ree")
    a, b = program(x=x, scale=scale), loaded(x=x, scale=scale)
    assert set(a) == set(b) == {"y", "parts", "n"} and b["n"] == 3
    assert torch.equal(a["y"], b["y"]) and torch.equal(a["parts"][1][0], b["parts"][1][0])
    assert loaded.program_id == program.program_id and b.y is b["y"]
    assert loaded.input_names == program.input_names


def test_weights_are_readable_by_safetensors(saved: Path) -> None:
    program = ree.load(saved)
    with safe_open(saved, "np") as file:
        for number, constant in enumerate(program.graph.constants):
            assert np.array_equal(file.get_tensor(f"c{number}"), constant.array())


def test_loading_and_running_needs_no_torch(saved: Path) -> None:
    code = (
        "import sys, numpy as np, ree\n"
        f"y = ree.load({str(saved)!r})(np.ones((2, 6), np.float32))\n"
        "assert y.shape == (2, 8) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_truncation_is_refused(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    target = tmp_path / "cut.ree"
    for length in [*range(64), *range(64, len(data), 97), len(data) - 1]:
        target.write_bytes(data[:length])
        with pytest.raises(ree.FormatError):
            ree.load(target)(np.ones((2, 6), np.float32))


def test_an_altered_weight_is_refused(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    (tmp_path / "altered.ree").write_bytes(data)
    with pytest.raises(ree.FormatError, match="altered"):
        ree.load(tmp_path / "altered.ree")(np.ones((2, 6), np.float32))


def test_no_file_no_folder_no_half_file(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ree.FormatError):
        ree.load(tmp_path / "missing.ree")
    with pytest.raises(ree.FormatError):
        ree.load(tmp_path)
    program = ree.load(saved)
    with pytest.raises(ree.FormatError):
        program.save(tmp_path / "no" / "such" / "folder.ree")
    blocked = tmp_path / "folder.ree"
    blocked.mkdir()
    with pytest.raises(ree.FormatError):
        program.save(blocked)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.ree"]


def test_mutations_are_refused_or_run() -> None:
    """In a process of its own: a crash of the interpreter is a failure, too."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_file", "400", "7"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused" in done.stdout


def test_dimensions_survive_json() -> None:
    s, t = dims.symbol("s"), dims.symbol("t")
    cases = [s + 1, 2 * s * t - 3, (s + 1) // 2, dims.minimum(s, 4), dims.mod(s * 3, t), dims.maximum(s // 3, t)]
    for expression in cases:
        again = dims.from_json(json.loads(json.dumps(dims.to_json(expression))))
        assert again == expression
        assert dims.evaluate(again, {"s": 11, "t": 5}) == dims.evaluate(expression, {"s": 11, "t": 5})
    assert dims.evaluate((s + 1) // 2, {"s": 6}) == 3
    assert s * t == t * s and s - s == 0 and (2 * s) // 2 == s and (s * t) // s == t
    assert dims.mod(4 * s, 2) == 0


@pytest.mark.parametrize(
    "bad", [{"tuple": 3}, {"list": ["*", 1]}, {"a": 1, "b": 2}, 5, {"dict": [["k"]]}, {"value": []}]
)
def test_bad_structures_are_refused(bad: object) -> None:
    with pytest.raises(ree.FormatError):
        structure.check(bad)


def test_deep_structures_are_refused() -> None:
    deep: object = "*"
    for _ in range(100):
        deep = {"tuple": [deep]}
    with pytest.raises(ree.FormatError):
        structure.check(deep)


def test_an_undeclared_symbol_is_refused(tmp_path: Path) -> None:
    """In an input's shape, a node's or an attribute, and wherever the file is looked at."""
    from ree import dims, file
    from ree.errors import GraphError
    from ree.graph import Graph, GraphInput, Node, check
    from ree.types import DType, TensorType

    n, m = dims.symbol("n"), dims.symbol("m")
    x = GraphInput("x", TensorType((n, 6), DType.F32))

    def graph(*nodes: Node, symbols: tuple[str, ...] = ("n",)) -> Graph:
        return Graph([x], [], list(nodes), [len(nodes)], dict.fromkeys(symbols, (1, 32)))

    good = Node("neg", (0,), {}, x.type)
    check(graph(good))
    for wrong in (
        graph(good, symbols=()),
        graph(Node("neg", (0,), {}, TensorType((m, 6), DType.F32))),
        graph(good, Node("reshape", (1,), {"shape": (m, 6)}, TensorType((n, 6), DType.F32))),
    ):
        with pytest.raises(GraphError, match="declare"):
            check(wrong)
        file.save(tmp_path / "m.ree", wrong, {"tuple": [{"tuple": ["*"]}, {"dict": []}]}, "*")
        with pytest.raises(ree.FormatError, match="declare"):
            ree.load(tmp_path / "m.ree")


@pytest.mark.parametrize("outputs", [[0], [1], [3], [2, 2], [4]])
def test_an_output_that_no_kernel_writes_is_refused(outputs: list[int], tmp_path: Path) -> None:
    """An input, a constant, a view, a repetition, a convolution: its memory would be given back as it was found."""
    from ree import file
    from ree.graph import Constant, Graph, GraphInput, Node
    from ree.types import DType, TensorType

    image, weights = TensorType((1, 2, 4, 4), DType.F32), TensorType((2, 2, 1, 1), DType.F32)
    attrs = {"groups": 1, "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    nodes = [
        Node("neg", (0,), {}, image),
        Node("permute", (2,), {"axes": (0, 1, 3, 2)}, image),
        Node("conv", (0, 1), attrs, image),
    ]
    constant = Constant("w", weights, np.ones((2, 2, 1, 1), np.float32))
    structure = {"tuple": ["*"] * len(outputs)}
    inputs = {"tuple": [{"tuple": ["*"]}, {"dict": []}]}

    def saved(outputs: list[int], structure: object) -> Path:
        graph = Graph([GraphInput("x", image)], [constant], nodes, outputs)
        file.save(tmp_path / "m.ree", graph, inputs, structure)
        return tmp_path / "m.ree"

    assert ree.load(saved([2], "*"))(np.ones((1, 2, 4, 4), np.float32)).max() == -1
    with pytest.raises(ree.FormatError, match="output"):
        ree.load(saved(outputs, structure))
