"""Streamed plans: steps of an engine over several sequences, one after another over one cache, as one job.

Each step is a plan of its own, since its number of rows is. Their steps are joined into one table; what a plan is given
in memory of its own gets a number of its own, and the cache is the same memory for all. What this process gives is what
its `Engine` does, which plans for other numbers of rows and pads at the end only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ree import dims
from ree.lm import experts, quantise, torch_model
from ree.lm.capture import capture
from ree.lm.engine import POSITIONS, ROWS, TOKENS, Engine, Row
from ree.plan.plan import Plan
from ree.plan.step import Buffer, Slot, Step
from ree.plan.stream import CHUNK, LAYER_STATES, SLOTS, Layer, Stream
from ree.program import Program
from ree.types import DType, TensorType
from tools.cross.job import PANEL_COLS_MAX, Case

VOCAB = 97
CONTEXT = 2 * CHUNK
WINDOW = 24
ENDLESS = VOCAB - 1  # a token whose embedding is not finite, where a model is asked to have one
SHARED = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 70, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "pad_token_id": None,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 20, "sliding_window": WINDOW},
    "gemma2": {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
INPUTS = 4  # of one step: those of the program, and the rows' slots
Rows = Sequence[Row | None]  # of one step; None is padding


def model(architecture: str, dtype: str, endless: bool = False) -> Program:
    """A small language model of an architecture with random weights, in "fp32", "bf16" or "int8"."""
    import transformers

    from tests import lm_folders

    torch_model.register()
    config = transformers.CONFIG_MAPPING[architecture](**SHARED, **OWN[architecture])
    options = {"attn_implementation": torch_model.IMPLEMENTATION, "experts_implementation": experts.IMPLEMENTATION}
    with torch.random.fork_rng(devices=[]):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options).eval()
    lm_folders.fill(made, 1)
    if endless:
        made.get_input_embeddings().weight.data[ENDLESS, 3] = float("inf")
    if dtype == "bf16":
        made = made.to(torch.bfloat16)
    return capture(made, CONTEXT, rewrite=quantise.quantise if dtype == "int8" else None)


@dataclass
class Streamed(Case):
    """Steps of rows of some sequences; outputs: the logits of each step's rows that are asked for."""

    steps: Sequence[Rows] = ()

    def run_here(self) -> bytes:
        assert self.program is not None
        rows = [[row for row in step if row is not None] for step in self.steps]
        slots = 1 + max(row.slot for step in rows for row in step)
        engine = Engine(self.program, CONTEXT, slots)
        for _ in range(slots):
            engine.open()
        return b"".join(engine.step(step).tobytes() for step in rows) + bytes(8)


def streamed(name: str, program: Program, steps: Sequence[Rows]) -> Streamed:
    """The case of these steps, which feed each sequence in order; the slots are numbered from 0."""
    plans, inputs, outputs, layers = [], [], [], []
    for rows in steps:
        filled = [Row(0, 0, -1, False) if row is None else row for row in rows]
        wanted = np.array([number for number, row in enumerate(filled) if row.wants], np.int64)
        table = np.array([(row.token, row.position, row.slot) for row in filled], np.int64).T.copy()
        stream = Stream(POSITIONS, CONTEXT)
        plans.append(program.streamed_plan(binding(program, len(filled), len(wanted)), stream))
        inputs += [table[0], table[1], wanted, table[2]]
        outputs.append(TensorType((1, len(wanted), VOCAB), DType.F32))
        layers = stream.layers
    slots = 1 + max(row.slot for rows in steps for row in rows if row is not None)
    joined = _Joining(state_bytes(layers, slots)).plan(plans, program)
    return Streamed(name, joined, inputs, outputs, program, steps)


def binding(program: Program, rows: int, wanted: int) -> tuple[int, ...]:
    """What a run over so many rows, of which so many are wanted, makes of the program's symbols."""
    sizes: dict[str, int] = {}
    for number, axis, size in ((TOKENS, 1, rows), (ROWS, 0, wanted)):
        sizes.update(dict.fromkeys(dims.symbols(program.graph.inputs[number].type.shape[axis]), size))
    return tuple(sizes[name] for name in program.graph.symbols)


def state_bytes(layers: Sequence[Layer], slots: int) -> list[int]:
    """Sizes of the cache's parts, in order, on a processor of the widest panels."""
    sizes = []
    for layer in layers:
        value_cols = -(-layer.value_floats // CONTEXT // PANEL_COLS_MAX) * PANEL_COLS_MAX
        heads = slots * layer.k_heads
        sizes += [4 * heads * layer.key_floats, 4 * heads * CONTEXT * value_cols, heads * (CONTEXT // CHUNK)]
    assert len(sizes) == LAYER_STATES * len(layers)
    return sizes


@dataclass
class _Joining:
    """Numbers the buffers of several plans anew, so that only weights and the cache are shared."""

    state_bytes: Sequence[int]
    _buffers: dict[tuple[int, str, int], Buffer] = field(default_factory=dict)

    def plan(self, plans: Sequence[Plan], program: Program) -> Plan:
        """One plan of all steps of these."""
        steps = [self._step(number, step) for number, plan in enumerate(plans) for step in plan.steps]
        return Plan(plans[0].graph, steps, [], program.weights)

    def _step(self, plan: int, step: Step) -> Step:
        return dataclasses.replace(
            step,
            pointers=[(address, self._slot(plan, slot)) for address, slot in step.pointers],
            epilogue=self._step(plan, step.epilogue) if step.epilogue else None,
            hooks=[(self._step(plan, hook), function, args) for hook, function, args in step.hooks],
        )

    def _slot(self, plan: int, slot: Slot) -> Slot:
        old = slot.buffer
        if old.kind in ("constant", "packed"):
            return slot
        shared = old.kind == "state" and old.number != SLOTS
        key = (-1 if shared else plan, old.kind, old.number)
        if key not in self._buffers:
            self._buffers[key] = self._buffer(plan, old)
        return Slot(self._buffers[key], slot.offset_bytes)

    def _buffer(self, plan: int, old: Buffer) -> Buffer:
        if old.kind == "input" or (old.kind == "state" and old.number == SLOTS):
            number = INPUTS - 1 if old.kind == "state" else old.number
            return Buffer("input", INPUTS * plan + number, old.size_bytes)
        if old.kind == "state":
            return Buffer("state", old.number, self.state_bytes[old.number - SLOTS - 1])
        if old.kind == "output":
            return Buffer("output", plan, old.size_bytes)
        return Buffer("arena", len(self._buffers), old.size_bytes)


# -- cases -------------------------------------------------------------------------------------


def feeding(*lengths: int, endless: int | None = None) -> list[Rows]:
    """Sequences of these lengths in one step, a padding row behind the first; then a token of each, backwards; then
    three tokens of the last and one of the first, with padding between.

    endless: the place in the first sequence of the token that is not finite.
    """
    tokens = np.random.default_rng(len(lengths)).integers(0, ENDLESS, (len(lengths), max(lengths) + 4)).tolist()
    if endless is not None:
        tokens[0][endless] = ENDLESS

    def row(slot: int, position: int) -> Row:
        return Row(tokens[slot][position], position, slot, True)

    prefill: list[Row | None] = [row(slot, n) for slot, length in enumerate(lengths) for n in range(length)]
    prefill.insert(lengths[0], None)
    last = len(lengths) - 1
    decode = [row(slot, lengths[slot]) for slot in reversed(range(len(lengths)))]
    mixed = [*(row(last, lengths[last] + n) for n in (1, 2, 3)), None, row(0, lengths[0] + 1)]
    return [prefill, decode, mixed]


def quick() -> list[Case]:
    """A model in int8, and one with windows and capped scores."""
    return [
        streamed("streamed llama in int8", model("llama", "int8"), feeding(19, 5, 33)),
        streamed("streamed gemma2 in fp32", model("gemma2", "fp32"), feeding(41, 1, 30)),
    ]


def full() -> list[Case]:
    """The quick cases; every dtype, experts, sequences of more than a chunk of keys, values that are not finite."""
    windows = model("gemma2", "fp32")
    return [
        *quick(),
        streamed("streamed llama in fp32", model("llama", "fp32"), feeding(23, 40)),
        streamed("streamed llama in bf16", model("llama", "bf16"), feeding(17, 35, 2)),
        streamed("streamed mixtral in fp32", model("mixtral", "fp32"), feeding(29, 16)),
        streamed("streamed mixtral in bf16", model("mixtral", "bf16"), feeding(29, 3, 16)),
        streamed("streamed gemma2 in int8", model("gemma2", "int8"), feeding(50, 20)),
        streamed("streamed gemma2, long", windows, feeding(270, 31, 190)),
        streamed("streamed mistral, not finite", model("mistral", "fp32", True), feeding(150, 60, endless=70)),
        streamed("streamed mistral in bf16, long", model("mistral", "bf16"), feeding(262, 12)),
    ]
