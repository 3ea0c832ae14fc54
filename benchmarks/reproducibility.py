"""How many distinct outputs each engine gives for one input: instruction sets x threads x batch, for several models.

Each model is exported and compiled once; every combination of engine, model and instruction set is
a fresh process that loads these files (built anew, the weights would differ already: torch's random
numbers depend on the instruction set). What is compared is always the output row of the same input
row, alone and as the first of four.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, arguments, table, write

ENGINES = ("ree", "eager", "inductor", "onnxruntime")
MODELS = ("mlp", "minilm", "resnet50", "llama", "bert", "vit", "gpt2")
THREADS = (1, 2, 3)
BATCHES = (1, 4)
TIMEOUT_S = 3600

# torch's kernels come from ATen, oneDNN and MKL; a level is a processor that has no more than this
LEVELS: dict[str, dict[str, str]] = {
    "portable": {
        "REE_ISA": "portable",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {
        "REE_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "REE_ISA": "avx512",
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
SIMD_BITS = {"portable": 1, "avx2": 256, "avx512": 512}  # of inductor's C++; 1 is scalar


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--engines", nargs="*")
    parser.add_argument("--worker", nargs=3, metavar=("ENGINE", "FOLDER", "LEVEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        engine, folder, level = options.worker
        print(json.dumps(digests(engine, Path(folder), level)))
        return
    engines = options.engines or (("ree", "eager") if options.quick else ENGINES)
    models = options.models or (("mlp",) if options.quick else MODELS)
    matrix = {model: run_model(model, engines) for model in models}
    text = markdown(matrix)
    print(text)
    path = write("reproducibility", {"configurations": matrix, "levels": LEVELS}, options)
    if path is not None:
        folder = options.output or RESULTS
        (folder / "reproducibility.md").write_text(text + "\n", encoding="utf-8")
        plot(matrix, folder / "reproducibility.png")
    if any(len(set(found["ree"].values())) > 1 for found in matrix.values() if "ree" in found):
        sys.exit("ree gave different bits")


def run_model(model: str, engines: Sequence[str]) -> dict[str, dict[str, str]]:
    """Engine -> configuration -> digest."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(model, Path(folder))
        return {engine: run_levels(engine, model, Path(folder)) for engine in engines}


def prepare(model: str, folder: Path) -> None:
    """For each batch size N: N.ree, N.pt2 and N.safetensors (the inputs in order)."""
    import torch
    from safetensors.torch import save_file

    import ree
    from benchmarks import zoo
    from ree import peers

    case = zoo.CASES[model]()
    for batch in BATCHES:
        inputs = zoo.with_batch(case, batch)
        with peers.silence():
            exported = torch.export.export(case.module, inputs)
            torch.export.save(exported, str(folder / f"{batch}.pt2"))
            ree.compile(exported).save(folder / f"{batch}.ree")
        save_file({str(n): tensor for n, tensor in enumerate(inputs)}, str(folder / f"{batch}.safetensors"))


def run_levels(engine: str, model: str, folder: Path) -> dict[str, str]:
    """Configuration "level, threads, batch" -> digest. onnxruntime has no switch for its instruction set."""
    found: dict[str, str] = {}
    for level in _levels(engine):
        env = os.environ | LEVELS[level]
        command = [sys.executable, "-W", "ignore", __file__, "--worker", engine, str(folder), level]
        done = subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{engine} on {model} at {level} failed:\n{done.stderr}")
        found |= json.loads(done.stdout.splitlines()[-1])
        print(f"{model}, {engine}, {level}: {len(set(found.values()))} distinct so far", file=sys.stderr, flush=True)
    return found


def _levels(engine: str) -> tuple[str, ...]:
    import ree_kernels.cpu as cpu

    here = tuple(level for level in LEVELS if level in cpu.supported())
    return here[-1:] if engine == "onnxruntime" else here


def digests(engine: str, folder: Path, level: str) -> dict[str, str]:
    """Digests of the first row's output for all thread counts and batch sizes, in this process."""
    from ree import measure, peers

    if engine == "inductor":
        import torch._inductor.config as inductor_config

        inductor_config.cpp.simdlen = SIMD_BITS[level]
    found = {}
    for batch in BATCHES:
        for threads in THREADS:
            with peers.silence():
                rows = [array[:1] for array in _outputs(engine, folder, batch, threads)]
            found[f"{level}, {threads} threads, batch {batch}"] = measure.digest(rows)
    return found


def _outputs(engine: str, folder: Path, batch: int, threads: int) -> list[Any]:
    from safetensors.torch import load_file

    tensors = load_file(str(folder / f"{batch}.safetensors"))
    inputs = [tensors[str(n)] for n in range(len(tensors))]
    if engine == "ree":
        import ree

        ree.threads(threads)
        program = ree.load(folder / f"{batch}.ree")
        return program.run_flat([tensor.numpy() for tensor in inputs])
    import torch

    from ree import peers

    exported = torch.export.load(str(folder / f"{batch}.pt2"))
    return peers.make(engine, exported.module(), inputs, threads).run()


def counts(matrix: dict[str, dict[str, dict[str, str]]]) -> dict[str, dict[str, tuple[int, int]]]:
    """model -> engine -> (distinct outputs, configurations)."""
    return {m: {e: (len(set(f.values())), len(f)) for e, f in engines.items()} for m, engines in matrix.items()}


def markdown(matrix: dict[str, Any]) -> str:
    """Distinct outputs / configurations, one row for each model."""
    found = counts(matrix)
    engines = list(next(iter(found.values())))
    rows = [[model, *(f"{row[e][0]} / {row[e][1]}" for e in engines)] for model, row in found.items()]
    return table(["distinct outputs / configurations", *engines], rows)


def plot(matrix: dict[str, Any], path: Path) -> None:
    """Bars: distinct outputs of each engine, by model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = counts(matrix)
    engines = list(next(iter(found.values())))
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / len(engines)
    for position, engine in enumerate(engines):
        places = [model + (position - (len(engines) - 1) / 2) * width for model in range(len(found))]
        bars = axes.bar(places, [row[engine][0] for row in found.values()], width, label=engine)
        axes.bar_label(bars, [f"{row[engine][0]}/{row[engine][1]}" for row in found.values()], fontsize=7)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("distinct outputs")
    axes.set_title("One input, many configurations: how many different answers (1 is reproducible)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, ncols=len(engines), fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
