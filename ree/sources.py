"""The key of a compilation whose input is files: everything that its result may depend on, hashed.

A Hugging Face folder or a .pt2 file says all about its model, once the versions that read it are known. A module
in memory or a factory does not: its Python code may do anything.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

import ree
import ree_kernels
from ree import nesting

VERSION = 1
_INDEX_BYTES_MAX = 64 << 20
# what no loader of a model folder reads: weights in other formats, texts, our own output
_NEVER_READ = frozenset(
    ".bin .ckpt .gguf .h5 .jpg .md .mlmodel .msgpack .onnx .onnx_data .ot .part .pb .png .pt .pt2 .pth .py .ree "
    ".tflite .txt".split()
)
# what torch, its libraries and transformers take from the environment
_VARIABLES = ("ATEN_", "DNNL_", "HF_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "PYTORCH_", "TORCH", "TRANSFORMERS_")
# what reading files raises, and Python where JSON values are not what the code takes them for
_UNREADABLE = (OSError, ValueError, TypeError, AttributeError, RecursionError)
# lines of /proc/cpuinfo by which torch chooses the kernels that compute a model's tables
_PROCESSOR = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU ", "isa", "uarch")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that loading may read; state: what `stat` said of it before it was hashed."""

    name: str
    path: Path
    state: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of an input, and the key of what is compiled from them."""

    root: Path
    files: tuple[SourceFile, ...]
    content: list[Any]
    key: bytes

    def unchanged(self) -> bool:
        """Whether `stat` still says the same of the same files."""
        try:
            return tuple(_files(self.root)) == self.files
        except OSError:
            return False

    def have_same_content(self) -> bool:
        """Whether the files, and ree's own code, still hold what the key was made of."""
        try:
            return _content(self.root, tuple(_files(self.root))) == self.content
        except OSError:
            return False


def of(source: str | Path, options: Mapping[str, Any]) -> Sources | None:
    """The files of a model folder or a .pt2 file with their key; None if no key can say all that matters.

    options: of the compilation, as JSON values.
    """
    root = Path(source)
    try:
        files = tuple(_files(root))
        if not files or _reads_more(files) or _has_editable_packages():
            return None
        content = _content(root, files)
        environment = _environment()
    except _UNREADABLE:
        return None
    text = json.dumps([VERSION, content, dict(options), environment], sort_keys=True).encode()
    return Sources(root, files, content, blake3(text, derive_key_context="ree v1 program cache").digest())


def _content(root: Path, files: tuple[SourceFile, ...]) -> list[Any]:
    """What is on disk and matters, as JSON values; the name of a .pt2 file says nothing."""
    is_folder = root.is_dir()
    return [is_folder, [[f.name if is_folder else "", _hash_file(f.path)] for f in files], _own_code()]


# -- files --------------------------------------------------------------------------------


def _files(root: Path) -> Iterator[SourceFile]:
    """The files that loading may read, by name; none for what is neither a folder nor a .pt2 file."""
    if root.is_dir():
        paths = sorted(p for p in root.iterdir() if _may_be_read(p))
    else:
        paths = [root] if root.suffix == ".pt2" else []
    for path in paths:
        status = path.stat()
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        yield SourceFile(path.name, path, state)


def _may_be_read(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() not in _NEVER_READ and path.is_file()


def _reads_more(files: tuple[SourceFile, ...]) -> bool:
    """Whether a folder points to files that do not lie in it themselves (adapters, shards elsewhere)."""
    for file in files:
        if file.name == "adapter_config.json":
            return True
        if file.name == "config.json" and "transformers_weights" in _json(file.path):
            return True
        if file.name.endswith(".index.json"):
            shards = _json(file.path).get("weight_map", {}).values()
            if any(Path(shard).name != shard for shard in shards):
                return True
    return False


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _INDEX_BYTES_MAX:
        raise ValueError(f"{path} is too large")
    found = nesting.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object")
    return found


def _hash_file(path: Path) -> str:
    digest: str = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
    return digest


# -- what reads them ------------------------------------------------------------------------


def _own_code() -> str:
    """Digest of all files of ree's packages but byte code."""
    hasher = blake3()
    for package in (ree, ree_kernels):
        root = Path(package.__path__[0])
        for path in sorted(p for p in root.rglob("*") if "__pycache__" not in p.parts and p.is_file()):
            data = path.read_bytes()
            hasher.update(f"{package.__name__}/{path.relative_to(root)}\0{len(data)}\0".encode() + data)
    digest: str = hasher.hexdigest()
    return digest


def _environment() -> dict[str, Any]:
    return {
        "python": [sys.version, platform.machine(), platform.system()],
        "packages": _packages(),
        "processor": _processor(),
        "variables": sorted(item for item in os.environ.items() if item[0].startswith(_VARIABLES)),
    }


def _packages() -> list[str]:
    """Names and versions of all installed distributions, torch and transformers among them."""
    found: set[str] = set()
    for entry in map(Path, sys.path):
        if entry.is_dir():
            found.update(name for name in os.listdir(entry) if name.endswith((".dist-info", ".egg-info")))
    return sorted(found)


def _has_editable_packages() -> bool:
    """Whether a package other than ree runs from a checkout, whose code its version does not tell (PEP 610)."""
    for entry in map(Path, sys.path):
        for record in entry.glob("*.dist-info/direct_url.json") if entry.is_dir() else ():
            if record.parent.name.startswith("ree-"):
                continue  # `_own_code` hashes it
            if _json(record).get("dir_info", {}).get("editable"):
                return True
    return False


def _processor() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            first = itertools.takewhile(str.strip, file)
            return [line for line in first if line.startswith(_PROCESSOR)]
    except OSError:
        return [platform.processor()]
