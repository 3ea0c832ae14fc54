"""The engine: rows of many sequences through a language model, one step at a time, over a cache of keys and values.

A row is a token at a position of a sequence. What a step gives for a row depends on that sequence's rows alone, not on
how they were cut into steps nor on what else is in a step (docs/SPEC.md, "Language models").
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ree import dims
from ree.device.backend import StateMemory
from ree.errors import InputError, LimitError
from ree.limits import SEQUENCES_MAX, STEP_ROWS_MAX
from ree.lm.rows import POSITIONS, ROWS, TOKENS
from ree.plan.stream import CHUNK, Layer, Stream
from ree.program import Program

_STEPS_PER_DOUBLING = 8  # numbers of rows that are planned for
_FLOAT_BYTES = 4
_PLANS_MAX = 64  # that are kept; a plan is made in a fraction of a second


class Row(NamedTuple):
    """A token to be fed; wants: its logits are asked for."""

    token: int
    position: int
    slot: int
    wants: bool


class Engine:
    """Runs a language model's program over `slots` sequences of up to `context` tokens.

    One thread at a time; `step` releases the GIL while it computes. Plans are made for a few numbers of rows and filled
    up with padding, so that no length is planned for itself.
    """

    def __init__(self, program: Program, context: int, slots: int = 1, rows_max: int = STEP_ROWS_MAX) -> None:
        """LimitError: more slots, positions or rows than can be, or no memory for the cache."""
        if not 1 <= slots <= SEQUENCES_MAX:
            raise LimitError(f"an engine holds 1 to {SEQUENCES_MAX} sequences, not {slots}")
        if not 1 <= rows_max <= STEP_ROWS_MAX:
            raise LimitError(f"a step has 1 to {STEP_ROWS_MAX} rows, not {rows_max}")
        vocab = program.graph.type_of(program.graph.outputs[0]).shape[2]
        assert isinstance(vocab, int)
        self.program, self.context, self.vocab_size = program, context, vocab
        self.slots, self.rows_max = slots, rows_max
        self._lengths: list[int | None] = [None] * slots  # tokens of each sequence; None: the slot is free
        self._plans: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._arena = program.arena()  # all plans', since they take turns
        self._sizes = _sizes(rows_max)
        self._lock = threading.Lock()
        self._held_context = -(-context // CHUNK) * CHUNK
        self._plans[1, 1], layers = self._plan(1, 1)
        self._cache = _Cache(program, layers, slots, self._held_context)

    # -- sequences --------------------------------------------------------------------------
    def open(self) -> int:
        """A free slot for a new sequence; LimitError if there is none."""
        with self._lock:
            for slot, length in enumerate(self._lengths):
                if length is None:
                    self._lengths[slot] = 0
                    self._cache.clear(slot)
                    return slot
        raise LimitError(f"all {self.slots} slots are taken")

    def close(self, slot: int) -> None:
        """Give a slot back."""
        with self._lock:
            self._length(slot)
            self._lengths[slot] = None

    def length(self, slot: int) -> int:
        """How many tokens of a slot's sequence were fed."""
        with self._lock:
            return self._length(slot)

    def _length(self, slot: int) -> int:
        length = self._lengths[slot] if 0 <= slot < self.slots else None
        if length is None:
            raise InputError(f"slot {slot} is not open")
        return length

    # -- steps ------------------------------------------------------------------------------
    def step(self, rows: Sequence[Row]) -> np.ndarray:
        """Feed rows; logits float32 [rows that want them, vocabulary], in the rows' order.

        Rows of a slot lie together, their positions go on where its sequence ends. InputError: they do not, or a token
        is none, or there are more than `rows_max`; nothing is fed then.
        """
        with self._lock:
            lengths = self._checked(rows)
            wanted = [n for n, row in enumerate(rows) if row.wants]
            logits = self._run(rows, wanted)
            for slot, length in lengths.items():
                self._lengths[slot] = length
        return logits

    def _checked(self, rows: Sequence[Row]) -> dict[int, int]:
        """The lengths of the sequences once these rows are fed."""
        if not 1 <= len(rows) <= self.rows_max:
            raise InputError(f"a step has 1 to {self.rows_max} rows, not {len(rows)}")
        lengths: dict[int, int] = {}
        last = -1
        for row in rows:
            if row.slot != last and row.slot in lengths:
                raise InputError(f"rows of slot {row.slot} do not lie together")
            last = row.slot
            length = lengths[row.slot] if row.slot in lengths else self._length(row.slot)
            if row.position != length:
                raise InputError(f"slot {row.slot} goes on at position {length}, not {row.position}")
            if length >= self.context:
                raise InputError(f"slot {row.slot}: the sequence is longer than the context of {self.context} tokens")
            if not 0 <= row.token < self.vocab_size:
                raise InputError(f"token {row.token} is not in the vocabulary of {self.vocab_size}")
            lengths[row.slot] = length + 1
        return lengths

    def _run(self, rows: Sequence[Row], wanted: Sequence[int]) -> np.ndarray:
        count, outputs = self._sizes[len(rows)], self._sizes[len(wanted)]
        tokens, positions, slots = np.zeros((3, count), np.int64)
        slots[len(rows) :] = -1  # padding
        table = np.array([(r.token, r.position, r.slot) for r in rows], np.int64)
        tokens[: len(rows)], positions[: len(rows)], slots[: len(rows)] = table.T
        chosen = np.zeros(outputs, np.int64)
        chosen[: len(wanted)] = wanted
        logits = np.empty((outputs, self.vocab_size), np.float32)
        inputs = [array.ctypes.data for array in (tokens, positions, chosen)]
        state = [slots.ctypes.data, *self._cache.addresses]
        self._kept_plan(count, outputs).run(inputs, [logits.ctypes.data], state)
        return logits[: len(wanted)]

    def _kept_plan(self, count: int, outputs: int) -> Any:
        key = (count, outputs)
        if key not in self._plans:
            self._plans[key] = self._plan(count, outputs)[0]
            if len(self._plans) > _PLANS_MAX:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _plan(self, count: int, outputs: int) -> tuple[Any, list[Layer]]:
        graph = self.program.graph
        sizes = {}
        for number, axis, size in ((TOKENS, 1, count), (ROWS, 0, outputs)):
            sizes.update(dict.fromkeys(dims.symbols(graph.inputs[number].type.shape[axis]), size))
        stream = Stream(POSITIONS, self._held_context)
        plan = self.program.streamed_plan(tuple(sizes[name] for name in graph.symbols), stream)
        plan.share(self._arena)
        return plan, stream.layers


def _sizes(rows_max: int) -> list[int]:
    """For each number of rows the one that is planned for: at most an eighth more, and few different ones."""
    steps = {0, rows_max}
    steps |= {n << k for n in range(1, _STEPS_PER_DOUBLING * 2) for k in range(rows_max.bit_length())}
    planned = sorted(n for n in steps if n <= rows_max)
    return [planned[bisect.bisect_left(planned, n)] for n in range(rows_max + 1)]


class _Cache:
    """Memory of keys, values and flags of all layers, where the program runs."""

    def __init__(self, program: Program, layers: Sequence[Layer], slots: int, context: int) -> None:
        self._flags: list[tuple[StateMemory, int]] = []  # and bytes of a slot
        self._memories: list[StateMemory] = []
        try:
            for layer in layers:
                for floats in (layer.key_floats, layer.value_floats):
                    self._keep(program, slots * layer.k_heads * floats * _FLOAT_BYTES)
                flags = layer.k_heads * (context // CHUNK)
                self._flags.append((self._keep(program, slots * flags), flags))
        except (MemoryError, LimitError):
            raise LimitError(f"no memory for a cache of {slots} sequences of {context} tokens") from None

    def _keep(self, program: Program, n_bytes: int) -> StateMemory:
        memory = program.state_memory(n_bytes)
        self._memories.append(memory)
        return memory

    @property
    def addresses(self) -> list[int]:
        return [memory.address for memory in self._memories]

    def clear(self, slot: int) -> None:
        """Forget what a slot's values were like; the values themselves are written before they are read."""
        for memory, n_bytes in self._flags:
            memory.clear(slot * n_bytes, n_bytes)
