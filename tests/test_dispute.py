"""Disputes: the honest never lose, the dishonest always do, whatever the operator, the lie or the message."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ree
from ree import cli
from ree.commit.local import inconsistencies
from ree.commit.trace import Trace
from ree.element import scalar
from ree.element.program import Builder, Port
from ree.errors import GraphError, InputError, LimitError, RunError, UnsupportedError, VerificationError
from ree.plan.layout import contiguous
from ree.referee import dispute as disputes
from ree.referee.cells import Kind
from ree.referee.game import Game, Party, Rules, State
from ree.referee.judge import Referee
from ree.referee.messages import MESSAGE_BYTES_MAX, Challenge, Proof, Response
from ree.referee.players import Position, challenge
from ree.referee.scheme import Scheme
from ree.types import DType
from tests import dishonest
from tests.test_random_graphs import random_program
from tests.test_trace import CASES, Lambda, compiled, traced

FMAS_MAX = 256
NOW_S = 1_800_000_000


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ree.Program, Trace]:
    _, trace, program = traced(request.param, keep=True)
    return program, trace


def one(name: str) -> tuple[ree.Program, Trace]:
    _, trace, program = traced(name, keep=True)
    return program, trace


def opened(program: ree.Program, trace: Trace, position: Position, cells: np.ndarray) -> Game:
    """A game in which this element was challenged and answered with these cells."""
    game = Game(Referee(program.program_id, trace.manifest.stages, trace.root))
    asked = challenge(trace, position.stage.index, position.number)
    game.challenge(asked, NOW_S)
    game.respond(position.respond(asked, cells), cells.tobytes(), NOW_S)
    return game


def steps(rng: random.Random, position: Position, most: int) -> list[int]:
    """Some steps of an element; the last is always among them."""
    count = position.element.cells.count
    return [*rng.sample(range(count), min(count, most)), count]


# -- cells ------------------------------------------------------------------------------


def test_cells_give_the_element_and_every_step_follows_from_those_before(case: tuple[ree.Program, Trace]) -> None:
    """All that one evaluation computes is what a referee finds step by step, with at most 256 FMAs in each."""
    program, trace = case
    rng = random.Random(1)
    for stage, element in dishonest.elements(rng, trace):
        position = Position(trace, stage, element)
        found = position.evaluate()
        want = trace.tensors[stage].reshape(-1)[element : element + 1]
        assert scalar.store(found.result, position.stage.type.dtype).tobytes() == want.tobytes()
        game = opened(program, trace, position, found.values)
        for step in steps(rng, position, 60):
            proof = position.prove(game.events[1].message, found.values, step)
            judged = game.referee.judge(game.events[0].message, game.events[1].message, proof)
            assert not judged.is_wrong and judged.claimed == judged.expected
            assert judged.work.fmas <= FMAS_MAX and judged.work.instructions <= FMAS_MAX
            assert len(game.events[0].message) + len(game.events[1].message) + len(proof) <= MESSAGE_BYTES_MAX


def test_every_address_is_the_step_that_writes_it(case: tuple[ree.Program, Trace]) -> None:
    _, trace = case
    for stage, element in dishonest.elements(random.Random(2), trace):
        cells = Position(trace, stage, element).element.cells
        for address in range(min(cells.count, 3000)):
            step = cells.step(address)
            assert step.address == address
            if step.kind in (Kind.INSTRUCTION, Kind.COPY):
                assert cells.address(step.value, step.ks, cells.scheme.home[step.value]) == address
        assert cells.step(cells.count).kind is Kind.STORE


def test_a_fold_of_several_chunks_and_levels() -> None:
    """70,000 terms: two levels of sums, chunks at the end that are not full, and one lane alone."""
    program = ree.compile(Lambda(lambda m, x: (x.sum(-1), (x * x).amax(-1))).eval(), (torch.randn(2, 256 * 257 + 1),))
    _, trace = program.run(torch.randn(2, 256 * 257 + 1), commit=True, keep=True)
    assert trace is not None
    rng = random.Random(3)
    for stage, element in dishonest.elements(rng, trace):
        position = Position(trace, stage, element)
        values = position.evaluate().values
        game = opened(program, trace, position, values)
        for step in [*steps(rng, position, 20), *range(len(values) - 5, len(values))]:
            proof = position.prove(game.events[1].message, values, step)
            assert not game.referee.judge(game.events[0].message, game.events[1].message, proof).is_wrong


# -- who wins ---------------------------------------------------------------------------------


def changes(rng: random.Random, trace: Trace, stage: int, element: int) -> Iterator[dishonest.Change]:
    """One unit in the last place, any other bit, and a NaN with a payload."""
    yield dishonest.flip(element)
    yield dishonest.flip(element, rng.randrange(1, 64))
    if trace.manifest.stages[stage].type.dtype.is_float:
        yield dishonest.nan_payload(element)


@pytest.mark.parametrize("follow", [True, False])
def test_a_wrong_value_in_any_stage_loses(case: tuple[ree.Program, Trace], follow: bool) -> None:
    """Against an honest claim, and against itself; wherever it lies, and whatever was computed from the lie."""
    program, trace = case
    rng = random.Random(4)
    for stage, element in dishonest.elements(rng, trace):
        for change in changes(rng, trace, stage, element):
            claim = dishonest.lie(trace, stage, change, follow)
            found = ree.dispute(program, trace, claim)
            assert (found.wrong, found.stage) == (("b",), stage)
            verdict = found.claims[1].verdict
            assert verdict.winner is Party.CHALLENGER and verdict.moves == 3
            assert verdict.seen_bytes + found.program_bytes <= MESSAGE_BYTES_MAX
            assert verdict.judgement is not None and verdict.judgement.work.fmas <= FMAS_MAX
            alone = ree.dispute(program, claim)
            assert (alone.wrong, alone.stage, alone.element) == (("a",), stage, found.element)
            assert ree.dispute(program, claim, trace).wrong == ("a",)


def test_honest_claims_have_nothing_to_dispute(case: tuple[ree.Program, Trace]) -> None:
    program, trace = case
    assert inconsistencies(trace) == []
    assert ree.dispute(program, trace, trace).stage is None
    assert ree.dispute(program, trace).stage is None


def test_a_lie_in_any_cell_is_found(case: tuple[ree.Program, Trace]) -> None:
    """A prover who answers with other internal values, which all follow from one lie, loses in the step of the lie."""
    program, trace = case
    rng = random.Random(5)
    for stage, element in dishonest.elements(rng, trace):
        claim = dishonest.lie(trace, stage, dishonest.flip(element), follow=False)
        position = Position(claim, stage, element)
        count = position.element.cells.count
        for address in rng.sample(range(count), min(count, 12)):
            honest = position.evaluate().values
            lie = int(honest[address]) ^ 1 << rng.choice([0, 0, 1, 22, 31, 40, 63])
            try:
                values = position.evaluate({address: lie}).values
            except (GraphError, RunError):  # an index that no value follows from
                values = honest.copy()
                values[address] = lie
            game = opened(program, claim, position, values)
            wrong = position.wrong_step(values)
            assert wrong is not None
            game.prove(position.prove(game.events[1].message, values, wrong), NOW_S)
            assert game.verdict is not None and game.verdict.winner is Party.CHALLENGER


def test_both_claims_may_be_wrong() -> None:
    program, trace = one("attention")
    first = dishonest.lie(trace, 1, dishonest.flip(7))
    second = dishonest.lie(trace, 1, dishonest.flip(7, 3))
    found = ree.dispute(program, first, second)
    assert found.wrong == ("a", "b") and found.stage == 1


def test_a_challenge_of_an_honest_claim_fails(case: tuple[ree.Program, Trace]) -> None:
    """Whichever step he names; and if he names none, by silence."""
    program, trace = case
    rng = random.Random(6)
    for stage, element in dishonest.elements(rng, trace):
        position = Position(trace, stage, element)
        values = position.evaluate().values
        assert position.wrong_step(values) is None
        for step in steps(rng, position, 10):
            game = opened(program, trace, position, values)
            game.prove(position.prove(game.events[1].message, values, step), NOW_S)
            assert game.verdict is not None and game.verdict.winner is Party.PROVER
        silent = opened(program, trace, position, values)
        silent.expire(NOW_S + silent.rules.prove_s + 1)
        assert silent.verdict is not None and silent.verdict.winner is Party.PROVER


@given(st.randoms(use_true_random=True))
def test_random_graphs_and_random_disputes(rng: random.Random) -> None:
    program, arrays = random_program(rng)
    _, trace = program.run_committed(arrays, keep=True)
    places = dishonest.elements(rng, trace)
    if not places:
        return
    stage, element = rng.choice(places)
    position = Position(trace, stage, element)
    assert position.wrong_step(position.evaluate().values) is None
    claim = dishonest.lie(trace, stage, dishonest.flip(element, rng.randrange(32)), follow=rng.random() < 0.5)
    found = ree.dispute(program, trace, claim)
    assert (found.wrong, found.stage) == (("b",), stage)
    assert ree.dispute(program, trace, at=(stage, element)).wrong == ()


# -- the rules --------------------------------------------------------------------------------


def answered() -> tuple[ree.Program, Trace, Position, np.ndarray, Game]:
    program, trace = one("attention")
    claim = dishonest.lie(trace, 1, dishonest.flip(100), follow=False)
    position = Position(claim, 1, 100)
    values = position.evaluate().values
    return program, claim, position, values, opened(program, claim, position, values)


def test_silence_loses() -> None:
    program, trace = one("attention")
    game = Game(Referee(program.program_id, trace.manifest.stages, trace.root), Rules(respond_s=10, prove_s=20))
    assert game.deadline_s is None
    game.expire(NOW_S)
    assert game.state is State.OPEN
    game.challenge(challenge(trace, 1, 5), NOW_S)
    assert game.deadline_s == NOW_S + 10
    game.expire(NOW_S + 10)
    assert game.state is State.CHALLENGED
    game.expire(NOW_S + 11)
    assert game.verdict is not None and game.verdict.winner is Party.CHALLENGER
    assert "prover did not respond" in game.verdict.reason and game.deadline_s is None


def test_a_move_after_its_deadline_comes_too_late() -> None:
    _, _, position, values, game = answered()
    proof = position.prove(game.events[1].message, values, len(values))
    with pytest.raises(VerificationError, match="over"):
        game.prove(proof, NOW_S + game.rules.prove_s + 1)
    assert game.verdict is not None and game.verdict.winner is Party.PROVER


def test_moves_out_of_turn_are_refused() -> None:
    _, _, position, values, game = answered()
    asked, response = (event.message for event in game.events)
    proof = position.prove(response, values, len(values))
    for move in (
        lambda: game.challenge(asked, NOW_S),
        lambda: game.respond(response, values.tobytes(), NOW_S),
        lambda: game.prove(proof, NOW_S - 1),
    ):
        with pytest.raises(VerificationError):
            move()
    assert game.state is State.ANSWERED
    game.prove(proof, NOW_S)
    with pytest.raises(VerificationError, match="over"):
        game.prove(proof, NOW_S)


def test_a_response_must_open_its_element_and_bring_its_cells() -> None:
    _, claim, _, values, game = answered()
    asked, response = (event.message for event in game.events)
    fresh = Game(game.referee)
    fresh.challenge(asked, NOW_S)
    good = Response.decode(response)
    other = Position(claim, 1, 101)
    neighbour = Response.decode(other.respond(challenge(claim, 1, 101), other.evaluate().values))
    bad = [
        dataclasses.replace(good, challenge=bytes(32)),
        dataclasses.replace(good, output=good.output[:-1]),
        dataclasses.replace(good, output=good.output[:-1] + bytes([good.output[-1] ^ 1])),
        dataclasses.replace(neighbour, output=good.output),
    ]
    for message in bad:
        with pytest.raises(VerificationError):
            fresh.respond(message.encode(), values.tobytes(), NOW_S)
    for cells in (b"", values.tobytes()[:-8], values.tobytes() + bytes(8), bytes(values.nbytes)):
        with pytest.raises(VerificationError, match="cells"):
            fresh.respond(response, cells, NOW_S)
    assert fresh.state is State.CHALLENGED
    fresh.respond(response, values.tobytes(), NOW_S)


def test_a_proof_must_open_exactly_what_its_step_reads() -> None:
    _, _, position, values, game = answered()
    response = game.events[1].message
    for step in (0, len(values) - 1, len(values)):
        good = Proof.decode(position.prove(response, values, step))
        swapped = good.openings[::-1] if len(set(good.openings)) > 1 else (*good.openings, good.openings[0])
        for bad in (
            dataclasses.replace(good, response=bytes(32)),
            dataclasses.replace(good, step=len(values) + 1),
            dataclasses.replace(good, step=1 << 63),
            dataclasses.replace(good, openings=good.openings[:-1]),
            dataclasses.replace(good, openings=(*good.openings, good.openings[0])),
            dataclasses.replace(good, openings=swapped),
            dataclasses.replace(good, openings=(good.openings[0] + b"\0", *good.openings[1:])),
        ):
            with pytest.raises(VerificationError):
                game.prove(bad.encode(), NOW_S)
    assert game.state is State.ANSWERED


def test_a_challenge_must_open_the_claim() -> None:
    program, trace = one("attention")
    other = dishonest.lie(trace, 0, dishonest.flip(3))
    referee = Referee(program.program_id, trace.manifest.stages, trace.root)
    good = Challenge.decode(challenge(trace, 1, 5))
    head = good.head
    for bad in (
        Challenge.decode(challenge(other, 1, 5)),
        dataclasses.replace(good, stage=0),
        dataclasses.replace(good, stage=1 << 60),
        dataclasses.replace(good, element=trace.manifest.stages[1].type.numel()),
        dataclasses.replace(good, operands=good.operands[:-1]),
        dataclasses.replace(good, operands=(bytes(32), *good.operands[1:])),
        dataclasses.replace(good, result=bytes(32)),
        dataclasses.replace(good, path=good.path[:-1]),
        dataclasses.replace(good, head=dataclasses.replace(head, outputs=bytes(32))),
        dataclasses.replace(good, head=dataclasses.replace(head, program_id=bytes(32))),
        dataclasses.replace(good, head=dataclasses.replace(head, sizes=(3,))),
    ):
        with pytest.raises(VerificationError):
            referee.accept_challenge(bad.encode())
    assert referee.accept_challenge(good.encode()) == good


def test_a_prover_without_his_tensors_loses_by_silence() -> None:
    """He committed to a result that he cannot show: bytes that are not those of the root."""
    program, trace = one("attention")
    claim = dishonest.lie(trace, 1, dishonest.flip(100), follow=False)
    claim._results = lambda: list(trace.tensors.values())  # the honest ones, under the roots of others
    found = ree.dispute(program, trace, claim)
    assert found.wrong == ("b",)
    assert "did not respond" in found.claims[1].verdict.reason


# -- claims -----------------------------------------------------------------------------------


def test_claims_of_other_programs_weights_and_inputs_are_no_dispute() -> None:
    program, trace = one("attention")
    other, (x,) = compiled("product with epilogue")
    _, foreign = other.run(x, commit=True, keep=True)
    assert foreign is not None
    for pair in ((foreign, None), (trace, foreign)):
        with pytest.raises(VerificationError, match="program"):
            ree.dispute(program, *pair)
    for field in ("inputs", "weights"):
        ids = getattr(trace.manifest, field)
        with pytest.raises(VerificationError if field == "weights" else InputError, match=field):
            ree.dispute(program, trace, dishonest.renamed(trace, **{field: (bytes(32), *ids[1:])}))
    for at in ((0, -1), (-1, 0), (99, 0), (0, 1 << 40)):
        with pytest.raises(InputError):
            ree.dispute(program, trace, at=at)


def test_stale_weights_and_another_order_of_sums_lose() -> None:
    program, trace = one("batched product")
    torch.manual_seed(2)
    x = torch.randn(7, 24)
    fresh, stale = (ree.compile(Lambda(CASES["product with epilogue"][0]).eval(), (x,)) for _ in range(2))
    _, honest = fresh.run(x, commit=True, keep=True)
    assert honest is not None
    assert ree.dispute(fresh, honest, dishonest.other_weights(honest, stale)).wrong == ("b",)

    def resummed(array: np.ndarray) -> None:  # torch's order of the sum: a few units in the last place
        left, right = (torch.from_numpy(a.copy()) for a in trace.inputs)
        array[...] = torch.bmm(left, right).numpy()

    claim = dishonest.lie(trace, 0, resummed)
    assert ree.dispute(program, trace, claim).wrong == ("b",)


def test_swapped_and_missing_results_lose() -> None:
    program, trace = one("product read twice")
    results = list(trace.tensors.values())
    assert results[1].shape == results[2].shape
    results[1], results[2] = results[2], results[1]
    assert ree.dispute(program, trace, dishonest.with_results(trace, results)).wrong == ("b",)
    with pytest.raises(VerificationError, match="results"):
        ree.dispute(program, trace, dishonest.renamed(trace, roots=trace.manifest.roots[:-1]))


def test_an_element_with_too_many_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ree.referee import cells

    monkeypatch.setattr(cells, "CELLS_MAX", 100)
    program, trace = one("sort")
    with pytest.raises(LimitError, match="internal values"):
        ree.dispute(program, trace, at=(0, 0))


def test_a_length_that_depends_on_data_cannot_be_laid_out() -> None:
    b = Builder([Port(DType.I64, 1)], 1)
    total = b.fold_isum(b.load(0, b.index(0)), lambda k: k)
    with pytest.raises(UnsupportedError, match="depends on data"):
        Scheme(b.finish([total], [DType.I64]), (contiguous((4,)),))


# -- transcripts and the command line ---------------------------------------------------------------


def test_transcripts_replay_to_the_same_verdict(case: tuple[ree.Program, Trace]) -> None:
    program, trace = case
    for stage, element in dishonest.elements(random.Random(7), trace)[:2]:
        claim = dishonest.lie(trace, stage, dishonest.flip(element))
        for settled in ree.dispute(program, trace, claim).claims:
            game = disputes.judge(settled.transcript, program)
            assert game.verdict is not None
            assert (game.verdict.winner is Party.PROVER) == settled.holds
            assert game.verdict.reason == settled.verdict.reason
            assert game.transcript(game.events[-1].time_s if len(game.events) == 3 else NOW_S * 2) is not None


def test_transcripts_of_dynamic_programs() -> None:
    torch.manual_seed(1)
    model, x = Lambda(CASES["product with epilogue"][0]).eval(), torch.randn(7, 24)
    batch = torch.export.Dim("batch", min=2, max=9)
    program = ree.compile(model, (x,), dynamic_shapes={"args": ({0: batch},)})
    _, trace = program.run(x[:3], commit=True, keep=True)
    assert trace is not None
    (settled,) = ree.dispute(program, dishonest.lie(trace, 0, dishonest.flip(70))).claims
    assert disputes.judge(settled.transcript, program).verdict is not None
    referee = Referee(program.program_id, trace.manifest.stages, trace.root)
    asked = Challenge.decode(challenge(trace, 0, 70))
    bad = dataclasses.replace(asked, head=dataclasses.replace(asked.head, sizes=(100,)))
    with pytest.raises(VerificationError):
        referee.accept_challenge(bad.encode())
    with pytest.raises(VerificationError, match="dynamic"):
        program.checked_sizes((100,))


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return int(stop.value.code or 0)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, trace = one("attention")
    names = [str(tmp_path / name) for name in ("a.trace", "b.trace", "m.ree")]
    a, b, m = names
    program.save(m)
    trace.save(a)
    dishonest.lie(trace, 1, dishonest.flip(100)).save(b)
    games = tmp_path / "games"
    assert command("dispute", a, a, m) == 0
    assert command("dispute", a, m) == 0
    assert "agree" in capsys.readouterr().out
    assert command("dispute", a, b, m, "--games", str(games), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["wrong"] == [b] and found["stage"] == 1 and found["claims"][1]["seen_bytes"] <= MESSAGE_BYTES_MAX
    assert command("dispute", b, m) == 1
    assert f"{b} is wrong" in capsys.readouterr().out
    assert command("dispute", a, m, "--at", "1:100") == 0
    assert "holds here" in capsys.readouterr().out
    assert command("judge", str(games / "a.game"), m) == 0
    assert command("judge", str(games / "b.game"), m, "--json") == 1
    for bad in (["dispute", a], ["dispute", a, b, m, m], ["dispute", a, m, "--at", "1"], ["judge", m, m, "--at"]):
        assert command(*bad) == 2
    assert command("dispute", a, m, "--at", "9:0") == 2
    assert command("judge", a, m) == 1
    assert command("judge", str(tmp_path / "none"), m) == 2


# -- what a reviewer found -------------------------------------------------------------------


def test_a_claim_without_stored_results_is_held_against_itself(tmp_path: Path) -> None:
    """Its results are computed again by the plan that is being held: this waited for ever."""
    program, inputs = compiled("attention")
    _, trace = program.run(*inputs, commit=True)
    assert trace is not None
    assert ree.dispute(program, trace).stage is None
    program.save(tmp_path / "m.ree")
    trace.save(tmp_path / "a.trace", tensors=False)
    assert command("dispute", str(tmp_path / "a.trace"), str(tmp_path / "m.ree")) == 0


def test_a_claim_whose_stored_tensor_was_altered_loses_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, trace = one("attention")
    path, file = tmp_path / "a.trace", tmp_path / "m.ree"
    program.save(file)
    trace.save(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert command("dispute", str(path), str(file)) == 1
    assert "did not respond in time" in capsys.readouterr().out


def test_a_game_is_held_to_the_claim_that_is_meant(tmp_path: Path) -> None:
    program, trace = one("attention")
    (settled,) = ree.dispute(program, dishonest.lie(trace, 1, dishonest.flip(100))).claims
    game, file = tmp_path / "a.game", tmp_path / "m.ree"
    game.write_bytes(settled.transcript)
    program.save(file)
    own = disputes.judge(settled.transcript, program).referee.trace_root.hex()
    assert command("judge", str(game), str(file), "--root", own) == 1
    assert command("judge", str(game), str(file), "--root", trace.root.hex()) == 1
    assert command("judge", str(game), str(file), "--root", "12") == 2


def test_bf16_is_shown_as_a_number() -> None:
    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 3

    x = torch.linspace(0, 1, 8).to(torch.bfloat16)
    program = ree.compile(Half(), (x,))
    _, trace = program.run(x, commit=True, keep=True)
    assert trace is not None
    (claim,) = ree.dispute(program, dishonest.lie(trace, 0, dishonest.flip(7))).claims
    assert 2.9 < float(claim.value) < 3.1 and float(claim.expected) == 3.0


@pytest.mark.parametrize("arguments", [(3,), (None,), ("a.trace",)])
def test_what_is_no_claim_is_an_input_error(arguments: tuple[object, ...]) -> None:
    program, trace = one("attention")
    with pytest.raises(InputError):
        ree.dispute(program, *arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        ree.dispute("m.ree", trace)  # type: ignore[arg-type]
    for at in ((0.0, 1), ("0", "1"), (1,)):
        with pytest.raises(InputError):
            ree.dispute(program, trace, at=at)  # type: ignore[arg-type]


def test_the_referee_is_a_part_of_the_library() -> None:
    assert ree.referee.Referee is Referee and ree.referee.Game is Game and ree.referee.Rules is Rules
    assert ree.referee.Position is Position and ree.referee.challenge is challenge
    with pytest.raises(AttributeError):
        _ = ree.referee.nothing
