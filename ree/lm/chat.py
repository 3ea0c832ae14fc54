"""A chat as one prompt: the template of a model folder, rendered in a sandbox.

Templates are Jinja as transformers defines it for them: blocks trimmed, `raise_exception`, `strftime_now`, a `tojson`
that escapes no HTML, `break` and `continue`, and a `generation` block that marks what the model says. A template
belongs to the model and is trusted as little as Jinja's sandbox allows; what strangers send is only data for it.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import blake3

from ree.errors import FormatError, InputError, LimitError
from ree.loaders import first_line

if TYPE_CHECKING:
    from jinja2 import Environment, Template

ID_CONTEXT = "ree v1 chat template"
TEMPLATE_BYTES_MAX = 1 << 20
FRAMES_MAX = 1000  # of Python's stack, for reading or rendering a template: as many as Python itself begins with
MESSAGES_MAX = 4096
MESSAGES_CHARACTERS_MAX = 16 << 20  # as JSON
PROMPT_CHARACTERS_MAX = 32 << 20


class ChatTemplate:
    """A template, compiled. FormatError: it is not text of a sane size, or not Jinja."""

    def __init__(self, text: str) -> None:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            raise FormatError("the chat template holds half a surrogate pair") from None
        if len(data) > TEMPLATE_BYTES_MAX:
            raise FormatError(f"the chat template has {len(data)} bytes, more than {TEMPLATE_BYTES_MAX}")
        self.text = text
        self.id: bytes = blake3.blake3(data, derive_key_context=ID_CONTEXT).digest()
        try:
            with _bounded_stack():
                self._template: Template = _environment().from_string(text)
        except Exception as error:  # jinja2.TemplateSyntaxError; SyntaxError, RecursionError from what it compiles to
            raise FormatError(f"the chat template is malformed: {first_line(error)}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        special: Mapping[str, str],
        add_generation_prompt: bool = True,
        now: datetime.datetime | None = None,
    ) -> str:
        """The prompt for `messages`, each with a role and, mostly, a content.

        special: texts of special tokens by name ("bos_token", ...). add_generation_prompt: whether it ends where the
        assistant begins to speak. now: what the few templates that ask for it take for the date; else the
        clock, in UTC. InputError: not messages, or the template refuses them; LimitError: too many or too long.
        """
        with _bounded_stack():
            return self._render(messages, special, add_generation_prompt, now)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        special: Mapping[str, str],
        add_generation_prompt: bool,
        now: datetime.datetime | None,
    ) -> str:
        checked = _messages(messages)
        moment = now or datetime.datetime.now(datetime.UTC)
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(
                messages=checked,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=moment.strftime,
                **special,
            ):
                pieces.append(piece)
                length += len(piece)
                if length > PROMPT_CHARACTERS_MAX:
                    break
        except Exception as error:  # whatever the expressions of a template raise
            raise InputError(f"the chat template refuses these messages: {first_line(error)}") from None
        if length > PROMPT_CHARACTERS_MAX:
            raise LimitError(f"the chat template makes a prompt of more than {PROMPT_CHARACTERS_MAX} characters")
        return "".join(pieces)


def _messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as plain JSON values of our own, without what is null; lists of text parts become one text."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InputError("a chat is a list of messages that is not empty")
    if len(messages) > MESSAGES_MAX:
        raise LimitError(f"{len(messages)} messages; at most {MESSAGES_MAX} are possible")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError("each message is an object with a role")
    try:
        text = json.dumps([dict(message) for message in messages], allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise InputError("messages hold JSON values only") from None
    if len(text) > MESSAGES_CHARACTERS_MAX:
        raise LimitError(f"the messages have {len(text)} characters, more than {MESSAGES_CHARACTERS_MAX}")
    plain = [{key: value for key, value in message.items() if value is not None} for message in json.loads(text)]
    for message in plain:
        if "content" in message:
            message["content"] = _content(message["content"])
    return plain


def _content(content: Any) -> str:
    """A message's content: a text, or texts to stand on lines of their own."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InputError("the content of a message is a text or a list of text parts")
    return "\n".join(map(str, texts))


@contextlib.contextmanager
def _bounded_stack() -> Iterator[None]:
    """Recursion ends after FRAMES_MAX frames, however high Python's limit was set, before the stack overflows."""
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    if sys.getrecursionlimit() <= depth + FRAMES_MAX:
        yield
        return
    with _limit_lock:  # the limit is that of all threads
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(depth + FRAMES_MAX)
        try:
            yield
        finally:
            sys.setrecursionlimit(before)


_limit_lock = threading.RLock()


@functools.cache
def _environment() -> Environment:
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """The block that marks what the model says: only its body matters here."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class PlainNamespace(Namespace):
        """A namespace without names that mean something to Python."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace takes no name like {name!r}")
            Namespace.__setitem__(self, name, value)

    def namespace(*values: Any, **named: Any) -> PlainNamespace:
        made = PlainNamespace()
        for name, value in dict(*values, **named).items():
            made[str(name)] = value
        return made

    def refuse(message: object) -> None:
        raise TemplateError(str(message))

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": refuse, "namespace": namespace}
    return environment
