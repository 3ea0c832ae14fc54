"""Receipts of generations with fixed keys, and receipts to refuse or to refute: tests/vectors/generation.json.

`python -m tests.generation_vectors` writes the file anew. All of it but the envelopes in ENVELOPES is signed with the
trusted key, so that nothing but the check that it is meant for can refuse it. The model is tests/generation_model.py.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ree.commit import dsse, receipt, salted, strict_json
from ree.commit.keys import Signer
from ree.limits import GENERATION_RECEIPT_BYTES_MAX
from ree.lm import generation
from ree.lm.check import Verified, verify
from ree.lm.generation import Binding, Generation, Recorder, logits_root, prompt_id
from ree.lm.sample import Sampling
from tests import receipt_vectors
from tests.generation_model import END, PIECES, VOCAB, TinyModel, generated, logits_after
from tests.receipt_vectors import OTHER, SEED, SIGNER, filled

PATH = Path(__file__).parent / "vectors" / "generation.json"
PROMPT = (7, 4, 11, 11, 14, 26, 22, 14, 17, 11, 3)  # hello world
SALT = filled(8)
NONCE = filled(6)
TRUSTED = [SIGNER.public]
BINDING = Binding(filled(1), filled(2), filled(3), filled(4))
CORRUPTED = "drawn"  # the generation that is corrupted
DRAWN = Sampling(
    temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.25,
    frequency_penalty=-0.5, seed=(1 << 63) + 2, logit_bias=((0, -1.5), (31, 2.0)),
)  # fmt: skip


def tiny(**options: Any) -> TinyModel:
    """The model, with some of its attributes as given."""
    return replace(TinyModel(filled(1), filled(2), filled(3), filled(4)), **options)


def stated(
    sampling: Sampling,
    tokens_max: int,
    stop_tokens: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    prompt: Sequence[int] = PROMPT,
    **more: Any,
) -> Generation:
    """What the model's generation states."""
    tokens, rows, reason = generated(prompt, sampling, tokens_max, stop_tokens, stop_strings)
    fields: dict[str, Any] = {
        "program_id": filled(1),
        "weights_id": filled(2),
        "tokenizer_id": filled(3),
        "prompt_commitment": salted.commit(salted.PROMPT, SALT, prompt_id(prompt)),
        "prompt_length": len(prompt),
        "sampling": sampling,
        "max_new_tokens": tokens_max,
        "stop_tokens": tuple(stop_tokens),
        "stop_strings": tuple(stop_strings),
        "tokens": tuple(tokens),
        "logits_roots": b"".join(map(logits_root, rows)),
        "finish_reason": reason,
        "device": "cpu x86_64 avx512",
        "ree_version": "0.1.0",
        "issued_at": 1_795_341_600,
    }
    return Generation(**fields | more)


GENERATIONS = {
    "greedy": stated(Sampling(), 3),
    "drawn": stated(DRAWN, 12, (29, END), ("zz", "[é]"), chat_template_id=filled(4), nonce=NONCE),
    "at a string": stated(Sampling(), 8, (), ("q", "xt"), device='neon/aarch64 "a\\b"', issued_at=4_102_444_799),
}
FULL = GENERATIONS[CORRUPTED]


def sealed(payload: bytes, kind: str = receipt.PAYLOAD_TYPE, signer: Signer = SIGNER) -> bytes:
    return dsse.seal(payload, kind, signer, GENERATION_RECEIPT_BYTES_MAX)


# -- for tests ---------------------------------------------------------------------------------------


def verified(envelope: Any, model: TinyModel | None = None, prompt: Sequence[int] = PROMPT, **options: Any) -> Verified:
    options = {"salt": SALT, "trusted_keys": TRUSTED} | options
    return verify(envelope, model or tiny(), prompt, **options)


def resigned(made: Generation, **members: Any) -> bytes:
    """A receipt whose statement is not checked before it is signed."""
    statement = generation.statement(made)
    statement["predicate"] |= members
    statement["subject"][0]["digest"]["ree_blake3"] = generation.tokens_id(statement["predicate"]["tokens"]).hex()
    return sealed(strict_json.canonical(statement))


def recorded(
    sampling: Sampling, count: int, stop_tokens: Any = (), stop_strings: Any = (), prompt: Any = PROMPT, **options: Any
) -> tuple[Recorder, str, bytes]:
    tokens, rows, reason = generated(prompt, sampling, count, stop_tokens, stop_strings)
    recorder = Recorder(BINDING, prompt, sampling, count, stop_tokens, stop_strings, SIGNER, **options)
    for step, (token, row) in enumerate(zip(tokens, rows, strict=True)):
        recorder.step(len(prompt) + step, token, row)
    return recorder, *recorder.finish(reason)


# -- statements that are none ------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]


def _put(**members: Any) -> Change:
    """Members of the predicate set to values; those set to ... are left out."""

    def change(statement: dict[str, Any]) -> None:
        merged = statement["predicate"] | members
        statement["predicate"] = {k: v for k, v in merged.items() if v is not ...}

    return change


def _each(name: str, alter: Callable[[Any], Any]) -> Change:
    """A member of the predicate made anew from what it was."""
    return lambda statement: statement["predicate"].update({name: alter(statement["predicate"][name])})


def _drawn_by(**numbers: Any) -> Change:
    """Members of `sampling` set to values; those set to ... are left out."""
    return _each("sampling", lambda s: {k: v for k, v in (s | numbers).items() if v is not ...})


STATEMENTS: dict[str, Change] = {
    "a member too many": _put(model="gpt2"),
    "a member too few": _put(logitsRoots=...),
    "an absent digest that is null": _put(nonce=None),
    "an absent template that is null": _put(chatTemplateId=None),
    "no tokenizer": _put(tokenizerId=...),
    "a digest in capitals": _each("programId", str.upper),
    "another version": _put(version=2),
    "other semantics": _put(semantics=0),
    "a prompt of no tokens": _put(promptLength=0),
    "a prompt too long": _put(promptLength=(1 << 24) + 1),
    "a length as text": _put(promptLength="11"),
    "a length that is true": _put(promptLength=True),
    "no tokens wanted": _put(maxNewTokens=0),
    "too many tokens wanted": _put(maxNewTokens=(1 << 17) + 1),
    "fewer tokens wanted than there are": _put(maxNewTokens=4),
    "sampling that is null": _put(sampling=None),
    "sampling that is a list": _each("sampling", lambda s: list(s.items())),
    "sampling with a member too many": _drawn_by(typical_p="3f800000"),
    "sampling with a member too few": _drawn_by(min_p=...),
    "sampling of another version": _drawn_by(version=2),
    "a temperature as number": _drawn_by(temperature=1),
    "a temperature in capitals": _drawn_by(temperature="3F666666"),
    "a temperature that is no number": _drawn_by(temperature="7fc00000"),
    "a temperature below zero": _drawn_by(temperature="bf800000"),
    "a zero with a sign": _drawn_by(presence_penalty="80000000"),
    "a seed as number": _drawn_by(seed=5),
    "a seed of 15 digits": _drawn_by(seed="8" + "0" * 14),
    "a bias with a leading zero": _drawn_by(logit_bias={"01": "bfc00000"}),
    "a bias of a negative token": _drawn_by(logit_bias={"-1": "bfc00000"}),
    "biases in a list": _drawn_by(logit_bias=[]),
    "stop tokens that are null": _put(stopTokens=None),
    "stop tokens in descending order": _put(stopTokens=[31, 29]),
    "a stop token twice": _put(stopTokens=[29, 31, 31]),
    "a stop token as text": _put(stopTokens=["29", "31"]),
    "a negative stop token": _put(stopTokens=[-1, 31]),
    "a stop token beyond all vocabularies": _put(stopTokens=[31, 1_000_000]),
    "too many stop tokens": _put(stopTokens=list(range(1025))),
    "stop strings that are one": _put(stopStrings="7a7a"),
    "a stop string in clear": _put(stopStrings=["zz"]),
    "a stop string in capitals": _put(stopStrings=["7A7A"]),
    "a stop string of half a byte": _put(stopStrings=["7a7"]),
    "an empty stop string": _put(stopStrings=[""]),
    "a stop string that is not UTF-8": _put(stopStrings=["ff"]),
    "a stop string of half a character": _put(stopStrings=["c3"]),
    "a stop string with a surrogate": _put(stopStrings=["eda080"]),
    "a stop string with an overlong letter": _put(stopStrings=["c1ba"]),
    "a stop string too long": _put(stopStrings=["7a" * 1001]),
    "too many stop strings": _put(stopStrings=["7a"] * 17),
    "a stop string in a list": _put(stopStrings=[["7a7a"]]),
    "no tokens": _put(tokens=[], logitsRoots=""),
    "tokens that are null": _put(tokens=None),
    "tokens in lists": _each("tokens", lambda tokens: [[t] for t in tokens]),
    "tokens as text": _each("tokens", lambda tokens: "".join(map(str, tokens))),
    "a token as text": _each("tokens", lambda tokens: [str(tokens[0]), *tokens[1:]]),
    "a token that is true": _each("tokens", lambda tokens: [True, *tokens[1:]]),
    "a negative token": _each("tokens", lambda tokens: [-1, *tokens[1:]]),
    "a token beyond all vocabularies": _each("tokens", lambda tokens: [1_000_000, *tokens[1:]]),
    "a token with a fraction": _each("tokens", lambda tokens: [1.0, *tokens[1:]]),
    "a token too few": _each("tokens", lambda tokens: tokens[:-1]),
    "a token too many": _each("tokens", lambda tokens: [*tokens, 1]),
    "tokens after a stop token": _each("tokens", lambda tokens: [tokens[0], 29, *tokens[2:]]),
    "a root too few": _each("logitsRoots", lambda roots: roots[:-64]),
    "a root too many": _each("logitsRoots", lambda roots: roots + roots[:64]),
    "half a root": _each("logitsRoots", lambda roots: roots[:-32]),
    "roots in capitals": _each("logitsRoots", str.upper),
    "roots in a list": _each("logitsRoots", lambda roots: [roots[i : i + 64] for i in range(0, len(roots), 64)]),
    "a reason of another kind": _put(finishReason="cancelled"),
    "a reason in capitals": _put(finishReason="Stop"),
    "a reason that is null": _put(finishReason=None),
    "the wrong reason at a stop token": _put(finishReason="length"),
    "a stop at no stop token": _put(stopTokens=[29], stopStrings=[]),
    "fewer tokens than wanted": _put(finishReason="length", stopTokens=[]),
    "a time with an offset": _put(issuedAt="2026-11-22T10:00:00+00:00"),
    "a device of two lines": _put(device="avx512\nx86_64"),
    "the predicate of a run": lambda s: s.update(predicateType=receipt.PREDICATE_TYPE),
    "a subject of another name": lambda s: s["subject"][0].update(name="output"),
    "a subject of other tokens": lambda s: s["subject"][0].update(digest={"ree_blake3": filled(1).hex()}),
    "a subject of the prompt": lambda s: s["subject"][0].update(digest={"ree_blake3": prompt_id([1]).hex()}),
    "no subject": lambda s: s.update(subject=[]),
    "a statement without predicate": lambda s: s.pop("predicate"),
}

TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "a statement with blanks": lambda t: t.replace(b",", b", "),
    "a statement in another order": lambda t: json.dumps(
        dict(reversed(json.loads(t).items())), separators=(",", ":")
    ).encode(),
    "a statement with an escape": lambda t: t.replace(b'"stop"', b'"sto\\u0070"'),
    "a member twice": lambda t: t.replace(b'"finishReason":', b'"finishReason":"stop","finishReason":'),
    "a member of the sampling twice": lambda t: t.replace(b'"top_k":20', b'"top_k":20,"top_k":20'),
    "a bias twice": lambda t: t.replace(b'"31":', b'"31":"40000000","31":'),
    "a token with an exponent": lambda t: t.replace(b'"tokens":[28', b'"tokens":[28e0'),
    "a token of 5000 digits": lambda t: t.replace(b'"tokens":[28', b'"tokens":[' + b"2" * 5000),
    "a token that is no number": lambda t: t.replace(b'"tokens":[28', b'"tokens":[NaN'),
    "a negative zero": lambda t: t.replace(b'"stopTokens":[29', b'"stopTokens":[-0'),
    "more brackets than any statement has": lambda t: t.replace(b'"tokens":[28', b'"tokens":[' + b"[" * 600),
    "two statements": lambda t: t + t,
    "a truncated statement": lambda t: t[:-1],
}

# -- statements that are false -----------------------------------------------------------------------


def _swapped(roots: str) -> str:
    return roots[64:128] + roots[:64] + roots[128:]


FALSE: dict[str, tuple[str, Change]] = {
    "another program": (CORRUPTED, _put(programId=filled(9).hex())),
    "other weights": (CORRUPTED, _put(weightsId=filled(9).hex())),
    "another tokenizer": (CORRUPTED, _put(tokenizerId=filled(9).hex())),
    "another template": (CORRUPTED, _put(chatTemplateId=filled(9).hex())),
    "another commitment to the prompt": (CORRUPTED, _put(promptCommitment=filled(9).hex())),
    "a longer prompt": (CORRUPTED, _put(promptLength=12)),
    "another nonce": (CORRUPTED, _put(nonce=filled(9).hex())),
    "no nonce": (CORRUPTED, _put(nonce=...)),
    "another seed": (CORRUPTED, _drawn_by(seed=f"{(1 << 63) + 3:016x}")),
    "another temperature": (CORRUPTED, _drawn_by(temperature="42c80000")),
    "another top_k": (CORRUPTED, _drawn_by(top_k=1)),
    "a top_k beyond the vocabulary": (CORRUPTED, _drawn_by(top_k=VOCAB + 1)),
    "a bias of a token beyond the vocabulary": (CORRUPTED, _drawn_by(logit_bias={"32": "3f800000"})),
    "another bias": (CORRUPTED, _drawn_by(logit_bias={"28": "c2c80000"})),
    "the first token changed": (CORRUPTED, _each("tokens", lambda tokens: [27, *tokens[1:]])),
    "a token changed": (CORRUPTED, _each("tokens", lambda tokens: [*tokens[:2], 1, *tokens[3:]])),
    "a token beyond the vocabulary": (CORRUPTED, _each("tokens", lambda tokens: [*tokens[:2], 32, *tokens[3:]])),
    "the last token another stop token": (CORRUPTED, _each("tokens", lambda tokens: [*tokens[:-1], 29])),
    "a root changed": (
        CORRUPTED,
        _each("logitsRoots", lambda roots: roots[:-1] + f"{int(roots[-1], 16) ^ 1:x}"),
    ),
    "roots swapped": (CORRUPTED, _each("logitsRoots", _swapped)),
    "a stop string that was found before": (CORRUPTED, _put(stopStrings=["5b2e"])),
    "a stop that nothing explains": ("greedy", _put(finishReason="stop", stopStrings=["7a7a"])),
    "the last token cut off": (
        "at a string",
        lambda s: s["predicate"].update(
            tokens=s["predicate"]["tokens"][:-1], logitsRoots=s["predicate"]["logitsRoots"][:-64]
        ),
    ),
    "a token after a stop string": (
        "at a string",
        lambda s: s["predicate"].update(
            tokens=[*s["predicate"]["tokens"], 3], logitsRoots=s["predicate"]["logitsRoots"] + filled(9).hex()
        ),
    ),
    "the length as reason at a stop string": ("at a string", _put(finishReason="length", maxNewTokens=3)),
    "another stop string": ("at a string", _put(stopStrings=["71"])),
}


def _altered(name: str, change: Change) -> bytes:
    """The statement of a generation changed, its subject made to fit as far as it goes, and signed."""
    statement = copy.deepcopy(generation.statement(GENERATIONS[name]))
    before = copy.deepcopy(statement)
    change(statement)
    assert statement != before
    tokens = statement.get("predicate", {}).get("tokens")
    named = type(tokens) is list and tokens and all(type(t) is int and 0 <= t < 1_000_000 for t in tokens)
    if named and statement.get("subject") == before["subject"]:
        statement["subject"][0]["digest"]["ree_blake3"] = generation.tokens_id(tokens).hex()
    return sealed(strict_json.canonical(statement))


def envelopes() -> Iterator[tuple[str, bytes]]:
    """Envelopes that hold no receipt of a generation; the rest of what can be wrong with one: receipt_vectors."""
    body = generation.payload(GENERATIONS[CORRUPTED])
    good = json.loads(sealed(body))
    other = json.loads(sealed(generation.payload(GENERATIONS["greedy"])))
    yield "a receipt of a run", receipt.make(receipt_vectors.FULL, SIGNER)
    yield "a key that is not trusted", sealed(body, signer=OTHER)
    yield "the signature of another generation", strict_json.canonical(good | {"signatures": other["signatures"]})
    yield "another payload under this signature", strict_json.canonical(good | {"payload": other["payload"]})
    yield "a signature for another type of payload", sealed(body, "application/json")
    yield "a truncated envelope", sealed(body)[:-1]
    yield "a bare statement", body


def refused() -> dict[str, bytes]:
    """Receipts that every reader refuses, by what is wrong with them."""
    found = {why: _altered(CORRUPTED, change) for why, change in STATEMENTS.items()}
    body = generation.payload(GENERATIONS[CORRUPTED])
    for why, alter in TEXTS.items():
        assert alter(body) != body, why
        found[why] = sealed(alter(body))
    return found | dict(envelopes())


def refuted() -> dict[str, bytes]:
    """Receipts that can be read, and that whoever has the model, prompt, salt and nonce finds to be false."""
    return {why: _altered(name, change) for why, (name, change) in FALSE.items()}


def content() -> dict[str, Any]:
    """The vector file's values."""
    receipts = {}
    for name, made in GENERATIONS.items():
        sequence = [*PROMPT, *made.tokens]
        receipts[name] = {
            "predicate": made.predicate(),
            "payload": generation.payload(made).decode("ascii"),
            "envelope": generation.make(made, SIGNER).decode("ascii"),
            "receipt_id": generation.read(generation.make(made, SIGNER)).id.hex(),
            "tokens_id": generation.tokens_id(made.tokens).hex(),
            "logits": [logits_after(sequence[: len(PROMPT) + n]).tobytes().hex() for n in range(len(made.tokens))],
        }
    return {
        "_comment": "Written by `python -m tests.generation_vectors`. A reader trusts public_key, accepts `receipts`,"
        " refuses each of `refuse`, and reads each of `refute` (what is wrong, with which of the receipts, envelope):"
        " who has model, prompt, salt and that receipt's nonce finds these to be false. The logits after some tokens"
        " are 2 * vocabulary bytes of BLAKE3's output over the tokens (u32, little endian), taken as i16 (little"
        " endian) and divided by 4096; pieces are the texts of the tokens.",
        "private_key": SEED.hex(),
        "public_key": SIGNER.public.id,
        "model": {
            "vocabulary": VOCAB,
            "pieces": list(PIECES),
            "program_id": filled(1).hex(),
            "weights_id": filled(2).hex(),
            "tokenizer_id": filled(3).hex(),
            "chat_template_id": filled(4).hex(),
        },
        "prompt": {
            "tokens": list(PROMPT),
            "salt": SALT.hex(),
            "id": prompt_id(PROMPT).hex(),
            "commitment": GENERATIONS["greedy"].prompt_commitment.hex(),
        },
        "receipts": receipts,
        "refuse": [[why, envelope.decode("latin-1")] for why, envelope in refused().items()],
        "refute": [[why, FALSE[why][0], envelope.decode("ascii")] for why, envelope in refuted().items()],
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(content(), indent=1) + "\n", encoding="utf-8")
