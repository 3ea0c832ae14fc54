"""Models whose whole plans are proved: every kernel of ree_kernels, with epilogues, packed weights and odd shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ree
from ree.capture import to_numpy
from ree.plan.plan import Plan
from ree.types import TensorType
from tools.cross.job import Case


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def case(name: str, model: nn.Module | Callable[..., Any], *inputs: Tensor) -> Case:
    """The plan of a model (in evaluation mode) for these inputs."""
    module = model if isinstance(model, nn.Module) else Call(model)
    program = ree.compile(module.eval(), inputs)
    plan: Plan = program.plan(())
    outputs: list[TensorType] = [plan.graph.type_of(v) for v in plan.graph.outputs]
    return Case(name, plan, [to_numpy(x) for x in inputs], outputs, program)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hard(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers with zeros of both signs and subnormals strewn in, and few that make infinities and NaN."""
    values = normal(*shape, seed=seed).flatten()
    mild = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 1e-20])
    wild = torch.tensor([float("nan"), float("inf"), 3e38])
    places = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed + 1))
    strewn, count = places[: len(values) // 20], min(3, len(values) // 100)
    values[strewn] = mild[torch.arange(len(strewn)) % len(mild)]
    values[places[len(values) - count :]] = wild[:count]
    return values.reshape(shape)


class Block(nn.Module):
    """A transformer's layer over learned projections; `kv_heads` < `heads` shares keys and values."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.size)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        parts = [self.heads * self.size, self.kv_heads * self.size, self.kv_heads * self.size]
        q, k, v = (
            part.reshape(b, t, -1, self.size).transpose(1, 2)
            for part in torch.split(self.qkv(self.norm_1(x)), parts, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Language(nn.Module):
    """GPT-2 in small: embeddings, layers, tied head."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.layers = nn.ModuleList(Block(width, heads, kv_heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.tokens.weight.T


class Residual(nn.Module):
    """A residual block with stride and groups."""

    def __init__(self, ins: int, outs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv_1, self.norm_1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs)
        self.conv_2, self.norm_2 = nn.Conv2d(outs, outs, 3, 1, 1, groups=groups), nn.BatchNorm2d(outs)
        self.short = nn.Conv2d(ins, outs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_1(self.conv_1(x)))
        return F.relu(self.norm_2(self.conv_2(y)) + self.short(x))


def _language() -> nn.Module:
    return Language(97, 32, 2, 4, 2)


def _vision() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        Residual(16, 16, 1, 4), Residual(16, 24, 2, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def perceptron() -> Case:
    """Linear layers whose activations are epilogues."""
    torch.manual_seed(0)
    layers = (nn.Linear(37, 300), nn.GELU(), nn.Linear(300, 65), nn.SiLU(), nn.Linear(65, 11), nn.Softmax(-1))
    return case("perceptron", nn.Sequential(*layers), normal(7, 37))


def narrow(dtype: torch.dtype) -> Case:
    """Linear layers in 16 bits, one row after another and many, with a matrix that is read both ways."""
    torch.manual_seed(4)
    first, second = nn.Linear(300, 70).to(dtype), nn.Linear(70, 33, bias=False).to(dtype)

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return self.second(F.gelu(self.first(x))), y @ self.second.weight, self.first(x[:1])

    return case(f"linear layers in {dtype}", Narrow(), hard(41, 300).to(dtype), hard(3, 33).to(dtype))


def _select(x: Tensor, index: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """Sorting, scanning and scattering."""
    order = torch.sort(x, dim=-1, stable=True)
    top = torch.topk(x, 5, dim=-1)
    sums = torch.cumsum(x, -1)
    low = torch.cummin(x, 0)
    spread = torch.zeros_like(x).scatter_add(1, index, x)
    rows = torch.zeros(6, x.shape[1]).index_add(0, ids, x)
    return (*order, *top, sums, torch.cumprod(x, 1), *low, spread, rows, torch.argsort(index, dim=0, descending=True))


def _normalised(x: Tensor) -> tuple[Tensor, ...]:
    """Reductions along rows and along columns."""
    return (
        F.softmax(x, -1), F.log_softmax(x, 0), F.layer_norm(x, x.shape[-1:]), x.sum(0), x.mean(-1), x.var(0),
        x.amax(0), x.argmin(-1), torch.logsumexp(x, 1), F.rms_norm(x, x.shape[-1:]),
    )  # fmt: skip


def quick() -> list[Case]:
    """Whole models, small."""
    torch.manual_seed(0)
    ids = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(1))
    index = torch.randint(0, 31, (9, 31), generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([5, 0, 0, 3, 5, 1, 2, 0, 4])
    return [
        perceptron(),
        narrow(torch.bfloat16),
        narrow(torch.float16),
        case("language model", _language(), ids),
        case("residual network", _vision(), normal(2, 3, 23, 21)),
        case("sort, scan, scatter", _select, hard(9, 31), index, rows),
        case("reductions", _normalised, normal(21, 517)),
    ]


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return (
        F.scaled_dot_product_attention(q, k, v),
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        F.scaled_dot_product_attention(q, k[:, :, :11], v[:, :, :11], is_causal=True),
    )


class Products(nn.Module):
    """Products of two variables, with a packed constant and an epilogue, and of transposed views with a bias."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.linear = nn.Linear(k, n)

    def forward(self, a: Tensor, b: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return a @ b, torch.tanh(self.linear(a)), torch.addmm(bias, b.T, a.T)


def _products() -> list[Case]:
    """Matrix products at the boundaries of chunks, tiles and panels."""
    cases = []
    for m, n, k in ((1, 1, 1), (3, 15, 255), (14, 33, 256), (17, 64, 257), (5, 70, 600), (33, 16, 31)):
        operands = hard(m, k, seed=m), hard(k, n, seed=n), normal(n, 1)
        cases.append(case(f"products {m} {n} {k}", Products(n, k), *operands))
    batched = hard(3, 7, 300), hard(3, 18, 300, seed=5)
    return [*cases, case("batched products", lambda a, b: torch.bmm(a, b.transpose(1, 2)), *batched)]


def _convolutions() -> list[Case]:
    """Convolutions over one to three axes: strides, dilation, groups, depthwise, transposed."""
    torch.manual_seed(3)
    image = hard(2, 12, 9, 11)
    modules: list[tuple[nn.Module, Tensor]] = [
        (nn.Conv1d(5, 7, 3, padding=1), hard(3, 5, 20)),
        (nn.Conv3d(2, 5, (2, 3, 2), stride=(1, 2, 1), padding=1), hard(1, 2, 4, 6, 5)),
        (nn.Conv2d(12, 33, 3, stride=2, dilation=2, padding=2), image),
        (nn.Conv2d(12, 12, 3, groups=12, padding=1), image),
        (nn.Conv2d(12, 24, (1, 5), groups=3, padding=(0, 2)), image),
        (nn.Conv2d(12, 300, 1), image),
        (nn.ConvTranspose2d(12, 10, 3, stride=2, padding=1, output_padding=1), image),
        (nn.ConvTranspose2d(12, 8, 4, stride=3, groups=4), image),
    ]
    return [case(f"convolution {n}", module, x) for n, (module, x) in enumerate(modules)]


def _layouts(x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """Views, joins, paddings, pools and interpolation of an image batch: loads and stores by every kind of stride."""
    turned = x.permute(0, 2, 3, 1).flip(1)
    return (
        torch.cat([x, x.roll(2, -1) * 2.0], 1)[:, ::3, 1::2], turned[..., 1:] - turned[..., :-1],
        F.pad(x, (2, 1, 0, 3), value=-1.0), F.pad(x, (1, 2, 2, 1), mode="reflect"), F.max_pool2d(x, 3, 2, 1),
        F.avg_pool2d(x, 2, 1), F.interpolate(x, scale_factor=1.7, mode="bilinear"), F.group_norm(x, 3),
        F.interpolate(x, size=(4, 5), mode="bicubic"), torch.where(x > 0, x, x.flip(-1)).tril(1),
        torch.gather(x, 3, index), x.index_select(2, index[0, 0, 0]), x.transpose(1, 3).contiguous(),
    )  # fmt: skip


def _integers(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Narrow and wide integers, and floats on the way to and from them."""
    return (
        a + a, (a.float() * 0.3).to(torch.int8), b // 7, b % 13, b ^ (b >> 3), (b * b).sum(-1), b.float(), b.double(),
        c.to(torch.int32), c.half(), c.bfloat16().float(), c.double().sqrt(), (c > 0).sum(0), torch.bitwise_not(a),
    )  # fmt: skip


def _random(x: Tensor) -> tuple[Tensor, ...]:
    return torch.rand_like(x), F.dropout(x, 0.3, training=True), torch.randn_like(x)


def full() -> list[Case]:
    """The quick models, and every kernel at its boundary shapes and special values."""
    torch.manual_seed(1)
    q, k, v = hard(2, 4, 17, 24), hard(2, 4, 23, 24, seed=1), hard(2, 4, 23, 20, seed=2)
    mask = torch.where(normal(17, 23) > 1, float("-inf"), normal(17, 23, seed=4))
    wide = torch.arange(-999, 999).reshape(6, 333) * 10**15
    recurrent = nn.LSTM(6, 20, batch_first=True)
    return [
        *quick(),
        case("attention", _attention, q, k, v, mask),
        case("attention of numbers", _attention, q.nan_to_num(0, 1, -1).clamp(-9, 9), normal(2, 4, 23, 24),
             normal(2, 4, 23, 20), mask),
        case("recurrent network", recurrent, normal(3, 7, 6)),
        case("bfloat16 storage", lambda x: (x.bfloat16() * 1.7).float().half().float().exp(), hard(5, 77)),
        case("layouts", _layouts, hard(2, 6, 9, 8), torch.randint(0, 8, (2, 6, 9, 5))),
        case("integers", _integers, torch.arange(-128, 128).to(torch.int8), wide, hard(11, 70).clamp(-1e5, 1e5)),
        case("random numbers", _random, normal(5, 77)),
        *_products(),
        *_convolutions(),
    ]  # fmt: skip
