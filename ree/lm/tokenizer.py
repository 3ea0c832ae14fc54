"""Text to tokens and back: tokenizer.json as the `tokenizers` package defines it, with a few settings beside it.

tokenizer.json says how a text is encoded, down to the token that begins it. What is taken from tokenizer_config.json
is little and named here, and no class of transformers comes between: those rebuild tokenizers in ways that change from
version to version. `tokenizer_id` names the whole.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import blake3

from ree.errors import FormatError, InputError, LimitError, UnsupportedError
from ree.limits import NAME_BYTES_MAX
from ree.lm.chat import ChatTemplate
from ree.loaders import first_line

ID_CONTEXT = "ree v1 tokenizer"
TEXT_BYTES_MAX = 64 << 20
TOKENS_MAX = 1 << 24
ADDED_MAX = 1 << 16
SPECIAL_NAMES = tuple(f"{name}_token" for name in "bos eos unk sep pad cls mask".split())
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Prompt(NamedTuple):
    """A chat as a text and as its tokens."""

    text: str
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Settings:
    """What tokenizer_config.json adds to tokenizer.json.

    special: texts of special tokens by name ("bos_token", ...); splits_special: whether those in a text are encoded as
    any other text; added: id, text and flags of tokens to add where tokenizer.json has no such id.
    """

    special: Mapping[str, str] = field(default_factory=dict)
    splits_special: bool = False
    added: tuple[tuple[int, str, Mapping[str, bool]], ...] = ()

    @classmethod
    def read(cls, config: Mapping[str, Any], older: Mapping[str, Any]) -> Settings:
        """From the objects in tokenizer_config.json and special_tokens_map.json; FormatError if malformed."""
        special = {}
        for name in SPECIAL_NAMES:
            value = config.get(name, older.get(name))
            if value is not None:
                special[name] = _text(value, name)
        return cls(special, bool(config.get("split_special_tokens")), _added(config))

    def canonical(self) -> bytes:
        """As canonical JSON: sorted keys, no spaces, ASCII."""
        added = [[number, text, dict(flags)] for number, text, flags in self.added]
        values = [dict(self.special), self.splits_special, added]
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")


def tokenizer_id(data: bytes, settings: Settings) -> bytes:
    """BLAKE3 derive_key over tokenizer.json and the canonical settings, each after its length (u64 little-endian)."""
    hasher = blake3.blake3(derive_key_context=ID_CONTEXT)
    for part in (data, settings.canonical()):
        hasher.update(struct.pack("<Q", len(part)))
        hasher.update(part)
    return hasher.digest()


class Tokenizer:
    """A tokenizer, and the chat template of its model.

    bos_id, eos_id: of the tokens that the settings name as the begin and the end of a text, or None; special_ids: of
    all special tokens; ids_end: one more than the largest id that encoding can give.
    """

    def __init__(self, data: bytes, settings: Settings, template: ChatTemplate | None = None) -> None:
        """data: the bytes of tokenizer.json. FormatError if they are none; UnsupportedError if it encodes at random."""
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError:
            raise InputError("a model folder needs the package tokenizers: pip install 'ree[hf]'") from None
        with _contained():
            backend = Backend.from_buffer(data)
            backend.no_padding()
            backend.no_truncation()
            if getattr(backend.model, "dropout", None):
                raise UnsupportedError("tokenizer.json has a dropout: it encodes at random")
            backend.encode_special_tokens = settings.splits_special
            _add_tokens(backend, settings)
            self.bos_id, self.eos_id = (_id_of(backend, settings, name) for name in ("bos_token", "eos_token"))
            added = backend.get_added_tokens_decoder()
            self._special = frozenset(token.content for token in added.values() if token.special)
            self.special_ids = frozenset(number for number, token in added.items() if token.special)
            self.decoder_state: dict[str, Any] | None = (
                None if backend.decoder is None else json.loads(backend.decoder.__getstate__())
            )
            ids = [*backend.get_vocab(with_added_tokens=True).values(), *backend.encode("").ids]
        self.ids_end = max(ids, default=-1) + 1
        self._backend = backend
        self._special_texts = dict(settings.special)
        self.template = template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a text; add_special_tokens: with those that tokenizer.json puts before and after one.

        InputError: no text, or half a surrogate pair; LimitError: more than TEXT_BYTES_MAX bytes.
        """
        _check_text(text)
        with _contained():
            # a batch of one: only batches let other threads of Python run
            encoded = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded[0].ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of tokens; ids that mean no token have none. InputError: no ids; LimitError: too many."""
        try:
            count = len(ids)
        except TypeError:
            raise InputError(f"tokens are expected, not {type(ids).__name__}") from None
        if count > TOKENS_MAX:
            raise LimitError(f"{count} tokens; at most {TOKENS_MAX} are possible")
        checked = [_check_id(number) for number in ids]
        with _contained():
            return str(self._backend.decode(checked, skip_special_tokens=skip_special))

    def piece(self, number: int, skip_special: bool = True) -> str | None:
        """A token's own text, before any decoder; None if it has none that counts."""
        found: str | None = self._backend.id_to_token(_check_id(number))
        return None if skip_special and found in self._special else found

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        now: datetime.datetime | None = None,
    ) -> Prompt:
        """The prompt for a chat by the model's template, which writes all special tokens itself.

        As `ChatTemplate.render`; InputError also if the model has no template.
        """
        if self.template is None:
            raise InputError("this model has no chat template; give it a prompt instead of messages")
        text = self.template.render(messages, self._special_texts, add_generation_prompt, now)
        return Prompt(text, self.encode(text, add_special_tokens=False))


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """What the package raises, a FormatError: it documents no types, and panics of its Rust code are no Exception."""
    try:
        yield
    except (FormatError, UnsupportedError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise FormatError(f"tokenizer.json: {first_line(error)}") from None
        raise


def _add_tokens(backend: Any, settings: Settings) -> None:
    """Tokens that only the settings know, at their ids; and what the settings name as special is so."""
    from tokenizers import AddedToken

    for number, text, flags in settings.added:
        if backend.id_to_token(number) is None:
            backend.add_tokens([AddedToken(text, **flags)])
            if backend.token_to_id(text) != number:
                raise FormatError(f"tokenizer_config.json adds token {number}, but tokenizer.json does not end there")
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for text in dict.fromkeys(settings.special.values()):
        if text not in special and backend.token_to_id(text) is not None:
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def _id_of(backend: Any, settings: Settings, name: str) -> int | None:
    text = settings.special.get(name)
    if text is None:
        return None
    found: int | None = backend.token_to_id(text)
    if found is None:
        raise FormatError(f"tokenizer_config.json: {name} {text[:80]!r} is no token of tokenizer.json")
    return found


def _text(value: Any, name: str) -> str:
    """A token's text, which stands alone or with its flags."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text or len(text) > NAME_BYTES_MAX:
        raise FormatError(f"tokenizer_config.json: {name} is no text of a token")
    return text


def _added(config: Mapping[str, Any]) -> tuple[tuple[int, str, Mapping[str, bool]], ...]:
    tokens = config.get("added_tokens_decoder") or {}
    if not isinstance(tokens, dict) or len(tokens) > ADDED_MAX:
        raise FormatError("tokenizer_config.json: added_tokens_decoder is malformed")
    found = []
    for key, value in tokens.items():
        text = value.get("content") if isinstance(value, dict) else None
        is_number = key.isdecimal() and key.isascii() and len(key) < 10
        if not is_number or not isinstance(text, str) or not 0 < len(text) <= NAME_BYTES_MAX:
            raise FormatError("tokenizer_config.json: added_tokens_decoder is malformed")
        found.append((int(key), text, {flag: bool(value.get(flag, False)) for flag in _FLAGS}))
    return tuple(sorted(found, key=lambda item: item[0]))


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"a text is expected, not {type(text).__name__}")
    if len(text) > TEXT_BYTES_MAX:
        raise LimitError(f"the text has {len(text)} characters, more than {TEXT_BYTES_MAX}")
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise InputError("the text holds half a surrogate pair") from None
    if size_bytes > TEXT_BYTES_MAX:
        raise LimitError(f"the text has {size_bytes} bytes, more than {TEXT_BYTES_MAX}")


def _check_id(number: Any) -> int:
    try:
        found = number.__index__()
    except AttributeError:
        raise InputError(f"a token is an integer, not {type(number).__name__}") from None
    if not 0 <= found < 1 << 32:
        raise InputError(f"no token has the number {found}")
    return int(found)
