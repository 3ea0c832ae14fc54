"""Programs kept from one `ree compile` to the next: the same bytes or a miss, never an error or another program."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ree import cache, cli, program_cache, sources
from tests import small_models


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and sources of ree that nobody edits meanwhile."""
    monkeypatch.setenv("REE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_own_code", lambda: "code")
    return tmp_path / "cache" / "programs"


def save_model(folder: Path, dtype: torch.dtype = torch.float32, make: Any = small_models.gpt2) -> Path:
    torch.manual_seed(1)
    make().to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A model folder, and the .ree file that it compiles to without a cache."""
    path = tmp_path_factory.mktemp("saved")
    folder = save_model(path / "model")
    return folder, compiled(folder, path / "plain.ree", "--no-cache")


@pytest.fixture
def model(saved: tuple[Path, bytes], tmp_path: Path) -> Path:
    """A copy of the model folder that a test may change."""
    return Path(shutil.copytree(saved[0], tmp_path / "model"))


def compiled(source: Path, output: Path, *options: str) -> bytes:
    with pytest.raises(SystemExit) as stop:
        cli.main(["compile", str(source), "-o", str(output), *options])
    assert not stop.value.code
    return output.read_bytes()


def is_cached(source: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    capsys.readouterr()
    compiled(source, output, "--json")
    found: bool = json.loads(capsys.readouterr().out)["cached"]
    return found


def key(source: Path, **options: object) -> bytes:
    found = sources.of(source, options)
    assert found is not None
    return found.key


def entry_of(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


# -- hits ---------------------------------------------------------------------------------


def test_the_second_time_gives_the_same_bytes(
    model: Path, saved: tuple[Path, bytes], tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for _ in range(2):
        capsys.readouterr()
        assert compiled(model, tmp_path / "m.ree", "--json") == saved[1]
        answers.append(json.loads(capsys.readouterr().out))
        (tmp_path / "m.ree").unlink()
    assert [a.pop("cached") for a in answers] == [False, True]
    assert answers[0] == answers[1]
    weights = sum(p.stat().st_size for p in model.glob("*.safetensors"))
    assert entry_of(own_cache).stat().st_size < weights / 2  # what the folder holds is not kept twice
    assert stat_mode(entry_of(own_cache)) == 0o600


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_hit_imports_neither_torch_nor_numpy(name: str, tmp_path: Path) -> None:
    """NumPy where weights are transposed, only."""
    model = save_model(tmp_path / "model", make=getattr(small_models, name))
    forbidden = ["torch", "transformers", "safetensors", "llvmlite", *(["numpy"] if name == "llama" else [])]
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[3:]))\n"
        "from ree import cli; cli.main(['compile', sys.argv[1], '-o', sys.argv[2], '--json'])"
    )

    def run(name: str, *forbidden: str) -> bool:
        command = [sys.executable, "-W", "ignore", "-c", code, str(model), str(tmp_path / name), *forbidden]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: bool = json.loads(done.stdout)["cached"]
        return found

    assert not run("a.ree")
    assert run("b.ree", *forbidden)
    assert (tmp_path / "a.ree").read_bytes() == (tmp_path / "b.ree").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_loading_widens(dtype: torch.dtype, tmp_path: Path, own_cache: Path) -> None:
    folder = save_model(tmp_path / "narrow", dtype)
    plain = compiled(folder, tmp_path / "a.ree")
    assert entry_of(own_cache).stat().st_size < len(plain) / 2
    (tmp_path / "a.ree").unlink()
    files = sources.of(folder, {})
    assert files is not None and program_cache.restore(files, tmp_path / "a.ree") is not None
    assert (tmp_path / "a.ree").read_bytes() == plain


def pieces_of(entry: Path) -> list[program_cache.Piece]:
    """What an entry says of the .ree file (an entry: magic, key, length, content)."""
    content = entry.read_bytes()[len(program_cache._MAGIC) + 32 + 8 :]
    length = int.from_bytes(content[:8], "little")
    return [program_cache.Piece(*piece) for piece in json.loads(content[8 : 8 + length])["pieces"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [4 << 20, 1000])
def test_weights_that_the_program_holds_transposed(
    dtype: torch.dtype, step: int, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_cache, "_STEP_BYTES", step)
    folder = save_model(tmp_path / "model", dtype)
    plain = compiled(folder, tmp_path / "a.ree")
    pieces = pieces_of(entry_of(own_cache))
    turned = sorted((p.rows, p.cols) for p in pieces if p.rows)
    assert turned == sorted([(32, 96), (32, 32), (32, 128), (128, 32)] * 2)
    held = sum(p.size_bytes for p in pieces[1:] if p.file == -1)
    assert held < 2000  # the causal mask, say
    files = sources.of(folder, {})
    assert files is not None and program_cache.restore(files, tmp_path / "b.ree") is not None
    assert (tmp_path / "b.ree").read_bytes() == plain


def test_an_exported_program_with_a_transposed_weight(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Members of a .pt2 file have no shape: the program's are tried."""

    class Times(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(64, 300))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    torch.export.save(torch.export.export(Times().eval(), (torch.ones(2, 64),)), tmp_path / "m.pt2")
    assert not is_cached(tmp_path / "m.pt2", tmp_path / "a.ree", capsys)
    assert [(p.rows, p.cols) for p in pieces_of(entry_of(own_cache)) if p.rows] == [(64, 300)]
    assert is_cached(tmp_path / "m.pt2", tmp_path / "b.ree", capsys)
    assert (tmp_path / "a.ree").read_bytes() == (tmp_path / "b.ree").read_bytes()


def test_an_exported_program(tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.ReLU(), torch.nn.Linear(300, 7)).eval()
    torch.export.save(torch.export.export(module, (torch.ones(2, 64),)), tmp_path / "m.pt2")
    plain = compiled(tmp_path / "m.pt2", tmp_path / "a.ree", "--no-cache")
    assert not own_cache.exists()
    assert not is_cached(tmp_path / "m.pt2", tmp_path / "b.ree", capsys)
    assert entry_of(own_cache).stat().st_size < len(plain) / 2
    shutil.move(tmp_path / "m.pt2", tmp_path / "other.pt2")
    assert is_cached(tmp_path / "other.pt2", tmp_path / "c.ree", capsys)
    assert plain == (tmp_path / "b.ree").read_bytes() == (tmp_path / "c.ree").read_bytes()


def test_where_files_cannot_be_copied_in_the_kernel(
    model: Path, saved: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = kept(model, saved[1], tmp_path)

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert program_cache.restore(files, tmp_path / "b.ree") is not None
    assert (tmp_path / "b.ree").read_bytes() == saved[1]


def test_an_output_that_cannot_be_written(
    model: Path, saved: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(model, saved[1], tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["compile", str(model), "-o", str(tmp_path / "absent" / "a.ree")])
    assert stop.value.code == 2
    assert "cannot write" in capsys.readouterr().err


# -- the key ------------------------------------------------------------------------------------


def test_a_changed_weight_gives_the_changed_program(
    model: Path, saved: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled(model, tmp_path / "a.ree")
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not is_cached(model, tmp_path / "b.ree", capsys)
    assert (tmp_path / "b.ree").read_bytes() != saved[1]


def edit_config(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-6}))


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], Any]] = {
    "config": lambda model, _: edit_config(model),
    "another file": lambda model, _: (model / "more.json").write_text("{}"),
    "a file less": lambda model, _: (model / "generation_config.json").unlink(),
    "name": lambda model, _: (model / "model.safetensors").rename(model / "weights.safetensors"),
    "format of entries": lambda _, patch: patch.setattr(sources, "VERSION", 99),
    "ree": lambda _, patch: patch.setattr(sources, "_own_code", lambda: "other code"),
    "python": lambda _, patch: patch.setattr(sys, "version", "3.99"),
    "processor": lambda _, patch: patch.setattr(sources, "_processor", lambda: ["another"]),
    "environment": lambda _, patch: patch.setenv("ATEN_CPU_CAPABILITY", "default"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_key(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(model)
    CHANGES[name](model, monkeypatch)
    assert key(model) != before


def test_versions_of_packages_change_the_key(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for version in ("9.1", "9.2"):
        place = tmp_path / version / "site-packages"
        (place / f"torch-{version}.dist-info").mkdir(parents=True)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(place))
            found.append(key(model))
    assert len({*found, key(model)}) == 3


def test_options_change_the_key(model: Path) -> None:
    assert len({key(model), key(model, seed=0), key(model, seed=1), key(model, length=1)}) == 4


def test_what_leaves_the_key_as_it_is(model: Path, tmp_path: Path) -> None:
    before = key(model)
    for name in ("README.md", "pytorch_model.bin", "model.ree", ".gitattributes"):
        (model / name).write_text("not read")
    (model / "onnx").mkdir()
    os.utime(model / "config.json", (1, 1))
    moved = shutil.move(model, tmp_path / "elsewhere")
    assert key(Path(moved)) == before


def test_own_code_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    before = sources._own_code()
    copy = Path(shutil.copytree(sources.ree.__path__[0], tmp_path / "ree"))
    monkeypatch.setattr(sources.ree, "__path__", [str(copy)])
    assert sources._own_code() == before
    with (copy / "passes.py").open("a") as file:
        file.write("\n")
    assert sources._own_code() != before


def test_no_key_where_files_do_not_say_all(model: Path, tmp_path: Path) -> None:
    assert sources.of(f"{tmp_path}/zoo.py:make", {}) is None
    assert sources.of(tmp_path / "absent.pt2", {}) is None
    assert sources.of(tmp_path / "absent", {}) is None
    index = model / "model.safetensors.index.json"
    for shard, is_keyed in (("a.safetensors", True), ("sub/a.safetensors", False), ("/a.safetensors", False)):
        index.write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": shard}}))
        assert (sources.of(model, {}) is not None) == is_keyed
    for text in ("[]", "{", '{"weight_map": [1]}', '{"weight_map": {"x": 1}}'):
        index.write_text(text)
        assert sources.of(model, {}) is None
    index.unlink()
    (model / "adapter_config.json").write_text("{}")
    assert sources.of(model, {}) is None


# -- entries that are no good -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "foreign", "renamed", "directory"])
def test_damaged_entries_are_misses(
    damage: str, model: Path, saved: tuple[Path, bytes], tmp_path: Path, own_cache: Path
) -> None:
    files = kept(model, saved[1], tmp_path)
    path = entry_of(own_cache)
    data = path.read_bytes()
    if damage == "renamed":  # a whole, valid entry of another input
        cache.write(path, program_cache._MAGIC, bytes(32), data[48:-32])
    elif damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        contents = {"truncated": data[:-1], "empty": b"", "longer": data + b"\0", "foreign": b"\x7fELF" * 999}
        path.write_bytes(contents[damage])
    assert program_cache.restore(files, tmp_path / "a.ree") is None
    assert not (tmp_path / "a.ree").exists()
    if damage != "directory":
        kept(model, saved[1], tmp_path)
        assert path.read_bytes() == data  # put right


def kept(model: Path, program: bytes, tmp_path: Path) -> sources.Sources:
    """The sources of a model of which the cache has this program."""
    files = sources.of(model, {})
    assert files is not None
    (tmp_path / "kept.ree").write_bytes(program)
    program_cache.remember(files, tmp_path / "kept.ree", {"program_id": "00"})
    return files


def test_every_byte_of_an_entry_is_under_its_digest(
    model: Path, saved: tuple[Path, bytes], tmp_path: Path, own_cache: Path
) -> None:
    files = kept(model, saved[1], tmp_path)
    path = entry_of(own_cache)
    data = path.read_bytes()
    for place in [*range(60), *range(60, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        assert program_cache.restore(files, tmp_path / "b.ree") is None, place
    assert not (tmp_path / "b.ree").exists()


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}", b"\x04" + bytes(7) + b"null"])
def test_entries_that_make_no_sense_are_misses(content: bytes, model: Path, tmp_path: Path) -> None:
    files = sources.of(model, {})
    assert files is not None
    cache.write(cache.directory() / "programs" / files.key.hex(), program_cache._MAGIC, files.key, content)
    assert program_cache.restore(files, tmp_path / "a.ree") is None
    assert not (tmp_path / "a.ree").exists()


@pytest.mark.parametrize(
    "piece",
    [
        [0, 1 << 40, 5],
        [9, 0, 5],
        [0, -5, 5],
        [0, 0, 8, "F64"],
        [0, 0, 8, "F16", "00"],
        [0, 0, 8, "", "00", 1, 2],
        [0, 0, 8, "F16", "00", 2, 2],
        [0, 1 << 40, 8, "", "00", 1, 2],
        "x",
    ],
)
def test_entries_with_impossible_pieces_are_misses(piece: Any, model: Path, tmp_path: Path) -> None:
    files = sources.of(model, {})
    assert files is not None
    text = json.dumps({"pieces": [piece], "summary": {}, "size_bytes": 8}).encode()
    content = len(text).to_bytes(8, "little") + text
    cache.write(cache.directory() / "programs" / files.key.hex(), program_cache._MAGIC, files.key, content)
    assert program_cache.restore(files, tmp_path / "a.ree") is None
    assert not [p for p in tmp_path.iterdir() if "a.ree" in p.name]


def test_files_that_change_meanwhile(model: Path, saved: tuple[Path, bytes], tmp_path: Path, own_cache: Path) -> None:
    files = sources.of(model, {})
    assert files is not None
    (tmp_path / "a.ree").write_bytes(saved[1])
    weights = model / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + b"?")  # between the key and the compilation, say
    program_cache.remember(files, tmp_path / "a.ree", {})
    assert not own_cache.exists()
    weights.write_bytes(before)
    program_cache.remember(files, tmp_path / "a.ree", {})
    assert own_cache.exists()
    assert program_cache.restore(files, tmp_path / "b.ree") is None  # the same bytes, written anew after the key
    again = sources.of(model, {})
    assert again is not None and program_cache.restore(again, tmp_path / "b.ree") is not None


# -- the directory ------------------------------------------------------------------------------------


def test_works_without_a_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    monkeypatch.setenv("REE_CACHE", str(blocked / "cache"))
    assert not is_cached(model, tmp_path / "a.ree", capsys)
    assert not is_cached(model, tmp_path / "a.ree", capsys)
    assert blocked.read_text() == "no directory"


def test_large_entries_are_not_kept(
    model: Path, saved: tuple[Path, bytes], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_cache, "PROGRAM_ENTRY_BYTES_MAX", 1000)
    kept(model, saved[1], tmp_path)
    assert not own_cache.exists()


def test_entries_unused_for_longest_go_first(tmp_path: Path) -> None:
    folder = tmp_path / "entries"
    folder.mkdir()
    for age, name in enumerate("dcba"):
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (1000 - age, 1000 - age))
    cache.mark_used(folder / "a")
    cache.trim(folder, 250)
    assert sorted(p.name for p in folder.iterdir()) == ["a", "d"]
    cache.trim(folder, 250)
    assert sorted(p.name for p in folder.iterdir()) == ["a", "d"]
    cache.trim(tmp_path / "absent", 0)


def test_files_that_nobody_finished_are_removed(tmp_path: Path) -> None:
    for name, age_s in ((".old.part", 100_000), (".new.part", 0)):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    cache.trim(tmp_path, 0)
    assert [p.name for p in tmp_path.iterdir()] == [".new.part"]


def test_a_hit_counts_as_use_and_writing_trims(
    model: Path, saved: tuple[Path, bytes], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = kept(model, saved[1], tmp_path)
    first = entry_of(own_cache)
    os.utime(first, (1, 1))
    assert program_cache.restore(files, tmp_path / "a.ree") is not None
    assert first.stat().st_mtime > 1
    os.utime(first, (1, 1))
    monkeypatch.setattr(program_cache, "PROGRAMS_CACHED_BYTES_MAX", first.stat().st_size + 100)
    edit_config(model)
    kept(model, saved[1], tmp_path)
    assert entry_of(own_cache) != first


# changes of a transposed piece: file, offset, size, dtype, digest, rows, columns
TURNED: dict[str, Callable[[list[Any]], Any]] = {
    "negative rows": lambda p: p.__setitem__(slice(5, 7), [-p[5], -p[6]]),
    "rows that do not fit": lambda p: p.__setitem__(5, p[5] + 1),
    "no columns": lambda p: p.__setitem__(6, 0),
    "rows and columns swapped": lambda p: p.__setitem__(slice(5, 7), [p[6], p[5]]),
    "rows in part": lambda p: p.__setitem__(slice(5, 7), [p[5] / 2, p[6] * 2]),
    "rows as text": lambda p: p.__setitem__(5, str(p[5])),
    "items of 16 bytes": lambda p: p.__setitem__(slice(5, 7), [p[5] // 2, p[6] // 2]),
    "widened, too": lambda p: p.__setitem__(3, "F16"),
    "another digest": lambda p: p.__setitem__(4, "00" * 32),
    "another offset": lambda p: p.__setitem__(1, p[1] + 4),
    "of the entry itself": lambda p: p.__setitem__(0, -1),
}


def _forged(entry: dict[str, Any], how: str) -> None:
    """Change an entry as somebody might who can write to the cache, and knows its checksum."""
    pieces = entry["pieces"]
    if how == "offset beyond everything":
        pieces[1][1] = 1 << 70
    elif how == "negative size":
        pieces[1][2] = -5
    elif how == "another input":
        pieces[1][0] = -2
    elif how in TURNED:
        turned = next(piece for piece in pieces if piece[5])
        TURNED[how](turned)
    elif how == "held bytes that it lacks":
        pieces[0][2] += 1 << 20
        entry["size_bytes"] += 1 << 20
    elif how == "dropped pieces":
        del pieces[2:]
    elif how == "summary":
        entry["summary"] = [1]


FORGERIES = "offset beyond everything,negative size,another input,dropped pieces,held bytes that it lacks,summary"


@pytest.mark.parametrize("how", [*FORGERIES.split(","), *TURNED])
def test_forged_entries_are_misses_and_write_nothing(how: str, model: Path, tmp_path: Path) -> None:
    compiled(model, tmp_path / "first.ree")
    path = entry_of(cache.directory() / "programs")
    now = sources.of(model, {})
    assert now is not None
    files = sources.Sources(now.root, now.files, now.content, bytes.fromhex(path.name))
    content = cache.read(path, program_cache._MAGIC, files.key)
    assert content is not None
    length = int.from_bytes(content[:8], "little")
    entry = json.loads(content[8 : 8 + length])
    assert program_cache.restore(files, tmp_path / "second.ree") == entry["summary"]
    _forged(entry, how)
    text = json.dumps(entry).encode()
    cache.write(path, program_cache._MAGIC, files.key, len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert program_cache.restore(files, tmp_path / "third.ree") is None
    assert not list(tmp_path.glob("*third*"))


def test_an_entry_nested_too_deeply_is_a_miss(model: Path, tmp_path: Path) -> None:
    files = sources.of(model, {})
    assert files is not None
    text = b"[" * 100_000
    path = program_cache._path(files.key)
    cache.write(path, program_cache._MAGIC, files.key, len(text).to_bytes(8, "little") + text)
    assert program_cache.restore(files, tmp_path / "out.ree") is None


def test_an_editable_package_has_no_version_that_says_its_code(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, editable, has_key in (("other-1.0", True, False), ("other-1.0", False, True), ("ree-9.9", True, True)):
        place = tmp_path / name / f"{name}{editable}" / f"{name}.dist-info"
        place.mkdir(parents=True)
        (place / "direct_url.json").write_text(json.dumps({"url": "file:///x", "dir_info": {"editable": editable}}))
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(place.parent))
            assert (sources.of(model, {}) is not None) == has_key
