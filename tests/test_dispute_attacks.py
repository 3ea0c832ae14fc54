"""Disputes: element programs that no operator has, and attacks by either party, each of which once was an idea."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
import tracemalloc
from collections.abc import Callable

import blake3
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import ree
from ree.commit.elements import PortElements, in_memory
from ree.commit.stages import Kind as Source
from ree.commit.trace import Trace, tensor_ids
from ree.element import scalar
from ree.element.interpret import elements
from ree.element.program import Builder, Port, Program, Value
from ree.errors import LimitError, RunError, VerificationError
from ree.plan.layout import Layout, contiguous
from ree.referee import dispute as disputes
from ree.referee.cells import Cells, frame_of
from ree.referee.evaluate import Evaluation
from ree.referee.game import Game, Party, State
from ree.referee.judge import Referee
from ree.referee.messages import MESSAGE_BYTES_MAX, OPENINGS_MAX, Challenge, Proof
from ree.referee.players import Position, challenge
from ree.referee.ports import SPAN_BYTES_MAX, by_range
from ree.referee.redo import Redo
from ree.referee.scheme import Scheme
from ree.types import DType, Type
from tests import dishonest
from tests.fuzz_dispute import out_of_range
from tests.test_dispute import FMAS_MAX, NOW_S, one, opened, steps
from tests.test_trace import Lambda

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
