"""What a client may ask for: the bodies of /v1/completions and /v1/chat/completions, read strictly.

A member is either taken, or known to OpenAI's API and without effect on the answer, or refused: a parameter that is
silently dropped would make an answer something else than what was asked for. Ranges of sampling parameters are those
of `ree.lm.sample.Sampling`, which refuses what lies outside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ree.lm.serve.members import Members, is_number, is_text, shown
from ree.lm.serve.refusal import invalid

TOKENS_DEFAULT = 16  # of a completion; OpenAI's
LOGPROBS_MAX = 20
MESSAGES_MAX = 4096
_BIAS_TOKEN = re.compile("0|[1-9][0-9]{0,6}")
_NONCE = re.compile("[0-9a-fA-F]{64}")
_SAMPLING = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_ROLES = ("system", "developer", "user", "assistant")

# members of OpenAI's API that say nothing about what is to be generated
_IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls",
    "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
)  # fmt: skip

# members that would change the answer, and the values with which they do not
_ONLY: dict[str, tuple[list[Any], str]] = {
    "n": ([1], "one answer to a request; ask again for another"),
    "best_of": ([1], "one answer to a request; ask again for another"),
    "echo": ([False], "the prompt is not repeated"),
    "suffix": ([""], "text cannot be inserted"),
    "tools": ([[]], "tools are not supported"),
    "functions": ([[]], "functions are not supported"),
    "tool_choice": (["none", "auto"], "tools are not supported"),
    "function_call": (["none", "auto"], "functions are not supported"),
    "response_format": ([{"type": "text"}], "only text is supported"),
    "modalities": ([["text"]], "only text is supported"),
    "audio": ([], "only text is supported"),
    "prediction": ([], "predictions are not supported"),
    "web_search_options": ([], "there is no search"),
    "moderation": ([], "there is no moderation"),
    "reasoning_effort": (["none", "medium"], "there is no setting for it"),
    "verbosity": (["medium"], "there is no setting for it"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request as it was read; what the model must agree to (lengths, ranges, tokens) is not looked at yet.

    prompt: a text or tokens; None: it is a chat, and `messages` are there. tokens_max None: as many as the context
    takes. sampling: arguments for `Sampling`, only those that were given. seed: None if any will do. nonce: 32 bytes
    for the receipt to carry.
    """

    model: str
    prompt: str | tuple[int, ...] | None
    messages: tuple[dict[str, str], ...]
    tokens_max: int | None
    sampling: dict[str, Any]
    seed: int | None
    stops: tuple[str, ...]
    logprobs: int | None
    stream: bool
    include_usage: bool
    nonce: bytes | None


def completion(body: dict[str, Any]) -> Wanted:
    """Read the body of /v1/completions. ApiError: 400 with the member that is wrong."""
    members = Members(body)
    prompt = _prompt(members)
    tokens = members.integer("max_tokens", 1, 1 << 31)
    logprobs = members.integer("logprobs", 0, LOGPROBS_MAX)
    return _common(members, prompt, (), TOKENS_DEFAULT if tokens is None else tokens, logprobs)


def chat(body: dict[str, Any]) -> Wanted:
    """Read the body of /v1/chat/completions. ApiError: 400 with the member that is wrong."""
    members = Members(body)
    messages = _messages(members)
    older, newer = (members.integer(name, 1, 1 << 31) for name in ("max_tokens", "max_completion_tokens"))
    if older is not None and newer is not None and older != newer:
        raise invalid("'max_tokens' and 'max_completion_tokens' contradict each other", "max_tokens")
    wanted, top = members.boolean("logprobs"), members.integer("top_logprobs", 0, LOGPROBS_MAX)
    if top and not wanted:
        raise invalid("'top_logprobs' goes with 'logprobs': true", "top_logprobs")
    return _common(members, None, messages, older if newer is None else newer, (top or 0) if wanted else None)


def _common(
    members: Members,
    prompt: str | tuple[int, ...] | None,
    messages: tuple[dict[str, str], ...],
    tokens_max: int | None,
    logprobs: int | None,
) -> Wanted:
    """What both kinds of requests share; nothing unknown may be left after it."""
    model = members.text("model")
    if model is None:
        raise invalid("'model' is missing", "model", "missing_parameter")
    sampling: dict[str, Any] = {name: members.number(name) for name in _SAMPLING}
    sampling["top_k"] = members.integer("top_k", -1, 1 << 31)
    if sampling["top_k"] == -1:  # vLLM's way to say all
        sampling["top_k"] = 0
    sampling["logit_bias"] = _biases(members)
    seed = members.integer("seed", 0, (1 << 64) - 1)
    stops = _stops(members)
    stream = members.boolean("stream") or False
    usage = _stream_options(members, stream)
    nonce = _nonce(members)
    for name, (allowed, why) in _ONLY.items():
        members.only(name, allowed, why)
    members.close(_IGNORED)
    given = {name: value for name, value in sampling.items() if value is not None}
    return Wanted(model, prompt, messages, tokens_max, given, seed, stops, logprobs, stream, usage, nonce)


def _prompt(members: Members) -> str | tuple[int, ...]:
    """One prompt: a text, tokens, or a list of one of these."""
    given = members.take("prompt")
    if given is None:
        raise invalid("'prompt' is missing", "prompt", "missing_parameter")
    value = given
    if type(value) is list and value and type(value[0]) in (str, list):
        if len(value) > 1:
            raise invalid("'prompt': one prompt to a request", "prompt", "unsupported_parameter")
        value = value[0]
    if is_text(value):
        return value
    if type(value) is list and value and all(type(token) is int for token in value):
        return tuple(value)
    raise members.wrong("prompt", "a text, or a list of tokens, or a list that holds one of these", given)


def _messages(members: Members) -> tuple[dict[str, str], ...]:
    given = members.take("messages")
    if given is None:
        raise invalid("'messages' is missing", "messages", "missing_parameter")
    if type(given) is not list or not 0 < len(given) <= MESSAGES_MAX:
        raise members.wrong("messages", f"a list of 1 to {MESSAGES_MAX} messages", given)
    return tuple(_message(value, f"messages[{number}].") for number, value in enumerate(given))


def _message(value: Any, where: str) -> dict[str, str]:
    members = Members(value, where)
    role = members.text("role")
    if role not in _ROLES:
        raise invalid(f"'{where}role' must be one of {', '.join(_ROLES)}, not {shown(role)}", f"{where}role")
    found = {"role": "system" if role == "developer" else str(role), "content": _content(members, where, role)}
    name = members.text("name")
    if name is not None:
        found["name"] = name
    for other in ("tool_calls", "function_call", "audio"):
        members.only(other, [[]], "tools are not supported")
    members.close(("refusal", "annotations"))
    return found


def _content(members: Members, where: str, role: str) -> str:
    """A text, or a list of parts that are texts; an assistant may have said nothing."""
    value = members.take("content")
    if value is None and role == "assistant":
        return ""
    if is_text(value):
        return str(value)
    if type(value) is not list or not value:
        raise members.wrong("content", "a text or a list of texts", value)
    texts = []
    for number, part in enumerate(value):
        inner = Members(part, f"{where}content[{number}].")
        kind = inner.take("type")
        if kind != "text":
            raise invalid(
                f"'{where}content[{number}].type' must be 'text', not {shown(kind)}",
                f"{where}content[{number}].type",
                "unsupported_parameter",
            )
        text = inner.text("text")
        if text is None:
            raise inner.wrong("text", "a text", None)
        inner.close()
        texts.append(text)
    return "\n".join(texts)


def _biases(members: Members) -> tuple[tuple[int, float], ...] | None:
    """Biases of logits by token; OpenAI writes tokens as keys, so as texts."""
    value = members.take("logit_bias")
    if value is None:
        return None
    if type(value) is not dict:
        raise members.wrong("logit_bias", "an object", value)
    for token, bias in value.items():
        if not _BIAS_TOKEN.fullmatch(token) or not is_number(bias):
            raise invalid("'logit_bias' maps tokens, in decimal, to numbers", "logit_bias", "invalid_type")
    return tuple((int(token), bias) for token, bias in value.items())


def _stops(members: Members) -> tuple[str, ...]:
    value = members.take("stop")
    stops = [value] if type(value) is str else value
    if stops is None:
        return ()
    if type(stops) is not list or not all(is_text(stop) for stop in stops):
        raise members.wrong("stop", "a text or a list of texts", value)
    return tuple(stops)


def _nonce(members: Members) -> bytes | None:
    value = members.take("ree_nonce")
    if value is None:
        return None
    if type(value) is not str or not _NONCE.fullmatch(value):
        raise members.wrong("ree_nonce", "64 hexadecimal digits", value)
    return bytes.fromhex(value)


def _stream_options(members: Members, stream: bool) -> bool:
    """Whether the stream ends with the usage."""
    value = members.take("stream_options")
    if value is None:
        return False
    if not stream:
        raise invalid("'stream_options' goes with 'stream': true", "stream_options")
    options = Members(value, "stream_options.")
    usage = options.boolean("include_usage") or False
    options.close(("include_obfuscation",))
    return usage
