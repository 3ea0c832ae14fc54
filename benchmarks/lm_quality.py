"""What bf16 and int8 cost a model that has learnt something: perplexity of a small trained model.

A Llama-like model learns the prose that ships with the tests (torch, seeded, a minute), all of it but the last part,
which is kept for the question how well it predicts a text of that kind that it has not seen.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import arguments, table, write

SIZES = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 0,
}  # fmt: skip
STEPS, STEPS_QUICK = 150, 3
BATCH, WINDOW = 8, 128
KEPT = 0.15  # of the text


def train(folder: Path, steps: int) -> tuple[list[int], list[int]]:
    """Write the trained model's folder; the tokens that it learnt, and those that it has not seen."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from ree.lm.folder import Folder
    from tests import lm_folders

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), dtype=torch.float32)
    model.save_pretrained(folder)
    lm_folders.write_tokenizer(folder, SIZES["vocab_size"], True)
    tokens = Folder.open(folder).tokenizer.encode(lm_folders.PROSE.read_text(encoding="utf-8"))
    split = int(len(tokens) * (1 - KEPT))
    learnt = torch.tensor(tokens[:split])
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    for _ in range(steps):
        starts = torch.randint(0, len(learnt) - WINDOW, (BATCH,))
        batch = torch.stack([learnt[start : start + WINDOW] for start in starts])
        model(batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval().save_pretrained(folder)
    return tokens[:split], tokens[split:]


def main() -> None:
    options = arguments(__doc__).parse_args()
    import torch

    import ree
    from ree.lm.model import DTYPES, LanguageModel
    from ree.lm.perplexity import perplexity

    torch.set_num_threads(options.threads)
    ree.threads(options.threads)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        texts = dict(zip(("learnt", "unseen"), train(folder, STEPS_QUICK if options.quick else STEPS), strict=True))
        for dtype in DTYPES:
            engine = LanguageModel.open(folder, dtype).engine()
            found[dtype] = {name: perplexity(engine, tokens) for name, tokens in texts.items()}
    rows = [
        [
            dtype,
            *(f"{value:.4f}" for value in f.values()),
            *(f"{100 * (f[n] / found['fp32'][n] - 1):+.3f}" for n in texts),
        ]
        for dtype, f in found.items()
    ]
    print(table(["dtype", "perplexity, learnt", "unseen", "change %, learnt", "unseen"], rows))
    write("lm_quality", {"perplexity": found}, options)


if __name__ == "__main__":
    main()
