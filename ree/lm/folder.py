"""A Hugging Face model folder: everything but the model itself, read and checked.

config.json, weights as safetensors, tokenizer.json and, where they are there, tokenizer_config.json,
special_tokens_map.json, chat_template.jinja and generation_config.json. Nothing is fetched from anywhere, no code in a
folder is run and nothing in it is unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from ree import cache, loaders, nesting
from ree.errors import Error, FormatError, InputError, LimitError, UnsupportedError
from ree.lm.chat import TEMPLATE_BYTES_MAX, ChatTemplate
from ree.lm.shards import Shards
from ree.lm.tokenizer import Settings, Tokenizer, tokenizer_id

CONFIG_BYTES_MAX = 1 << 20
TOKENIZER_CONFIG_BYTES_MAX = 16 << 20  # names thousands of reserved tokens
TOKENIZER_BYTES_MAX = 128 << 20
LAYERS_MAX = 4096
LABELS_MAX = 1 << 20
CONTEXT_MAX = 1 << 24
_SIZES_MAGIC = b"REECONF1"
_SIZES_BYTES_MAX = 1 << 20
INTEGER_MAX = 1 << 40
EOS_MAX = 256
# what configurations call the number of positions and of layers
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
# whose `is_decoder`, false unless said otherwise, says nothing: they look back only
_DECODERS = ("gpt_neox", "gpt_neox_japanese")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What generation_config.json proposes; None where it says nothing.

    do_sample: false means the likeliest token each time, whatever the other values are.
    """

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Folder:
    """What a model folder says.

    architecture: the transformers class, such as "LlamaForCausalLM"; vocab_size: logits of a row; context: positions
    that the model knows; stops: the tokens that configurations name as an end; shards: the weights; chat_template: None
    if there is none; tokenizer_id: 32 bytes that name how text becomes tokens. `config`, its configuration object (of
    transformers, every default in place), and `tokenizer` are made when they are first asked for.
    """

    path: Path
    architecture: str
    vocab_size: int
    context: int
    stops: tuple[int, ...]
    defaults: Defaults
    shards: Shards = field(repr=False)
    chat_template: ChatTemplate | None = field(repr=False)
    tokenizer_id: bytes
    _tokenizer_source: tuple[bytes, Settings] = field(repr=False)
    _raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Folder:
        """Read and check a folder.

        InputError: it or a file is missing, or it is no causal language model; FormatError: a file is not sound;
        LimitError: one is larger than it could sensibly be; UnsupportedError: quantised weights, an adapter, a dtype.
        """
        try:
            folder = Path(path)
        except TypeError:
            raise InputError(f"a path of a folder is expected, not {path!r}") from None
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder (a model is a folder on this machine; none is downloaded)")
        try:
            return cls._read(folder)
        except OSError as error:
            raise InputError(f"{error.filename or folder}: {error.strerror or error}") from None

    @classmethod
    def _read(cls, folder: Path) -> Folder:
        raw = _required(folder / "config.json", CONFIG_BYTES_MAX)
        architecture, vocab_size, context = _sizes(folder, raw)
        shards = Shards.open(folder)
        generation = _json(folder / "generation_config.json", CONFIG_BYTES_MAX) or {}
        stops = _stops(folder, [generation, raw, raw.get("text_config")], vocab_size)
        source = _tokenizer_file(folder)
        said = _json(folder / "tokenizer_config.json", TOKENIZER_CONFIG_BYTES_MAX) or {}
        older = _json(folder / "special_tokens_map.json", CONFIG_BYTES_MAX) or {}
        with _naming(folder):
            settings = Settings.read(said, older)
            template = _chat_template(folder, said.get("chat_template"))
            defaults = _defaults(generation)
        return cls(
            folder, architecture, vocab_size, context, stops, defaults, shards, template,
            tokenizer_id(source, settings), (source, settings), raw,
        )  # fmt: skip

    @property
    def chat_template_id(self) -> bytes | None:
        """BLAKE3 derive_key over the template's UTF-8 bytes, 32 bytes; None if there is none."""
        return None if self.chat_template is None else self.chat_template.id

    @functools.cached_property
    def config(self) -> Any:
        """The configuration object of transformers."""
        return _configuration(self.path, self._raw)[1]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. FormatError if tokenizer.json is not sound, or has a token that the model does not know."""
        with _naming(self.path):
            made = Tokenizer(*self._tokenizer_source, self.chat_template)
            if made.ids_end > self.vocab_size:
                raise FormatError(
                    f"tokenizer.json has token {made.ids_end - 1}, the model only {self.vocab_size} tokens"
                )
        return made

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text: `stops` and the tokenizer's own, ascending."""
        own = self.tokenizer.eos_id
        return tuple(sorted({*self.stops, *(() if own is None else (own,))}))


def _sizes(folder: Path, raw: Mapping[str, Any]) -> tuple[str, int, int]:
    """The class that config.json names, its vocabulary and its context.

    What config.json leaves out, transformers knows; to ask it takes a second, so the answer is kept in the cache.
    """
    _check_kind(folder, raw)
    text = json.dumps([raw, _transformers_version()], sort_keys=True).encode()
    key = blake3(text, derive_key_context="ree v1 model configuration").digest()
    place = cache.directory() / "configurations" / key.hex()
    content = cache.read(place, _SIZES_MAGIC, key)
    if content is not None:
        architecture, vocab_size, context = json.loads(content)
        cache.mark_used(place)
        return architecture, vocab_size, context
    architecture, _, part = _configuration(folder, raw)
    found = architecture, _size_of(folder, part, ("vocab_size",)), _size_of(folder, part, _CONTEXT)
    if found[2] > CONTEXT_MAX:
        raise LimitError(f"{folder}: config.json states a context of {found[2]} tokens, more than {CONTEXT_MAX}")
    if cache.write(place, _SIZES_MAGIC, key, json.dumps(found).encode()):
        cache.trim(place.parent, _SIZES_BYTES_MAX)
    return found


def _transformers_version() -> str | None:
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_kind(folder: Path, raw: Mapping[str, Any]) -> None:
    """Refuse what shows without transformers."""
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedError(f"{folder}: an adapter; merge it into its model and save that")
    if raw.get("quantization_config") is not None:
        raise UnsupportedError(f"{folder}: quantised weights; ree takes float32, bfloat16 and float16")
    _check_numbers(folder, raw)
    if not isinstance(raw.get("model_type"), str):
        raise InputError(f"{folder}: config.json names no model_type")


def _configuration(folder: Path, raw: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """The class that config.json names, its configuration, and the part of it that is about text."""
    kind = raw["model_type"]
    try:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal
    except ImportError:
        raise InputError("a model folder needs the package transformers: pip install 'ree[hf]'") from None
    if kind not in transformers.CONFIG_MAPPING:
        raise InputError(f"{folder}: transformers {transformers.__version__} has no model type {kind[:80]!r}")
    name = str(causal.get(kind, ""))
    named = raw.get("architectures") or [name]
    if not name.endswith(("ForCausalLM", "LMHeadModel")) or not isinstance(named, list) or name not in named:
        raise InputError(f"{folder}: {str(named)[:80]} of model type {kind!r} is no causal language model of text")
    try:
        config = loaders.quietly(lambda: transformers.CONFIG_MAPPING[kind].from_dict(dict(raw)))
        text = config.get_text_config()
    except Exception as error:  # transformers checks with several classes of its own
        raise FormatError(f"{folder}: config.json: {loaders.first_line(error)}") from None
    looks_ahead = getattr(config, "is_decoder", True) is False and kind not in _DECODERS
    if looks_ahead or getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{folder}: a {kind} whose config.json does not make it a decoder is no causal language model")
    return name, config, text


def _check_numbers(folder: Path, raw: Mapping[str, Any]) -> None:
    """No number so large that making the configuration alone would exhaust memory."""
    left: list[Any] = [raw]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            layers = max((value[n] for n in _LAYERS if type(value.get(n)) is int), default=0)
            if layers > LAYERS_MAX:
                raise LimitError(f"{folder}: config.json asks for {layers} layers, more than {LAYERS_MAX}")
            if type(value.get("num_labels")) is int and value["num_labels"] > LABELS_MAX:
                raise LimitError(f"{folder}: config.json asks for more than {LABELS_MAX} labels")
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
        elif type(value) is int and abs(value) > INTEGER_MAX:
            raise LimitError(f"{folder}: config.json holds a number beyond {INTEGER_MAX}")


def _size_of(folder: Path, text: Any, names: tuple[str, ...]) -> int:
    found = next((n for n in (getattr(text, name, None) for name in names) if n is not None), None)
    if type(found) is not int or not 1 <= found < 1 << 31:
        raise InputError(f"{folder}: config.json states no {names[0]}")
    return found


def _stops(folder: Path, sources: list[Any], vocab_size: int) -> tuple[int, ...]:
    """The end tokens that the first of some configurations with an opinion names."""
    said = (source.get("eos_token_id") for source in sources if isinstance(source, dict))
    found: Any = next((value for value in said if value is not None), [])
    stops = found if isinstance(found, list) else [found]
    if len(stops) > EOS_MAX or not all(type(n) is int and 0 <= n < vocab_size for n in stops):
        raise FormatError(f"{folder}: eos_token_id {str(found)[:80]} is no token below {vocab_size}")
    return tuple(sorted(set(stops)))


def _defaults(generation: Mapping[str, Any]) -> Defaults:
    def number(name: str, low: float, high: float, is_integer: bool = False) -> Any:
        value = generation.get(name)
        if value is None:
            return None
        fits = type(value) is int or (type(value) is float and not is_integer and math.isfinite(value))
        if not fits or not low <= value <= high:
            raise FormatError(f"generation_config.json: {name} is {str(value)[:40]}, not from {low} to {high}")
        return value if is_integer else float(value)

    return Defaults(
        do_sample=generation.get("do_sample") is True,
        temperature=number("temperature", 0, 1e6),
        top_k=number("top_k", 0, 1 << 31, is_integer=True),
        top_p=number("top_p", 0, 1),
        min_p=number("min_p", 0, 1),
        repetition_penalty=number("repetition_penalty", 1e-6, 1e6),
        max_new_tokens=number("max_new_tokens", 0, 1 << 31, is_integer=True),
    )


def _tokenizer_file(folder: Path) -> bytes:
    found = _read(folder / "tokenizer.json", TOKENIZER_BYTES_MAX)
    if found is None:
        raise InputError(
            f"{folder}: no tokenizer.json; tokenizers of older kinds become one by "
            f"AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers"
        )
    return found


def _chat_template(folder: Path, said: Any) -> ChatTemplate | None:
    """That of chat_template.jinja, else of tokenizer_config.json: a text, or of several the one named "default"."""
    data = _read(folder / "chat_template.jinja", TEMPLATE_BYTES_MAX)
    if data is not None:
        try:
            return ChatTemplate(data.decode("utf-8"))
        except UnicodeDecodeError:
            raise FormatError("chat_template.jinja is not UTF-8") from None
    if isinstance(said, list):
        entries = [entry for entry in said if isinstance(entry, dict) and entry.get("name") == "default"]
        said = entries[0].get("template") if entries else None
    if said is None:
        return None
    if not isinstance(said, str):
        raise FormatError("tokenizer_config.json: chat_template is no text")
    return ChatTemplate(said)


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Errors of what lies within name the folder."""
    try:
        yield
    except Error as error:
        raise type(error)(f"{folder}: {error}") from None


def _required(path: Path, bytes_max: int) -> dict[str, Any]:
    found = _json(path, bytes_max)
    if found is None:
        raise InputError(f"{path.parent}: no {path.name}, so not a Hugging Face model folder")
    return found


def _json(path: Path, bytes_max: int) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file."""
    data = _read(path, bytes_max)
    if data is None:
        return None
    try:
        found = nesting.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON: {loaders.first_line(error)}") from None
    if not isinstance(found, dict):
        raise FormatError(f"{path}: no JSON object")
    return found


def _read(path: Path, bytes_max: int) -> bytes | None:
    """A file's bytes; None if there is no such file."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise LimitError(f"{path}: larger than {bytes_max} bytes")
    return data
