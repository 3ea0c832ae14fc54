"""Printed CUDA kernels against the interpreter, on the emulator: every instruction, every fold, every form."""

from __future__ import annotations

import numpy as np
import pytest

from ree.element import cuda as printer
from ree.element.cuda import form_of
from ree.element.interpret import interpret
from ree.element.llvm import Layout
from ree.element.program import INSTRUCTIONS, OUT, Builder, Port, Program, Value
from ree.errors import GraphError
from ree.types import DType, Type
from ree_kernels.cuda import Launch
from tests.cuda_kernels import BLOCK, Batch
from tests.element_programs import (
    LENGTHS,
    NUMPY,
    PLAIN,
    STORED,
    fold_program,
    pairs,
    pointwise,
    random_array,
    random_program,
    special,
)
from tools.emulator import device as emulator

NUMBERS = [t for t in Type if t is not Type.BOOL]


@pytest.fixture
def batch() -> Batch:
    return Batch(emulator.shared())


def test_every_plain_instruction(batch: Batch) -> None:
    for type in Type:

        def make(b: Builder, x: Value, y: Value, type: Type = type) -> list[Value]:
            names = [op for op in PLAIN if type in INSTRUCTIONS[op].types]
            return [b.op(op, *(x, y)[: INSTRUCTIONS[op].arity]) for op in names]

        batch.add(pointwise([type, type], make), pairs(type), pairs(type)[0].shape, forms=["flat"])
    batch.check()


def test_selects_and_fused_products(batch: Batch) -> None:
    for type in Type:
        arrays = [np.resize([True, False, False], pairs(type)[0].shape), *pairs(type)]
        program = pointwise([Type.BOOL, type, type], lambda b, c, x, y: [b.select(c, x, y)])
        batch.add(program, arrays, arrays[0].shape, forms=["flat"])
    random = np.random.default_rng(1)
    for type, columns in ((Type.F32, 500), (Type.F64, 53)):
        bits = np.uint32 if type is Type.F32 else np.uint64
        arrays = [random.integers(0, np.iinfo(bits).max, (2, columns), bits).view(NUMPY[type]) for _ in range(3)]
        for array in arrays:
            array[1] = random.choice(special(type), columns)
        program = pointwise([type] * 3, lambda b, x, y, z: [b.fma(x, y, z), x * y + z])
        batch.add(program, arrays, (2, columns), forms=["flat"])
    batch.check()


def test_conversions(batch: Batch) -> None:
    for source in Type:

        def make(b: Builder, x: Value, source: Type = source) -> list[Value]:
            found = [b.convert(x, to) for to in Type if to is not source]
            alike = [t for t in Type if t.bits == source.bits and t is not source and t is not Type.BOOL]
            return found + [b.bitcast(x, to) for to in alike if source is not Type.BOOL]

        array = pairs(source)[0]
        batch.add(pointwise([source], make), [array], array.shape, forms=["flat"])
    batch.check()


def test_storage_of_every_dtype(batch: Batch) -> None:
    """Each dtype is read as its bits are, and written as its element type rounds or wraps to it."""
    for dtype in DType:
        size = 8 * dtype.size_bytes
        every = np.arange(1 << 16, dtype=np.uint64) * (1 if size <= 16 else 0x9E3779B97F4A7C15 >> (64 - size))
        array = every.astype(f"u{dtype.size_bytes}").view(dtype.numpy)
        array = (array.view(np.uint8) != 0) if dtype is DType.BOOL else array
        b = Builder([Port(dtype, 1)], 1)
        x = b.load(0, b.index(0))
        rounded = b.round(x, dtype)
        batch.add(b.finish([x, rounded], [STORED[x.type], dtype]), [array], (len(array),), forms=["flat"])
    batch.check()


@pytest.mark.parametrize("contiguous", [True, False])
def test_folds(batch: Batch, contiguous: bool) -> None:
    """In every form, over boundary lengths, along memory and across it."""
    for n in LENGTHS[: 10 if contiguous else 8]:
        program = fold_program(lambda b: lambda k: b.load(0, b.index(0), k), 2, 2, sequential=n < 300)
        x = random_array((3, n), n)
        x = x if contiguous else np.ascontiguousarray(x.T).T
        batch.add(program, [x, np.zeros(0, np.int64)], (3, 2), (n,), known=contiguous)
    batch.check()


def test_folds_with_a_count_for_each_column(batch: Batch) -> None:
    program = fold_program(lambda b: lambda k: b.load(0, k, b.index(0)), 1, 2, per_column=True)
    counts = np.array([*LENGTHS[:8], *np.random.default_rng(6).integers(0, 600, 27)], dtype=np.int64)
    batch.add(program, [random_array((600, 35)), counts], (35,), (0,), forms=["flat", "single"])
    batch.check()


def test_sums_of_many_chunks(batch: Batch) -> None:
    """More than 256 chunks: a third level of sums."""
    b = Builder([Port(DType.F32, 1)], 2)
    across = b.fold_sum(b.param(0), lambda k: b.load(0, k))
    down = b.fold_sum(b.param(0), lambda k: b.load(0, k) * b.convert(b.index(1), Type.F32))
    program = b.finish([across, down], [DType.F32, DType.F32])
    for n in (65535, 65536, 65537, 3 * 65536 + 5):
        batch.add(program, [random_array((n,))], (1, 3), (n,), forms=["flat", "rows"])
    batch.check()


def test_special_values_in_folds(batch: Batch) -> None:
    program = fold_program(lambda b: lambda k: b.load(0, b.index(0), k), 2, 2)
    random = np.random.default_rng(7)
    rows = [random.choice(special(Type.F32), 70), np.full(70, -0.0), np.full(70, -np.inf)]
    rows += [random.choice(np.array([0.0, -0.0]), 70), random.choice(np.array([0.0, -0.0, -1.0]), 70)]
    batch.add(program, [np.array(rows, np.float32), np.zeros(0, np.int64)], (len(rows), 1), (70,))
    batch.check()


def test_nested_folds(batch: Batch) -> None:
    b = Builder([Port(DType.F32, 2), Port(DType.F32, 2)], 2)
    i, j = b.indices()
    n = b.param(0)
    largest = b.fold_max(n, lambda k: b.fold_sum(n, lambda q: b.load(0, k, q) * b.load(1, q, k)))
    mixed = b.fold_sum(n, lambda k: b.fold_dot(k, lambda q: (b.load(0, j, q), b.load(1, q, k))))
    uniform = b.fold_sum(n, lambda k: b.fold_max(n, lambda q: b.load(0, i, q)) * b.load(0, j, k))
    program = b.finish([largest, mixed, uniform], [DType.F32] * 3)
    batch.add(program, [random_array((21, 21)), random_array((21, 21), 1)], (21, 21), (21,), forms=["flat", "rows"])
    batch.check()


def test_random_programs(batch: Batch) -> None:
    for seed in range(16):
        random = np.random.default_rng(seed)
        n = 21
        arrays = [
            random.choice(special(Type.F32), (n, n)),
            random.choice(special(Type.I32), (n, n)),
            random.standard_normal((n, n)).astype(np.float16),
            random.choice(special(Type.F64), n),
        ]
        batch.add(random_program(seed), arrays, (n, n), (n,), known=seed % 2 == 0, forms=["flat", "rows"])
    batch.check()


def test_views_and_shapes(batch: Batch) -> None:
    base = random_array((6, 8, 10))
    views = [base, base.transpose(2, 0, 1), base[::-1, :, ::2], base[:, :1].repeat(1, 1), base[2:5, ::-1, 3:]]
    for view in views:
        b = Builder([Port(DType.F32, 3)], 3)
        program = b.finish([b.load(0, *b.indices()) + 1.0], [DType.F32])
        for known in (True, False):
            batch.add(program, [view], view.shape, known=known)
    for shape in [(), (1,), (17,), (4, 0), (0, 4), (2, 3, 4, 5)]:
        b = Builder([Port(DType.F32, len(shape))], len(shape))
        program = b.finish([b.load(0, *b.indices()) + 1.0], [DType.F32])
        batch.add(program, [np.asarray(random_array(shape or (1,))).reshape(shape)], shape, forms=["flat"])
    batch.check()


def test_load_if_reads_nothing_elsewhere(batch: Batch) -> None:
    """The emulator ends a read outside an allocation."""
    b = Builder([Port(DType.F32, 1)], 1)
    i = b.index(0)
    inside = i < 5
    program = b.finish([b.load_if(inside, b.f32(-1.0), 0, i)], [DType.F32])
    batch.add(program, [random_array((5,))], (1 << 16,), forms=["flat"])
    batch.check()


def test_bound_sets_the_status() -> None:
    device = emulator.shared()
    b = Builder([Port(DType.F32, 1), Port(DType.I64, 1)], 1)
    at = b.bound(b.load(1, b.index(0)), b.param(0))
    program = b.finish([b.load(0, at)], [DType.F32])
    text = printer.print_kernel(program, Layout(((1,), (1,), (1,)), 1), "flat")
    function = device.load(device.compile(text.text)).function(printer.KERNEL, 0)
    x = random_array((4,))
    for wrong in (-1, 4, 1 << 62, -(1 << 63)):
        index = np.array([0, 3, wrong], np.int64)
        memories = [device.allocate(64) for _ in range(4)]
        out, status = np.zeros(3, np.float32), np.zeros(1, np.int64)
        for memory, array in zip(memories, (x, index, out, status), strict=True):
            device.write(memory.address, array.ctypes.data, array.nbytes)
        places = {("port", n): memories[n].address for n in range(3)} | {("status", 0): memories[3].address}
        values = [places.get((f.kind, f.number), {"param": 4, "extent": 3}.get(f.kind)) for f in text.fields]
        device.launch(Launch(function, (1, 1, 1), BLOCK, 0, np.array(values, np.uint64)))
        device.read(out.ctypes.data, memories[2].address, out.nbytes)
        device.read(status.ctypes.data, memories[3].address, 8)
        assert status[0] == 1
        assert out[:2].tobytes() == x[[0, 3]].tobytes() and out[2] in x  # inside, whatever the index was


def test_costly_arms_are_behind_a_branch(batch: Batch) -> None:
    b = Builder([Port(DType.F32, 1), Port(DType.F32, 1)], 1)
    x, y = b.load(0, b.index(0)), b.load(1, b.index(0))
    costly = x
    for _ in range(40):
        costly = b.fma(costly, y, 0.5)
    program = b.finish([b.select(x > 0.0, y, costly)], [DType.F32])
    assert "if (!" in printer.print_kernel(program, Layout(((1,), (1,), (1,)), 0), "flat").text
    batch.add(program, [random_array((300,)), random_array((300,), 1)], (300,), forms=["flat"])
    batch.check()


def _softmax() -> Program:
    b = Builder([Port(DType.F32, 2)], 2)
    i, j = b.indices()
    top = b.fold_max(b.param(0), lambda k: b.load(0, i, k))
    total = b.fold_sum(b.param(0), lambda k: b.load(0, i, k) - top)
    return b.finish([(b.load(0, i, j) - top) / total], [DType.F32])


def test_forms_suit_their_programs() -> None:
    assert form_of(_softmax(), ((None, 1), (None, 1))) == "rows"
    b = Builder([Port(DType.F32, 2)], 1)
    rows = b.finish([b.fold_sum(b.param(0), lambda k: b.load(0, b.index(0), k))], [DType.F32])
    assert form_of(rows, ((None, 1), (1,))) == "single"
    b = Builder([Port(DType.F32, 2)], 1)
    columns = b.finish([b.fold_sum(b.param(0), lambda k: b.load(0, k, b.index(0)))], [DType.F32])
    assert form_of(columns, ((None, 1), (1,))) == "flat"
    b = Builder([Port(DType.F32, 1)], 1)
    assert form_of(b.finish([b.load(0, b.index(0))], [DType.F32]), ((1,), (1,))) == "flat"


def test_extents_are_refused() -> None:
    b = Builder([Port(DType.F32, 1)], 1)
    program = b.finish([b.convert(b.extent(OUT, 0), Type.F32)], [DType.F32])
    with pytest.raises(GraphError, match="extents"):
        printer.print_kernel(program, Layout(((1,), (1,)), 0), "flat")


def test_epilogues(batch: Batch) -> None:
    """The element and its place, with the host's value in place of its memory."""
    device = batch.device
    b = Builder([Port(DType.F32, 3), Port(DType.F32, 1)], 3)
    i, j, k = b.indices()
    program = b.finish([b.op("max", b.load(0, i, j, k) * b.load(1, k), 0.0)], [DType.BF16])
    layout = Layout(((None, None, 1), (1,), (None, None, 1)), 0)
    printed = printer.print_epilogue(program, layout, {0})
    assert "#define REE_EPILOGUE_DENSE" in printed.text and all(f.name != "p0" for f in printed.fields)
    text = printed.text + (
        "struct host_args { const f32 *x; i64 rows; i64 columns; ree_epilogue_args e; };\n"
        "REE_KERNEL(host, host_args, 256) {\n"
        "    for (i64 n = threadIdx.x; n < a.rows * a.columns; n += blockDim.x)\n"
        "        *ree_epilogue_at(a.e, n / a.columns, n % a.columns) =\n"
        "            ree_epilogue(a.e, n / a.columns, n % a.columns, a.x[n]);\n}\n"
    )
    function = device.load(device.compile(text)).function("host", 0)
    x, bias = random_array((2, 3, 5)), random_array((5,), 1)
    x[0, 0, 0] = np.nan
    (expected,) = interpret(program, [x, bias], (2, 3, 5))
    memories = [device.allocate(256) for _ in range(3)]
    for memory, array in zip(memories, (x, bias), strict=False):
        device.write(memory.address, array.ctypes.data, array.nbytes)
    named = {"p1": memories[1].address, "p2": memories[2].address, "n0": 2, "n1": 3, "n2": 5, "s2_0": 15, "s2_1": 5}
    args = np.array([memories[0].address, 6, 5, *(named[f.name] for f in printed.fields)], np.uint64)
    device.launch(Launch(function, (1, 1, 1), 32, 0, args))
    found = np.zeros_like(expected)
    device.read(found.ctypes.data, memories[2].address, found.nbytes)
    assert found.tobytes() == expected.tobytes()
