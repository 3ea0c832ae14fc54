"""Signed envelopes: DSSE v1.0.2 with one Ed25519 signature (github.com/secure-systems-lab/dsse).

What is signed is the payload's type and its bytes, so nothing need be canonical and nothing is parsed
before the signature is known to be good. Stricter than DSSE: exactly one signature, whose keyid is the
public key in hex; base64 in its standard alphabet only; no member beyond those of the specification.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import Any

from ree.commit import strict_json
from ree.commit.keys import SIGNATURE_BYTES, PublicKey, Signer
from ree.errors import InputError, VerificationError
from ree.limits import RECEIPT_BYTES_MAX

_MEMBERS = {"payload", "payloadType", "signatures"}
_SIGNATURE_MEMBERS = {"keyid", "sig"}


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed (pre-authentication encoding)."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, payload_type: str, signer: Signer, bytes_max: int = RECEIPT_BYTES_MAX) -> bytes:
    """The envelope as canonical JSON. InputError: it would be larger than any reader accepts."""
    signature = signer.sign(pae(payload_type, payload))
    if not signer.public.verifies(signature, pae(payload_type, payload)):  # a fault here could give the key away
        raise InputError("the signer's signature does not fit its public key")
    envelope = strict_json.canonical(
        {
            "payload": _base64(payload),
            "payloadType": payload_type,
            "signatures": [{"keyid": signer.public.id, "sig": _base64(signature)}],
        }
    )
    if len(envelope) > bytes_max:
        raise InputError(f"the envelope has {len(envelope)} bytes, more than {bytes_max}")
    return envelope


def unseal(
    envelope: bytes | str | dict[str, Any],
    payload_type: str,
    trusted: Collection[PublicKey] | None,
    bytes_max: int = RECEIPT_BYTES_MAX,
) -> tuple[bytes, PublicKey]:
    """The payload's bytes and the key that signed them: one of `trusted`, or any if that is None.

    VerificationError: anything else, malformed text among it. InputError: `trusted` holds no keys.
    """
    found = strict_json.members(_parsed(envelope, bytes_max), _MEMBERS, set(), "the receipt")
    if found["payloadType"] != payload_type:
        raise VerificationError(f"the receipt's payloadType is not {payload_type}")
    payload = _decoded(found["payload"], "payload", bytes_max)
    key, signature = _signature(found["signatures"])
    if trusted is not None and key not in _keys(trusted):
        raise VerificationError(f"the receipt is signed by {key.id}, which is not trusted")
    if not key.verifies(signature, pae(payload_type, payload)):
        raise VerificationError(f"the receipt's signature is not that of {key.id}")
    return payload, key


def _parsed(envelope: Any, bytes_max: int) -> Any:
    if type(envelope) is dict:
        return envelope
    if not isinstance(envelope, bytes | str):
        raise VerificationError("the receipt is neither text nor an object")
    if len(envelope) > bytes_max:
        raise VerificationError(f"the receipt is longer than {bytes_max} bytes")
    return strict_json.parse(envelope, "the receipt")


def _signature(signatures: Any) -> tuple[PublicKey, bytes]:
    """The key and the bytes of an envelope's only signature."""
    if type(signatures) is not list or len(signatures) != 1:
        raise VerificationError("the receipt has not exactly one signature")
    found = strict_json.members(signatures[0], _SIGNATURE_MEMBERS, set(), "the receipt's signature")
    signature = _decoded(found["sig"], "signature", RECEIPT_BYTES_MAX)
    if len(signature) != SIGNATURE_BYTES:
        raise VerificationError(f"the receipt's signature has not {SIGNATURE_BYTES} bytes")
    name = found["keyid"]
    try:
        key = PublicKey.from_hex(name) if type(name) is str else None
    except InputError as error:
        raise VerificationError(f"the receipt's keyid: {error}") from None
    if key is None or key.id != name:
        raise VerificationError("the receipt's keyid is no public key in lowercase hex")
    return key, signature


def _keys(trusted: Any) -> Collection[PublicKey]:
    if not isinstance(trusted, Collection) or not all(isinstance(key, PublicKey) for key in trusted):
        raise InputError("trusted keys are a collection of PublicKey")
    return trusted


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decoded(text: Any, what: str, bytes_max: int) -> bytes:
    """The bytes of canonical base64: standard alphabet, padded, no spare bits."""
    if type(text) is str and len(text) <= bytes_max:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if data and _base64(data) == text:
            return data
    raise VerificationError(f"the receipt's {what} is not canonical base64")
