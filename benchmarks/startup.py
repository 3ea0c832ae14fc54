"""Start-up: `import ree` in a fresh process, and the time to compile a model, first and from the cache.

A module in memory is traced each time, since its Python code may have changed; from the cache come its kernels. A model
folder is compiled by the command line, and from the cache comes the whole program.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, arguments, table, write

IMPORTS = 15
HITS = 5
TIMEOUT_S = 1200

IMPORT = """
import json, sys, time
start = time.perf_counter()
import ree
print(json.dumps({"seconds": time.perf_counter() - start, "torch": "torch" in sys.modules}))
"""
COMPILE = """
import json, sys, time
import torch
from benchmarks import zoo
import ree
case = zoo.CASES[sys.argv[1]]()
ree.threads(int(sys.argv[2]))
start = time.perf_counter()
program = ree.compile(case.module, case.inputs)
compiled = time.perf_counter() - start
start = time.perf_counter()
program(*case.inputs)
print(json.dumps({"compile_s": compiled, "first_run_s": time.perf_counter() - start}))
"""
# torch.export is the first part of compiling a module; measured alone it says what the rest takes
EXPORT = """
import json, sys, time
import torch
from benchmarks import zoo
case = zoo.CASES[sys.argv[1]]()
start = time.perf_counter()
torch.export.export(case.module, case.inputs)
print(json.dumps({"export_s": time.perf_counter() - start}))
"""
SAVE = """
import sys
import torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(20261122)
sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 1000} if sys.argv[2] == "small" else {}
GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(sys.argv[1])
print("{}")
"""
COMMAND = """
import contextlib, io, json, sys, time
start = time.perf_counter()
from ree import cli
with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
    cli.main(["compile", sys.argv[1], "-o", sys.argv[2], "--json"])
inside = time.perf_counter() - start
print(json.dumps({"inside_s": inside, "cached": json.loads(text.getvalue())["cached"]}))
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*")
    options = parser.parse_args()
    models = options.models or (("mlp",) if options.quick else ("mlp", "minilm", "gpt2"))
    imports = [_run(IMPORT) for _ in range(5 if options.quick else IMPORTS)]
    if any(row["torch"] for row in imports):
        sys.exit("import ree imports torch")
    result: dict[str, object] = {"import_ree_s": round(statistics.median(row["seconds"] for row in imports), 4)}
    rows = {}
    for model in models:
        with tempfile.TemporaryDirectory() as cache:
            count = 2 if options.quick else 1 + HITS
            cold, *cached = [_run(COMPILE, model, str(options.threads), REE_CACHE=cache) for _ in range(count)]
        rows[model] = {"cold": cold, "cached": _medians(cached), "export": _run(EXPORT, model)}
    result["models"] = rows
    folders = {"gpt2-tiny": compile_folder("small")} if options.quick else {"gpt2": compile_folder("full")}
    result["folders"] = folders
    print(f"import ree: {result['import_ree_s']} s\n")
    cells = [
        [m, r["cold"]["compile_s"], r["cached"]["compile_s"], r["export"]["export_s"], r["cached"]["first_run_s"]]
        for m, r in rows.items()
    ]
    print(table(["model", "compile s", "from cache s", "torch.export alone s", "first run s"], cells))
    cells = [
        [name, *(row[when][what] for when in ("cold", "cached") for what in ("inside_s", "process_s"))]
        for name, row in folders.items()
    ]
    header = ["ree compile FOLDER", "inside s", "process s", "from cache, inside s", "from cache, process s"]
    print("\n" + table(header, cells))
    write("startup", result, options)


def compile_folder(size: str) -> dict[str, dict[str, float]]:
    """Seconds of `ree compile` of a GPT-2 folder, cold and (medians) from the cache.

    inside: from the interpreter's first statement on; process: from its start to its exit. Each run writes a new file.
    """
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "model", str(Path(place) / "cache")
        _run(SAVE, str(folder), size)
        runs: list[dict[str, Any]] = []
        for _ in range(1 + HITS):
            start = time.perf_counter()
            run: dict[str, Any] = _run(COMMAND, str(folder), str(Path(place) / "model.ree"), REE_CACHE=cache)
            runs.append({**run, "process_s": time.perf_counter() - start})
            (Path(place) / "model.ree").unlink()
    if [run["cached"] for run in runs] != [False] + [True] * HITS:
        sys.exit("a compilation that should come from the cache did not, or the other way round")
    times = [{what: run[what] for what in ("inside_s", "process_s")} for run in runs]
    return {"cold": times[0], "cached": _medians(times[1:])}


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {what: statistics.median(run[what] for run in runs) for what in runs[0]}


def _run(code: str, *argv: str, **environment: str) -> dict[str, float]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    env = os.environ | {"PYTHONPATH": path} | environment
    command = [sys.executable, "-W", "ignore", "-c", code, *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        sys.exit(f"a fresh process failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
