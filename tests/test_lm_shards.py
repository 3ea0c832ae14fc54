"""The weights of a model folder: tensors over read-only maps of their files, every extent checked before it is used."""

from __future__ import annotations

import copy
import gc
import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ree
from ree.errors import FormatError, InputError, LimitError, UnsupportedError
from ree.lm import shards as shards_module
from ree.lm.shards import Shards
from tests import lm_folders
from tests.fuzz_file import mutate_tree


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_folders.make(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def sharded_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_folders.make(tmp_path_factory.mktemp("models") / "sharded", dtype="bfloat16", shards=3)


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def sharded(sharded_original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded_original, tmp_path / "sharded"))


def test_tensors_of_several_files(sharded: Path) -> None:
    found = Shards.open(sharded)
    assert [path.name for path in found.files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    total = 0
    for path in found.files:
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                expected = file.get_tensor(name)
                tensor = found.tensor(name)
                assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
                assert (found[name].dtype, found[name].shape) == ("bfloat16", tuple(expected.shape))
                assert torch.equal(tensor, expected)
                total += tensor.nbytes
    assert (
        found.size_bytes == total == json.loads((sharded / shards_module.INDEX).read_text())["metadata"]["total_size"]
    )


def test_tensors_are_views_of_a_read_only_map(sharded: Path) -> None:
    found = Shards.open(sharded)
    name = next(iter(found))
    tensor = found.tensor(name)
    assert tensor.data_ptr() == found.tensor(name).data_ptr()
    assert tensor.untyped_storage().nbytes() == found[name].path.stat().st_size
    start = tensor.data_ptr() - found[name].offset
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    (line,) = [text for text in lines if int(text.split("-")[0], 16) == start]
    assert line.split()[1].startswith("r--")
    assert line.endswith(found[name].path.name)


def test_a_tensor_keeps_its_map_alive(sharded: Path) -> None:
    found = Shards.open(sharded)
    name = next(iter(found))
    expected = found.tensor(name).clone()
    tensor = found.tensor(name)
    del found
    gc.collect()
    assert torch.equal(tensor, expected)


def test_reading_warns_of_nothing(original: Path) -> None:
    code = f"""
import warnings; warnings.simplefilter("error")
from pathlib import Path
from ree.lm.shards import Shards
found = Shards.open(Path({str(original)!r}))
print(sum(found.tensor(name).numel() for name in found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == sum(t.numel() for t in load_file(original / "model.safetensors").values())


@pytest.mark.parametrize("padding", range(4))
def test_every_dtype_and_every_alignment(tmp_path: Path, padding: int) -> None:
    """The header's length decides where the data begins; old files do not align it."""
    values = {
        dtype: torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)) for dtype, _ in shards_module.DTYPES.values()
    }
    values |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(2.5), "none": torch.empty(3, 0, dtype=torch.int8)}
    save_file(values, str(tmp_path / "model.safetensors"))
    data = (tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length] + b" " * padding
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    found = Shards.open(tmp_path)
    for name, expected in values.items():
        tensor = found.tensor(name)
        assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
        assert tensor.numel() == 0 or tensor.data_ptr() % tensor.element_size() == 0
        assert bytes(tensor.flatten().view(torch.uint8)) == bytes(expected.flatten().view(torch.uint8))


def test_a_tensor_that_is_not_there(original: Path) -> None:
    found = Shards.open(original)
    with pytest.raises(InputError, match="no tensor 'x'"):
        found.tensor("x")
    assert "x" not in found


def test_a_file_shortened_after_it_was_opened(model: Path) -> None:
    found = Shards.open(model)
    name = max(found, key=lambda n: found[n].offset)
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(found[name].offset + 1)
    with pytest.raises(FormatError, match="shortened"):
        found.tensor(name)


def test_a_file_that_has_gone(model: Path) -> None:
    found = Shards.open(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="No such file"):
        found.tensor(next(iter(found)))


# -- faults ---------------------------------------------------------------------------------


def write_header(path: Path, header: Any, body: bytes = b"\0" * 64) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def entry(dtype: Any = "F32", shape: Any = (4, 4), offsets: Any = (0, 64)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ({"a": entry(shape=(4, 5))}, FormatError),
        ({"a": entry(shape=(4, 4), offsets=(0, 65))}, FormatError),
        ({"a": entry(shape=(4, 4), offsets=(4, 68))}, FormatError),
        ({"a": entry(shape=(4, 2), offsets=(-32, 0))}, FormatError),
        ({"a": entry(shape=(0,), offsets=(64, 0))}, FormatError),
        ({"a": entry(shape=(-4, -4))}, FormatError),
        ({"a": entry(shape=(16.0,))}, FormatError),
        ({"a": entry(shape=(True, 16))}, FormatError),
        ({"a": entry(shape=5)}, FormatError),
        ({"a": entry(shape="44")}, FormatError),
        ({"a": entry(shape=(1,) * 13 + (16,))}, FormatError),
        ({"a": entry(shape=(1 << 62, 1 << 62))}, FormatError),
        ({"a": entry(offsets=(0.0, 64.0))}, FormatError),
        ({"a": entry(offsets=("0", "64"))}, FormatError),
        ({"a": entry(offsets=(0, 32, 64))}, FormatError),
        ({"a": entry(offsets=(0, 1 << 80))}, FormatError),
        ({"a": entry(dtype="F4")}, UnsupportedError),
        ({"a": entry(dtype=None)}, UnsupportedError),
        ({"a": entry(dtype=["F32"])}, UnsupportedError),
        ({"a": {}}, FormatError),
        ({"a": 3}, FormatError),
        ({"a" * 5000: entry()}, FormatError),
        ([entry()], FormatError),
        ("a", FormatError),
    ],
)
def test_headers_that_are_not_sound(tmp_path: Path, header: Any, error: type[ree.Error]) -> None:
    write_header(tmp_path / "model.safetensors", {"a": entry()})
    assert Shards.open(tmp_path).tensor("a").shape == (4, 4)
    write_header(tmp_path / "model.safetensors", header)
    with pytest.raises(error) as found:
        Shards.open(tmp_path)
    assert "\n" not in str(found.value)
    assert str(tmp_path / "model.safetensors") in str(found.value)


@pytest.mark.parametrize("text", ["", "null", "[]", "[" * 4000 + "]" * 4000, '{"weight_map": 3}', '{"weight_map": {}}'])
def test_an_index_that_is_none(sharded: Path, text: str) -> None:
    (sharded / shards_module.INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=r"index\.json"):
        Shards.open(sharded)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "pytorch_model.bin", 3, None, ""]
)
def test_an_index_that_points_elsewhere(sharded: Path, file: Any) -> None:
    lm_folders.write_json(sharded / shards_module.INDEX, {"weight_map": {"lm_head.weight": file}})
    with pytest.raises(FormatError, match="in no safetensors file of this folder"):
        Shards.open(sharded)


def test_a_shard_is_missing(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors, which .* names, is missing"):
        Shards.open(sharded)


def test_a_shard_is_truncated(sharded: Path) -> None:
    path = sharded / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(FormatError, match="outside of the file"):
        Shards.open(sharded)


def test_a_weight_is_not_where_the_index_says(sharded: Path) -> None:
    index = json.loads((sharded / shards_module.INDEX).read_text(encoding="utf-8"))
    index["weight_map"]["lm_head.weight"] = "model-00003-of-00003.safetensors"
    lm_folders.write_json(sharded / shards_module.INDEX, index)
    with pytest.raises(FormatError, match=r"no tensor 'lm_head\.weight'"):
        Shards.open(sharded)


def test_an_index_is_bounded(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "FILES_MAX", 2)
    with pytest.raises(LimitError, match="more than 2 files"):
        Shards.open(sharded)
    monkeypatch.setattr(shards_module, "INDEX_BYTES_MAX", 100)
    with pytest.raises(LimitError, match="larger than 100 bytes"):
        Shards.open(sharded)


def test_one_file_goes_before_an_index(sharded: Path, original: Path) -> None:
    """As transformers has it."""
    shutil.copy(original / "model.safetensors", sharded)
    assert {place.dtype for place in Shards.open(sharded).values()} == {"float32"}


def test_mutated_headers_are_read_or_refused(model: Path) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    rng = random.Random(3)
    outcomes = set()
    for number in range(300):
        if number % 3:
            write_header(path, mutate_tree(rng, copy.deepcopy(header)), body)
        else:
            altered = bytearray(data[: rng.randrange(len(data))] if number % 2 else data)
            altered[rng.randrange(min(len(altered), 200))] = rng.randrange(256)
            path.write_bytes(altered)
        try:
            found = Shards.open(model)
            for name in found:
                found.tensor(name).flatten()[-1:].sum()  # read where the file would end first
            outcomes.add("read")
        except ree.Error:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
