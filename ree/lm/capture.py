"""A transformers model as a program over rows: tokens, positions, rows -> logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ree.errors import UnsupportedError
from ree.graph import Data, Graph
from ree.program import Program

_EXAMPLE_TOKENS = 7

Pass = Callable[[Graph], Graph]


def capture(model: Any, context: int, data: Mapping[str, Data] | None = None, rewrite: Pass | None = None) -> Program:
    """The program (tokens i64[1, T], positions i64[1, T], rows i64[R]) -> logits f32[1, R, V] of a causal LM.

    model: of transformers, made with ree's attention (`ree.lm.torch_model`); context: the largest T; data: numbers of
    its parameters, by name, if they are not in itself; rewrite: a last pass over the graph. Positions are 0 to T - 1 in
    a run of the program itself. CaptureError, UnsupportedError: it cannot be captured, or is not causal.
    """
    import torch

    import ree.capture
    import ree_kernels.cpu as cpu
    from ree.lm import rows, torch_model
    from ree.passes import prepare

    module = torch_model.prepare(model, context)
    tokens = torch.arange(_EXAMPLE_TOKENS)[None] % 2
    example = (tokens, torch.arange(_EXAMPLE_TOKENS)[None], torch.tensor([2, 4, 1]))
    dynamic = torch.export.Dim.DYNAMIC
    with cpu.default_fp_state():
        shapes = ({1: dynamic}, {1: dynamic}, {0: dynamic})
        named = {f"{torch_model.WRAPPED}.{name}": found for name, found in (data or {}).items()}
        captured = ree.capture.capture(module, example, None, shapes, data=named)
        graph = prepare(_named(captured.graph, context))
        graph = rewrite(graph) if rewrite else graph
        rows.check(graph)
        program = Program(graph, captured.inputs, captured.outputs)
        program.watch(captured.weights)
        return program


def _named(graph: Graph, context: int) -> Graph:
    """The graph with the sizes that its two symbols may have: torch leaves out 1, which it takes for a special case."""
    if len(graph.symbols) != 2:
        raise UnsupportedError(f"the model's program depends on the sizes {list(graph.symbols)}, not on T and R")
    return replace(graph, symbols=dict.fromkeys(graph.symbols, (1, context)))
