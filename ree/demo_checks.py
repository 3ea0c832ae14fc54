"""The second part of the demonstration: a receipt, verified elsewhere, and four ways to cheat, each caught.

A provider runs the model and signs what came out. A verifier runs it again in other processes, under every other
instruction set. Then the provider cheats and signs that: with one bit of a weight, of an activation in the middle of
the model, of the output; with a cheaper model. Who notices, and at what cost?
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ree.errors import Error, VerificationError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from ree.commit.keys import Signer
    from ree.commit.trace import Trace
    from ree.program import Program

SAMPLES = 459
TIMEOUT_S = 300
MANTISSA_TOP = 22  # of the bits of a float32: half of its value, or less


@dataclass(frozen=True, slots=True)
class Line:
    """One check of one claim: what was altered, who checks, whether he objects, what he says, what it cost."""

    claim: str
    check: str
    objects: bool
    says: str
    time_ms: float
    bytes: int
    work: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What the parties have: the model's file, the input's file, a folder for receipts, the provider's key."""

    folder: Path
    model: Path
    inputs: Path
    signer: Signer

    def receipt(self, name: str, trace: Trace) -> Path:
        """The receipt of a claim, signed and written."""
        path = self.folder / f"{name}.json"
        path.write_bytes(trace.receipt(self.signer))
        return path


def checks(folder: Path, progress: Callable[[str], None] = lambda _: None) -> list[Line]:
    """Run all checks on `model.ree` and the inputs that `ree.demo.prepare` left in a folder."""
    import ree
    import ree_kernels.cpu as cpu
    from ree.commit.keys import Signer, generate

    progress("a receipt")
    generate(folder / "provider.pem")
    program = ree.load(folder / "model.ree")
    given = _inputs(folder, program)
    setting = Setting(folder, folder / "model.ree", folder / "x.safetensors", Signer.load(folder / "provider.pem"))
    _, trace = program.run_committed(given, keep=True)
    lines = []
    for name, claim in _claims(program, trace, given):
        receipt = setting.receipt(name.replace(" ", "-"), claim)
        others = cpu.supported()[:-1] or cpu.supported()
        for isa in others if name == HONEST else others[-1:]:
            progress(f"{name}: verified with {isa}")
            lines.append(_verify(setting, name, receipt, isa))
        progress(f"{name}: spot check")
        lines.append(_spot_check(name, claim, receipt))
        progress(f"{name}: dispute")
        lines.append(_dispute(name, program, trace, claim))
    return lines


HONEST = "nothing"


def _inputs(folder: Path, program: Program) -> list[np.ndarray]:
    """The input's tensors, written as a file for `ree verify`."""
    import numpy as np

    from ree import tensors

    arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in program.input_names}
    types = {i.name: i.type.dtype for i in program.graph.inputs}
    tensors.write(folder / "x.safetensors", {name: (array, types[name]) for name, array in arrays.items()})
    return [arrays[name] for name in program.input_names]


def _claims(program: Program, trace: Trace, given: list[np.ndarray]) -> list[tuple[str, Trace]]:
    """What the provider signs: the truth; one bit of a weight, an activation, the output; a cheaper model's run."""
    from ree import tampering
    from ree.commit.stages import Kind
    from ree.spot.draw import works

    stages = trace.manifest.stages
    work = works(stages)
    heaviest = max(range(len(stages)), key=lambda n: work[n])
    (weight, *_) = (p.source.number for p in stages[heaviest].ports if p.source.kind is Kind.CONSTANT)
    last, middle = len(stages) - 1, len(stages) // 2

    def run(change: Callable[[int, np.ndarray], np.ndarray]) -> Trace:
        """Of the program with other weights, under the name of this one."""
        _, other = with_weights(program, change).run_committed(given, keep=True)
        return tampering.with_results(trace, list(other.tensors.values()))

    return [
        (HONEST, trace),
        ("a weight", run(lambda n, array: flipped(array) if n == weight else array)),
        ("an activation", tampering.lie(trace, middle, tampering.flip(0))),
        ("the output", tampering.lie(trace, last, tampering.flip(0))),
        ("all weights, to bf16", run(lambda _, array: _rounded(array))),
    ]


def with_weights(program: Program, change: Callable[[int, np.ndarray], np.ndarray]) -> Program:
    """The program with other constants; change: gives each by its number and what it was."""
    from ree.program import Program

    constants = [replace(c, data=change(n, c.array())) for n, c in enumerate(program.graph.constants)]
    return Program(replace(program.graph, constants=constants), program.input_structure, program.output_structure)


def flipped(array: np.ndarray) -> np.ndarray:
    """A copy with one bit of one element flipped."""
    from ree.tampering import flip

    changed = array.copy()
    flip(changed.size // 2, MANTISSA_TOP)(changed)
    return changed


def _rounded(array: np.ndarray) -> np.ndarray:
    """A float32 array with the upper half of each element's bits alone, as a cheaper model would have them."""
    import numpy as np

    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) if array.dtype == np.float32 else array


def _verify(setting: Setting, name: str, receipt: Path, isa: str) -> Line:
    """`ree verify` of a run in a fresh process under another instruction set."""
    options = [str(setting.model), "--input", str(setting.inputs), "--key", setting.signer.public.id]
    return verify_elsewhere(name, "run again", "the same trace", receipt, options, isa)


def verify_elsewhere(name: str, check: str, good: str, receipt: Path, options: Sequence[str], isa: str) -> Line:
    """`ree verify RECEIPT OPTIONS` in a fresh process under another instruction set; good: what it says if it holds."""
    command = [sys.executable, "-W", "ignore", "-m", "ree.cli", "verify", str(receipt), *options]
    start = time.perf_counter()
    done = subprocess.run(
        command,
        env=os.environ | {"REE_ISA": isa, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    time_ms = (time.perf_counter() - start) * 1e3
    if done.returncode not in (0, 1):
        raise Error(f"ree verify failed: {done.stderr.strip()}")
    says = good if done.returncode == 0 else short(done.stderr)
    return Line(name, f"{check}, {isa}", done.returncode == 1, says, time_ms, receipt.stat().st_size, "all of it")


def _spot_check(name: str, claim: Trace, receipt: Path) -> Line:
    """A proof of some samples that the provider makes as well as he can, and its check without weights or run."""
    import ree

    envelope = receipt.read_bytes()
    proof = claim.prove(SAMPLES)
    start = time.perf_counter()
    try:
        found = ree.check(proof, envelope)
        objects, says = False, f"{found.samples} elements follow from what they read"
    except VerificationError as error:
        objects, says = True, short(str(error))
    time_ms = (time.perf_counter() - start) * 1e3
    return Line(name, "spot check", objects, says, time_ms, len(proof), f"{SAMPLES} elements")


def _dispute(name: str, program: Program, trace: Trace, claim: Trace) -> Line:
    """The claim against that of an honest run: three moves, and a referee who redoes one step."""
    import ree

    start = time.perf_counter()
    found = ree.dispute(program, claim, trace)
    time_ms = (time.perf_counter() - start) * 1e3
    if found.stage is None:
        return Line(name, "dispute", False, "both claims agree in every result", time_ms, 0, "none")
    verdict = found.claims[0].verdict
    work = verdict.judgement.work if verdict.judgement else None
    says = f"stage {found.stage}, element {list(found.element or ())}: {verdict.reason}"
    done = f"{work.fmas} FMAs, {work.instructions} others" if work else "none"
    return Line(name, "dispute", found.wrong == ("a",), says, time_ms, verdict.seen_bytes + found.program_bytes, done)


def short(text: str) -> str:
    """The first clause of an error, with long digests cut."""
    words = [word[:8] + "..." if len(word.strip(",")) == 64 else word for word in text.strip().splitlines()[-1].split()]
    return " ".join(words).removeprefix("ree: ")


def failures(lines: list[Line]) -> list[str]:
    """What is not as it should be: an honest claim that somebody objects to, or a lie that is not caught."""
    found = [
        f"{line.check} objects to an honest claim: {line.says}"
        for line in lines
        if line.claim == HONEST and line.objects
    ]
    for line in lines:
        if line.claim != HONEST and line.check != "spot check" and not line.objects:
            found.append(f"{line.check} does not notice that {line.claim} was altered")
    return found


def show(lines: list[Line], console: Console) -> None:
    """The table and what it means."""
    from rich.table import Table

    table = Table(
        "altered",
        "check",
        "verdict",
        "says",
        "ms",
        "bytes seen",
        "arithmetic",
        title="One bit altered (and a cheaper model), and who notices",
    )
    previous = ""
    for line in lines:
        if previous and line.claim != previous:
            table.add_section()
        verdict = "refused" if line.objects else "holds" if line.claim == HONEST else "not drawn"
        first = line.claim if line.claim != previous else ""
        table.add_row(first, line.check, verdict, line.says, f"{line.time_ms:.0f}", f"{line.bytes:,}", line.work)
        previous = line.claim
    console.print(table, markup=False)
    text = (
        "A run anywhere finds every lie, and so does a dispute, in which the referee looks at a few kilobytes. A spot "
        f"check of {SAMPLES} elements finds what is wrong in 1 % of the work with 99 % probability, and a single wrong "
        "element hardly ever."
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)
