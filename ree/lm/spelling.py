"""The text of a generation as it comes: what follows on a prompt, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ree.lm.text import Detokeniser, StopStrings

if TYPE_CHECKING:
    from ree.lm.tokenizer import Tokenizer


class Spelling:
    """Spells the tokens that follow on `prompt`; a text that may yet become a stop string is held back.

    The first token is spelt as one that stands after the prompt: whether a space comes before it depends on that.
    InputError, LimitError: of the stop strings, as `StopStrings` has them.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self._tokens, self._stops = Detokeniser(tokenizer), StopStrings(stops)
        for token in prompt:
            self._tokens.push(token)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; it and all that follows are no part of the text."""
        return self._stops.found is not None

    def push(self, token: int) -> str:
        """The text that is certain with this token and was not before; nothing after a stop."""
        return self._stops.push(self._tokens.push(token))[0]

    def finish(self) -> str:
        """The rest: of a character that is not complete, and of what could have become a stop string."""
        text, stopped = self._stops.push(self._tokens.finish())
        return text if stopped else text + self._stops.finish()
