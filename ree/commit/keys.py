"""Ed25519 keys: PEM files that sign receipts, and the public keys that check them.

A key is named by its public key in hex (64 digits). So a receipt says by itself which key it is held
against, and the name of a key, of a peer and of an issuer are one.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ree.errors import InputError
from ree.limits import KEY_FILE_BYTES_MAX

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_HEX = re.compile("[0-9a-f]{64}", re.IGNORECASE)
_P = 2**255 - 19
# y of the points whose order divides 8: for such a "key" one signature is good for many messages
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER = {0, 1, _P - 1, _P, _P + 1, _Y8, _P - _Y8}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key, 32 bytes as RFC 8032 encodes it. InputError: they are none, or one of small order."""

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != KEY_BYTES:
            raise InputError(f"an Ed25519 public key has {KEY_BYTES} bytes")
        if int.from_bytes(self.raw, "little") % 2**255 in _SMALL_ORDER:
            raise InputError("a public key of small order is none: its signatures prove nothing")

    @property
    def id(self) -> str:
        """The key in lowercase hex, which is the keyid of its signatures."""
        return self.raw.hex()

    @classmethod
    def from_hex(cls, text: str) -> PublicKey:
        if not _HEX.fullmatch(text):
            raise InputError(f"a public key in hex has {2 * KEY_BYTES} digits")
        return cls(bytes.fromhex(text))

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> PublicKey:
        """A key in hex, or the PEM file (SubjectPublicKeyInfo) of that name. InputError: neither."""
        if isinstance(source, str) and _HEX.fullmatch(source):
            return cls.from_hex(source)
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        text = _read(source)
        if b"PRIVATE KEY-----" in text:
            raise InputError(f"{source}: this is a private key, a public one is expected")
        try:
            key = load_pem_public_key(text)
        except (ValueError, UnsupportedAlgorithm):
            raise InputError(f"{source}: not a public key in PEM or {2 * KEY_BYTES} hex digits") from None
        if not isinstance(key, Ed25519PublicKey):
            raise InputError(f"{source}: not an Ed25519 key")
        return cls(key.public_bytes_raw())

    def pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature of the message is this key's (RFC 8032, section 5.1.7)."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):  # ValueError: an encoding that a library refuses
            return False
        return True


class Signer:
    """A private key that signs."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def load(cls, path: str | os.PathLike[str], password: bytes | None = None) -> Signer:
        """The key of a PEM file (PKCS #8). InputError: unreadable, no such key, or a wrong or missing password."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        text = _read(path)
        try:
            key = load_pem_private_key(text, password)
        except TypeError:
            raise InputError(f"{path}: the key is {'encrypted' if password is None else 'not encrypted'}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise InputError(f"{path}: not a private key in PEM, or the password is wrong") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"{path}: not an Ed25519 key")
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature; the same for the same message."""
        return self._key.sign(message)


def generate(path: str | os.PathLike[str]) -> PublicKey:
    """Write a new private key to a PEM file that only its owner may read. InputError: the file exists, or cannot be."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        _write_new(Path(path), text)
    except FileExistsError:
        raise InputError(f"{path} exists already; a key is never overwritten") from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    return Signer(key).public


def _write_new(path: Path, data: bytes) -> None:
    """A file of mode 0600, complete or not there; unlike a rename, a link never replaces what has the name."""
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            text = file.read(KEY_FILE_BYTES_MAX + 1)
    except (OSError, ValueError, TypeError) as error:  # ValueError: a null byte; TypeError: no path at all
        raise InputError(f"cannot read the key {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > KEY_FILE_BYTES_MAX:
        raise InputError(f"{path}: too large for a key")
    return text
