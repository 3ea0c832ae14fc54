"""Mutates receipts: each must be refused with a VerificationError, or state what its signer signed.

`python -m tests.fuzz_receipt COUNT [SEED]` tries COUNT mutations; the seed is printed. `mutations` gives
them to other tests. Most statements are mutated before the trusted key signs them, so that the mutation
reaches what stands behind the signature.
"""

from __future__ import annotations

import base64
import copy
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

from ree.commit import receipt
from ree.commit.keys import Signer
from ree.errors import VerificationError
from tests.receipt_vectors import CLAIMS, OTHER, SIGNER, corruptions, sealed

SECONDS_MAX = 1.0  # of processor time for one reading; it takes 0.2 ms
MESSAGE_CHARACTERS_MAX = 300
SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "receipt.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
TRUSTED = [SIGNER.public]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1.0, 1.5, 1e300, 1 << 31, 1 << 64, 10**19, 10**40, -(10**30),
    "", "0", "1", "x", "\x00", "a\nb", "é", "\ud800", "\u202e", "A" * 128, "A" * 129, "A" * 5000,
    "0" * 64, "f" * 64, "F" * 64, "g" * 64, "0x" + "1" * 62, "1" * 63, "1" * 65, "AA==", "AB==", "====", "QUJD",
    "2026-11-22T10:00:00Z", "2026-13-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z", [], [[]], {}, {"": ""}, {"a": {"b": {}}}, [None] * 50,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutation:
    """A receipt to try, and what the trusted key signed for it: the payloads that may be accepted."""

    name: str
    envelope: Any
    signed: bytes


# -- values ------------------------------------------------------------------------------------------


def mutate_value(rng: random.Random, value: Any, whole: Any) -> Any:
    """Another value, of the same kind or of any."""
    kind = rng.random()
    if kind < 0.3:
        return copy.deepcopy(rng.choice(VALUES))
    if kind < 0.4:
        return copy.deepcopy(rng.choice(list(_leaves(whole))))  # a value from another place
    if kind < 0.45:
        return _nested(rng.choice([2, 10, 100]), rng)
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        other = rng.choice([value[at].swapcase(), chr(rng.randrange(128)), "", value[at] * 2])
        return value[:at] + other + value[at + 1 :]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice([value + 1, -value, str(value), float(value), value * 10**18])
    if isinstance(value, list):
        return rng.choice([value * 2, value[1:], [value], [*value, None], {str(i): v for i, v in enumerate(value)}])
    if isinstance(value, dict):
        return rng.choice([list(value.items()), [value], list(value.values()), {**value, rng.choice("xyz"): 1}])
    return rng.choice([0, "x", [], {}])


def _leaves(value: Any) -> Iterator[Any]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if not children:
        yield value
        return
    for child in children:
        yield from _leaves(child)


def _nested(depth: int, rng: random.Random) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """One random place of a JSON value changed, dropped, renamed or swapped with its neighbour."""
    whole, node, path = copy.deepcopy(tree), tree, []
    while isinstance(node, dict | list) and node and rng.random() < 0.92:
        key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append((node, key))
        node = node[key]
    if not path:
        return mutate_value(rng, tree, whole)
    parent, key = path[-1]
    kind = rng.random()
    if kind < 0.12:
        del parent[key]
    elif kind < 0.2 and isinstance(parent, dict):
        name = rng.choice([key.upper(), key + " ", "", "__proto__", rng.choice(sorted(parent))])
        parent[name] = parent.pop(key)
    elif kind < 0.32:
        other = rng.choice(sorted(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        parent[key], parent[other] = parent[other], parent[key]
    else:
        parent[key] = mutate_value(rng, node, whole)
    return tree


# -- texts -------------------------------------------------------------------------------------------


def mutate_text(rng: random.Random, text: bytes) -> bytes:
    """A JSON text with bytes changed, cut, repeated or put in, or spelt in another way."""
    at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    kind = rng.randrange(12)
    if kind < 4:
        altered = bytearray(text)
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            altered[rng.randrange(len(altered))] = rng.randrange(256)
        return bytes(altered)
    if kind == 4:
        return text[:at]
    if kind == 5:
        return text[:at] + text[end:]
    if kind == 6:
        return text[:at] + text[at:end] * 2 + text[end:]
    if kind == 7:
        return text[:at] + rng.choice([b" ", b"\n", b"\x00", b",", b"[", b'"', b"\\", b"\xef\xbb\xbf"]) + text[at:]
    if kind == 8:
        return text[:at] + b"[" * rng.choice([10, 1000, 9000]) + text[at:]
    if kind == 9:
        number = rng.choice([b"1" * 30, b"9" * 5000, b"-1", b"1e999", b"NaN", b"-Infinity", b"1.0", b"0x1", b"01"])
        return text.replace(b":1", b":" + number, 1).replace(b'"sig"', number + b',"sig"', 1)
    if kind == 10:
        return _member_twice(rng, text)
    return rng.choice([_spaced, _escaped, _reordered, _utf16])(text)


def _member_twice(rng: random.Random, text: bytes) -> bytes:
    """A member of the outermost object stands a second time, at the other end, with another value."""
    members = json.loads(text)
    key = rng.choice(sorted(members))
    first = json.dumps({key: rng.choice([members[key], "x", 1])}, separators=(",", ":")).encode()
    return first[:-1] + b"," + text[1:] if rng.random() < 0.5 else text[:-1] + b"," + first[1:]


def _spaced(text: bytes) -> bytes:
    return json.dumps(json.loads(text), indent=1).encode()


def _escaped(text: bytes) -> bytes:
    return text.replace(b'"p', b'"\\u0070')


def _reordered(text: bytes) -> bytes:
    return json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")).encode()


def _utf16(text: bytes) -> bytes:
    return text.decode().encode("utf-16")


# -- signatures --------------------------------------------------------------------------------------


def mutate_signatures(rng: random.Random, envelope: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Other signatures, or other orders and numbers of them, in an envelope."""
    kinds = ["application/json", "", "application/vnd.in-toto+json ", "application/vnd.in-toto+JSON"]
    signers: list[Signer] = [SIGNER, OTHER]
    pool = [
        *envelope["signatures"],
        json.loads(sealed(body, rng.choice(kinds)))["signatures"][0],
        json.loads(sealed(body, signer=OTHER))["signatures"][0],
        json.loads(receipt.make(rng.choice(list(CLAIMS.values())), rng.choice(signers)))["signatures"][0],
        {"keyid": SIGNER.public.id, "sig": base64.b64encode(rng.randbytes(rng.choice([64, 64, 63, 65, 0]))).decode()},
        {"keyid": rng.randbytes(32).hex(), "sig": envelope["signatures"][0]["sig"]},
        {"sig": envelope["signatures"][0]["sig"]},
    ]
    envelope["signatures"] = [copy.deepcopy(rng.choice(pool)) for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3, 60]))]
    if envelope["signatures"] and rng.random() < 0.3:
        one, two = rng.choice(envelope["signatures"]), rng.choice(pool)
        name = rng.choice(["keyid", "sig"])
        one[name] = two.get(name, 0)
    return envelope


# -- the corpus --------------------------------------------------------------------------------------


def mutations(rng: random.Random, count: int) -> Iterator[Mutation]:
    """`count` mutated receipts; the known corruptions come first."""
    known = list(corruptions().items())[:count]
    for why, envelope in known:
        yield Mutation(why, envelope, receipt.payload(CLAIMS["small"]))
    bodies = [receipt.payload(claim) for claim in CLAIMS.values()]
    for _ in range(count - len(known)):
        yield _mutation(rng, rng.choice(bodies))


def _mutation(rng: random.Random, body: bytes) -> Mutation:
    kind = rng.random()
    good = sealed(body)
    if kind < 0.4:
        statement = json.loads(body)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            statement = mutate_tree(rng, statement)
        return _resigned(rng, "statement", json.dumps(statement, sort_keys=True, separators=(",", ":")).encode())
    if kind < 0.55:
        return _resigned(rng, "statement's text", mutate_text(rng, body))
    if kind < 0.7:
        altered = mutate_text(rng, good)
        return Mutation("envelope's text", altered if rng.random() < 0.5 else altered.decode("latin-1"), body)
    envelope = json.loads(good)
    if kind < 0.85:
        changed = mutate_signatures(rng, envelope, body)
        return Mutation("signatures", changed if rng.random() < 0.5 else json.dumps(changed), body)
    changed = mutate_tree(rng, envelope)
    return Mutation("envelope", changed if rng.random() < 0.5 else json.dumps(changed), body)


def _resigned(rng: random.Random, name: str, body: bytes) -> Mutation:
    """A receipt of a body that was mutated before it was signed, as far as a signer seals one of its size."""
    body = body[:11000]
    return Mutation(name, sealed(body) if rng.random() < 0.7 else json.loads(sealed(body)), body)


# -- the oracle --------------------------------------------------------------------------------------


def attempt(mutation: Mutation) -> str:
    """Read one receipt: "refused", "unchanged" (in other words) or "restated": another claim, signed as such.

    Any other outcome is an error.
    """
    start = time.process_time()
    try:
        outcome = _stated(receipt.read(mutation.envelope, TRUSTED), mutation)
    except VerificationError as error:
        outcome = "refused"
        assert 10 < len(str(error)) < MESSAGE_CHARACTERS_MAX and str(error).isprintable(), repr(str(error))
    try:  # whoever the signer may be
        found = receipt.read(mutation.envelope)
        assert outcome != "refused" or found.signer not in TRUSTED
    except VerificationError:
        assert outcome == "refused"
    assert time.process_time() - start < SECONDS_MAX
    return outcome


def _stated(found: receipt.Receipt, mutation: Mutation) -> str:
    """Holds a receipt that was accepted against what was signed, by other means than its reader's."""
    assert found.payload == mutation.signed and found.signer == SIGNER.public
    envelope = mutation.envelope if isinstance(mutation.envelope, dict) else json.loads(mutation.envelope)
    assert envelope == json.loads(sealed(mutation.signed))
    statement = json.loads(mutation.signed)
    VALIDATOR.validate(statement["predicate"])
    assert statement["subject"][0]["digest"]["ree_blake3"] == statement["predicate"]["outputId"]
    assert statement["subject"][0]["digest"].get("sha256") == statement["predicate"].get("outputSha256")
    assert found.claim.predicate() == statement["predicate"]
    return "unchanged" if mutation.signed in map(receipt.payload, CLAIMS.values()) else "restated"


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
