"""Commitments that hide what they commit to: BLAKE3 over a random salt and a 32-byte id.

An id alone could be found by hashing guesses. Whoever holds the salt can open the commitment; the
prover keeps it and gives it to whom he likes (docs/SPEC.md, "Receipts").
"""

from __future__ import annotations

import hmac
import os

import blake3

from ree.errors import InputError, VerificationError

INPUT = "ree v1 input commitment"
PROMPT = "ree v1 prompt commitment"
BYTES = 32  # of a salt, an id and a commitment


def fresh_salt() -> bytes:
    """32 random bytes, for one commitment only."""
    return os.urandom(BYTES)


def commit(context: str, salt: bytes, value: bytes) -> bytes:
    """BLAKE3 derive_key(context) over salt and value, 32 bytes each. InputError: other lengths."""
    for name, data in (("salt", salt), ("committed id", value)):
        if not isinstance(data, bytes) or len(data) != BYTES:
            raise InputError(f"a {name} has {BYTES} bytes")
    return blake3.blake3(salt + value, derive_key_context=context).digest()


def check_opening(context: str, commitment: bytes, salt: bytes, value: bytes) -> None:
    """VerificationError unless `commitment` is that of `salt` and `value`."""
    if not hmac.compare_digest(commitment, commit(context, salt, value)):
        raise VerificationError(f"the salt does not open the {context.removeprefix('ree v1 ')} to this value")
