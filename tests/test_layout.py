"""The shape of the code: who imports whom, what `import ree` loads, and the house style."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ree", "ree_kernels")
ALLOWED = {"ree": {"ree", "ree_kernels"}, "ree_kernels": {"ree_kernels"}}
OURS = {"ree", "ree_kernels", "axl", "chain", "market", "benchmarks", "tests"}
HEAVY = ("torch", "llvmlite", "transformers", "typer", "numpy", "onnxruntime")

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 700
LINE_CHARACTERS_MAX = 120
BANNED = re.compile(r"\b(TODO|FIXME|XXX|HACK|pickle\.loads?|NotImplemented(Error)?\(\))\b")


def python_files(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py") if "__pycache__" not in p.parts)


def source_files() -> list[Path]:
    folders = (ROOT / "ree_kernels" / "c", ROOT / "ree_kernels" / "cuda", ROOT / "tools" / "emulator")
    kernels = [p for folder in folders for p in folder.iterdir() if p.suffix in (".c", ".h", ".cu", ".cuh", ".cc")]
    return [*python_files("ree", "ree_kernels", "benchmarks", "tests", "tools"), *sorted(kernels)]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module, top_level_only: bool) -> Iterator[str]:
    """Names of modules that a file imports; with `top_level_only`, those that its own import runs."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                yield child.module
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif top_level_only and (
                isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(child)
            ):
                continue
            else:
                yield from visit(child)

    return visit(tree)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below(package: str) -> None:
    wrong = [
        f"{module_name(path)} imports {name}"
        for path in python_files(package)
        for name in imported(parse(path), top_level_only=False)
        if name.split(".")[0] in OURS - ALLOWED[package]
    ]
    assert not wrong


def test_modules_import_without_cycles() -> None:
    """Imports that run when a module is imported; those inside functions come later."""
    modules = {module_name(p): p for p in python_files(*PACKAGES)}
    edges = {
        name: {i for i in imported(parse(path), top_level_only=True) if i in modules and i != name}
        for name, path in modules.items()
    }
    assert find_cycle(edges) is None


# What each module of the language of element programs may import at its own import.
ELEMENT_PROGRAM_FLOORS = {
    "grammar": {"ree.types"},
    "check": {"ree.types", "ree.errors", "ree.element.grammar"},
    "builder": {"ree.types", "ree.errors", "ree.limits", "ree.element.grammar", "ree.element.check"},
}


@pytest.mark.parametrize("name", ELEMENT_PROGRAM_FLOORS)
def test_element_programs_stand_on_their_grammar(name: str) -> None:
    ours = {module_name(p) for p in python_files("ree")}
    tree = parse(ROOT / "ree" / "element" / f"{name}.py")
    found = {i for i in imported(tree, top_level_only=False) if i in ours}
    assert found <= ELEMENT_PROGRAM_FLOORS[name]


def test_the_language_of_element_programs_is_imported_from_one_place() -> None:
    from ree.element import program

    for name in ELEMENT_PROGRAM_FLOORS:
        tree = parse(ROOT / "ree" / "element" / f"{name}.py")
        defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        public = {d for d in defined if not d.startswith("_")}
        assert public <= set(program.__all__)


def find_cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """A cycle of the graph, or None (depth-first)."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for target in sorted(edges[name]):
            found = visit(target, [*path, name])
            if found:
                return found
        done.add(name)
        return None

    return next((cycle for name in sorted(edges) if (cycle := visit(name, []))), None)


def test_find_cycle() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a statement loads in a fresh process."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_ree_is_light() -> None:
    assert loaded_by("import ree") == set()


def test_loading_needs_no_torch() -> None:
    assert "torch" not in loaded_by("import ree; ree.load")


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_style(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert list(style_faults(text, path.suffix == ".py", is_self=path == Path(__file__))) == []


def style_faults(text: str, is_python: bool, is_self: bool = False) -> Iterator[str]:
    """What breaks the house style, with line numbers."""
    lines = text.splitlines()
    if len(lines) > FILE_LINES_MAX:
        yield f"{len(lines)} lines, more than {FILE_LINES_MAX}"
    for number, line in enumerate(lines, start=1):
        if not is_python and len(line) > LINE_CHARACTERS_MAX:  # ruff holds Python to it
            yield f"line {number} has {len(line)} characters"
        if BANNED.search(line) and not is_self:
            yield f"line {number}: {BANNED.search(line)}"
        if line != line.rstrip() or "\t" in line:
            yield f"line {number}: white space"
    if is_python:
        yield from function_faults(ast.parse(text))


def function_faults(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"line {node.lineno}: {node.name} has {length} lines, more than {FUNCTION_LINES_MAX}"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"


def test_style_faults_are_found() -> None:
    assert list(style_faults("x = 1  \n", True)) == ["line 1: white space"]
    assert len(list(style_faults("# TO" + "DO later\n", True))) == 1
    assert len(list(style_faults("int x = " + "1" * 130 + ";\n", False))) == 1
    assert len(list(style_faults("def f():\n" + "    x = 1\n" * 80, True))) == 1
    assert len(list(style_faults("try:\n    x = 1\nexcept:\n    pass\n", True))) == 1


@pytest.mark.parametrize("path", python_files("ree", "ree_kernels"), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    if path.read_text(encoding="utf-8").strip():
        assert ast.get_docstring(parse(path)), "no module docstring"
