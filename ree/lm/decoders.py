"""The decoders of tokenizer.json, one token at a time: from the texts of tokens to the text that they mean together.

A decoder of the `tokenizers` package maps the list of all tokens' texts to another list, and the last list is joined.
Here each is a *stage*, which gets the tokens one after another and gives what no later token can change:
`push(piece)` and `finish()` yield the pieces for the stage that follows.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
_REPLACEMENT = "\ufffd"


class Stage(Protocol):
    """One decoder of a chain."""

    def push(self, piece: str) -> Iterator[str]: ...

    def finish(self) -> Iterator[str]: ...


def byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for.

    Bytes that Latin-1 prints stand for themselves; the others, in order, are the characters from U+0100 on (GPT-2,
    Radford et al. 2019).
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = byte_characters()


class ByteLevel:
    """Tokens of byte characters; a token with any other character stands for its own UTF-8 bytes.

    Of bytes that are no UTF-8, each maximal part that could have begun a character becomes U+FFFD (Unicode 15, 3.9).
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: str) -> Iterator[str]:
        try:
            data = bytes([_BYTES[c] for c in piece])
        except KeyError:
            data = piece.encode("utf-8")
        yield self._utf8.decode(data)

    def finish(self) -> Iterator[str]:
        yield self._utf8.decode(b"", final=True)


class ByteFallback:
    """Tokens such as <0xE2> among tokens of text. A run of them is UTF-8 as a whole, or U+FFFD for each byte."""

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, piece: str) -> Iterator[str]:
        found = _BYTE_TOKEN.fullmatch(piece)
        if found:
            self._run.append(int(found[1], 16))
        else:
            yield from self.finish()
            yield piece

    def finish(self) -> Iterator[str]:
        if self._run:
            try:
                yield self._run.decode("utf-8")
            except UnicodeDecodeError:
                yield _REPLACEMENT * len(self._run)
            self._run.clear()


class Replace:
    """One text for another within each token."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def push(self, piece: str) -> Iterator[str]:
        yield piece.replace(self._old, self._new)

    def finish(self) -> Iterator[str]:
        yield from ()


class Metaspace:
    """A visible character for a space; dropped in the first token, if encoding puts one before every text."""

    def __init__(self, mark: str, is_prepended: bool) -> None:
        self._mark = mark
        self._drop = is_prepended

    def push(self, piece: str) -> Iterator[str]:
        yield piece.replace(self._mark, "" if self._drop else " ")
        self._drop = False

    def finish(self) -> Iterator[str]:
        yield from ()


class StripStart:
    """Up to `count` times the character `mark` taken from the start of the fused text."""

    def __init__(self, mark: str, count: int) -> None:
        self._mark = mark
        self._left = count

    def push(self, piece: str) -> Iterator[str]:
        while self._left and piece:
            if piece[0] == self._mark:
                piece = piece[1:]
                self._left -= 1
            else:
                self._left = 0
        yield piece

    def finish(self) -> Iterator[str]:
        yield from ()


class Spaced:
    """No decoder: tokens with a space between them."""

    def __init__(self) -> None:
        self._space = ""

    def push(self, piece: str) -> Iterator[str]:
        yield self._space + piece
        self._space = " "

    def finish(self) -> Iterator[str]:
        yield from ()


def stages(state: Mapping[str, Any] | None) -> list[Stage] | None:
    """The stages of a decoder given as in tokenizer.json; None if it can only be applied to all tokens at once.

    What follows Fuse or ByteLevel sees one text instead of tokens.
    """
    if state is None:
        return [Spaced()]
    found: list[Stage] = []
    is_fused = False
    for part in state["decoders"] if state["type"] == "Sequence" else [state]:
        kind = part["type"]
        if kind == "Fuse":
            is_fused = True
            continue
        stage = _after_fusion(kind, part) if is_fused else _of_tokens(kind, part)
        if stage is None:
            return None
        found.append(stage)
        is_fused = is_fused or kind == "ByteLevel"
    return found


def _of_tokens(kind: str, part: Mapping[str, Any]) -> Stage | None:
    if kind == "ByteLevel":
        return ByteLevel()
    if kind == "ByteFallback":
        return ByteFallback()
    if kind == "Metaspace":
        return Metaspace(part["replacement"], part["prepend_scheme"] != "never")
    if kind == "Replace" and part["pattern"].get("String"):
        return Replace(part["pattern"]["String"], part["content"])
    return None


def _after_fusion(kind: str, part: Mapping[str, Any]) -> Stage | None:
    if kind == "Strip" and part["stop"] == 0:
        return StripStart(part["content"], part["start"])
    return None
