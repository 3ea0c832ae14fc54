"""What a dispute costs: for every stage of a model a dishonest claim, settled; and the dearest steps of its elements.

For each stage one element of a kept run is changed by one bit and disputed. Besides, steps of every kind of the same
element are proved (as a challenger would who was lied to there), so that the largest message and the most work that a
referee can meet are measured and not only those of one lie.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from typing import Any

import numpy as np
from common import arguments, table, write

MODELS = ("gpt2", "bert", "resnet50")
STEPS_PER_KIND = 2


def steps_to_try(rng: random.Random, cells: Any, count: int) -> list[int]:
    """Cells of each kind of step, some of each; the last step is always among them."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for address in rng.sample(range(count), min(count, 400)):
        step = cells.step(address)
        kinds[step.kind.value + (step.fold.kind if step.fold else "")].append(address)
    return [count, *(a for found in kinds.values() for a in found[:STEPS_PER_KIND])]


def measure_model(name: str, threads: int) -> dict[str, Any]:
    """The dearest dispute over one element of each stage."""
    import ree
    from benchmarks import zoo
    from ree.element.encode import encode
    from ree.referee.judge import Referee
    from ree.referee.players import Position, challenge
    from tests import dishonest

    case = zoo.CASES[name]()
    ree.threads(threads)
    program = ree.compile(case.module, case.inputs)
    _, trace = program.run(*case.inputs, commit=True, keep=True)
    assert trace is not None
    rng = random.Random(20261124)
    worst: dict[str, float] = defaultdict(float)
    cells = []
    for stage, element in dishonest.elements(rng, trace):
        claim = dishonest.lie(trace, stage, dishonest.flip(element), follow=False)
        start = time.perf_counter()
        found = ree.dispute(program, trace, claim)
        worst["settle_s"] = max(worst["settle_s"], time.perf_counter() - start)
        if found.wrong != ("b",) or found.stage != stage:
            raise SystemExit(f"stage {stage} of {name}: {found}")
        verdict = found.claims[1].verdict
        worst["moves"] = max(worst["moves"], verdict.moves)
        worst["compared_nodes"] = max(worst["compared_nodes"], found.compared)
        position = Position(trace, stage, element)
        values = position.evaluate().values
        cells.append(len(values))
        asked = challenge(trace, stage, element)
        response = position.respond(asked, values)
        referee = Referee(program.program_id, program.stages(), trace.root)
        for address in steps_to_try(rng, position.element.cells, len(values)):
            proof = position.prove(response, values, address)
            start = time.perf_counter()
            judged = referee.judge(asked, response, proof)
            if judged.is_wrong:
                raise SystemExit(f"stage {stage} of {name}: an honest step was judged wrong")
            size = len(asked) + len(response) + len(proof) + len(encode(position.stage.program))
            worst["judge_s"] = max(worst["judge_s"], time.perf_counter() - start)
            worst["seen_bytes"] = max(worst["seen_bytes"], size)
            worst["fmas"] = max(worst["fmas"], judged.work.fmas)
            worst["instructions"] = max(worst["instructions"], judged.work.instructions)
    return {"stages": len(program.stages()), "cells_max": int(np.max(cells)), "worst": dict(worst)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*")
    options = parser.parse_args()
    names = options.models or (("mlp",) if options.quick else MODELS)
    models = {name: measure_model(name, options.threads) for name in names}
    keys = ("fmas", "instructions", "seen_bytes", "moves", "compared_nodes", "judge_s", "settle_s")
    rows = [[n, m["stages"], m["cells_max"], *(m["worst"][k] for k in keys)] for n, m in models.items()]
    print(table(["model", "stages", "cells", *keys], rows))
    write("dispute", {"models": models}, options)


if __name__ == "__main__":
    main()
