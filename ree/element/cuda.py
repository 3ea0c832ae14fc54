"""Element program -> CUDA C: a kernel of its own, or the epilogue of another one.

The code is a function of the program and of the structure of its layout, never of sizes. Three forms of kernel:
"flat" computes each element by one thread; "rows" gives each row to a block, whose threads share the folds that do not
depend on the column; "single" gives each element to a block. What an instruction means is in values.cuh of
ree_kernels/cuda/, the orders of folds are in folds.cuh.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ree.element.llvm import Layout
from ree.element.llvm_schedule import Arm, free_values, lanes_are_columns, size, split_arms, varies_with_column
from ree.element.program import Block, Instr, Program, const_value, neutral_bits, walk
from ree.errors import GraphError
from ree.types import Type

KERNEL = "ree_fused"  # the name of every kernel that is printed
EPILOGUE_ARGS = "ree_epilogue_args"
BLOCK_MAX = 512
_AHEAD_INSTRUCTIONS = 256
_SHORT = 64  # programs of up to so many instructions compute several elements a thread, whose loads overlap
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_SHARED_FOLDS = ("sum", "dot", "max", "min", "isum", "any", "all")  # that the threads of a block can share


@dataclass
class Text:
    """A printed kernel or epilogue. fields: names of its argument struct's, in order, as `Field`s say."""

    text: str
    fields: list[Field]
    elements_per_thread: int = 1


@dataclass(frozen=True)
class Field:
    """An argument: kind "port", "status", "param", "extent" or "stride", and which one it is."""

    name: str
    kind: str
    number: int = 0
    axis: int = 0


def form_of(program: Program, strides: Sequence[Sequence[int | None]]) -> str:
    """The form that suits a program: "flat", "rows" or "single"."""
    folds = [i for i in program.body if i.region is not None and i.op.removeprefix("fold:") in _SHARED_FOLDS]
    if not folds:
        return "flat"
    if not lanes_are_columns(program, strides):
        return "single"
    varying = varies_with_column(program)
    return "rows" if any(i.results[0] not in varying for i in folds) else "flat"


def print_kernel(program: Program, layout: Layout, form: str, name: str = KERNEL) -> Text:
    """The kernel of a program; GraphError for one that kernels cannot express."""
    return _Printer(program, layout).kernel(form, name)


def print_epilogue(program: Program, layout: Layout, own: Collection[int]) -> Text:
    """What a kernel runs on each of its results; own: the ports that are that result.

    Gives `ree_epilogue_args`, `ree_epilogue(e, row, column, value)`, which is the element as it is stored, and
    `ree_epilogue_at(e, row, column)`, its place; REE_EPILOGUE_DENSE is defined where columns lie side by side.
    """
    return _Printer(program, layout, own).epilogue()


@dataclass
class _Printer:
    program: Program
    layout: Layout
    own: Collection[int] = ()
    lines: list[str] = field(default_factory=list)
    fields: dict[str, Field] = field(default_factory=dict)
    index: list[str] = field(default_factory=list)
    indent: int = 1
    shared: bool = False  # folds are those of a block

    # -- the three forms ------------------------------------------------------------------
    def kernel(self, form: str, name: str) -> Text:
        short = size(self.program.body, self.program.results, _cost) <= _SHORT
        per_thread = 4 if form == "flat" and short and not any(i.region for i in self.program.body) else 1
        {"flat": self._flat, "rows": self._rows, "single": self._single}[form](per_thread)
        body = "\n".join(self.lines)
        head = '#include "ree.cuh"\n#include "values.cuh"\n#include "folds.cuh"\n\n'
        struct = self._struct(f"{name}_args")
        text = f"{head}{struct}\n\nREE_KERNEL({name}, {name}_args, {BLOCK_MAX})\n{{\n{body}\n}}\n"
        return Text(text, list(self.fields.values()), per_thread)

    def epilogue(self) -> Text:
        rank = self.program.rank
        self._unflatten("row", max(0, rank - 1))
        self.index.append("column")
        self._run(self.program.body, self.program.results)
        (result,), (dtype,) = self.program.results, self.program.dtypes
        self._line(f"return {dtype}_store({self._value(result)});")
        body, self.lines = self.lines, []
        self.index = []
        self._unflatten("row", max(0, rank - 1))
        self.index.append("column")
        out = len(self.program.inputs)
        self._line(f"return {self._pointer(out)} + ({self._offset(out, self.index)});")
        raw, arguments = f"{dtype}_raw", f"const {EPILOGUE_ARGS} &a, i64 row, i64 column"
        dense = "#define REE_EPILOGUE_DENSE\n" if rank and self._stride(out, rank - 1) == "1" else ""
        text = (
            f'#include "ree.cuh"\n#include "values.cuh"\n#include "folds.cuh"\n#define REE_EPILOGUE\n{dense}\n'
            f"typedef {raw} ree_epilogue_raw;\n{self._struct(EPILOGUE_ARGS)}\n\n"
            f"REE_INLINE {raw} ree_epilogue({arguments}, f32 value)\n{{\n" + "\n".join(body) + "\n}\n\n"
            f"REE_INLINE {raw} *ree_epilogue_at({arguments})\n{{\n" + "\n".join(self.lines) + "\n}\n"
        )
        return Text(text, list(self.fields.values()))

    def _flat(self, per_thread: int) -> None:
        extents = [self._extent(axis) for axis in range(self.program.rank)]
        self._line(f"const i64 count = {' * '.join(extents) or '1'};")
        self._line(f"i64 element = static_cast<i64>(blockIdx.x) * (blockDim.x * {per_thread}) + threadIdx.x;")
        if per_thread > 1:
            self._line("#pragma unroll")
            self._open(f"for (int turn = 0; turn < {per_thread}; turn++, element += blockDim.x)")
        self._open("if (element < count)")
        self._unflatten("element", self.program.rank)
        self._run(self.program.body, self.program.results)
        self._store()
        self._close()
        if per_thread > 1:
            self._close()

    def _rows(self, _: int) -> None:
        varying = varies_with_column(self.program)
        column = [instr for instr in self.program.body if instr.results[0] in varying]
        needed = {value for instr in column for value in free_values(instr)[0]}.union(self.program.results)
        self._unflatten("static_cast<i64>(blockIdx.x)", self.program.rank - 1)
        self._shared_memory()
        self.shared = True
        self._run([instr for instr in self.program.body if instr.results[0] not in varying], needed)
        self.shared = False
        columns = self._extent(self.program.rank - 1)
        if size(column, self.program.results, _cost) <= _SHORT and not any(i.region for i in column):
            self._line("#pragma unroll 4")
        self._open(f"for (i64 column = threadIdx.x; column < {columns}; column += blockDim.x)")
        self.index.append("column")
        self._run(column, self.program.results)
        self._store()
        self._close()

    def _single(self, _: int) -> None:
        self._unflatten("static_cast<i64>(blockIdx.x)", self.program.rank)
        self._shared_memory()
        self.shared = True
        self._run(self.program.body, self.program.results)
        self._open("if (threadIdx.x == 0)")
        self._store()
        self._close()

    def _shared_memory(self) -> None:
        self._line("__shared__ u64 folds[REE_FOLD_BYTES / 8];")

    def _unflatten(self, flat: str, axes: int) -> None:
        """Names of the coordinates of a position along the first `axes` axes, in C order."""
        names = [f"i{axis}" for axis in range(axes)]
        for axis in reversed(range(1, axes)):
            self._line(f"const i64 rest{axis} = {flat}, i{axis} = ree_rem<i64>(rest{axis}, {self._extent(axis)});")
            flat = f"ree_div<i64>(rest{axis}, {self._extent(axis)})"
        if axes:
            self._line(f"const i64 i0 = {flat};")
        self.index = names

    # -- text ---------------------------------------------------------------------------------
    def _line(self, text: str) -> None:
        self.lines.append(text if text.startswith("#") else "    " * self.indent + text)

    def _open(self, head: str) -> None:
        self._line(head + " {")
        self.indent += 1

    def _close(self, tail: str = "") -> None:
        self.indent -= 1
        self._line("}" + tail)

    def _struct(self, name: str) -> str:
        """The argument struct: every field has 8 bytes, and there is at least one."""
        declared = [f"    {self._c_type(f)}{f.name};" for f in self.fields.values()]
        return f"struct {name} {{\n" + "\n".join(declared or ["    i64 unused;"]) + "\n};"

    def _c_type(self, f: Field) -> str:
        if f.kind == "status":
            return "i64 *"
        if f.kind != "port":
            return "i64 "
        inputs = self.program.inputs
        if f.number < len(inputs):
            return f"const {inputs[f.number].dtype}_raw *__restrict__ "
        return f"{self.program.dtypes[f.number - len(inputs)]}_raw *__restrict__ "

    def _field(self, name: str, kind: str, number: int = 0, axis: int = 0) -> str:
        self.fields.setdefault(name, Field(name, kind, number, axis))
        return f"a.{name}"

    def _pointer(self, port: int) -> str:
        return self._field(f"p{port}", "port", port)

    def _extent(self, axis: int) -> str:
        return self._field(f"n{axis}", "extent", 0, axis)

    def _stride(self, port: int, axis: int) -> str:
        known = self.layout.strides[port][axis]
        return str(known) if known is not None else self._field(f"s{port}_{axis}", "stride", port, axis)

    def _offset(self, port: int, coordinates: Sequence[str]) -> str:
        parts = []
        for axis, coordinate in enumerate(coordinates):
            stride = self._stride(port, axis)
            if stride != "0":
                parts.append(coordinate if stride == "1" else f"{coordinate} * {stride}")
        return " + ".join(parts) or "0"

    def _value(self, number: int) -> str:
        return f"v{number}"

    # -- instructions ------------------------------------------------------------------------
    def _run(self, body: Sequence[Instr], wanted: Collection[int]) -> None:
        for part in split_arms(body, wanted, _cost):
            if isinstance(part, Arm):
                self._arm(part)
            elif part.region is not None:
                self._fold(part, part.region)
            else:
                self._instruction(part)

    def _arm(self, arm: Arm) -> None:
        """A select with a costly last operand, which is computed only where it is chosen."""
        condition, first, last = (self._value(a) for a in arm.select.args)
        result, type = self._value(arm.select.results[0]), arm.select.types[0]
        self._line(f"{type} {result} = {first};")
        self._open(f"if (!{condition})")
        shared, self.shared = self.shared, False
        self._run(arm.body, arm.select.args[2:])
        self.shared = shared
        self._line(f"{result} = {last};")
        self._close()

    def _instruction(self, instr: Instr) -> None:
        args = [self._value(a) for a in instr.args]
        type = instr.types[0]
        if instr.op == "load_if":
            port = int(instr.imm[0])
            load = self._load(port, args[2:])
            self._line(f"const {type} {self._value(instr.results[0])} = {args[0]} ? {load} : {args[1]};")
            return
        self._line(f"const {type} {self._value(instr.results[0])} = {self._expression(instr, args, type)};")

    def _expression(self, instr: Instr, args: list[str], type: Type) -> str:
        op = instr.op
        match op:
            case "const":
                return literal(int(instr.imm[0]), type)
            case "index":
                return self.index[int(instr.imm[0])]
            case "param":
                return self._field(f"q{instr.imm[0]}", "param", int(instr.imm[0]))
            case "extent":
                raise GraphError("a kernel takes extents as parameters")
            case "load":
                return self._load(int(instr.imm[0]), args)
            case "bound":
                return f"ree_bound({args[0]}, {args[1]}, {self._field('status', 'status')})"
            case "select":
                return f"{args[0]} ? {args[1]} : {args[2]}"
            case "round":
                return f"{instr.imm[0]}_load({instr.imm[0]}_store({args[0]}))"
        source = self._types()[instr.args[0]]
        if op in _COMPARE:
            return f"{args[0]} {_COMPARE[op]} {args[1]}"
        if op in ("convert", "bitcast"):
            joint = "of" if op == "convert" else "bitcast"
            same = source is type and (op == "convert" or not type.is_float)
            return args[0] if same else f"{type}_{joint}_{source}({args[0]})"
        return f"{type}_{op}({', '.join(args)})"

    def _types(self) -> dict[int, Type]:
        if not hasattr(self, "_known_types"):
            self._known_types: dict[int, Type] = {}
            for instr in walk(self.program.body):
                self._known_types.update(zip(instr.results, instr.types, strict=True))
                if instr.region is not None:
                    self._known_types.update(zip(instr.region.params, instr.region.param_types, strict=True))
        return self._known_types

    def _load(self, port: int, coordinates: Sequence[str]) -> str:
        if port in self.own:
            return "value"
        dtype = self.program.inputs[port].dtype
        return f"{dtype}_load({self._pointer(port)}[{self._offset(port, coordinates)}])"

    def _store(self) -> None:
        for number, (result, dtype) in enumerate(zip(self.program.results, self.program.dtypes, strict=True)):
            port = len(self.program.inputs) + number
            place = f"{self._pointer(port)}[{self._offset(port, self.index)}]"
            self._line(f"{place} = {dtype}_store({self._value(result)});")

    # -- folds --------------------------------------------------------------------------------
    def _fold(self, instr: Instr, region: Block) -> None:
        kind = instr.op.removeprefix("fold:")
        if kind == "chain":
            self._chain(instr, region)
            return
        shared, self.shared = self.shared, False  # folds inside this one are a thread's own
        n, type = self._value(instr.args[0]), instr.types[0]
        result = f"const {type} {self._value(instr.results[0])}"
        k = self._value(region.params[0])
        block = "block_" if shared else ""
        memory = ", folds" if shared else ""
        if kind == "dot":
            self._open(f"{result} = ree_{block}dot({n}{memory}, [&](i64 {k}, f32 &left, f32 &right)")
            self._run(region.body, region.results)
            left, right = (self._value(r) for r in region.results)
            self._line(f"left = {left}, right = {right};")
            self._close(");")
        else:
            neutral = "" if kind == "sum" else f", {literal(neutral_bits(kind, type), type)}"
            name = "sum" if kind == "sum" else "reduce"
            ahead = f", {_ahead(region)}" if shared else ""
            self._open(f"{result} = ree_{block}{name}<{type}{ahead}>({n}{memory}{neutral}, [&](i64 {k}) -> {type}")
            self._run(region.body, region.results)
            self._line(f"return {self._value(region.results[0])};")
            join = {"isum": "add", "any": "or", "all": "and"}.get(kind, kind)
            joined = f", []({type} x, {type} y) {{ return {type}_{join}(x, y); }}" if kind != "sum" else ""
            self._close(f"{joined});")
        self.shared = shared

    def _chain(self, instr: Instr, region: Block) -> None:
        shared, self.shared = self.shared, False
        for result, type, start in zip(instr.results, instr.types, instr.args[1:], strict=True):
            self._line(f"{type} {self._value(result)} = {self._value(start)};")
        k, n = self._value(region.params[0]), self._value(instr.args[0])
        self._open(f"for (i64 {k} = 0; {k} < {n}; {k}++)")
        for param, type, result in zip(region.params[1:], region.param_types[1:], instr.results, strict=True):
            self._line(f"const {type} {self._value(param)} = {self._value(result)};")
        self._run(region.body, region.results)
        for result, following in zip(instr.results, region.results, strict=True):
            self._line(f"{self._value(result)} = {self._value(following)};")
        self._close()
        self.shared = shared


def _ahead(region: Block) -> int:
    """How many evaluations of a region are under way together: as many as do not make the code long."""
    return max(1, min(16, _AHEAD_INSTRUCTIONS // max(1, size(region.body, region.results, _cost))))


def _cost(select: Instr, arm: Sequence[Instr]) -> int:
    """What a select's arm weighs: more where binary32 came first and binary64, slow on many devices, is the rest."""
    if select.types[0] is not Type.F32:
        return len(arm)
    wide = [instr.op for instr in arm if instr.types[0] is Type.F64 and instr.op != "const"]
    return len(arm) - len(wide) + sum(16 if op in ("div", "sqrt") else 4 for op in wide)  # those two are routines


def literal(bits: int, type: Type) -> str:
    """The C constant of these bits."""
    if type is Type.BOOL:
        return "true" if bits else "false"
    if type.is_float:
        return f"f32_of_bits(0x{bits:08x}u)" if type is Type.F32 else f"f64_of_bits(0x{bits:016x}ull)"
    if not type.is_signed:
        return f"{bits}u" if type is Type.U32 else f"{bits}ull"
    value = int(const_value(bits, type))
    if value == -(1 << (type.bits - 1)):
        return f"REE_{type.value.upper()}_MIN"
    return str(value) if type is Type.I32 else f"{value}ll"
