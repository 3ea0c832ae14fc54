"""Time of whole models: ree, torch eager, torch.compile, onnxruntime; error of ree and torch against float64.

Interleaved runs in one process, medians. `--skip ree` times the peers alone.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import arguments, table, write

ROUNDS = 10
ROUNDS_QUICK = 3


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*", help="names from benchmarks/zoo.py")
    parser.add_argument("--skip", nargs="*", default=[], help="engines to leave out")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()

    from benchmarks import zoo

    names = options.models or (zoo.QUICK if options.quick else tuple(zoo.CASES))
    models = {}
    for name in names:
        models[name] = measure_model(name, options)
        print(_line(name, models[name]), flush=True)
    result = {"models": models, "summary": summary(models)}
    print("\n" + markdown(result))
    write("models", result, options)


def measure_model(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times in ms, preparation in s, and error against float64 of one model of the zoo."""
    from benchmarks import zoo
    from ree import measure, peers

    case = zoo.CASES[name]()
    wanted = [e for e in ("ree", *peers.available()) if e not in options.skip]
    engines = {e: peers.make(e, case.module, case.inputs, options.threads) for e in wanted}
    rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    times = measure.interleaved({e: engine.run for e, engine in engines.items()}, rounds)
    exact = measure.float64_outputs(case.module, case.inputs)
    return {
        "time_ms": measure.medians_ms(times),
        "fastest_ms": {e: round(min(values) * 1e3, 3) for e, values in times.items()},
        "prepare_s": {e: round(engine.prepare_s, 2) for e, engine in engines.items()},
        "error": {e: measure.relative_error(engine.run(), exact) for e, engine in engines.items()},
        "digest": {e: measure.digest(engine.run()) for e, engine in engines.items()},
    }


def summary(models: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Geometric means of the ratios: time to eager, time to the fastest peer, error to eager."""
    from ree.measure import geometric_mean

    if not all({"ree", "eager"} <= model["time_ms"].keys() for model in models.values()):
        return {}
    times = [model["time_ms"] for model in models.values()]
    errors = [model["error"] for model in models.values()]
    best = [min(value for engine, value in t.items() if engine != "ree") for t in times]
    to_eager = [t["ree"] / t["eager"] for t in times]
    return {
        "time_to_eager": geometric_mean(to_eager),
        "time_to_eager_worst": max(to_eager),
        "time_to_fastest_peer": geometric_mean([t["ree"] / b for t, b in zip(times, best, strict=True)]),
        "error_to_eager": geometric_mean([e["ree"] / e["eager"] for e in errors]),
        "error_to_eager_worst": max(e["ree"] / e["eager"] for e in errors),
    }


def markdown(result: dict[str, Any]) -> str:
    """One row for each model, times in ms."""
    engines = list(next(iter(result["models"].values()))["time_ms"])
    peers = [e for e in engines if e != "ree"]
    header = ["model", *(f"{e} ms" for e in engines)]
    both = "ree" in engines and "eager" in engines
    if both:
        header += ["ree / eager", "ree / fastest peer", "error ree / eager"]
    rows = []
    for name, model in result["models"].items():
        time_ms = model["time_ms"]
        row: list[object] = [name, *(time_ms[e] for e in engines)]
        if both:
            row += [time_ms["ree"] / time_ms["eager"], time_ms["ree"] / min(time_ms[e] for e in peers)]
            row.append(model["error"]["ree"] / model["error"]["eager"])
        rows.append(row)
    if both:
        s = result["summary"]
        blanks = [None] * len(engines)
        rows.append(["geometric mean", *blanks, s["time_to_eager"], s["time_to_fastest_peer"], s["error_to_eager"]])
    return table(header, rows)


def _line(name: str, model: dict[str, Any]) -> str:
    times = "  ".join(f"{engine} {value:.1f} ms" for engine, value in model["time_ms"].items())
    errors = "  ".join(f"{engine} {value:.2e}" for engine, value in model["error"].items())
    return f"{name}: {times}; error {errors}"


if __name__ == "__main__":
    main()
