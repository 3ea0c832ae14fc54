"""`ree bench`: one model, ree beside the peers that are installed, interleaved medians."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ree import measure, peers

if TYPE_CHECKING:
    import numpy as np

    from ree.program import Program


def bench(
    source: str, threads: int, rounds: int, progress: Callable[[str], None], device: str = "cpu"
) -> dict[str, Any]:
    """Medians in ms, time to prepare in s and digests by engine; a .ree file is timed alone.

    device: where ree runs, and, if torch can run there, torch eager beside it; other peers run on the CPU alone. A
    peer that cannot run the model is listed under "failed" with its reason; if ree cannot, that is an error.
    """
    failed: dict[str, str] = {}
    engines = _program_engine(source, threads, device) if Path(source).suffix == ".ree" else {}
    if not engines:
        engines = _model_engines(source, threads, progress, failed, device)
    progress("timing")
    medians = measure.medians_ms(measure.interleaved({n: e.run for n, e in engines.items()}, rounds))
    return {
        "machine": measure.machine(),
        "threads": threads,
        "engines": {
            name: {
                "median_ms": medians[name],
                "prepare_s": round(engine.prepare_s, 3),
                "digest": measure.digest(engine.run()),
            }
            for name, engine in engines.items()
        },
        "failed": failed,
    }


def _model_engines(
    source: str, threads: int, progress: Callable[[str], None], failed: dict[str, str], device: str
) -> dict[str, peers.Engine]:
    from ree import loaders

    loaded = loaders.load(source)
    module = loaded.model if hasattr(loaded.model, "forward") else loaded.model.module()
    engines = {}
    for name in ("ree", *peers.available(device)):
        progress(f"preparing {name}")
        if name == "ree":
            engines[name] = peers.make(name, loaded.model, loaded.example_inputs, threads, device)
            continue
        try:
            engines[name] = peers.make(name, module, loaded.example_inputs, threads, device)
        except Exception as error:  # what a peer raises for a model that it cannot run
            failed[name] = f"{type(error).__name__}: {loaders.first_line(error)}"
    return engines


def _program_engine(source: str, threads: int, device: str) -> dict[str, peers.Engine]:
    import time

    import ree

    ree.threads(threads)
    start = time.perf_counter()
    program = ree.load(source, device)
    inputs = example_inputs(program)
    program.run_flat(inputs)
    return {"ree": peers.Engine("ree", lambda: program.run_flat(inputs), time.perf_counter() - start)}


def example_inputs(program: Program) -> list[np.ndarray]:
    """Normal numbers for floats and zeros for the rest; dynamic dimensions at a small size."""
    import numpy as np

    from ree.graph import bind
    from ree.inspection import binding_of
    from ree.types import DType

    binding = binding_of(program.graph, {})
    graph = bind(program.graph, binding) if binding else program.graph
    random = np.random.default_rng(0)
    arrays = []
    for declared in graph.inputs:
        shape = tuple(int(n) for n in declared.type.shape)  # type: ignore[arg-type]
        dtype = np.dtype(declared.type.dtype.numpy)
        normal = declared.type.dtype.is_float and declared.type.dtype is not DType.BF16
        arrays.append(random.standard_normal(shape).astype(dtype) if normal else np.zeros(shape, dtype))
    return arrays
