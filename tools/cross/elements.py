"""Element programs that are proved one by one: elementary functions, instructions, conversions, folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

import ree_kernels.cpu as cpu
from ree.element import functions
from ree.element.program import INSTRUCTIONS, Builder, Port, Program, Value
from ree.graph import Graph
from ree.plan.args import Args
from ree.plan.fuse import Kernel
from ree.plan.layout import contiguous
from ree.plan.plan import Plan
from ree.plan.step import Buffer, Slot, Step
from ree.plan.weights import Weights
from ree.types import DType, TensorType, Type
from tools.cross.job import Case

STORED = {
    Type.BOOL: DType.BOOL, Type.I32: DType.I32, Type.I64: DType.I64, Type.U32: DType.U32,
    Type.U64: DType.U64, Type.F32: DType.F32, Type.F64: DType.F64,
}  # fmt: skip
FOLD_LENGTHS = (0, 1, 15, 16, 17, 255, 256, 257, 4097)
TWO = ("pow", "atan2", "logaddexp", "xlogy")
QUICK_FUNCTIONS = ("exp", "log", "tanh", "erf", "gelu", "sigmoid", "rsqrt", "atan", "cos", "pow")
Make = Callable[..., list[Value]]


class Sheet:
    """A plan made of element programs alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[Step] = []
        self.inputs: list[np.ndarray] = []
        self.outputs: list[TensorType] = []
        self._slots: dict[int, Slot] = {}

    def add(
        self, program: Program, arrays: Sequence[np.ndarray], shape: tuple[int, ...], params: Sequence[int] = ()
    ) -> None:
        """One step over the index space `shape`, in boxes that cut its rows and columns."""
        slots = [self._input(array) for array in arrays]
        for dtype in program.dtypes:
            slots.append(Slot(Buffer("output", len(self.outputs), prod(shape) * dtype.size_bytes)))
            self.outputs.append(TensorType(shape, dtype))
        layouts = [contiguous(a.shape) for a in arrays] + [contiguous(shape)] * len(program.dtypes)
        kernel = Kernel(program, [], layouts, list(params), shape)
        rows, cols = kernel.rows, kernel.cols
        grain = (max(1, rows // 2), max(1, cols * 2 // 3))
        self.steps.append(Step.jit(self.name, kernel, slots, (rows, cols), grain))

    def add_reduction(self, x: np.ndarray, n: int, op: str) -> None:
        """Columns of `x` [rows, at least n, columns] folded over their first n elements."""
        rows, depth, cols = x.shape
        args = Args("ree_reduce_args")
        args.point(x=self._input(x), out=Slot(Buffer("output", len(self.outputs), rows * cols * 4)))
        args.set(n=n, x_row=depth * cols, x_k=cols, out_row=cols)
        args.set(op=int(getattr(cpu.kernels().lib, f"REE_REDUCE_{op}")))
        scratch_bytes = int(cpu.kernels().lib.ree_reduce_scratch_bytes(n))
        self.steps.append(args.step(self.name, "ree_reduce_columns", (rows, cols), (2, cols), scratch_bytes))
        self.outputs.append(TensorType((rows, cols), DType.F32))

    def add_hash(self, data: np.ndarray, group_chunks: int) -> None:
        """The chaining values of the groups of some bytes, in boxes of three, and their BLAKE3 hash."""
        kernels = cpu.kernels()
        groups = int(kernels.lib.ree_blake3_group_count(data.size, group_chunks))
        args = Args("ree_blake3_args")
        args.point(data=self._input(data), cvs=self._output(32 * groups), out=self._output(32))
        args.set(n_bytes=data.size, group_chunks=group_chunks, out_bytes=32)
        kernels.lib.ree_blake3_set_mode(kernels.ffi.addressof(args.struct, "mode"), kernels.ffi.NULL, 0)
        scratch_bytes = int(kernels.lib.ree_blake3_root_scratch_bytes(groups))
        self.steps.append(args.step(self.name, "ree_blake3_groups", (1, groups), (1, 3)))
        self.steps.append(args.step(self.name, "ree_blake3_root", (1, 1), (1, 1), scratch_bytes))

    def _output(self, n_bytes: int) -> Slot:
        self.outputs.append(TensorType((n_bytes,), DType.U8))
        return Slot(Buffer("output", len(self.outputs) - 1, n_bytes))

    def _input(self, array: np.ndarray) -> Slot:
        if id(array) not in self._slots:
            self._slots[id(array)] = Slot(Buffer("input", len(self.inputs), array.nbytes))
            self.inputs.append(array)
        return self._slots[id(array)]

    def case(self) -> Case:
        return Case(self.name, Plan(Graph([], [], [], []), self.steps, [], Weights([])), self.inputs, self.outputs)


def pointwise(ports: Sequence[DType], rank: int, make: Make) -> Program:
    """The program whose results `make(builder, *elements)` lists."""
    b = Builder([Port(dtype, rank) for dtype in ports], rank)
    results = make(b, *(b.load(n, *b.indices()) for n in range(len(ports))))
    return b.finish(results, [STORED[r.type] for r in results])


def special(type: Type) -> np.ndarray:
    """Limits, powers of two and their neighbours; of floats also halves, subnormals, infinities, NaN."""
    if type is Type.BOOL:
        return np.array([False, True])
    dtype = np.dtype(STORED[type].numpy)
    if type.is_int:
        limits = np.iinfo(dtype)
        near = [(1 << e) + d for e in (0, 1, 5, 6, 24, 31, 32, 53, 62, 63) for d in (-1, 0, 1)]
        values = [s * v for v in near for s in (1, -1)] + [int(limits.min), int(limits.max)]
        return np.array(sorted({v for v in values if limits.min <= v <= limits.max}), dtype)
    edge = np.finfo(dtype)
    positive = [0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 0.49999997, 0.7, 88.72284, 103.97, 1e-30, 1e30, 65504.0, 65520.0]
    positive += [8388607.5, 8388609.0, 4503599627370495.5, 2147483647.0, 9.2233720368547748e18]
    positive += [2.0**e for e in (-149, -126, -24, 31, 32, 52, 63, 64)]
    positive += [float(edge.tiny), float(edge.smallest_subnormal), float(edge.max), np.inf, np.nan]
    both = np.array([s * v for v in positive for s in (1, -1)], dtype)
    bits = both.view(np.uint32 if type is Type.F32 else np.uint64)
    signalling = [0x7F800001, 0xFFC12345] if type is Type.F32 else [0x7FF0000000000001, 0xFFF8000012345678]
    return np.concatenate([bits, np.array(signalling, bits.dtype)]).view(dtype)


def sample(type: Type, count: int, seed: int) -> np.ndarray:
    """`count` values: the special ones, random bits, and normal numbers of several sizes."""
    random = np.random.default_rng(seed)
    dtype = np.dtype(STORED[type].numpy)
    fixed = special(type)
    if type is Type.BOOL:
        return np.resize(fixed, count)
    bits = random.integers(0, 1 << 63, count, dtype=np.uint64) * 2 + random.integers(0, 2, count, dtype=np.uint64)
    values = bits.astype(f"u{dtype.itemsize}").view(dtype)
    if type.is_float:
        scale = 10.0 ** random.integers(-4, 3, count)
        values[::2] = (random.standard_normal(count) * scale)[::2].astype(dtype)
    values[: len(fixed)] = fixed[:count]
    return values


def pairs(type: Type) -> list[np.ndarray]:
    """All pairs of special values."""
    values = special(type)
    return [np.ascontiguousarray(m.reshape(-1)) for m in np.meshgrid(values, values, indexing="ij")]


def elementary(count: int, names: Sequence[str] = (*functions.UNIVARIATE, "softplus", *TWO)) -> Case:
    """Elementary functions on special and random values."""
    sheet = Sheet("elementary functions")
    x = sample(Type.F32, count, 1)
    grid, drawn = pairs(Type.F32), [x, np.ascontiguousarray(x[::-1])]
    for name in names:
        function = getattr(functions, name)
        if name in TWO:
            program = pointwise([DType.F32] * 2, 1, lambda b, v, u, f=function: [f(b, v, u)])
            sheet.add(program, grid, grid[0].shape)
            sheet.add(program, drawn, x.shape)
        else:
            sheet.add(pointwise([DType.F32], 1, lambda b, v, f=function: [f(b, v)]), [x], x.shape)
    return sheet.case()


def instructions(count: int, types: Sequence[Type] = tuple(Type)) -> Case:
    """Every instruction on every one of these types that it takes."""
    sheet = Sheet("instructions")
    plain = [op for op, r in INSTRUCTIONS.items() if r.arity in (1, 2) and r.result in ("same", "bool")]
    plain = [op for op in plain if op not in ("bound", "round")]
    for type in types:
        names = [op for op in plain if type in INSTRUCTIONS[op].types]

        def all_of(b: Builder, x: Value, y: Value, names: list[str] = names) -> list[Value]:
            return [b.op(op, *(x, y)[: INSTRUCTIONS[op].arity]) for op in names]

        grid, c = pairs(type), sample(Type.BOOL, len(pairs(type)[0]), 0)
        drawn = [sample(type, count, 3), sample(type, count, 4)]
        program = pointwise([STORED[type]] * 2, 1, all_of)
        for arrays in (grid, drawn):
            sheet.add(program, arrays, arrays[0].shape)
        choose = pointwise([DType.BOOL, *[STORED[type]] * 2], 1, lambda b, c, x, y: [b.select(c, x, y)])
        sheet.add(choose, [c, *grid], c.shape)
        if type.is_float:
            third = sample(type, count, 5)
            fused = pointwise([STORED[type]] * 3, 1, lambda b, x, y, z: [b.fma(x, y, z), x * y + z])
            sheet.add(fused, [*drawn, third], third.shape)
    return sheet.case()


def conversions(count: int) -> Case:
    """Every conversion between types, and to and from every storage dtype."""
    sheet = Sheet("conversions")
    for source in Type:

        def all_of(b: Builder, x: Value, source: Type = source) -> list[Value]:
            found = [b.convert(x, to) for to in Type if to is not source]
            width = [t for t in Type if t.bits == source.bits and t is not source and Type.BOOL not in (t, source)]
            return found + [b.bitcast(x, to) for to in width]

        x = sample(source, count, 6)
        sheet.add(pointwise([STORED[source]], 1, all_of), [x], x.shape)
    for dtype in DType:
        if dtype in STORED.values():
            continue
        bits = np.arange(1 << min(16, 8 * dtype.size_bytes), dtype=f"u{dtype.size_bytes}").view(dtype.numpy)
        sheet.add(pointwise([dtype], 1, lambda b, x: [x * 1]), [bits], bits.shape)
        wide = sample(dtype.element, count, 7)
        b = Builder([Port(STORED[dtype.element], 1)], 1)
        value = b.load(0, b.index(0))
        sheet.add(b.finish([value, b.round(value, dtype)], [dtype, STORED[dtype.element]]), [wide], wide.shape)
    return sheet.case()


def _every_fold(b: Builder, n: Value, x: Callable[[Value], Value]) -> list[Value]:
    def as_int(k: Value) -> Value:
        return b.convert(x(k) * 8.0, Type.I32)

    def step(k: Value, s: Value, c: Value) -> list[Value]:
        return [s * 0.5 + x(k), c + b.convert(x(k) > 0.0, Type.I64)]

    return [
        b.fold_dot(n, lambda k: (x(k), x(k) + 1.0)),
        b.fold_sum(n, x),
        b.fold_sum(n, lambda k: b.convert(x(k), Type.F64) * 0.3),
        b.fold_max(n, x),
        b.fold_min(n, x),
        b.fold_max(n, as_int),
        b.fold_min(n, lambda k: b.convert(as_int(k), Type.U32)),
        b.fold_isum(n, as_int),
        b.fold_any(n, lambda k: x(k) > 2.5),
        b.fold_all(n, lambda k: x(k) > -2.5),
        *b.chain(n, [b.f32(0.25), b.i64(0)], step),
    ]


def folds(lengths: Sequence[int], some: bool = False) -> Case:
    """Every fold (or some) over rows (lanes along k) and over columns (lanes are columns), at these lengths."""
    sheet = Sheet("folds")
    random = np.random.default_rng(8)
    for along_rows in (True, False):
        b = Builder([Port(DType.F32, 2)], 1)
        i = b.index(0)
        results = _every_fold(b, b.param(0), lambda k: b.load(0, i, k) if along_rows else b.load(0, k, i))  # noqa: B023
        results = [*results[:2], results[3], *results[-2:]] if some else results
        program = b.finish(results, [STORED[r.type] for r in results])
        for length in lengths:
            columns = 3 if along_rows else 19
            x = random.standard_normal((columns, max(length, 1))).astype(np.float32)
            if length > 16:
                x[-1, 3:9] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38]
            x = x if along_rows else np.ascontiguousarray(x.T)
            sheet.add(program, [x], (columns,), (length,))
    return sheet.case()


def memory() -> Case:
    """Gathers, guarded loads, division of coordinates; an index out of range sets the status word."""
    sheet = Sheet("gathers and bounds")
    b = Builder([Port(DType.F32, 2), Port(DType.I64, 1)], 2)
    i, j = b.indices()
    n = b.param(0)
    inside = (j >= 3) & (j < n)
    wrapped = b.op("rem", i * 7 + j, n)
    results = [
        b.load(0, b.bound(b.load(1, i), n), j),
        b.load(0, i, b.bound(b.load(1, j), n)),
        b.load_if(inside, 5.0, 0, i, j - 3),
        b.load(0, wrapped, (i * 1000 + j) / 1000),
        b.convert((i - j) / n, Type.F32),
    ]
    program = b.finish(results, [DType.F32] * len(results))
    random = np.random.default_rng(9)
    table = random.standard_normal((37, 37)).astype(np.float32)
    index = random.integers(0, 37, 37)
    index[[5, 30]] = [37, -1]
    sheet.add(program, [table, index], (37, 37), (37,))
    return sheet.case()


def columns() -> Case:
    """The kernel that folds columns, in every one of its folds."""
    sheet = Sheet("column reductions")
    random = np.random.default_rng(10)
    for n in (0, 1, 16, 257, 1025):
        x = random.standard_normal((3, max(n, 1), 37)).astype(np.float32)
        x[0, 0, :6] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38]
        for op in ("SUM", "MAX", "MIN"):
            sheet.add_reduction(x, n, op)
    return sheet.case()


def hashes() -> Case:
    """BLAKE3 of lengths around blocks, chunks, vectors of chunks and groups."""
    sheet = Sheet("hashes")
    for n, group_chunks in (
        (0, 1),
        (1, 1),
        (64, 1),
        (1025, 1),
        (3073, 2),
        (16384, 4),
        (31745, 16),
        (102400, 16),
        (300001, 16),
    ):
        sheet.add_hash(np.resize(np.arange(251, dtype=np.uint8), n), group_chunks)
    return sheet.case()


def quick() -> list[Case]:
    """A part that LLVM compiles in seconds."""
    return [
        elementary(600, QUICK_FUNCTIONS),
        instructions(300, (Type.F32, Type.I32, Type.F64)),
        conversions(300),
        folds((0, 1, 17, 257), some=True),
        memory(),
        columns(),
        hashes(),
    ]


def full() -> list[Case]:
    """All functions, instructions, conversions and folds."""
    cases = [elementary(6000), instructions(3000), conversions(3000), folds(FOLD_LENGTHS)]
    return [*cases, memory(), columns(), hashes()]
