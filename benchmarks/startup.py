"""Start-up: `import ree` in a fresh process, and the time to compile a model, first and from the cache."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile

from common import ROOT, arguments, table, write

IMPORTS = 15
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
            cold, cached = (_run(COMPILE, model, REE_CACHE=cache) for _ in range(2))
        rows[model] = {"cold": cold, "cached": cached, "export": _run(EXPORT, model)}
    result["models"] = rows
    print(f"import ree: {result['import_ree_s']} s\n")
    cells = [
        [m, r["cold"]["compile_s"], r["cached"]["compile_s"], r["export"]["export_s"], r["cached"]["first_run_s"]]
        for m, r in rows.items()
    ]
    print(table(["model", "compile s", "from cache s", "torch.export alone s", "first run s"], cells))
    write("startup", result, options)


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
