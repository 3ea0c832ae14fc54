"""Peak memory of a fresh process: one that loads a .ree file and runs, one that loads the model in torch and runs.

The torch process reads a Hugging Face folder (safetensors) and runs eager. Peak is VmHWM of
the process, the interpreter and all libraries included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, arguments, table, write

MODELS = ("gpt2", "llama", "bert", "vit", "resnet50")
RUNS = 3
TIMEOUT_S = 1200


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*", choices=MODELS, help="models that transformers can save and load")
    parser.add_argument("--worker", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(peak(options.worker[0], Path(options.worker[1]), options.threads)))
        return
    if options.prepare:
        prepare(options.prepare[0], Path(options.prepare[1]))
        return
    models = options.models or (("llama",) if options.quick else MODELS)
    rows = {model: measure_model(model, options) for model in models}
    columns = ("ree_mib", "torch_mib", "weights_mib")
    cells = [[model, *(row[c] for c in columns), row["ree_mib"] / row["torch_mib"]] for model, row in rows.items()]
    print(table(["model", "ree MiB", "torch MiB", "weights MiB", "ree / torch"], cells))
    write("memory", {"models": rows}, options)


def measure_model(model: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak MiB of both processes for one model."""
    with tempfile.TemporaryDirectory() as folder:
        _self("--prepare", model, folder)
        found = {f"{e}_mib": _self("--threads", str(options.threads), "--worker", e, folder) for e in ("ree", "torch")}
        weights = (Path(folder) / "hf" / "model.safetensors").stat().st_size
    return {**found, "weights_mib": round(weights / 2**20, 1)}


def _self(*arguments: str) -> Any:
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None


def prepare(model: str, folder: Path) -> None:
    """Write the model as a Hugging Face folder and as a .ree file, and its inputs."""
    import numpy as np

    import ree
    from benchmarks import zoo

    case = zoo.CASES[model]()
    case.module.model.save_pretrained(folder / "hf")
    for position, tensor in enumerate(case.inputs):
        np.save(folder / f"input{position}.npy", tensor.numpy())
    ree.compile(case.module, case.inputs).save(folder / "model.ree")


def peak(engine: str, folder: Path, threads: int) -> float:
    """Peak MiB of this process after loading the model and running it."""
    import numpy as np

    inputs = [np.load(path) for path in sorted(folder.glob("input*.npy"))]
    if engine == "ree":
        import ree

        ree.threads(threads)
        program = ree.load(folder / "model.ree")
        for _ in range(RUNS):
            program.run_flat(inputs)
    else:
        import torch

        from ree import loaders

        torch.set_num_threads(threads)
        module = loaders.load_folder(folder / "hf").model
        with torch.inference_mode():
            for _ in range(RUNS):
                module(*(torch.from_numpy(array) for array in inputs))
    return round(_high_water_mark_kib() / 1024, 1)


def _high_water_mark_kib() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise OSError("the kernel tells no VmHWM")


if __name__ == "__main__":
    main()
