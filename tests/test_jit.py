"""The kernel cache: what is on disk is trusted only as far as its own digest goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ree import cache as disk
from ree.element import jit
from ree.element.program import Builder, Port, Program
from ree.types import DType
from tests.jit_case import layout_of, run_kernel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, and no kernels in memory."""
    monkeypatch.setenv("REE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_kernels", {})
    return tmp_path / "cache"


def scale(factor: float) -> Program:
    b = Builder([Port(DType.F32, 1)], 1)
    return b.finish([b.load(0, b.index(0)) * factor], [DType.F32])


X = np.arange(21, dtype=np.float32)


def gives(factor: float, wanted: float | None = None) -> bool:
    result = np.zeros_like(X)
    run_kernel(scale(factor), [X], [result], X.shape)
    return bool(np.array_equal(result, X * np.float32(factor if wanted is None else wanted)))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_kernels", {})


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("compiled although the cache has it")

    monkeypatch.setattr(jit, "_compile", fail)


def test_compiled_once_then_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gives(2.0)
    assert len(list(cache.iterdir())) == 1
    no_compiler(monkeypatch)
    assert gives(2.0)  # in memory
    forget(monkeypatch)
    assert gives(2.0)  # on disk
    with pytest.raises(AssertionError, match="compiled although"):
        gives(3.0)


def test_equal_kernels_of_one_call_are_compiled_once(cache: Path) -> None:
    layout = layout_of([X, X], 0)
    kernels = jit.compile_kernels([(scale(2.0), layout), (scale(5.0), layout), (scale(2.0), layout)])
    assert kernels[0] is kernels[2] and kernels[0].address != kernels[1].address
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "longer", "foreign", "renamed", "directory"])
def test_damaged_files_are_compiled_again(cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    assert gives(2.0)
    path = next(cache.iterdir())
    data = path.read_bytes()
    if damage == "renamed":  # a whole, valid file of another kernel under this kernel's name
        forget(monkeypatch)
        assert gives(7.0)
        other = next(p for p in cache.iterdir() if p != path)
        path.write_bytes(other.read_bytes())
    elif damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        foreign = b"\x7fELF" * 999
        files = {"truncated": data[:-1], "empty": b"", "bit": flipped, "longer": data + b"\0", "foreign": foreign}
        path.write_bytes(files[damage])
    forget(monkeypatch)
    assert gives(2.0)
    if damage != "directory":
        assert path.read_bytes() == data  # put right
    assert not [p for p in cache.iterdir() if p.suffix != ".o"]


def test_every_byte_is_under_the_digest(cache: Path) -> None:
    assert gives(2.0)
    path = next(cache.iterdir())
    data, key = path.read_bytes(), bytes.fromhex(path.stem)
    assert jit.read_cached(key) is not None
    for place in [*range(56), *range(56, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        assert jit.read_cached(key) is None, place


def test_works_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    monkeypatch.setenv("REE_CACHE", str(blocked / "cache"))
    forget(monkeypatch)
    assert gives(2.0)
    assert blocked.read_text() == "no directory"


def test_the_key_tells_kernels_apart() -> None:
    layouts = [layout_of([X, X], 0), layout_of([X, X[::2]], 0), layout_of([X, X], 1)]
    targets = [jit.host_target(isa) for isa in jit.isas()]
    wide = Builder([Port(DType.F64, 1)], 1)
    programs = [scale(2.0), scale(-0.0), scale(0.0), wide.finish([wide.load(0, wide.index(0))], [DType.F64])]
    keys = {jit.cache_key(p, layout, t) for p in programs for layout in layouts for t in targets}
    assert len(keys) == len(programs) * len(layouts) * len(targets)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert disk.directory() == Path("/somewhere/ree")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert disk.directory() == Path.home() / ".cache" / "ree"


def test_importing_the_compiler_does_not_import_llvm() -> None:
    code = "import sys, ree.element.jit; sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_kernels_of_two_isas_live_side_by_side(cache: Path) -> None:
    for isa in jit.isas():
        result = np.zeros_like(X)
        run_kernel(scale(3.0), [X], [result], X.shape, isa=isa)
        assert np.array_equal(result, X * np.float32(3))
    assert len(list(cache.iterdir())) == len(jit.isas())
