"""Receipts of generations: what is recorded can be read by anyone, and nothing else can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

import ree
from ree.commit import receipt, salted
from ree.commit.keys import PublicKey
from ree.errors import InputError, LimitError, VerificationError
from ree.limits import GENERATED_TOKENS_MAX, GENERATION_RECEIPT_BYTES_MAX, RECEIPT_BYTES_MAX, STOP_TOKENS_MAX
from ree.lm import generation
from ree.lm.generation import MEMBERS, Binding, Generation, Recorder, logits_root, prompt_id, tokens_id
from ree.lm.sample import Sampling
from ree.lm.text import STOP_CHARACTERS_MAX, STOPS_MAX
from tests import fuzz_generation, generation_vectors, receipt_vectors
from tests.generation_model import END, logits_after
from tests.generation_vectors import (
    BINDING,
    DRAWN,
    FALSE,
    FULL,
    GENERATIONS,
    NONCE,
    PROMPT,
    TRUSTED,
    recorded,
    resigned,
    tiny,
    verified,
)
from tests.receipt_vectors import OTHER, SIGNER, filled

VECTORS = json.loads(generation_vectors.PATH.read_text(encoding="utf-8"))


@pytest.fixture(params=list(GENERATIONS))
def made(request: pytest.FixtureRequest) -> Generation:
    return GENERATIONS[request.param]


# -- the format --------------------------------------------------------------------------------------


def test_round_trip(made: Generation) -> None:
    text = generation.make(made, SIGNER)
    assert text == generation.make(made, SIGNER) and text.isascii() and b"\n" not in text and b" " not in text
    for form in (text, text.decode(), json.loads(text), json.dumps(json.loads(text), indent=2)):
        found = generation.read(form, TRUSTED)
        assert (found.claim, found.signer) == (made, SIGNER.public)
        assert found.id == blake3.blake3(found.payload, derive_key_context="ree v1 receipt").digest()
    assert generation.read(generation.make(made, OTHER)).signer == OTHER.public


def test_other_tools_verify_the_signature_and_read_the_statement(made: Generation) -> None:
    envelope = Envelope.from_dict(json.loads(generation.make(made, SIGNER)))
    key = SSlibKey(SIGNER.public.id, "ed25519", "ed25519", {"public": SIGNER.public.id})
    assert envelope.verify([key], 1) == {SIGNER.public.id: key}
    statement = json.loads(envelope.payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1" and statement["predicate"] == made.predicate()
    assert statement["predicateType"] == "https://ree.dev/attestation/generation/v1"
    assert [s["name"] for s in statement["subject"]] == ["generation"]


def test_vectors_are_what_is_written() -> None:
    assert generation_vectors.content() == VECTORS, "python -m tests.generation_vectors"


def test_vectors_hold_by_plain_means() -> None:
    """Digests and spellings as docs/SPEC.md gives them, with no code of the reader."""

    def derived(context: str, data: bytes) -> str:
        return blake3.blake3(data, derive_key_context=context).hexdigest()

    prompt = VECTORS["prompt"]
    tokens = b"".join(token.to_bytes(4, "little") for token in prompt["tokens"])
    assert derived("ree v1 prompt tokens", tokens) == prompt["id"]
    opening = bytes.fromhex(prompt["salt"]) + bytes.fromhex(prompt["id"])
    assert derived("ree v1 prompt commitment", opening) == prompt["commitment"]
    for vector in VECTORS["receipts"].values():
        predicate = vector["predicate"]
        roots = [blake3.blake3(bytes.fromhex(row)).hexdigest() for row in vector["logits"]]
        assert "".join(roots) == predicate["logitsRoots"]
        drawn = b"".join(token.to_bytes(4, "little") for token in predicate["tokens"])
        assert derived("ree v1 generated tokens", drawn) == vector["tokens_id"]
        assert json.loads(vector["payload"])["subject"][0]["digest"] == {"ree_blake3": vector["tokens_id"]}
        text = "".join(VECTORS["model"]["pieces"][token] for token in predicate["tokens"])
        ends = predicate["tokens"][-1] in predicate["stopTokens"]
        ends = ends or any(bytes.fromhex(stop).decode() in text for stop in predicate["stopStrings"])
        assert predicate["finishReason"] == ("stop" if ends else "length")
    reasons = [(v["predicate"]["finishReason"], v["predicate"]["tokens"][-1]) for v in VECTORS["receipts"].values()]
    assert {reason for reason, _ in reasons} == {"stop", "length"} and ("stop", END) in reasons


def test_vectors_are_read_and_verified() -> None:
    trusted = [PublicKey.from_hex(VECTORS["public_key"])]
    for vector in VECTORS["receipts"].values():
        found = generation.read(vector["envelope"], trusted)
        assert found.claim.predicate() == vector["predicate"] and found.payload.decode() == vector["payload"]
        assert found.id.hex() == vector["receipt_id"]
        assert verified(vector["envelope"]).receipt == found


@pytest.mark.parametrize(("why", "envelope"), VECTORS["refuse"], ids=[why for why, _ in VECTORS["refuse"]])
def test_corrupted_vectors_are_refused(why: str, envelope: str) -> None:
    for form in (envelope, envelope.encode("latin-1")):
        with pytest.raises(VerificationError) as caught:
            generation.read(form, TRUSTED)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(("why", "name", "envelope"), VECTORS["refute"], ids=[why for why, *_ in VECTORS["refute"]])
def test_false_vectors_are_read_and_refuted(why: str, name: str, envelope: str) -> None:
    assert generation.read(envelope, TRUSTED).claim != GENERATIONS[name]
    with pytest.raises(VerificationError) as caught:
        verified(envelope, nonce=GENERATIONS[name].nonce)
    assert str(caught.value).isprintable()


# what is wrong, and how the message begins
FIRST = {
    "another program": "the programId is ",
    "other weights": "the weightsId is ",
    "another tokenizer": "the tokenizerId is ",
    "another template": "the chatTemplateId is ",
    "another commitment to the prompt": "the salt does not open the prompt commitment",
    "a longer prompt": "the promptLength is 11, the receipt says 12",
    "no nonce": "the nonce is ",
    "another seed": "step 0: token: ",
    "the first token changed": "step 0: token: 28 is drawn, the receipt says 27",
    "a token changed": "step 2: token: 15 is drawn, the receipt says 1",
    "a token beyond the vocabulary": "step 2: token 32 is none of the model's 32",
    "a top_k beyond the vocabulary": "the sampling does not fit the model: ",
    "a root changed": "step 4: logits: ",
    "roots swapped": "step 0: logits: ",
    "a stop string that was found before": "step 1: reason: a stop string ends the text, but tokens follow",
    "a stop that nothing explains": "step 2: reason: neither a stop token nor a stop string",
    "the last token cut off": "step 1: reason: neither",
    "a token after a stop string": "step 2: reason: a stop string ends the text, but tokens follow",
    "the length as reason at a stop string": "step 2: reason: a stop string ends the text, the receipt says 'length'",
}


@pytest.mark.parametrize("why", FIRST)
def test_the_first_difference_is_named(why: str) -> None:
    with pytest.raises(VerificationError) as caught:
        verified(generation_vectors.refuted()[why], nonce=GENERATIONS[FALSE[why][0]].nonce)
    assert str(caught.value).startswith(FIRST[why])


def test_receipts_follow_the_schema(made: Generation) -> None:
    fuzz_generation.VALIDATOR.check_schema(fuzz_generation.SCHEMA)
    fuzz_generation.VALIDATOR.validate(made.predicate())
    assert fuzz_generation.SCHEMA["$id"] == generation.PREDICATE_TYPE
    assert set(fuzz_generation.SCHEMA["properties"]) == {m.json for m in MEMBERS}
    assert set(fuzz_generation.SCHEMA["required"]) == {m.json for m in MEMBERS if not m.optional}
    bounds = {name: p.get("maximum", p.get("maxItems")) for name, p in fuzz_generation.SCHEMA["properties"].items()}
    assert bounds["maxNewTokens"] == bounds["tokens"] == GENERATED_TOKENS_MAX
    assert (bounds["stopTokens"], bounds["stopStrings"]) == (STOP_TOKENS_MAX, STOPS_MAX)


def test_every_changed_byte_is_refused() -> None:
    good = generation.make(GENERATIONS["greedy"], SIGNER)
    for at, byte in enumerate(good):
        for other in {byte ^ 1, byte ^ 0x20, ord("A"), ord('"'), 0} - {byte}:
            with pytest.raises(VerificationError):
                generation.read(good[:at] + bytes([other]) + good[at + 1 :])
        for altered in (good[:at], good[:at] + good[at + 1 :]):
            with pytest.raises(VerificationError):
                generation.read(altered)


def test_receipts_of_runs_and_of_generations_are_never_taken_for_each_other(made: Generation) -> None:
    with pytest.raises(VerificationError, match="predicateType is not"):
        receipt.read(generation.make(made, SIGNER), TRUSTED)
    for claim in receipt_vectors.CLAIMS.values():
        with pytest.raises(VerificationError, match="predicateType is not"):
            generation.read(receipt.make(claim, SIGNER), TRUSTED)


@pytest.mark.parametrize("value", [None, 1, [], "", b"", {}, object(), {1: 2}, b"[" * 5000, "\ud800"])
def test_what_is_no_receipt_is_refused(value: Any) -> None:
    with pytest.raises(VerificationError):
        generation.read(value, TRUSTED)


def test_wrong_keys() -> None:
    good = generation.make(FULL, SIGNER)
    for trusted in ([], [OTHER.public]):
        with pytest.raises(VerificationError, match="not trusted"):
            verified(good, trusted_keys=trusted)
    with pytest.raises(InputError, match="trusted keys"):
        verified(good, trusted_keys=SIGNER.public)
    assert verified(generation.make(FULL, OTHER), trusted_keys=None).receipt.signer == OTHER.public


def test_files(tmp_path: Path) -> None:
    good = generation.make(FULL, SIGNER)
    (tmp_path / "r").write_bytes(good + b"\n")
    assert generation.read(generation.load(tmp_path / "r")).claim == FULL
    with pytest.raises(InputError, match="cannot read the receipt"):
        generation.load(tmp_path / "none")


# -- bounds ------------------------------------------------------------------------------------------


def longest() -> Generation:
    """As many bytes in every member as may be."""
    count = GENERATED_TOKENS_MAX
    return replace(
        FULL,
        prompt_length=1 << 24,
        sampling=Sampling(
            top_k=1_000_000, seed=(1 << 64) - 1, logit_bias=tuple((999_999 - i, 1.5) for i in range(1024))
        ),
        max_new_tokens=count,
        stop_tokens=tuple(range(1_000_000 - STOP_TOKENS_MAX, 1_000_000)),
        stop_strings=("\U0001f600" * STOP_CHARACTERS_MAX,) * STOPS_MAX,
        tokens=(100_000,) * count,
        logits_roots=b"\xff" * (32 * count),
        finish_reason="length",
        device="\\" * 128,
        ree_version='"' * 128,
    )


def test_the_longest_generation_fits_its_bound_and_no_other() -> None:
    most = longest()
    text = generation.make(most, SIGNER)
    assert RECEIPT_BYTES_MAX < len(text) <= GENERATION_RECEIPT_BYTES_MAX
    assert generation.read(text, TRUSTED).claim == most
    with pytest.raises(InputError, match="tokens are not 1 to 131072"):
        replace(most, tokens=(*most.tokens, 1), logits_roots=most.logits_roots + filled(1))
    with pytest.raises(VerificationError, match="longer than 16384"):
        receipt.read(text)


def test_what_is_longer_than_any_receipt_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    for text in (b"[" * (GENERATION_RECEIPT_BYTES_MAX + 1), " " * (GENERATION_RECEIPT_BYTES_MAX + 1)):
        with pytest.raises(VerificationError, match="longer than 16777216"):
            generation.read(text)


def test_huge_members_are_refused() -> None:
    digits = "0" * (64 << 17)
    for name, value, reason in (
        ("tokens", [7] * (GENERATED_TOKENS_MAX + 1), "tokens are not"),
        ("tokens", [0] * 5_000_000, "tokens are not"),
        ("stopTokens", list(range(300_000)), "stopTokens are not"),
        ("stopStrings", [""] * 3_000_000, "stopStrings are not"),
        ("stopStrings", [digits], "stopStrings are not"),
        ("logitsRoots", digits, "logitsRoots are not 5"),
        ("promptLength", 10**19, "promptLength is no integer"),
        ("maxNewTokens", 10**19, "maxNewTokens is no integer"),
        ("finishReason", digits, "finishReason is neither"),
        ("device", digits, "device is not"),
        ("programId", digits, "programId is no digest"),
    ):
        with pytest.raises(VerificationError, match=reason) as caught:
            generation.read(resigned(FULL, **{name: value}))
        assert len(str(caught.value)) < 300


WRONG: dict[str, list[Any]] = {
    "program_id": [bytes(32), b"x" * 31, "x" * 32, None],
    "tokenizer_id": [None, bytes(32)],
    "chat_template_id": [bytes(32), b"x", "x" * 32],
    "prompt_commitment": [None, b""],
    "prompt_length": [0, -1, True, 1.0, "11", None, (1 << 24) + 1],
    "sampling": [None, {}, DRAWN.to_json()],
    "max_new_tokens": [0, 131073, True, 12.0, None],
    "stop_tokens": [None, [29, 31], (31, 29), (29, 29), (-1,), (True,), ("1",), (1_000_000,), tuple(range(1025))],
    "stop_strings": [None, "zz", ["zz"], ("",), (1,), (b"zz",), ("\ud800",), ("x" * 1001,), ("x",) * 17],
    "tokens": [None, (), [28, 27], (28, 27, 15, 21, True), (28, 27, 15, 21, np.int64(31)), (28, 27, 15, 21, -1)],
    "logits_roots": [None, b"", b"x" * 32 * 4, b"x" * (32 * 5 + 1), "00" * 160, bytearray(160)],
    "finish_reason": [None, "", "STOP", "eos", b"stop", ["stop"]],
    "nonce": [b"x", bytes(32)],
    "issued_at": [-1, 1.0],
    "device": ["", "a\nb"],
    "version": [2, True],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_generation_holds_only_what_can_be_stated(name: str) -> None:
    json_name = next(m.json for m in MEMBERS if m.name == name)
    for value in WRONG[name]:
        with pytest.raises(InputError, match=f"a generation's {json_name} "):
            replace(FULL, **{name: value})


def test_a_generation_holds_no_contradiction() -> None:
    greedy = GENERATIONS["greedy"]
    for change, reason in (
        ({"max_new_tokens": 2}, "tokens are 3, more than maxNewTokens"),
        ({"max_new_tokens": 4}, "more tokens were allowed"),
        ({"finish_reason": "stop"}, "no stop token ended it, and there are no stop strings"),
        ({"stop_tokens": (19,)}, "a stop token ended it"),
        ({"stop_tokens": (14,)}, "go on after the stop token of step 0"),
        ({"logits_roots": greedy.logits_roots[32:]}, "logitsRoots are not 3"),
    ):
        with pytest.raises(InputError, match=reason):
            replace(greedy, **change)  # type: ignore[arg-type]
    replace(greedy, stop_tokens=(19,), finish_reason="stop")  # where both hold, the stop token is the reason


def test_digests_of_tokens() -> None:
    assert prompt_id(PROMPT) == prompt_id(list(PROMPT)) == prompt_id(np.array(PROMPT)) != tokens_id(PROMPT)
    assert prompt_id(np.array(PROMPT, np.uint8)) == prompt_id(PROMPT) != prompt_id(PROMPT[:-1])
    for wrong in ([], [-1], [1_000_000], [1.0], ["1"], [[1]], None, 1, "11", [None], [True, False], [1 << 70]):
        with pytest.raises(InputError, match="tokens are"):
            prompt_id(wrong)  # type: ignore[arg-type]


def test_roots_of_logits() -> None:
    row = logits_after(PROMPT)
    kept = row.copy()
    assert logits_root(row) == blake3.blake3(row.astype("<f4").tobytes()).digest() and (row == kept).all()
    columns = np.asfortranarray(np.stack([row, row[::-1]]))
    assert not columns[0].flags.c_contiguous and logits_root(columns[0]) == logits_root(row)
    zero = row.copy()
    zero[3] = 0.0
    root = logits_root(zero)
    zero[3] = -0.0
    assert logits_root(zero) != root
    for wrong in (row.astype(np.float64), columns, np.float32(1), row.tolist(), row[:0], row.view(np.int32), None):
        with pytest.raises(InputError, match="logits are"):
            logits_root(wrong)  # type: ignore[arg-type]


# -- recording ---------------------------------------------------------------------------------------


def test_what_is_recorded_is_what_the_vectors_state() -> None:
    recorder, name, envelope = recorded(DRAWN, 12, frozenset({END, 29}), ["zz", "[é]"], nonce=NONCE)
    found = generation.read(envelope, TRUSTED)
    claim = found.claim
    assert found.id.hex() == name and claim.ree_version == ree.__version__ and claim.device.startswith("cpu ")
    same = {"prompt_commitment", "issued_at", "device", "ree_version"}
    assert replace(FULL, **{n: getattr(claim, n) for n in same}) == claim
    claim.open_prompt(recorder.salt, prompt_id(PROMPT))
    with pytest.raises(VerificationError, match="does not open the prompt commitment"):
        claim.open_prompt(recorder.salt, prompt_id(PROMPT[1:]))
    assert verified(envelope, salt=recorder.salt, nonce=NONCE).prompt_opened


def test_each_recorder_has_a_salt_of_its_own() -> None:
    made = [Recorder(BINDING, PROMPT, DRAWN, 1, (), (), SIGNER) for _ in range(50)]
    assert len({r.salt for r in made}) == 50 and all(len(r.salt) == salted.BYTES for r in made)


def test_a_recorder_takes_the_next_token_only() -> None:
    row = logits_after(PROMPT)
    recorder = Recorder(BINDING, np.array(PROMPT), Sampling(), 2, (), (), SIGNER)
    for position in (0, 10, 12):
        with pytest.raises(InputError, match=f"position 11 is the next one to be recorded, not {position}"):
            recorder.step(position, 14, row)
    with pytest.raises(InputError, match="logits are"):
        recorder.step(11, 14, row.tolist())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tokens are not"):
        recorder.finish("length")  # there are none
    recorder.step(11, np.int64(14), row)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="more tokens were allowed"):
        recorder.finish("length")
    recorder.step(12, 23, logits_after([*PROMPT, 14]))
    with pytest.raises(LimitError, match="no more than 2 tokens"):
        recorder.step(13, 19, row)
    for reason in ("stop", "eos", "", None):
        with pytest.raises(InputError, match="finishReason"):
            recorder.finish(reason)  # type: ignore[arg-type]
    assert verified(recorder.finish("length")[1], salt=recorder.salt, model=tiny()).rows == 12


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_tokens": []}, {"prompt_tokens": [-1]}, {"prompt_tokens": "abc"}, {"sampling": None},
        {"max_new_tokens": 0}, {"max_new_tokens": GENERATED_TOKENS_MAX + 1}, {"max_new_tokens": None},
        {"stop_tokens": [None]}, {"stop_tokens": [1, "2"]}, {"stop_tokens": range(1025)}, {"stop_tokens": [-1]},
        {"stop_strings": "abc"}, {"stop_strings": [""]}, {"stop_strings": ["x"] * 17}, {"stop_strings": ["\udfff"]},
        {"stop_strings": [None]}, {"nonce": bytes(32)}, {"nonce": "x" * 32}, {"nonce": b"x"},
        {"binding": Binding(b"x", b"x", b"x")},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_receipt_can_state_is_refused_before_anything_is_generated(options: dict[str, Any]) -> None:
    good = {
        "binding": BINDING, "prompt_tokens": PROMPT, "sampling": DRAWN, "max_new_tokens": 8, "stop_tokens": (29,),
        "stop_strings": ("zz",), "signer": SIGNER, "nonce": None,
    }  # fmt: skip
    Recorder(**good)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        Recorder(**(good | options))
