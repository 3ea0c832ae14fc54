"""What the server needs of a language model: an engine, text to tokens and back, and receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from ree.lm.batch import Steps
from ree.lm.ticket import Records, Spells

if TYPE_CHECKING:
    from ree.lm.sample import Sampling


@dataclass(frozen=True, slots=True)
class Asked:
    """What a receipt says was asked for.

    is_chat: a template made the prompt; issued_at: when, seconds since 1970, UTC; nonce: 32 bytes of the client's.
    """

    prompt: Sequence[int]
    is_chat: bool
    sampling: Sampling
    tokens_max: int
    stops: Sequence[str]
    issued_at: int
    nonce: bytes | None = None


class Salted(Records, Protocol):
    """A recorder whose receipt commits to the prompt; `salt` opens that, and only the client gets it."""

    @property
    def salt(self) -> bytes: ...


class Model(Protocol):
    """A model as it is served. All but `engine` may be called by several threads at once.

    name: under which clients ask for it; created: seconds since 1970; ids: what receipts bind, and who signs them, in
    hex; fingerprint: one short name for all of these; stop_tokens end an answer; silent: tokens that no text shows;
    defaults: arguments of `Sampling` where a request gives none.
    """

    @property
    def name(self) -> str: ...
    @property
    def created(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def ids(self) -> Mapping[str, str]: ...
    @property
    def engine(self) -> Steps: ...
    @property
    def stop_tokens(self) -> frozenset[int]: ...
    @property
    def silent(self) -> frozenset[int]: ...
    @property
    def defaults(self) -> Mapping[str, Any]: ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]], now: datetime) -> list[int]:
        """The tokens of a chat, up to where the assistant speaks; now: what a template may write for the date.

        InputError: the model's template refuses it.
        """
        ...

    def spelled(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        ...

    def text(self, prompt: Sequence[int], stops: Sequence[str]) -> Spells:
        """Makes the text that follows on a prompt, up to the first of some strings. InputError: not such strings."""
        ...

    def recorder(self, asked: Asked) -> Salted:
        """Collects what the receipt of a generation states. InputError: a receipt cannot state that."""
        ...
