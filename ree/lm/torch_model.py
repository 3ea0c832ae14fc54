"""The torch side: a transformers model made ready for capture, its attention one operator of ours.

Nothing of an architecture is written down here. transformers calls attention through a table of implementations; ours
records what the model's mask allows (causal, perhaps within a window; all else is refused) and becomes the graph's
`attention` operator.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ree.errors import CaptureError, UnsupportedError

IMPLEMENTATION = "ree"
WRAPPED = "model"  # what the prepared module calls the model in it
_PROBED = 2  # tokens of the forward that finds out about masks


@dataclass(frozen=True, slots=True)
class Causal:
    """A mask: row t sees keys s <= t, and of those only the last `window` (0: all)."""

    window: int


class _Layers:
    """The masks of a model's attention layers by their modules: seen in a forward, then used by the capture."""

    def __init__(self) -> None:
        self.masks: weakref.WeakKeyDictionary[Any, Causal] = weakref.WeakKeyDictionary()
        self.probing = False
        self.context = 0


_layers = _Layers()


def register() -> None:
    """Tell transformers and torch about our attention and experts; once is enough."""
    import torch
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    from ree.lm import experts

    if IMPLEMENTATION in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping:
        return
    torch.library.custom_op("ree::causal_attention", _eager, mutates_args=(), schema=_SCHEMA)
    torch.library.register_fake("ree::causal_attention", _fake)
    AttentionInterface.register(IMPLEMENTATION, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[IMPLEMENTATION] = _mask
    experts.register()


# -- the operator ------------------------------------------------------------------------------

_SCHEMA = "(Tensor q, Tensor k, Tensor v, float scale, int window, float softcap) -> Tensor"


def _eager(q: Any, k: Any, v: Any, scale: float, window: int, softcap: float) -> Any:
    """Causal attention in torch: q [B, H, T, D], k [B, Hkv, T, D], v [B, Hkv, T, Dv] -> [B, H, T, Dv]."""
    import torch

    groups = q.shape[1] // k.shape[1]
    scores = q.float() @ k.float().repeat_interleave(groups, 1).transpose(-1, -2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    row = torch.arange(q.shape[2])[:, None]
    key = torch.arange(k.shape[2])
    allowed = (key <= row) & (key > row - window) if window else key <= row
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return (weights @ v.float().repeat_interleave(groups, 1)).to(q.dtype)


def _fake(q: Any, k: Any, v: Any, scale: float, window: int, softcap: float) -> Any:
    return q.new_empty((*q.shape[:3], v.shape[3]))


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Any, None]:
    """What transformers calls for each attention layer; gives [B, T, H, Dv]."""
    import torch

    extra = [name for name in ("s_aux", "position_bias", "cache") if options.get(name) is not None]
    if extra or dropout or is_causal is False or not getattr(module, "is_causal", True):
        what = f"with {extra[0]}" if extra else "with dropout" if dropout else "that is not causal"
        raise UnsupportedError(f"attention {what} in {type(module).__name__} is not supported")
    if _layers.probing:
        if not isinstance(attention_mask, Causal):
            what = "its mask is neither causal nor a causal window"
            raise UnsupportedError(f"attention of {type(module).__name__} is not supported: {what}")
        _layers.masks[module] = attention_mask
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = _layers.masks[module].window
    result = torch.ops.ree.causal_attention(query, key, value, float(scale), window, float(softcap or 0.0))
    return result.transpose(1, 2).contiguous(), None


# -- masks -------------------------------------------------------------------------------------


def _mask(*args: Any, mask_function: Any = None, **options: Any) -> Causal | None:
    """What transformers calls for each kind of mask of a model."""
    return _window_of(mask_function, _layers.context) if _layers.probing else None


def _window_of(allowed: Any, context: int) -> Causal | None:
    """The mask that a function (batch, head, row, key) -> bool means; None if it is of another kind.

    A model may make masks that none of its layers uses, so this is no error yet.
    """
    import torch

    keys = torch.arange(context)

    def row(t: int) -> Any:
        found = torch.as_tensor(allowed(torch.tensor(0), torch.tensor(0), torch.tensor(t), keys))
        return found.expand(context)

    last = row(context - 1)
    seen = int(last.sum())
    window = 0 if seen == context else seen
    rows = {0, 1, seen - 2, seen - 1, seen, seen + 1, context // 2, context - 1}
    for t in sorted(r for r in rows if 0 <= r < context):
        expected = (keys <= t) & (keys > t - window) if window else keys <= t
        if not torch.equal(row(t), expected):
            return None
    return Causal(window)


# -- the model ----------------------------------------------------------------------------------


@contextmanager
def _probing(context: int) -> Iterator[None]:
    _layers.probing, _layers.context = True, context
    try:
        yield
    finally:
        _layers.probing = False


def prepare(model: Any, context: int) -> Any:
    """A module (tokens i64[1, T], positions i64[1, T], rows i64[R]) -> logits f32[1, R, V] around a causal LM.

    model: of transformers, made with our attention implementation; context: positions that it can have. One short
    forward finds out what its masks allow. UnsupportedError: not causal, or of a kind that is not defined.
    """
    import torch

    class Rows(torch.nn.Module):
        """The model without a cache, its logits at chosen rows."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            result = self.model(
                input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=rows, return_dict=True
            )
            return result.logits.float()

    module = Rows().eval()
    name = type(model).__name__
    try:
        with torch.no_grad(), _probing(context):
            logits, own = _probe(module, model)
    except KeyError as error:
        if error.args != (IMPLEMENTATION,):
            raise
        raise UnsupportedError(f"{name} computes attention by itself, not by transformers' table") from None
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        if Causal.__name__ in str(error):
            raise UnsupportedError(f"{name} computes with its mask by itself, which is not supported") from None
        text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise CaptureError(f"{name} cannot run as a causal language model: {text}") from error
    if not any(layer in _layers.masks for layer in model.modules()) or logits.shape[:2] != (1, 1):
        raise UnsupportedError(f"{name} has no causal attention layers, or no choice of logits' rows")
    if not own:
        raise UnsupportedError(f"{name} counts positions in a way of its own, not from 0, which is not supported")
    return module


def _probe(module: Any, model: Any) -> tuple[Any, bool]:
    """Logits of a short forward, and whether the model itself would look up the same tokens and positions."""
    import torch

    pad = getattr(model.config, "pad_token_id", None)
    tokens = torch.full((1, _PROBED), 1 if pad in (0, None) else 0)
    with _looked_up() as given:
        logits = module(tokens, torch.arange(_PROBED)[None], torch.tensor([_PROBED - 1]))
    with _looked_up() as own:
        model(input_ids=tokens, use_cache=False, return_dict=True)
    same = len(given) == len(own) and all(torch.equal(a, b) for a, b in zip(given, own, strict=True))
    return logits, same


@contextmanager
def _looked_up() -> Iterator[list[Any]]:
    """The indices of all look-ups in tables, in order."""
    import torch

    found: list[Any] = []
    original = torch.nn.functional.embedding

    def embedding(input: Any, *args: Any, **options: Any) -> Any:
        found.append(input.broadcast_to(1, _PROBED) if input.dim() < 3 else input)
        return original(input, *args, **options)

    torch.nn.functional.embedding = embedding
    try:
        yield found
    finally:
        torch.nn.functional.embedding = original
