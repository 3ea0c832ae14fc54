"""Expert layers of transformers' models as calls of one torch operator, `ree::expert_linear`.

transformers asks a table of implementations for the forward of an expert layer. The one that is registered here
computes what `batched_mm` of that table does, but copies no weights: each row names its expert, and the operator
`expert_matmul` (ree/ops/experts.py) reads that expert's matrix where it lies. No shape depends on data.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ree.errors import RunError, UnsupportedError

if TYPE_CHECKING:
    import torch

IMPLEMENTATION = "ree"  # its name in transformers' table: `experts_implementation=` of from_pretrained and configs
_OPERATOR = "ree::expert_linear"
_SCHEMA = "(Tensor x, Tensor weight, Tensor expert) -> Tensor"


@functools.cache
def register() -> None:
    """Make `ree::expert_linear` known to torch and `IMPLEMENTATION` to transformers, once for the process."""
    import torch
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    operator = torch.library.custom_op(_OPERATOR, _expert_linear, mutates_args=(), schema=_SCHEMA)
    operator.register_fake(_expert_linear_shape)
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)


def _expert_linear(x: torch.Tensor, weight: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """out[s] = weight[expert[s]] @ x[s], by torch.

    x: [S, I]; weight: [E, O, I] of the same dtype; expert: i64 [S]; gives [S, O]. RunError: an expert outside 0..E-1.
    """
    out = x.new_empty(x.shape[0], weight.shape[1])
    for number in expert.unique().tolist():
        if not 0 <= number < weight.shape[0]:
            raise RunError(f"expert {number} of {weight.shape[0]}")
        rows = expert == number
        out[rows] = x[rows] @ weight[number].T
    return out


def _expert_linear_shape(x: torch.Tensor, weight: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The forward of an expert layer `self` (a module decorated with transformers' use_experts_implementation).

    hidden_states: [S, D]; top_k_index: i64 [S, K], the experts of each token; top_k_weights: [S, K]; gives [S, D],
    each token's weighted results added in the order of its K. UnsupportedError: experts spread over processes.
    """
    if self._is_expert_parallel:
        raise UnsupportedError("experts spread over several processes are not supported; load the whole model")
    tokens, count = top_k_index.shape
    expert = top_k_index.reshape(-1)
    rows = hidden_states.repeat_interleave(count, dim=0)
    rows = _linear(self, "gate_up_proj" if self.has_gate else "up_proj", rows, expert)
    rows = self._apply_gate(rows) if self.has_gate else self.act_fn(rows)
    rows = _linear(self, "down_proj", rows, expert)
    if self.has_post_expert_norm:
        rows = self.post_expert_norm(rows)
    rows = rows * top_k_weights.reshape(-1, 1)
    return rows.view(tokens, count, hidden_states.shape[-1]).sum(dim=1).to(hidden_states.dtype)


def _linear(self: Any, name: str, rows: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """Each row through its expert's matrix `name` of the layer, and the bias if there is one."""
    import torch

    weight = getattr(self, name)
    weight = weight.transpose(1, 2) if self.is_transposed else weight
    out: torch.Tensor = torch.ops.ree.expert_linear(rows, weight, expert)
    return out + getattr(self, f"{name}_bias")[expert] if self.has_bias else out
