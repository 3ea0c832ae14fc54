"""Disputes: the honest never lose, the dishonest always do, whatever the operator, the lie or the message."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import ree
from ree import cli
from ree.commit.elements import PortElements, in_memory
from ree.commit.local import inconsistencies
from ree.commit.stages import Kind as Source
from ree.commit.trace import Trace, tensor_ids
from ree.element import scalar
from ree.element.interpret import elements
from ree.element.program import Builder, Port, Program, Value
from ree.errors import GraphError, InputError, LimitError, RunError, UnsupportedError, VerificationError
from ree.plan.layout import Layout, contiguous
from ree.referee import dispute as disputes
from ree.referee.cells import Cells, Kind, frame_of
from ree.referee.evaluate import Evaluation
from ree.referee.game import Game, Party, Rules, State
from ree.referee.judge import Referee
from ree.referee.messages import MESSAGE_BYTES_MAX, OPENINGS_MAX, Challenge, Proof, Response
from ree.referee.players import Position, challenge
from ree.referee.ports import SPAN_BYTES_MAX, by_range
from ree.referee.redo import Redo
from ree.referee.scheme import Scheme
from ree.types import DType, Type
from tests import dishonest
from tests.fuzz_dispute import out_of_range
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


# -- element programs that no operator has -------------------------------------------------------------


class Grower:
    """Grows an element program over the inputs f32[4, 300], i64[9], bool[7] and an index space of two axes."""

    EXTENTS = ((4, 300), (9,), (7,))

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.b = Builder([Port(DType.F32, 2), Port(DType.I64, 1), Port(DType.BOOL, 1)], 2)
        self.ks: list[Value] = []  # of the folds that are open
        self.values: list[list[Value]] = [[]]  # of each open scope

    def grow(self) -> Program:
        kind = self.rng.choice([Type.F32, Type.F32, Type.I64, Type.BOOL])
        return self.b.finish([self.value(kind, 6)], [{Type.F32: DType.F32, Type.I64: DType.I64}.get(kind, DType.BOOL)])

    def value(self, type: Type, depth: int) -> Value:
        known = [v for scope in self.values for v in scope if v.type is type]
        if known and self.rng.random() < 0.25:
            return self.rng.choice(known)
        makers = {Type.F32: self.f32, Type.I64: self.i64, Type.BOOL: self.truth}
        found = makers[type](depth)
        self.values[-1].append(found)
        return found

    def f32(self, depth: int) -> Value:
        b, kind = self.b, self.rng.randrange(3 if depth <= 0 else 12)
        if kind < 2:
            return b.load(0, *self.place(0, depth))
        if kind == 2:
            return b.f32(self.rng.choice([0.0, -0.0, 1.5, float("nan"), float("inf"), -3e38]))
        if kind == 3:
            return b.load_if(
                self.value(Type.BOOL, depth - 1), self.value(Type.F32, depth - 2), 0, *self.place(0, depth)
            )
        if kind == 4:
            return b.convert(self.value(Type.I64, depth - 1), Type.F32)
        if kind < 7:
            op = self.rng.choice(["add", "mul", "max", "copysign", "div"])
            return b.op(op, self.value(Type.F32, depth - 1), self.value(Type.F32, depth - 1))
        return self.fold(Type.F32, depth)

    def i64(self, depth: int, steered: bool = False) -> Value:
        b, kind = self.b, self.rng.randrange(3 if depth <= 0 else 7 if steered else 9)
        if kind == 0 or (kind == 1 and not self.ks):
            return self.rng.choice([b.i64(self.rng.choice([0, 1, 2, 3, 8])), b.index(0), b.index(1), b.extent(0, 0)])
        if kind == 1:
            return self.rng.choice(self.ks)
        if kind == 2 and not steered:
            return b.load(1, *self.place(1, depth))
        if kind < 7:
            left, right = self.i64(depth - 1, steered), self.i64(depth - 1, steered)
            return b.op(self.rng.choice(["add", "sub", "mul", "min"]), left, right)
        return b.convert(self.value(Type.F32, depth - 1), Type.I64) if kind == 7 else self.fold(Type.I64, depth)

    def truth(self, depth: int) -> Value:
        b, kind = self.b, self.rng.randrange(5)
        if kind < 2 or depth <= 0:
            return b.load(2, *self.place(2, depth))
        type = Type.F32 if kind == 2 else Type.I64
        if kind < 4:
            return b.op("lt", self.value(type, depth - 1), self.value(type, depth - 1))
        return self.fold(Type.BOOL, depth)

    def place(self, source: int, depth: int) -> list[Value]:
        """Coordinates within an input: some control, some from data, some checked."""
        b, found = self.b, []
        for extent in self.EXTENTS[source]:
            at = self.i64(min(depth - 1, 2), steered=self.rng.random() < 0.7)
            if extent < 300 or at not in self.ks:  # a k as it is may be loaded in a row
                at = b.op("min", b.op("max", at, b.i64(0)), b.i64(extent - 1))
            found.append(b.bound(at, extent) if self.rng.random() < 0.2 else at)
        return found

    def fold(self, type: Type, depth: int) -> Value:
        b = self.b
        n = b.i64(self.rng.choice([0, 1, 2, 3, 5, 17, 256, 257, 300] if not self.ks else [0, 1, 2, 3]))
        if self.ks and self.rng.random() < 0.5:
            n = self.rng.choice([b.op("min", self.ks[-1], b.i64(4)), b.op("sub", b.i64(2), self.ks[0]), b.index(1)])
        kinds = {Type.F32: ["sum", "max", "min", "dot"], Type.I64: ["isum", "max"], Type.BOOL: ["any", "all"]}[type]
        kind, width = self.rng.choice([*kinds, "chain"]), self.rng.choice([1, 2])
        types = [type] * 2 if kind == "dot" else [type, Type.I64][:width] if kind == "chain" else [type]
        start = [self.value(t, depth - 2) for t in types]

        def region(k: Value, *carried: Value) -> list[Value]:
            self.ks.append(k)
            self.values.append(list(carried))
            found = [self.value(t, depth - 1) for t in types]
            self.ks.pop()
            self.values.pop()
            return found

        if kind == "chain":
            return self.rng.choice([v for v in b.chain(n, start, region) if v.type is type])
        if kind == "dot":
            return b.fold_dot(n, lambda k: tuple(region(k)))  # type: ignore[arg-type, return-value]
        return getattr(b, f"fold_{kind}")(n, lambda k: region(k)[0])


def grown(rng: random.Random) -> tuple[Program, list[Layout], list[np.ndarray]]:
    """A program, and its inputs in memory (uint8), seen through layouts: transposed, repeated, backwards."""
    data = np.random.default_rng(rng.randrange(1 << 30))
    tables = [data.standard_normal(1200).astype(np.float32), data.integers(-9, 9, 9), data.integers(0, 3, 7, np.uint8)]
    tables[0].view(np.uint32)[::7] = rng.choice([0x7FC00001, 0xFFC00000, 0x80000000, 0x7F800000, 1])
    layout = rng.choice([Layout((4, 300), (300, 1)), Layout((4, 300), (1, 4)), Layout((4, 300), (0, -1), 299)])
    return Grower(rng).grow(), [layout, Layout((9,), (1,)), Layout((7,), (1,))], [t.view(np.uint8) for t in tables]


@given(st.randoms(use_true_random=True))
def test_random_element_programs(rng: random.Random) -> None:
    """The interpreter's value; each cell is written once; each step follows, and is the first wrong one if changed."""
    program, layouts, memories = grown(rng)
    shape, element = (2, 3), rng.randrange(6)
    held = [
        PortElements(x, p.dtype, in_memory(m, p.dtype))
        for x, p, m in zip(layouts, program.inputs, memories, strict=True)
    ]
    try:
        cells = Cells(Scheme(program, tuple(layouts)), frame_of(held, shape, (), element))
    except LimitError:
        return
    assume(cells.count < 20_000)
    found = Evaluation(cells)
    (want,) = elements(program, held, shape, np.array([element]))
    assert scalar.store(found.result, program.dtypes[0]).tobytes() == want.tobytes()
    assert (found.order >= 0).all()
    ranges: list[int] = []

    def reader(data: bytes) -> Callable[[int, int], bytes]:
        def read(first: int, count: int) -> bytes:
            assert first >= 0 and first + count <= len(data)
            ranges.append(count)
            return data[first : first + count]

        return read

    ports = [
        PortElements(x, p.dtype, by_range(reader(m.tobytes()), p.dtype))
        for x, p, m in zip(layouts, program.inputs, memories, strict=True)
    ]
    judged = Cells(cells.scheme, frame_of(ports, shape, (), element))
    assert judged.count == cells.count
    for address in {*rng.sample(range(cells.count), min(cells.count, 40)), *range(cells.count)[-3:]}:
        ranges.clear()
        redo, step = Redo(judged, reader(found.values.tobytes())), judged.step(address)
        assert step.address == address and redo.expected(step) == redo.cell(address) == int(found.values[address])
        assert len(ranges) <= OPENINGS_MAX and max(ranges) <= SPAN_BYTES_MAX
        assert redo.work.fmas <= FMAS_MAX and redo.work.instructions <= FMAS_MAX
    stored = Redo(judged, reader(found.values.tobytes())).stored()
    assert stored is not None and stored.tobytes() == want.tobytes()
    for address in rng.sample(range(cells.count), min(cells.count, 4)):
        lied = Evaluation(cells, {address: int(found.values[address]) ^ 1 << rng.randrange(64)})
        changed = np.flatnonzero((lied.values != found.values) & (lied.order >= 0))
        assert min(changed, key=lambda a: found.order[a]) == address


# -- attacks ----------------------------------------------------------------------------------------


def run_of(function: Callable[..., object], *inputs: torch.Tensor) -> tuple[ree.Program, Trace]:
    """A program and a kept run of it on these inputs (it was made from zeros of their shapes)."""
    torch.manual_seed(1)
    program = ree.compile(Lambda(function).eval(), tuple(torch.zeros_like(x) for x in inputs))
    _, trace = program.run(*inputs, commit=True, keep=True)
    assert trace is not None
    return program, trace


def every_step_holds(program: ree.Program, trace: Trace, most: int = 12) -> None:
    """A sample of all elements: no challenger finds a step of an honest prover wrong, whichever he names."""
    rng = random.Random(8)
    for stage in trace.manifest.stages:
        for element in rng.sample(range(stage.type.numel()), min(most, stage.type.numel())):
            position = Position(trace, stage.index, element)
            values = position.evaluate().values
            assert position.wrong_step(values) is None
            game = opened(program, trace, position, values)
            asked, response = (event.message for event in game.events)
            for step in steps(rng, position, 5):
                assert not game.referee.judge(asked, response, position.prove(response, values, step)).is_wrong


def lies_lose(program: ree.Program, trace: Trace) -> None:
    for stage, element in dishonest.elements(random.Random(9), trace):
        claim = dishonest.lie(trace, stage, dishonest.flip(element), follow=False)
        assert ree.dispute(program, claim, at=(stage, element)).wrong == ("a",)


def test_an_index_out_of_range_in_the_inputs_loses() -> None:
    """No run can have read it, so there are no right cells; still some step of any answer can be shown to be wrong."""
    program, claim = out_of_range()
    assert ree.dispute(program, claim).wrong == ("a",)
    rng = random.Random(10)
    for element in range(claim.manifest.stages[0].type.numel()):
        position = Position(claim, 0, element)
        partial = position.evaluate()
        assert partial.failed is not None
        for values in (partial.values, rng_cells(rng, partial.values), np.full_like(partial.values, 3)):
            game = opened(program, claim, position, values)
            wrong = position.wrong_step(values)
            assert wrong is not None
            game.prove(position.prove(game.events[1].message, values, wrong), NOW_S)
            assert game.verdict is not None and game.verdict.winner is Party.CHALLENGER


@pytest.mark.parametrize("tail", [lambda x: x, lambda x: x.exp() * 2, lambda x: x.sum(-1, keepdim=True)])
def test_coordinates_out_of_range_lose(tail: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Positions beyond a table, which follow from sizes alone and so are in no cell: nothing that reads them holds."""
    size = torch.export.Dim("size", min=2, max=20)
    model = Lambda(lambda m, x: tail(x[:, None] + m.e[torch.arange(x.shape[0])])).eval()
    program = ree.compile(model, (torch.zeros(5),), dynamic_shapes={"args": ({0: size},)})
    _, trace = program.run(torch.zeros(9), commit=True, keep=True)
    assert trace is not None and ree.dispute(program, trace).stage is None
    with pytest.raises(RunError):
        program.run(torch.zeros(15), commit=True)
    stages, x = program.stages((15,)), np.zeros(15, np.float32)
    results = [np.zeros(stage.type.extents(), stage.type.dtype.numpy) for stage in stages]
    inputs = tensor_ids(stages, [blake3.blake3(x.tobytes()).digest()], Source.INPUT)
    manifest = dataclasses.replace(trace.manifest, sizes=(15,), stages=stages, inputs=inputs)
    claim = dishonest.with_results(Trace(manifest, program, [x], lambda: results), results)
    assert ree.dispute(program, claim).wrong == ("a",)
    for stage in stages:
        element = stage.type.numel() - 1
        position = Position(claim, stage.index, element)
        values = rng_cells(random.Random(2), np.zeros(position.element.cells.count, np.uint64))
        game = opened(program, claim, position, values)
        wrong = position.wrong_step(values)
        if wrong is None:
            continue  # it does follow, from what an earlier stage claims
        game.prove(position.prove(game.events[1].message, values, wrong), NOW_S)
        assert game.verdict is not None and game.verdict.winner is Party.CHALLENGER


def rng_cells(rng: random.Random, like: np.ndarray) -> np.ndarray:
    return np.frombuffer(rng.randbytes(like.nbytes), np.uint64)


TRUTHS = {
    "not": lambda m, b, x: ~b,
    "copy": lambda m, b, x: b.t().contiguous(),
    "where": lambda m, b, x: torch.where(b, x, -x),
    "both": lambda m, b, x: (b & (x > 0), b ^ (x > 0), b == (x > 0)),
    "reduced": lambda m, b, x: (b.any(-1), b.all(-1), b.sum(-1)),
    "gathered": lambda m, b, x: b[(x > 0).long()[0]],
    "joined": lambda m, b, x: torch.cat([b, x > 0]).float(),
    "scattered": lambda m, b, x: b.scatter(1, torch.zeros(2, 2, dtype=torch.int64), b[:, 1:3]),
}


@pytest.mark.parametrize("name", [*TRUTHS, "sorted"])
def test_bytes_that_are_no_bools_do_not_make_the_honest_lose(name: str) -> None:
    """Whoever gives the inputs may give a bool of 2 or 255: it is true, to kernels as to referees."""
    others = {"sorted": lambda m, b, x: torch.sort(b, -1)}
    given = torch.tensor([[1, 0, 2, 3], [255, 2, 0, 4]], dtype=torch.uint8).view(torch.bool)
    torch.manual_seed(3)
    every_step_holds(*run_of({**TRUTHS, **others}[name], given, torch.randn(2, 4)))


FLOATS = {
    "moved": lambda m, x: (x.t().contiguous(), torch.cat([x, x.flip(1)])),
    "signs": lambda m, x: (-x, x.abs(), torch.copysign(torch.ones_like(x), x), x.signbit(), x.sign()),
    "compared": lambda m, x: (torch.maximum(x, x.flip(0)), x.amax(-1), x.argmax(-1), torch.where(x > 0, x, -x)),
    "ordered": lambda m, x: (torch.sort(x, -1), torch.topk(x, 3), x.cummax(-1)),
    "converted": lambda m, x: (x.to(torch.int32), x.half(), x.bfloat16(), x.bool()),
    "scanned": lambda m, x: (x.cumsum(-1), x.sum(0), x.float() @ x.float().t()),
    "gathered": lambda m, x: x.gather(1, torch.zeros(6, 3, dtype=torch.int64)),
}
PATTERNS = {
    torch.float32: (0x7FC00001, 0xFFC00000, 0x7F800001, 0x80000000, 0x7F800000, 0xFF800000, 1, 0x80000001),
    torch.float16: (0x7E01, 0xFE00, 0x7C01, 0x8000, 0x7C00, 0xFC00, 1, 0x8001),
    torch.bfloat16: (0x7FC1, 0xFFC0, 0x7F81, 0x8000, 0x7F80, 0xFF80, 1, 0x8001),
}


def odd(dtype: torch.dtype) -> torch.Tensor:
    """NaNs with payload or sign, infinities, subnormals and zeros with sign."""
    bits = np.random.default_rng(4).choice(PATTERNS[dtype], 42).astype(f"u{dtype.itemsize}")
    return torch.from_numpy(bits.view(f"i{dtype.itemsize}").reshape(6, 7)).view(dtype)


@pytest.mark.parametrize("dtype", PATTERNS)
@pytest.mark.parametrize("name", FLOATS)
def test_odd_floats_do_not_make_the_honest_lose(name: str, dtype: torch.dtype) -> None:
    every_step_holds(*run_of(FLOATS[name], odd(dtype)), most=8)


def test_odd_floats_that_are_scattered_do_not_make_the_honest_lose() -> None:
    index = torch.zeros(6, 3, dtype=torch.int64)
    every_step_holds(*run_of(lambda m, x: x.scatter(1, index, x[:, 4:]), odd(torch.float32)), most=42)


def test_bits_that_no_value_has_lose() -> None:
    """A step reads a cell's low bits only; so the step that makes the cell is held to all of them."""
    program, trace = run_of(lambda m, x: torch.where((x > 0) & (x.flip(0) < 1), x.exp(), x * 2), torch.randn(4, 5))
    position = Position(trace, 0, 7)
    values = position.evaluate().values
    scheme = position.element.cells.scheme
    seen = set()
    for address in range(len(values)):
        step = position.element.cells.step(address)
        type = scheme.type[step.value] if step.value >= 0 else Type.F32
        seen.add(type)
        for bits in {Type.BOOL: (2, 256), Type.F32: (1 << 32,), Type.F64: (1 << 51,)}.get(type, (1 << 63,)):
            lied = values.copy()
            lied[address] ^= np.uint64(bits)
            game = opened(program, trace, position, lied)
            assert position.wrong_step(lied) == address
            game.prove(position.prove(game.events[1].message, lied, address), NOW_S)
            assert game.verdict is not None and game.verdict.winner is Party.CHALLENGER
    assert {Type.BOOL, Type.F64} <= seen


def test_a_nan_with_payload_in_a_cell_loses() -> None:
    program, trace = run_of(lambda m, x: x.exp() * 2 + 1, torch.full((3,), float("nan")))
    position = Position(trace, 0, 1)
    values = position.evaluate().values
    for address in np.flatnonzero(values == 0x7FC00000).tolist():
        for bits in (0x7FC00001, 0xFFC00000, 0x7F800001):
            lied = values.copy()
            lied[address] = bits
            game = opened(program, trace, position, lied)
            game.prove(position.prove(game.events[1].message, lied, address), NOW_S)
            assert game.verdict is not None and game.verdict.winner is Party.CHALLENGER


def test_results_that_need_no_cells() -> None:
    """A constant, coordinates or an operand: nothing is committed to, and still a lie loses in the last step."""
    for function in (
        lambda m, x: x.new_full((3, 4), 7.0),
        lambda m, x: x.t().contiguous(),
        lambda m, x: torch.triu(torch.ones_like(x, dtype=torch.bool)),
        lambda m, x: torch.zeros_like(x, dtype=torch.int64) + torch.arange(4),
    ):
        program, trace = run_of(function, torch.randn(3, 4))
        every_step_holds(program, trace)
        lies_lose(program, trace)


def test_folds_of_nothing() -> None:
    """Operands of no bytes, and folds and chains of no elements."""
    program, trace = run_of(
        lambda m, x: (x.sum(-1), x @ x.t(), torch.cat([x, x.sum(-1, keepdim=True)], 1)), torch.zeros(4, 0)
    )
    every_step_holds(program, trace)
    lies_lose(program, trace)


def test_ports_that_read_one_tensor() -> None:
    """A product of a tensor with itself: whose opening is whose is a matter of order alone."""
    program, trace = run_of(lambda m, x: x @ x + x.t() @ x, torch.randn(20, 20))
    every_step_holds(program, trace)
    lies_lose(program, trace)
    stage = next(s for s in trace.manifest.stages if len({p.source for p in s.ports}) < len(s.ports))
    position = Position(trace, stage.index, 25)
    values = position.evaluate().values
    game = opened(program, trace, position, values)
    for step in range(len(values) + 1):
        good = Proof.decode(position.prove(game.events[1].message, values, step))
        swapped = dataclasses.replace(good, openings=good.openings[::-1]).encode()
        with contextlib.suppress(VerificationError):
            assert not game.referee.judge(game.events[0].message, game.events[1].message, swapped).is_wrong


def test_every_row_of_causal_attention() -> None:
    """Each row has folds of its own length; a mask of -inf has none of weight."""

    def attend(m: Lambda, x: torch.Tensor, mask: torch.Tensor) -> object:
        q, k, v = (torch.nn.functional.linear(x, m.w).view(1, 6, 2, 12).transpose(1, 2) for _ in range(3))
        causal = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return causal, torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)

    mask = torch.zeros(6, 6)
    mask[1:3] = float("-inf")
    program, trace = run_of(attend, torch.randn(6, 24), mask)
    for stage in trace.manifest.stages:
        for element in range(0, stage.type.numel(), 12):
            position = Position(trace, stage.index, element)
            values = position.evaluate().values
            assert position.wrong_step(values) is None
    every_step_holds(program, trace, most=20)
    lies_lose(program, trace)


def test_an_element_that_nobody_can_answer_for_cannot_be_challenged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the honest prover, who cannot lay its steps out either, would lose by silence."""
    from ree.referee import cells

    program, trace = one("sort")
    game = Game(Referee(program.program_id, trace.manifest.stages, trace.root))
    asked = challenge(trace, 0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(cells, "CELLS_MAX", 1)
        with pytest.raises(LimitError, match="internal values"):
            game.challenge(asked, NOW_S)
    assert game.state is State.OPEN
    game.challenge(asked, NOW_S)


def test_messages_are_of_limited_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte too many, whatever the fields say; and none is made that a referee would not read."""
    from ree.referee import players

    program, trace = one("attention")
    good = Challenge.decode(challenge(trace, 1, 5))
    path = good.path * 2
    while len(dataclasses.replace(good, operands=path).encode()) <= MESSAGE_BYTES_MAX:
        path += good.path
    referee = Referee(program.program_id, trace.manifest.stages, trace.root)
    for message in (dataclasses.replace(good, operands=path).encode(), good.encode() + bytes(MESSAGE_BYTES_MAX)):
        with pytest.raises(VerificationError, match="more than"):
            referee.accept_challenge(message)
    monkeypatch.setattr(players, "MESSAGE_BYTES_MAX", 300)
    with pytest.raises(LimitError, match="operands"):
        challenge(trace, 1, 5)


def grid(shape: tuple[int, ...], make: Callable[[Builder], Value]) -> Cells:
    """The cells of the first element of a program without inputs."""
    b = Builder([], len(shape))
    found = make(b)
    dtype = {Type.I64: DType.I64, Type.F32: DType.F32}[found.type]
    return Cells(Scheme(b.finish([found], [dtype]), ()), frame_of([], shape, (), 0))


HUGE: dict[str, Callable[[Builder], Value]] = {
    "a long fold": lambda b: b.fold_isum(b.i64(1 << 62), lambda k: b.convert(b.convert(k, Type.F32), Type.I64)),
    "a long dot": lambda b: b.fold_dot(b.i64(1 << 40), lambda k: (b.convert(k, Type.F32), b.f32(1.0))),
    "a long chain": lambda b: b.chain(b.i64(1 << 62), [b.i64(0)], lambda k, x: [x + k])[0],
    "folds in folds": lambda b: b.fold_isum(
        b.i64(1 << 31), lambda k: b.fold_isum(b.i64(1 << 31), lambda j: b.fold_isum(b.i64(1 << 31), lambda i: i))
    ),
    "a triangle": lambda b: b.fold_isum(b.i64(1 << 24), lambda k: b.fold_isum(k, lambda j: k + j)),
    "many short folds": lambda b: b.fold_isum(
        b.i64(1 << 23), lambda k: b.fold_isum(b.op("min", k, b.i64(1)), lambda j: k + j)
    ),
    "a triangle in a chain": lambda b: b.chain(
        b.i64(1 << 20), [b.i64(0)], lambda k, x: [x + b.fold_max(b.op("rem", k, b.i64(2)), lambda j: j)]
    )[0],
    "a pyramid": lambda b: b.fold_isum(
        b.i64(1 << 20), lambda k: b.fold_isum(k, lambda j: b.fold_isum(j, lambda i: b.fold_isum(i + k, lambda h: h)))
    ),
}


@pytest.mark.parametrize("name", HUGE)
def test_hostile_sizes_are_refused_at_once(name: str) -> None:
    """However many steps a program says that an element has, counting them is bounded."""
    start = time.process_time()
    with pytest.raises(LimitError):
        grid((2,), HUGE[name])
    assert time.process_time() - start < 5


def test_folds_whose_lengths_grow_are_laid_out_quickly() -> None:
    start = time.process_time()
    cells = grid((2,), lambda b: b.fold_isum(b.i64(2000), lambda k: b.fold_isum(k, lambda j: k + j)))
    assert cells.count == sum(max(1, -(-k // 256)) for k in range(2000)) + 2000 + 8
    found = Evaluation(cells)
    assert int(found.result[0]) == sum(k * k + k * (k - 1) // 2 for k in range(2000))
    for address in range(0, cells.count, 97):
        assert cells.step(address).address == address
    assert time.process_time() - start < 10


def test_deep_coordinates_are_no_deep_recursion() -> None:
    """Thousands of control values in a row, and a doubling whose paths are beyond counting."""

    def row(b: Builder, k: Value) -> Value:
        for _ in range(5000):
            k = b.op("sub", b.i64(3), k)
        return b.fold_isum(b.op("max", k, b.i64(1)), lambda j: j)

    assert grid((2,), lambda b: row(b, b.index(0))).count == 1

    def doubled(b: Builder) -> Value:
        def region(k: Value) -> Value:
            for _ in range(200):
                k = k + k
            return b.load(0, k)

        return b.fold_isum(b.i64(1), region)

    b = Builder([Port(DType.I64, 1)], 1)
    Scheme(b.finish([doubled(b)], [DType.I64]), (contiguous((4,)),))


def test_cells_come_with_a_response_only() -> None:
    """Also in a transcript that has none."""
    program, trace = one("attention")
    game = Game(Referee(program.program_id, trace.manifest.stages, trace.root))
    game.challenge(challenge(trace, 1, 5), NOW_S)
    good = game.transcript(NOW_S)
    assert disputes.judge(good, program).state is State.CHALLENGED
    with pytest.raises(VerificationError, match="cells"):
        disputes.judge(good[:-4] + (8).to_bytes(4, "little") + bytes(8), program)


def test_lengths_that_lie_allocate_nothing() -> None:
    program, trace = one("attention")
    game = Game(Referee(program.program_id, trace.manifest.stages, trace.root))
    game.challenge(challenge(trace, 1, 5), NOW_S)
    good = game.transcript(NOW_S)
    tracemalloc.start()
    for at in (len(good) - 4, 8 + 64 + 24 + 1 + 8):
        for length in (1 << 27, (1 << 32) - 1):
            with pytest.raises(VerificationError):
                disputes.judge(good[:at] + length.to_bytes(4, "little") + good[at + 4 :], program)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


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
