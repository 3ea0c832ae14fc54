"""A model folder as the server sees it."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import blake3

from ree.commit.keys import Signer
from ree.errors import InputError
from ree.lm import decoders
from ree.lm.engine import Engine
from ree.lm.folder import Defaults
from ree.lm.generation import Recorder
from ree.lm.model import LanguageModel
from ree.lm.sample import Sampling
from ree.lm.serve.model import Asked
from ree.lm.spelling import Spelling
from ree.lm.text import Detokeniser

_SPELLED_MAX = 1 << 16  # tokens whose bytes are remembered
_BYTES = decoders.byte_characters()
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class Loaded:
    """A language model and an engine for it, whose receipts `signer` signs; see `ree.lm.serve.model.Model`."""

    def __init__(self, model: LanguageModel, engine: Engine, signer: Signer, name: str) -> None:
        """InputError: the folder's own proposals for sampling are none that can be served."""
        self.engine, self.name, self.created = engine, name, int(time.time())
        self._model, self._signer, self._tokenizer = model, signer, model.folder.tokenizer
        digests = {
            "program_id": model.program_id,
            "weights_id": model.weights_id,
            "tokenizer_id": model.tokenizer_id,
            "chat_template_id": model.chat_template_id or b"",
        }
        self.ids = {n: d.hex() for n, d in digests.items() if d} | {"signer": signer.public.id}
        self.fingerprint = "ree-" + blake3.blake3(b"".join(digests.values())).hexdigest()[:16]
        self.stop_tokens = frozenset(model.folder.eos_ids)
        self.silent = frozenset(self._tokenizer.special_ids)
        self.defaults = sampling_defaults(model.folder.defaults)
        try:
            Sampling(**self.defaults)
        except InputError as error:
            raise InputError(f"{model.folder.path}: generation_config.json: {error}") from None
        states = _parts(self._tokenizer.decoder_state)
        self._is_byte_level = any(state["type"] == "ByteLevel" for state in states)
        self._has_byte_tokens = any(state["type"] == "ByteFallback" for state in states)
        self.spelled = functools.lru_cache(_SPELLED_MAX)(self._spell)

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with those that begin a text."""
        return self._tokenizer.encode(text)

    def chat(self, messages: Sequence[Mapping[str, str]], now: datetime) -> list[int]:
        """The tokens of a chat by the model's template. InputError: it has none, or it refuses the messages."""
        return self._tokenizer.chat(messages, now=now).ids

    def text(self, prompt: Sequence[int], stops: Sequence[str]) -> Spelling:
        """Makes the text that follows on a prompt."""
        return self._model.text(prompt, stops)

    def recorder(self, asked: Asked) -> Recorder:
        """Collects what the receipt states; no template stands in it if none made the prompt."""
        return Recorder(
            self._model.binding(asked.is_chat),
            asked.prompt,
            asked.sampling,
            asked.tokens_max,
            self.stop_tokens,
            asked.stops,
            self._signer,
            asked.nonce,
            asked.issued_at,
            self._model.program.device_text,
        )

    def _spell(self, token: int) -> bytes:
        """The bytes of one token within a text: parts of characters as they are, a space before a word included."""
        piece = self._tokenizer.piece(token, skip_special=False)
        if piece is None:
            return b""
        if self._is_byte_level:
            try:
                return bytes([_BYTES[character] for character in piece])
            except KeyError:  # an added token, which is written as it is
                return piece.encode("utf-8")
        found = _BYTE_TOKEN.fullmatch(piece) if self._has_byte_tokens else None
        if found:
            return bytes([int(found[1], 16)])
        text = Detokeniser(self._tokenizer, skip_special=False)
        text.push(token)  # what begins a text may lose its space
        return (text.push(token) + text.finish()).encode("utf-8")


def sampling_defaults(proposed: Defaults) -> dict[str, Any]:
    """Arguments of `Sampling` for what a folder proposes: the likeliest token each time, unless it says to draw."""
    if not proposed.do_sample:
        return {}
    found = {name: getattr(proposed, name) for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
    return {"temperature": 1.0} | {name: value for name, value in found.items() if value is not None}


def _parts(state: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The decoders of a chain."""
    if state is None:
        return []
    parts: list[Mapping[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    return parts
