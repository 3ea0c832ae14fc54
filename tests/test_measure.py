"""Digests, errors, float64 evaluation, named tensors, loaders of model folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ree import loaders, measure, tensors
from ree.errors import FormatError, InputError
from ree.types import DType


def test_digest_binds_values_dtype_and_shape() -> None:
    x = np.arange(6, dtype="f4")
    others = [x + 1, x.astype("f8"), x.reshape(2, 3), np.where(x == 0, np.float32(-0.0), x)]
    found = {measure.digest([a]) for a in [x, *others]}
    assert len(found) == 5
    assert measure.digest([x]) == measure.digest([x.copy()])


def test_digest_takes_every_nan_as_one() -> None:
    quiet = np.array([0x7FC00000, 0], np.uint32).view("f4")
    other = np.array([0xFFC01234, 0], np.uint32).view("f4")
    assert measure.digest([quiet]) == measure.digest([other])


def test_relative_error() -> None:
    exact = [np.array([3.0, 4.0])]
    assert measure.relative_error([np.array([3.0, 4.0], "f4")], exact) == 0.0
    assert measure.relative_error([np.array([3.0, 4.5], "f4")], exact) == pytest.approx(0.1)


def test_float64_outputs_undoes_casts_to_float32() -> None:
    class Casts(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.float32).exp().float() + torch.ones(3, dtype=torch.float32)

    x = torch.tensor([0.1, 0.2, 0.3])
    (found,) = measure.float64_outputs(Casts(), (x,))
    assert found.dtype == np.float64
    assert np.abs(found - (np.exp(x.double().numpy()) + 1)).max() < 1e-15


def test_interleaved_counts_only_timed_runs() -> None:
    calls: list[str] = []
    times = measure.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "a", "a", "b", "b", "b"] * 2
    assert {name: len(t) for name, t in times.items()} == {"a": 4, "b": 4}


def test_tensors_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    arrays = {
        "half": (np.array([1.0, -0.0], "f2"), DType.F16),
        "brain": (np.array([0x3F80, 0x8000], "u2"), DType.BF16),
        "empty": (np.zeros((0, 3), "f4"), DType.F32),
        "flag": (np.array(True), DType.BOOL),
        "long": (np.array([[1 << 40]], "i8"), DType.I64),
    }
    tensors.write(path, arrays)
    found = tensors.read(path)
    assert set(found) == set(arrays)
    for name, (array, dtype) in arrays.items():
        assert found[name][0].shape == array.shape and found[name][1] is dtype
        assert found[name][0].tobytes() == array.tobytes()
    from safetensors.torch import load_file

    assert load_file(path)["brain"].tolist() == [1.0, -0.0]


@pytest.mark.parametrize("length", [0, 7, 8, 9, 60])
def test_cut_tensor_files_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "t.safetensors"
    tensors.write(path, {"x": (np.arange(4, dtype="f4"), DType.F32)})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FormatError):
        tensors.read(path)


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        ("*", ["out_0"]),
        ({"tuple": ["*", "*"]}, ["out_0", "out_1"]),
        ({"dict": [["y", "*"], ["hidden", {"list": ["*", {"value": 3}, "*"]}]]}, ["y", "hidden.0", "hidden.2"]),
        ({"tuple": [{"dict": [["a", "*"]]}]}, ["out_0.a"]),
    ],
)
def test_output_names(structure: object, names: list[str]) -> None:
    assert tensors.output_names(structure) == names


def model_folder(path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(path)
    return path


def test_model_folder(tmp_path: Path) -> None:
    loaded = loaders.load(model_folder(tmp_path / "bert"))
    assert [t.dtype for t in loaded.example_inputs] == [torch.int64, torch.int64]
    assert loaded.model(*loaded.example_inputs).shape == (2, 16, 16)
    assert loaded.dynamic_shapes is not None


def test_altered_model_folders(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="cannot load"):
        loaders.load(folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")  # a pickle: refused
    with pytest.raises(InputError, match="cannot load"):
        loaders.load(folder)
    for text in ("{", "[]", "{}", json.dumps(config | {"architectures": ["PreTrainedModel2"]}), "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError):
            loaders.load(folder)
