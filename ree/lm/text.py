"""Text as it comes: tokens to characters one at a time, and the strings at which a text stops."""

from __future__ import annotations

from collections.abc import Sequence

from ree.errors import InputError, LimitError
from ree.lm import decoders
from ree.lm.tokenizer import Tokenizer

STOPS_MAX = 16
STOP_CHARACTERS_MAX = 1000


class Detokeniser:
    """Tokens to text, one at a time; all that it gives, joined, is `tokenizer.decode` of all tokens.

    A character comes with the token that completes it, and work per token does not grow with their number. Of decoders
    that change a text after the fact (none that language models are published with) everything comes at the end.
    To continue a prompt, push its tokens first and leave out what they give: whether a word begins with a
    space may depend on what stands before it.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._stages = decoders.stages(tokenizer.decoder_state)
        self._kept: list[int] = []  # where there are no stages
        self._is_finished = False

    def push(self, token: int) -> str:
        """The text that this token makes certain; often that of the token, '' while a character is incomplete."""
        if self._is_finished:
            raise InputError("the text is finished already")
        piece = self._tokenizer.piece(token, self._skip_special)
        if piece is None:
            return ""
        if self._stages is None:
            self._kept.append(token)
            return ""
        pieces = [piece]
        for stage in self._stages:
            pieces = [made for piece in pieces for made in stage.push(piece)]
        return "".join(pieces)

    def finish(self) -> str:
        """The rest of the text; nothing can be pushed any more."""
        if self._is_finished:
            return ""
        self._is_finished = True
        if self._stages is None:
            return self._tokenizer.decode(self._kept, self._skip_special)
        pieces: list[str] = []
        for stage in self._stages:
            pieces = [*(made for piece in pieces for made in stage.push(piece)), *stage.finish()]
        return "".join(pieces)


class StopStrings:
    """Text up to the first of some strings. What may be the beginning of one is held back until that is known.

    The first is the one that ends first; of those that end together, the longest. So it does not matter how the text
    is cut into pieces. InputError: an empty string; LimitError: more than STOPS_MAX or longer than STOP_CHARACTERS_MAX.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise InputError("stop strings are a list of texts that are not empty")
        if len(stops) > STOPS_MAX:
            raise LimitError(f"{len(stops)} stop strings; at most {STOPS_MAX} are possible")
        if any(len(stop) > STOP_CHARACTERS_MAX for stop in stops):
            raise LimitError(f"a stop string has more than {STOP_CHARACTERS_MAX} characters")
        self.found: str | None = None  # the string at which the text has stopped
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._matched = [0] * len(stops)  # of each string, how many characters the text ends with
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(what can be given out now, whether the text has stopped); after the stop, always ("", True)."""
        if self.found is not None:
            return "", True
        start = len(self._held)
        text = self._held + text
        for end in range(start, len(text)):
            self._advance(text[end])
            if self.found is not None:
                self._held = ""
                return text[: end + 1 - len(self.found)], True
        safe = len(text) - max(self._matched, default=0)
        self._held = text[safe:]
        return text[:safe], False

    def finish(self) -> str:
        """What was held back, now that no more text comes."""
        rest, self._held = self._held, ""
        self._matched = [0] * len(self._matched)
        return rest

    def _advance(self, character: str) -> None:
        """One step of the automaton of Knuth, Morris and Pratt (1977) for each string."""
        for number, (stop, borders) in enumerate(self._stops):
            matched = self._matched[number]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            matched += stop[matched] == character
            self._matched[number] = matched
            if matched == len(stop) and len(stop) > len(self.found or ""):
                self.found = stop


def _borders(text: str) -> list[int]:
    """For each beginning of `text` the length of the longest shorter one that it ends with."""
    found = [0] * len(text)
    matched = 0
    for end in range(1, len(text)):
        while matched and text[matched] != text[end]:
            matched = found[matched - 1]
        matched += text[matched] == text[end]
        found[end] = matched
    return found
