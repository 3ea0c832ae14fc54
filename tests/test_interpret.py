"""The reference interpreter against exact Python arithmetic: every instruction, every fold."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from ree.element import scalar
from ree.element.fma import fma32, fma64
from ree.element.interpret import elements, interpret
from ree.element.program import FOLDS, INSTRUCTIONS, OUT, Builder, Port, Value
from ree.errors import GraphError, InputError, RunError
from ree.spot.samples import _chain
from ree.types import DType, Type

STORED = {t: DType(t.value) for t in Type}
FLOATS = (Type.F32, Type.F64)
INTS = (Type.I32, Type.I64, Type.U32, Type.U64)

Number = float | int


def specials(type: Type) -> list[Number]:
    if type is Type.BOOL:
        return [False, True]
    if type.is_int:
        top = 1 << (type.bits - 1)
        values = [0, 1, 2, 3, 7, 31, 32, 63, 64, 100, top - 1]
        return values + ([-v for v in values[1:]] + [-top] if type.is_signed else [top, 2 * top - 1])
    tiny, normal, most = (
        (2.0**-149, 2.0**-126, 3.4028234663852886e38)
        if type is Type.F32
        else (5e-324, 2.0**-1022, 1.7976931348623157e308)
    )
    values = [0.0, 1.0, 0.5, 1.5, 2.5, 3.0, 0.1, 1e10, 2147483648.0, 9.223372036854775808e18, 1.8446744073709552e19]
    values = [float(np.float32(v)) for v in values] + [tiny, 3 * tiny, normal, most, math.inf]
    return [v for value in values for v in (value, -value)] + [math.nan]


def rounded(exact: Fraction, type: Type, zero: float = 0.0) -> float:
    """Nearest value of a float type, ties to even, in integers only; `zero` is what an exact zero gives."""
    if exact == 0:
        return zero
    digits, least, most = (24, -149, 128) if type is Type.F32 else (53, -1074, 1024)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = max(exponent - digits + 1, least)
    scaled = size / Fraction(2) ** unit
    whole, rest = divmod(scaled.numerator, scaled.denominator)
    twice = 2 * rest - scaled.denominator
    whole += twice > 0 or (twice == 0 and whole & 1)
    result = math.inf if whole * Fraction(2) ** unit >= Fraction(2) ** most else math.ldexp(whole, unit)
    return math.copysign(result, 1 if exact > 0 else -1)


def wrapped(value: int, type: Type) -> int:
    value &= (1 << type.bits) - 1
    return value - (1 << type.bits) if type.is_signed and value >> (type.bits - 1) else value


def arithmetic(op: str, a: Number, b: Number, type: Type) -> Number:
    """add, sub and mul by rational arithmetic."""
    if type.is_int:
        return wrapped({"add": a + b, "sub": a - b, "mul": a * b}[op], type)
    if not (math.isfinite(a) and math.isfinite(b)):
        return {"add": a + b, "sub": a - b, "mul": a * b}[op]
    if op == "mul":
        return rounded(Fraction(a) * Fraction(b), type, a * b if 0 in (a, b) else 0.0)
    b = -b if op == "sub" else b
    zero = a if a == b == 0 and math.copysign(1, a) == math.copysign(1, b) else 0.0
    return rounded(Fraction(a) + Fraction(b), type, zero)


def exact_div(a: Number, b: Number, type: Type) -> Number:
    if type.is_int:
        if b == 0:
            return 0
        size = abs(a) // abs(b)
        return wrapped(size if (a < 0) == (b < 0) else -size, type)
    sign = math.copysign(1, a) * math.copysign(1, b)
    if math.isnan(a) or math.isnan(b) or (a == b == 0) or (math.isinf(a) and math.isinf(b)):
        return math.nan
    if math.isinf(a) or b == 0:
        return sign * math.inf
    if math.isinf(b) or a == 0:
        return sign * 0.0
    return rounded(Fraction(a) / Fraction(b), type)


def exact_shift(op: str, a: int, b: int, type: Type) -> int:
    if op == "shl":
        return wrapped(a << b, type) if 0 <= b < type.bits else 0
    return a >> b if 0 <= b < type.bits else (-1 if a < 0 else 0)


def extreme(a: Number, b: Number, larger: bool) -> Number:
    if a != a or b != b:
        return math.nan
    if a == b == 0 and isinstance(a, float):
        negative = [v for v in (a, b) if math.copysign(1, v) < 0]
        positive = [v for v in (a, b) if math.copysign(1, v) > 0]
        return ((positive or negative) if larger else (negative or positive))[0]
    return max(a, b) if larger else min(a, b)


def rounding(op: str, a: float) -> float:
    if not math.isfinite(a) or a == 0:
        return a
    whole = {"floor": math.floor, "ceil": math.ceil, "trunc": math.trunc, "rint": round}[op](Fraction(a))
    return math.copysign(float(whole), a)


def exact(op: str, args: list[Number], type: Type) -> Number:
    """What an instruction of result "same" or "bool" means."""
    a, b = (*args, 0)[:2]
    if op in ("add", "sub", "mul"):
        return arithmetic(op, a, b, type)
    if op in ("shl", "shr"):
        return exact_shift(op, a, b, type)
    if op in ("floor", "ceil", "trunc", "rint"):
        return rounding(op, a)
    if op == "not" and type is Type.BOOL:
        return not a
    meanings: dict[str, Callable[[], Number]] = {
        "div": lambda: exact_div(a, b, type),
        "rem": lambda: wrapped(a - exact_div(a, b, type) * b, type),
        "neg": lambda: -a if type.is_float else wrapped(-a, type),
        "abs": lambda: abs(a) if type.is_float else wrapped(abs(a), type),
        "min": lambda: extreme(a, b, False),
        "max": lambda: extreme(a, b, True),
        "copysign": lambda: math.copysign(a, 1.0 if b != b else b),
        "and": lambda: wrapped(a & b, type),
        "or": lambda: wrapped(a | b, type),
        "xor": lambda: wrapped(a ^ b, type),
        "not": lambda: wrapped(~a, type),
        "eq": lambda: a == b,
        "ne": lambda: a != b,
        "lt": lambda: a < b,
        "le": lambda: a <= b,
        "gt": lambda: a > b,
        "ge": lambda: a >= b,
    }
    return meanings[op]()


def same(got: Number, want: Number) -> bool:
    if want != want:
        return got != got
    return got == want and (want != 0 or math.copysign(1, got) == math.copysign(1, want))


def run(types: list[Type], columns: list[list[Number]], make: Callable[..., Value]) -> np.ndarray:
    """`make(builder, *elements)` for columns of numbers."""
    b = Builder([Port(STORED[t], 1) for t in types], 1)
    result = make(b, *(b.load(n, b.index(0)) for n in range(len(types))))
    arrays = [np.array(c, dtype=STORED[t].numpy) for t, c in zip(types, columns, strict=True)]
    return interpret(b.finish([result], [STORED[result.type]]), arrays, (len(columns[0]),))[0]


SIMPLE = [
    o
    for o, r in INSTRUCTIONS.items()
    if r.arity in (1, 2) and r.result in ("same", "bool") and o not in ("bound", "round", "sqrt")
]


@pytest.mark.parametrize("op", SIMPLE)
@pytest.mark.parametrize("type", list(Type))
def test_plain_instructions(op: str, type: Type) -> None:
    if type not in INSTRUCTIONS[op].types:
        return
    values = specials(type)
    arity = INSTRUCTIONS[op].arity
    cases = [(a, b) for a in values for b in values] if arity == 2 else [(a,) for a in values]
    got = run([type] * arity, [list(c) for c in zip(*cases, strict=True)], lambda b, *x: b.op(op, *x))
    for case, value in zip(cases, got.tolist(), strict=True):
        assert same(value, exact(op, list(case), type)), (op, type, case, value)


@pytest.mark.parametrize("type", FLOATS)
def test_sqrt(type: Type) -> None:
    values = [v for v in specials(type) if v > 0 and math.isfinite(v)] + [2.0, 3.0, 1e-30]
    if type is Type.F32:
        values = [float(np.float32(v)) for v in values]
    for x, root in zip(values, run([type], [values], lambda b, x: b.sqrt(x)).tolist(), strict=True):
        scale = Fraction(4) ** 700  # isqrt of a scaled integer has far more digits than either type
        wide = Fraction(math.isqrt(int(Fraction(x) * scale * scale)), int(scale))
        assert same(root, rounded(wide, type)), x
    got = run([type], [[-1.0, -0.0, math.inf, -math.inf, math.nan]], lambda b, x: b.sqrt(x)).tolist()
    assert all(same(g, w) for g, w in zip(got, [math.nan, -0.0, math.inf, math.nan, math.nan], strict=True))


# -- fma ------------------------------------------------------------------------------------


def exact_fma(a: float, b: float, c: float, type: Type) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b + c
    if not math.isfinite(c):
        return c
    product = Fraction(a) * Fraction(b)
    sign = math.copysign(1, a) * math.copysign(1, b)
    total = product + Fraction(c)
    both_negative = product == 0 and c == 0 and sign < 0 and math.copysign(1, c) < 0
    return rounded(total, type, -0.0 if both_negative else 0.0)


def fma_cases(type: Type) -> list[tuple[float, float, float]]:
    """Specials, random exponents, and sums that lie next to the middle of two neighbours."""
    values = specials(type)
    cases = [(a, b, c) for a in values[::2] for b in values[::3] for c in values]
    random = np.random.default_rng(5)
    digits, low, high = (24, -140, 120) if type is Type.F32 else (53, -1060, 1000)
    for _ in range(1500):
        a, b, c = (math.ldexp(1 + random.integers(1 << digits - 1) / (1 << digits - 1), 0) for _ in range(3))
        shift = int(random.integers(low // 2, high // 2))
        near = int(random.integers(-2 * digits - 4, digits + 4))
        signs = random.choice([-1, 1], 2)
        scaled = math.ldexp(b, int(random.integers(low // 2, high // 2)))
        base = math.frexp(scaled)[1] + shift
        if low < base + near < high:
            cases.append((float(signs[0]) * math.ldexp(a, shift), scaled, float(signs[1]) * math.ldexp(c, base + near)))
    # 1 + half a unit exactly, moved off the tie by a product far below: rounding twice gets these wrong
    half, one = 2.0**-digits, 1.0 + 2.0 ** (1 - digits)
    tiny = 2.0 ** (-60 if type is Type.F32 else -500)
    cases += [(s * tiny, tiny, c) for s in (1, -1) for c in (1.0 + 2 * half, one, half, 3.0)]
    cases += [
        (s * (1.0 + 2.0**-p), t * (2.0**-digits), u)
        for s in (1, -1)
        for t in (1, -1)
        for u in (1.0, one)
        for p in (20, 23)
    ]
    cases += [(1.0 + 2.0 ** -(digits // 2), 1.0 - 2.0 ** -(digits // 2), -1.0), (one, one, -1.0), (one, -one, 1.0)]
    if type is Type.F64:
        cases += [
            (5e-324, 0.5, 5e-324),
            (5e-324, -0.25, 5e-324),
            (2.0**-537, 2.0**-538, 0.0),
            (-(2.0**-537), 2.0**-538, 0.0),
        ]
        cases += [(2.0**1000, 2.0**1000, -math.inf), (2.0**1000, 2.0**23, -(2.0**1023)), (2.0**600, 2.0**600, -1.0)]
    return cases


@pytest.mark.parametrize(("type", "fma"), [(Type.F32, fma32), (Type.F64, fma64)])
def test_fma_is_rounded_once(type: Type, fma: Callable[..., np.ndarray]) -> None:
    dtype = scalar.NUMPY[type]
    with np.errstate(over="ignore"):
        columns = [np.array(c).astype(dtype) for c in zip(*fma_cases(type), strict=True)]
    got = fma(*columns)
    assert got.dtype == dtype
    for a, b, c, value in zip(*(column.tolist() for column in (*columns, got)), strict=True):
        assert same(value, exact_fma(a, b, c, type)), (a, b, c, value)


def test_fma_cases_catch_double_rounding() -> None:
    a, b, c = (np.array(v).astype(np.float32) for v in zip(*fma_cases(Type.F32), strict=True))
    with np.errstate(all="ignore"):
        twice = (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)
    once = fma32(a, b, c)
    assert ((twice != once) & (once == once)).any()


# -- conversions ------------------------------------------------------------------------------


def exact_convert(value: Number, to: Type) -> Number:
    if to is Type.BOOL:
        return value != 0
    if to.is_float:
        return rounded(Fraction(value), to, value * 1.0) if math.isfinite(value) else value
    if isinstance(value, float):
        low, high = (-(1 << to.bits - 1), (1 << to.bits - 1) - 1) if to.is_signed else (0, (1 << to.bits) - 1)
        if math.isnan(value):
            return 0
        return low if value < low else high if value > high else min(int(value), high)
    return wrapped(int(value), to)


@pytest.mark.parametrize("source", list(Type))
@pytest.mark.parametrize("to", list(Type))
def test_convert(source: Type, to: Type) -> None:
    if source is to:
        return
    values = specials(source) + ([1.9, -1.9, 2147483647.5, -0.3, 4294967295.5] if source is Type.F64 else [])
    for x, got in zip(values, run([source], [values], lambda b, x: b.convert(x, to)).tolist(), strict=True):
        assert same(got, exact_convert(x, to)), (x, got)


@pytest.mark.parametrize(("source", "to", "fmt"), [(Type.F32, Type.U32, "fI"), (Type.F64, Type.I64, "dq")])
def test_bitcast(source: Type, to: Type, fmt: str) -> None:
    values = specials(source)
    bits = run([source], [values], lambda b, x: b.bitcast(x, to)).tolist()
    for x, got in zip(values, bits, strict=True):
        nan = 0x7FC00000 if source is Type.F32 else 0x7FF8000000000000
        assert got == (nan if x != x else struct.unpack(fmt[1], struct.pack(fmt[0], x))[0])
    back = run([to], [bits], lambda b, x: b.bitcast(x, source)).tolist()
    assert all(same(a, c) for a, c in zip(back, values, strict=True))


def test_bitcast_makes_nan_canonical() -> None:
    array = np.array([0x7F800001, 0xFFC12345], dtype=np.uint32).view(np.float32)
    b = Builder([Port(DType.F32, 1)], 1)
    program = b.finish([b.bitcast(-b.load(0, b.index(0)), Type.U32)], [DType.U32])
    assert interpret(program, [array], (2,))[0].tolist() == [0x7FC00000] * 2


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.I8, DType.U8, DType.I16])
def test_round_is_a_store_and_a_load(dtype: DType) -> None:
    type = dtype.element
    values = specials(type) + (
        [65519.0, 65520.0, 1.00390625, 1.01171875, 2.0**-25, 3 * 2.0**-26] if type.is_float else [128, -129, 255]
    )
    got = run([type], [values], lambda b, x: b.round(x, dtype)).tolist()
    for x, value in zip(values, got, strict=True):
        assert same(value, exact_round(x, dtype)), (x, value)


def exact_round(x: Number, dtype: DType) -> Number:
    if dtype.is_int:
        bits = dtype.size_bytes * 8
        value = int(x) & ((1 << bits) - 1)
        return value - (1 << bits) if dtype is not DType.U8 and value >> (bits - 1) else value
    if not math.isfinite(x) or x == 0:
        return x
    digits, least, most = (11, -24, 65520.0) if dtype is DType.F16 else (8, -133, math.ldexp(1 - 2.0**-9, 128))
    if abs(x) >= most:
        return math.copysign(math.inf, x)
    unit = max(math.frexp(x)[1] - digits, least)
    return math.copysign(math.ldexp(round(Fraction(abs(x)) / Fraction(2) ** unit), unit), x)


# -- memory -----------------------------------------------------------------------------------


def test_load_if_touches_nothing_where_false() -> None:
    b = Builder([Port(DType.F32, 1)], 1)
    i = b.index(0) - 2
    inside = (i >= 0) & (i < b.extent(0, 0))
    program = b.finish([b.load_if(inside, 7.0, 0, i)], [DType.F32])
    array = np.arange(3, dtype=np.float32)
    assert interpret(program, [array], (7,))[0].tolist() == [7, 7, 0, 1, 2, 7, 7]
    assert interpret(program, [array[:0]], (7,))[0].tolist() == [7] * 7


def test_load_outside_is_an_error_of_the_definition() -> None:
    b = Builder([Port(DType.F32, 1)], 1)
    program = b.finish([b.load(0, b.index(0) + 1)], [DType.F32])
    with pytest.raises(GraphError):
        interpret(program, [np.zeros(4, np.float32)], (4,))


def test_bound() -> None:
    b = Builder([Port(DType.I64, 1), Port(DType.F32, 1)], 1)
    program = b.finish([b.load(1, b.bound(b.load(0, b.index(0)), b.extent(1, 0)))], [DType.F32])
    table = np.array([1.5, 2.5], np.float32)
    assert interpret(program, [np.array([1, 0, 1]), table], (3,))[0].tolist() == [2.5, 1.5, 2.5]
    for bad in (-1, 2):
        with pytest.raises(RunError):
            interpret(program, [np.array([1, bad, 0]), table], (3,))


def test_bound_in_a_fold_fails_only_where_the_fold_runs() -> None:
    b = Builder([Port(DType.I64, 1)], 1)
    program = b.finish([b.fold_isum(b.load(0, b.index(0)), lambda k: b.bound(k, 3))], [DType.I64])
    assert interpret(program, [np.array([0, 1, 3])], (3,))[0].tolist() == [0, 0, 3]
    with pytest.raises(RunError):
        interpret(program, [np.array([0, 4])], (2,))


def test_leaves_and_storage() -> None:
    b = Builder([Port(DType.BF16, 2)], 2)
    i, j = b.indices()
    number = b.convert(i * b.extent(OUT, 1) + j + b.param(1), Type.F32)
    program = b.finish([number + b.load(0, i, j), number], [DType.BF16, DType.F16])
    array = np.array([[0x3F80, 0xFFC1], [0x4000, 0]], dtype=np.uint16)
    first, second = interpret(program, [array], (2, 2), [0, 10])
    assert first.tolist() == [[0x4130, 0x7FC0], [0x4160, 0x4150]] and first.dtype == np.uint16
    assert second.tolist() == [[10, 11], [12, 13]] and second.dtype == np.float16


def test_arrays_must_fit() -> None:
    b = Builder([Port(DType.F32, 1)], 1)
    program = b.finish([b.load(0, b.index(0))], [DType.F32])
    for arrays in ([], [np.zeros(2)], [np.zeros((2, 2), np.float32)]):
        with pytest.raises(InputError):
            interpret(program, arrays, (2,))


# -- folds ------------------------------------------------------------------------------------

LENGTHS = [0, 1, 2, 15, 16, 17, 31, 255, 256, 257, 300, 511, 512, 513, 1000]


def python_sum(values: list[float], type: Type) -> float:
    """`fold:sum` from its definition, with rational additions."""

    def add(a: float, b: float) -> float:
        return arithmetic("add", a, b, type)

    def chunk(part: list[float]) -> float:
        lanes = [0.0] * 16
        for k, value in enumerate(part):
            lanes[k % 16] = add(lanes[k % 16], value)
        for half in (8, 4, 2, 1):
            lanes = [add(lanes[i], lanes[i + half]) for i in range(half)]
        return lanes[0]

    while True:
        sums = [chunk(values[i : i + 256]) for i in range(0, len(values), 256)] or [0.0]
        if len(sums) == 1:
            return sums[0]
        values = sums


def python_dot(a: list[float], b: list[float]) -> float:
    total = 0.0
    for start in range(0, len(a), 256):
        chain = 0.0
        for x, y in zip(a[start : start + 256], b[start : start + 256], strict=True):
            chain = exact_fma(x, y, chain, Type.F32)
        total = arithmetic("add", total, chain, Type.F32)
    return total


def data(type: Type, count: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(count) * 2.0 ** random.integers(-12, 12, count)).astype(scalar.NUMPY[type])


@pytest.mark.parametrize("type", FLOATS)
def test_sum_order(type: Type) -> None:
    values = data(type, max(LENGTHS))
    b = Builder([Port(STORED[type], 1), Port(DType.I64, 1)], 1)
    total = b.fold_sum(b.load(1, b.index(0)), lambda k: b.load(0, k))
    got = interpret(b.finish([total], [STORED[type]]), [values, np.array(LENGTHS)], (len(LENGTHS),))[0]
    for n, value in zip(LENGTHS, got.tolist(), strict=True):
        assert same(value, python_sum(values[:n].tolist(), type)), n


def test_sum_of_more_than_256_chunks() -> None:
    values = data(Type.F32, 256 * 257 + 5)
    b = Builder([Port(DType.F32, 1)], 0)
    program = b.finish([b.fold_sum(b.extent(0, 0), lambda k: b.load(0, k))], [DType.F32])
    got = interpret(program, [values], ())[0]
    level = values
    while len(level) > 1:  # the same rule over rows of 256, in NumPy
        padded = np.zeros((-(-len(level) // 256), 16, 16), np.float32)
        padded.reshape(-1)[: len(level)] = level
        lanes = np.zeros((len(padded), 16), np.float32)
        for step in range(16):
            lanes = lanes + padded[:, step]
        for half in (8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half:]
        level = lanes[:, 0]
    assert got.tobytes() == level[0].tobytes()


def test_sum_starts_at_plus_zero() -> None:
    for n in (1, 3, 300):
        b = Builder([], 0)
        program = b.finish([b.fold_sum(n, lambda k, b=b: b.f32(-0.0))], [DType.F32])
        assert same(float(interpret(program, [], ())[0]), 0.0)


def test_dot_order() -> None:
    x, y = data(Type.F32, max(LENGTHS), 2), data(Type.F32, max(LENGTHS), 3)
    b = Builder([Port(DType.F32, 1), Port(DType.F32, 1), Port(DType.I64, 1)], 1)
    total = b.fold_dot(b.load(2, b.index(0)), lambda k: (b.load(0, k), b.load(1, k)))
    got = interpret(b.finish([total], [DType.F32]), [x, y, np.array(LENGTHS)], (len(LENGTHS),))[0]
    for n, value in zip(LENGTHS, got.tolist(), strict=True):
        assert same(value, python_dot(x[:n].tolist(), y[:n].tolist())), n


def test_chains_by_a_kernel_are_those_of_the_interpreter() -> None:
    """`chain` is asked for every chunk, with lanes of all lengths and some that are not active; same bits come out."""
    x, y = data(Type.F32, max(LENGTHS), 2), data(Type.F32, max(LENGTHS), 3)
    x[7::97], y[5::89] = np.float32(-0.0), np.float32(1e-42)
    special = np.array([np.nan, np.inf, -np.inf, 1e38, -0.0], np.float32)
    tables = [np.stack([x, y, np.resize(special, x.size)]), np.stack([y, x, np.resize(special[::-1], x.size)])]
    b = Builder([Port(DType.F32, 2), Port(DType.F32, 2), Port(DType.I64, 1)], 2)
    row, n = b.index(0), b.load(2, b.index(1))
    total = b.fold_dot(n, lambda k: (b.load(0, row, k), b.load(1, row, k)))
    nested = b.fold_sum(b.op("min", n, b.i64(3)), lambda j: b.fold_dot(j + 1, lambda k: (b.load(0, j, k), total)))
    program = b.finish([total, nested], [DType.F32, DType.F32])
    shape, asked = (3, len(LENGTHS)), []

    def chain(a: np.ndarray, b: np.ndarray, made: np.ndarray) -> np.ndarray:
        asked.append(made.shape)
        assert (made[1:] <= made[:-1]).all()  # what a lane has comes first
        return _chain(a, b, made)

    arrays = [*tables, np.array(LENGTHS)]
    numbers = np.arange(3 * len(LENGTHS))[::-1].copy()
    for flat in (numbers, numbers[:1], numbers[5:8]):
        for own, other in zip(
            elements(program, arrays, shape, flat, (), chain), elements(program, arrays, shape, flat), strict=True
        ):
            assert own.tobytes() == other.tobytes()
    assert len(asked) > 3 and max(made[0] for made in asked) == 256


@pytest.mark.parametrize("type", [t for t in Type if t is not Type.BOOL])
def test_order_free_folds(type: Type) -> None:
    values = np.resize(np.array(specials(type)[:-1], dtype=scalar.NUMPY[type]), 600)
    counts = np.array([0, 1, 2, 256, 300, 600])
    b = Builder([Port(STORED[type], 1), Port(DType.I64, 1)], 1)
    n = b.load(1, b.index(0))
    results = [b.fold_max(n, lambda k: b.load(0, k)), b.fold_min(n, lambda k: b.load(0, k))]
    if type.is_int:
        results.append(b.fold_isum(n, lambda k: b.load(0, k)))
    got = interpret(b.finish(results, [STORED[type]] * len(results)), [values, counts], (len(counts),))
    empty = (
        [-math.inf, math.inf] if type.is_float else [np.iinfo(STORED[type].numpy).min, np.iinfo(STORED[type].numpy).max]
    )
    for position, n in enumerate(counts.tolist()):
        part = values[:n].tolist()
        wants = [*empty, 0]
        for value in part:
            wants = [extreme(wants[0], value, True), extreme(wants[1], value, False), wants[2] + value]
        for want, array in zip(wants[:2], got[:2], strict=True):
            assert same(array[position].item(), want), (n, want)
        if type.is_int:
            assert int(got[2][position]) == wrapped(int(wants[2]), type)


def test_max_keeps_nan_and_any_all() -> None:
    array = np.array([[1, np.nan, 3], [1, 2, 3]], dtype=np.float32)
    b = Builder([Port(DType.F32, 2)], 1)
    i = b.index(0)
    n = b.extent(0, 1)
    results = [
        b.fold_max(n, lambda k: b.load(0, i, k)),
        b.fold_any(n, lambda k: b.load(0, i, k) > 2.5),
        b.fold_all(n, lambda k: b.load(0, i, k) > 0.5),
        b.fold_any(0, lambda k: b.load(0, i, k) > 0.0),
        b.fold_all(0, lambda k: b.load(0, i, k) > 0.0),
    ]
    program = b.finish(results, [DType.F32, *[DType.BOOL] * 4])
    largest, any_, all_, any_of_none, all_of_none = interpret(program, [array], (2,))
    assert math.isnan(largest[0]) and largest[1] == 3
    assert any_.tolist() == [True, True] and all_.tolist() == [False, True]
    assert any_of_none.tolist() == [False, False] and all_of_none.tolist() == [True, True]


def test_chain_is_sequential_and_lengths_differ() -> None:
    array = np.array([0.5, 3.0, -2.0, 7.0], dtype=np.float64)
    b = Builder([Port(DType.F64, 1)], 1)
    x, count = b.chain(b.index(0), [b.f64(1.0), b.i64(0)], lambda k, x, c: [x * b.load(0, k) + 1.0, c * 10 + k])
    values, digits = interpret(b.finish([x, count], [DType.F64, DType.I64]), [array], (5,))
    assert values.tolist() == [1.0, 1.5, 5.5, -10.0, -69.0]
    assert digits.tolist() == [0, 0, 1, 12, 123]


def test_nested_folds() -> None:
    array = data(Type.F32, 7 * 300).reshape(7, 300)
    b = Builder([Port(DType.F32, 2)], 1)
    largest = b.fold_max(b.extent(0, 0), lambda r: b.fold_sum(b.index(0) * 100, lambda k: b.load(0, r, k)))
    got = interpret(b.finish([largest], [DType.F32]), [array], (4,))[0]
    for i, value in enumerate(got.tolist()):
        assert value == max(python_sum(row[: i * 100].tolist(), Type.F32) for row in array)


def test_every_fold_is_tested_here() -> None:
    assert set(FOLDS) == {"dot", "sum", "max", "min", "isum", "any", "all", "chain"}
