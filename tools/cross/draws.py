"""Draws of tokens: the vectors of the sampler, and large vocabularies, as one job whose steps call draw.c."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import ree_kernels.cpu as cpu
from ree.graph import Graph
from ree.lm.sample import Sampler, Sampling
from ree.plan.plan import Plan
from ree.plan.step import Buffer, Slot, Step
from ree.plan.weights import Weights
from ree.types import DType, TensorType
from tools.cross.job import Case

VECTORS = Path(__file__).resolve().parents[2] / "tests" / "vectors" / "sampling.json"
POINTERS = 8  # fields of draw.c's arguments that come first
TOP = 5
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, eq=False)
class Draw:
    """What a draw depends on; logits: float32 [vocabulary]."""

    logits: np.ndarray
    sampling: Sampling
    prompt: Sequence[int]
    drawn: Sequence[int] = ()

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.drawn)

    @property
    def top(self) -> int:
        return min(TOP, len(self.logits))

    def here(self) -> tuple[np.ndarray, np.ndarray]:
        """The token, random bits and largest tokens, and their log-probabilities, by this process' sampler."""
        sampler = Sampler(len(self.logits), self.sampling, self.prompt).replay(self.drawn)
        bits = int(cpu.kernels().lib.ree_sample_random_bits(self.sampling.seed, self.position))
        token = sampler.draw(self.logits, self.position)
        chosen, largest = sampler.logprobs(self.logits, self.top)
        tokens = np.array([token, bits, *(number for number, _ in largest)], np.uint64)
        return tokens, np.array([chosen, *(value for _, value in largest)], np.float32)


@dataclass
class Draws(Case):
    """A job of draws; its outputs are, for each, those of `Draw.here`."""

    draws: list[Draw] = field(default_factory=list)

    def run_here(self) -> bytes:
        return b"".join(part.tobytes() for draw in self.draws for part in draw.here()) + bytes(8)


def vectors() -> dict[str, dict[str, Any]]:
    """The cases of the vectors' file by name."""
    found: dict[str, dict[str, Any]] = json.loads(VECTORS.read_text(encoding="ascii"))["cases"]
    return found


def _of_vector(vector: dict[str, Any]) -> Draw:
    logits = np.frombuffer(bytes.fromhex(vector["logits"]), "<f4")
    return Draw(logits, Sampling.from_json(vector["sampling"]), vector["prompt"], vector["drawn"])


def _large() -> list[Draw]:
    """Vocabularies of many blocks: every limit, equal logits at the limits, a long history."""
    random = np.random.default_rng(12)
    logits = random.normal(0, 3, 20_011).astype(np.float32)
    history = random.integers(0, 20_011, 700).tolist()
    warm = Sampling(temperature=1.0, seed=(1 << 63) + 9)
    penalties = replace(warm, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.1)
    return [
        Draw(logits, Sampling(), history),
        Draw(logits, warm, history),
        Draw(logits, replace(warm, temperature=1.7, top_p=0.93), history),
        Draw(np.rint(logits), replace(warm, temperature=3.0, top_k=1000), history),
        Draw(np.rint(logits), replace(warm, top_k=5000, top_p=0.8, min_p=0.001), history),
        Draw(logits, replace(penalties, logit_bias=((17, 6.5), (20_010, -4.0))), history[:300], history[300:]),
    ]


def draws() -> Draws:
    """All draws of the vectors, then those from large vocabularies."""
    made = [*(_of_vector(vector) for vector in vectors().values()), *_large()]
    inputs: list[np.ndarray] = []
    outputs: list[TensorType] = []
    steps = [_step(draw, inputs, outputs) for draw in made]
    return Draws("draws of tokens", Plan(Graph([], [], [], []), steps, [], Weights([])), inputs, outputs, None, made)


def _step(draw: Draw, inputs: list[np.ndarray], outputs: list[TensorType]) -> Step:
    """One draw's call of draw.c, whose arrays are put in `inputs` and `outputs`."""
    sampling, slots = draw.sampling, []
    seen = np.unique(np.array([*draw.prompt, *draw.drawn], np.int32))
    counts = np.array([list(draw.drawn).count(token) for token in seen], np.int32)
    biases = [np.array([pair[n] for pair in sampling.logit_bias], (np.int32, np.float32)[n]) for n in (0, 1)]
    numbers = np.array([getattr(sampling, name) for name in NUMBERS], np.float32)
    for array in (draw.logits, *biases, seen, counts, numbers):
        slots.append(Slot(Buffer("input", len(inputs), array.nbytes)))
        inputs.append(array)
    for type in (TensorType((2 + draw.top,), DType.I64), TensorType((1 + draw.top,), DType.F32)):
        slots.append(Slot(Buffer("output", len(outputs), type.size_bytes())))
        outputs.append(type)
    sizes = [len(draw.logits), len(biases[0]), len(seen), sampling.top_k, draw.top, sampling.seed, draw.position]
    args = np.array([*[0] * POINTERS, *sizes], np.uint64)
    pointers = [(args.ctypes.data + 8 * number, slot) for number, slot in enumerate(slots)]
    scratch_bytes = int(cpu.kernels().lib.ree_sample_scratch_bytes(len(draw.logits)))
    return Step("cross_draw", args.ctypes.data, (1, 1), (1, 1), pointers, scratch_bytes=scratch_bytes, keep=(args,))
