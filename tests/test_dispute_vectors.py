"""Vectors of disputes are current and right, what they corrupt is refused, and mutated disputes are harmless."""

from __future__ import annotations

import json
from typing import Any

import blake3
import pytest

from ree.commit import bao
from ree.commit.stages import Stage
from ree.errors import VerificationError
from ree.referee import judge
from ree.referee import messages as message_module
from ree.referee.game import Game, Party
from ree.referee.judge import Referee
from ree.referee.players import Position
from tests import dispute_vectors, fuzz_dispute
from tests.dispute_vectors import CASES, NOW_S, RULES, Played, corruptions, games, patched

CASES_FUZZED = 2000
VECTORS = json.loads(dispute_vectors.PATH.read_text(encoding="utf-8"))


def test_the_file_is_current() -> None:
    assert dispute_vectors.content() == VECTORS


@pytest.fixture(scope="module", params=CASES)
def played(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Played]]:
    return VECTORS["cases"][request.param], games(request.param)


def move(game: Game, name: str, message: bytes, cells: bytes, time_s: int) -> None:
    """Make one move."""
    if name == "response":
        game.respond(message, cells, time_s)
    else:
        {"challenge": game.challenge, "proof": game.prove}[name](message, time_s)


def replayed(game: Game, found: dict[str, Any], cells: bytes, until: str | None = None) -> Game:
    """The game of the file, from its messages alone, up to one of them."""
    for number, (name, message) in enumerate(found["messages"].items()):
        if name == until:
            break
        move(game, name, bytes.fromhex(message), cells, NOW_S + 60 * number)
    return game


def fresh(played: Played) -> Game:
    referee = played.game.referee
    return Game(Referee(referee.program_id, referee.stages, referee.trace_root), RULES)


def test_games_end_as_the_file_says(played: tuple[dict[str, Any], dict[str, Played]]) -> None:
    vector, found = played
    for kind, winner in (("honest", Party.PROVER), ("lie", Party.CHALLENGER)):
        game = replayed(fresh(found[kind]), vector["games"][kind], found[kind].cells.tobytes())
        assert game.verdict is not None and game.verdict.winner is winner
        assert vector["games"][kind]["verdict"]["winner"] == winner.value
        assert blake3.blake3(game.transcript(NOW_S + 120)).hexdigest() == vector["games"][kind]["transcript_blake3"]


def test_corrupted_messages_are_refused(played: tuple[dict[str, Any], dict[str, Played]]) -> None:
    vector, found = played
    lie, cells = vector["games"]["lie"], found["lie"].cells.tobytes()
    for name, bad in vector["refuse"].items():
        reasons = set()
        for why, *change in bad:
            message = patched(bytes.fromhex(lie["messages"][name]), change)
            reasons.add(why)
            game = replayed(fresh(found["lie"]), lie, cells, until=name)
            state = game.state
            with pytest.raises(VerificationError):
                move(game, name, message, cells, NOW_S + 200)
            assert game.state is state, why
        assert len(reasons) == len(bad) == len(corruptions(found["lie"])[name])


def test_fuzzed_disputes_keep_all_promises() -> None:
    outcomes = fuzz_dispute.fuzz(CASES_FUZZED, seed=5)
    assert outcomes.total() == CASES_FUZZED
    for met in ("challenge accepted", "response accepted", "cells accepted", "transcript of the same game"):
        assert outcomes[met] > 10, outcomes  # or the mutations are too wild to say anything
    assert outcomes["proof of cells accepted, challenger wins"] > 5 and outcomes["proof accepted, prover wins"] > 10


@pytest.mark.parametrize("careless", ["openings", "digests", "length", "cells", "first step"])
def test_the_fuzzer_finds_careless_players(monkeypatch: pytest.MonkeyPatch, careless: str) -> None:
    def any_length(root: bytes, encoded: bytes, start: int, length: int, n_bytes: int) -> bytes:
        return bao.verify_slice(root, encoded, start, length)

    def first_lie(self: Position, cells: Any) -> int | None:
        """The lowest cell that differs, which may follow from others that do."""
        differing = (self.evaluate().values != cells).nonzero()[0]
        return int(differing[0]) if len(differing) else None

    patches = {
        "openings": (judge, "verify_slice", any_length),
        "digests": (judge, "digest", lambda _: fuzz_dispute.tables()[0].asked[:32]),
        "length": (message_module.Reader, "finish", lambda _: None),
        "cells": (judge.Redo, "cell", lambda self, address: int(self._cells(address, 1)[0]) & 0xFFFFFFFF),
        "first step": (Position, "wrong_step", first_lie),
    }
    fuzz_dispute.tables()
    monkeypatch.setattr(*patches[careless])
    with pytest.raises((AssertionError, VerificationError)):
        fuzz_dispute.fuzz(CASES_FUZZED, seed=5)


def test_stages_are_known_by_their_leaf(played: tuple[dict[str, Any], dict[str, Played]]) -> None:
    vector, found = played
    stage: Stage = found["honest"].game.referee.stages[vector["stage"]]
    assert vector["known"]["leaf"] == stage.leaf.hex()
