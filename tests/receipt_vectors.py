"""Receipts with fixed keys and claims, and receipts that must be refused: tests/vectors/receipt.json.

`python -m tests.receipt_vectors` writes the file anew. Every corrupted statement is signed with the
trusted key, so that nothing but the check that it is meant for can refuse it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ree.commit import dsse, eip712, receipt, salted, strict_json
from ree.commit.claim import Claim
from ree.commit.keys import Signer

PATH = Path(__file__).parent / "vectors" / "receipt.json"
SEED, OTHER_SEED = bytes(range(32)), bytes(range(32, 64))
SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(SEED))
OTHER = Signer(Ed25519PrivateKey.from_private_bytes(OTHER_SEED))
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
CHAIN_ID, CONTRACT = 8453, "0x00112233445566778899aabbccddeeff00112233"


def filled(number: int) -> bytes:
    """32 bytes that tell one field from another."""
    return bytes((number * 16 + i) % 256 for i in range(32))


SALT, INPUT_ID, PROMPT_SALT, PROMPT_ID = filled(8), filled(9), filled(10), filled(11)
SMALL = Claim(
    program_id=filled(1),
    weights_id=filled(2),
    input_commitment=salted.commit(salted.INPUT, SALT, INPUT_ID),
    output_id=filled(3),
    trace_root=filled(4),
    device="avx512/x86_64",
    ree_version="0.1.0",
    issued_at=1_795_341_600,
)
FULL = Claim(
    program_id=filled(1),
    weights_id=filled(2),
    tokenizer_id=filled(5),
    input_commitment=salted.commit(salted.INPUT, SALT, INPUT_ID),
    prompt_commitment=salted.commit(salted.PROMPT, PROMPT_SALT, PROMPT_ID),
    output_id=filled(3),
    trace_root=filled(4),
    nonce=filled(6),
    program_sha256=filled(7),
    output_sha256=filled(12),
    device='neon/aarch64 "a\\b"',
    ree_version="0.1.0",
    issued_at=4_102_444_799,
)
CLAIMS = {"small": SMALL, "full": FULL}


def sealed(payload: bytes, kind: str = receipt.PAYLOAD_TYPE, signer: Signer = SIGNER) -> bytes:
    return dsse.seal(payload, kind, signer)


# -- statements that are none, under a good signature ----------------------------------------------


def _put(**members: Any) -> Callable[[dict[str, Any]], object]:
    """Members of the predicate set to values; those set to ... are left out."""

    def change(statement: dict[str, Any]) -> None:
        merged = statement["predicate"] | members
        statement["predicate"] = {k: v for k, v in merged.items() if v is not ...}

    return change


STATEMENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a member too many": _put(model="gpt2"),
    "a member too few": _put(traceRoot=...),
    "an absent digest that is null": _put(nonce=None),
    "an absent digest that is zero": _put(nonce="0" * 64),
    "a digest in capitals": _put(programId=filled(10).hex().upper()),
    "a digest of 31 bytes": _put(programId=filled(1).hex()[:62]),
    "a digest with 0x": _put(programId="0x" + filled(1).hex()[:62]),
    "a digest as list": _put(programId=list(filled(1))),
    "another version": _put(version=2),
    "a version as text": _put(version="1"),
    "a version that is true": _put(version=True),
    "a version with a fraction": _put(version=1.0),
    "other semantics": _put(semantics=0),
    "a time with a fraction": _put(issuedAt="2026-11-22T10:00:00.0Z"),
    "a time with an offset": _put(issuedAt="2026-11-22T10:00:00+00:00"),
    "a time in lower case": _put(issuedAt="2026-11-22t10:00:00z"),
    "the 30th of February": _put(issuedAt="2026-02-30T10:00:00Z"),
    "a leap second": _put(issuedAt="2016-12-31T23:59:60Z"),
    "a time before 1970": _put(issuedAt="1969-12-31T23:59:59Z"),
    "a time as number": _put(issuedAt=1_795_341_600),
    "a device without a name": _put(device=""),
    "a device of two lines": _put(device="avx512\nx86_64"),
    "a device with an escape": _put(device="avx512\x1b[2J"),
    "a device beyond ASCII": _put(device="avx512\u202e"),
    "a device that ends in a blank": _put(device="avx512 "),
    "a device too long": _put(device="x" * 129),
    "the predicate of another type": lambda s: s.update(predicateType="https://ree.dev/attestation/run/v2"),
    "a statement of version 0.1": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "a statement with a member too many": lambda s: s.update(extra=1),
    "a statement without predicate": lambda s: s.pop("predicate"),
    "a predicate that is a list": lambda s: s.update(predicate=[s["predicate"]]),
    "no subject": lambda s: s.update(subject=[]),
    "two subjects": lambda s: s.update(subject=s["subject"] * 2),
    "a subject of another name": lambda s: s["subject"][0].update(name="input"),
    "a subject with a uri": lambda s: s["subject"][0].update(uri="https://example.com"),
    "a subject of another output": lambda s: s["subject"][0].update(digest={"ree_blake3": filled(1).hex()}),
    "a subject with a digest too many": lambda s: s["subject"][0]["digest"].update(sha256=filled(1).hex()),
}

TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "a statement with blanks": lambda t: t.replace(b'":', b'": '),
    "a statement with a line feed": lambda t: t + b"\n",
    "a statement in another order": lambda t: _reordered(t),
    "a statement with an escape": lambda t: t.replace(b"avx512", b"\\u0061vx512"),
    "a member twice": lambda t: t.replace(b'"version":1', b'"version":1,"version":1'),
    "a number that is none": lambda t: t.replace(b'"version":1', b'"version":NaN'),
    "a number with an exponent": lambda t: t.replace(b'"version":1', b'"version":1e0'),
    "a number of 5000 digits": lambda t: t.replace(b'"version":1', b'"version":' + b"1" * 5000),
    "a negative zero": lambda t: t.replace(b'"version":1', b'"version":-0'),
    "two statements": lambda t: t + t,
    "a truncated statement": lambda t: t[:-1],
    "an empty statement": lambda _: b"{}",
    "nothing but brackets": lambda _: b"[" * 9000,
    "a statement that is not UTF-8": lambda t: t.replace(b"avx512", b"avx\xff12"),
    "a statement in UTF-16": lambda t: t.decode().encode("utf-16"),
    "a statement with a byte order mark": lambda t: b"\xef\xbb\xbf" + t,
}


def _reordered(text: bytes) -> bytes:
    statement = json.loads(text)
    return json.dumps(dict(reversed(statement.items())), separators=(",", ":")).encode()


# -- envelopes that are none -------------------------------------------------------------------------


def _signed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The good envelope, changed after it was signed."""
    envelope = json.loads(receipt.make(SMALL, SIGNER))
    change(envelope)
    return strict_json.canonical(envelope)


def _with_signature(change: Callable[[dict[str, Any]], object]) -> bytes:
    return _signed(lambda e: change(e["signatures"][0]))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _malleated(signature: str) -> str:
    """The signature with the group's order added to its scalar: the other root of the same equation."""
    raw = base64.b64decode(signature)
    return _base64(raw[:32] + (int.from_bytes(raw[32:], "little") + GROUP_ORDER).to_bytes(32, "little"))


def _envelopes() -> Iterator[tuple[str, bytes]]:
    good = receipt.make(SMALL, SIGNER)
    body = receipt.payload(SMALL)
    yield "a signature for another type of payload", sealed(body, "application/json")
    other = json.loads(sealed(body, "application/json"))["signatures"]
    yield "a signature for another type under this one", _signed(lambda e: e.update(signatures=other))
    yield "another type over this signature", _signed(lambda e: e.update(payloadType="application/json"))
    yield "a signature of the payload alone", _with_signature(lambda s: s.update(sig=_base64(SIGNER.sign(body))))
    yield "a key that is not trusted", receipt.make(SMALL, OTHER)
    theirs = json.loads(receipt.make(SMALL, OTHER))["signatures"][0]
    yield "another key's signature under this key", _with_signature(lambda s: s.update(sig=theirs["sig"]))
    yield "this signature under another key", _with_signature(lambda s: s.update(keyid=OTHER.public.id))
    yield "the signature of another claim", _with_signature(lambda s: s.update(_signature_of(FULL)))
    yield "a scalar beyond the group's order", _with_signature(lambda s: s.update(sig=_malleated(s["sig"])))
    yield "a signature of 63 bytes", _with_signature(lambda s: s.update(sig=_base64(base64.b64decode(s["sig"])[:63])))
    yield "a signature of zeros", _with_signature(lambda s: s.update(sig=_base64(bytes(64))))
    small = {"keyid": "01" + "00" * 31, "sig": _base64(b"\x01" + bytes(63))}  # good for every message
    yield "a key of small order", _with_signature(lambda s: s.update(small))
    yield "a key in capitals", _with_signature(lambda s: s.update(keyid=s["keyid"].upper()))
    yield "a key that is empty", _with_signature(lambda s: s.update(keyid=""))
    yield "no key", _with_signature(lambda s: s.pop("keyid"))
    yield "a signature with a member too many", _with_signature(lambda s: s.update(cert="x"))
    yield "no signature", _signed(lambda e: e.update(signatures=[]))
    yield "the signature twice", _signed(lambda e: e.update(signatures=e["signatures"] * 2))
    yield "a second signature", _signed(lambda e: e["signatures"].append(theirs))
    yield "an envelope with a member too many", _signed(lambda e: e.update(note="also correct"))
    yield "an envelope without type", _signed(lambda e: e.pop("payloadType"))
    yield "a payload without padding", _signed(lambda e: e.update(payload=e["payload"].rstrip("=")))
    yield "a payload with spare bits", _signed(lambda e: e.update(payload=_spare_bits(e["payload"])))
    yield "a signature in URL-safe base64", _with_signature(lambda s: s.update(sig=_url_safe(s["sig"])))
    yield (
        "a payload with a line feed",
        _signed(lambda e: e.update(payload=e["payload"][:76] + "\n" + e["payload"][76:])),
    )
    yield "an empty payload", _signed(lambda e: e.update(payload=""))
    yield "a payload as object", _signed(lambda e: e.update(payload=json.loads(body)))
    yield "a member of the envelope twice", good.replace(b'"payloadType":', b'"payloadType":"x","payloadType":')
    yield "a truncated envelope", good[:-1]
    yield "text after the envelope", good + b"x"
    yield "two envelopes", good + good
    yield "an envelope in a list", b"[" + good + b"]"
    yield "an envelope too long", good + b" " * (16 << 10)
    yield "a bare statement", body
    yield "nothing", b""


def _signature_of(claim: Claim) -> dict[str, Any]:
    return dict(json.loads(receipt.make(claim, SIGNER))["signatures"][0])


def _spare_bits(text: str) -> str:
    """The last digit before the padding with a bit set that decodes to nothing."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bare = text.rstrip("=")
    assert bare != text
    return bare[:-1] + digits[digits.index(bare[-1]) + 1] + "=" * (len(text) - len(bare))


def _url_safe(text: str) -> str:
    assert set(text) & set("+/")
    return text.replace("+", "-").replace("/", "_")


def corruptions() -> dict[str, bytes]:
    """Every receipt to refuse, by what is wrong with it; those whose statement is wrong carry a good signature."""
    found = {}
    for why, change in STATEMENTS.items():
        statement = receipt.statement(SMALL)
        change(statement)
        found[why] = sealed(strict_json.canonical(statement))
    for why, alter in TEXTS.items():
        text = alter(receipt.payload(SMALL))
        assert text != receipt.payload(SMALL), why
        found[why] = sealed(text)
    for why, envelope in _envelopes():
        assert why not in found
        found[why] = envelope
    return found


def content() -> dict[str, Any]:
    """The vector file's values."""
    receipts = {}
    for name, claim in CLAIMS.items():
        receipts[name] = {
            "predicate": claim.predicate(),
            "payload": receipt.payload(claim).decode("ascii"),
            "envelope": receipt.make(claim, SIGNER).decode("ascii"),
            "receipt_id": receipt.read(receipt.make(claim, SIGNER)).id.hex(),
            "eip712_digest": eip712.eip712_digest(claim, CHAIN_ID, CONTRACT).hex(),
        }
    return {
        "_comment": "Written by `python -m tests.receipt_vectors`. A reader trusts public_key, accepts `receipts` and"
        " refuses each of `refuse`, and each receipt with any byte changed.",
        "private_key": SEED.hex(),
        "public_key": SIGNER.public.id,
        "input": {"salt": SALT.hex(), "id": INPUT_ID.hex(), "commitment": FULL.input_commitment.hex()},
        "prompt": {
            "salt": PROMPT_SALT.hex(),
            "id": PROMPT_ID.hex(),
            "commitment": (FULL.prompt_commitment or b"").hex(),
        },
        "eip712": {
            "type": eip712.type_string(eip712.STRUCT_NAME, eip712.STRUCT),
            "chain_id": CHAIN_ID,
            "contract": CONTRACT,
            "domain_separator": eip712.domain_separator(CHAIN_ID, CONTRACT).hex(),
        },
        "receipts": receipts,
        "refuse": [[why, envelope.decode("latin-1")] for why, envelope in corruptions().items()],
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(content(), indent=1) + "\n", encoding="utf-8")
