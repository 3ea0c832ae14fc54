"""Mutates disputes: no message but the right one is accepted, the honest never lose, the dishonest never win.

`python -m tests.fuzz_dispute COUNT [SEED]` plays COUNT games with mutated messages, cells and transcripts; the seed is
printed. Digests are mended after most mutations, so that these reach what stands behind them, and after every refused
move the game goes on as it should: so each case also holds the honest players to what they must be able to do.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import blake3
import numpy as np
import torch

import ree
from ree.commit.stages import Kind
from ree.commit.trace import Trace, tensor_ids
from ree.errors import LimitError, VerificationError
from ree.file import digest as data_root
from ree.referee import dispute as disputes
from ree.referee.cells import CELL_BYTES
from ree.referee.game import MAGIC, Game, Party, Rules, State
from ree.referee.judge import Referee
from ree.referee.messages import MESSAGE_BYTES_MAX, Challenge, Proof, Response, digest
from ree.referee.players import Position, challenge
from ree.wire import Reader, Writer
from tests import dishonest
from tests.test_trace import Lambda, traced

SECONDS_MAX = 2.0  # of processor time for one case; it takes a few milliseconds
NOW_S = 1_800_000_000
RULES = Rules(respond_s=1000, prove_s=2000)
NAMES = ("attention", "batched product", "sort", "gather", "scan and scatter", "integers")
CHECKED_CELLS_MAX = 700  # elements whose steps are held against another computation
HEAD_BYTES = 9  # of a message
REFUSED = (VerificationError, LimitError)
NUMBERS = (0, 1, 2, 255, 256, 257, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1)


@dataclass(frozen=True)
class Table:
    """A challenged element of a claim, and a game about it; `proof` is of some step, right or wrong."""

    name: str
    program: ree.Program
    trace: Trace
    position: Position
    follows: bool  # the element follows from its operands
    asked: bytes
    cells: np.ndarray
    answer: bytes
    proof: bytes

    @property
    def referee(self) -> Referee:
        return Referee(self.program.program_id, self.trace.manifest.stages, self.trace.root)


@dataclass(frozen=True)
class Case:
    """A table with something changed; None: that move is made as it should be, whatever came before."""

    kind: str
    table: Table
    asked: bytes | None = None
    answer: bytes | None = None
    cells: bytes | None = None
    proof: bytes | None = None
    transcript: bytes | None = None


# -- the corpus --------------------------------------------------------------------------------------


def table(name: str, program: ree.Program, trace: Trace, stage: int, element: int, rng: random.Random) -> Table:
    """A game about one element, whose prover answers as he must."""
    position = Position(trace, stage, element)
    cells = position.evaluate().values
    asked = challenge(trace, stage, element)
    answer = position.respond(asked, cells)
    wrong = position.wrong_step(cells)
    step = rng.randint(0, len(cells)) if wrong is None else wrong
    proof = position.prove(answer, cells, step)
    return Table(name, program, trace, position, wrong is None, asked, cells, answer, proof)


def out_of_range() -> tuple[ree.Program, Trace]:
    """A claim to have gathered with indices that no run can have read: its inputs are another run's."""
    given = torch.tensor([[1, 2, 3], [4, 5, 0]])
    program = ree.compile(Lambda(lambda m, i: m.e[i].sum(-1)).eval(), (given,))
    _, trace = program.run(given, commit=True, keep=True)
    assert trace is not None
    outside = given.numpy() + 20
    inputs = tensor_ids(trace.manifest.stages, [data_root(outside)], Kind.INPUT)
    manifest = dataclasses.replace(trace.manifest, inputs=inputs)
    return program, Trace(manifest, program, [outside], lambda: list(trace.tensors.values()))


@cache
def tables() -> tuple[Table, ...]:
    """Honest claims and lies about several elements of several programs; always the same."""
    rng = random.Random(11)
    found = []
    for name in NAMES:
        _, trace, program = traced(name, keep=True)
        for stage, element in dishonest.elements(rng, trace):
            found.append(table(f"{name}, honest", program, trace, stage, element, rng))
            lie = dishonest.lie(trace, stage, dishonest.flip(element, rng.randrange(32)), follow=rng.random() < 0.5)
            found.append(table(f"{name}, a lie", program, lie, stage, element, rng))
    program, claim = out_of_range()
    found += [table("out of range", program, claim, 0, element, rng) for element in range(4)]
    return tuple(found)


# -- bytes -------------------------------------------------------------------------------------------


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut, put in, repeated or dropped."""
    at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(8)
    if kind < 4 and data:
        altered = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
        return bytes(altered)
    if kind == 4:
        return data[:at]
    if kind == 5:
        return data[:at] + data[end:]
    if kind == 6:
        return data[:at] + data[at:end] * 2 + data[end:]
    return data[:at] + rng.randbytes(rng.choice([1, 4, 32, MESSAGE_BYTES_MAX])) + data[at:]


def mutate_number(rng: random.Random, data: bytes, offsets: list[int], size: int = 4) -> bytes:
    """One of the numbers (of so many bytes) at these offsets replaced by another: a neighbour or one near a limit."""
    at = rng.choice(offsets)
    old = int.from_bytes(data[at : at + size], "little")
    new = rng.choice([*NUMBERS, old + 1, old - 1, old ^ 1 << rng.randrange(8 * size)]) % (1 << 8 * size)
    return data[:at] + new.to_bytes(size, "little") + data[at + size :]


def mutate_digest(rng: random.Random, old: bytes, others: list[bytes]) -> bytes:
    """32 other bytes: a digest from another place, mostly."""
    flipped = bytearray(old)
    if flipped:
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return rng.choice([*others, bytes(32), bytes(flipped), rng.randbytes(32)])


def mutate_list(rng: random.Random, items: tuple[bytes, ...], others: list[bytes]) -> tuple[bytes, ...]:
    """Items dropped, repeated, swapped or replaced."""
    found = list(items)
    kind, at = rng.randrange(5), rng.randrange(max(len(items), 1))
    if kind == 0 or not found:
        found.insert(at, rng.choice([*others, *items, rng.randbytes(32)]))
    elif kind == 1:
        del found[at]
    elif kind == 2:
        other = rng.randrange(len(found))
        found[at], found[other] = found[other], found[at]
    elif kind == 3:
        found[at] = rng.choice([*others, b"", rng.randbytes(32)])
    else:
        found[at] = mutate_bytes(rng, found[at])
    return tuple(found)


def mutate_slice(rng: random.Random, encoded: bytes, others: list[bytes]) -> bytes:
    """A Bao slice of another range, tensor or length, or with nodes changed or missing."""
    kind = rng.randrange(7)
    if kind == 0 and others:
        return rng.choice(others)
    if kind == 1:
        return mutate_number(rng, encoded, [0], 8)
    if kind == 2:
        return encoded[: rng.randrange(len(encoded))]
    if kind == 3:
        return encoded + rng.choice([b"\0", encoded[-1:], encoded[8:72], bytes(1024)])
    if kind == 4 and len(encoded) > 8 + 64:  # a parent whose children are swapped
        return encoded[:8] + encoded[40:72] + encoded[8:40] + encoded[72:]
    if kind == 5 and len(encoded) > 8 + 64:  # a parent or a chunk missing
        return encoded[:8] + encoded[72:]
    return mutate_bytes(rng, encoded)


# -- messages ----------------------------------------------------------------------------------------


def others_of(rng: random.Random, table: Table) -> Table:
    """Another table, of the same program in most cases."""
    same = [t for t in tables() if t.program.program_id == table.program.program_id]
    return rng.choice(same if rng.random() < 0.7 else list(tables()))


def mutate_challenge(rng: random.Random, table: Table) -> bytes:
    good = Challenge.decode(table.asked)
    other = Challenge.decode(others_of(rng, table).asked)
    roots = [*table.trace.manifest.roots, *good.operands, *good.path, *other.operands, other.result, *other.path]
    kind = rng.randrange(8)
    if kind == 0:
        return mutate_bytes(rng, table.asked)
    if kind == 1:
        counts = [HEAD_BYTES + 16]
        for items in (good.operands, (good.result,)):
            counts.append(counts[-1] + 4 + 32 * len(items))
        return mutate_number(rng, table.asked, [*counts, counts[-1] + 4 + 32 * len(good.path) + 32])
    if kind == 2:
        return mutate_number(rng, table.asked, [HEAD_BYTES, HEAD_BYTES + 8, len(table.asked) - 8], 8)
    if kind == 3:
        field = rng.choice(["operands", "path"])
        return dataclasses.replace(good, **{field: mutate_list(rng, getattr(good, field), roots)}).encode()
    if kind == 4:
        return dataclasses.replace(good, result=mutate_digest(rng, good.result, roots)).encode()
    if kind == 5:
        field = rng.choice(["program_id", "inputs", "weights", "outputs"])
        mutated = mutate_digest(rng, getattr(good.head, field), [getattr(other.head, field), *roots])
        return dataclasses.replace(good, head=dataclasses.replace(good.head, **{field: mutated})).encode()
    if kind == 6:
        sizes = tuple(rng.choice(NUMBERS) for _ in range(rng.choice([1, 2, 1024])))
        return dataclasses.replace(good, head=dataclasses.replace(good.head, sizes=sizes)).encode()
    field = rng.choice(["stage", "element", "operands", "result", "path", "head"])
    return dataclasses.replace(good, **{field: getattr(other, field)}).encode()


def mutate_response(rng: random.Random, table: Table) -> bytes:
    good, other = Response.decode(table.answer), Response.decode(others_of(rng, table).answer)
    kind = rng.randrange(5)
    if kind == 0:
        return mutate_bytes(rng, table.answer)
    if kind == 1:
        return mutate_number(rng, table.answer, [HEAD_BYTES + 64])
    if kind == 2:
        field = rng.choice(["challenge", "cells"])
        mutated = mutate_digest(rng, getattr(good, field), [getattr(other, field), good.challenge, good.cells])
        return dataclasses.replace(good, **{field: mutated}).encode()
    if kind == 3:
        return dataclasses.replace(other, challenge=good.challenge).encode()
    pool = [other.output, *Proof.decode(table.proof).openings, _shifted(rng, table)]
    return dataclasses.replace(good, output=mutate_slice(rng, good.output, pool)).encode()


def _shifted(rng: random.Random, table: Table) -> bytes:
    """A slice of the right tensor, but of another element."""
    element = rng.randrange(table.position.stage.type.numel())
    other = Position(table.trace, table.position.stage.index, element)
    return Response.decode(other.respond(b"", np.zeros(0, np.uint64))).output


def mutate_cells(rng: random.Random, table: Table) -> bytes:
    """Cells that lie: one bit or all, bits that no value has, other elements' cells, lies and what follows."""
    cells = table.cells.copy()
    other = others_of(rng, table).cells
    count = len(cells)
    kind = rng.randrange(9)
    if kind == 0 or not count:
        return rng.choice([other.tobytes(), cells.tobytes() + bytes(CELL_BYTES), mutate_bytes(rng, cells.tobytes())])
    at = rng.randrange(count)
    if kind == 1:
        return position_lie(table, {at: int(cells[at]) ^ 1 << rng.randrange(64)})
    if kind == 2:
        cells[at] |= np.uint64(rng.choice([1 << 32, 1 << 63, 0xFF << 56, 2]))
    elif kind == 3:
        cells[at] = rng.choice([2, 0x7FC00001, 0xFFC00000, 0x7FF8000000000001, 1 << 31, 0x80000000])
    elif kind == 4:
        cells[at] = cells[rng.randrange(count)]
    elif kind == 5:
        cells = np.roll(cells, rng.choice([1, -1, 256]))
    elif kind == 6:
        cells[at:] = 0
    elif kind == 7:
        cells[: min(count, len(other))] = other[: min(count, len(other))]
    else:
        cells[at] ^= np.uint64(1 << rng.randrange(64))
    return cells.tobytes()


def position_lie(table: Table, lies: dict[int, int]) -> bytes:
    return table.position.evaluate(lies).values.tobytes()


def mutate_proof(rng: random.Random, table: Table, answer: bytes, cells: np.ndarray) -> bytes:
    """A proof of any step, with other openings, most of them of what the prover committed to."""
    count, position = len(table.cells), table.position
    step = rng.choice([rng.randint(0, count), rng.randint(0, count), count, max(count - 1, 0)])
    proof = position.prove(answer, cells, step)
    good = Proof.decode(proof)
    kind = rng.randrange(8)
    if kind == 0:
        return mutate_bytes(rng, proof)
    if kind == 1:
        offsets = [HEAD_BYTES + 40]
        for opening in good.openings:
            offsets.append(offsets[-1] + 4 if len(offsets) == 1 else offsets[-1] + 4 + len(opening))
        return mutate_number(rng, proof, offsets[: len(good.openings)] or [HEAD_BYTES + 40])
    if kind == 2:
        return mutate_number(rng, proof, [HEAD_BYTES + 32], 8)
    if kind == 3:
        return dataclasses.replace(good, response=mutate_digest(rng, good.response, [digest(table.asked)])).encode()
    elsewhere = Proof.decode(position.prove(answer, cells, rng.randint(0, count)))
    pool = [*elsewhere.openings, *Proof.decode(others_of(rng, table).proof).openings]
    if kind == 4:
        return dataclasses.replace(good, openings=elsewhere.openings).encode()
    if kind == 5 or not good.openings:
        return dataclasses.replace(good, openings=mutate_list(rng, good.openings, pool)).encode()
    if kind == 6:
        return proof  # as it is, of a step that may be right
    openings = list(good.openings)
    at = rng.randrange(len(openings))
    openings[at] = mutate_slice(rng, openings[at], pool)
    return dataclasses.replace(good, openings=tuple(openings)).encode()


# -- transcripts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """The fields of a transcript; moves: (time, message, cells)."""

    program_id: bytes
    trace_root: bytes
    rules: tuple[int, int]
    ended_s: int
    moves: tuple[tuple[int, bytes, bytes], ...]

    def encode(self) -> bytes:
        out = Writer(MAGIC).raw(self.program_id).raw(self.trace_root).u64(self.rules[0]).u64(self.rules[1])
        out.u64(self.ended_s).u8(len(self.moves))
        for time_s, message, cells in self.moves:
            out.u64(time_s).sized(message).sized(cells)
        return out.bytes()

    @classmethod
    def decode(cls, data: bytes) -> Record:
        reader = Reader(data, "a transcript")
        reader.magic(MAGIC)
        program_id, trace_root, rules = reader.digest(), reader.digest(), (reader.u64(), reader.u64())
        ended_s, count = reader.u64(), reader.u8()
        moves = [(reader.u64(), reader.sized(1 << 30), reader.sized(1 << 30)) for _ in range(count)]
        reader.finish()
        return cls(program_id, trace_root, rules, ended_s, tuple(moves))


def record(table: Table) -> Record:
    """The whole game of a table."""
    messages = [(table.asked, b""), (table.answer, table.cells.tobytes()), (table.proof, b"")]
    moves = tuple((NOW_S + 500 * n, message, cells) for n, (message, cells) in enumerate(messages))
    return Record(table.program.program_id, table.trace.root, (1000, 2000), NOW_S + 1000, moves)


def mutate_transcript(rng: random.Random, table: Table) -> bytes:
    good, other = record(table), record(others_of(rng, table))
    moves = list(good.moves)
    at = rng.randrange(3)
    kind = rng.randrange(10)
    if kind == 0:
        return mutate_bytes(rng, good.encode())
    if kind == 1:
        offset = 8 + 64 + 24
        return mutate_number(rng, good.encode(), [offset], 1)
    if kind == 2:
        offsets = [8 + 64 + 25 + 8]
        offsets.append(offsets[0] + 4 + len(moves[0][1]))
        return mutate_number(rng, good.encode(), [*offsets, offsets[1] + 4 + 8])
    if kind == 3:
        return mutate_number(rng, good.encode(), [72 + 8 * n for n in range(3)], 8)
    if kind == 4:
        moves = moves[: rng.randrange(4)]
        ended_s = rng.choice([*NUMBERS, NOW_S + 500, NOW_S + 1001, NOW_S + 2501])
        return dataclasses.replace(good, moves=tuple(moves), ended_s=ended_s).encode()
    if kind == 5:
        moves[at] = (rng.choice([*NUMBERS, NOW_S, NOW_S + 1000, NOW_S + 3000]), *moves[at][1:])
    elif kind == 6:
        moves[at] = other.moves[at]
    elif kind == 7:
        moves[at] = (*moves[at][:2], rng.choice([b"", b"\0", bytes(8), moves[1][2], moves[1][2][:-8]]))
    elif kind == 8:
        moves[at] = moves[rng.randrange(3)]
        moves = moves[: rng.randint(1, 3)] if rng.random() < 0.5 else moves * 2
    else:
        field = rng.choice(["program_id", "trace_root"])
        return dataclasses.replace(good, **{field: mutate_digest(rng, good.trace_root, [other.trace_root])}).encode()
    return dataclasses.replace(good, moves=tuple(moves)).encode()


# -- cases -------------------------------------------------------------------------------------------


def cases(rng: random.Random, count: int) -> Iterator[Case]:
    """`count` cases, all kinds in turn."""
    makers: list[Callable[[random.Random, Table], Case]] = [_challenge, _response, _cells, _proof, _deep, _transcript]
    for number in range(count):
        yield makers[number % len(makers)](rng, rng.choice(tables()))


def _challenge(rng: random.Random, table: Table) -> Case:
    return Case("challenge", table, asked=mutate_challenge(rng, table))


def _response(rng: random.Random, table: Table) -> Case:
    return Case("response", table, answer=mutate_response(rng, table))


def _cells(rng: random.Random, table: Table) -> Case:
    return Case("cells", table, cells=mutate_cells(rng, table))


def _proof(rng: random.Random, table: Table) -> Case:
    return Case("proof", table, proof=mutate_proof(rng, table, table.answer, table.cells))


def _deep(rng: random.Random, table: Table) -> Case:
    """Cells that lie, with a response that commits to them, and then a mutated proof."""
    cells = mutate_cells(rng, table)
    if len(cells) != table.cells.nbytes:
        return Case("cells", table, cells=cells)
    found = np.frombuffer(cells, np.uint64)
    answer = table.position.respond(table.asked, found)
    return Case("proof of cells", table, cells=cells, proof=mutate_proof(rng, table, answer, found))


def _transcript(rng: random.Random, table: Table) -> Case:
    return Case("transcript", table, transcript=mutate_transcript(rng, table))


# -- the oracle --------------------------------------------------------------------------------------


def attempt(case: Case) -> str:
    """Play one case; gives what became of the mutation. Any broken promise is an AssertionError."""
    start = time.process_time()
    outcome = _judged(case) if case.transcript is not None else _played(case)
    assert time.process_time() - start < SECONDS_MAX
    return f"{case.kind} {outcome}"


def _played(case: Case) -> str:
    """A game with mutated messages, in which whoever is refused moves again, as he should."""
    table, game = case.table, Game(case.table.referee, RULES)
    position, cells, asked = table.position, table.cells, table.asked
    outcome = "kept"
    if case.asked is not None:
        outcome = "refused"
        if _accepted(lambda: game.challenge(case.asked, NOW_S)):  # type: ignore[arg-type]
            found = Challenge.decode(case.asked)
            assert case.asked == challenge(table.trace, found.stage, found.element), "another message says the same"
            asked, outcome = case.asked, "accepted"
            position = Position(table.trace, found.stage, found.element)
            cells = position.evaluate().values
    if game.state is State.OPEN:
        game.challenge(asked, NOW_S)
    if case.cells is not None or case.answer is not None:
        outcome, cells = _answered(game, case, position, cells)
    if game.state is State.CHALLENGED:
        game.respond(position.respond(asked, cells), cells.tobytes(), NOW_S)
    if case.proof is not None:
        outcome = _proven(game, case.proof, position, cells)
    _finished(game, position, cells)
    return outcome


def _accepted(move: Callable[[], object]) -> bool:
    try:
        move()
    except REFUSED as error:
        assert str(error).isprintable() and len(str(error)) > 10
        return False
    return True


def _answered(game: Game, case: Case, position: Position, cells: np.ndarray) -> tuple[str, np.ndarray]:
    """Answer with a mutated response, or with other cells and a response that commits to them."""
    asked, sent = game.events[0].message, cells.tobytes() if case.cells is None else case.cells
    answer = case.answer
    if answer is None:
        good = Response.decode(case.table.answer)
        answer = dataclasses.replace(good, cells=blake3.blake3(sent).digest()).encode()
    if not _accepted(lambda: game.respond(answer, sent, NOW_S)):
        assert case.answer is not None or len(sent) != cells.nbytes, "cells must be refused for their number only"
        return "refused", cells
    found = np.frombuffer(sent, np.uint64)
    assert len(found) == position.element.cells.count
    assert answer == position.respond(asked, found), "another message says the same"
    return "accepted", found


def _proven(game: Game, proof: bytes, position: Position, cells: np.ndarray) -> str:
    """Prove with a mutated proof: if it is accepted, it is the only one of its step, and judged right."""
    if not _accepted(lambda: game.prove(proof, NOW_S)):
        return "refused"
    step = Proof.decode(proof).step
    assert proof == position.prove(game.events[1].message, cells, step), "another message says the same"
    assert game.verdict is not None
    right = follows(position, cells, step)
    if right is not None:
        assert (game.verdict.winner is Party.PROVER) == right, f"step {step} is judged wrongly"
    return f"accepted, {game.verdict.winner.value} wins"


def _finished(game: Game, position: Position, cells: np.ndarray) -> None:
    """The honest challenger's move: he wins unless all cells are right and the element follows from them."""
    wrong, is_right = position.wrong_step(cells), _is_right(position, cells)
    assert (wrong is None) == is_right
    if game.state is State.OVER:
        assert game.verdict is not None
        assert game.verdict.winner is Party.PROVER or not is_right, "the honest lost"
        return
    if wrong is None:
        game.expire(NOW_S + RULES.prove_s + 1)
    else:
        game.prove(position.prove(game.events[1].message, cells, wrong), NOW_S)
    assert game.verdict is not None and (game.verdict.winner is Party.PROVER) == is_right


def _is_right(position: Position, cells: np.ndarray) -> bool:
    honest = position.evaluate()
    if honest.failed is not None:
        return False
    claimed = position.trace.tensors[position.stage.index].reshape(-1)[position.number : position.number + 1]
    return bool((honest.values == cells).all()) and position.stored(honest).tobytes() == claimed.tobytes()


def follows(position: Position, cells: np.ndarray, step: int) -> bool | None:
    """Whether a step follows from the prover's cells, by evaluation with all others given; None if that is too long."""
    count = len(cells)
    if count > CHECKED_CELLS_MAX:
        return None
    found = position.evaluate({a: int(cells[a]) for a in range(count) if a != step})
    if found.failed is not None:  # an index out of range, in this step or in another
        return False if found.failed == step else None
    if step < count:
        return bool(found.values[step] == cells[step])
    claimed = position.trace.tensors[position.stage.index].reshape(-1)[position.number : position.number + 1]
    return position.stored(found).tobytes() == claimed.tobytes()


def _judged(case: Case) -> str:
    """Replay a transcript: what is accepted holds messages that are the only ones of what they say."""
    data, program = case.transcript, case.table.program
    assert data is not None
    try:
        game = disputes.judge(data, program)
    except REFUSED as error:
        assert str(error).isprintable()
        return "refused"
    found = Record.decode(data)
    assert found.encode() == data and (found.program_id, found.trace_root) == (
        program.program_id,
        game.referee.trace_root,
    )
    assert [event.message for event in game.events] == [message for _, message, _ in found.moves]
    if not game.events:
        assert game.verdict is None
        return "empty"
    trace = next(t.trace for t in tables() if t.trace.root == found.trace_root)
    asked = Challenge.decode(found.moves[0][1])
    assert found.moves[0][1] == challenge(trace, asked.stage, asked.element)
    position = Position(trace, asked.stage, asked.element)
    _check_times(game, found)
    if len(found.moves) == 1:
        return "of one move"
    cells = np.frombuffer(found.moves[1][2], np.uint64)
    assert found.moves[1][1] == position.respond(found.moves[0][1], cells)
    if len(found.moves) == 2:
        return "of two moves"
    step = Proof.decode(found.moves[2][1]).step
    assert found.moves[2][1] == position.prove(found.moves[1][1], cells, step)
    right = follows(position, cells, step)
    assert game.verdict is not None and right in (None, game.verdict.winner is Party.PROVER)
    return "unchanged" if data == record(case.table).encode() else "of the same game"


def _check_times(game: Game, found: Record) -> None:
    """Each move in time, and who was silent at the end lost."""
    times = [time_s for time_s, _, _ in found.moves]
    for earlier, later, limit in zip(times, times[1:], found.rules, strict=False):
        assert earlier <= later <= earlier + limit
    assert found.ended_s >= times[-1]
    if len(times) < 3:
        late = found.ended_s > times[-1] + found.rules[len(times) - 1]
        winner = (Party.CHALLENGER, Party.PROVER)[len(times) - 1]
        assert (game.verdict.winner if game.verdict else None) is (winner if late else None)


def fuzz(count: int, seed: int) -> Counter[str]:
    """How often each outcome was met."""
    outcomes: Counter[str] = Counter()
    for number, case in enumerate(cases(random.Random(seed), count)):
        try:
            outcomes[attempt(case)] += 1
        except BaseException:
            changed = {
                f: v.hex() for f in ("asked", "answer", "cells", "proof", "transcript") if (v := getattr(case, f))
            }
            print(f"seed {seed}, case {number} ({case.kind} of {case.table.name}): {changed}", file=sys.stderr)
            raise
    return outcomes


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    tables()
    start = time.monotonic()
    found = fuzz(int(sys.argv[1]), seed)
    seconds = time.monotonic() - start
    print(f"seed {seed}, {seconds:.1f} s, {found.total() / seconds:.0f} cases/s:")
    for outcome, times in sorted(found.items()):
        print(f"  {outcome}: {times}")
