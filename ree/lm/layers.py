"""Which stages of a language model's trace belong to which layer, by the names of the weights that they read."""

from __future__ import annotations

import re

from ree.commit.stages import Kind, Stages

_LAYER = re.compile(r"\.(?:layers|layer|h|blocks)\.([0-9]{1,6})\.")


def of_stages(stages: Stages) -> list[int]:
    """The layer of each stage: the last one whose weights it, or a stage that it reads, has read.

    -1: before the first layer. What follows the last one (a norm, the product that gives logits) counts as part of it.
    """
    named = [_LAYER.search(constant.name) for constant in stages.graph.constants]
    layers: list[int] = []
    for stage in stages:
        found = [-1]
        for port in stage.ports:
            if port.source.kind is Kind.RESULT:
                found.append(layers[port.source.number])
            elif port.source.kind is Kind.CONSTANT and (match := named[port.source.number]):
                found.append(int(match[1]))
        layers.append(max(found))
    return layers
