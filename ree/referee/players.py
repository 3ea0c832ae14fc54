"""What the two parties do: a prover answers a challenge from his tensors, a challenger finds the step that is wrong."""

from __future__ import annotations

from collections.abc import Mapping

import blake3
import numpy as np

from ree.commit.bao import Outboard
from ree.commit.elements import PortElements, in_memory
from ree.commit.trace import Trace
from ree.element import scalar
from ree.errors import GraphError, InputError, LimitError, RunError, VerificationError
from ree.referee.cells import CELL_BYTES, Cells, frame_of
from ree.referee.evaluate import Evaluation
from ree.referee.judge import CELLS, Element
from ree.referee.messages import MESSAGE_BYTES_MAX, Challenge, Proof, Response, digest
from ree.referee.scheme import Role


def challenge(trace: Trace, stage: int, element: int) -> bytes:
    """The challenge of one element of a claim; anyone can make it who has the claim's manifest."""
    manifest = trace.manifest
    if not 0 <= stage < len(manifest.stages):
        raise InputError(f"the program has {len(manifest.stages)} stages, none of number {stage}")
    found = manifest.stages[stage]
    if not 0 <= element < found.type.numel():
        raise InputError(f"the result of stage {stage} has {found.type.numel()} elements, none of number {element}")
    operands = tuple(trace.root_of(port.source) for port in found.ports)
    path = tuple(manifest.tree.path(stage))
    message = Challenge(stage, element, operands, manifest.roots[stage], path, manifest.head).encode()
    if len(message) > MESSAGE_BYTES_MAX:
        raise LimitError(f"a challenge of stage {stage}, which has {len(operands)} operands, is longer than a message")
    return message


class Position:
    """A challenged element, seen with all tensors of the claim at hand.

    VerificationError: the claim's own tensors are not those that it commits to, so nobody can open them.
    """

    def __init__(self, trace: Trace, stage: int, element: int) -> None:
        self.trace, self.number = trace, element
        self.stage = trace.manifest.stages[stage]
        self.element = Element(trace.manifest.stages, stage, element)
        self._memories = {n: self._memory(n) for n in range(len(self.stage.ports))}
        self._outboards: dict[int, Outboard] = {}

    def _memory(self, port: int) -> np.ndarray:
        return self.trace.memory(self.stage.ports[port].source)

    def _outboard(self, port: int, memory: np.ndarray) -> Outboard:
        found = Outboard.of(memory.data)
        if port != CELLS and found.root != self.trace.root_of(self.stage.ports[port].source):
            raise VerificationError(f"operand {port} of stage {self.stage.index} is not the one that is committed to")
        return found

    def evaluate(self, lies: Mapping[int, int] | None = None) -> Evaluation:
        """All cells; lies: cells with other bits, from which those after them follow."""
        ports = zip(self.stage.ports, self.stage.program.inputs, strict=True)
        inputs = [
            PortElements(p.layout, given.dtype, in_memory(self._memories[n], given.dtype))
            for n, (p, given) in enumerate(ports)
        ]
        frame = frame_of(inputs, self.stage.type.extents(), self.stage.params, self.number)
        return Evaluation(Cells(self.element.cells.scheme, frame), lies)

    def stored(self, found: Evaluation) -> np.ndarray:
        """The element as it follows from the operands ([1])."""
        return scalar.store(found.result, self.stage.type.dtype)

    def widened(self, stored: np.ndarray) -> np.ndarray:
        """A stored element as the program's value."""
        return scalar.widen(stored, self.stage.type.dtype)

    def result_cell(self) -> int | None:
        """The cell that is the element, None if it is loaded or constant."""
        (value,) = self.stage.program.results
        cells = self.element.cells
        return cells.address(value, {}) if cells.scheme.role[value] is Role.CELL else None

    def respond(self, message: bytes, cells: np.ndarray) -> bytes:
        """The response with these cells (u64)."""
        result = self.trace.tensors[self.stage.index].transpose(self.stage.order)
        memory = np.ascontiguousarray(result).reshape(-1).view(np.uint8)
        outboard = Outboard.of(memory.data)
        if outboard.root != self.trace.manifest.roots[self.stage.index]:
            raise VerificationError(f"the result of stage {self.stage.index} is not the one that is committed to")
        output = outboard.slice(memory.data, *self.element.output)
        return Response(digest(message), _root(cells), output).encode()

    def wrong_step(self, cells: np.ndarray) -> int | None:
        """The first step that does not follow from the cells before it, if these are the prover's; None if all do.

        A step that gives nothing (an index out of range) follows from nothing.
        """
        try:
            expected = self.evaluate()
        except (RunError, GraphError):  # not even coordinates follow
            return self._searched(cells)
        differing = np.flatnonzero((expected.values != cells) & (expected.order >= 0))
        if len(differing):
            # all that the first one to be computed reads is right, so it does not follow from it
            return min(differing.tolist(), key=lambda address: int(expected.order[address]))
        if expected.failed is not None:
            return expected.failed
        claimed = self.trace.tensors[self.stage.index].reshape(-1)[self.number : self.number + 1]
        return None if self.stored(expected).tobytes() == claimed.tobytes() else self.element.cells.count

    def _searched(self, cells: np.ndarray) -> int | None:
        """The first step that a referee finds wrong, one after the other."""
        own = np.ascontiguousarray(cells).view(np.uint8)
        count = self.element.cells.count

        def read(port: int, start: int, size: int) -> bytes:
            memory = own if port == CELLS else self._memories[port]
            return memory[start : start + size].tobytes()

        self.element.opener = read
        redo = self.element.redo()
        for address in range(count):
            if redo.expected(self.element.cells.step(address)) != int(cells[address]):
                return address
        claimed = self.trace.tensors[self.stage.index].reshape(-1)[self.number : self.number + 1]
        stored = redo.stored()
        return None if stored is not None and stored.tobytes() == claimed.tobytes() else count

    def prove(self, response: bytes, cells: np.ndarray, step: int) -> bytes:
        """The proof that a step is wrong: what the referee will read, opened in that order."""
        openings: list[bytes] = []
        own = np.ascontiguousarray(cells).view(np.uint8)
        self._outboards.pop(CELLS, None)  # of other cells

        def read(port: int, start: int, count: int) -> bytes:
            memory = own if port == CELLS else self._memories[port]
            if port not in self._outboards:
                self._outboards[port] = self._outboard(port, memory)
            openings.append(self._outboards[port].slice(memory.data, start, count))
            return memory[start : start + count].tobytes()

        self.element.opener = read
        redo, found = self.element.redo(), self.element.cells.step(step)
        if step == self.element.cells.count:
            redo.stored()
        else:
            redo.cell(step)
            redo.expected(found)
        return Proof(digest(response), step, tuple(openings)).encode()


def _root(cells: np.ndarray) -> bytes:
    return blake3.blake3(np.ascontiguousarray(cells).tobytes()).digest()


def check_cells(response: Response, count: int, data: bytes) -> None:
    """Hold the cells that come with a response to it; without them the challenger could not find the wrong one."""
    if len(data) != count * CELL_BYTES or blake3.blake3(data).digest() != response.cells:
        raise VerificationError("the cells that came with the response are not those that it commits to")
