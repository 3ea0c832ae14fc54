"""The demonstration: a trained model under every instruction set, thread count and batch size; then, who catches a lie;
then, the same of a language model's text.

Every instruction set and thread count is a fresh process (`ree.demo_worker`) that embeds the
same sentences; a digest is over the embeddings of all sentences, so runs with
batches of 1 and of 8 compare. torch runs the same exported model under its own instruction sets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ree import demo_checks, demo_generation
from ree.demo_checks import Line
from ree.errors import Error

if TYPE_CHECKING:
    from rich.console import Console

SENTENCES = 8
LENGTH = 16  # tokens
THREADS = (1, 2)
BATCHES = (1, 8)
CAPABILITIES = ("default", "avx2", "avx512")
PROCESS_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration: time for all sentences in ms, error against float64, digest."""

    engine: str
    instructions: str
    threads: int
    batch: int
    time_ms: float
    error: float
    digest: str


@dataclass(frozen=True, slots=True)
class Result:
    rows: list[Row]
    compile_s: float
    machine: dict[str, Any]
    checks: list[Line]
    generation: list[Line]

    def digests(self, engine: str) -> set[str]:
        return {row.digest for row in self.rows if row.engine == engine}

    @property
    def reproduces(self) -> bool:
        return len(self.digests("ree")) == 1

    @property
    def failures(self) -> list[str]:
        """What is not as ree promises."""
        found = demo_checks.failures([*self.checks, *self.generation])
        return found if self.reproduces else ["ree's runs gave different bits", *found]

    def to_json(self) -> dict[str, Any]:
        digests = {engine: sorted(self.digests(engine)) for engine in ("ree", "torch")}
        return {
            "machine": self.machine,
            "compile_s": self.compile_s,
            "digests": digests,
            "rows": [asdict(row) for row in self.rows],
            "checks": [asdict(line) for line in self.checks],
            "generation": [asdict(line) for line in self.generation],
        }


def demo(progress: Callable[[str], None] = lambda _: None) -> Result:
    """Compile MiniLM once, run it in fresh processes under every configuration, and hold every check to a lie."""
    import numpy as np

    import ree_kernels.cpu as cpu
    from ree import measure

    with tempfile.TemporaryDirectory(prefix="ree-demo-") as name:
        folder = Path(name)
        progress("compiling all-MiniLM-L6-v2")
        compile_s = prepare(folder)
        settings = [("ree", isa) for isa in cpu.supported()] + [("torch", c) for c in _capabilities()]
        rows = []
        for engine, instructions in settings:
            for threads in THREADS:
                progress(f"{engine}, {instructions}, {threads} threads")
                rows += _run(folder, engine, instructions, threads)
        exact = np.load(folder / "exact.npy", allow_pickle=False)
        rows = [_with_error(row, folder, exact) for row in rows]
        checks = demo_checks.checks(folder, progress)
        generation = demo_generation.checks(folder, progress)
    return Result(rows, compile_s, measure.machine(), checks, generation)


def prepare(folder: Path) -> float:
    """Write model.ree, model.pt2, the inputs and the float64 result; gives the seconds that compiling took."""
    import numpy as np
    import torch

    import ree
    from ree import measure, sentences

    model = sentences.load_minilm()
    inputs = sentences.tokenize(sentences.SENTENCES[:SENTENCES], LENGTH)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({0: batch}, {0: batch})
    start = time.perf_counter()
    ree.compile(model, inputs, dynamic_shapes=shapes).save(folder / "model.ree")
    compile_s = time.perf_counter() - start
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), str(folder / "model.pt2"))
    for tensor, name in zip(inputs, ("input_ids", "attention_mask"), strict=True):
        np.save(folder / f"{name}.npy", tensor.numpy())
    np.save(folder / "exact.npy", measure.float64_outputs(model, inputs)[0])
    return compile_s


def _capabilities() -> Sequence[str]:
    """torch's names of the instruction sets that this processor has."""
    import torch

    best = torch.backends.cpu.get_cpu_capability().lower()
    order = {name: position for position, name in enumerate(CAPABILITIES)}
    return CAPABILITIES[: order.get(best, 0) + 1]


def _run(folder: Path, engine: str, instructions: str, threads: int) -> list[Row]:
    """A fresh process, one row for each batch size; its embeddings stay in the folder."""
    request = {"engine": engine, "threads": threads, "batches": BATCHES, "folder": str(folder)}
    request["output"] = str(folder / f"{engine}-{instructions}-{threads}")
    replies = run_worker(request, {"REE_ISA" if engine == "ree" else "ATEN_CPU_CAPABILITY": instructions})
    return [
        Row(engine, instructions, threads, batch, reply["time_ms"], 0.0, reply["digest"])
        for batch, reply in zip(BATCHES, replies, strict=True)
    ]


def run_worker(request: dict[str, Any], environment: dict[str, str]) -> list[dict[str, Any]]:
    """What `ree.demo_worker` answers in a fresh process with these environment variables."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    env = os.environ | {"PYTHONPATH": path} | environment
    command = [sys.executable, "-W", "ignore", "-m", "ree.demo_worker", json.dumps(request)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S, check=False)
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Error(f"the run of {request['engine']} with {environment} failed: {tail[0]}")
    return list(json.loads(done.stdout))


def _with_error(row: Row, folder: Path, exact: Any) -> Row:
    import numpy as np

    from ree.measure import relative_error

    found = np.load(folder / f"{row.engine}-{row.instructions}-{row.threads}-{row.batch}.npy", allow_pickle=False)
    return Row(**(asdict(row) | {"error": relative_error([found], [exact])}))


def show(result: Result, console: Console) -> None:
    """The table and the sentence below it."""
    from rich.table import Table

    title = f"all-MiniLM-L6-v2, {SENTENCES} sentences, compiled in {result.compile_s:.1f} s"
    table = Table("engine", "instructions", "threads", "batch", "ms", "error to float64", "digest", title=title)
    previous = ""
    for row in result.rows:
        if previous and row.engine != previous:
            table.add_section()
        previous = row.engine
        cells = (row.instructions, str(row.threads), str(row.batch), f"{row.time_ms:.1f}", f"{row.error:.2e}")
        table.add_row(row.engine, *cells, row.digest)
    console.print(table, markup=False)
    console.print(conclusion(result), markup=False, highlight=False, soft_wrap=True)
    demo_checks.show(result.checks, console)
    demo_generation.show(result.generation, console)


def conclusion(result: Result) -> str:
    """What the table says, for a reader who has not met the problem before."""
    ours = [row for row in result.rows if row.engine == "ree"]
    theirs = [row for row in result.rows if row.engine == "torch"]
    found, others = len(result.digests("ree")), len(result.digests("torch"))
    first = f"The same model read the same sentences {len(ours)} times with ree"
    second = f"torch gave {others} different answers in {len(theirs)} runs"
    if found == 1:
        return (
            f"{first}, on other instructions, threads and batches, and gave the same answer to the last bit each "
            f"time; {second}. So with ree, anyone can run the program again on another computer and check a result "
            "by comparing two short digests."
        )
    return f"{first} and gave {found} different answers: this is a defect of ree; {second}."
