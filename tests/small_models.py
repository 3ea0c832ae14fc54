"""Small transformers and convolution models with seeded weights, for tests of whole programs."""

from __future__ import annotations

from collections.abc import Callable

import torch


def _config(name: str, **options: object) -> torch.nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    config = getattr(transformers, name.split("/")[0])(**options)
    model: torch.nn.Module = getattr(transformers, name.split("/")[1])(config)
    model.config.use_cache = False
    return model


def gpt2() -> torch.nn.Module:
    return _config("GPT2Config/GPT2LMHeadModel", n_layer=2, n_embd=32, n_head=4, vocab_size=100, n_positions=64)


def llama() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return _config("LlamaConfig/LlamaForCausalLM", vocab_size=100, intermediate_size=48, **sizes)


def bert() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return _config("BertConfig/BertModel", vocab_size=100, **sizes)


def vit() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    return _config("ViTConfig/ViTForImageClassification", image_size=32, patch_size=16, **sizes)


def resnet() -> torch.nn.Module:
    return _config("ResNetConfig/ResNetForImageClassification", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2])


def recurrent() -> torch.nn.Module:
    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(6, 10, batch_first=True)
            self.gru = torch.nn.GRU(10, 7, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.gru(self.lstm(x)[0])[0]
            return result

    return Recurrent()


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 100, (batch, length), generator=torch.Generator().manual_seed(5))


def pixels(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def frames(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, 4, 6, generator=torch.Generator().manual_seed(5))


# name -> (model, inputs for a batch and a length, whether the length may vary)
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[int, int], torch.Tensor], bool]] = {
    "gpt2": (gpt2, tokens, True),
    "llama": (llama, tokens, True),
    "bert": (bert, tokens, True),
    "vit": (vit, pixels, False),
    "resnet": (resnet, pixels, False),
    "recurrent": (recurrent, frames, False),
}


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()
