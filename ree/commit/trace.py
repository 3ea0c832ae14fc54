"""Traces: a commitment to every result of a run.

A leaf binds one stage, the tensors that it read and the one that it gave; the root binds all leaves, the program,
the sizes of its dynamic dimensions, and the ids of inputs and outputs. So a trace is right if each of its
stages is, and a wrong output means that one stage, of the prover's own trace, does not follow from what it read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import blake3
import numpy as np

from ree.commit.merkle import Tree
from ree.commit.stages import Kind, Source, Stages
from ree.commit.tensor import tensor_id
from ree.errors import VerificationError
from ree.file import digest

if TYPE_CHECKING:
    from ree.commit.keys import Signer
    from ree.program import Program

VERSION = 1
LEAF_CONTEXT = "ree v1 trace leaf"
ROOT_CONTEXT = "ree v1 trace"
LIST_CONTEXT = "ree v1 tensor list"
NOTHING = blake3.blake3(b"").digest()


def list_id(ids: Sequence[bytes]) -> bytes:
    """One digest for several tensors in order: a program's inputs, outputs or weights."""
    return blake3.blake3(struct.pack("<I", len(ids)) + b"".join(ids), derive_key_context=LIST_CONTEXT).digest()


def leaf_of(index: int, stage_leaf: bytes, read: Sequence[bytes], result: bytes) -> bytes:
    """The leaf of a stage in a trace; read: ids of the tensors behind its ports, result: of the one that it gave."""
    head = struct.pack("<Q", index) + stage_leaf + struct.pack("<I", len(read))
    return blake3.blake3(head + b"".join(read) + result, derive_key_context=LEAF_CONTEXT).digest()


@dataclass(frozen=True)
class Head:
    """What a trace's root binds besides its leaves; inputs, weights, outputs: list ids."""

    program_id: bytes
    sizes: tuple[int, ...]
    inputs: bytes
    weights: bytes
    outputs: bytes
    stages: int

    def root(self, tree_root: bytes) -> bytes:
        """The trace root (32 bytes) over leaves whose tree has this root."""
        parts = [bytes([VERSION]), self.program_id, struct.pack(f"<I{len(self.sizes)}Q", len(self.sizes), *self.sizes)]
        parts += [self.inputs, self.weights, self.outputs, struct.pack("<Q", self.stages), tree_root]
        return blake3.blake3(b"".join(parts), derive_key_context=ROOT_CONTEXT).digest()


@dataclass(frozen=True)
class Manifest:
    """Everything that a trace's root binds: small, and enough to name what differs between two traces.

    sizes: values of the program's dynamic dimensions in order; inputs, weights: tensor ids; roots: the data root of
    each stage's result.
    """

    program_id: bytes
    sizes: tuple[int, ...]
    stages: Stages
    inputs: tuple[bytes, ...]
    weights: tuple[bytes, ...]
    roots: tuple[bytes, ...]

    def __post_init__(self) -> None:
        """VerificationError: a result of no bytes has another root than theirs, which nobody could dispute."""
        for number in self.stages.empty:
            if number < len(self.roots) and self.roots[number] != NOTHING:
                raise VerificationError(f"stage {number} has no elements, and not the data root of nothing")

    @cached_property
    def results(self) -> tuple[bytes, ...]:
        """The tensor id of each stage's result."""
        return tuple(stage.tensor_id(root) for stage, root in zip(self.stages, self.roots, strict=True))

    def id_of(self, source: Source) -> bytes:
        """The id of a tensor."""
        return {Kind.INPUT: self.inputs, Kind.CONSTANT: self.weights, Kind.RESULT: self.results}[source.kind][
            source.number
        ]

    @cached_property
    def outputs(self) -> tuple[bytes, ...]:
        return tuple(self.id_of(source) for source in self.stages.outputs)

    def leaf(self, index: int) -> bytes:
        """The leaf of one stage."""
        stage = self.stages[index]
        return leaf_of(index, stage.leaf, [self.id_of(port.source) for port in stage.ports], self.results[index])

    @cached_property
    def tree(self) -> Tree:
        return Tree([self.leaf(index) for index in range(len(self.stages))])

    @cached_property
    def root(self) -> bytes:
        """The trace root (32 bytes)."""
        return self.head.root(self.tree.root)

    @cached_property
    def head(self) -> Head:
        inputs, weights, outputs = (list_id(ids) for ids in (self.inputs, self.weights, self.outputs))
        return Head(self.program_id, self.sizes, inputs, weights, outputs, len(self.stages))


class Trace:
    """The commitment to one run, and access to the tensors behind it.

    root: 32 bytes; inputs: the run's inputs; tensors: the result of every stage, which were kept, are computed
    again when first asked for, or lie in a file, from which each is read when it is asked for.
    """

    def __init__(
        self,
        manifest: Manifest,
        program: Program,
        inputs: Sequence[np.ndarray],
        results: Callable[[], Sequence[np.ndarray]],
    ) -> None:
        """results: gives the stages' results as arrays of the logical shape, which a sequence may make on access."""
        self.manifest = manifest
        self.program = program
        self.inputs = tuple(inputs) if isinstance(inputs, list) else inputs
        self.input_salt: bytes | None = None
        self._results = results

    def save(self, path: str | os.PathLike[str], tensors: bool = True) -> None:
        """Write the trace to a file, whole or not at all (docs/SPEC.md, "Trace files").

        tensors: with all results, which else are computed again when they are first asked for. FormatError: it
        cannot be written.
        """
        from ree.commit.trace_file import save

        save(self, path, tensors)

    @staticmethod
    def load(path: str | os.PathLike[str], program: Program) -> Trace:
        """Read a trace of this program. FormatError: it is none; VerificationError: it does not hold together."""
        from ree.commit.trace_file import load

        return load(path, program)

    @property
    def root(self) -> bytes:
        return self.manifest.root

    @property
    def program_id(self) -> bytes:
        return self.manifest.program_id

    def receipt(self, signer: Signer, salt: bytes | None = None, nonce: bytes | None = None) -> bytes:
        """A signed receipt of the run (DSSE envelope over an in-toto statement, JSON).

        salt: 32 bytes that open its commitment to the input, drawn if None and held as `input_salt`;
        nonce: 32 bytes of whoever asked for the run.
        """
        from ree.commit.rerun import sign

        envelope, self.input_salt = sign(self, signer, self.input_salt if salt is None else salt, nonce)
        return envelope

    def prove(self, samples: int = 459, seed: bytes | None = None, self_contained: bool = True) -> bytes:
        """A spot-check proof: that elements of the run, drawn at random, follow from what they read.

        seed: 32 bytes of whoever will check it, chosen after he saw the receipt; self_contained: with the program (no
        weights), so that `ree.check` needs no file.
        """
        from ree.spot.prove import prove

        self.program.check_weights()
        return prove(self, samples, seed, self_contained)

    @cached_property
    def tensors(self) -> Mapping[int, np.ndarray]:
        """Stage number -> its result, read-only (bf16 as uint16)."""
        return _Tensors(self._results())

    def memory(self, source: Source) -> np.ndarray:
        """The bytes of a tensor as they are committed to (uint8, one axis, read-only)."""
        if source.kind is Kind.INPUT:
            array = self.inputs[source.number]
        elif source.kind is Kind.CONSTANT:
            array = self.program.graph.constants[source.number].array()
        else:
            array = self.tensors[source.number].transpose(self.manifest.stages[source.number].order)
        found = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        found.flags.writeable = False
        return found

    def root_of(self, source: Source) -> bytes:
        """The data root of a tensor."""
        if source.kind is Kind.INPUT:
            return digest(self.inputs[source.number])
        if source.kind is Kind.CONSTANT:
            return self.program.weight_roots[source.number]
        return self.manifest.roots[source.number]


class _Tensors(Mapping[int, np.ndarray]):
    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays

    def __getitem__(self, index: int) -> np.ndarray:
        array = self._arrays[index]  # which may read it from a file
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._arrays)))

    def __len__(self) -> int:
        return len(self._arrays)


def tensor_ids(stages: Stages, roots: Sequence[bytes], kind: Kind) -> tuple[bytes, ...]:
    """Tensor ids of all inputs, or of all constants, from their data roots (both lie in C order)."""
    found = []
    for number, root in enumerate(roots):
        dtype, shape, _ = stages.type_of(Source(kind, number))
        found.append(tensor_id(dtype, shape, root))
    return tuple(found)
