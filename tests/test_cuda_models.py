"""Whole programs on the second device: outputs, trace roots and receipts are those of the processor."""

from __future__ import annotations

import random

import pytest

import ree
from tests.cuda_case import on_device, same_outputs
from tests.small_models import MODELS, build
from tests.test_random_graphs import random_program


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    inputs = MODELS[name][1](2, 12)
    program = ree.compile(build(name), (inputs,))
    same_outputs(program, on_device(program), [inputs])


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(seed: int) -> None:
    program, arrays = random_program(random.Random(seed))
    same_outputs(program, on_device(program), arrays)
