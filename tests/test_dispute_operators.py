"""Disputes whatever the operator: torch's own samples of every operator that is defined, one lie in each stage."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator

import pytest
import torch

import ree
from ree.capture import to_numpy
from ree.commit.trace import Trace
from ree.errors import Error
from ree.program import Program
from ree.referee.players import Position
from tests import dishonest
from tests.aten_case import graph_of, samples
from tests.test_random_graphs import program_of

OTHERS = ("linalg.", "fft.", "special.", "masked.", "_")  # families of which hardly any operator is defined
PARTS = 4


def names() -> list[str]:
    from torch.testing._internal.common_methods_invocations import op_db

    found = dict.fromkeys(info.name for info in op_db if not info.variant_test_name)
    return [name for name in found if not name.startswith(OTHERS)]


def runs(name: str) -> Iterator[tuple[set[str], Program, Trace]]:
    """(operators, program, kept trace) of a middling sample of two dtypes, as far as they are defined."""
    for dtype in (torch.float32, torch.int64):
        found = []
        with contextlib.suppress(Exception):  # torch has no samples of this dtype
            found = samples(name, dtype, 200)
        for call, tensors in found[len(found) // 2 :][:1]:
            graph = None
            with contextlib.suppress(Exception):  # torch refuses the sample, or an operator is not defined
                graph = graph_of(call, *tensors)
            if graph is None:
                continue
            arrays = [to_numpy(t) for t in tensors]
            try:
                program = program_of(graph, arrays)
                _, trace = program.run_committed(arrays, keep=True)
            except Error:  # an index out of range
                continue
            yield {node.op for node in graph.nodes}, program, trace


@pytest.mark.parametrize("part", range(PARTS))
def test_every_operator(part: int) -> None:
    logging.disable(logging.CRITICAL)  # torch tells at length of samples that it refuses
    rng = random.Random(part)
    operators: set[str] = set()
    stages = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names()[part::PARTS]:
                for found, program, trace in runs(name):
                    operators |= found
                    for stage, element in dishonest.elements(rng, trace):
                        position = Position(trace, stage, element)
                        assert position.wrong_step(position.evaluate().values) is None, (name, stage, element)
                        claim = dishonest.lie(trace, stage, dishonest.flip(element), follow=False)
                        assert ree.dispute(program, trace, claim).wrong == ("b",), (name, stage, element)
                        stages += 1
    finally:
        logging.disable(logging.NOTSET)
    assert len(operators) > 40 and stages > 120
