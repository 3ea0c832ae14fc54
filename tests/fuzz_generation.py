"""Mutates receipts of generations: each must be refused, refuted by the model, or be true.

`python -m tests.fuzz_generation COUNT [SEED]` tries COUNT mutations; the seed is printed. Most statements are mutated
before the trusted key signs them, so that the mutation reaches what stands behind the signature. What a mutation that
can be read states is held against the schema, and its truth against a model that generates token by token.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from ree.commit import salted
from ree.errors import InputError, VerificationError
from ree.lm import check, generation
from ree.lm.generation import Generation, logits_root, prompt_id
from tests.fuzz_receipt import mutate_signatures, mutate_text, mutate_tree
from tests.generation_model import generated
from tests.generation_vectors import FALSE, GENERATIONS, PROMPT, SALT, refused, refuted, sealed, tiny
from tests.receipt_vectors import SIGNER

SECONDS_MAX = 1.0  # of processor time for one reading; it takes 0.4 ms
MESSAGE_CHARACTERS_MAX = 300
SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "generation.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
TRUSTED = [SIGNER.public]
PAYLOADS = {name: generation.payload(made) for name, made in GENERATIONS.items()}


@dataclass(frozen=True, slots=True)
class Mutation:
    """A receipt to try, and what the trusted key signed for it: the only payload that may be accepted."""

    name: str
    envelope: Any
    signed: bytes


# -- mutations that are likely to be read ------------------------------------------------------------


def mutate_story(rng: random.Random, predicate: dict[str, Any]) -> None:
    """Tell a generation in another way that may contradict nothing."""
    tokens, roots = predicate["tokens"], predicate["logitsRoots"]
    at = rng.randrange(len(tokens))
    sampling = predicate["sampling"]
    kind = rng.randrange(10)
    if kind == 0:
        tokens[at] = rng.randrange(34)
    elif kind == 1:  # cut at the end, and say that no more was wanted
        predicate["tokens"], predicate["logitsRoots"] = tokens[: at + 1], roots[: 64 * (at + 1)]
        if rng.random() < 0.7:
            predicate |= {"maxNewTokens": at + 1, "finishReason": "length"}
    elif kind == 2:  # go on
        predicate["tokens"], predicate["logitsRoots"] = [*tokens, rng.randrange(32)], roots + rng.randbytes(32).hex()
    elif kind == 3:
        predicate["logitsRoots"] = roots[: 64 * at] + rng.randbytes(32).hex() + roots[64 * (at + 1) :]
    elif kind == 4:
        predicate["finishReason"] = rng.choice(["stop", "length"])
    elif kind == 5:
        predicate["maxNewTokens"] = rng.choice([len(tokens), len(tokens) + 1, 131072])
    elif kind == 6:
        predicate["stopTokens"] = sorted(rng.sample(range(34), rng.choice([0, 1, 2, 30])) + tokens[at:][:1])
    elif kind == 7:
        predicate["stopStrings"] = [rng.choice([b"zz", b"x", b"[", "é".encode(), b"st"]).hex() for _ in range(at)]
    elif kind == 8:
        sampling["seed"] = f"{rng.randrange(1 << 64):016x}"
    else:
        name = rng.choice(sorted(sampling.keys() - {"version", "seed", "logit_bias", "top_k"}))
        sampling[name] = rng.choice(["3f800000", "00000000", "3dcccccd", "42c80000", "bf800000"])


# -- the corpus --------------------------------------------------------------------------------------


def mutations(rng: random.Random, count: int) -> Iterator[Mutation]:
    """`count` mutated receipts; the known ones come first."""
    known = [*refused().items(), *refuted().items()][:count]
    for why, envelope in known:
        signed = PAYLOADS["drawn"] if why not in FALSE else generation.read(envelope).payload
        yield Mutation(why, envelope, signed)
    for _ in range(count - len(known)):
        yield _mutation(rng, rng.choice(list(PAYLOADS.values())))


def _mutation(rng: random.Random, body: bytes) -> Mutation:
    kind = rng.random()
    good = sealed(body)
    if kind < 0.6:
        statement = json.loads(body)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            if kind < 0.3:
                mutate_story(rng, statement["predicate"])
            else:
                statement = mutate_tree(rng, statement)
        return _resigned(rng, "statement", statement)
    if kind < 0.7:
        altered = mutate_text(rng, body)
        return Mutation("statement's text", sealed(altered), altered)
    if kind < 0.8:
        text = mutate_text(rng, good)
        return Mutation("envelope's text", text if rng.random() < 0.5 else text.decode("latin-1"), body)
    envelope = json.loads(good)
    changed = mutate_signatures(rng, envelope, body) if kind < 0.9 else mutate_tree(rng, envelope)
    return Mutation("envelope", changed if rng.random() < 0.5 else json.dumps(changed), body)


def _resigned(rng: random.Random, name: str, statement: Any) -> Mutation:
    """A statement signed after it was mutated, most often with a subject that fits."""
    if rng.random() < 0.8:
        with contextlib.suppress(LookupError, TypeError, InputError):  # there is none that would fit
            digest = generation.tokens_id(statement["predicate"]["tokens"]).hex()
            statement["subject"] = [{"digest": {"ree_blake3": digest}, "name": "generation"}]
    body = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    return Mutation(name, sealed(body) if rng.random() < 0.7 else json.loads(sealed(body)), body)


# -- the oracle --------------------------------------------------------------------------------------


def attempt(mutation: Mutation) -> str:
    """Read and verify one receipt: "refused", "refuted" by the model, or "true". Any other outcome is an error."""
    start = time.process_time()
    try:
        found = generation.read(mutation.envelope, TRUSTED)
    except VerificationError as error:
        _check_message(error)
        _check_refused(mutation)
        outcome = "refused"
    else:
        _check_stated(found, mutation)
        outcome = _verified(mutation)
        assert (outcome == "true") == is_true(found.claim), found.claim
    assert time.process_time() - start < SECONDS_MAX
    return outcome


def _check_message(error: Exception) -> None:
    assert 10 < len(str(error)) < MESSAGE_CHARACTERS_MAX and str(error).isprintable(), repr(str(error))


def _check_refused(mutation: Mutation) -> None:
    """What is refused is refused by the verifier, too, and whoever the signer may be."""
    with contextlib.suppress(VerificationError):
        assert generation.read(mutation.envelope).signer not in TRUSTED
    assert _verified(mutation) == "refuted"


def _check_stated(found: generation.Receipt, mutation: Mutation) -> None:
    """Holds a receipt that was read against what was signed, by other means than its reader's."""
    assert found.payload == mutation.signed and found.signer == SIGNER.public
    envelope = mutation.envelope if isinstance(mutation.envelope, dict) else json.loads(mutation.envelope)
    assert envelope == json.loads(sealed(mutation.signed))
    statement = json.loads(mutation.signed)
    predicate = statement["predicate"]
    VALIDATOR.validate(predicate)
    assert predicate["stopTokens"] == sorted(predicate["stopTokens"])
    assert len(predicate["logitsRoots"]) == 64 * len(predicate["tokens"]) <= 64 * predicate["maxNewTokens"]
    assert statement["subject"][0]["digest"]["ree_blake3"] == generation.tokens_id(predicate["tokens"]).hex()
    assert found.claim.predicate() == predicate


def _verified(mutation: Mutation) -> str:
    try:
        check.verify(mutation.envelope, tiny(), PROMPT, salt=SALT, trusted_keys=TRUSTED)
        return "true"
    except VerificationError as error:
        _check_message(error)
        return "refuted"


def is_true(stated: Generation) -> bool:
    """Whether the model, asked for this after PROMPT, generates what is stated, found by generating it."""
    model = tiny()
    own = (model.program_id, model.weights_id, model.tokenizer_id, len(PROMPT))
    if own != (stated.program_id, stated.weights_id, stated.tokenizer_id, stated.prompt_length):
        return False
    if stated.chat_template_id not in (None, model.chat_template_id):
        return False
    if stated.prompt_commitment != salted.commit(salted.PROMPT, SALT, prompt_id(PROMPT)):
        return False
    count = len(stated.tokens)
    if len(PROMPT) + count - 1 > model.context:
        return False
    try:
        limit = min(stated.max_new_tokens, count + 1)
        tokens, rows, reason = generated(PROMPT, stated.sampling, limit, stated.stop_tokens, stated.stop_strings)
    except InputError:  # sampling that does not fit the vocabulary
        return False
    roots = b"".join(map(logits_root, rows))
    return (tuple(tokens), roots, reason) == (stated.tokens, stated.logits_roots, stated.finish_reason)


def fuzz(count: int, seed: int) -> Counter[str]:
    """How often each outcome was met."""
    outcomes: Counter[str] = Counter()
    for number, mutation in enumerate(mutations(random.Random(seed), count)):
        try:
            outcomes[attempt(mutation)] += 1
        except BaseException:
            print(f"seed {seed}, mutation {number} ({mutation.name}): {mutation.envelope!r}", file=sys.stderr)
            raise
    return outcomes


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}:", dict(fuzz(int(sys.argv[1]), seed)))
