"""Generations are verified by one pass: what the model generates is found true, and nothing else is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from ree.commit.keys import PublicKey
from ree.errors import InputError, RunError, VerificationError
from ree.lm import check, generation
from ree.lm.batch import Batch
from ree.lm.check import verify
from ree.lm.engine import Engine, Row
from ree.lm.generate import Wanted, generate
from ree.lm.generation import MEMBERS, Generation, Recorder, logits_root
from ree.lm.model import LanguageModel
from ree.lm.sample import Sampler, Sampling
from ree.lm.ticket import Ended, Job
from tests import fuzz_generation, lm_folders
from tests.generation_model import VOCAB, TinyEngine, TinyModel, decode, generated, logits_after
from tests.generation_vectors import (
    BINDING,
    FULL,
    GENERATIONS,
    PROMPT,
    TRUSTED,
    recorded,
    resigned,
    stated,
    tiny,
    verified,
)
from tests.lm_fakes import END as FAKE_END
from tests.lm_fakes import VOCAB as FAKE_VOCAB
from tests.lm_fakes import FakeEngine, FakeText
from tests.receipt_vectors import SIGNER, filled

MUTATIONS = 3000


# -- verification ------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", GENERATIONS.values(), ids=list(GENERATIONS))
def test_one_prefill_reads_each_token_once_and_asks_for_the_rows_that_count(made: Generation) -> None:
    envelope = generation.make(made, SIGNER)
    for rows_max in (1, 2, 3, 4, 7, 11, 12, 64):
        model, seen = tiny(rows_max=rows_max), []
        found = verified(envelope, model, progress=lambda done, total, seen=seen: seen.append((done, total)))
        rows = len(PROMPT) + len(made.tokens) - 1
        assert (found.steps, found.rows, found.prompt_opened) == (range(len(made.tokens)), rows, True)
        assert found.receipt.claim == made and found.seconds > 0
        (engine,) = model.engines
        assert engine.tokens == [*PROMPT, *made.tokens[:-1]] and engine.opened == 0
        assert engine.wanted == list(range(len(PROMPT) - 1, rows)) and engine.steps == -(-rows // rows_max)
        assert len(seen) == engine.steps and seen[-1] == (rows, rows)


def test_what_is_generated_is_verified_whatever_was_asked_for() -> None:
    rng = np.random.default_rng(5)
    reasons = set()
    for number in range(120):
        prompt = rng.integers(0, VOCAB, rng.integers(1, 20)).tolist()
        sampling = Sampling(
            temperature=float(rng.choice([0.0, 0.5, 1.0, 3.0])), top_k=int(rng.integers(0, VOCAB)),
            top_p=float(rng.choice([1.0, 0.9, 0.3])), min_p=float(rng.choice([0.0, 0.05])), seed=number,
            repetition_penalty=float(rng.choice([1.0, 1.3])), presence_penalty=float(rng.choice([0.0, 0.5])),
            frequency_penalty=float(rng.choice([0.0, 0.25])), logit_bias=((int(rng.integers(VOCAB)), 3.0),),
        )  # fmt: skip
        stops, texts = rng.integers(0, VOCAB, rng.integers(0, 3)).tolist(), ["st", "éa", "q", "["][number % 5 :][:2]
        recorder, _, envelope = recorded(sampling, int(rng.integers(1, 30)), stops, texts, prompt)
        model = tiny(rows_max=int(rng.integers(1, 30)))
        claim = verified(envelope, model, prompt, salt=recorder.salt).receipt.claim
        reasons.add((claim.finish_reason, claim.tokens[-1] in claim.stop_tokens))
        wrong = list(claim.tokens)
        wrong[int(rng.integers(len(wrong)))] ^= 1
        with pytest.raises(VerificationError, match=r"step|finishReason|go on"):
            verified(resigned(claim, tokens=wrong), model, prompt, salt=recorder.salt)
    assert reasons == {("stop", True), ("stop", False), ("length", False)}


def test_without_the_salt_a_wrong_prompt_shows_in_the_logits() -> None:
    envelope = generation.make(FULL, SIGNER)
    assert not verified(envelope, salt=None).prompt_opened
    with pytest.raises(VerificationError, match="the salt does not open the prompt commitment"):
        verified(envelope, salt=filled(9))
    other = (*PROMPT[:-1], PROMPT[-1] ^ 1)
    with pytest.raises(VerificationError, match="step 0: logits: "):
        verified(envelope, prompt=other, salt=None)
    with pytest.raises(VerificationError, match="the salt does not open"):
        verified(envelope, prompt=other)
    with pytest.raises(VerificationError, match="promptLength is 10, the receipt says 11"):
        verified(envelope, prompt=PROMPT[1:])
    for wrong in ([], None, [VOCAB] * 11, [1.5] * 11, [-1] * 11):
        with pytest.raises(InputError):
            verified(envelope, prompt=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a salt has 32 bytes"):
        verified(envelope, salt=b"x")


def test_other_models_are_refused_before_anything_is_computed() -> None:
    envelope = generation.make(FULL, SIGNER)
    for name in ("program_id", "weights_id", "tokenizer_id", "chat_template_id"):
        for other in (filled(9), *([None] if name == "chat_template_id" else [])):
            model = tiny(**{name: other})
            with pytest.raises(VerificationError, match=f"the {receipt_name(name)} is "):
                verified(envelope, model)
            assert not model.engines
    with pytest.raises(VerificationError, match="the nonce is"):
        verified(envelope, nonce=filled(9))
    untemplated = replace(FULL, chat_template_id=None)
    assert verified(generation.make(untemplated, SIGNER), tiny(chat_template_id=None)).rows == 15
    assert verified(generation.make(untemplated, SIGNER)).rows == 15


def receipt_name(name: str) -> str:
    return next(m.json for m in MEMBERS if m.name == name)


def test_what_does_not_fit_the_model_is_refused() -> None:
    envelope = generation.make(FULL, SIGNER)
    assert verified(envelope, tiny(context=15)).rows == 15
    with pytest.raises(VerificationError, match="longer than the model's context of 14"):
        verified(envelope, tiny(context=14))
    with pytest.raises(InputError, match="a token of the prompt is not one of the model's 20"):
        verified(generation.make(replace(FULL, tokens=(1,) * 5, stop_tokens=()), SIGNER), tiny(vocab_size=20))


@dataclass
class Altered(TinyModel):
    """Its logits are changed at one position, or reading that position fails."""

    at: int = 0
    value: float | None = None

    def engine(self, slots: int = 1) -> TinyEngine:
        at, value = self.at, self.value

        class Engine(TinyEngine):
            def step(self, rows: Sequence[Row]) -> np.ndarray:
                logits = super().step(rows)
                wanting = [row.position for row in rows if row.wants]
                if at in [row.position for row in rows] and value is None:
                    raise RunError("an index is out of range")
                if at in wanting:
                    logits[wanting.index(at), 0] = value
                return logits

        self.engines.append(Engine(self.rows_max, self.context))
        return self.engines[-1]


def altered(at: int, value: float | None) -> Altered:
    own = tiny()
    return Altered(own.program_id, own.weights_id, own.tokenizer_id, own.chat_template_id, at=at, value=value)


def test_a_single_number_that_differs_is_found() -> None:
    """Though no token differs: the least likely one has become a little less so."""
    envelope = generation.make(FULL, SIGNER)
    for step in range(len(FULL.tokens)):
        position = len(PROMPT) - 1 + step
        value = np.nextafter(logits_after([*PROMPT, *FULL.tokens[:step]])[0], np.float32(-100))
        model = altered(position, float(value))
        with pytest.raises(VerificationError, match=f"step {step}: logits: the model's have the root "):
            verified(envelope, model)
        assert model.engines[0].opened == 0


def test_a_run_that_fails_is_a_refutation() -> None:
    envelope = generation.make(FULL, SIGNER)
    model = altered(3, None)
    with pytest.raises(VerificationError, match="cannot have read these tokens: an index"):
        verified(envelope, model)
    assert model.engines[0].opened == 0


def test_nothing_is_drawn_from_nan() -> None:
    """Even if the receipt has the root of such logits."""
    row = logits_after(PROMPT)
    row[0] = np.nan
    envelope = resigned(FULL, logitsRoots=(logits_root(row) + FULL.logits_roots[32:]).hex())
    with pytest.raises(VerificationError, match="step 0: token: none can be drawn"):
        verified(envelope, altered(len(PROMPT) - 1, float("nan")))


def test_single_steps_can_be_checked() -> None:
    envelope = generation.make(FULL, SIGNER)
    count = len(FULL.tokens)
    for start in range(count):
        for stop in range(start + 1, count + 1):
            model = tiny()
            found = verified(envelope, model, only=range(start, stop))
            assert found.steps == range(start, stop) and found.rows == len(PROMPT) + stop - 1
            (engine,) = model.engines
            assert engine.tokens == [*PROMPT, *FULL.tokens[: stop - 1]]
            assert engine.wanted == [len(PROMPT) - 1 + step for step in range(start, stop)]
    for wrong in (
        range(0),
        range(6),
        range(-1, 2),
        range(0, 4, 2),
        range(3, 1),
        range(5, 6),
        (0, 1),
        1,
        slice(0, 1),
    ):
        with pytest.raises(InputError, match="steps 0 to 4"):
            verified(envelope, only=wrong)


def test_a_check_of_some_steps_says_nothing_of_others() -> None:
    roots = FULL.logits_roots
    changed = resigned(FULL, logitsRoots=(roots[:64] + filled(9) + roots[96:]).hex())
    for only in (range(2), range(3, 5)):
        assert verified(changed, only=only).steps == only
    for only in (None, range(2, 3), range(1, 5)):
        with pytest.raises(VerificationError, match="step 2: logits"):
            verified(changed, only=only)


def test_penalties_are_replayed_from_tokens_that_are_not_checked() -> None:
    penal = Sampling(temperature=1.0, repetition_penalty=2.0, frequency_penalty=1.5, presence_penalty=1.0, seed=4)
    made = stated(penal, 20)
    plain, _, _ = generated(PROMPT, replace(penal, frequency_penalty=0.0, presence_penalty=0.0), 20)
    assert list(made.tokens) != plain
    envelope = generation.make(made, SIGNER)
    assert verified(envelope, only=range(19, 20)).steps == range(19, 20)
    assert all(verified(envelope, only=range(n, n + 1)).rows == 11 + n for n in range(20))


def test_the_fuzzer_finds_nothing() -> None:
    outcomes = fuzz_generation.fuzz(MUTATIONS, seed=3)
    assert outcomes.total() == MUTATIONS and set(outcomes) == {"refused", "refuted", "true"}
    assert outcomes["refuted"] > 100 and outcomes["true"] > 100  # or the mutations are too wild to say anything


@pytest.mark.parametrize(
    ("where", "name", "careless"),
    [
        (PublicKey, "verifies", lambda *_: True),
        (Generation, "_contradiction", lambda _: None),
        (check, "_check_end", lambda *_: None),
        (check, "_check_model", lambda *_: None),
        (check._Replay, "compare", lambda *_: None),
        (Generation, "open_prompt", lambda *_: None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_fuzzer_finds_what_a_careless_reader_accepts(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, careless: Any
) -> None:
    monkeypatch.setattr(where, name, careless)
    with pytest.raises((AssertionError, LookupError, TypeError, InputError)):
        fuzz_generation.fuzz(MUTATIONS, seed=3)


# -- with the scheduler and with a real model --------------------------------------------------------


@dataclass
class FakeModel:
    """The model of the scheduler's tests, as the verifier sees it."""

    rows_max: int
    program_id: bytes = BINDING.program_id
    weights_id: bytes = BINDING.weights_id
    tokenizer_id: bytes = BINDING.tokenizer_id
    chat_template_id: bytes | None = BINDING.chat_template_id
    vocab_size: int = FAKE_VOCAB
    context: int = 4096
    engines: list[FakeEngine] = field(default_factory=list)

    def engine(self, slots: int = 1) -> FakeEngine:
        self.engines.append(FakeEngine(slots, self.context, self.rows_max))
        return self.engines[-1]

    def text(self, prompt_tokens: Sequence[int], stop_strings: Sequence[str]) -> FakeText:
        return FakeText(stop_strings)


def test_what_the_scheduler_generates_in_a_batch_is_verified_alone() -> None:
    batch = Batch(FakeEngine(slots=3, rows_max=8))
    batch.start()
    running = []
    for number in range(12):
        prompt = list(f"prompt {'again ' * (number % 4)}{number}".encode())
        sampling, stops = Sampling(temperature=1.0, top_p=0.9, seed=number), ["e.", "th"] if number % 2 else []
        recorder = Recorder(BINDING, prompt, sampling, 40, {FAKE_END}, stops, SIGNER)
        sampler, there = Sampler(FAKE_VOCAB, sampling, prompt), threading.Event()
        job = Job(prompt, 40, sampler, FakeText(stops), recorder, frozenset({FAKE_END}))
        running.append((prompt, recorder, batch.submit(job, there.set), there))
    reasons = set()
    for prompt, recorder, ticket, there in running:
        events = ticket.take()
        while not events or not isinstance(events[-1], Ended):
            assert there.wait(60.0)
            there.clear()
            events += ticket.take()
        assert isinstance(events[-1], Ended) and events[-1].reason is not None
        name, envelope = recorder.finish(events[-1].reason)
        found = verify(envelope, FakeModel(rows_max=5), prompt, salt=recorder.salt, trusted_keys=TRUSTED)
        assert found.receipt.id.hex() == name and found.receipt.claim.finish_reason == events[-1].reason
        reasons.add(events[-1].reason)
    assert batch.stop() and reasons == {"stop", "length"}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.open(lm_folders.make(tmp_path_factory.mktemp("model"), vocab=300, hidden=32))


@dataclass
class Chunked:
    """A language model whose verifier gets engines of another chunk size."""

    model: LanguageModel
    rows_max: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def engine(self, slots: int = 1) -> Engine:
        return self.model.engine(slots, rows_max=self.rows_max)


def test_a_real_model_is_verified_by_one_prefill(real: LanguageModel) -> None:
    """Tokens drawn one by one, with a cache, against chunks of a prefill: all logits have equal bits."""
    tokenizer, ends = real.folder.tokenizer, frozenset(real.folder.eos_ids)
    prompt, reasons = tokenizer.encode("The engine reads what was written, and nothing else."), []
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=50, repetition_penalty=1.2, seed=11)):
        text = generate(real.engine(), tokenizer, Wanted(prompt, sampling, 20, ends)).text
        for stops in ((), ("zq", text[len(text) // 2 :][:3])):
            recorder = Recorder(real.binding(False), prompt, sampling, 20, ends, stops, SIGNER)
            made = generate(real.engine(), tokenizer, Wanted(prompt, sampling, 20, ends, stops), recorder)
            name, envelope = recorder.finish(made.reason)
            reasons.append(made.reason)
            for rows_max in (1, 5, 64):
                model: Any = Chunked(real, rows_max)
                found = verify(envelope, model, prompt, salt=recorder.salt, trusted_keys=TRUSTED)
                claim = found.receipt.claim
                assert list(claim.tokens) == made.tokens and found.receipt.id.hex() == name
                assert (claim.weights_id, claim.chat_template_id) == (real.weights_id, None)
            wrong = [claim.tokens[0] ^ 1, *claim.tokens[1:]]
            with pytest.raises(VerificationError, match="step 0: token"):
                verify(resigned(claim, tokens=wrong), real, prompt, salt=recorder.salt, trusted_keys=TRUSTED)
            with pytest.raises(VerificationError, match="step 0: logits"):
                verify(envelope, real, [*prompt[:-1], prompt[-1] ^ 1], salt=None, trusted_keys=TRUSTED)
    assert reasons == ["length", "stop"] * 2


def test_the_vectors_spell_what_they_say() -> None:
    assert decode(GENERATIONS["at a string"].tokens) == "oxt" and decode(FULL.tokens) == "[.pv"
