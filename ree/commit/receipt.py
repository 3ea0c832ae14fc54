"""Receipts: a claim about a run, signed, as an in-toto Statement v1 in a DSSE envelope.

Everything that a receipt states is under its signature, and a claim has exactly one statement, byte for
byte (docs/SPEC.md, "Receipts"). What is wrong with a receipt is always a VerificationError.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import blake3

from ree.commit import dsse, strict_json
from ree.commit.claim import Claim
from ree.commit.keys import PublicKey, Signer
from ree.errors import InputError, VerificationError
from ree.limits import RECEIPT_BYTES_MAX

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://ree.dev/attestation/run/v1"
SUBJECT_NAME = "output"
OUTPUT_ID_KEY = "ree_blake3"  # in-toto's set of digests knows no BLAKE3; the output id is a keyed one besides
RECEIPT_CONTEXT = "ree v1 receipt"

_STATEMENT_MEMBERS = {"_type", "predicate", "predicateType", "subject"}


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt whose signature is good: what it states, who states it, and the bytes that were signed."""

    claim: Claim
    signer: PublicKey
    payload: bytes

    @property
    def id(self) -> bytes:
        """BLAKE3 derive_key over the signed bytes, 32 bytes; equal for all signatures of one claim."""
        return id_of(self.payload)


def make(claim: Claim, signer: Signer) -> bytes:
    """The receipt as one line of JSON, without a line feed."""
    return dsse.seal(payload(claim), PAYLOAD_TYPE, signer)


def read(envelope: bytes | str | dict[str, Any], trusted_keys: Collection[PublicKey] | None = None) -> Receipt:
    """A receipt, verified: its signature by one of `trusted_keys`, then every field of what was signed.

    Without keys (None) the signature must be good, but by whomever: the caller must look at `signer`.
    """
    signed, signer = dsse.unseal(envelope, PAYLOAD_TYPE, trusted_keys)
    return Receipt(_claim(signed), signer, signed)


def verify_envelope(envelope: bytes | str | dict[str, Any], trusted_keys: Collection[PublicKey] | None = None) -> Claim:
    """The claim of a receipt, verified as in `read`."""
    return read(envelope, trusted_keys).claim


def load(path: str | os.PathLike[str], bytes_max: int = RECEIPT_BYTES_MAX) -> bytes:
    """A receipt's bytes from a file, not verified. InputError: the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(bytes_max + 1)  # one byte too many, and `read` refuses it
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read the receipt {path}: {getattr(error, 'strerror', None) or error}") from None


def statement(claim: Claim) -> dict[str, Any]:
    """The in-toto Statement as JSON values; its subject is the output."""
    digests = {OUTPUT_ID_KEY: claim.output_id.hex()}
    if claim.output_sha256 is not None:
        digests["sha256"] = claim.output_sha256.hex()
    return statement_of(PREDICATE_TYPE, claim.predicate(), SUBJECT_NAME, digests)


def payload(claim: Claim) -> bytes:
    """The one text of a claim's statement: canonical JSON."""
    return strict_json.canonical(statement(claim))


def _claim(signed: bytes) -> Claim:
    """The claim of signed bytes. VerificationError: they are not the statement of any, byte for byte."""
    found = parsed(signed, PREDICATE_TYPE)
    claim = Claim.from_predicate(found["predicate"])
    if found["subject"] != statement(claim)["subject"]:
        raise VerificationError("the statement's subject is not the output of its predicate")
    if signed != payload(claim):
        raise VerificationError("the statement is not in its canonical form")
    return claim


# -- for receipts of every kind ----------------------------------------------------------------------


def id_of(payload: bytes) -> bytes:
    """BLAKE3 derive_key over signed bytes, 32 bytes."""
    return blake3.blake3(payload, derive_key_context=RECEIPT_CONTEXT).digest()


def statement_of(kind: str, predicate: dict[str, Any], subject: str, digests: dict[str, str]) -> dict[str, Any]:
    """An in-toto Statement as JSON values, about one subject; kind: its predicateType."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": subject, "digest": digests}],
        "predicateType": kind,
        "predicate": predicate,
    }


def parsed(signed: bytes, kind: str) -> dict[str, Any]:
    """The members of a statement, predicate and subject still to be checked. VerificationError: it is none."""
    found = strict_json.members(strict_json.parse(signed, "the statement"), _STATEMENT_MEMBERS, set(), "the statement")
    if found["_type"] != STATEMENT_TYPE:
        raise VerificationError(f"the statement's _type is not {STATEMENT_TYPE}")
    if found["predicateType"] != kind:
        raise VerificationError(f"the statement's predicateType is not {kind}")
    return found
