"""The models that the benchmarks run: seeded random weights, except MiniLM, which is a trained model.

Every entry gives an nn.Module in evaluation mode from tensors to one tensor, and a tuple of
example inputs. `QUICK` names those that are small enough for CI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ree import sentences
from ree.loaders import wrapped

SEED = 20261122


@dataclass(frozen=True, slots=True)
class Case:
    """A model and its inputs; `batch_axis0` says that all inputs and the output have the batch first."""

    name: str
    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    batch_axis0: bool = True


def _tokens(vocabulary: int, length: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, vocabulary, (batch, length), generator=generator)


def _pixels(size: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(SEED))


def _build(make: Callable[[], Any]) -> Any:
    torch.manual_seed(SEED)
    model = make().eval()
    if hasattr(model, "config"):
        model.config.use_cache = False
    return model.requires_grad_(False)


def mlp(width: int = 1024, layers: int = 4, batch: int = 64) -> Case:
    def make() -> torch.nn.Module:
        blocks: list[torch.nn.Module] = []
        for _ in range(layers):
            blocks += [torch.nn.Linear(width, width), torch.nn.GELU()]
        return torch.nn.Sequential(*blocks)

    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(SEED))
    return Case("mlp", _build(make), (x,))


def gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = _build(lambda: GPT2LMHeadModel(GPT2Config()))
    return Case("gpt2", wrapped(model, ("input_ids",)), (_tokens(50257, 128),))


def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=32000,
    )
    return Case("llama", wrapped(_build(lambda: LlamaForCausalLM(config)), ("input_ids",)), (_tokens(32000, 128),))


def bert() -> Case:
    from transformers import BertConfig, BertModel

    model = _build(lambda: BertModel(BertConfig()))
    ids = _tokens(30522, 128)
    return Case("bert", wrapped(model, ("input_ids", "attention_mask")), (ids, torch.ones_like(ids)))


def vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    model = _build(lambda: ViTForImageClassification(ViTConfig(num_labels=1000)))
    return Case("vit", wrapped(model, ("pixel_values",)), (_pixels(224),))


def resnet50() -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    def make() -> torch.nn.Module:
        model = ResNetForImageClassification(ResNetConfig(num_labels=1000))
        generator = torch.Generator().manual_seed(SEED)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        return model

    return Case("resnet50", wrapped(_build(make), ("pixel_values",)), (_pixels(224),))


def minilm(count: int = 32) -> Case:
    """all-MiniLM-L6-v2 with its trained weights on real sentences: mean pooling over the words."""
    model = sentences.load_minilm()
    return Case("minilm", model, sentences.tokenize(sentences.SENTENCES[:count]))


def with_batch(case: Case, batch: int) -> tuple[torch.Tensor, ...]:
    """Inputs of `batch` rows: the case's first row, then that row rolled along its last axis.

    Masks (all ones in a case of one row) stay as they are.
    """

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        first = tensor[:1]
        return torch.cat([first, *(first.roll(shift, -1) for shift in range(1, batch))])

    return tuple(rows(t) for t in case.inputs)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": mlp,
    "minilm": minilm,
    "resnet50": resnet50,
    "llama": llama,
    "bert": bert,
    "vit": vit,
    "gpt2": gpt2,
}
QUICK = ("mlp", "minilm")
