"""LLVM kernels against the interpreter: every instruction, every fold, random programs, all ISAs."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ree.element import jit
from ree.element.interpret import interpret
from ree.element.llvm import Layout
from ree.element.llvm_schedule import Arm, split_arms
from ree.element.program import FOLDS, INSTRUCTIONS, OUT, Builder, Port, Value
from ree.errors import DeviceError, GraphError
from ree.types import DType, Type
from tests.element_programs import (
    LENGTHS,
    NUMPY,
    PLAIN,
    fold_program,
    pairs,
    pointwise,
    random_array,
    random_program,
    special,
)
from tests.jit_case import check_kernel, run_kernel


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Kernels of these tests are compiled by the code under test, not found in a user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# -- instructions -------------------------------------------------------------------------


@pytest.mark.parametrize("type", list(Type))
def test_every_plain_instruction(type: Type) -> None:
    def make(b: Builder, x: Value, y: Value) -> list[Value]:
        names = [op for op in PLAIN if type in INSTRUCTIONS[op].types]
        return [b.op(op, *(x, y)[: INSTRUCTIONS[op].arity]) for op in names]

    check_kernel(pointwise([type, type], make), pairs(type), pairs(type)[0].shape)


@pytest.mark.parametrize("type", [Type.F32, Type.F64])
def test_fma_rounds_once(type: Type) -> None:
    random = np.random.default_rng(1)
    bits = np.uint32 if type is Type.F32 else np.uint64
    arrays = [random.integers(0, np.iinfo(bits).max, (3, 500), dtype=bits).view(NUMPY[type]) for _ in range(3)]
    values = special(type)
    for array in arrays:
        array[1] = random.choice(values, 500)
        array[2] = random.standard_normal(500)
    program = pointwise([type] * 3, lambda b, x, y, z: [b.fma(x, y, z), x * y + z])
    if type is Type.F32:
        check_kernel(program, arrays, (3, 500))
        return
    # the interpreter's binary64 fma is exact but slow
    check_kernel(program, [a[:, :53] for a in map(np.ascontiguousarray, arrays)], (3, 53))


@pytest.mark.parametrize("type", list(Type))
def test_select_takes_either_side(type: Type) -> None:
    arrays = [np.resize([True, False, False], pairs(type)[0].shape), *pairs(type)]
    program = pointwise([Type.BOOL, type, type], lambda b, c, x, y: [b.select(c, x, y)])
    check_kernel(program, arrays, arrays[0].shape)


@pytest.mark.parametrize("type", [t for t in Type if t is not Type.BOOL])
def test_min_and_max_with_constants(type: Type) -> None:
    constants = [0.0, -0.0, 1.5, float("nan"), float("inf")] if type.is_float else [0, 1, 7]

    def make(b: Builder, x: Value) -> list[Value]:
        found = []
        for number in constants:
            c = b.const(number, type)
            found += [b.op("max", x, c), b.op("max", c, x), b.op("min", x, c), b.op("min", c, x)]
        return found

    array = pairs(type)[0]
    check_kernel(pointwise([type], make), [array], array.shape)


@pytest.mark.parametrize("source", list(Type))
def test_conversions(source: Type) -> None:
    def make(b: Builder, x: Value) -> list[Value]:
        found = [b.convert(x, to) for to in Type if to is not source]
        same_width = [t for t in Type if t.bits == source.bits and t is not source and t is not Type.BOOL]
        return found + [b.bitcast(x, to) for to in same_width if source is not Type.BOOL]

    array = pairs(source)[0]
    check_kernel(pointwise([source], make), [array], array.shape)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_narrow_floats(dtype: DType) -> None:
    """All 65536 values are widened; random and halfway floats are rounded."""
    stored = np.arange(1 << 16, dtype=np.uint16).reshape(4, -1)
    program = pointwise([Type.F32], lambda b, x: [x * 1.0], [dtype])
    check_kernel(program, [stored.view(dtype.numpy)], stored.shape)
    random = np.random.default_rng(2).integers(0, 1 << 32, (6, 3001), dtype=np.uint32)
    random[1] = (random[1] & 0x8FFFFFFF) | 0x38000000  # near the subnormals of f16
    random[2] &= 0xFFFFF000  # halfway cases of f16
    random[3] = (random[3] & 0x80FFF000) | 0x33000000
    random[4] = (random[4] & 0xFFFF0000) | 0x8000  # halfway cases of bf16
    random[5, : len(special(Type.F32))] = special(Type.F32).view(np.uint32)
    b = Builder([Port(DType.F32, 2)], 2)
    x = b.load(0, *b.indices())
    program = b.finish([x, b.round(x, dtype) * 1.0], [dtype, DType.F32])
    check_kernel(program, [random.view(np.float32)], random.shape)


def test_narrow_integers() -> None:
    b = Builder([Port(d, 1) for d in (DType.I8, DType.U8, DType.I16, DType.I32)], 1)
    values = [b.load(n, b.index(0)) for n in range(4)]
    sums = [v * 3 + values[3] for v in values]
    results = [*sums, *(b.round(sums[0], d) for d in (DType.I8, DType.U8, DType.I16))]
    program = b.finish(results, [DType.I8, DType.U8, DType.I16, DType.I32, DType.I32, DType.I32, DType.I32])
    random = np.random.default_rng(3)
    arrays = [random.integers(-(1 << 31), 1 << 31, 77).astype(p.dtype.numpy) for p in program.inputs]
    check_kernel(program, arrays, (77,))


def test_index_and_params_are_integers() -> None:
    b = Builder([], 3)
    i, j, k = b.indices()
    flat = (i * b.param(0) + j) * b.param(1) + k
    results = [flat, b.convert(k, Type.F32), flat / 3, b.op("rem", flat, 7), -k, b.convert(k * k, Type.I32)]
    program = b.finish(results, [DType.I64, DType.F32, DType.I64, DType.I64, DType.I64, DType.I32])
    check_kernel(program, [], (3, 2, 37), (2, 37))


def test_lanes_divided_by_one_number() -> None:
    """Division of coordinates, up to and beyond what binary64 divides exactly."""
    b = Builder([Port(DType.I64, 1)], 1)
    x, d = b.load(0, b.index(0)), b.param(0)
    program = b.finish([x / d, b.op("rem", x, d), x / 7, b.op("rem", b.index(0) * 12345, d)], [DType.I64] * 4)
    edges = [0, 1, 2, 6, 7, 8, 96, 97, 1 << 31, 1 << 51, 1 << 52, 1 << 53, (1 << 63) - 1]
    random = np.random.default_rng(8)
    near = [e + n for e in edges for n in (-1, 0, 1) if e + n < 1 << 63]
    small = random.integers(-(1 << 52) + 1, 1 << 52, 200).tolist() + (random.integers(1, 1 << 26, 99) * 97 - 1).tolist()
    for values in (near + [-v for v in near] + [-(1 << 63)], small):
        array = np.array(values, dtype=np.int64)
        for divisor in (1, 7, 97, 3, (1 << 52) - 1, 1 << 52, (1 << 52) + 1, (1 << 63) - 1, 0, -1, -7, -(1 << 63)):
            check_kernel(program, [array], array.shape, (divisor,))


# -- memory -----------------------------------------------------------------------------------
VIEWS = {
    "contiguous": lambda a: a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "row": lambda a: np.broadcast_to(a[0], a.shape),
    "column": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "scalar": lambda a: np.broadcast_to(a[0, 0], a.shape),
    "reversed": lambda a: a[::-1, ::-1],
    "strided": lambda a: np.repeat(a, 3, axis=1)[:, ::3],
}


@pytest.mark.parametrize("view", list(VIEWS))
@pytest.mark.parametrize("known", [True, False])
def test_loads_by_strides(view: str, known: bool) -> None:
    program = pointwise([Type.F32, Type.F32], lambda b, x, y: [x * y + x])
    for columns in (1, 15, 16, 33):
        a, c = random_array((5, columns)), random_array((5, columns), 1)
        check_kernel(program, [VIEWS[view](a), c], (5, columns), known=known)


def test_results_by_strides() -> None:
    program = pointwise([Type.F32], lambda b, x: [x + x, x * x])
    x = random_array((7, 37))
    results = [np.zeros((37, 7), np.float32).T, np.zeros((7, 74), np.float32)[:, ::2]]
    for isa in jit.isas():
        for result in results:
            result[...] = 0
        assert run_kernel(program, [x], results, x.shape, isa=isa) == 0
        assert np.array_equal(results[0], x + x) and np.array_equal(results[1], x * x)


def test_load_if_reads_nothing_elsewhere() -> None:
    """Padding: out of range coordinates must not be read, by any kind of load."""
    b = Builder([Port(DType.F32, 2), Port(DType.F32, 1)], 2)
    i, j = b.indices()
    n, huge = b.param(0), b.param(1)
    inside = (j >= 3) & (j < n)
    row_ok = i.eq(1)
    results = [
        b.load_if(inside, 5.0, 0, i, j - 3 + b.select(inside, b.i64(0), huge)),  # gather
        b.load_if(inside, 5.0, 0, i, j - 3),  # contiguous
        b.load_if(inside, -1.0, 1, i),  # one address for all lanes
        b.load_if(row_ok, 2.0, 0, i - 1 + b.select(row_ok, b.i64(0), huge), j),  # one condition for all lanes
        b.load_if(row_ok, 2.0, 1, i),  # uniform altogether
        b.load_if(row_ok, b.load(0, i, j), 1, i),
    ]
    program = b.finish(results, [DType.F32] * len(results))
    for columns in (1, 5, 20, 40):
        check_kernel(
            program, [random_array((2, columns)), random_array((2,))], (2, columns), (min(columns, 24), 1 << 60)
        )


def test_gather_and_bound() -> None:
    b = Builder([Port(DType.F32, 2), Port(DType.I64, 1)], 2)
    i, j = b.indices()
    row = b.bound(b.load(1, i), b.param(0))
    column = b.bound(b.load(1, j), b.param(1))
    program = b.finish([b.load(0, row, j), b.load(0, i, column)], [DType.F32, DType.F32])
    table, index = random_array((35, 35)), np.random.default_rng(4).integers(0, 35, 35)
    check_kernel(program, [table, index], (35, 35), (35, 35))
    for bad, place in ((-1, 0), (35, 34), (1 << 62, 20), (-(1 << 63), 33)):
        wrong = index.copy()
        wrong[place] = bad
        for isa in jit.isas():
            results = [np.zeros((35, 35), np.float32) for _ in range(2)]
            assert run_kernel(program, [table, wrong], results, (35, 35), (35, 35), isa) == 1
        # a column outside of the box is nobody's failure
        if place == 34:
            narrow = [np.zeros((35, 35), np.float32) for _ in range(2)]
            assert run_kernel(program, [table, wrong], narrow, (35, 35), (35, 35), boxes=[(0, 34, 0, 34)]) == 0


def test_in_place_and_in_boxes() -> None:
    program = pointwise([Type.F32, Type.F32], lambda b, x, y: [x * 2.0 + y, x - y])
    x, y = random_array((9, 83)), random_array((9, 83), 1)
    for isa in jit.isas():
        a, c = x.copy(), y.copy()
        boxes = [(0, 4, 0, 50), (0, 4, 50, 83), (4, 9, 0, 1), (4, 9, 1, 83), (9, 9, 0, 83), (3, 4, 83, 83)]
        assert run_kernel(program, [a, c], [a, c], x.shape, isa=isa, boxes=boxes) == 0
        assert np.array_equal(a, x * np.float32(2) + y) and np.array_equal(c, x - y)


def test_boxes_touch_nothing_else() -> None:
    random = np.random.default_rng(5)
    b = Builder([Port(DType.F32, 3)], 3)
    i, j, k = b.indices()
    total = b.fold_sum(b.param(0), lambda n: b.load(0, i, j, n))
    program = b.finish([b.load(0, i, j, k) - total], [DType.F32])
    x = random_array((3, 5, 61))
    whole = interpret(program, [x], x.shape, (61,))[0].reshape(15, 61)
    for isa in jit.isas():
        for _ in range(8):
            r, c = sorted(random.integers(0, 16, 2)), sorted(random.integers(0, 62, 2))
            result = np.full((3, 5, 61), 9, np.float32)
            box = (int(r[0]), int(r[1]), int(c[0]), int(c[1]))
            run_kernel(program, [x], [result], x.shape, (61,), isa, [box])
            expected = np.full((15, 61), 9, np.float32)
            expected[r[0] : r[1], c[0] : c[1]] = whole[r[0] : r[1], c[0] : c[1]]
            assert np.array_equal(result.reshape(15, 61), expected)


@pytest.mark.parametrize("shape", [(), (1,), (17,), (0,), (4, 0), (0, 4), (2, 0, 3), (2, 3, 4, 5)])
def test_shapes(shape: tuple[int, ...]) -> None:
    b = Builder([Port(DType.F32, len(shape))], len(shape))
    x = b.load(0, *b.indices())
    program = b.finish([x * x, b.const(1.5, Type.F64)], [DType.F32, DType.F64])
    check_kernel(program, [random_array(shape)], shape)


# -- folds ----------------------------------------------------------------------------------------


def test_all_folds_are_tested() -> None:
    program = fold_program(lambda b: lambda k: b.load(0, k), 1, 1)
    assert {f"fold:{kind}" for kind in FOLDS} == {i.op for i in program.body if i.region is not None}


@pytest.mark.parametrize("layout", ["contiguous in k", "strided in k"])
def test_folds_computed_once_a_row(layout: str) -> None:
    short = fold_program(lambda b: lambda k: b.load(0, b.index(0), k), 2, 2)
    long = fold_program(lambda b: lambda k: b.load(0, b.index(0), k), 2, 2, sequential=False)
    contiguous = layout == "contiguous in k"
    for n in LENGTHS:
        x = random_array((3, n), n)
        x = x if contiguous else np.ascontiguousarray(x.T).T
        check_kernel(short if n < 300 else long, [x, np.zeros(0, np.int64)], (3, 2), (n,), known=contiguous)


def test_folds_in_columns() -> None:
    short = fold_program(lambda b: lambda k: b.load(0, k, b.index(0)), 1, 2)
    long = fold_program(lambda b: lambda k: b.load(0, k, b.index(0)), 1, 2, sequential=False)
    for n in LENGTHS:
        check_kernel(short if n < 300 else long, [random_array((n, 19), n), np.zeros(0, np.int64)], (19,), (n,))


def test_folds_of_rows_to_a_vector() -> None:
    short = fold_program(lambda b: lambda k: b.load(0, b.index(0), k), 1, 2)
    long = fold_program(lambda b: lambda k: b.load(0, b.index(0), k), 1, 2, sequential=False)
    for n in LENGTHS:
        check_kernel(short if n < 300 else long, [random_array((5, n), n), np.zeros(0, np.int64)], (5,), (n,))


def test_folds_with_a_count_for_each_column() -> None:
    program = fold_program(lambda b: lambda k: b.load(0, k, b.index(0)), 1, 2, per_column=True)
    counts = np.array([*LENGTHS[:8], *np.random.default_rng(6).integers(0, 600, 27)], dtype=np.int64)
    check_kernel(program, [random_array((600, 35)), counts], (35,), (0,))


def test_sums_of_many_chunks() -> None:
    """More than 256 chunks: a third level of sums."""
    b = Builder([Port(DType.F32, 1)], 2)
    across = b.fold_sum(b.param(0), lambda k: b.load(0, k))
    down = b.fold_sum(b.param(0), lambda k: b.load(0, k) * b.convert(b.index(1), Type.F32))
    program = b.finish([across, down], [DType.F32, DType.F32])
    for n in (65535, 65536, 65537, 3 * 65536 + 5):
        check_kernel(program, [random_array((n,))], (1, 3), (n,))


def test_special_values_in_folds() -> None:
    program = fold_program(lambda b: lambda k: b.load(0, b.index(0), k), 2, 2)
    random = np.random.default_rng(7)
    finite = special(Type.F32)[np.abs(special(Type.F32)) < 1e20]
    rows = [random.choice(special(Type.F32), 70), random.choice(finite, 70), np.full(70, -0.0), np.full(70, -np.inf)]
    rows += [random.choice(np.array([0.0, -0.0]), 70), random.choice(np.array([0.0, -0.0, -1.0]), 70)]
    check_kernel(program, [np.array(rows, np.float32), np.zeros(0, np.int64)], (len(rows), 1), (70,))
    turned = fold_program(lambda b: lambda k: b.load(0, k, b.index(0)), 1, 2)
    columns = np.ascontiguousarray(np.array(rows, np.float32).T)
    check_kernel(turned, [columns, np.zeros(0, np.int64)], (len(rows),), (70,))


def test_nested_folds() -> None:
    b = Builder([Port(DType.F32, 2), Port(DType.F32, 2)], 2)
    i, j = b.indices()
    n = b.param(0)
    largest = b.fold_max(n, lambda k: b.fold_sum(n, lambda q: b.load(0, k, q) * b.load(1, q, k)))
    mixed = b.fold_sum(n, lambda k: b.fold_dot(k, lambda q: (b.load(0, j, q), b.load(1, q, k))))
    inner_uniform = b.fold_sum(n, lambda k: b.fold_max(n, lambda q: b.load(0, i, q)) * b.load(0, j, k))
    program = b.finish([largest, mixed, inner_uniform], [DType.F32] * 3)
    check_kernel(program, [random_array((21, 21)), random_array((21, 21), 1)], (21, 21), (21,))


def test_softmax_of_rows() -> None:
    b = Builder([Port(DType.F32, 2)], 2)
    i, j = b.indices()
    n = b.param(0)
    shape = lambda x: b.fma(b.fma(x, x * 0.25, 0.5), x, 1.0)  # noqa: E731
    top = b.fold_max(n, lambda k: b.load(0, i, k))
    total = b.fold_sum(n, lambda k: shape(b.load(0, i, k) - top))
    program = b.finish([shape(b.load(0, i, j) - top) / total], [DType.F32])
    for columns in (1, 16, 50, 1000):
        check_kernel(program, [random_array((4, columns))], (4, columns), (columns,))


# -- random programs ---------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(24))
def test_random_programs(seed: int) -> None:
    program = random_program(seed)
    random = np.random.default_rng(seed)
    n = 21
    arrays = [
        random.choice(special(Type.F32), (n, n)),
        random.choice(special(Type.I32), (n, n)),
        random.standard_normal((n, n)).astype(np.float16),
        random.choice(special(Type.F64), n),
    ]
    check_kernel(program, arrays, (n, n), (n,), isas=jit.isas() if seed % 4 == 0 else jit.isas()[-1:])


# -- refusals, objects, assembly ------------------------------------------------------------------
def test_extent_and_wrong_layouts_are_refused() -> None:
    b = Builder([Port(DType.F32, 1)], 1)
    program = b.finish([b.load(0, b.index(0)) * b.convert(b.extent(OUT, 0), Type.F32)], [DType.F32])
    with pytest.raises(GraphError, match="extents"):
        jit.compile_kernel(program, Layout(((1,), (1,)), 0))
    with pytest.raises(GraphError, match="layout"):
        jit.compile_kernel(pointwise([Type.F32], lambda b, x: [x]), Layout(((1,), (1,)), 0))


def test_unknown_isa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = pointwise([Type.F32], lambda b, x: [x])
    with pytest.raises(DeviceError):
        jit.compile_kernel(program, Layout(((None, 1), (None, 1)), 0), "sse9")
    monkeypatch.setenv("REE_ISA", "sse9")
    with pytest.raises(DeviceError):
        jit.compile_kernel(program, Layout(((None, 1), (None, 1)), 0))
    monkeypatch.setenv("REE_ISA", "portable")
    assert jit.default_isa() == "portable" and jit.default_isa() in jit.isas()


def undefined_symbols(elf: bytes) -> tuple[int, set[str]]:
    """The machine number of a 64-bit ELF object, and the names that it wants from outside."""
    assert elf[:5] == b"\x7fELF\x02"
    (sections_at,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + i * size) for i in range(count)]
    names: set[str] = set()
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        strings = sections[section[6]][4]
        for at in range(section[4] + 24, section[4] + section[5], 24):
            name, _, _, home = struct.unpack_from("<IBBH", elf, at)
            if home == 0:
                names.add(elf[strings + name : elf.index(b"\0", strings + name)].decode())
    return struct.unpack_from("<H", elf, 18)[0], names


TRIPLES = [
    ("x86_64-unknown-linux-gnu", "x86-64", "+sse2", 62, {"fma", "fmaf"}),
    ("x86_64-unknown-linux-gnu", "x86-64-v3", "+avx2,+fma,+f16c,+bmi,+bmi2", 62, set()),
    ("aarch64-unknown-linux-gnu", "generic", "+neon", 183, set()),
    ("riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d,+c", 243, set()),
]


@pytest.mark.parametrize(("triple", "cpu", "features", "machine", "allowed"), TRIPLES)
def test_objects_need_nothing_but_fma(triple: str, cpu: str, features: str, machine: int, allowed: set[str]) -> None:
    """Every instruction that could become a call of libm or of the compiler's run-time library."""

    def make(b: Builder, x: Value, y: Value) -> list[Value]:
        one = [op for op in PLAIN if Type.F32 in INSTRUCTIONS[op].types]
        found = [b.op(op, *(x, y)[: INSTRUCTIONS[op].arity]) for op in one]
        wide = b.convert(x, Type.F64)
        two = [op for op in PLAIN if Type.F64 in INSTRUCTIONS[op].types and INSTRUCTIONS[op].arity == 1]
        found += [b.op(op, wide) for op in two] + [b.fma(x, y, x), b.fma(wide, wide, wide)]
        found += [b.convert(b.convert(v, t), Type.F32) for v in (x, wide) for t in (Type.I32, Type.I64, Type.U64)]
        return [*found, b.round(x, DType.F16), b.round(x, DType.BF16)]

    program = pointwise([Type.F32, Type.F32], make)
    layout = Layout(((None, 1),) * (2 + len(program.results)), 0)
    number, wanted = undefined_symbols(jit.emit_object(program, layout, triple, cpu, features))
    assert number == machine
    assert wanted <= allowed | {"memset", "memcpy"}


@pytest.mark.parametrize("isa", [i for i in jit.isas() if i.startswith("avx")])
def test_products_and_sums_are_not_contracted(isa: str) -> None:
    program = pointwise([Type.F32, Type.F32], lambda b, x, y: [x * y + x - y * y])
    text = jit.emit_assembly(program, Layout(((None, 1),) * 3, 0), isa)
    assert "vmulps" in text and "vfm" not in text and "vfnm" not in text
    fused = pointwise([Type.F32, Type.F32], lambda b, x, y: [b.fma(x, y, x)])
    assert "vfm" in jit.emit_assembly(fused, Layout(((None, 1),) * 3, 0), isa)


# -- costly arms of selects ------------------------------------------------------------------
def _chain(value: Value, steps: int) -> Value:
    """A long computation, different at every step."""
    for step in range(steps):
        value = value * (1.0 + step / 64) + 0.25
    return value


def _arms(b: Builder, x: Value, y: Value) -> list[Value]:
    """Selects whose last operand is costly, one inside another, one shared with another use, one of two rows."""
    shared = _chain(y, 20)
    inner = b.select(y < 0.0, x, _chain(x * y, 30))
    rare = b.select(x < 100.0, x + 1.0, _chain(inner, 25))
    always = b.select(x < 1e30, y, shared)
    return [rare, always, shared, b.select(x.eq(x), y, b.convert(_chain(b.convert(x, Type.F64), 20), Type.F32))]


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 200])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_costly_arms_run_where_a_lane_chooses_them(columns: int, share: float) -> None:
    """Behind a branch or not, the select's meaning stays: no lane, some lanes, all lanes, and NaN."""
    random = np.random.default_rng(int(share * 100) + columns)
    x, y = random.standard_normal((2, 3, columns)).astype(np.float32)
    chosen = random.random(x.shape) < share
    x[chosen] = random.choice([150.0, np.inf, np.nan], chosen.sum())
    program = pointwise([Type.F32, Type.F32], _arms)
    check_kernel(program, [x, y], x.shape)


def test_an_arm_is_behind_a_branch_only_if_nothing_else_needs_it() -> None:
    program = pointwise([Type.F32, Type.F32], _arms)
    parts = split_arms(program.body, program.results)
    arms = [part for part in parts if isinstance(part, Arm)]
    assert [len(arm.body) > 32 for arm in arms] == [True, True]  # `rare` (its inner select inside) and the last
    kept = [part for part in parts if not isinstance(part, Arm)]
    assert sum(len(arm.body) + 1 for arm in arms) + len(kept) == len(program.body)
    (outer, _) = arms
    assert any(isinstance(part, Arm) for part in split_arms(outer.body, outer.select.args[2:]))


def test_loads_and_bounds_stay_out_of_arms() -> None:
    """A refused index is reported even where the select ignores what was loaded with it."""
    b = Builder([Port(DType.F32, 2), Port(DType.I64, 2), Port(DType.F32, 1)], 2)
    x, index = (b.load(n, *b.indices()) for n in range(2))
    looked_up = b.load(2, b.bound(index, b.extent(2, 0)))
    program = b.finish([b.select(x.eq(x), x, _chain(looked_up, 30))], [DType.F32])
    (arm,) = (part for part in split_arms(program.body, program.results) if isinstance(part, Arm))
    assert not {instr.op for instr in arm.body} & {"load", "bound"}
