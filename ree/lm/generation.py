"""Receipts of generations: what a language model was asked for, the tokens that it gave, the logits behind each.

Model, prompt and sampling fix a generation to the bit, so whoever has the model can check a receipt by reading prompt
and tokens once (ree.lm.check). They are signed and read as receipts of runs are (docs/SPEC.md, "Receipts of
generations"). What is wrong with a receipt is always a VerificationError.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import blake3
import numpy as np

from ree.commit import claim, dsse, receipt, salted, strict_json
from ree.commit.claim import SEMANTICS, VERSION, Field, Kind
from ree.commit.keys import PublicKey, Signer
from ree.device.backend import CPU, backend_of
from ree.errors import InputError, LimitError, VerificationError
from ree.limits import GENERATED_TOKENS_MAX, GENERATION_RECEIPT_BYTES_MAX, STOP_TOKENS_MAX
from ree.lm.sample import HISTORY_MAX, VOCAB_MAX, Sampling
from ree.lm.text import STOP_CHARACTERS_MAX, STOPS_MAX

PREDICATE_TYPE = "https://ree.dev/attestation/generation/v1"
SUBJECT_NAME = "generation"
PROMPT_CONTEXT = "ree v1 prompt tokens"
TOKENS_CONTEXT = "ree v1 generated tokens"
ROOT_BYTES = 32
STOP, LENGTH = "stop", "length"

_HEX = re.compile("[0-9a-f]+")


# -- digests -----------------------------------------------------------------------------------------


def token_array(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """Tokens as u32, 1 to 2**24 of them. InputError: they are none."""
    try:
        array = np.asarray(tokens)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not 1 <= len(array) <= HISTORY_MAX:
        raise InputError(f"tokens are a list of 1 to {HISTORY_MAX} integers")
    if not np.all((array >= 0) & (array < VOCAB_MAX)):
        raise InputError(f"tokens are integers from 0 to {VOCAB_MAX - 1}")
    return array.astype("<u4")


def prompt_id(tokens: Sequence[int] | np.ndarray) -> bytes:
    """The id (32 bytes) of a prompt's tokens. InputError: as `token_array`."""
    return blake3.blake3(token_array(tokens).tobytes(), derive_key_context=PROMPT_CONTEXT).digest()


def tokens_id(tokens: Sequence[int] | np.ndarray) -> bytes:
    """The id (32 bytes) of generated tokens. InputError: as `token_array`."""
    return blake3.blake3(token_array(tokens).tobytes(), derive_key_context=TOKENS_CONTEXT).digest()


def logits_root(logits: np.ndarray) -> bytes:
    """Plain BLAKE3 (32 bytes) of a row of logits, float32 [V]. InputError: it is none."""
    if not isinstance(logits, np.ndarray) or logits.dtype != np.float32 or logits.ndim != 1 or not logits.size:
        raise InputError("logits are an array of float32 with one axis")
    row = np.ascontiguousarray(logits, "<f4")  # the array itself, as a rule
    return blake3.blake3(row.view(np.uint8).data).digest()


# -- members of the predicate ------------------------------------------------------------------------


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the predicate; `name` is the attribute of a Generation.

    fault: what is wrong with a value, as the end of a sentence, or None. write, read: to and from JSON; what is
    malformed is read as a value that `fault` refuses.
    """

    name: str
    json: str
    fault: Callable[[Any], str | None]
    write: Callable[[Any], Any] = _same
    read: Callable[[Any], Any] = _same
    optional: bool = False


def _shared(name: str, kind: Kind, optional: bool = False) -> Member:
    """A member of a kind that receipts of runs have."""
    f = Field(name, kind, optional)
    return Member(
        name, f.json, partial(claim.fault, f), partial(claim.to_json, kind), partial(claim.from_json, kind), optional
    )


def _counts(high: int, value: Any) -> str | None:
    return None if type(value) is int and 1 <= value <= high else f"is no integer from 1 to {high}"


def _sampling(value: Any) -> str | None:
    return None if type(value) is Sampling else "is no Sampling"


def _tokens(low: int, high: int, value: Any) -> str | None:
    good = type(value) is tuple and low <= len(value) <= high
    good = good and all(type(token) is int and 0 <= token < VOCAB_MAX for token in value)
    return None if good else f"are not {low} to {high} integers from 0 to {VOCAB_MAX - 1}"


def _stop_tokens(value: Any) -> str | None:
    if wrong := _tokens(0, STOP_TOKENS_MAX, value):
        return wrong
    return None if list(value) == sorted(set(value)) else "are not in ascending order, or one stands twice"


def _stop_strings(value: Any) -> str | None:
    good = type(value) is tuple and len(value) <= STOPS_MAX and all(type(text) is str for text in value)
    good = good and all(1 <= len(text) <= STOP_CHARACTERS_MAX and _is_unicode(text) for text in value)
    return None if good else f"are not at most {STOPS_MAX} texts of 1 to {STOP_CHARACTERS_MAX} characters"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _roots(value: Any) -> str | None:
    good = type(value) is bytes and value and len(value) % ROOT_BYTES == 0
    return None if good else f"are no digests of {ROOT_BYTES} bytes in a row, as JSON in lowercase hex"


def _reason(value: Any) -> str | None:
    return None if type(value) is str and value in (STOP, LENGTH) else f'is neither "{STOP}" nor "{LENGTH}"'


def _read_list(value: Any) -> Any:
    return tuple(value) if type(value) is list else None


def _read_bytes(value: Any) -> bytes:
    good = type(value) is str and len(value) % 2 == 0 and _HEX.fullmatch(value)
    return bytes.fromhex(value) if good else b""


def _write_texts(texts: tuple[str, ...]) -> list[str]:
    """In hex, so that no bracket or quote in them matters to a reader, nor how their letters are spelt in JSON."""
    return [text.encode("utf-8").hex() for text in texts]


def _read_texts(value: Any) -> Any:
    if type(value) is not list or len(value) > STOPS_MAX:
        return None
    try:
        return tuple(_read_bytes(text).decode("utf-8") for text in value)
    except UnicodeDecodeError:
        return None


MEMBERS = (
    _shared("version", Kind.VERSION),
    _shared("semantics", Kind.VERSION),
    _shared("program_id", Kind.DIGEST),
    _shared("weights_id", Kind.DIGEST),
    _shared("tokenizer_id", Kind.DIGEST),
    _shared("chat_template_id", Kind.DIGEST, optional=True),
    _shared("prompt_commitment", Kind.DIGEST),
    Member("prompt_length", "promptLength", partial(_counts, HISTORY_MAX)),
    Member("sampling", "sampling", _sampling, Sampling.to_json, Sampling.from_json),
    Member("max_new_tokens", "maxNewTokens", partial(_counts, GENERATED_TOKENS_MAX)),
    Member("stop_tokens", "stopTokens", _stop_tokens, list, _read_list),
    Member("stop_strings", "stopStrings", _stop_strings, _write_texts, _read_texts),
    Member("tokens", "tokens", partial(_tokens, 1, GENERATED_TOKENS_MAX), list, _read_list),
    Member("logits_roots", "logitsRoots", _roots, bytes.hex, _read_bytes),
    Member("finish_reason", "finishReason", _reason),
    _shared("nonce", Kind.DIGEST, optional=True),
    _shared("issued_at", Kind.TIME),
    _shared("device", Kind.TEXT),
    _shared("ree_version", Kind.TEXT),
)
_OWNER = "a generation's"  # begins each sentence about a member
_REQUIRED = {m.json for m in MEMBERS if not m.optional}
_OPTIONAL = {m.json for m in MEMBERS if m.optional}


def _check(values: Mapping[str, Any]) -> None:
    """InputError: a value that no generation can have."""
    for m in MEMBERS:
        if m.name not in values:
            continue
        value = values[m.name]
        if (wrong := None if value is None and m.optional else m.fault(value)) is not None:
            raise InputError(f"{_OWNER} {m.json} {wrong}")


# -- the claim ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Binding:
    """The model of a generation, in digests of 32 bytes; chat_template_id: None if no template made its prompt."""

    program_id: bytes
    weights_id: bytes
    tokenizer_id: bytes
    chat_template_id: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The statement of a generation's receipt. InputError: a value that none holds, or two that exclude each other.

    stop_tokens: ascending; the last of `tokens` is among them if one ended it. logits_roots: for each token the
    `logits_root` of the row that it was drawn from, 32 bytes each.
    """

    program_id: bytes
    weights_id: bytes
    tokenizer_id: bytes
    prompt_commitment: bytes  # salted, see ree.commit.salted
    prompt_length: int
    sampling: Sampling
    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    stop_strings: tuple[str, ...]
    tokens: tuple[int, ...]
    logits_roots: bytes
    finish_reason: str
    device: str  # for people: instruction set and architecture; nothing is derived from it
    chat_template_id: bytes | None = None
    nonce: bytes | None = None  # of whoever asked: makes an old receipt useless as a new one
    issued_at: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970, UTC
    ree_version: str = field(default_factory=claim.running_version)
    semantics: int = SEMANTICS
    version: int = VERSION

    def __post_init__(self) -> None:
        _check({m.name: getattr(self, m.name) for m in MEMBERS})
        if (wrong := self._contradiction()) is not None:
            raise InputError(f"{_OWNER} {wrong}")

    def predicate(self) -> dict[str, Any]:
        """The generation as JSON values; absent members are left out."""
        values = {m.json: (m.write, getattr(self, m.name)) for m in MEMBERS}
        return {name: write(value) for name, (write, value) in values.items() if value is not None}

    @classmethod
    def from_predicate(cls, predicate: Any) -> Generation:
        """The generation that JSON values state. VerificationError: they state none."""
        found = strict_json.members(predicate, _REQUIRED, _OPTIONAL, "the predicate")
        for m in MEMBERS:
            if m.json in found and found[m.json] is None:  # which in Python would stand for an absent one
                raise VerificationError(f"the predicate is malformed: {m.json!r} is null")
        values = {m.name: m.read(found[m.json]) for m in MEMBERS if m.json in found}
        try:
            return cls(**values)
        except InputError as error:
            raise VerificationError(f"the predicate's{str(error).removeprefix(_OWNER)}") from None

    def root(self, step: int) -> bytes:
        """The logits root of one token."""
        return self.logits_roots[step * ROOT_BYTES : (step + 1) * ROOT_BYTES]

    def expect(self, **values: bytes | int | None) -> None:
        """VerificationError that names the first member, in order, which is not as given; None: it must be absent."""
        for m in MEMBERS:
            stated = getattr(self, m.name)
            if m.name in values and stated != values[m.name]:
                own = claim.shown(values[m.name])
                raise VerificationError(f"the {m.json} is {own}, the receipt says {claim.shown(stated)}")

    def open_prompt(self, salt: bytes, identity: bytes) -> None:
        """VerificationError unless the claim is about the prompt of this `prompt_id`."""
        salted.check_opening(salted.PROMPT, self.prompt_commitment, salt, identity)

    def _contradiction(self) -> str | None:
        """What shows without the model that the claim is false, as the end of a sentence."""
        count, stops = len(self.tokens), set(self.stop_tokens)
        if len(self.logits_roots) != count * ROOT_BYTES:
            return f"logitsRoots are not {count}, one for each token"
        if count > self.max_new_tokens:
            return f"tokens are {count}, more than maxNewTokens"
        early = next((step for step, token in enumerate(self.tokens[:-1]) if token in stops), None)
        if early is not None:
            return f"tokens go on after the stop token of step {early}"
        ended = self.tokens[-1] in stops
        if self.finish_reason == LENGTH and (ended or count < self.max_new_tokens):
            return f"finishReason is {LENGTH!r}, but {'a stop token ended it' if ended else 'more tokens were allowed'}"
        if self.finish_reason == STOP and not ended and not self.stop_strings:
            return f"finishReason is {STOP!r}, but no stop token ended it, and there are no stop strings"
        return None


# -- the receipt -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt whose signature is good: what it states, who states it, and the bytes that were signed."""

    claim: Generation
    signer: PublicKey
    payload: bytes

    @property
    def id(self) -> bytes:
        """32 bytes, equal for all signatures of one claim."""
        return receipt.id_of(self.payload)


def statement(generation: Generation) -> dict[str, Any]:
    """The in-toto Statement as JSON values; its subject is the list of tokens."""
    digests = {receipt.OUTPUT_ID_KEY: tokens_id(generation.tokens).hex()}
    return receipt.statement_of(PREDICATE_TYPE, generation.predicate(), SUBJECT_NAME, digests)


def payload(generation: Generation) -> bytes:
    """The one text of a generation's statement: canonical JSON."""
    return strict_json.canonical(statement(generation))


def make(generation: Generation, signer: Signer) -> bytes:
    """The receipt as one line of JSON, without a line feed."""
    return _sealed(payload(generation), signer)


def read(envelope: bytes | str | dict[str, Any], trusted_keys: Collection[PublicKey] | None = None) -> Receipt:
    """A receipt: its signature by one of `trusted_keys` is good, and what was signed is a generation's statement.

    Without keys (None) the signature must be good, but by whomever: the caller must look at `signer`.
    """
    signed, signer = dsse.unseal(envelope, receipt.PAYLOAD_TYPE, trusted_keys, GENERATION_RECEIPT_BYTES_MAX)
    found = receipt.parsed(signed, PREDICATE_TYPE)
    generation = Generation.from_predicate(found["predicate"])
    own = statement(generation)
    if found["subject"] != own["subject"]:
        raise VerificationError("the statement's subject is not the tokens of its predicate")
    if signed != strict_json.canonical(own):
        raise VerificationError("the statement is not in its canonical form")
    return Receipt(generation, signer, signed)


def load(path: str | os.PathLike[str]) -> bytes:
    """A receipt's bytes from a file, not verified. InputError: the file cannot be read."""
    return receipt.load(path, GENERATION_RECEIPT_BYTES_MAX)


def _sealed(signed: bytes, signer: Signer) -> bytes:
    return dsse.seal(signed, receipt.PAYLOAD_TYPE, signer, GENERATION_RECEIPT_BYTES_MAX)


def _ascending(tokens: Collection[int]) -> tuple[int, ...] | None:
    """The different tokens in ascending order; None: some are not even integers."""
    return tuple(sorted(set(tokens))) if all(type(token) is int for token in tokens) else None


class Recorder:
    """Collects what the receipt of one generation states, token by token, and signs it at the end.

    salt: the 32 bytes that open the receipt's commitment to the prompt; the caller keeps them. prompt_tokens: 1 to
    2**24; stop_tokens: at most 1024, in any order; stop_strings: as for ree.lm.text.StopStrings; nonce: 32 bytes of the
    one who asked; issued_at: when the prompt was made, seconds since 1970 (None: now), which a template may have put
    into it; device: where it runs (None: on this processor). InputError: a value that no receipt can state. For one
    thread at a time.
    """

    def __init__(
        self,
        binding: Binding,
        prompt_tokens: Sequence[int] | np.ndarray,
        sampling: Sampling,
        max_new_tokens: int,
        stop_tokens: Collection[int],
        stop_strings: Sequence[str],
        signer: Signer,
        nonce: bytes | None = None,
        issued_at: int | None = None,
        device: str | None = None,
    ) -> None:
        self.salt = salted.fresh_salt()
        self._signer = signer
        self._asked: dict[str, Any] = asdict(binding) | {
            "prompt_commitment": salted.commit(salted.PROMPT, self.salt, prompt_id(prompt_tokens)),
            "prompt_length": len(prompt_tokens),
            "sampling": sampling,
            "max_new_tokens": max_new_tokens,
            "stop_tokens": _ascending(stop_tokens),
            "stop_strings": None if isinstance(stop_strings, str) else tuple(stop_strings),
            "nonce": nonce,
            "issued_at": int(time.time()) if issued_at is None else issued_at,
            "device": backend_of(CPU).text if device is None else device,
        }
        _check(self._asked)  # now, not when the tokens are there
        self._position = len(prompt_tokens)
        self._tokens: list[int] = []
        self._roots = bytearray()

    def step(self, position: int, token: int, logits: np.ndarray) -> None:
        """One token: its index in the sequence, and the logits float32 [V] that it was drawn from.

        InputError: it is not the next one, or these are no logits; LimitError: more tokens than were asked for.
        """
        if position != self._position:
            raise InputError(f"the token at position {self._position} is the next one to be recorded, not {position}")
        if len(self._tokens) == self._asked["max_new_tokens"]:
            raise LimitError(f"no more than {len(self._tokens)} tokens were asked for")
        self._roots += logits_root(logits)
        self._tokens.append(int(token))
        self._position += 1

    def finish(self, reason: str) -> tuple[str, bytes]:
        """(receipt id in hex, envelope); reason: "stop" or "length". InputError: the tokens show that it is not."""
        made = Generation(
            **self._asked, tokens=tuple(self._tokens), logits_roots=bytes(self._roots), finish_reason=reason
        )
        signed = payload(made)
        return receipt.id_of(signed).hex(), _sealed(signed, self._signer)
