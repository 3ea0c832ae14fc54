"""The referee: holds a challenge against a claim's root, a response against the challenge, and redoes one step.

All that he knows beforehand is the program (its stages) and the root of the claim. What he redoes is at most 256
FMAs or one instruction, on at most 64 KiB.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ree.commit.bao import verify_slice
from ree.commit.elements import PortElements
from ree.commit.merkle import root_of_path
from ree.commit.stages import Source, Stage, Stages
from ree.commit.tensor import tensor_id
from ree.commit.trace import leaf_of
from ree.errors import VerificationError
from ree.referee.cells import CELL_BYTES, Cells, Kind, Step, frame_of
from ree.referee.messages import Challenge, Proof, Response, digest
from ree.referee.ports import Range, by_range
from ree.referee.redo import Redo, Work
from ree.referee.scheme import Scheme

Opener = Callable[[int, int, int], bytes]  # (port, or CELLS; first byte; number of bytes) -> those bytes

CELLS = -1


class Element:
    """One element of one stage, as both parties and the referee see it; `opener` gives bytes of operands and cells."""

    def __init__(self, stages: Stages, stage: int, element: int, opener: Opener | None = None) -> None:
        self._stages = stages
        self.stage: Stage = stages[stage]
        self.number = element
        self.opener = opener or _nothing
        scheme = Scheme(self.stage.program, tuple(port.layout for port in self.stage.ports))
        ports = zip(self.stage.ports, self.stage.program.inputs, strict=True)
        inputs = [
            PortElements(port.layout, given.dtype, by_range(self._range(n), given.dtype))
            for n, (port, given) in enumerate(ports)
        ]
        self.cells = Cells(scheme, frame_of(inputs, self.stage.type.extents(), self.stage.params, element))

    def _range(self, number: int) -> Range:
        return lambda start, count: self.opener(number, start, count)

    @cached_property
    def output(self) -> tuple[int, int]:
        """The element's bytes in the result: first byte, number."""
        stage, size = self.stage, self.stage.type.dtype.size_bytes
        place = np.unravel_index(self.number, stage.type.extents()) if stage.type.rank else ()
        flat = 0
        for axis in stage.order:
            flat = flat * stage.type.extents()[axis] + int(place[axis])
        return flat * size, size

    def size_bytes(self, port: int) -> int:
        """Of the tensor behind a port, or of all cells."""
        if port == CELLS:
            return self.cells.count * CELL_BYTES
        dtype, shape, _ = self._stages.type_of(self.stage.ports[port].source)
        return dtype.size_bytes * math.prod(shape)

    def redo(self) -> Redo:
        return Redo(self.cells, self._range(CELLS))


@dataclass(frozen=True)
class Judgement:
    """Whether the step that was named is wrong, what it gives, and what the referee did to know."""

    is_wrong: bool
    step: Step
    claimed: bytes
    expected: bytes | None
    work: Work


class Referee:
    """Judges one claim: a program's stages, its id, and the root of a trace.

    Nothing else is trusted; every message is checked against these, or against the message before.
    """

    def __init__(self, program_id: bytes, stages: Stages, trace_root: bytes) -> None:
        self.program_id, self.stages, self.trace_root = program_id, stages, trace_root

    def accept_challenge(self, message: bytes) -> Challenge:
        """The challenge, if it opens the claim's root; else VerificationError.

        LimitError, UnsupportedError: the element's steps cannot be laid out.
        """
        found = Challenge.decode(message)
        if found.head.program_id != self.program_id or found.head.stages != len(self.stages):
            raise VerificationError("the challenge is about another program")
        if not found.stage < len(self.stages):
            raise VerificationError(f"the program has {len(self.stages)} stages, none of number {found.stage}")
        stage = self.stages[found.stage]
        if not found.element < stage.type.numel():
            raise VerificationError(f"stage {found.stage} has no element {found.element}")
        if len(found.operands) != len(stage.ports) or len(found.result) != len(self.program_id):
            raise VerificationError("the challenge does not open the stage's operands and result")
        read = [self._tensor_id(port.source, root) for port, root in zip(stage.ports, found.operands, strict=True)]
        leaf = leaf_of(stage.index, stage.leaf, read, stage.tensor_id(found.result))
        if found.head.root(root_of_path(leaf, found.stage, len(self.stages), found.path)) != self.trace_root:
            raise VerificationError("the challenge does not open the claim's trace root")
        Element(self.stages, found.stage, found.element)  # else nobody could answer
        return found

    def _tensor_id(self, source: Source, root: bytes) -> bytes:
        dtype, shape, order = self.stages.type_of(source)
        return tensor_id(dtype, shape, root, order)

    def accept_response(self, challenge: bytes, message: bytes) -> Response:
        """The response, if it answers this challenge and opens its element; else VerificationError."""
        found = Response.decode(message)
        if found.challenge != digest(challenge):
            raise VerificationError("the response is to another challenge")
        self._output(Challenge.decode(challenge), found)
        return found

    def _output(self, challenge: Challenge, response: Response) -> bytes:
        element = Element(self.stages, challenge.stage, challenge.element)
        start, count = element.output
        return verify_slice(challenge.result, response.output, start, count, element.stage.type.size_bytes())

    def judge(self, challenge: bytes, response: bytes, message: bytes) -> Judgement:
        """Redo the step that a proof names; VerificationError if it does not open exactly what that needs."""
        asked, answer, found = Challenge.decode(challenge), Response.decode(response), Proof.decode(message)
        if found.response != digest(response):
            raise VerificationError("the proof is about another response")
        openings = list(found.openings)
        element = Element(self.stages, asked.stage, asked.element)
        element.opener = self._opener(element, asked, answer, openings)
        if found.step > element.cells.count:
            raise VerificationError(f"the element has {element.cells.count} steps before the last, not {found.step}")
        judgement = self._redo(element, found.step, self._output(asked, answer))
        if openings:
            raise VerificationError(f"the proof opens {len(openings)} ranges that nobody asks for")
        return judgement

    def _redo(self, element: Element, number: int, output: bytes) -> Judgement:
        redo, step = element.redo(), element.cells.step(number)
        if step.kind is Kind.STORE:
            stored = redo.stored()
            claimed, expected = output, None if stored is None else stored.tobytes()
        else:
            claimed = redo.cell(number).to_bytes(CELL_BYTES, "little")
            bits = redo.expected(step)
            expected = None if bits is None else bits.to_bytes(CELL_BYTES, "little")
        return Judgement(claimed != expected, step, claimed, expected, redo.work)

    def _opener(self, element: Element, challenge: Challenge, response: Response, openings: list[bytes]) -> Opener:
        def read(port: int, start: int, count: int) -> bytes:
            if not openings:
                raise VerificationError("the proof does not open all that its step reads")
            root = response.cells if port == CELLS else challenge.operands[port]
            return verify_slice(root, openings.pop(0), start, count, element.size_bytes(port))

        return read


def _nothing(port: int, start: int, count: int) -> bytes:
    raise AssertionError("nothing is read to find an element")
