"""Model folders: what is read agrees with transformers and safetensors; what is not sound is one clear error."""

from __future__ import annotations

import copy
import json
import random
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import pytest
import torch
from safetensors.torch import load_file

import ree
from ree.errors import FormatError, InputError, LimitError, UnsupportedError
from ree.lm.folder import Defaults, Folder
from tests import lm_folders
from tests.fuzz_file import mutate_tree

TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Where does ice come from?"},
    {"role": "assistant", "content": "From snow."},
    {"role": "user", "content": "And snow?\n"},
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_folders.make(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def sharded_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_folders.make(tmp_path_factory.mktemp("models") / "sharded", dtype="bfloat16", shards=3)


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def sharded(sharded_original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded_original, tmp_path / "sharded"))


def change(path: Path, **values: Any) -> None:
    """Some keys of a JSON file; ... takes a key away."""
    found = json.loads(path.read_text(encoding="utf-8")) | values
    lm_folders.write_json(path, {key: value for key, value in found.items() if value is not ...})


# -- agreement ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", lm_folders.ARCHITECTURES)
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    import transformers

    path = lm_folders.make(tmp_path / "model", architecture)
    found = Folder.open(path)
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    assert found.architecture == config.architectures[0]
    assert found.config.to_dict() | {"_name_or_path": str(path)} == config.to_dict()
    assert (found.vocab_size, found.context) == (512, lm_folders.CONTEXT)
    assert found.eos_ids == found.stops == (lm_folders.END, lm_folders.IM_END)
    assert found.chat_template is not None and found.chat_template.text == lm_folders.CHAT_TEMPLATE
    expected = load_file(path / "model.safetensors")
    assert set(found.shards) == set(expected)
    assert all(torch.equal(found.shards.tensor(name), tensor) for name, tensor in expected.items())

    reference = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    text = lm_folders.PROSE.read_text(encoding="utf-8")[:2000] + " é日本🏔️ <|im_end|> <|im"
    ids = found.tokenizer.encode(text)
    assert ids == reference(text)["input_ids"]
    assert found.tokenizer.encode(text, False) == reference(text, add_special_tokens=False)["input_ids"]
    assert found.tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert found.tokenizer.decode(ids, skip_special=False) == reference.decode(ids)
    assert (found.tokenizer.bos_id, found.tokenizer.eos_id) == (reference.bos_token_id, reference.eos_token_id)
    prompt = found.tokenizer.chat(TALK)
    assert prompt.text == reference.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert prompt.ids == reference.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]


def test_made_folders_are_a_function_of_their_arguments(original: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    again = lm_folders.make(tmp_path / "again")
    other = lm_folders.make(tmp_path / "other", seed=1)
    files = sorted(p.name for p in original.iterdir())
    assert [(original / n).read_bytes() for n in files] == [(again / n).read_bytes() for n in files]
    assert (other / "model.safetensors").read_bytes() != (again / "model.safetensors").read_bytes()


def test_made_folders_take_more_configuration(tmp_path: Path) -> None:
    path = lm_folders.make(tmp_path / "m", "qwen2", vocab=600, hidden=32, layers=3, heads=2, kv_heads=1, rope_theta=5e5)
    config = Folder.open(path).config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (600, 32, 3)
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert config.rope_parameters["rope_theta"] == 5e5


def test_transformers_runs_a_made_folder(sharded: Path) -> None:
    import transformers

    made = transformers.AutoModelForCausalLM.from_pretrained(sharded, local_files_only=True, dtype="auto").eval()
    assert made.dtype == torch.bfloat16
    ids = torch.tensor([Folder.open(sharded).tokenizer.encode("A loaf is mostly")])
    with torch.no_grad():
        logits = made(ids).logits.float()
    assert logits.isfinite().all()
    assert logits.std() > 0.3


def test_opening_is_offline_runs_no_code_and_writes_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "evil.py").write_text(f"open({str(model / 'ran')!r}, 'w')\nclass C: pass\n", encoding="utf-8")
    auto = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.C", None], "AutoModelForCausalLM": "evil.C"}
    change(model / "config.json", auto_map=auto)
    change(model / "tokenizer_config.json", auto_map=auto, tokenizer_class="C")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was tried"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("the network was tried"))
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    found = Folder.open(model)
    found.tokenizer.chat(TALK)
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before


def test_opening_loads_no_torch_at_import() -> None:
    code = "import sys, ree.lm.folder, ree.lm.text; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# -- what stands in the files ---------------------------------------------------------------


def test_digests_are_what_the_documentation_says(model: Path) -> None:
    found = Folder.open(model)
    data = (model / "tokenizer.json").read_bytes()
    special = {"bos_token": "<|begin|>", "eos_token": "<|endoftext|>"}
    canonical = json.dumps([special, False, []], separators=(",", ":")).encode()
    parts = b"".join(struct.pack("<Q", len(part)) + part for part in (data, canonical))
    assert found.tokenizer_id == blake3.blake3(parts, derive_key_context="ree v1 tokenizer").digest()
    template = lm_folders.CHAT_TEMPLATE.encode()
    assert found.chat_template_id == blake3.blake3(template, derive_key_context="ree v1 chat template").digest()


@pytest.mark.parametrize(
    ("changed", "tokenizer_differs", "template_differs"),
    [
        ({"model_max_length": 7, "padding_side": "left"}, False, False),
        ({"chat_template": "{{ messages }}"}, False, True),
        ({"bos_token": "<|im_start|>"}, True, False),
        ({"split_special_tokens": True}, True, False),
        ({"bos_token": {"content": "<|begin|>", "lstrip": False}}, False, False),
    ],
)
def test_digests_change_with_what_they_name(
    model: Path, changed: dict[str, Any], tokenizer_differs: bool, template_differs: bool
) -> None:
    before = Folder.open(model)
    change(model / "tokenizer_config.json", **changed)
    after = Folder.open(model)
    assert (after.tokenizer_id != before.tokenizer_id) == tokenizer_differs
    assert (after.chat_template_id != before.chat_template_id) == template_differs


def test_what_need_not_be_there(model: Path) -> None:
    for name in ("tokenizer_config.json", "generation_config.json"):
        (model / name).unlink()
    found = Folder.open(model)
    assert found.chat_template is None and found.chat_template_id is None
    assert found.defaults == Defaults()
    assert found.eos_ids == (lm_folders.END,)  # of config.json
    assert found.tokenizer.encode("a")[0] == lm_folders.BEGIN  # as tokenizer.json says
    with pytest.raises(InputError, match="no chat template"):
        found.tokenizer.chat(TALK)


def test_generation_defaults(model: Path) -> None:
    values = {"do_sample": True, "temperature": 1, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.1}
    change(model / "generation_config.json", **values, max_new_tokens=9, eos_token_id=5)
    found = Folder.open(model)
    assert found.defaults == Defaults(True, 1.0, 20, 0.8, 0.05, 1.1, 9)
    assert found.stops == (5,)
    assert found.eos_ids == (lm_folders.END, 5)  # with the tokenizer's own


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": 1.5},
        {"top_p": 1.01},
        {"repetition_penalty": 0},
        {"max_new_tokens": 1 << 40},
        {"eos_token_id": 512},
        {"eos_token_id": [0, -1]},
        {"eos_token_id": "</s>"},
        {"eos_token_id": [0] * 300},
    ],
)
def test_generation_defaults_out_of_range(model: Path, values: dict[str, Any]) -> None:
    change(model / "generation_config.json", **values)
    with pytest.raises(FormatError, match=next(iter(values))):
        Folder.open(model)


def test_the_context_by_its_other_names(tmp_path: Path) -> None:
    path = lm_folders.make(tmp_path / "a", "gpt2", max_position_embeddings=77)
    assert json.loads((path / "config.json").read_text(encoding="utf-8"))["n_positions"] == 77
    assert Folder.open(path).context == 77
    path = lm_folders.make(tmp_path / "b")
    change(path / "config.json", max_position_embeddings=0)
    with pytest.raises(InputError, match="max_position_embeddings"):
        Folder.open(path)


@pytest.mark.parametrize("said", [{}, {"add_bos_token": False}, {"add_eos_token": True}, {"bos_token": None}])
@pytest.mark.parametrize("name", [None, "LlamaTokenizerFast", "TokenizersBackend"])
def test_tokenizer_json_alone_says_what_begins_a_text(model: Path, said: dict[str, Any], name: str | None) -> None:
    """As transformers has it since version 5."""
    from transformers import AutoTokenizer

    change(model / "tokenizer_config.json", tokenizer_class=name, **said)
    ids = Folder.open(model).tokenizer.encode("the")
    assert ids[0] == lm_folders.BEGIN
    assert ids == AutoTokenizer.from_pretrained(model, local_files_only=True)("the")["input_ids"]


def test_special_tokens_of_an_older_file(model: Path) -> None:
    change(model / "tokenizer_config.json", bos_token=..., eos_token=...)
    lm_folders.write_json(model / "special_tokens_map.json", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    found = Folder.open(model).tokenizer
    assert (found.bos_id, found.eos_id) == (2, lm_folders.IM_END)


def test_tokens_that_only_the_settings_know(model: Path) -> None:
    from transformers import AutoTokenizer

    change(model / "config.json", vocab_size=514)
    added = {"512": {"content": "<think>", "special": False, "normalized": False}, "0": {"content": "<|endoftext|>"}}
    change(model / "tokenizer_config.json", added_tokens_decoder=added)
    found = Folder.open(model).tokenizer
    assert found.encode("a<think>b", False) == [found.encode("a", False)[0], 512, found.encode("b", False)[0]]
    assert found.ids_end == 513
    reference = AutoTokenizer.from_pretrained(model, local_files_only=True)
    assert found.encode("a <think> b") == reference("a <think> b")["input_ids"]
    change(model / "tokenizer_config.json", added_tokens_decoder={"513": {"content": "<think>"}})
    with pytest.raises(FormatError, match="513"):
        _ = Folder.open(model).tokenizer


def test_special_tokens_in_a_text_may_be_split(model: Path) -> None:
    whole = Folder.open(model).tokenizer.encode("<|im_end|>", False)
    change(model / "tokenizer_config.json", split_special_tokens=True)
    split = Folder.open(model).tokenizer.encode("<|im_end|>", False)
    assert whole == [lm_folders.IM_END]
    assert len(split) > 1


@pytest.mark.parametrize(
    ("text", "error"), [("\ud800", InputError), (b"a", InputError), (None, InputError), ("é" * (33 << 20), LimitError)]
)
def test_texts_that_are_refused(original: Path, text: Any, error: type[ree.Error]) -> None:
    with pytest.raises(error):
        Folder.open(original).tokenizer.encode(text)


# -- faults ---------------------------------------------------------------------------------


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(text.encode("utf-8", "surrogateescape")) and None


def set_in(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda path: change(path / name, **values)


def pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def cut_weights(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-1])


def long_header(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data[8:])


FAULTS: dict[str, tuple[Callable[[Path], None], type[ree.Error], str]] = {
    "no config": (remove("config.json"), InputError, "no config.json"),
    "no tokenizer": (remove("tokenizer.json"), InputError, "no tokenizer.json"),
    "no weights": (remove("model.safetensors"), InputError, "no model.safetensors"),
    "pickled": (pickled, InputError, "pickled"),
    "config is no JSON": (write("config.json", "{"), FormatError, "config.json: not JSON"),
    "config is no UTF-8": (write("config.json", '{"a": "\udcff"}'), FormatError, "config.json: not JSON"),
    "config is a list": (write("config.json", "[]"), FormatError, "no JSON object"),
    "config is deep": (write("config.json", "[" * 2000 + "]" * 2000), FormatError, "nested too deeply"),
    "config is large": (write("config.json", " " * (1 << 20) + "{}"), LimitError, "larger than"),
    "generation is no JSON": (write("generation_config.json", "{]"), FormatError, "generation_config.json"),
    "settings are no JSON": (write("tokenizer_config.json", "x"), FormatError, "tokenizer_config.json"),
    "no model type": (set_in("config.json", model_type=...), InputError, "no model_type"),
    "unknown model type": (set_in("config.json", model_type="lamma"), InputError, "no model type 'lamma'"),
    "encoder": (
        set_in("config.json", model_type="bert", architectures=["BertForMaskedLM"]), InputError, "no causal language"
    ),
    "encoder with a head": (
        set_in("config.json", model_type="bert", architectures=["BertLMHeadModel"]), InputError, "decoder"
    ),
    "translator": (
        set_in("config.json", model_type="t5", architectures=["T5ForConditionalGeneration"]), InputError, "no causal"
    ),
    "classifier": (
        set_in("config.json", architectures=["LlamaForSequenceClassification"]), InputError, "no causal language"
    ),
    "pictures": (
        set_in("config.json", model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"]), InputError, "text"
    ),
    "quantised": (set_in("config.json", quantization_config={"bits": 4}), UnsupportedError, "quantised"),
    "adapter": (write("adapter_config.json", "{}"), UnsupportedError, "adapter"),
    "layers": (set_in("config.json", num_hidden_layers=1 << 30), LimitError, "layers"),
    "number": (set_in("config.json", hidden_size=1 << 62), LimitError, "number"),
    "heads": (set_in("config.json", num_attention_heads="four"), FormatError, "num_attention_heads"),
    "vocabulary": (set_in("config.json", vocab_size=-5), InputError, "vocab_size"),
    "eos outside": (set_in("generation_config.json", eos_token_id=[0, 9999]), FormatError, "eos_token_id"),
    "weights cut": (cut_weights, FormatError, "outside of the file"),
    "header longer than the file": (long_header, FormatError, "no safetensors file"),
    "weights empty": (write("model.safetensors", ""), FormatError, "no safetensors file"),
    "template": (set_in("tokenizer_config.json", chat_template="{% if %}"), FormatError, "chat template is malformed"),
    "template is a number": (set_in("tokenizer_config.json", chat_template=3), FormatError, "no text"),
    "template is large": (write("chat_template.jinja", "a" * (2 << 20)), LimitError, "larger than"),
    "template is no UTF-8": (write("chat_template.jinja", "\udcff"), FormatError, "not UTF-8"),
    "special token": (set_in("tokenizer_config.json", eos_token=7), FormatError, "eos_token"),
    "added tokens": (set_in("tokenizer_config.json", added_tokens_decoder={"-1": {}}), FormatError, "added_tokens"),
}  # fmt: skip
TOKENIZER_FAULTS: dict[str, tuple[Callable[[Path], None], type[ree.Error], str]] = {
    "not JSON": (write("tokenizer.json", "{"), FormatError, "tokenizer.json"),
    "no model": (write("tokenizer.json", "{}"), FormatError, "tokenizer.json"),
    "more tokens than the model": (set_in("config.json", vocab_size=511), FormatError, "has token 511"),
    "bos outside": (set_in("tokenizer_config.json", bos_token="<none>"), FormatError, "bos_token '<none>'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(model: Path, fault: str) -> None:
    spoil, error, text = FAULTS[fault]
    spoil(model)
    with pytest.raises(error, match=text) as found:
        Folder.open(model)
    assert "\n" not in str(found.value)
    assert str(model) in str(found.value)


@pytest.mark.parametrize("fault", TOKENIZER_FAULTS)
def test_faults_of_the_tokenizer(model: Path, fault: str) -> None:
    spoil, error, text = TOKENIZER_FAULTS[fault]
    spoil(model)
    found = Folder.open(model)
    with pytest.raises(error, match=text) as raised:
        _ = found.tokenizer
    assert "\n" not in str(raised.value)


def test_a_tokenizer_that_encodes_at_random(model: Path) -> None:
    data = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"]["dropout"] = 0.5
    lm_folders.write_json(model / "tokenizer.json", data)
    with pytest.raises(UnsupportedError, match="at random"):
        _ = Folder.open(model).tokenizer


def test_a_tokenizer_that_begins_texts_with_a_token_of_its_own(model: Path) -> None:
    """The ids of a post-processor need not be those of the vocabulary."""
    data = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    data["post_processor"]["special_tokens"]["<|begin|>"]["ids"] = [70000]
    lm_folders.write_json(model / "tokenizer.json", data)
    with pytest.raises(FormatError, match="has token 70000"):
        _ = Folder.open(model).tokenizer


@pytest.mark.parametrize("path", ["nowhere", "a\0b", None, 3, "meta-llama/Llama-3.2-1B"])
def test_no_folder(path: Any) -> None:
    with pytest.raises(InputError):
        Folder.open(path)


def test_a_file_that_may_not_be_read(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        Folder.open(model)


# -- anything else --------------------------------------------------------------------------

FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json")


def attempt(path: Path) -> str:
    """Open a folder and use all that is in it; anything but a `ree.Error` passes through."""
    try:
        found = Folder.open(path)
        for name in found.shards:
            found.shards.tensor(name)
        made = found.tokenizer
        made.decode(made.encode("the harbour"))
        made.chat(TALK)
    except ree.Error as error:
        assert "\n" not in str(error)
        return "refused"
    return "read"


@pytest.mark.parametrize("name", FILES)
def test_mutated_json_is_read_or_refused(sharded: Path, name: str) -> None:
    rng = random.Random(name)
    original = json.loads((sharded / name).read_text(encoding="utf-8"))
    outcomes = set()
    for _ in range(150):
        mutated = mutate_tree(rng, copy.deepcopy(original))
        (sharded / name).write_text(json.dumps(mutated), encoding="utf-8")
        outcomes.add(attempt(sharded))
    assert outcomes == {"read", "refused"}


def test_mutated_tokenizers_are_read_or_refused(model: Path) -> None:
    rng = random.Random(7)
    original = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    outcomes = set()
    for number in range(100):
        mutated = copy.deepcopy(original)
        if number % 2:  # the vocabulary is most of the tree
            mutated["model"] |= {"vocab": mutate_tree(rng, mutated["model"]["vocab"])}
        else:
            kept = {key: mutated["model"].pop(key) for key in ("vocab", "merges")}
            mutated = mutate_tree(rng, mutated)
            if isinstance(mutated, dict) and isinstance(mutated.get("model"), dict):
                mutated["model"] |= kept
        (model / "tokenizer.json").write_text(json.dumps(mutated), encoding="utf-8")
        outcomes.add(attempt(model))
    assert outcomes == {"read", "refused"}
