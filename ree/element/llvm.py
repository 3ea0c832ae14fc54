"""Element program -> LLVM IR: a kernel of the calling convention in ree_kernels/c/abi.h.

A kernel walks rows and, in a row, columns in vectors of 16 lanes. What does not depend on
the column is computed once a row. A value is uniform, affine in the lane number, or a
vector (`Val`), so a load of affine coordinates is a broadcast, a vector load or a gather.
Folds are in llvm_fold.py, instructions in llvm_ops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ree.element.llvm_fold import print_fold
from ree.element.llvm_ops import STORAGE, Ops, Target
from ree.element.llvm_schedule import Arm, free_values, lanes_are_columns, size, split_arms, varies_with_column
from ree.element.llvm_text import LLVM_TYPE, RARE_DEFINITION, Val, Writer, literal, suffix, vector
from ree.element.program import Instr, Program
from ree.errors import GraphError
from ree.types import DType, Type

PRINTER_VERSION = 4
LANES = 16
_LONG = 96  # programs with more instructions, chains of FMAs mostly, get two vectors at a time to hide latency
_ONE_BODY = 160  # programs with more instructions are printed once, always masked


@dataclass(frozen=True)
class Layout:
    """How a kernel's ports lie in memory.

    strides: for each input, then each result, the stride of each axis in elements: 0, 1, or
    None for one that is only known at run time; params: number of the program's parameters.
    """

    strides: tuple[tuple[int | None, ...], ...]
    params: int

    @property
    def text(self) -> str:
        return f"{self.params} {self.strides}"


class Printer:
    """Prints one kernel; GraphError for a program that kernels cannot express."""

    def __init__(self, program: Program, layout: Layout, target: Target) -> None:
        self.program = program
        self.layout = layout
        self.target = target
        self.w = Writer()
        self.values: dict[int, Val] = {}
        self.index: list[Val] = []  # coordinates of the element being computed
        self.width = 1  # lanes of the values being printed
        self.mask: str | None = None  # active lanes; None: all
        self.helpers: dict[str, str] = {}  # functions that this kernel calls
        self._entry: dict[tuple[str, int], str] = {}
        self._ranks = [port.rank for port in program.inputs] + [program.rank] * len(program.results)
        if [len(strides) for strides in layout.strides] != self._ranks:
            raise GraphError(f"layout {layout.strides} does not fit the program's ports")
        self._masked_only = target.masks and size(program.body, program.results) > _ONE_BODY

    # -- the kernel --------------------------------------------------------------------
    def function(self, name: str) -> str:
        """The text of the kernel's function."""
        rows, columns = self.w.do("icmp slt i64 %r0, %r1"), self.w.do("icmp slt i64 %c0, %c1")
        self.w.when(self.w.do(f"and i1 {rows}, {columns}"), self._rows)
        head = f"define void @{name}(ptr %args, i64 %r0, i64 %r1, i64 %c0, i64 %c1, ptr %scratch) #0 {{\nentry:\n"
        return head + "\n".join([*self.w.entry, *self.w.lines, "  ret void", "}"]) + "\n"

    def _rows(self) -> list[str]:
        axes = max(0, self.program.rank - 1)
        starts = self._unflatten("%r0", axes)
        with self.w.loop("%r0", "%r1", 1, [("i64", start) for start in starts]) as loop:
            self.index = [Val(Type.I64, axis) for axis in loop.carried]
            self._row()
            loop.next = self._next_row(loop.carried)
        return []

    def _unflatten(self, row: str, axes: int) -> list[str]:
        """Coordinates of row number `row` of a box that is not empty."""
        starts: list[str] = []
        for axis in reversed(range(axes)):
            if axis == 0:
                starts.insert(0, row)
                break
            extent = self._extent(axis)
            starts.insert(0, self.w.do(f"urem i64 {row}, {extent}"))
            row = self.w.do(f"udiv i64 {row}, {extent}")
        return starts

    def _next_row(self, coordinates: Sequence[str]) -> list[str]:
        """Count up by one row; the last axis overflows into the one before."""
        following: list[str] = []
        carry = "1"
        for axis in reversed(range(len(coordinates))):
            up = self.w.add(coordinates[axis], carry)
            if axis > 0:
                over = self.w.do(f"icmp eq i64 {up}, {self._extent(axis)}")
                up = self.w.do(f"select i1 {over}, i64 0, i64 {up}")
                carry = self.w.do(f"zext i1 {over} to i64")
            following.insert(0, up)
        return following

    def _row(self) -> None:
        varying = varies_with_column(self.program)
        body = self.program.body
        column = [instr for instr in body if instr.results[0] in varying]
        needed = {value for instr in column for value in free_values(instr)[0]}.union(self.program.results)
        self.run([instr for instr in body if instr.results[0] not in varying], needed)

        def columns(index: Val, carried: Sequence[str]) -> list[str]:
            self.index = [*rows, index] if self.program.rank else []
            self.run(column, self.program.results)
            # a result may be stored over an input at the same coordinates: all loads come first
            for number in range(len(self.program.results)):
                self._store(number)
            return []

        rows = self.index
        lanes = 2 * LANES if size(column, self.program.results) > _LONG else LANES
        if not lanes_are_columns(self.program, self.layout.strides):
            lanes = 1
        self.strip("%c0", "%c1", lanes, [], columns)
        self.index = rows

    # -- lanes ------------------------------------------------------------------------------
    @contextmanager
    def lanes(self, width: int, mask: str | None) -> Iterator[None]:
        """Print values of `width` lanes, of which those of `mask` are wanted."""
        saved = self.width, self.mask
        self.width, self.mask = width, mask
        yield
        self.width, self.mask = saved

    def strip(
        self,
        start: str,
        stop: str,
        width: int,
        carried: Sequence[tuple[str, str]],
        body: Callable[[Val, Sequence[str]], list[str]],
    ) -> list[str]:
        """Run `body(index, carried)` over start..stop in lanes: whole vectors, the rest masked.

        carried: (type, first value); the body returns the next ones, the strip the last ones.
        """
        w = self.w
        step = "0" if width == 1 else "1"
        if width == 1 or self._masked_only:
            with w.loop(start, stop, width, carried) as loop:
                mask = None if width == 1 else w.below(w.sub(stop, loop.index), width)
                with self.lanes(width, mask):
                    loop.next = body(Val(Type.I64, loop.index, step), loop.carried)
            return loop.results
        whole = w.do(f"and i64 {w.sub(stop, start)}, {-width}")
        middle = w.add(start, whole)
        with w.loop(start, middle, width, carried) as loop, self.lanes(width, None):
            loop.next = body(Val(Type.I64, loop.index, step), loop.carried)

        def rest() -> list[str]:
            with self.lanes(width, w.below(w.sub(stop, middle), width)):
                return body(Val(Type.I64, middle, step), loop.results)

        left = w.do(f"icmp slt i64 {middle}, {stop}")
        types = [type for type, _ in carried]
        return w.when(left, rest, list(zip(types, loop.results, strict=True)))

    def ops(self, width: int | None = None) -> Ops:
        return Ops(self.w, self.target, self.width if width is None else width)

    def wide(self, value: Val) -> str:
        return self.w.widen(value, self.width)

    def is_uniform(self, instr: Instr) -> bool:
        """Whether a fold gives every lane the same."""
        used, axes = free_values(instr)
        return all(self.values[v].uniform for v in used) and all(self.index[a].uniform for a in axes)

    # -- instructions ----------------------------------------------------------------------------
    def run(self, body: Sequence[Instr], wanted: Collection[int]) -> None:
        """Print instructions, in the current lanes; wanted: the values that are used outside the body."""
        for part in split_arms(body, wanted):
            if isinstance(part, Arm):
                self._arm(part)
            elif part.region is not None:
                results = print_fold(self, part, part.region)
                self.values.update(zip(part.results, results, strict=True))
            else:
                self.values[part.results[0]] = self._instruction(part)

    def _arm(self, arm: Arm) -> None:
        """A select with a costly last operand: computed behind a branch, if any active lane chooses it."""
        select = arm.select
        condition = self.values[select.args[0]]
        type = select.types[0]
        width = 1 if condition.uniform else self.width
        others = self.w.do(f"xor {vector('i1', width)} {condition.text}, {self.ops(width).constant('i1', 'true')}")
        needed = self.w.any_lane(self._and_mask(others), width) if width > 1 else others

        def body() -> list[str]:
            self.run(arm.body, select.args[2:])
            return [self.wide(self.values[select.args[2]])]

        zero = "zeroinitializer" if self.width > 1 else literal(0, type)
        (text,) = self.w.when(needed, body, [(vector(LLVM_TYPE[type], self.width), zero)], rare=True)
        self.values[select.args[2]] = Val(type, text, lanes=self.width > 1)
        self.values[select.results[0]] = self._instruction(select)

    def _instruction(self, instr: Instr) -> Val:
        args = [self.values[a] for a in instr.args]
        type = instr.types[0]
        match instr.op:
            case "const":
                return Val(type, literal(int(instr.imm[0]), type))
            case "index":
                return self.index[int(instr.imm[0])]
            case "param":
                return Val(type, self._param(int(instr.imm[0])))
            case "extent":
                raise GraphError("a kernel takes extents as parameters")
            case "load":
                return self._load(int(instr.imm[0]), args, self.mask)
            case "load_if":
                return self._load_if(int(instr.imm[0]), args[0], args[1], args[2:])
            case "bound":
                return self._bound(args[0], args[1])
        return self._affine(instr.op, args) or self._plain(instr, args)

    def _affine(self, op: str, args: list[Val]) -> Val | None:
        """i64 sums, differences and multiples of values that are affine in the lane number."""
        if op not in ("add", "sub", "mul") or args[0].type is not Type.I64 or any(a.lanes for a in args):
            return None
        a, b = args
        w = self.w
        if op == "add":
            return Val(Type.I64, w.add(a.text, b.text), w.add(a.step, b.step))
        if op == "sub":
            return Val(Type.I64, w.sub(a.text, b.text), w.sub(a.step, b.step))
        if not a.uniform and not b.uniform:
            return None
        scale, line = (a, b) if a.uniform else (b, a)
        return Val(Type.I64, w.mul(line.text, scale.text), w.mul(line.step, scale.text))

    def _plain(self, instr: Instr, args: list[Val]) -> Val:
        width = 1 if all(a.uniform for a in args) else self.width
        if instr.op in ("div", "rem") and width > 1 and args[1].uniform and args[0].type is Type.I64:
            return Val(Type.I64, self._divide(instr.op, self.wide(args[0]), args[1].text), lanes=True)
        texts = [self.w.widen(a, width) for a in args]
        source = args[1 if instr.op == "select" else 0].type
        text = self.ops(width).emit(instr.op, source, texts, instr.types[0], instr.imm)
        return Val(instr.types[0], text, lanes=width > 1)

    def _divide(self, op: str, a: str, divisor: str) -> str:
        """Lanes divided by one number: in binary64, exact up to 2^52, else lane by lane."""
        ops, wide = self.ops(), vector("i64", self.width)
        b = self.w.splat("i64", divisor, self.width)
        if not self.target.masks:  # no conversions between i64 and f64 in lanes
            return ops.emit(op, Type.I64, [a, b], Type.I64, ())
        limit = 1 << 52
        moved = ops.binary("add", wide, a, ops.constant("i64", limit))
        large = self.w.any_lane(ops.compare("uge", wide, moved, ops.constant("i64", 2 * limit)), self.width)
        below = self.w.do(f"sub i64 {divisor}, 1")
        odd = self.w.do(f"icmp uge i64 {below}, {limit}")  # also what is not positive

        def by_lane() -> list[str]:
            return [self._divide_each(a, divisor)]

        numerator, denominator = ops.convert(Type.I64, Type.F64, a), self.w.do(f"sitofp i64 {divisor} to double")
        double = vector("double", self.width)
        real = ops.binary("fdiv", double, numerator, self.w.splat("double", denominator, self.width))
        fast = ops.convert(Type.F64, Type.I64, real)
        quotient = self.w.when(self.w.do(f"or i1 {large}, {odd}"), by_lane, [(wide, fast)])[0]
        return quotient if op == "div" else ops.binary("sub", wide, a, ops.binary("mul", wide, quotient, b))

    def _divide_each(self, a: str, divisor: str) -> str:
        wide = vector("i64", self.width)
        array = self.w.do_entry(f"alloca {wide}, align 64")
        self.w.void(f"store {wide} {a}, ptr {array}")
        with self.w.loop("0", str(self.width), 1) as loop:
            place = self.w.do(f"getelementptr i64, ptr {array}, i64 {loop.index}")
            value = self.w.do(f"load i64, ptr {place}")
            value = self.ops(1).emit("div", Type.I64, [value, divisor], Type.I64, ())
            self.w.void(f"store i64 {value}, ptr {place}")
        return self.w.do(f"load {wide}, ptr {array}")

    # -- memory --------------------------------------------------------------------------------------
    def _load(self, source: int, coordinates: Sequence[Val], mask: str | None) -> Val:
        dtype = self.program.inputs[source].dtype
        base, step, offsets = self._address(source, coordinates)
        if step == "0" and offsets is None:
            raw = self._load_scalar(source, dtype, base)
            return Val(dtype.element, self.ops(1).load_widen(dtype, raw))
        raw = self._load_lanes(source, dtype, base, step, offsets, mask)
        return Val(dtype.element, self.ops().load_widen(dtype, raw), lanes=True)

    def _load_if(self, source: int, condition: Val, other: Val, coordinates: Sequence[Val]) -> Val:
        dtype = self.program.inputs[source].dtype
        element = dtype.element
        if condition.uniform:
            return self._load_branch(source, condition.text, other, coordinates)
        wanted = self._and_mask(self.wide(condition))
        base, step, offsets = self._address(source, coordinates)
        if step == "0" and offsets is None:
            zero = (LLVM_TYPE[element], literal(0, element))

            def load() -> list[str]:
                return [self.ops(1).load_widen(dtype, self._load_scalar(source, dtype, base))]

            loaded = Val(element, self.w.when(self.w.any_lane(wanted, self.width), load, [zero])[0])
        else:
            raw = self._load_lanes(source, dtype, base, step, offsets, wanted)
            loaded = Val(element, self.ops().load_widen(dtype, raw), lanes=True)
        ops = self.ops()
        text = ops.select(self.wide(condition), ops.type(element), self.wide(loaded), self.wide(other))
        return Val(element, text, lanes=True)

    def _load_branch(self, source: int, condition: str, other: Val, coordinates: Sequence[Val]) -> Val:
        """One condition for all lanes: a branch around the load."""
        base, step, offsets = self._address(source, coordinates)
        lanes = other.lanes or step != "0" or offsets is not None
        width = self.width if lanes else 1
        dtype = self.program.inputs[source].dtype

        def load() -> list[str]:
            if step == "0" and offsets is None:
                loaded = Val(dtype.element, self.ops(1).load_widen(dtype, self._load_scalar(source, dtype, base)))
                return [self.w.widen(loaded, width)]
            return [self.ops().load_widen(dtype, self._load_lanes(source, dtype, base, step, offsets, self.mask))]

        type = vector(LLVM_TYPE[dtype.element], width)
        text = self.w.when(condition, load, [(type, self.w.widen(other, width))])[0]
        return Val(dtype.element, text, lanes=width > 1)

    def _load_scalar(self, port: int, dtype: DType, offset: str) -> str:
        place = self._element(port, dtype, offset)
        return self.w.do(f"load {STORAGE[dtype]}, ptr {place}, align {dtype.size_bytes}")

    def _load_lanes(self, port: int, dtype: DType, base: str, step: str, offsets: str | None, mask: str | None) -> str:
        wide = vector(STORAGE[dtype], self.width)
        mask_type = vector("i1", self.width)
        align = ("i32", str(dtype.size_bytes))
        if step == "1" and offsets is None:
            place = self._element(port, dtype, base)
            if mask is None:
                return self.w.do(f"load {wide}, ptr {place}, align {dtype.size_bytes}")
            args = [("ptr", place), align, (mask_type, mask), (wide, "zeroinitializer")]
            return self.w.call(f"llvm.masked.load.{suffix(wide)}.p0", wide, args)
        places = self._elements(port, dtype, base, step, offsets)
        args = [(vector("ptr", self.width), places), align]
        args += [(mask_type, mask or "splat (i1 true)"), (wide, "zeroinitializer")]
        return self.w.call(f"llvm.masked.gather.{suffix(wide)}.v{self.width}p0", wide, args)

    def _store(self, number: int) -> None:
        dtype = self.program.dtypes[number]
        port = len(self.program.inputs) + number
        value = self.wide(self.values[self.program.results[number]])
        raw = self.ops().store_narrow(dtype, value)
        base, step, _ = self._address(port, self.index)
        stored = f"i{8 * dtype.size_bytes}"
        if self.width == 1:
            place = self._element(port, dtype, base)
            self.w.void(f"store {stored} {raw}, ptr {place}, align {dtype.size_bytes}")
            return
        wide, mask_type = vector(stored, self.width), vector("i1", self.width)
        if step == "1" and self.mask is None:
            place = self._element(port, dtype, base)
            self.w.void(f"store {wide} {raw}, ptr {place}, align {dtype.size_bytes}")
            return
        align, mask = ("i32", str(dtype.size_bytes)), (mask_type, self.mask or "splat (i1 true)")
        if step == "1":
            args = [(wide, raw), ("ptr", self._element(port, dtype, base)), align, mask]
            self.w.call(f"llvm.masked.store.{suffix(wide)}.p0", "void", args)
            return
        places = self._elements(port, dtype, base, step, None)
        args = [(wide, raw), (vector("ptr", self.width), places), align, mask]
        self.w.call(f"llvm.masked.scatter.{suffix(wide)}.v{self.width}p0", "void", args)

    def _address(self, port: int, coordinates: Sequence[Val]) -> tuple[str, str, str | None]:
        """Element offset of coordinates: scalar base, step from lane to lane, vector part."""
        w = self.w
        base, step, offsets = "0", "0", None
        wide = vector("i64", self.width)
        for axis, coordinate in enumerate(coordinates):
            stride = self._stride(port, axis)
            if stride == "0":
                continue
            if not coordinate.lanes:
                base = w.add(base, w.mul(coordinate.text, stride))
                step = w.add(step, w.mul(coordinate.step, stride))
                continue
            part = coordinate.text
            if stride != "1":
                part = w.do(f"mul {wide} {part}, {w.splat('i64', stride, self.width)}")
            offsets = part if offsets is None else w.do(f"add {wide} {offsets}, {part}")
        return base, step, offsets

    def _element(self, port: int, dtype: DType, offset: str) -> str:
        return self.w.do(f"getelementptr {STORAGE[dtype]}, ptr {self._pointer(port)}, i64 {offset}")

    def _elements(self, port: int, dtype: DType, base: str, step: str, offsets: str | None) -> str:
        """The addresses of the lanes' elements."""
        wide = vector("i64", self.width)
        if step != "0":
            line = self.w.widen(Val(Type.I64, "0", step), self.width)
            offsets = line if offsets is None else self.w.do(f"add {wide} {offsets}, {line}")
        place = self._element(port, dtype, base)
        return self.w.do(f"getelementptr {STORAGE[dtype]}, ptr {place}, {wide} {offsets or 'zeroinitializer'}")

    def _bound(self, index: Val, extent: Val) -> Val:
        """The index clamped into 0 .. extent-1; the status is set where that changes it."""
        width = 1 if index.uniform and extent.uniform else self.width
        ops = self.ops(width)
        wide = ops.type(Type.I64)
        at, end = self.w.widen(index, width), self.w.widen(extent, width)
        wrong = ops.compare("uge", wide, at, end)
        status = self._from_args("status", 2)

        def fail() -> list[str]:
            self.w.void(f"store atomic i64 1, ptr {status} monotonic, align 8")
            return []

        self.w.when(self.w.any_lane(self._and_mask(wrong) if width > 1 else wrong, width), fail)
        last = ops.binary("sub", wide, end, ops.constant("i64", 1))
        inside = self.w.intrinsic("smin", wide, at, last)
        inside = self.w.intrinsic("smax", wide, inside, ops.constant("i64", 0))
        return Val(Type.I64, inside, lanes=width > 1)

    def _and_mask(self, mask: str) -> str:
        """The lanes of `mask` that are active."""
        if self.mask is None:
            return mask
        return self.w.do(f"and {vector('i1', self.width)} {mask}, {self.mask}")

    # -- arguments, fetched once at the entry -------------------------------------------------------
    def _from_args(self, what: str, slot: int) -> str:
        return self._once(what, -1, "ptr", "%args", slot)

    def _once(self, what: str, number: int, type: str, array: str, slot: int) -> str:
        key = (what, number)
        if key not in self._entry:
            place = self.w.do_entry(f"getelementptr {type}, ptr {array}, i64 {slot}")
            self._entry[key] = self.w.do_entry(f"load {type}, ptr {place}, align 8")
        return self._entry[key]

    def _pointer(self, port: int) -> str:
        return self._once("pointer", port, "ptr", self._from_args("pointers", 0), port)

    def _param(self, slot: int) -> str:
        return self._once("param", slot, "i64", self._from_args("params", 1), slot)

    def _extent(self, axis: int) -> str:
        return self._param(self.layout.params + axis)

    def _stride(self, port: int, axis: int) -> str:
        known = self.layout.strides[port][axis]
        if known is not None:
            return str(known)
        return self._param(self.layout.params + self.program.rank + sum(self._ranks[:port]) + axis)


def print_module(kernels: Sequence[tuple[str, Program, Layout]], target: Target) -> str:
    """The module of these kernels: (name, program, layout)."""
    functions: list[str] = []
    declarations: dict[str, str] = {}
    helpers: dict[str, str] = {}
    for name, program, layout in kernels:
        printer = Printer(program, layout, target)
        functions.append(printer.function(name))
        declarations.update(printer.w.declarations)
        helpers.update(printer.helpers)
    for helper in helpers:
        declarations.pop(helper, None)
    attributes = (
        f'attributes #0 = {{ nounwind "target-cpu"="{target.cpu}" "target-features"="{target.features}"'
        ' "prefer-vector-width"="512" "min-legal-vector-width"="512" }'
    )
    parts = [f'target triple = "{target.triple}"', *functions, *helpers.values()]
    return "\n".join([*parts, *declarations.values(), attributes, RARE_DEFINITION, ""])
