"""Chat templates: the same prompts as transformers makes, in a sandbox, with bounds."""

from __future__ import annotations

import datetime
import json
import sys
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest

from ree.errors import FormatError, InputError, LimitError
from ree.lm import chat
from ree.lm.chat import ChatTemplate
from ree.lm.folder import Folder
from tests import lm_folders

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": ' Be <brief> & "kind". '},
    {"role": "user", "content": "Où est la gare ?"},
    {"role": "assistant", "content": "{{ 7 * 7 }} {% raw %}", "tool_calls": None},
    {"role": "user", "content": "日本\n", "name": "Ada"},
]

# each uses something that published templates use
TEMPLATES = {
    "headers": "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "system first": "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if loop.first %}[{{ system.strip() }}] {% endif %}{{ m.content }}{% endfor %}",
    "namespace": "{%- set ns = namespace(last=none, n=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- set ns.n = ns.n + 1 -%}{%- endif -%}{%- endfor -%}{{ ns.last }} {{ ns.n }}",
    "blocks": "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n    {% endif %}\n"
    "{% endfor %}\n",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} "
    "{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true) }}",
    "controls": "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}{{ loop.index }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = 1 %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.role }}{{ x is defined }}{% endif %}{% endfor %}",
    "macro": "{% macro line(m, sep='|') %}{{ m.role ~ sep ~ m.content | length }}{% endmacro %}"
    "{% for m in messages %}{{ line(m) }}{{ line(m, sep=bos_token) }}{% endfor %}",
    "absent": "{{ tools is none }} {{ documents }} {{ nothing is defined }} {{ pad_token }} "
    "{{ messages[2].tool_calls }}",
    "filters": "{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user')"
    " | list | length }} {{ messages[0].content | upper }} {{ messages[-1].get('name', 'no one') }}",
    "dictionary": "{% for k, v in dict(a=1, b=2).items() %}{{ k }}{{ v }}{% endfor %}{{ range(3) | list }}",
}  # fmt: skip


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_same_prompt_as_transformers(name: str, add_generation_prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = TEMPLATES[name]
    plain = [{key: value for key, value in message.items() if value is not None} for message in TALK]
    (expected,), _ = render_jinja_template(
        [plain], chat_template=template, add_generation_prompt=add_generation_prompt, **SPECIAL
    )
    assert ChatTemplate(template).render(TALK, SPECIAL, add_generation_prompt) == expected


def test_what_a_user_writes_is_only_data() -> None:
    message = {"role": "user", "content": "{{ messages }}{% for x in range(9) %}{{ x }}{% endfor %}"}
    assert ChatTemplate("{{ messages[0].content }}").render([message], {}) == message["content"]


def test_the_date_is_the_callers() -> None:
    template = ChatTemplate("{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% endif %}")
    now = datetime.datetime(2026, 2, 3, 4, 5)
    assert template.render(TALK, {}, now=now) == "2026-02-03"
    assert template.render(TALK, {}) >= "2025-01-01"


def test_text_parts_stand_on_lines_of_their_own() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": parts}], {}) == "one\ntwo"


def test_messages_are_any_mappings_and_stay_as_they_are() -> None:
    message = UserDict({"role": "user", "content": "a", "name": None})
    template = ChatTemplate("{% set _ = messages.append(1) if false %}{{ messages[0] | length }}")
    assert template.render((message,), {}) == "2"
    assert message["name"] is None


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ strftime_now.__self__.year }}",
    "{{ raise_exception.__globals__.json }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 3 %}",
    "{{ namespace(__call__=3) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.append(3) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ '{0.__class__.__mro__}'.format(3) }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{% for x in range(100000000) %}{% endfor %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_stays_in_its_sandbox(template: str) -> None:
    with pytest.raises(InputError, match="refuses these messages"):
        ChatTemplate(template).render(TALK, SPECIAL)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ raise_exception('Roles must\nalternate') }}", "refuses these messages: Roles must"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[9].content.x }}", "no element 9"),
        ("{{ nothing.x }}", "'nothing' is undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages | tojson(nothing=1) }}", "unexpected keyword"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_what_a_template_raises(template: str, text: str) -> None:
    with pytest.raises(InputError, match=text) as found:
        ChatTemplate(template).render(TALK, SPECIAL)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "text", ["{% if %}", "{{ a", "{% nothing %}", "{{ 'a' | nothing }}", "\ud800", "a" * (2 << 20)]
)
def test_what_is_no_template(text: str) -> None:
    with pytest.raises(FormatError, match="chat template"):
        ChatTemplate(text)


@pytest.mark.parametrize("template", ["{{ '(' * 3 }}" * 9, "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"])
def test_deep_templates(template: str) -> None:
    """Refused or not: never anything else, whatever Python's own compiler thinks of it."""
    try:
        made = ChatTemplate(template)
    except FormatError as error:
        assert "\n" not in str(error)
    else:
        assert made.render(TALK, {}) == "(((" * 9


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        b"hello",
        None,
        {"role": "user", "content": "a"},
        ["a"],
        [["role", "user"]],
        [{"content": "a"}],
        [{"role": 3, "content": "a"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": {"text": "a"}}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        [{"role": "user", "content": ["a"]}],
        [{"role": "user", "content": "a", "score": float("nan")}],
        [{"role": "user", "content": "a", "what": object()}],
        [{"role": "user", "content": "a", ("b",): 1}],
    ],
)
def test_what_are_no_messages(messages: Any) -> None:
    with pytest.raises(InputError):
        ChatTemplate("a").render(messages, {})


def test_messages_that_contain_themselves() -> None:
    message: dict[str, Any] = {"role": "user", "content": "a"}
    message["self"] = message
    with pytest.raises(InputError):
        ChatTemplate("a").render([message], {})


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    message = {"role": "user", "content": "abc"}
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    monkeypatch.setattr(chat, "MESSAGES_MAX", 3)
    assert template.render([message] * 3, {}) == "abc" * 3
    with pytest.raises(LimitError, match="4 messages"):
        template.render([message] * 4, {})
    monkeypatch.setattr(chat, "PROMPT_CHARACTERS_MAX", 8)
    with pytest.raises(LimitError, match="more than 8 characters"):
        template.render([message] * 3, {})
    monkeypatch.setattr(chat, "MESSAGES_CHARACTERS_MAX", len(json.dumps([message])))
    assert template.render([message], {}) == "abc"
    with pytest.raises(LimitError, match="characters"):
        template.render([message | {"content": "abcd"}], {})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_folders.make(tmp_path_factory.mktemp("models") / "llama")


def test_where_a_template_stands(model: Path) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b {{ eos_token }}"}, "rest"]
    lm_folders.write_json(model / "tokenizer_config.json", settings | {"chat_template": several})
    assert Folder.open(model).tokenizer.chat(TALK).text == "b <|endoftext|>"
    lm_folders.write_json(model / "tokenizer_config.json", settings | {"chat_template": several[:1]})
    assert Folder.open(model).chat_template is None
    (model / "chat_template.jinja").write_text("c\n", encoding="utf-8")
    found = Folder.open(model)
    assert found.tokenizer.chat(TALK) == ("c", found.tokenizer.encode("c", add_special_tokens=False))


def test_half_a_surrogate_pair_reaches_no_tokenizer(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    with pytest.raises(InputError, match="surrogate"):
        Folder.open(model).tokenizer.chat([{"role": "user", "content": "\udc80"}])


@pytest.mark.parametrize("text", [
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ " + "(" * 50_000, "{{ " + "not " * 50_000 + "1 }}",
    "{% if 1 %}" * 20_000, "{{ " + "[" * 50_000 + "]" * 50_000 + " }}",
])  # fmt: skip
def test_recursion_does_not_reach_the_end_of_the_stack_however_high_pythons_limit_is(text: str) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with pytest.raises((InputError, FormatError)):
            ChatTemplate(text).render([{"role": "user", "content": "hi"}], {})
        assert sys.getrecursionlimit() == 1_000_000
    finally:
        sys.setrecursionlimit(before)
