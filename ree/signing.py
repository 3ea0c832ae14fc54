"""Files of receipts for the command line: signing what a run committed to, reading keys and salts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ree import atomic
from ree.commit.keys import PublicKey, Signer, generate
from ree.commit.receipt import Receipt, read
from ree.commit.trace import Trace
from ree.errors import InputError

if TYPE_CHECKING:
    from ree.lm.generation import Receipt as Generated

SALT_SUFFIX = ".salt"
_DIGITS = 64


@dataclass(frozen=True)
class Signing:
    """The options of a run that is to be signed."""

    signer: Signer
    receipt: Path
    nonce: bytes | None

    @staticmethod
    def of(sign: Path | None, receipt: Path | None, nonce: str | None) -> Signing | None:
        """None if nothing is to be signed. InputError: a part is missing or is none."""
        if sign is None and receipt is None and nonce is None:
            return None
        if sign is None or receipt is None:
            raise InputError("--sign KEY.pem and --receipt FILE go together")
        return Signing(Signer.load(sign), receipt, None if nonce is None else digest(nonce, "--nonce"))

    def write(self, trace: Trace) -> dict[str, Any]:
        """Write the receipt, and beside it the salt that opens its commitment to the input, which only you may read."""
        envelope = trace.receipt(self.signer, nonce=self.nonce)
        assert trace.input_salt is not None
        salt = write_with_salt(self.receipt, envelope, trace.input_salt)
        return {"receipt_id": read(envelope).id.hex(), "signer": self.signer.public.id, "salt": str(salt)}


def write_with_salt(path: Path, envelope: bytes, salt: bytes) -> Path:
    """Write a receipt, and beside it the salt that opens a commitment of it, which only you may read; the salt's file.

    InputError: they cannot be written.
    """
    beside = path.with_name(path.name + SALT_SUFFIX)
    try:  # both are complete before either takes its place, so that no receipt is left with another's salt
        with atomic.replacing(beside, 0o600) as secret, atomic.replacing(path) as file:
            secret.write(salt.hex().encode() + b"\n")
            file.write(envelope + b"\n")
            secret.flush()
    except OSError as error:
        raise InputError(f"cannot write {path} and its salt: {error.strerror}") from None
    return beside


def signer_or_own(path: Path | None) -> Signer:
    """The key in a file; without one, the user's own, made when it is first needed.

    It lies in REE_KEY, or `ree/key.pem` in the user's data directory. InputError: it cannot be read or made.
    """
    if path is None:
        data = Path(os.environ.get("XDG_DATA_HOME", "") or Path.home() / ".local" / "share")
        path = Path(os.environ.get("REE_KEY", "") or data / "ree" / "key.pem")
        if not path.exists():
            with contextlib.suppress(OSError):  # what cannot be made cannot be read, and that says why
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            generate(path)
    return Signer.load(path)


def describe(receipt: Receipt | Generated) -> dict[str, Any]:
    """A receipt as JSON values."""
    return {"receipt_id": receipt.id.hex(), "signer": receipt.signer.id, "claim": receipt.claim.predicate()}


def unseen(receipt: Receipt) -> list[str]:
    """What a receipt states, and a run of the program cannot show."""
    claim = receipt.claim
    stated = {"tokenizerId": claim.tokenizer_id, "promptCommitment": claim.prompt_commitment}
    return [name for name, value in stated.items() if value is not None]


def trusted(keys: Sequence[str] | None) -> list[PublicKey] | None:
    """Public keys in hex or PEM files; None if none is named."""
    return [PublicKey.load(source) for source in keys] if keys else None


def read_salt(path: Path | None) -> bytes | None:
    """The salt in a file that `Signing.write` wrote. InputError: it is none."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            text = file.read(_DIGITS + 2).decode("ascii", "replace").strip()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    try:
        return digest(text, f"the salt in {path}")
    except InputError:  # of which nothing is shown: it may be a key by mistake
        raise InputError(f"{path} is no file with a salt: {_DIGITS} hexadecimal digits are expected") from None


def digest(text: str, what: str) -> bytes:
    """32 bytes from hexadecimal digits; InputError, naming what they are for, if they are none."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(text) != _DIGITS or len(found) != _DIGITS // 2:
        raise InputError(f"{what}: {_DIGITS} hexadecimal digits are expected, not {text[:80]!r}")
    return found
