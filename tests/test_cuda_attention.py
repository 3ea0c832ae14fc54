"""Attention on the second device gives the processor's bytes: tiles, split keys, masks, special values, a cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import ree
from ree.device import schedule_attention
from ree.device.backend import backend_of
from ree.graph import Graph, GraphInput, Node
from ree.lm import torch_model
from ree.plan.stream import Layer, Stream
from ree.plan.weights import Weights
from ree.types import DType, TensorType
from ree_kernels import cuda
from tests.cuda_case import kernels_of, same_on_device, same_outputs
from tools.emulator import device as emulator

TILED = ["ree_attention"]
SPLIT = ["ree_split_scores", "ree_split_values"]
SPECIAL = [float("inf"), float("nan"), float("-inf"), -0.0, 1e-40, 3e38]
SCALE = 0.125  # of all: so that they share kernels


@dataclass(frozen=True)
class Case:
    """Extents of an attention: items, heads of queries and of keys, queries, keys, components of keys and of values."""

    b: int
    h: int
    hk: int
    t: int
    s: int
    d: int
    dv: int
    causal: bool = False
    window: int = 0
    softcap: float = 0.0

    def operands(self, special: int = 0, seed: int = 1) -> list[torch.Tensor]:
        shapes = [
            (self.b, self.h, self.t, self.d),
            (self.b, self.hk, self.s, self.d),
            (self.b, self.hk, self.s, self.dv),
        ]
        return [noise(*shape, special=special, seed=seed + n) for n, shape in enumerate(shapes)]


def noise(*shape: int, special: int = 0, seed: int = 0) -> torch.Tensor:
    """Normal numbers, `special` of them replaced by infinities, NaN and others that are seldom met."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    for place, value in zip(
        torch.randint(0, max(1, x.numel()), (special,), generator=generator), SPECIAL * 9, strict=False
    ):
        x.view(-1)[place] = value
    return x


class Attend(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        torch_model.register()

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        c = self.case
        if c.window or c.softcap:
            found: torch.Tensor = torch.ops.ree.causal_attention(q, k, v, SCALE, c.window, c.softcap)
            return found
        return nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=c.causal, scale=SCALE, enable_gqa=True
        )


def kernels(case: Case, inputs: list[torch.Tensor]) -> list[str]:
    """Compare the case on both devices; the kernels of attention that it took."""
    return [name for name in kernels_of(same_on_device(Attend(case), inputs)) if name in TILED + SPLIT]


# -- tiles ----------------------------------------------------------------------------------

TILES = [
    Case(1, 2, 2, 130, 129, 8, 8), Case(1, 2, 1, 65, 64, 8, 8, True), Case(2, 1, 1, 70, 257, 8, 8, True),
    Case(1, 4, 1, 257, 257, 8, 8, True), Case(1, 3, 1, 100, 513, 8, 8), Case(1, 2, 2, 300, 255, 8, 8, True),
    Case(1, 2, 2, 66, 15, 8, 8), Case(1, 2, 2, 66, 1, 8, 8), Case(1, 6, 2, 127, 63, 8, 8, True),
    Case(1, 1, 1, 600, 600, 8, 8, True, window=300), Case(1, 2, 2, 140, 140, 8, 8, True, window=2),
    Case(1, 2, 1, 99, 99, 8, 8, True, window=17, softcap=3.0), Case(2, 2, 2, 70, 130, 64, 64, True),
    Case(1, 1, 1, 67, 131, 40, 40, True), Case(1, 2, 1, 65, 300, 5, 3), Case(1, 1, 1, 80, 65, 80, 128, True),
    Case(1, 1, 1, 66, 290, 128, 80), Case(1, 5, 1, 20, 70, 1, 130, True), Case(1, 70, 1, 3, 40, 8, 8, True),
]  # fmt: skip


@pytest.mark.parametrize("case", TILES, ids=str)
def test_tiles(case: Case) -> None:
    assert kernels(case, case.operands()) == TILED


@pytest.mark.parametrize("case", [TILES[1], TILES[3], TILES[4], replace(TILES[9], t=90, s=90, window=40)], ids=str)
@pytest.mark.parametrize("special", [1, 12])
def test_tiles_of_special_values(case: Case, special: int) -> None:
    """An infinite value reaches only rows that see it; one that a weight of 0 meets makes NaN."""
    q, k, v = case.operands()
    values = case.operands(special=special, seed=special)[2]
    assert kernels(case, [q, k, values]) == TILED
    keys = case.operands(special=special, seed=special)[1]
    assert kernels(case, [q, keys, v]) == TILED
    assert kernels(case, case.operands(special=special)) == TILED


@pytest.fixture
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A form of the tiles' kernel, whatever the device would choose."""
    tile: Any = schedule_attention._Tile

    def of(source: Any) -> Any:
        return tile(source.d, source.d_v, *request.param)

    monkeypatch.setattr(tile, "of", of)
    return request.param


@pytest.mark.parametrize("form", [(4, 1), (4, 4), (8, 2), (4, 2, False), (4, 4, False)], indirect=True)
@pytest.mark.parametrize("case", [Case(1, 4, 2, 150, 390, 40, 33), Case(1, 2, 1, 301, 301, 40, 33, True, window=270)])
def test_other_forms_of_tiles(case: Case, form: Any) -> None:
    assert kernels(case, case.operands()) == TILED
    assert kernels(case, case.operands(special=3)) == TILED


@pytest.mark.parametrize(("shared_bytes", "expected"), [(99 << 10, TILED), (64 << 10, SPLIT)])
def test_cards_with_less_shared_memory(shared_bytes: int, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(1, 2, 1, 129, 130, 128, 64, True)
    program = ree.compile(Attend(case), tuple(case.operands()))
    with cuda.use(emulator.Emulator()) as device:
        monkeypatch.setattr(device, "shared_bytes_max", shared_bytes)
        other = program.to("cuda")
        same_outputs(program, other, case.operands())
    assert kernels_of(other) == expected


def test_scores_that_do_not_fit_are_computed_again() -> None:
    case = Case(1, 2, 1, 200, 600, 8, 8, True)
    program = ree.compile(Attend(case), tuple(case.operands()))
    with cuda.use(emulator.Emulator(memory_bytes=2 << 20)):
        other = program.to("cuda")
        same_outputs(program, other, case.operands())
    assert ["#define REE_KEPT 0" in step.text for step in other.plan(()).steps] == [True]


# -- split keys -------------------------------------------------------------------------------

SPLITS = [
    Case(1, 1, 1, 1, 1, 8, 8), Case(2, 4, 2, 1, 257, 8, 8), Case(1, 8, 1, 1, 600, 8, 8),
    Case(1, 2, 2, 3, 255, 8, 8, True), Case(1, 2, 2, 16, 16, 8, 8, True), Case(1, 2, 1, 5, 300, 8, 8),
    Case(1, 40, 1, 1, 256, 8, 8), Case(1, 3, 1, 5, 17, 8, 8),
    Case(1, 2, 1, 16, 513, 64, 64, False), Case(1, 2, 2, 7, 130, 128, 200), Case(1, 2, 1, 2, 100, 300, 20),
    Case(1, 6, 2, 9, 9, 8, 8, True, window=3), Case(1, 1, 1, 40, 290, 5, 3, True),
]  # fmt: skip


@pytest.mark.parametrize("case", SPLITS, ids=str)
def test_split_keys(case: Case) -> None:
    assert kernels(case, case.operands()) == SPLIT
    assert kernels(case, case.operands(special=3)) == SPLIT


def test_many_chunks() -> None:
    """More chunk sums than a chunk holds: their fold has a third level."""
    case = Case(1, 1, 1, 1, 256 * 256 + 300, 1, 1)
    assert kernels(case, case.operands()) == SPLIT
    case = replace(case, t=80)
    assert kernels(case, case.operands()) == TILED


def test_longer_components_than_a_chunk() -> None:
    case = Case(1, 1, 1, 70, 70, 300, 4)
    assert kernels(case, case.operands()) == SPLIT


# -- masks ------------------------------------------------------------------------------------

MASKED = [(Case(2, 2, 2, 70, 150, 8, 8), TILED), (Case(2, 2, 1, 3, 270, 8, 8), SPLIT)]


@pytest.mark.parametrize(("case", "expected"), MASKED, ids=["tiles", "split"])
@pytest.mark.parametrize("shape", ["BHTS", "11TS", "B11S"])
def test_masks(case: Case, expected: list[str], shape: str) -> None:
    sizes = {"B": case.b, "H": case.h, "T": case.t, "S": case.s}
    keep = noise(*(sizes.get(letter, 1) for letter in shape), seed=9) > 0
    keep[..., 0, :] = False  # a row that sees nothing
    added = torch.where(keep, noise(*keep.shape, seed=8), float("-inf"))
    mask = keep if shape == "B11S" else added
    assert kernels(case, [*case.operands(), mask]) == expected
    v = case.operands(special=5)[2]
    assert kernels(case, [*case.operands()[:2], v, mask]) == expected


def test_strides_and_half_precision() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            q, k, v = x.transpose(1, 2).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k.flip(-1), v, scale=SCALE) + y.permute(0, 2, 3, 1)

    x, y = noise(1, 70, 2, 24), noise(1, 8, 2, 70)
    assert set(TILED) <= set(kernels_of(same_on_device(Model(), (x, y))))
    half = [t.to(torch.bfloat16) for t in Case(1, 2, 1, 70, 70, 8, 8).operands()]
    assert kernels(Case(1, 2, 1, 70, 70, 8, 8, True), half) == TILED


def test_what_has_no_kernel_is_computed_from_the_definition() -> None:
    case = Case(1, 1, 1, 2, 3, 3000, 2)
    assert kernels(case, case.operands()) == []
    assert kernels(replace(case, d=4, s=0), replace(case, d=4, s=0).operands()) == []


# -- over a cache -----------------------------------------------------------------------------

CONTEXT, SLOTS = 768, 3
SIZES = (1, 2, 7, 40, 150)  # rows that are planned for


class Heads(NamedTuple):
    h: int
    hk: int
    d: int
    dv: int
    window: int = 0


def attention_graph(heads: Heads, rows: int) -> Graph:
    """(tokens, positions, q, k, v) -> attention of causal rows."""
    names = {"tokens": (1, rows), "positions": (1, rows)}
    sizes = {"q": (heads.h, heads.d), "k": (heads.hk, heads.d), "v": (heads.hk, heads.dv)}
    inputs = [GraphInput(name, TensorType(shape, DType.I64)) for name, shape in names.items()]
    inputs += [GraphInput(name, TensorType((1, h, rows, d), DType.F32)) for name, (h, d) in sizes.items()]
    attrs = {"causal": True, "mask": "none", "scale": SCALE} | ({"window": heads.window} if heads.window else {})
    node = Node("attention", (2, 3, 4), attrs, TensorType((1, heads.h, rows, heads.dv), DType.F32))
    return Graph(inputs, [], [node], [5])


def run(plan: Any, arrays: list[np.ndarray], shape: tuple[int, ...], state: list[int] | None = None) -> np.ndarray:
    arrays = [np.ascontiguousarray(array) for array in arrays]
    out = np.full(shape, 7, np.float32)
    plan.run([array.ctypes.data for array in arrays], [out.ctypes.data], *([state] if state else []))
    return out


class Cache:
    """A streamed plan's state on the device, and its plans."""

    def __init__(self, heads: Heads) -> None:
        self.heads, self.device = heads, cuda.device()
        self.weights = Weights([])
        self.plans = {rows: self._plan(rows) for rows in SIZES}
        layer = Layer(heads.hk, CONTEXT * heads.d, CONTEXT * heads.dv)
        floats = SLOTS * layer.k_heads * np.array([layer.key_floats, layer.value_floats, CONTEXT])
        self.memory = [self.device.allocate(4 * int(n)) for n in floats]

    def _plan(self, rows: int) -> Any:
        stream = Stream(1, CONTEXT)
        plan = backend_of("cuda").plan(attention_graph(self.heads, rows), self.weights, stream)
        assert stream.layers == [Layer(self.heads.hk, CONTEXT * self.heads.d, CONTEXT * self.heads.dv)]
        assert [step.kernel for step in plan.steps] == [
            "ree_cached_append",
            *(TILED if rows > 1 and rows * self.heads.h // self.heads.hk >= 32 else []),
            *SPLIT,
        ]
        return plan

    def step(self, rows: list[tuple[int, int]], operands: dict[int, list[np.ndarray]]) -> np.ndarray:
        """The results [heads, row, components] of rows (slot, position), filled up with padding, which gives zeros."""
        size = next(n for n in SIZES if n >= len(rows))
        slots = np.full(size, -1, np.int64)
        positions = np.zeros((1, size), np.int64)
        parts = [np.full((1, h, size, d), np.nan, np.float32) for h, d in self._sizes()]
        for n, (slot, position) in enumerate(rows):
            slots[n], positions[0, n] = slot, position
            for part, source in zip(parts, operands[slot], strict=True):
                part[0, :, n] = source[0, :, position]
        state = [slots.ctypes.data, *(memory.address for memory in self.memory)]
        arrays: list[np.ndarray] = [np.zeros((1, size), np.int64), positions, *parts]
        found = run(self.plans[size], arrays, (1, self.heads.h, size, self.heads.dv), state)
        assert not found[0, :, len(rows) :].view(np.uint32).any()
        return found[0, :, : len(rows)]

    def _sizes(self) -> list[tuple[int, int]]:
        return [(self.heads.h, self.heads.d), (self.heads.hk, self.heads.d), (self.heads.hk, self.heads.dv)]

    def operands(self, seed: int, length: int, special: int) -> list[np.ndarray]:
        shapes = [(1, h, length, d) for h, d in self._sizes()]
        return [noise(*shape, special=special * (n == 2), seed=seed + n).numpy() for n, shape in enumerate(shapes)]

    def one_pass(self, operands: list[np.ndarray]) -> np.ndarray:
        """All rows by the processor's plain plan."""
        length = operands[0].shape[2]
        plan = backend_of("cpu").plan(attention_graph(self.heads, length), self.weights)
        plan.compile()
        places = np.arange(length)[None]
        return run(plan, [places, places, *operands], (1, self.heads.h, length, self.heads.dv))[0]


KINDS = [Heads(4, 2, 8, 8), Heads(2, 2, 8, 8), Heads(6, 2, 8, 8, 150), Heads(40, 1, 8, 8)]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    with cuda.use(emulator.shared()):
        yield Cache(request.param)


def fed(cache: Cache, operands: dict[int, list[np.ndarray]], cuts: Iterator[dict[int, int]]) -> dict[int, np.ndarray]:
    """The results of sequences that are fed as `cuts` says: how many rows of each slot come next."""
    lengths = {slot: sequence[0].shape[2] for slot, sequence in operands.items()}
    done = dict.fromkeys(operands, 0)
    found: dict[int, list[np.ndarray]] = {slot: [] for slot in operands}
    while done != lengths:
        cut = {s: min(n, lengths[s] - done[s]) for s, n in next(cuts).items() if s in operands}
        rows = [(s, done[s] + n) for s, count in cut.items() for n in range(count)]
        if not rows:
            continue
        result = cache.step(rows, operands)
        start = 0
        for slot, count in cut.items():
            found[slot].append(result[:, start : start + count])
            done[slot], start = done[slot] + count, start + count
    return {slot: np.concatenate(parts, 1) for slot, parts in found.items()}


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cut_into_steps(cache: Cache, data: st.DataObject) -> None:
    """Decoding and prefill of several sequences, in the same steps."""
    special = data.draw(st.sampled_from([0, 0, 4]))
    lengths = data.draw(st.lists(st.sampled_from([1, 20, 70, 260]), min_size=1, max_size=SLOTS))
    slots = data.draw(st.permutations(range(SLOTS)))[: len(lengths)]
    operands = {s: cache.operands(10 * s, n, special) for s, n in zip(slots, lengths, strict=True)}
    counts = st.sampled_from([0, 1, 1, 2, 9, 35, 50])

    def cuts() -> Iterator[dict[int, int]]:
        turns = 0
        while True:  # a few of any kind; then to the end
            turns += 1
            order = data.draw(st.permutations(slots))
            yield {s: data.draw(counts) for s in order} if turns < 6 else dict.fromkeys(order, 50)

    for slot, result in fed(cache, operands, cuts()).items():
        assert result.tobytes() == cache.one_pass(operands[slot]).tobytes()


def test_a_long_sequence_beside_a_short_one(cache: Cache) -> None:
    operands = {2: cache.operands(5, 700, 0), 0: cache.operands(6, 20, 0)}
    cuts = iter(
        [{2: 149, 0: 1}, {2: 130, 0: 17}, {2: 150}, {2: 150}, {2: 3}, {2: 1, 0: 1}, {0: 1, 2: 1}, *[{2: 140}] * 3]
    )
    for slot, result in fed(cache, operands, cuts).items():
        assert result.tobytes() == cache.one_pass(operands[slot]).tobytes()


def test_steps_that_need_several_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory: scores of rows that are split come in turns, those of tiles are computed again."""
    monkeypatch.setattr(schedule_attention, "_SCRATCH_PART", 1 << 17)
    monkeypatch.setattr(f"{__name__}.SIZES", (150,))
    monkeypatch.setattr(Cache, "_plan", lambda self, rows: backend_of("cuda").plan(
        attention_graph(self.heads, rows), self.weights, Stream(1, CONTEXT)
    ))  # fmt: skip
    with cuda.use(emulator.shared()):
        cache = Cache(KINDS[0])
        kernels = [step.kernel for step in cache.plans[150].steps]
        assert kernels.count(SPLIT[0]) > 2 and "#define REE_KEPT 0" in cache.plans[150].steps[1].text
        operands = {n: cache.operands(n, 50 + 30 * n, 0) for n in range(SLOTS)}
        cuts = iter([{0: 2, 1: 40, 2: 3}, {0: 40, 1: 1, 2: 90}, {0: 1, 1: 1, 2: 1}, *[{0: 50, 1: 50, 2: 50}] * 2])
        for slot, result in fed(cache, operands, cuts).items():
            assert result.tobytes() == cache.one_pass(operands[slot]).tobytes()
