"""The reference interpreter: what an element program means, in NumPy.

Slow, readable, the authority that every printer is compared with. All output elements are
evaluated together: a value outside folds has shape [E] (or [1]), inside a fold [K, E], one
more leading axis for each fold around it, and NumPy's broadcasting joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ree.element import scalar
from ree.element.fma import fma32
from ree.element.program import DOT_CHUNK, SUM_LANES, Block, Instr, Program, const_value
from ree.errors import GraphError, InputError, RunError
from ree.types import DType, Type

_CHUNK = DOT_CHUNK  # region elements evaluated at once; also the chunk of `dot` and `sum`
_LANES_AT_ONCE = 1 << 20


class Elements(Protocol):
    """A tensor of which single elements are asked for; may stand for an array in `elements`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def take(self, coordinates: Sequence[np.ndarray], made: np.ndarray) -> np.ndarray:
        """The elements at coordinates that broadcast, in the dtype's NumPy dtype; anything where not `made`."""
        ...


Chain = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # as `fma_chain`


def interpret(
    program: Program, arrays: Sequence[np.ndarray], shape: Sequence[int], params: Sequence[int] = ()
) -> list[np.ndarray]:
    """The results of a program over the index space `shape`.

    arrays: the inputs, in `DType.numpy` dtypes (bf16 as uint16); params: the run-time
    integers. Returns arrays of `shape` in storage dtypes with canonical NaNs. Raises
    RunError where a `bound` fails, InputError where arrays do not fit the program.
    """
    shape = tuple(int(n) for n in shape)
    _check_inputs(program, arrays, shape)
    numel = int(np.prod(shape, dtype=np.int64))
    flat = np.arange(numel, dtype=np.int64)
    return [result.reshape(shape) for result in elements(program, arrays, shape, flat, params)]


def elements(
    program: Program,
    arrays: Sequence[np.ndarray | Elements],
    shape: Sequence[int],
    flat: np.ndarray,
    params: Sequence[int] = (),
    chain: Chain | None = None,
) -> list[np.ndarray]:
    """The results of a program at single elements of the index space, each of the length of `flat`.

    flat: numbers of elements in C order (i64); arrays may be anything that gives elements; chain: computes the FMA
    chains of a chunk faster than `fma_chain` does. Errors as `interpret`.
    """
    step = elements_at_once(program)
    parts: list[list[np.ndarray]] = [[np.zeros(0, d.numpy)] for d in program.dtypes]
    with np.errstate(all="ignore"):
        for start in range(0, len(flat), step):
            found = _evaluate(program, arrays, tuple(shape), params, flat[start : start + step], chain or fma_chain)
            for part, result in zip(parts, found, strict=True):
                part.append(result)
    return [np.concatenate(part) for part in parts]


def elements_at_once(program: Program) -> int:
    """How many elements are evaluated side by side; more are taken in turns."""
    return max(1, _LANES_AT_ONCE // _CHUNK ** _depth(program.body))


def _check_inputs(program: Program, arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> None:
    if len(arrays) != len(program.inputs) or len(shape) != program.rank:
        raise InputError(f"{len(arrays)} arrays over {len(shape)} axes do not fit the program")
    for number, (array, port) in enumerate(zip(arrays, program.inputs, strict=True)):
        if array.dtype != np.dtype(port.dtype.numpy) or array.ndim != port.rank:
            raise InputError(f"input {number} is {array.dtype}[{array.ndim} axes], not {port.dtype.value}[{port.rank}]")


def _depth(body: tuple[Instr, ...]) -> int:
    """Largest number of chunked folds around one instruction."""
    nested = [_depth(i.region.body) + (i.op != "fold:chain") for i in body if i.region is not None]
    return max(nested, default=0)


@dataclass(frozen=True)
class Frame:
    """Where evaluation stands: the lanes in flight and which of them count.

    lanes: shape of a full value here; active: bool array that broadcasts to it. In lanes
    that are not active nothing is loaded and no `bound` fails; their values are not used.
    """

    arrays: Sequence[np.ndarray | Elements]
    shape: tuple[int, ...]
    params: Sequence[int]
    indices: list[np.ndarray]
    lanes: tuple[int, ...]
    active: np.ndarray
    chain: Chain


Values = dict[int, np.ndarray]


def _evaluate(
    program: Program,
    arrays: Sequence[np.ndarray | Elements],
    shape: tuple[int, ...],
    params: Sequence[int],
    flat: np.ndarray,
    chain: Chain,
) -> list[np.ndarray]:
    indices = [np.asarray(i, dtype=np.int64) for i in np.unravel_index(flat, shape)] if shape else []
    frame = Frame(arrays, shape, params, indices, flat.shape, np.ones(1, dtype=bool), chain)
    values: Values = {}
    _run(program, program.body, frame, values)
    results = (np.broadcast_to(values[r], flat.shape) for r in program.results)
    return [scalar.store(value, dtype) for value, dtype in zip(results, program.dtypes, strict=True)]


def _run(program: Program, body: tuple[Instr, ...], frame: Frame, values: Values) -> None:
    for instr in body:
        args = [values[a] for a in instr.args]
        if instr.region is not None:
            results = _fold(program, instr, instr.region, args, frame, values)
            values.update(zip(instr.results, results, strict=True))
        else:
            values[instr.results[0]] = instruction(program, instr, args, frame)


def instruction(program: Program, instr: Instr, args: list[np.ndarray], frame: Frame) -> np.ndarray:
    match instr.op:
        case "index":
            return frame.indices[int(instr.imm[0])]
        case "extent":
            source, axis = int(instr.imm[0]), int(instr.imm[1])
            return _one(frame.shape[axis] if source < 0 else frame.arrays[source].shape[axis], Type.I64)
        case "param":
            return _one(frame.params[int(instr.imm[0])], Type.I64)
        case "const":
            return _one(const_value(int(instr.imm[0]), instr.types[0]), instr.types[0])
        case "load":
            source = int(instr.imm[0])
            return _load(frame, source, args, frame.active, program.inputs[source].dtype)
        case "load_if":
            source = int(instr.imm[0])
            made = args[0] & frame.active
            return np.where(made, _load(frame, source, args[2:], made, program.inputs[source].dtype), args[1])
        case "bound":
            outside = ((args[0] < 0) | (args[0] >= args[1])) & frame.active
            if outside.any():
                raise RunError("an index is outside the axis that it names")
            return args[0]
        case "convert":
            return scalar.convert(args[0], Type(str(instr.imm[0])))
        case "bitcast":
            return scalar.bitcast(args[0], Type(str(instr.imm[0])))
        case "round":
            dtype = DType(str(instr.imm[0]))
            return scalar.widen(scalar.store(args[0], dtype), dtype)
    return scalar.OPERATIONS[instr.op](*args)


def _one(value: int | float | bool, type: Type) -> np.ndarray:
    return np.array([value], dtype=scalar.NUMPY[type])


def _load(frame: Frame, source: int, coordinates: list[np.ndarray], made: np.ndarray, dtype: DType) -> np.ndarray:
    """The elements where `made`; elsewhere 0, and nothing is read."""
    array = frame.arrays[source]
    outside = np.zeros(1, dtype=bool)
    for coordinate, extent in zip(coordinates, array.shape, strict=True):
        outside = outside | (coordinate < 0) | (coordinate >= extent)
    if (outside & made).any():
        raise GraphError(f"a load of input {source} is outside of its shape {array.shape}")
    if 0 in array.shape:
        return np.zeros(1, dtype=scalar.NUMPY[dtype.element])
    if isinstance(array, np.ndarray):
        picked = array[tuple(np.where(made, c, 0) for c in coordinates)] if coordinates else array.reshape(1)
    else:
        picked = array.take(coordinates, made)
    return np.where(made, scalar.widen(picked, dtype), scalar.NUMPY[dtype.element](0))


# -- folds ------------------------------------------------------------------------------


def _fold(
    program: Program, instr: Instr, region: Block, args: list[np.ndarray], frame: Frame, values: Values
) -> list[np.ndarray]:
    count = args[0]
    active = np.broadcast_to(frame.active, frame.lanes)
    longest = int(np.max(np.where(active, count, 0), initial=0))
    if instr.op == "fold:chain":
        return _fold_chain(program, region, args, frame, values, longest)
    kind = instr.op.removeprefix("fold:")
    type = np.dtype(scalar.NUMPY[instr.types[0]])
    if kind == "dot":
        return [_fold_dot(program, region, count, frame, values, longest)]
    if kind == "sum":
        sums = [
            sum_chunk(*_chunk(program, region, count, frame, values, start, longest), type)
            for start in range(0, longest, _CHUNK)
        ]
        return [_sum_again(sums, frame.lanes, type)]
    neutral, join = scalar.JOINS[kind]
    total = np.full(frame.lanes, neutral(instr.types[0]), dtype=type)
    for start in range(0, longest, _CHUNK):
        made, (items,) = _chunk(program, region, count, frame, values, start, longest)
        for k in range(items.shape[0]):
            total = np.where(made[k], join(total, items[k]), total)
    return [total]


def _chunk(
    program: Program, region: Block, count: np.ndarray, frame: Frame, values: Values, start: int, longest: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Which of the elements k = start .. of one chunk exist ([K, lanes]), and what the region gives for them."""
    size = min(_CHUNK, longest - start)
    k = np.arange(start, start + size, dtype=np.int64).reshape((size,) + (1,) * len(frame.lanes))
    lanes = (size, *frame.lanes)
    made = np.broadcast_to(frame.active & (k < count), lanes)
    inner = dict(values)
    inner[region.params[0]] = k
    _run(program, region.body, replace(frame, lanes=lanes, active=made), inner)
    return made, [np.broadcast_to(inner[r], lanes) for r in region.results]


def _fold_dot(
    program: Program, region: Block, count: np.ndarray, frame: Frame, values: Values, longest: int
) -> np.ndarray:
    """FMA chains from +0 over chunks of 256; chunk sums added in ascending order to +0."""
    total = np.zeros(frame.lanes, dtype=np.float32)
    for start in range(0, longest, _CHUNK):
        made, (a, b) = _chunk(program, region, count, frame, values, start, longest)
        total = np.where(made[0], total + frame.chain(a, b, made), total)
    return total


def fma_chain(a: np.ndarray, b: np.ndarray, made: np.ndarray) -> np.ndarray:
    """FMA chains from +0 over the first axis of float32 arrays [K, lanes], where `made`."""
    chain = np.zeros(a.shape[1:], dtype=np.float32)
    for k in range(a.shape[0]):
        chain = np.where(made[k], fma32(a[k], b[k], chain), chain)
    return chain


def sum_chunk(made: np.ndarray, items: list[np.ndarray], type: np.dtype) -> np.ndarray:
    """Sum of one chunk [<= 256, lanes]: 16 lanes from +0, element k into lane k mod 16, then a tree."""
    lanes = np.zeros((SUM_LANES, *made.shape[1:]), dtype=type)
    for start in range(0, made.shape[0], SUM_LANES):
        here, item = made[start : start + SUM_LANES], items[0][start : start + SUM_LANES]
        lanes[: len(here)] = np.where(here, lanes[: len(here)] + item, lanes[: len(here)])
    while len(lanes) > 1:  # lane i + lane i + 8, then 4, 2, 1
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def _sum_again(sums: list[np.ndarray], lanes: tuple[int, ...], type: np.dtype) -> np.ndarray:
    """Chunk sums summed by the same rule until one remains.

    A lane with fewer chunks than its neighbours has +0 for those it lacks. No partial sum
    is ever -0 (it starts at +0), so adding +0 changes nothing, and a sum of one value is
    that value: lanes of unequal length may take the same number of rounds.
    """
    if not sums:
        return np.zeros(lanes, dtype=type)
    while len(sums) > 1:
        groups = [np.stack(sums[i : i + _CHUNK]) for i in range(0, len(sums), _CHUNK)]
        sums = [sum_chunk(np.ones(group.shape, dtype=bool), [group], type) for group in groups]
    return sums[0]


def _fold_chain(
    program: Program, region: Block, args: list[np.ndarray], frame: Frame, values: Values, longest: int
) -> list[np.ndarray]:
    """Carried values, k ascending, strictly in sequence."""
    carried = [np.broadcast_to(start, frame.lanes) for start in args[1:]]
    for k in range(longest):
        made = frame.active & (k < args[0])
        inner = dict(values)
        inner[region.params[0]] = _one(k, Type.I64)
        inner.update(zip(region.params[1:], carried, strict=True))
        _run(program, region.body, replace(frame, active=made), inner)
        carried = [np.where(made, inner[r], old) for r, old in zip(region.results, carried, strict=True)]
    return carried
