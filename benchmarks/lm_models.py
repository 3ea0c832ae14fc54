"""Model folders for the benchmarks of language models: sizes of real models, seeded random weights."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

_COMMON = {"vocab_size": 32000, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "float32",
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 512, "bos_token_id": 1,
         "eos_token_id": 0},
    ),
    "A": (
        "float32",
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
         "num_key_value_heads": 4, **_COMMON},
    ),
    "B": (
        "bfloat16",
        {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
         "num_key_value_heads": 4, **_COMMON},
    ),
}  # fmt: skip


def make(name: str, parent: Path) -> Path:
    """The folder of a model below `parent`, written if it is not there."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tests import lm_folders

    folder = parent / name
    if (folder / "tokenizer.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    dtype, sizes = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    del model
    gc.collect()
    lm_folders.write_tokenizer(folder, 512, True)
    return folder


def in_torch(folder: Path, dtype: str) -> Any:
    """The folder's model in torch; dtype: "float32" or "bfloat16"."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
