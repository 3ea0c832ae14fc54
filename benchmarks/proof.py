"""What a spot-check proof costs: its size, making it, and checking it beside a run of the model.

The check is timed cold (the program is parsed out of the proof, its stages made) and warm (a checker who knows the
program), and in parts: reading and drawing, verifying the openings, computing the samples.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import arguments, table, write

MODELS = ("gpt2", "bert", "resnet50")
SAMPLES = (44, 459, 1375)
ROUNDS, ROUNDS_QUICK = 9, 2


def median_ms(run: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e3


def parts_ms(proof: bytes, program: Any, rounds: int) -> dict[str, float]:
    """Medians of the parts of a warm check."""
    from ree.commit.stages import Source
    from ree.spot.check import _manifest, _size_of
    from ree.spot.draw import draw
    from ree.spot.format import open_proof, read_openings
    from ree.spot.openings import Served, size_of
    from ree.spot.samples import compare

    def read() -> Any:
        head, reader = open_proof(proof)
        manifest = _manifest(head, program)
        samples = draw(manifest.stages, manifest.root, head.samples, head.seed)
        return manifest.stages, samples, read_openings(reader, lambda s: _size_of(manifest.stages, program, s))

    stages, samples, openings = read()

    def served(source: Source) -> Served:
        return Served(stages.type_of(source)[0], openings[source], "")

    return {
        "read": median_ms(read, rounds),
        "openings": median_ms(lambda: [o.root(size_of(stages, s)[1]) for s, o in openings.items()], rounds),
        "samples": median_ms(lambda: compare(stages, samples, served), rounds),
    }


def measure_model(name: str, counts: tuple[int, ...], rounds: int, threads: int) -> dict[str, Any]:
    """Sizes in bytes and medians in ms of proofs with so many samples."""
    import ree
    from benchmarks import zoo
    from ree.commit.keys import generate

    case = zoo.CASES[name]()
    ree.threads(threads)
    program = ree.compile(case.module, case.inputs)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "key.pem")
        signer = ree.Signer.load(Path(folder) / "key.pem")
    _, trace = program.run(*case.inputs, commit=True, keep=True)
    assert trace is not None
    receipt = trace.receipt(signer)
    run_ms = median_ms(lambda: program(*case.inputs), rounds)
    result: dict[str, Any] = {"run_ms": run_ms, "description_bytes": len(program.description), "samples": {}}
    for count in counts:
        proof = trace.prove(count)
        found = ree.check(proof, receipt)
        warm = median_ms(lambda proof=proof: ree.check(proof, receipt, program), rounds)  # type: ignore[misc]
        result["samples"][count] = {
            "bytes": len(proof),
            "prove_ms": median_ms(lambda count=count: trace.prove(count), 3),  # type: ignore[misc]
            "check_ms": warm,
            "check_cold_ms": median_ms(lambda proof=proof: ree.check(proof, receipt), 3),  # type: ignore[misc]
            "parts_ms": parts_ms(proof, program, rounds),
            "check_to_run": warm / run_ms,
            "work_share": found.work_share,
            "found_fraction_99": found.found_fraction,
        }
    return result


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*")
    options = parser.parse_args()
    names = options.models or (("mlp",) if options.quick else MODELS)
    counts, rounds = (SAMPLES[:1], ROUNDS_QUICK) if options.quick else (SAMPLES, ROUNDS)
    models = {name: measure_model(name, counts, rounds, options.threads) for name in names}
    head = ["model, samples", "run ms", "MiB", "prove ms", "check ms", "cold ms", "check / run", "work share"]
    keys = ("prove_ms", "check_ms", "check_cold_ms", "check_to_run", "work_share")
    rows = [
        [f"{name}, {count}", m["run_ms"], s["bytes"] / 2**20, *(s[key] for key in keys)]
        for name, m in models.items()
        for count, s in m["samples"].items()
    ]
    print(table(head, rows))
    write("proof", {"models": models}, options)


if __name__ == "__main__":
    main()
