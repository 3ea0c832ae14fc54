"""Traces of generations: one run of the program over prompt and tokens, and what a receipt says about it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ree.commit.trace import Trace
from ree.errors import VerificationError
from ree.lm.generation import Generation, logits_root
from ree.lm.sample import Sampler
from ree.program import Program


def inputs_of(prompt: Sequence[int], tokens: Sequence[int]) -> list[np.ndarray]:
    """The program's inputs whose logits the tokens were drawn from: tokens, positions, rows."""
    fed = [*prompt, *tokens[:-1]]
    rows = np.arange(len(prompt) - 1, len(fed), dtype=np.int64)
    return [np.array([fed], np.int64), np.arange(len(fed), dtype=np.int64)[None], rows]


def run(program: Program, prompt: Sequence[int], tokens: Sequence[int]) -> Trace:
    """Run the program once over prompt and tokens, and commit to every tensor on the way."""
    return program.run_committed(inputs_of(prompt, tokens), keep=True)[1]


def check(trace: Trace, stated: Generation, prompt: Sequence[int], vocab_size: int) -> None:
    """VerificationError unless the trace is of this generation: its inputs, its logits, and the tokens drawn from them.

    That the trace's tensors follow from one another is another question (`ree.commit.local`, `ree.freivalds`).
    """
    for name, given, expected in zip(
        ("tokens", "positions", "rows"), trace.inputs, inputs_of(prompt, stated.tokens), strict=True
    ):
        if not np.array_equal(given, expected):
            raise VerificationError(f"the trace is not of this generation: its {name} are others")
    (output,) = trace.manifest.stages.outputs
    logits = trace.tensors[output.number][0]
    sampler = Sampler(vocab_size, stated.sampling, list(prompt))
    for step, (row, token) in enumerate(zip(logits, stated.tokens, strict=True)):
        if logits_root(row) != stated.root(step):
            raise VerificationError(f"step {step}: logits: those of the trace are not the receipt's")
        if sampler.draw(row, len(prompt) + step) != token:
            raise VerificationError(f"step {step}: token: another one is drawn from the logits")
