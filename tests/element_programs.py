"""Element programs and values for the tests of printers: every instruction, every fold, random programs."""

from __future__ import annotations

import numpy as np

from ree.element.program import INSTRUCTIONS, Builder, Port, Program, Value
from ree.types import DType, Type

STORED = {
    Type.BOOL: DType.BOOL,
    Type.I32: DType.I32,
    Type.I64: DType.I64,
    Type.U32: DType.U32,
    Type.U64: DType.U64,
    Type.F32: DType.F32,
    Type.F64: DType.F64,
}
NUMPY = {type: np.dtype(dtype.numpy) for type, dtype in STORED.items()}
PLAIN = [op for op, rule in INSTRUCTIONS.items() if rule.arity in (1, 2) and rule.result in ("same", "bool")]
PLAIN = [op for op in PLAIN if op not in ("bound", "round")]
LENGTHS = [0, 1, 15, 16, 17, 255, 256, 257, 4095, 4097]


def special(type: Type) -> np.ndarray:
    """Values at which instructions differ from what is nearly right."""
    if type is Type.BOOL:
        return np.array([False, True])
    if type.is_int:
        top = 1 << (type.bits - 1)
        small = [0, 1, 2, 3, 5, 7, 31, 32, 33, 63, 64, 100]
        large = [top - 1, top - 2, (1 << 24) + 1, (1 << 30) + 1]
        if type.bits == 64:
            large += [(1 << 53) + 1, (1 << 62) + (1 << 38), (1 << 40) + 1]
        values = small + large + ([-v for v in small + large] + [-top] if type.is_signed else [top, 2 * top - 1])
        return np.array(values, dtype=NUMPY[type])
    single = type is Type.F32
    limits = np.finfo(NUMPY[type])
    tiny, least, most = float(limits.tiny), float(limits.smallest_subnormal), float(limits.max)
    positive = [0.0, 1.0, 0.5, 1.5, 2.5, 3.5, 0.49999997, 0.7, 3.0, 1e-3, 8388607.5, 8388609.0, 4503599627370495.5]
    positive += [2147483647.0, 2147483648.0, 4294967296.0, 9.2233720368547758e18, 1.8446744073709552e19, 65504.0]
    positive += [65519.9, 65520.0, 5.9604645e-8, 2.9802322e-8, 6.1035156e-5, 1e-30, 1e10, 1e30]
    positive += [tiny, tiny / 2, least, most, np.inf, np.nan]
    both = np.array(positive + [-v for v in positive], dtype=NUMPY[type])
    bits = both.view(np.uint32 if single else np.uint64)
    odd_nans = [0x7F800001, 0xFFC12345] if single else [0x7FF0000000000001, 0xFFF8000012345678]
    return np.concatenate([bits, np.array(odd_nans, dtype=bits.dtype)]).view(NUMPY[type])


def pairs(type: Type) -> list[np.ndarray]:
    """All pairs of special values as two rows-by-columns arrays; the columns leave a tail."""
    values = special(type)
    a, b = (m.reshape(-1) for m in np.meshgrid(values, values, indexing="ij"))
    columns = -(-len(a) // 2) | 1
    return [np.resize(v, (2, columns)) for v in (a, b)]


def pointwise(types: list[Type], make, dtypes: list[DType] | None = None) -> Program:
    """Program of rank 2 whose results `make(builder, *elements of the inputs)` lists."""
    ports = [Port(d, 2) for d in (dtypes or [STORED[t] for t in types])]
    b = Builder(ports, 2)
    results = make(b, *(b.load(n, *b.indices()) for n in range(len(ports))))
    return b.finish(results, [STORED[r.type] for r in results])


def random_array(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def folds(b: Builder, n: Value, x, sequential: bool) -> list[Value]:
    """Every kind of fold over x(k), an f32; those in sequence, slow to interpret, if asked for."""
    as_int = lambda k: b.convert(x(k) * 8.0, Type.I32)  # noqa: E731
    parallel = [
        b.fold_sum(n, x),
        b.fold_sum(n, lambda k: b.convert(x(k), Type.F64) * 0.3),
        b.fold_max(n, x),
        b.fold_min(n, x),
        b.fold_max(n, as_int),
        b.fold_min(n, lambda k: b.convert(as_int(k), Type.U32)),
        b.fold_isum(n, as_int),
        b.fold_any(n, lambda k: x(k) > 2.5),
        b.fold_all(n, lambda k: x(k) > -2.5),
    ]
    if not sequential:
        return parallel
    carried = b.chain(n, [b.f32(0.25), b.i64(0)], lambda k, s, c: [s * 0.5 + x(k), c + b.convert(x(k) > 0.0, Type.I64)])
    return [*parallel, b.fold_dot(n, lambda k: (x(k), x(k) + 1.0)), *carried]


def fold_program(make_x, rank: int, port_rank: int, per_column: bool = False, sequential: bool = True) -> Program:
    b = Builder([Port(DType.F32, port_rank), Port(DType.I64, 1)], rank)
    n = b.load(1, b.index(rank - 1)) if per_column else b.param(0)
    results = folds(b, n, make_x(b), sequential)
    return b.finish(results, [STORED[r.type] for r in results])


def random_program(seed: int) -> Program:
    """A program of some thirty instructions over all types, with folds, of rank 2."""
    random = np.random.default_rng(seed)
    b = Builder([Port(DType.F32, 2), Port(DType.I32, 2), Port(DType.F16, 2), Port(DType.F64, 1)], 2)
    i, j = b.indices()
    pool = [b.load(0, i, j), b.load(1, j, i), b.load(2, i, j), b.load(3, j), b.load(3, i), i, j, b.param(0)]

    def grow(pool: list[Value], count: int, depth: int) -> Value:
        for _ in range(count):
            pool.append(step(pool, depth))
        return pool[-1]

    def step(pool: list[Value], depth: int) -> Value:
        x = pool[random.integers(len(pool))]
        choice = random.integers(12)
        if choice == 0:
            return b.convert(x, list(Type)[random.integers(7)])
        if choice == 1 and depth < 2:
            return fold(pool, depth)
        mates = [v for v in pool if v.type is x.type]
        names = [op for op in [*PLAIN, "select", "fma"] if x.type in INSTRUCTIONS[op].types]
        op = names[random.integers(len(names))]
        args = [x, *(mates[random.integers(len(mates))] for _ in range(INSTRUCTIONS[op].arity - 1))]
        if op == "select":
            args = [args[0].ne(args[1]), args[1], args[2]]
        return b.op(op, *args)

    def fold(pool: list[Value], depth: int) -> Value:
        count = [b.param(0), i, j, b.i64(20)][random.integers(4)]
        kind = ["sum", "max", "min", "isum", "any", "all", "chain"][random.integers(7)]

        def body(k: Value, *carried: Value) -> Value:
            inner = [*pool, *carried, k, b.load(0, i, k), b.load(0, k, j), b.load(3, k)]
            last = grow(inner, 5, depth + 1)
            want = {"sum": Type.F64, "isum": Type.I32, "any": Type.BOOL, "all": Type.BOOL}.get(kind, Type.F32)
            return b.convert(last, want)

        if kind == "chain":
            return b.chain(count, [b.f32(1.0)], lambda k, c: [body(k, c)])[0]
        return {
            "sum": b.fold_sum, "max": b.fold_max, "min": b.fold_min,
            "isum": b.fold_isum, "any": b.fold_any, "all": b.fold_all,
        }[kind](count, body)  # fmt: skip

    grow(pool, 25, 0)
    results = pool[-3:]
    return b.finish(results, [STORED[r.type] for r in results])
