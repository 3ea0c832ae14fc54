"""The game: whose turn it is, by when, what each message leads to, and who has won.

`TURNS` is the whole of it. Whoever is silent past his deadline loses; a message that does not verify is refused, as if
it had not come. A transcript holds all that is needed to play a game again, by anyone who has the program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from ree.errors import VerificationError
from ree.referee.cells import CELL_BYTES, CELLS_MAX
from ree.referee.judge import Element, Judgement, Referee
from ree.referee.messages import MESSAGE_BYTES_MAX, Challenge
from ree.referee.players import check_cells
from ree.wire import Reader, Writer

MAGIC = b"reecase\x01"
DAY_S = 24 * 60 * 60


class Party(Enum):
    """Who moves, and who wins."""

    CHALLENGER = "challenger"
    PROVER = "prover"


class State(Enum):
    """Where a game stands."""

    OPEN = "open"
    CHALLENGED = "challenged"
    ANSWERED = "answered"
    OVER = "over"


@dataclass(frozen=True)
class Rules:
    """How long each party has for a move, in seconds."""

    respond_s: int = DAY_S
    prove_s: int = DAY_S


@dataclass(frozen=True)
class Turn:
    """One row of the game: who moves, what, to which state, and the rule that says how long he has (None: no limit)."""

    party: Party
    move: str
    then: State
    limit: str | None


TURNS = {
    State.OPEN: Turn(Party.CHALLENGER, "challenge", State.CHALLENGED, None),
    State.CHALLENGED: Turn(Party.PROVER, "respond", State.ANSWERED, "respond_s"),
    State.ANSWERED: Turn(Party.CHALLENGER, "prove", State.OVER, "prove_s"),
}


@dataclass(frozen=True)
class Event:
    """A message that was accepted; time_s: since 1970, by the referee's clock; cells: what came with a response."""

    time_s: int
    message: bytes
    cells: bytes = b""


@dataclass(frozen=True)
class Verdict:
    """The end of a game: who has won, why, and what it took.

    seen_bytes: of messages that the referee read; judgement: of the step that was redone, None if it was silence.
    """

    winner: Party
    reason: str
    moves: int
    seen_bytes: int
    judgement: Judgement | None


@dataclass
class Game:
    """One game about one claim."""

    referee: Referee
    rules: Rules = Rules()
    state: State = State.OPEN
    events: list[Event] = field(default_factory=list)
    verdict: Verdict | None = None

    @property
    def deadline_s(self) -> int | None:
        """The last second in which the party whose turn it is may move; None if there is no limit."""
        turn = TURNS.get(self.state)
        return self.events[-1].time_s + getattr(self.rules, turn.limit) if turn and turn.limit else None

    def challenge(self, message: bytes, now_s: int) -> None:
        """The challenger names an element."""
        self._turn("challenge", now_s)
        self.referee.accept_challenge(message)
        self._accept(Event(now_s, message))

    def respond(self, message: bytes, cells: bytes, now_s: int) -> None:
        """The prover opens it, and gives its cells."""
        self._turn("respond", now_s)
        asked = self.events[0].message
        response = self.referee.accept_response(asked, message)
        check_cells(response, self._element(asked).cells.count, cells)
        self._accept(Event(now_s, message, cells))

    def prove(self, message: bytes, now_s: int) -> None:
        """The challenger shows a step to be wrong, or fails to."""
        self._turn("prove", now_s)
        found = self.referee.judge(self.events[0].message, self.events[1].message, message)
        self._accept(Event(now_s, message))
        winner = Party.CHALLENGER if found.is_wrong else Party.PROVER
        self._end(winner, f"{found.step} is {'wrong' if found.is_wrong else 'right'}", found)

    def expire(self, now_s: int) -> None:
        """End the game if the deadline has passed: silence loses."""
        if self.deadline_s is not None and now_s > self.deadline_s:
            silent = TURNS[self.state].party
            winner = Party.PROVER if silent is Party.CHALLENGER else Party.CHALLENGER
            self._end(winner, f"the {silent.value} did not {TURNS[self.state].move} in time", None)

    def _turn(self, move: str, now_s: int) -> None:
        self.expire(now_s)
        turn = TURNS.get(self.state)
        if turn is None or turn.move != move:
            raise VerificationError(f"the game is {self.state.value}: there is nothing to {move}")
        if self.events and now_s < self.events[-1].time_s:
            raise VerificationError("a move is dated before the one that it answers")

    def _accept(self, event: Event) -> None:
        self.events.append(event)
        self.state = TURNS[self.state].then

    def _end(self, winner: Party, reason: str, judgement: Judgement | None) -> None:
        seen = sum(len(event.message) for event in self.events)
        self.state, self.verdict = State.OVER, Verdict(winner, reason, len(self.events), seen, judgement)

    def _element(self, challenge: bytes) -> Element:
        asked = Challenge.decode(challenge)
        return Element(self.referee.stages, asked.stage, asked.element)

    # -- transcripts ------------------------------------------------------------------------
    def transcript(self, ended_s: int) -> bytes:
        """The game as bytes; ended_s: when it was looked at last, which matters if somebody was silent."""
        out = Writer(MAGIC).raw(self.referee.program_id).raw(self.referee.trace_root)
        out.u64(self.rules.respond_s).u64(self.rules.prove_s).u64(ended_s).u8(len(self.events))
        for event in self.events:
            out.u64(event.time_s).sized(event.message).sized(event.cells)
        return out.bytes()


TRANSCRIPT_BYTES_MAX = (1 << 10) + 3 * MESSAGE_BYTES_MAX + CELLS_MAX * CELL_BYTES


def replay(transcript: bytes, referee: Callable[[bytes, tuple[int, ...], bytes], Referee]) -> Game:
    """Play a recorded game again; VerificationError if it breaks a rule anywhere.

    referee: gives the referee for (program id, values of dynamic dimensions, trace root).
    """
    reader = Reader(transcript, "a transcript")
    reader.magic(MAGIC)
    program_id, trace_root = reader.digest(), reader.digest()
    rules = Rules(reader.u64(), reader.u64())
    ended_s, count = reader.u64(), reader.u8()
    if count > len(TURNS):
        raise VerificationError(f"a transcript of {count} moves")
    events = []
    for _ in range(count):
        time_s = reader.u64()
        events.append(Event(time_s, reader.sized(MESSAGE_BYTES_MAX), reader.sized(CELLS_MAX * CELL_BYTES)))
    reader.finish()
    sizes = Challenge.decode(events[0].message).head.sizes if events else ()
    game = Game(referee(program_id, sizes, trace_root), rules)
    moves = [lambda e: game.challenge(e.message, e.time_s), lambda e: game.respond(e.message, e.cells, e.time_s)]
    if any(event.cells for number, event in enumerate(events) if number != 1):
        raise VerificationError("cells come with a response only")
    for event, move in zip(events, [*moves, lambda e: game.prove(e.message, e.time_s)], strict=False):
        move(event)
    if events and ended_s < events[-1].time_s:
        raise VerificationError("a transcript ends before its last move")
    game.expire(ended_s)
    return game
