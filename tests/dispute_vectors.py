"""Disputes about fixed claims, and messages that must be refused: tests/vectors/dispute.json.

`python -m tests.dispute_vectors` writes the file anew. Each case holds what a referee knows of the stage, so that the
games can be judged from docs/SPEC.md alone: its element program, the layouts of its ports and the headers of tensors.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np

import ree
from ree.commit import tensor
from ree.commit.stages import Stage
from ree.commit.trace import Trace
from ree.element.encode import encode
from ree.referee import dispute as disputes
from ree.referee.cells import Step
from ree.referee.game import Game, Rules
from ree.referee.judge import Referee
from ree.referee.messages import Challenge, Proof, Response, digest
from ree.referee.players import Position, challenge
from tests import dishonest
from tests.test_trace import traced

PATH = Path(__file__).parent / "vectors" / "dispute.json"
CASES = {"batched product": (0, 17), "attention": (1, 100), "scan and scatter": (2, 2)}  # -> stage, element
CELLS_SHOWN_MAX = 64
STEPS_SHOWN = 6
NOW_S = 1_800_000_000
RULES = Rules(respond_s=86400, prove_s=86400)


@dataclass(frozen=True)
class Played:
    """A whole game; the messages of `game.events`."""

    game: Game
    cells: np.ndarray

    @property
    def messages(self) -> dict[str, bytes]:
        names = ("challenge", "response", "proof")
        return {name: event.message for name, event in zip(names, self.game.events, strict=True)}


def play(program: ree.Program, trace: Trace, stage: int, element: int) -> Played:
    """A game that ends with the proof of the step that is wrong, or of one in the middle where all are right."""
    game = Game(Referee(program.program_id, trace.manifest.stages, trace.root), RULES)
    position = Position(trace, stage, element)
    cells = disputes._answer(position)[0]
    asked = challenge(trace, stage, element)
    game.challenge(asked, NOW_S)
    answer = position.respond(asked, cells)
    game.respond(answer, cells.tobytes(), NOW_S + 60)
    wrong = position.wrong_step(cells)
    game.prove(position.prove(answer, cells, len(cells) // 2 if wrong is None else wrong), NOW_S + 120)
    return Played(game, cells)


def games(name: str) -> dict[str, Played]:
    """An honest claim that is challenged, and a lie of one bit in the same element."""
    stage, element = CASES[name]
    _, trace, program = traced(name, keep=True)
    lie = dishonest.lie(trace, stage, dishonest.flip(element), follow=False)
    return {"honest": play(program, trace, stage, element), "lie": play(program, lie, stage, element)}


# -- messages that are none ----------------------------------------------------------------------------


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def bad_challenges(message: bytes) -> Iterator[tuple[str, bytes]]:
    good = Challenge.decode(message)
    head, replace = good.head, dataclasses.replace
    yield "another version", message[:7] + b"\x02" + message[8:]
    yield "another kind of message", message[:8] + b"R" + message[9:]
    yield "a stage that is none", replace(good, stage=head.stages).encode()
    yield "an element beyond the result", replace(good, element=1 << 32).encode()
    yield "the greatest element", replace(good, element=(1 << 64) - 1).encode()
    yield "an operand with another root", replace(good, operands=(bytes(32), *good.operands[1:])).encode()
    yield "an operand too few", replace(good, operands=good.operands[:-1]).encode()
    yield "an operand too many", replace(good, operands=(*good.operands, bytes(32))).encode()
    yield "a result with another root", replace(good, result=_flipped(good.result, 31)).encode()
    yield "a node of the path too many", replace(good, path=(*good.path, bytes(32))).encode()
    if good.path:
        yield "a node of the path too few", replace(good, path=good.path[:-1]).encode()
        yield "another node in the path", replace(good, path=(bytes(32), *good.path[1:])).encode()
    yield "another program", replace(good, head=replace(head, program_id=bytes(32))).encode()
    yield "a dynamic dimension too many", replace(good, head=replace(head, sizes=(*head.sizes, 2))).encode()
    for field in ("inputs", "weights", "outputs"):
        yield f"other {field}", replace(good, head=replace(head, **{field: bytes(32)})).encode()
    yield "another number of stages", replace(good, head=replace(head, stages=head.stages + 1)).encode()
    yield "a count beyond the message", message[:25] + b"\xff" * 4 + message[29:]
    yield "no result", _without_result(message, len(good.operands))
    yield "a truncated message", message[:-1]
    yield "a byte after the message", message + b"\0"


def _without_result(message: bytes, operands: int) -> bytes:
    at = 29 + 32 * operands
    return message[:at] + bytes(4) + message[at + 36 :]


def bad_responses(message: bytes) -> Iterator[tuple[str, bytes]]:
    good = Response.decode(message)
    output, replace = good.output, dataclasses.replace
    yield "another version", message[:7] + b"\x02" + message[8:]
    yield "another kind of message", message[:8] + b"P" + message[9:]
    yield "an answer to another challenge", replace(good, challenge=_flipped(good.challenge, 0)).encode()
    yield "a commitment to other cells", replace(good, cells=_flipped(good.cells, 0)).encode()
    yield "an opening of another value", replace(good, output=_flipped(output, len(output) - 1)).encode()
    yield "an opening of a tensor of another length", replace(good, output=_flipped(output, 0)).encode()
    yield "an opening without its last byte", replace(good, output=output[:-1]).encode()
    yield "an opening with a byte too many", replace(good, output=output + b"\0").encode()
    yield "an opening that is empty", replace(good, output=b"").encode()
    yield "an opening longer than the message", message[:73] + b"\xff" * 4 + message[77:]
    yield "a truncated message", message[:-1]
    yield "a byte after the message", message + b"\0"


def bad_proofs(message: bytes, steps: int) -> Iterator[tuple[str, bytes]]:
    good = Proof.decode(message)
    openings, replace = good.openings, dataclasses.replace
    last = openings[-1]
    yield "another version", message[:7] + b"\x02" + message[8:]
    yield "another kind of message", message[:8] + b"C" + message[9:]
    yield "a proof about another response", replace(good, response=_flipped(good.response, 0)).encode()
    yield "a step that is none", replace(good, step=steps).encode()
    yield "the greatest step", replace(good, step=(1 << 64) - 1).encode()
    yield "an opening too few", replace(good, openings=openings[:-1]).encode()
    yield "an opening too many", replace(good, openings=(*openings, last)).encode()
    yield (
        "an opening of another value",
        replace(good, openings=(*openings[:-1], _flipped(last, len(last) - 1))).encode(),
    )
    yield (
        "an opening of a tensor of another length",
        replace(good, openings=(*openings[:-1], _flipped(last, 0))).encode(),
    )
    yield "an opening without its last byte", replace(good, openings=(*openings[:-1], last[:-1])).encode()
    yield "an opening with a byte too many", replace(good, openings=(*openings[:-1], last + b"\0")).encode()
    if len(set(openings)) > 1:
        yield "openings in another order", replace(good, openings=openings[::-1]).encode()
    yield "a count beyond the message", message[:49] + b"\xff" * 4 + message[53:]
    yield "a truncated message", message[:-1]
    yield "a byte after the message", message + b"\0"


def corruptions(played: Played) -> dict[str, list[tuple[str, bytes]]]:
    """For each message all that must be refused in its place, with the reason."""
    messages = played.messages
    return {
        "challenge": list(bad_challenges(messages["challenge"])),
        "response": list(bad_responses(messages["response"])),
        "proof": list(bad_proofs(messages["proof"], len(played.cells) + 1)),
    }


def patch(good: bytes, bad: bytes) -> list[Any]:
    """[where, how many bytes go, hex of those that come]: what makes one message another."""
    first = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), min(len(good), len(bad)))
    most = min(len(good), len(bad)) - first
    same = next((i for i in range(most) if good[len(good) - 1 - i] != bad[len(bad) - 1 - i]), most)
    return [first, len(good) - first - same, bad[first : len(bad) - same].hex()]


def patched(good: bytes, change: list[Any]) -> bytes:
    """Inverse of `patch`."""
    at, gone, come = change
    return good[:at] + bytes.fromhex(come) + good[at + gone :]


# -- the file --------------------------------------------------------------------------------------------


def stage_content(stage: Stage, trace: Trace) -> dict[str, Any]:
    """What a referee knows of a stage."""
    ports = []
    for port in stage.ports:
        dtype, shape, order = trace.manifest.stages.type_of(port.source)
        layout = port.layout
        ports.append(
            {
                "source": [int(port.source.kind), port.source.number],
                "offset": layout.offset,
                "shape": list(layout.shape),
                "strides": list(layout.strides),
                "tensor_header": tensor.header(dtype, shape, order).hex(),
            }
        )
    return {
        "leaf": stage.leaf.hex(),
        "element_program": encode(stage.program).hex(),
        "params": list(stage.params),
        "ports": ports,
        "shape": list(stage.type.extents()),
        "tensor_header": tensor.header(stage.type.dtype, stage.type.extents(), stage.order).hex(),
    }


def step_text(step: Step) -> str:
    """A step in words, and in which iterations of the folds around it."""
    return str(step) + (f", iterations {list(step.ks.values())}" if step.ks else "")


def game_content(played: Played) -> dict[str, Any]:
    game, cells = played.game, played.cells
    verdict = game.verdict
    assert verdict is not None and verdict.judgement is not None
    judged = verdict.judgement
    content: dict[str, Any] = {
        "trace_root": game.referee.trace_root.hex(),
        "cells_blake3": blake3.blake3(cells.tobytes()).hexdigest(),
        "messages": {name: message.hex() for name, message in played.messages.items()},
        "digests": {name: digest(message).hex() for name, message in played.messages.items()},
        "transcript_blake3": blake3.blake3(game.transcript(NOW_S + 120)).hexdigest(),
        "verdict": {
            "winner": verdict.winner.value,
            "reason": verdict.reason,
            "step": judged.step.address,
            "claimed": judged.claimed.hex(),
            "expected": None if judged.expected is None else judged.expected.hex(),
            "fmas": judged.work.fmas,
            "instructions": judged.work.instructions,
        },
    }
    if len(cells) <= CELLS_SHOWN_MAX:
        content["cells"] = cells.tobytes().hex()
    return content


def case_content(name: str) -> dict[str, Any]:
    stage, element = CASES[name]
    _, trace, program = traced(name, keep=True)
    found = games(name)
    cells = Position(trace, stage, element).element.cells
    shown = sorted({0, cells.count - 1, cells.count, *random.Random(1).choices(range(cells.count), k=STEPS_SHOWN)})
    refuse = {}
    for message, bad in corruptions(found["lie"]).items():
        good = found["lie"].messages[message]
        refuse[message] = [[why, *patch(good, corrupted)] for why, corrupted in bad]
    return {
        "program_id": program.program_id.hex(),
        "stage": stage,
        "element": element,
        "known": stage_content(trace.manifest.stages[stage], trace),
        "cells": cells.count,
        "steps": [[address, step_text(cells.step(address))] for address in shown],
        "games": {kind: game_content(played) for kind, played in found.items()},
        "refuse": refuse,
    }


def content() -> dict[str, Any]:
    """The vector file's values."""
    return {
        "_comment": "Written by `python -m tests.dispute_vectors`. Messages are those of docs/SPEC.md, in hex."
        " `refuse` holds changes of the messages of the game `lie`, each of which must be refused:"
        " [reason, byte where it begins, number of bytes taken out, bytes put in]. A transcript has each party move"
        " after a minute, beginning at time_s, and ends with the last move.",
        "time_s": NOW_S,
        "respond_s": RULES.respond_s,
        "prove_s": RULES.prove_s,
        "cases": {name: case_content(name) for name in CASES},
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(content(), indent=1) + "\n", encoding="utf-8")
