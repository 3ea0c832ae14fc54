"""Disputes played to the end on one machine: which of two claims is wrong, or whether one contradicts itself.

Two claims about one run are compared by descending their traces' trees to the first stage that differs; up to there
they agree, so at least one of them does not follow from what both read. A game about one element then shows which.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ree.commit import merkle
from ree.commit.local import first_difference, inconsistencies
from ree.commit.stages import Source
from ree.commit.trace import Trace
from ree.element.encode import encode as encode_program
from ree.errors import GraphError, InputError, RunError, VerificationError
from ree.referee.cells import encode
from ree.referee.game import Game, Party, Rules, Verdict, replay
from ree.referee.judge import Referee
from ree.referee.players import Position, challenge
from ree.spot.draw import draw
from ree.spot.openings import Recorded
from ree.spot.samples import differences
from ree.wire import DIGEST_BYTES

if TYPE_CHECKING:
    from ree.outline import Outline
    from ree.program import Program


SAMPLES = 32  # elements of a claim that are computed by the interpreter, too


@dataclass(frozen=True)
class Claimed:
    """What came of one claim; value, expected: of the element, None where the claim could not open it.

    expected is None, too, where nothing follows from the operands: an index out of range.
    """

    name: str
    holds: bool
    value: Any
    expected: Any
    verdict: Verdict
    transcript: bytes


@dataclass(frozen=True)
class Dispute:
    """The result of a dispute; stage is None if there was nothing to dispute.

    compared: nodes of the claims' trees that were compared to find the stage; program_bytes: of the stage's element
    program, which a referee needs besides the messages.
    """

    stage: int | None
    element: tuple[int, ...] | None
    compared: int
    program_bytes: int
    claims: tuple[Claimed, ...]

    @property
    def wrong(self) -> tuple[str, ...]:
        """The names of the claims that lost."""
        return tuple(claim.name for claim in self.claims if not claim.holds)


def dispute(program: Program, a: Trace, b: Trace | None = None, at: tuple[int, int] | None = None) -> Dispute:
    """Settle a dispute over claim `a`: against claim `b`, or against itself.

    at: (stage, element in C order) to challenge; None: the first difference of the two, or the first stage of `a`
    that does not follow from its operands. InputError: the claims are not about one run of this program.
    """
    if at is not None and (len(at) != 2 or any(type(n) is not int for n in at)):
        raise InputError(f"at={at!r}: a stage and an element are expected, two integers")
    for claim in (a, *([] if b is None else [b])):
        _check(program, claim)
    compared = 0
    if b is not None:
        _same_run(a, b)
        if at is None:
            at, compared = _first_difference(a, b)
    elif at is None:
        at = _first_inconsistency(a)
    if at is None:
        return Dispute(None, None, compared, 0, ())
    stage, element = at
    found = a.manifest.stages[stage] if 0 <= stage < len(a.manifest.stages) else None
    claims = [("a", a)] + ([("b", b)] if b is not None else [])
    settled = tuple(settle(program, name, claim, stage, element) for name, claim in claims)
    assert found is not None  # else `settle` has refused it
    place = tuple(int(i) for i in np.unravel_index(element, found.type.extents())) if found.type.rank else ()
    return Dispute(stage, place, compared, len(encode_program(found.program)), settled)


def _check(program: Program, claim: Trace) -> None:
    if not isinstance(claim, Trace) or not hasattr(program, "program_id"):
        raise InputError("a dispute takes a program and one or two traces (ree.load_trace reads one of a file)")
    if claim.program_id != program.program_id:
        raise VerificationError(
            f"the claim is about program {claim.program_id.hex()[:16]}, this is {program.program_id.hex()[:16]}"
        )
    manifest = claim.manifest
    if len(manifest.roots) != len(program.stages(program.checked_sizes(manifest.sizes))):
        raise VerificationError(f"the claim has {len(manifest.roots)} results, not those of the program")
    if manifest.weights != program.weight_ids:
        raise VerificationError("the claim is about other weights than the program's")


def _same_run(a: Trace, b: Trace) -> None:
    """InputError unless both claims are about the same input."""
    for what in ("sizes", "inputs", "weights"):
        if getattr(a.manifest, what) != getattr(b.manifest, what):
            raise InputError(f"the claims are not about the same run: their {what} differ")


def _first_difference(a: Trace, b: Trace) -> tuple[tuple[int, int] | None, int]:
    """(stage, element) of the first difference, None if there is none; how many nodes were compared."""
    trees = [claim.manifest.tree for claim in (a, b)]
    compared = 0

    def node(number: int) -> Callable[[int, int], bytes]:
        def get(level: int, index: int) -> bytes:
            nonlocal compared
            compared += 1
            return trees[number].levels[level][index]

        return get

    stage = merkle.first_difference(len(a.manifest.stages), node(0), node(1))
    if stage is None:
        return None, compared
    tensors = _opened(a, stage), _opened(b, stage)
    if any(t is None for t in tensors):
        return (stage, 0), compared  # whoever cannot open his result cannot open any element of it
    element = first_difference(*tensors)  # type: ignore[arg-type]
    return (stage, element or 0), compared


def _first_inconsistency(claim: Trace) -> tuple[int, int] | None:
    """(stage, element) of the first result that does not follow, or cannot be shown; None if there is none.

    Stages are computed by the program's kernels, and some elements by the interpreter as well, so that a fault of the
    kernels, which the claim's maker has too, does not pass for the program.
    """
    try:
        found = next(iter(inconsistencies(claim)), None)
        return found or _sampled(claim)
    except VerificationError:
        for stage in claim.manifest.stages:
            if stage.type.numel() and _opened(claim, stage.index) is None:
                return stage.index, 0
        raise


def _sampled(claim: Trace) -> tuple[int, int] | None:
    stages = claim.manifest.stages

    def tensor_of(source: Source) -> Recorded:
        return Recorded(stages.type_of(source)[0], claim.memory(source))

    samples = draw(stages, claim.root, SAMPLES, os.urandom(DIGEST_BYTES))
    wrong = (
        (stage.index, element) for stage, element, _, _ in differences(stages, samples, functools.cache(tensor_of))
    )
    return next(wrong, None)


def _opened(claim: Trace, stage: int) -> np.ndarray | None:
    """The claim's own result, None if it has none to show."""
    try:
        return claim.tensors[stage]
    except VerificationError:
        return None


def settle(program: Program, name: str, claim: Trace, stage: int, element: int, rules: Rules = Rules()) -> Claimed:  # noqa: B008
    """Play one game about one element of a claim, the prover's side as well as its tensors allow.

    A prover whose element does not follow from its operands commits to cells that do, up to the one that is the
    element: any other answer is wrong in an earlier step, or in more than one.
    """
    now_s = int(time.time())
    game = Game(Referee(program.program_id, claim.manifest.stages, claim.root), rules)
    message = challenge(claim, stage, element)
    game.challenge(message, now_s)
    value = expected = None
    try:
        position = Position(claim, stage, element)
        cells, value, expected = _answer(position)
        response = position.respond(message, cells)
    except VerificationError:  # its tensors are not those that it commits to, or cannot be had: silence
        now_s += rules.respond_s + 1
    else:
        game.respond(response, cells.tobytes(), now_s)
        wrong = position.wrong_step(cells)
        if wrong is None:
            now_s += rules.prove_s + 1
        else:
            game.prove(position.prove(response, cells, wrong), now_s)
    game.expire(now_s)
    verdict = game.verdict
    assert verdict is not None
    return Claimed(name, verdict.winner is Party.PROVER, value, expected, verdict, game.transcript(now_s))


def _answer(position: Position) -> tuple[np.ndarray, Any, Any]:
    """The cells of a stubborn prover, the element as he claims it, and as it follows from his operands."""
    stage, number = position.stage, position.number
    claimed = position.trace.tensors[stage.index].reshape(-1)[number : number + 1]
    try:
        found = position.evaluate()
    except (RunError, GraphError):  # no run of the program gives anything here
        return np.zeros(position.element.cells.count, np.uint64), position.widened(claimed)[0], None
    cells = found.values.copy()
    if found.failed is not None:
        return cells, position.widened(claimed)[0], None
    stored = position.stored(found)
    if stored.tobytes() != claimed.tobytes():
        address = position.result_cell()
        if address is not None:
            cells[address] = encode(position.widened(claimed))[0]
    return cells, position.widened(claimed)[0], position.widened(stored)[0]


def judge(transcript: bytes, program: Outline) -> Game:
    """Play a recorded game again; VerificationError if it is none about this program, or breaks a rule anywhere."""

    def referee(program_id: bytes, sizes: tuple[int, ...], trace_root: bytes) -> Referee:
        if program_id != program.program_id:
            raise VerificationError("the transcript is about another program")
        return Referee(program_id, program.stages(program.checked_sizes(sizes)), trace_root)

    return replay(transcript, referee)
