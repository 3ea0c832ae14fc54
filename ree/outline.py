"""A program without a plan: its graph and what follows from that alone, such as ids and stages. No weight is read."""

from __future__ import annotations

import os
import reprlib
import struct
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import blake3

from ree import file
from ree.errors import FormatError, VerificationError
from ree.graph import Graph, bind
from ree.limits import BINDINGS_CACHED_MAX
from ree.structure import Structure

if TYPE_CHECKING:
    from ree.commit.stages import Stages

ID_CONTEXT = "ree v1 program"


class Outline:
    """A graph with the structures of its inputs and outputs; whoever checks a run needs no more of a program."""

    def __init__(self, graph: Graph, inputs: Structure, outputs: Structure, trusted: bool = True) -> None:
        """trusted: the graph comes from our own compiler, not from a file."""
        self.graph = graph
        self.input_structure = inputs
        self.output_structure = outputs
        self._trusted = trusted
        self._stages: dict[tuple[int, ...], Stages] = {}

    def check_weights(self) -> None:
        """InputError if weights that it shares with a model have changed; an outline has none."""

    @property
    def input_names(self) -> list[str]:
        return [i.name for i in self.graph.inputs]

    @cached_property
    def weight_roots(self) -> list[bytes]:
        """The data root of each constant, in order."""
        return [file.data_root(constant) for constant in self.graph.constants]

    @cached_property
    def weight_ids(self) -> tuple[bytes, ...]:
        """The tensor id of each constant, in order."""
        from ree.commit.tensor import tensor_id

        both = zip(self.graph.constants, self.weight_roots, strict=True)
        return tuple(tensor_id(c.type.dtype, c.type.extents(), root) for c, root in both)

    @cached_property
    def description(self) -> bytes:
        """The program as canonical JSON."""
        described = file.describe(self.graph, self.input_structure, self.output_structure, self.weight_roots)
        return file.canonical(described)

    @cached_property
    def program_id(self) -> bytes:
        """BLAKE3 id that binds graph, operator definitions, attributes, shapes and weights."""
        hasher = blake3.blake3(derive_key_context=ID_CONTEXT)
        for part in (self.description, *self._operator_digests()):
            hasher.update(len(part).to_bytes(8, "little") + part)
        return hasher.digest()

    def _operator_digests(self) -> list[bytes]:
        """Digests of the nodes' element programs, dynamic dimensions at their smallest value above 1."""
        from ree.element.encode import digest
        from ree.ops.spec import operator

        graph = self.graph
        if graph.symbols:
            graph = bind(graph, {name: max(low, min(2, high)) for name, (low, high) in graph.symbols.items()})
        return [
            digest(operator(n.op).program([graph.type_of(v) for v in n.inputs], n.type, n.attrs)) for n in graph.nodes
        ]

    def static(self, sizes: tuple[int, ...]) -> Graph:
        """The graph at these values of its symbols (in their order)."""
        return bind(self.graph, dict(zip(self.graph.symbols, sizes, strict=True))) if sizes else self.graph

    def checked_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Values of the program's symbols that come from outside; VerificationError if they are none."""
        bounds = self.graph.symbols.values()
        if len(sizes) != len(bounds) or any(not low <= n <= high for n, (low, high) in zip(sizes, bounds, strict=True)):
            raise VerificationError(f"the program's dynamic dimensions cannot be {reprlib.repr(list(sizes))}")
        return tuple(sizes)

    def stages(self, sizes: tuple[int, ...] = ()) -> Stages:
        """What a trace commits to, for these values of the program's symbols (in their order)."""
        from ree.commit.stages import Stages

        if sizes not in self._stages:
            if len(self._stages) >= BINDINGS_CACHED_MAX:
                self._stages.clear()
            self._stages[sizes] = self.guarded(lambda: Stages(self.static(sizes)))
        return self._stages[sizes]

    def guarded(self, make: Any) -> Any:
        """What `make` gives; FormatError where the graph, which comes from a file, turns out to be malformed."""
        try:
            return make()
        except (*file.MALFORMED, struct.error) as error:  # struct: a number that no commitment can hold
            if self._trusted:
                raise
            raise FormatError(f"the program is malformed ({type(error).__name__}: {error})") from None


def load(path: str | os.PathLike[str]) -> Outline:
    """The outline of a `.ree` file, whose weights are not read. FormatError if it is none or was altered."""
    return Outline(*file.load(path), trusted=False)


def parse(description: bytes) -> Outline:
    """The outline that canonical JSON says, with the data roots of its weights. FormatError if it says none."""
    return Outline(*file.parse(description), trusted=False)
