"""Small, complete Hugging Face model folders with random weights, made on the spot for tests and demonstrations.

`make(folder, architecture="llama")` writes config.json, generation_config.json, safetensors weights under the names
that published checkpoints use, a byte-level BPE tokenizer trained on tests/data/prose.txt, and a chat template.
The weights are a function of the arguments alone: not of the global random state, nor of how transformers
initialises.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ree import loaders

PROSE = Path(__file__).parent / "data" / "prose.txt"
SPECIALS = ("<|endoftext|>", "<|begin|>", "<|im_start|>", "<|im_end|>")
END, BEGIN, _, IM_END = range(len(SPECIALS))
WINDOW = 24  # tokens that a sliding-window layer sees
CONTEXT = 256

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# what a small model of an architecture needs beyond the names that all share; callables get (hidden, heads)
_EXTRA: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": lambda hidden, heads: hidden // heads},
    "mistral": {"head_dim": lambda hidden, heads: hidden // heads, "sliding_window": WINDOW},
    "gemma": {"head_dim": lambda hidden, heads: hidden // heads},
    "gemma2": {
        "head_dim": lambda hidden, heads: hidden // heads,
        "query_pre_attn_scalar": lambda hidden, heads: hidden // heads,
        "sliding_window": WINDOW,
    },
    "phi": {},
    "opt": {"ffn_dim": lambda hidden, heads: 2 * hidden, "word_embed_proj_dim": lambda hidden, heads: hidden},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": lambda hidden, heads: hidden,
        "shared_expert_intermediate_size": lambda hidden, heads: hidden,
    },
}  # fmt: skip
ARCHITECTURES = tuple(_EXTRA)
_GROUPED = frozenset("llama qwen2 qwen3 mistral gemma gemma2 phi mixtral qwen2_moe".split())  # have kv heads
_BEGINNING = frozenset("llama mistral gemma gemma2 mixtral opt".split())  # their tokenizers put a token before a text


def make(
    folder: Path,
    architecture: str = "llama",
    vocab: int = 512,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    dtype: str = "float32",
    shards: int = 1,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a model folder and return its path.

    kv_heads: half of the heads where the architecture has them; dtype: "float32" or "bfloat16"; shards: number
    of weight files; config: more of the architecture's own configuration, which goes before what stands here.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    settings = _settings(architecture, vocab, hidden, layers, heads, kv_heads or max(1, heads // 2)) | config
    made = transformers.CONFIG_MAPPING[architecture](**settings)
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    fill(model, seed)
    model = model.to(getattr(torch, dtype)).eval()
    loaders.quietly(lambda: model.save_pretrained(folder))
    if shards > 1:
        reshard(folder, shards)
    write_tokenizer(folder, vocab, architecture in _BEGINNING)
    generation = {"bos_token_id": settings["bos_token_id"], "eos_token_id": [END, IM_END], "do_sample": False}
    write_json(folder / "generation_config.json", generation)
    return folder


def _settings(architecture: str, vocab: int, hidden: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": BEGIN if architecture in _BEGINNING else END,
        "eos_token_id": END,
        "pad_token_id": None,
    }
    if architecture not in ("gpt2", "opt"):  # which call it n_inner (4 times hidden unless told) and ffn_dim
        found["intermediate_size"] = 2 * hidden
    if architecture in _GROUPED:
        found["num_key_value_heads"] = kv_heads
    extra = _EXTRA[architecture]
    return found | {name: value(hidden, heads) if callable(value) else value for name, value in extra.items()}


def fill(model: torch.nn.Module, seed: int) -> None:
    """Seeded weights under which a random model is lively: distinct logits, uneven attention, few repetitions.

    Matrices get normal values of variance 1 / inputs, embeddings of deviation 1/4; vectors (norms, biases) are moved a
    little from where their class starts them, so that no scale is one and no bias is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    # gemma multiplies embeddings by the root of their width, and would then repeat each token: its output is tied
    spread = 1 / 16 if str(model.config.model_type).startswith("gemma") else 1 / 4
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if id(weight) in embeddings:
                weight.copy_(noise * spread)
            elif weight.dim() >= 2:
                weight.copy_(noise / weight.shape[-1] ** 0.5)
            else:
                weight.add_(noise / 8)


def reshard(folder: Path, count: int) -> None:
    """Replace model.safetensors by `count` files of consecutive tensors and their index."""
    whole = folder / "model.safetensors"
    with safe_open(str(whole), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    whole.unlink()
    names = list(tensors)
    weight_map = {}
    for number in range(count):
        chosen = names[number * len(names) // count : (number + 1) * len(names) // count]
        shard = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file({name: tensors[name] for name in chosen}, str(folder / shard), {"format": "pt"})
        weight_map |= dict.fromkeys(chosen, shard)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


@functools.cache
def tokenizer_text(vocab: int, has_begin: bool) -> str:
    """tokenizer.json of a byte-level BPE of `vocab` ids, at least 256 and the special ones."""
    if vocab < 256 + len(SPECIALS):
        raise ValueError("a byte-level vocabulary holds all bytes and the special tokens")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[tokenizers.AddedToken(s, special=True, normalized=False) for s in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(PROSE.read_text(encoding="utf-8").split("\n\n"), trainer)
    if has_begin:
        made.post_processor = processors.TemplateProcessing(
            single=f"{SPECIALS[BEGIN]} $A", special_tokens=[(SPECIALS[BEGIN], BEGIN)]
        )
    else:
        made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made.to_str()


def write_tokenizer(folder: Path, vocab: int, has_begin: bool) -> None:
    """tokenizer.json and tokenizer_config.json with the chat template."""
    (folder / "tokenizer.json").write_text(tokenizer_text(vocab, has_begin), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[BEGIN if has_begin else END],
        "eos_token": SPECIALS[END],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
