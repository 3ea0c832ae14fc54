"""Evaluating samples: the same code for whoever proves and whoever checks, over tensors of different kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import ree_kernels.cpu as cpu
from ree.commit.elements import PortElements
from ree.commit.stages import Kind, Port, Source, Stage, Stages
from ree.element import scalar
from ree.element.interpret import elements, elements_at_once
from ree.errors import GraphError, RunError, VerificationError
from ree.spot.draw import Kinship, Sample, kinship
from ree.spot.openings import Side, Tensor, places_in
from ree.types import DType

TensorOf = Callable[[Source], Tensor]


def touch(stages: Stages, samples: Sequence[Sample], tensor_of: TensorOf) -> None:
    """Compute every sample, so that its tensors note what it reads, and the sample itself."""
    for _ in _evaluated(stages, samples, tensor_of):
        pass


def compare(stages: Stages, samples: Sequence[Sample], tensor_of: TensorOf) -> None:
    """Compute every sample from what its stage read; VerificationError at the first that is not as it is stored."""
    for stage, number, stored, computed in differences(stages, samples, tensor_of):
        extents = stage.type.extents()
        place = [int(i) for i in np.unravel_index(number, extents)] if extents else []
        raise VerificationError(
            f"element {place} of stage {stage.index} is {stored}, from what it read follows {computed} "
            f"(dispute it at {stage.index}:{number})"
        )


def differences(
    stages: Stages, samples: Sequence[Sample], tensor_of: TensorOf
) -> Iterator[tuple[Stage, int, Any, Any]]:
    """(stage, element, its value as stored, as computed) of the first wrong sample of each stage."""
    for stage, numbers, computed, stored in _evaluated(stages, samples, tensor_of):
        bits = f"u{stored.dtype.itemsize}"
        differing = np.flatnonzero(computed.view(bits) != stored.view(bits))
        if len(differing):
            first = int(differing[0])
            values = (scalar.widen(x[first : first + 1], stage.type.dtype)[0] for x in (stored, computed))
            yield stage, int(numbers[first]), *values


def _evaluated(
    stages: Stages, samples: Sequence[Sample], tensor_of: TensorOf
) -> Iterator[tuple[Stage, np.ndarray, np.ndarray, np.ndarray]]:
    """For each stage with samples: their numbers, their values as computed, and as stored.

    Stages that compute alike are evaluated together, since single elements cost hardly more than none.
    """
    by_stage: dict[int, set[int]] = {}
    for number, element in samples:
        by_stage.setdefault(number, set()).add(element)
    kin: dict[Kinship, list[int]] = {}
    for number in sorted(by_stage):
        kin.setdefault(kinship(stages[number]), []).append(number)
    for numbers in kin.values():
        chosen = [np.array(sorted(by_stage[number]), np.int64) for number in numbers]
        computed = _together([stages[number] for number in numbers], chosen, tensor_of)
        for number, elements_of, found in zip(numbers, chosen, computed, strict=True):
            stage, result = stages[number], tensor_of(Source(Kind.RESULT, number))
            places = places_in(stage.type.extents(), stage.order, elements_of)
            yield stage, elements_of, found, result.at(places)


def _together(stages: Sequence[Stage], chosen: Sequence[np.ndarray], tensor_of: TensorOf) -> list[np.ndarray]:
    """The values of elements of stages of one kind, computed side by side."""
    first, ends = stages[0], np.cumsum([len(numbers) for numbers in chosen])
    numbers, step = np.concatenate(chosen), elements_at_once(first.program)
    ports = [
        [_port(s.ports[n], given.dtype, tensor_of) for s in stages] for n, given in enumerate(first.program.inputs)
    ]
    found = []
    for start in range(0, len(numbers), step):
        stop = min(start + step, len(numbers))
        sides = [Side(own, np.clip(ends, start, stop) - start) for own in ports]
        try:
            with cpu.default_fp_state():
                found += elements(first.program, sides, first.type.extents(), numbers[start:stop], first.params, _chain)
        except (RunError, GraphError) as error:
            raise VerificationError(
                f"stage {first.index}, or one like it, reads what no run can read: {error}"
            ) from None
    return np.split(np.concatenate(found), ends[:-1])


def _port(port: Port, dtype: DType, tensor_of: TensorOf) -> PortElements:
    # a tensor is asked for once an element of it is: a stage may read nothing of a port
    return PortElements(port.layout, dtype, lambda places: tensor_of(port.source).at(places))


def _chain(a: np.ndarray, b: np.ndarray, made: np.ndarray) -> np.ndarray:
    """FMA chains of a chunk by the kernel; every lane has its first elements."""
    lanes = a.shape[1:]
    counts = made.sum(axis=0, dtype=np.int64).reshape(-1)
    left, right = (np.ascontiguousarray(x).reshape(len(x), -1) for x in (a, b))
    found: np.ndarray = cpu.dot_lanes(left, right, counts).reshape(lanes)
    return found
