"""Drawing tokens: every instruction set gives what docs/SAMPLING.md says, which tests/sample_reference.py computes."""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ree.commit import strict_json
from ree.element.interpret import interpret
from ree.element.program import Builder
from ree.errors import DeviceError, InputError, LimitError, RunError, VerificationError
from ree.lm import sample
from ree.lm.sample import LOGIT_BIASES_MAX, TOP_LOGPROBS_MAX, VOCAB_MAX, Sampler, Sampling
from ree.ops.random import philox
from ree.types import DType, Type
from ree_kernels import KernelError, cpu
from tests import sample_reference as reference
from tests import sample_vectors as vectors
from tests.kernel_runs import bits, pointer

ISAS = cpu.supported()
VECTORS = json.loads(vectors.PATH.read_text(encoding="ascii"))
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-140), 2.0**-126, 3.4028235e38, -3.4028235e38, float("-inf")]
INF = float("inf")
FTZ_DAZ_ROUND_UP = 0x8040 | 0x4000


def sampler(isa: str, vocab: int, sampling: Sampling, prompt: Sequence[int] = ()) -> Sampler:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "kernels", lambda: cpu.load(isa))
        return Sampler(vocab, sampling, prompt)


def drawn_by_all(logits: np.ndarray, sampling: Sampling, prompt: Sequence[int] = (), drawn: Sequence[int] = ()) -> int:
    """The token that every instruction set draws."""
    found = set()
    for isa in ISAS:
        state = sampler(isa, len(logits), sampling, prompt).replay(drawn)
        found.add(state.draw(logits, len(prompt) + len(drawn)))
    (token,) = found
    return token


# -- strategies ----------------------------------------------------------------------------------------


@st.composite
def logit_arrays(draw: st.DrawFn) -> np.ndarray:
    """Random logits of which many are equal, infinite, subnormal or huge."""
    n = draw(st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 127, 128, 129, 200])))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 4.0, 40.0, 1e38]))
    values = rng.standard_normal(n) * scale
    if draw(st.booleans()):
        values = np.round(values)
    special = draw(st.lists(st.sampled_from([*SPECIAL, INF]), min_size=1, max_size=4))
    chosen = rng.random(n) < draw(st.sampled_from([0, 0.1, 0.7, 1]))
    with np.errstate(over="ignore"):
        return np.where(chosen, rng.choice(special, n), values).astype(np.float32)


def f32(low: float, high: float, *others: float) -> st.SearchStrategy[float]:
    return st.one_of(st.floats(low, high, width=32), st.sampled_from([low, high, *others]))


@st.composite
def samplings(draw: st.DrawFn, vocab: int, coldest: float = 0.0) -> Sampling:
    tokens = draw(st.lists(st.integers(0, vocab - 1), max_size=4, unique=True))
    plain = draw(st.booleans())  # half of them without penalties
    return Sampling(
        temperature=draw(f32(coldest, 100, 0.25, 1.0)),
        top_k=draw(st.one_of(st.just(0), st.integers(0, vocab))),
        top_p=draw(st.one_of(st.just(1.0), f32(2.0**-149, 1, 0.5, 0.9))),
        min_p=draw(st.one_of(st.just(0.0), f32(0, 1, 0.05))),
        repetition_penalty=1.0 if plain else draw(f32(1 / 64, 64, 1.25)),
        presence_penalty=0.0 if plain else draw(f32(-2, 2)),
        frequency_penalty=0.0 if plain else draw(f32(-2, 2)),
        seed=draw(st.integers(0, (1 << 64) - 1)),
        logit_bias=tuple((token, draw(f32(-100, 100))) for token in tokens),
    )


@st.composite
def requests(draw: st.DrawFn) -> tuple[np.ndarray, Sampling, list[int], list[int]]:
    logits = draw(logit_arrays())
    tokens = st.lists(st.integers(0, len(logits) - 1), max_size=8)
    return logits, draw(samplings(len(logits))), draw(tokens), draw(tokens)


# -- the definition ------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(requests())
def test_every_instruction_set_draws_what_the_reference_draws(
    request_: tuple[np.ndarray, Sampling, list[int], list[int]],
) -> None:
    logits, sampling, prompt, drawn = request_
    expected = reference.draw(logits, sampling, prompt, drawn, len(prompt) + len(drawn))
    assert expected is not None
    assert drawn_by_all(logits, sampling, prompt, drawn) == expected.token


@settings(max_examples=100, deadline=None)
@given(logit_arrays(), st.integers(0, 200), st.data())
def test_logprobs_are_those_of_the_reference(logits: np.ndarray, count: int, data: st.DataObject) -> None:
    count, token = min(count, len(logits), TOP_LOGPROBS_MAX), data.draw(st.integers(0, len(logits) - 1))
    values, top = reference.logprobs(logits, count)
    for isa in ISAS:
        chosen, found = sampler(isa, len(logits), Sampling()).logprobs(logits, count, token)
        assert found == top and np.float32(chosen).tobytes() == values[token].tobytes()


LARGE = {
    "peaked": lambda rng, n: np.where(rng.random(n) < 0.01, rng.uniform(5, 12, n), rng.standard_normal(n)),
    "flat": lambda rng, n: rng.standard_normal(n) * 0.01,
    "equal": lambda rng, n: np.ones(n),
    "few values": lambda rng, n: rng.integers(-3, 4, n),
    "falling": lambda rng, n: -np.arange(n) * 1e-3,
    "rising": lambda rng, n: np.arange(n) * 1e-2,
    "one finite": lambda rng, n: np.where(np.arange(n) == n // 3, 0.0, -np.inf),
    "far apart": lambda rng, n: np.exp(rng.uniform(-80, 80, n)) * rng.choice([-1, 1], n),
}
LIMITS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 40},
    {"top_k": 3000},
    {"top_p": 0.1},
    {"top_p": 0.95},
    {"top_p": 0.9999999},
    {"min_p": 0.05},
    {"top_k": 500, "top_p": 0.9, "min_p": 0.001, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("name", LARGE)
def test_large_vocabularies(name: str) -> None:
    rng = np.random.default_rng(len(name))
    logits = LARGE[name](rng, 4000 + len(name)).astype(np.float32)
    for seed, limits in enumerate(LIMITS):
        sampling = Sampling(temperature=[1.0, 0.6][seed % 2], seed=seed, **limits)
        expected = reference.draw(logits, sampling, [5, 6], [], 2)
        assert expected is not None and drawn_by_all(logits, sampling, [5, 6]) == expected.token, limits


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_vocabulary_keeps_exact_sums(isa: str) -> None:
    """A million equal weights of 2**43: the token is where the random bits lie among them."""
    logits = np.full(VOCAB_MAX, 0.25, np.float32)
    for seed in range(3):
        sampling = Sampling(temperature=1.0, seed=seed)
        number = reference.random_bits(seed, 0) * (VOCAB_MAX << 43) >> 64
        assert sampler(isa, VOCAB_MAX, sampling).draw(logits, 0) == number >> 43
        half = replace(sampling, top_p=0.5)
        number = reference.random_bits(seed, 0) * (VOCAB_MAX << 42) >> 64
        assert sampler(isa, VOCAB_MAX, half).draw(logits, 0) == number >> 43


def test_random_bits_are_philox_of_seed_and_position() -> None:
    for seed, position in [(0, 0), (1, 2), ((1 << 64) - 1, (1 << 40) + 5), (0x123456789ABCDEF0, 77)]:
        b = Builder([], 1)
        words = [b.const(word, Type.U32) for word in (position & 0xFFFFFFFF, position >> 32, 0, 1)]
        key = [b.const(word, Type.U32) for word in (seed & 0xFFFFFFFF, seed >> 32)]
        program = b.finish(philox(b, words, key)[:2], [DType.U32] * 2)
        high, low = (int(word[0]) for word in interpret(program, [], (1,)))
        assert high << 32 | low == reference.random_bits(seed, position)
        for isa in ISAS:
            assert cpu.load(isa).lib.ree_sample_random_bits(seed, position) == reference.random_bits(seed, position)


@contextlib.contextmanager
def number_drawn(number: int, total: int) -> Iterator[None]:
    """Random bits that give this number below the total; chance does not meet all that matter."""
    smallest = -(-(number << 64) // total)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "_random_bits", lambda _: smallest)
        patch.setattr(reference, "random_bits", lambda *_: smallest)
        yield


@settings(max_examples=100, deadline=None)
@given(logit_arrays(), st.data())
def test_each_token_has_its_range_of_random_bits(logits: np.ndarray, data: st.DataObject) -> None:
    sampling = data.draw(samplings(len(logits), coldest=0.125))
    found = reference.draw(logits, sampling, [], [], 0)
    assert found is not None
    end = data.draw(st.sampled_from(sorted(itertools.accumulate(found.weights[token] for token in sorted(found.kept)))))
    for number in {max(end - 1, 0), min(end, found.total - 1)}:
        with number_drawn(number, found.total):
            expected = reference.draw(logits, sampling, [], [], 0)
            assert expected is not None and expected.number == number
            assert drawn_by_all(logits, sampling) == expected.token


def test_weights_have_43_bits() -> None:
    """Every range of 200 tokens of which most weigh a few units of the last place."""
    logits = np.random.default_rng(2).uniform(-31, -27, 200).astype(np.float32)
    logits[100] = 0
    sampling = Sampling(temperature=1.0)
    found = reference.draw(logits, sampling, [], [], 0)
    assert found is not None and 0 in found.weights and 1 in found.weights and found.weights[100] == 1 << 43
    end = 0
    for token, weight in enumerate(found.weights):
        end += weight
        if weight:
            with number_drawn(end - 1, found.total):
                assert drawn_by_all(logits, sampling) == token
    assert end == found.total


@settings(max_examples=200, deadline=None)
@given(f32(-50, 50), st.integers(0, 5), st.data())
def test_bias_and_penalties_are_rounded_step_by_step(logit: float, count: int, data: st.DataObject) -> None:
    """Token 0 is the first of equal ones beside the value expected of it, and less than the next number."""
    sampling = data.draw(samplings(1))
    sampling = replace(sampling, temperature=0.0, logit_bias=((0, data.draw(f32(-100, 100))),))
    logits = np.array([logit, 0], np.float32)
    expected = reference.adjusted(logits, sampling, [0], [0] * count)[0]
    for value, token in ((expected, 0), (np.nextafter(expected, np.float32(np.inf)), 1)):
        logits[1] = value
        assert drawn_by_all(logits, sampling, [0], [0] * count) == token


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["exp", "log"])
def test_functions_are_those_of_the_specification(isa: str, name: str) -> None:
    rng = np.random.default_rng(1)
    if name == "exp":
        ends = [0.0, -0.0, -(2.0**-149), -1e-8, -87.3, -87.4, -103.9, -103.98, -104.1, -110]
        x = np.concatenate([ends, -rng.exponential(8, 5000), -rng.uniform(0, 110, 5000)]).clip(-110, 0)
    else:
        x = np.concatenate([[1.0, 1 + 2.0**-23, 2.0, 9.472636222839355, 1e6, 2.0**20], rng.uniform(1, 2, 5000)])
        x = np.concatenate([x, np.exp(rng.uniform(0, 14, 5000))])
    x = x.astype(np.float32)
    y, kernels = np.empty_like(x), cpu.load(isa)
    getattr(kernels.lib, f"ree_sample_{name}")(pointer(kernels, x, "float *"), pointer(kernels, y, "float *"), len(x))
    assert np.array_equal(bits(y), bits(reference.function(name, x)))


# -- vectors -------------------------------------------------------------------------------------------


def array_of(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), "<f4").astype(np.float32)


def drawn_for(case: dict[str, Any]) -> int:
    assert case["position"] == len(case["prompt"]) + len(case["drawn"])
    sampling = Sampling.from_json(case["sampling"])
    return drawn_by_all(array_of(case["logits"]), sampling, case["prompt"], case["drawn"])


def test_the_vectors_are_current() -> None:
    assert json.loads(json.dumps(vectors.content())) == VECTORS


@pytest.mark.parametrize("name", VECTORS["cases"])
def test_vectors(name: str) -> None:
    case = VECTORS["cases"][name]
    logits, sampling = array_of(case["logits"]), Sampling.from_json(case["sampling"])
    assert drawn_for(case) == case["token"]
    state = Sampler(len(logits), sampling, case["prompt"]).replay(case["drawn"])
    expected = array_of(case["logprobs"])
    for token in range(len(logits)):
        chosen, top = state.logprobs(logits, len(case["top"]), token)
        assert vectors.bits_of(chosen) == vectors.bits_of(expected[token])
        assert [[t, vectors.bits_of(value)] for t, value in top] == case["top"]


@pytest.mark.parametrize("case", VECTORS["others"], ids=lambda case: case["change"])
def test_claims_of_another_token_are_found_wrong(case: dict[str, Any]) -> None:
    assert drawn_for(case) == case["token"] != case["token_claimed"]
    assert VECTORS["cases"][case["of"]]["token"] == case["token_claimed"]


@pytest.mark.parametrize(("why", "value"), VECTORS["refuse"], ids=lambda x: x if isinstance(x, str) else "")
def test_malformed_samplings_are_refused(why: str, value: Any) -> None:
    with pytest.raises(VerificationError, match=r"^sampling is malformed: [^\n]+$"):
        Sampling.from_json(value)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("logits", VECTORS["no_token"], ids=["first", "middle", "last"])
def test_a_nan_is_an_error_that_changes_nothing(isa: str, logits: str) -> None:
    values, state = array_of(logits), sampler(isa, vectors.VOCAB, Sampling(temperature=1.0), [1])
    biased = sampler(isa, vectors.VOCAB, Sampling(logit_bias=((0, -100.0), (17, 1.0)), repetition_penalty=2.0), [17])
    for one in (state, biased):
        for sign in (1, -1):
            with pytest.raises(RunError, match="NaN"):
                one.draw(np.copysign(values, np.float32(sign)), 1)
            with pytest.raises(RunError, match="NaN"):
                one.logprobs(np.copysign(values, np.float32(sign)), 3, 0)
        assert one.position == 1


# -- what limits mean ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(logit_arrays(), st.data())
def test_the_narrowest_limits_are_greedy(logits: np.ndarray, data: st.DataObject) -> None:
    greedy = drawn_by_all(logits, Sampling())
    assert greedy == next(token for token, value in enumerate(logits) if value == logits.max())
    sampling = data.draw(samplings(len(logits), coldest=2.0**-149))
    sampling = replace(sampling, logit_bias=())
    assert drawn_by_all(logits, replace(sampling, top_k=1)) == greedy
    assert drawn_by_all(logits, replace(sampling, top_k=0, min_p=0.0, top_p=2.0**-149)) == greedy


def support(logits: np.ndarray, sampling: Sampling, draws: int = 400) -> set[int]:
    return {Sampler(len(logits), replace(sampling, seed=seed), []).draw(logits, 0) for seed in range(draws)}


@settings(max_examples=20, deadline=None)
@given(st.permutations([2.0] * 3 + [1.0] * 4 + [0.5] * 3), st.integers(1, 10))
def test_equal_logits_are_kept_from_the_lowest_token_on(values: list[float], k: int) -> None:
    logits = np.array(values, np.float32)
    first = sorted(range(len(values)), key=lambda token: (-values[token], token))[:k]
    assert support(logits, Sampling(temperature=4.0, top_k=k)) == set(first)
    p = np.exp(np.sort(logits)[::-1].astype(np.float64) / 4)
    between = (p[:k].sum() - p[k - 1] / 2) / p.sum()  # reached by the k-th and not before
    assert support(logits, Sampling(temperature=4.0, top_p=between)) == set(first)


def test_infinite_logits() -> None:
    logits = np.array([1, INF, 5, -INF, INF], np.float32)
    warm = Sampling(temperature=1.0)
    assert support(logits, warm) == {1, 4}
    assert support(np.array([-INF, 3, -INF, 3], np.float32), warm) == {1, 3}
    assert support(np.full(3, -INF, np.float32), warm) == {0, 1, 2}
    assert support(np.full(3, -INF, np.float32), Sampling()) == {0}
    state = Sampler(5, warm, [])
    half = float(-np.log(np.float32(2)))
    assert state.logprobs(logits, 5, 1) == (half, [(1, half), (4, half), (2, -INF), (0, -INF), (3, -INF)])


def test_penalties_are_those_of_the_formulas() -> None:
    logits = np.array([2.0, -1.0, 3.0, 0.5], np.float32)
    state = Sampler(4, Sampling(repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5), [1, 1])
    # token 2 is worth 3 / 2 - 0.25 n - 0.5 once it was drawn n times: 0.75, then 0.5 as token 3 is, then less
    assert [state.draw(logits, position) for position in range(2, 7)] == [2, 0, 2, 2, 3]


@pytest.mark.parametrize(
    "limits", [{}, {"temperature": 0.5}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.2}], ids=lambda limits: str(limits)
)
def test_frequencies_are_those_of_the_distribution(limits: dict[str, Any]) -> None:
    """Chi-square over 20,000 positions of one seed, and over seeds at one position."""
    logits = vectors.numbers(77, 30, width=5.0)
    sampling = Sampling(**{"temperature": 1.0, "seed": 5} | limits)
    drawn = reference.draw(logits, sampling, [], [], 0)
    assert drawn is not None
    weights = np.exp(logits.astype(np.float64) / sampling.temperature)[drawn.kept]
    draws = 20_000
    expected = draws * weights / weights.sum()
    state = Sampler(len(logits), sampling, [])
    by_position = Counter(state.draw(logits, position) for position in range(draws))
    by_seed = Counter(Sampler(len(logits), replace(sampling, seed=s), []).draw(logits, 0) for s in range(draws))
    for counts in (by_position, by_seed):
        assert set(counts) <= set(drawn.kept)
        observed = np.array([counts[token] for token in drawn.kept])
        statistic, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
        assert statistic < freedom + 4 * np.sqrt(2 * freedom)


# -- sequences -----------------------------------------------------------------------------------------

FULL = Sampling(
    temperature=0.9, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.1, seed=3
)


def rows(count: int, vocab: int = 200) -> np.ndarray:
    return np.random.default_rng(8).standard_normal((count, vocab)).astype(np.float32)


def test_replay_gives_the_state_at_any_position() -> None:
    prompt, logits = [3, 1, 4, 1, 5], rows(150)
    state = Sampler(200, FULL, prompt)
    tokens = [state.draw(row, 5 + i) for i, row in enumerate(logits)]
    assert len(set(tokens)) > 64  # more than a history first has room for
    start = Sampler(200, FULL, prompt)
    for i in (0, 1, 77, 149):
        again = start.replay(tokens[:i])
        assert again.position == 5 + i and again.draw(logits[i], 5 + i) == tokens[i]
        assert again.logprobs(logits[i], 0) == again.logprobs(logits[i], 0, tokens[i])
    assert start.position == 5 and start.draw(logits[0], 5) == tokens[0]
    plain = Sampler(200, Sampling(temperature=1.0, seed=3), prompt)
    assert [plain.replay(tokens).draw(row, 155) for row in logits[:20]] == [
        plain.replay(tokens[::-1]).draw(row, 155) for row in logits[:20]
    ]


def test_logits_stay_and_may_lie_anyhow() -> None:
    logits = rows(1)[0]
    strided = np.repeat(logits, 2)[::2]
    frozen = logits.copy()
    frozen.flags.writeable = False
    assert not strided.flags.c_contiguous
    tokens = {Sampler(200, FULL, [7]).draw(x, 1) for x in (logits, strided, frozen)}
    assert len(tokens) == 1 and np.array_equal(frozen, logits)


def test_threads_do_not_share_scratch() -> None:
    logits = rows(300, 5000)
    alone = [Sampler(5000, replace(FULL, seed=seed), [1, 2]) for seed in range(4)]
    expected = [[state.draw(row, 2 + i) for i, row in enumerate(logits)] for state in alone]
    found: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        state = Sampler(5000, replace(FULL, seed=seed), [1, 2])
        found[seed] = [state.draw(row, 2 + i) for i, row in enumerate(logits)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(4)] == expected


@pytest.fixture
def altered_fp_state() -> Iterator[None]:
    lib = cpu.runtime().lib
    saved = lib.ree_fp_enter()
    lib.ree_set_fp_state(lib.ree_fp_state() | FTZ_DAZ_ROUND_UP)
    yield
    lib.ree_set_fp_state(saved)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets bits of MXCSR")
def test_the_process_floating_point_state_does_not_matter(altered_fp_state: None) -> None:
    for name, case in VECTORS["cases"].items():
        assert drawn_for(case) == case["token"], name
        assert Sampling.from_json(case["sampling"]).to_json() == case["sampling"]
    assert Sampling(temperature=0.1).to_json()["temperature"] == "3dcccccd"


# -- what is refused -------------------------------------------------------------------------------------

BAD_NUMBERS: dict[str, list[Any]] = {
    "temperature": [-0.1, 100.5, INF, float("nan"), 1e300, "1", None, True, 1j],
    "top_k": [-1, VOCAB_MAX + 1, 1.0, "5", None, True],
    "top_p": [0.0, -0.5, 1.001, 1e-50, float("nan"), None],
    "min_p": [-1e-9, 1.001, float("nan")],
    "repetition_penalty": [0.0, 0.015, 65, -1.0],
    "presence_penalty": [-2.001, 2.001, "0"],
    "frequency_penalty": [-2.001, 2.001, [0]],
    "seed": [-1, 1 << 64, 0.0, "7", None],
    "logit_bias": [
        None, "ab", {1: 2.0}, [1], [(1,)], [(1, 2, 3)], [(-1, 0.0)], [(VOCAB_MAX, 0.0)], [(1.0, 0.0)], [(1, 100.5)],
        [(1, float("nan"))], [(1, 0.0), (1, 0.0)], [(t, 1.0) for t in range(LOGIT_BIASES_MAX + 1)],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD_NUMBERS for value in BAD_NUMBERS[name]])
def test_bad_numbers(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*$"):
        Sampling(**{name: value})


def test_numbers_are_rounded_at_the_door() -> None:
    made = Sampling(
        temperature=np.float64(0.1),
        top_p=np.float32(0.9),
        top_k=np.int64(4),
        presence_penalty=-0.0,
        logit_bias=[[7, 0.1], (np.int32(3), 1)],  # type: ignore[arg-type]
    )
    assert made.temperature == float(np.float32(0.1)) and str(made.presence_penalty) == "0.0"
    assert made.logit_bias == ((3, 1.0), (7, float(np.float32(0.1)))) and type(made.top_k) is int
    assert Sampling(temperature=1e-60) == Sampling() and Sampling(top_p=1.00000001) == Sampling()


@settings(max_examples=50, deadline=None)
@given(samplings(1000))
def test_json_round_trip(made: Sampling) -> None:
    text = strict_json.canonical(made.to_json())
    assert Sampling.from_json(strict_json.parse(text, "sampling")) == made


def test_json_of_the_most_biases() -> None:
    made = Sampling(logit_bias=tuple((VOCAB_MAX - 1 - token, token / 7) for token in range(100)))
    most = replace(made, logit_bias=tuple((token, -token / 50) for token in range(LOGIT_BIASES_MAX)))
    for one in (made, most):
        assert Sampling.from_json(strict_json.parse(strict_json.canonical(one.to_json()), "sampling")) == one
    value = most.to_json()
    value["logit_bias"] = value["logit_bias"] | {"5000": "3f800000"}
    with pytest.raises(VerificationError, match="at most 1024"):
        Sampling.from_json(value)


GOOD = rows(1)[0]
MISTAKES: dict[str, tuple[type[Exception], Any]] = {
    "no vocabulary": (InputError, lambda: Sampler(0, Sampling(), [])),
    "a vocabulary too large": (InputError, lambda: Sampler(VOCAB_MAX + 1, Sampling(), [])),
    "top_k above the vocabulary": (InputError, lambda: Sampler(10, Sampling(top_k=11), [])),
    "a bias beyond the vocabulary": (InputError, lambda: Sampler(10, Sampling(logit_bias=((10, 1.0),)), [])),
    "a prompt's token beyond": (InputError, lambda: Sampler(10, Sampling(), [1, 10])),
    "a negative token": (InputError, lambda: Sampler(10, Sampling(), [-1])),
    "a token that is a float": (InputError, lambda: Sampler(10, Sampling(), [1.0])),
    "a token beyond 64 bits": (InputError, lambda: Sampler(10, Sampling(), [1 << 70])),
    "tokens as text": (InputError, lambda: Sampler(10, Sampling(), "12")),
    "tokens of two axes": (InputError, lambda: Sampler(10, Sampling(), [[1, 2]])),
    "ragged tokens": (InputError, lambda: Sampler(10, Sampling(), [[1, 2], [1]])),
    "no tokens at all": (InputError, lambda: Sampler(10, Sampling(), None)),
    "a replayed token beyond": (InputError, lambda: Sampler(10, Sampling(), []).replay([10])),
    "a position before": (InputError, lambda: Sampler(200, FULL, [1]).draw(GOOD, 0)),
    "a position beyond": (InputError, lambda: Sampler(200, FULL, [1]).draw(GOOD, 2)),
    "logits too few": (InputError, lambda: Sampler(201, FULL, []).draw(GOOD, 0)),
    "logits of two axes": (InputError, lambda: Sampler(200, FULL, []).draw(GOOD[None], 0)),
    "logits of float64": (InputError, lambda: Sampler(200, FULL, []).draw(GOOD.astype("f8"), 0)),
    "logits of the other byte order": (InputError, lambda: Sampler(200, FULL, []).draw(GOOD.astype(">f4"), 0)),
    "logits as list": (InputError, lambda: Sampler(200, FULL, []).draw(GOOD.tolist(), 0)),
    "logprobs of nothing drawn": (InputError, lambda: Sampler(200, FULL, [1]).logprobs(GOOD, 1)),
    "logprobs of a token beyond": (InputError, lambda: Sampler(200, FULL, [1]).logprobs(GOOD, 1, 200)),
    "logprobs too many": (InputError, lambda: Sampler(200, FULL, [1]).logprobs(GOOD, TOP_LOGPROBS_MAX + 1, 0)),
    "logprobs less than none": (InputError, lambda: Sampler(200, FULL, [1]).logprobs(GOOD, -1, 0)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    error, call = MISTAKES[name]
    with pytest.raises(error, match=r"^[^\n]+$"):
        call()


def test_sequences_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "HISTORY_MAX", 3)
    state = Sampler(200, FULL, [1, 2])
    with pytest.raises(LimitError):
        state.replay([1, 2])
    state.draw(GOOD, 2)
    with pytest.raises(LimitError):
        state.draw(GOOD, 3)
    with pytest.raises(LimitError):
        Sampler(200, FULL, [1, 2, 3, 4])


def test_kernels_that_are_missing_are_one_of_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise KernelError("not built")

    monkeypatch.setattr(cpu, "kernels", missing)
    with pytest.raises(DeviceError, match="not built"):
        Sampler(10, Sampling(), [])
