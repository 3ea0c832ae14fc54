"""What a receipt states of one run: each field once, as it stands in Python, in JSON and in Solidity."""

from __future__ import annotations

import datetime
import re
import reprlib
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ree.commit import salted, strict_json
from ree.errors import InputError, VerificationError
from ree.limits import RECEIPT_TEXT_BYTES_MAX

VERSION = 1  # of the claim's fields and of everything about receipts
SEMANTICS = 1  # of the arithmetic (docs/SPEC.md)
ABSENT = bytes(32)  # stands for an optional digest in EIP-712, so it is no digest
SECONDS_MAX = 253402300799  # the last second of the year 9999

_HEX32 = re.compile("[0-9a-f]{64}")
_RFC3339 = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_PRINTABLE = re.compile("[!-~]([ -~]*[!-~])?")


class Kind(StrEnum):
    """What a field holds; the value is its Solidity type."""

    VERSION = "uint32"
    DIGEST = "bytes32"  # bytes in Python, lowercase hex in JSON
    TIME = "uint64"  # seconds since 1970 in Python, RFC 3339 in UTC in JSON
    TEXT = "string"  # printable ASCII


@dataclass(frozen=True, slots=True)
class Field:
    """One field; `name` is the attribute of a Claim."""

    name: str
    kind: Kind
    optional: bool = False

    @property
    def json(self) -> str:
        """The name in JSON and Solidity: program_id is programId."""
        first, *others = self.name.split("_")
        return first + "".join(other.capitalize() for other in others)


# The order is that of the EIP-712 struct and can never change.
FIELDS = (
    Field("version", Kind.VERSION),
    Field("semantics", Kind.VERSION),
    Field("program_id", Kind.DIGEST),
    Field("weights_id", Kind.DIGEST),
    Field("tokenizer_id", Kind.DIGEST, optional=True),
    Field("input_commitment", Kind.DIGEST),
    Field("prompt_commitment", Kind.DIGEST, optional=True),
    Field("output_id", Kind.DIGEST),
    Field("trace_root", Kind.DIGEST),
    Field("nonce", Kind.DIGEST, optional=True),
    Field("issued_at", Kind.TIME),
    Field("device", Kind.TEXT),
    Field("ree_version", Kind.TEXT),
    Field("program_sha256", Kind.DIGEST, optional=True),
    Field("output_sha256", Kind.DIGEST, optional=True),
)
_REQUIRED = {f.json for f in FIELDS if not f.optional}
_OPTIONAL = {f.json for f in FIELDS if f.optional}
_KNOWN = {"version": VERSION, "semantics": SEMANTICS}


def running_version() -> str:
    """The release of ree that runs."""
    import ree

    return ree.__version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The statement of a receipt; its digests have 32 bytes. InputError: a value that none can hold."""

    program_id: bytes
    weights_id: bytes
    input_commitment: bytes  # salted, see ree.commit.salted
    output_id: bytes
    trace_root: bytes
    device: str  # for people: instruction set and architecture; nothing is derived from it
    tokenizer_id: bytes | None = None
    prompt_commitment: bytes | None = None  # salted
    nonce: bytes | None = None  # of whoever asked for the run: makes an old receipt useless as a new one
    program_sha256: bytes | None = None  # of the program's canonical description
    output_sha256: bytes | None = None  # of the output's bytes
    issued_at: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970, UTC
    ree_version: str = field(default_factory=running_version)
    semantics: int = SEMANTICS
    version: int = VERSION

    def __post_init__(self) -> None:
        for f in FIELDS:
            if (wrong := fault(f, getattr(self, f.name))) is not None:
                raise InputError(f"a claim's {f.name} {wrong}")

    def predicate(self) -> dict[str, Any]:
        """The claim as JSON values; absent fields are left out."""
        values = {f.json: (f.kind, getattr(self, f.name)) for f in FIELDS}
        return {name: to_json(kind, value) for name, (kind, value) in values.items() if value is not None}

    @classmethod
    def from_predicate(cls, predicate: Any) -> Claim:
        """The claim that JSON values state. VerificationError: they state none."""
        found = strict_json.members(predicate, _REQUIRED, _OPTIONAL, "the predicate")
        values: dict[str, Any] = {}
        for f in FIELDS:
            values[f.name] = from_json(f.kind, found[f.json]) if f.json in found else None
            if (wrong := fault(f, values[f.name])) is not None:
                raise VerificationError(f"the predicate's {f.json} {wrong}")
        return cls(**values)

    def expect(self, **values: object) -> None:
        """VerificationError that names the first field, in order, which is not as given; None: it must be absent."""
        if unknown := values.keys() - {f.name for f in FIELDS}:
            raise InputError(f"a claim has no {min(unknown)}")
        for f in FIELDS:
            stated = getattr(self, f.name)
            if f.name in values and (type(stated) is not type(values[f.name]) or stated != values[f.name]):
                raise VerificationError(f"the {f.json} is {shown(values[f.name])}, the receipt says {shown(stated)}")

    def open_input(self, salt: bytes, input_id: bytes) -> None:
        """VerificationError unless the claim is about this input."""
        salted.check_opening(salted.INPUT, self.input_commitment, salt, input_id)

    def open_prompt(self, salt: bytes, prompt_id: bytes) -> None:
        """VerificationError unless the claim is about this prompt."""
        if self.prompt_commitment is None:
            raise VerificationError("the receipt commits to no prompt")
        salted.check_opening(salted.PROMPT, self.prompt_commitment, salt, prompt_id)


def fault(f: Field, value: object) -> str | None:
    """What is wrong with a field's value, as the end of a sentence; None if nothing is."""
    if value is None:
        return None if f.optional else "is missing"
    if f.kind is Kind.DIGEST:
        good = type(value) is bytes and len(value) == len(ABSENT) and value != ABSENT
        return None if good else "is no digest: 32 bytes, not all zero, as JSON in lowercase hex"
    if f.kind is Kind.VERSION:
        known = type(value) is int and value == _KNOWN[f.name]
        return None if known else f"is not {_KNOWN[f.name]}, the only one that this release of ree knows"
    if f.kind is Kind.TIME:
        good = type(value) is int and 0 <= value <= SECONDS_MAX
        return None if good else "is no time in UTC, of whole seconds, between the years 1970 and 9999"
    good = type(value) is str and len(value) <= RECEIPT_TEXT_BYTES_MAX and bool(_PRINTABLE.fullmatch(value))
    return None if good else f"is not 1 to {RECEIPT_TEXT_BYTES_MAX} characters of printable ASCII"


def rfc3339(seconds: int) -> str:
    """The time in UTC, 2026-11-22T10:00:00Z."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_json(kind: Kind, value: Any) -> str | int:
    """The value of a field in JSON."""
    if kind is Kind.DIGEST:
        return str(value.hex())
    return rfc3339(value) if kind is Kind.TIME else value


def from_json(kind: Kind, value: Any) -> Any:
    """The value of a field in Python; what is malformed becomes a value that `fault` refuses."""
    if kind is Kind.DIGEST:
        return bytes.fromhex(value) if type(value) is str and _HEX32.fullmatch(value) else b""
    if kind is Kind.TIME:
        return _seconds(value)
    return value


def _seconds(text: Any) -> int:
    """Seconds since 1970 of an RFC 3339 time in UTC without fractions; -1 if it is none."""
    if type(text) is not str or not _RFC3339.fullmatch(text):
        return -1
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp())
    except ValueError:  # the 30th of February
        return -1


def shown(value: object) -> str:
    """A value as messages show it: digests in hex, and nothing at length."""
    return value.hex() if isinstance(value, bytes) else reprlib.repr(value)
