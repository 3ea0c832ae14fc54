"""A trace whose products of bytes are checked by Freivalds' method, and all else by computing it again.

Every stage is held against what the trace itself says that it read, so nothing else need be trusted. No product of
matrices is computed: neither of weights, nor a second time.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import blake3
import numpy as np

from ree.commit.local import inconsistencies
from ree.commit.stages import Kind, Port, Stage
from ree.commit.trace import Trace
from ree.errors import InputError, VerificationError
from ree.freivalds.field import SEED_BYTES
from ree.freivalds.product import PackedMatrix, check_product
from ree.plan.schedules import packed_matrix
from ree.plan.weights import strided
from ree.types import DType

CONTEXT = "ree v1 freivalds trace"


@dataclass(frozen=True, slots=True)
class Checked:
    """What was checked: exact products by random projections, other stages by computing them again."""

    products: int
    stages: int
    seconds: float


def check_trace(trace: Trace, secret: bytes | None = None) -> Checked:
    """VerificationError, naming the first stage and element, unless every stage follows from what it read.

    trace: its tensors are disclosed; each is held to its root as it is read. secret: 32 bytes that whoever made the
    trace could not know (None: drawn now); a wrong product passes with probability 2^-121. InputError: the program has
    no product of bytes, so nothing would be saved.
    """
    start = time.perf_counter()
    judge = _Judge(trace, os.urandom(SEED_BYTES) if secret is None else secret)
    if not any(judge.is_product(stage) for stage in trace.manifest.stages):
        raise InputError("the program has no int8 products: Freivalds' check is for models in int8")
    if wrong := inconsistencies(trace, judge=judge):
        number, element = wrong[0]
        raise VerificationError(f"stage {number} of the trace does not follow from what it read: element {element}")
    return Checked(judge.products, len(trace.manifest.stages), time.perf_counter() - start)


class _Judge:
    """Says of exact products whether they are right."""

    def __init__(self, trace: Trace, secret: bytes) -> None:
        self.trace = trace
        self.products = 0
        self._key = blake3.blake3(trace.root + secret, derive_key_context=CONTEXT).digest()

    def is_product(self, stage: Stage) -> bool:
        node = self.trace.manifest.stages.graph.node_of(stage.value)
        kinds = sorted(port.source.kind for port in stage.ports)
        if node is None or node.op != "matmul" or node.attrs.get("out") != DType.I32 or stage.type.rank != 2:
            return False
        return len(kinds) == 2 and Kind.CONSTANT in kinds

    def __call__(self, stage: Stage) -> bool | None:
        if not self.is_product(stage):
            return None
        rows, matrix = sorted(stage.ports, key=lambda port: port.source.kind == Kind.CONSTANT)
        seed = blake3.blake3(stage.index.to_bytes(8, "little"), key=self._key).digest()
        try:
            check_product(self._array(rows), self._packed(matrix), self.trace.tensors[stage.index], seed)
        except VerificationError:
            return False  # and the stage is computed, which finds the element
        self.products += 1
        return True

    def _array(self, port: Port) -> np.ndarray:
        return strided(self.trace.memory(port.source).view(np.int8), port.layout)

    def _packed(self, port: Port) -> PackedMatrix:
        k, n = port.layout.shape
        number, _ = packed_matrix(self.trace.program.weights, port.source.number, DType.I8, port.layout)
        return PackedMatrix(self.trace.program.weights.packed_array(number), k, n)
