"""Writing LLVM IR as text: values, blocks, loops, i64 index arithmetic, conversions of shape.

Text is several times quicker to make than objects, and a kernel stays readable.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ree.element.program import const_value
from ree.types import Type

LLVM_TYPE = {
    Type.BOOL: "i1",
    Type.I32: "i32",
    Type.U32: "i32",
    Type.I64: "i64",
    Type.U64: "i64",
    Type.F32: "float",
    Type.F64: "double",
}
RARE = "!0"
RARE_DEFINITION = f'{RARE} = !{{!"branch_weights", i32 1, i32 1000}}'
_SUFFIX = {"float": "f32", "double": "f64", "ptr": "p0", "half": "f16"}


@dataclass(frozen=True, slots=True)
class Val:
    """A printed value, one of three forms.

    uniform: `text` is a scalar (step "0"); affine: lane l holds text + l * step (i64 only);
    lanes: `text` is a vector.
    """

    type: Type
    text: str
    step: str = "0"
    lanes: bool = False

    @property
    def uniform(self) -> bool:
        return not self.lanes and self.step == "0"


@dataclass
class Loop:
    """A loop being written: its counter, its carried values, and what the body makes of them."""

    index: str
    carried: list[str]
    next: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


def vector(type: str, width: int) -> str:
    """The LLVM type of `width` lanes; width 1 is the scalar."""
    return type if width == 1 else f"<{width} x {type}>"


def suffix(type: str) -> str:
    """How the names of intrinsics spell a type: f32, i64, v16f32, ..."""
    if type.startswith("<"):
        count, element = type[1:-1].split(" x ")
        return f"v{count}{suffix(element)}"
    return _SUFFIX.get(type, type)


def literal(bits: int, type: Type) -> str:
    """The LLVM constant of these bits (a float is spelled by the bits of its double)."""
    value = const_value(bits, type)
    if type is Type.BOOL:
        return "true" if value else "false"
    if not type.is_float:
        signed = bits - (1 << type.bits) if bits >> (type.bits - 1) else bits
        return str(signed)
    if value != value:
        return "0x7FF8000000000000"
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def is_constant(text: str) -> bool:
    return not text.startswith("%")


def _wrap(value: int) -> str:
    return str(((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63))


class Writer:
    """Collects the instructions of one function; names and declarations are its business."""

    def __init__(self) -> None:
        self.entry: list[str] = []  # runs once, before everything else
        self.lines: list[str] = []
        self.declarations: dict[str, str] = {}
        self._count = 0
        self.block = "entry"

    # -- instructions -----------------------------------------------------------
    def name(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def do(self, text: str) -> str:
        result = self.name()
        self.lines.append(f"  {result} = {text}")
        return result

    def do_entry(self, text: str) -> str:
        """An instruction at the function's entry, where it dominates everything."""
        result = self.name()
        self.entry.append(f"  {result} = {text}")
        return result

    def void(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def call(self, function: str, result: str, args: Sequence[tuple[str, str]]) -> str:
        """Call of an intrinsic or of a function of this module; returns the result's name."""
        types = ", ".join(type for type, _ in args)
        self.declarations[function] = f"declare {result} @{function}({types})"
        text = f"call {result} @{function}({', '.join(f'{type} {value}' for type, value in args)})"
        if result == "void":
            self.void(text)
            return ""
        return self.do(text)

    def intrinsic(self, name: str, type: str, *operands: str) -> str:
        """Intrinsic over operands and a result of one type."""
        return self.call(f"llvm.{name}.{suffix(type)}", type, [(type, operand) for operand in operands])

    # -- control flow -------------------------------------------------------------
    def label(self) -> str:
        self._count += 1
        return f"b{self._count}"

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    def jump(self, label: str) -> None:
        self.void(f"br label %{label}")

    def branch(self, condition: str, then: str, other: str, rare: bool = False) -> None:
        hint = f", !prof {RARE}" if rare else ""
        self.void(f"br i1 {condition}, label %{then}, label %{other}{hint}")

    @contextmanager
    def loop(self, start: str, stop: str, step: int, carried: Sequence[tuple[str, str]] = ()) -> Iterator[Loop]:
        """`for index in start..stop by step`; carried: (type, initial value) of each carried value.

        The body must leave `next`; `results` holds the carried values after the loop.
        """
        head, body, done, before = self.label(), self.label(), self.label(), self.block
        self.jump(head)
        self.start(head)
        state = Loop(self.name(), [self.name() for _ in carried])
        place = len(self.lines)
        self.branch(self.do(f"icmp slt i64 {state.index}, {stop}"), body, done)
        self.start(body)
        yield state
        following = self.do(f"add nsw i64 {state.index}, {step}")
        after = self.block
        self.jump(head)
        phis = [f"  {state.index} = phi i64 [ {start}, %{before} ], [ {following}, %{after} ]"]
        for (type, first), value, last in zip(carried, state.carried, state.next, strict=True):
            phis.append(f"  {value} = phi {type} [ {first}, %{before} ], [ {last}, %{after} ]")
        self.lines[place:place] = phis
        self.start(done)
        state.results = state.carried

    def when(
        self,
        condition: str,
        body: Callable[[], Sequence[str]],
        other: Sequence[tuple[str, str]] = (),
        rare: bool = False,
    ) -> list[str]:
        """`condition ? body() : other`, the body run only where it is true; other: (type, value).

        rare: a hint that it seldom is.
        """
        then, done, before = self.label(), self.label(), self.block
        self.branch(condition, then, done, rare)
        self.start(then)
        values = body()
        after = self.block
        self.jump(done)
        self.start(done)
        return [
            self.do(f"phi {type} [ {value}, %{after} ], [ {default}, %{before} ]")
            for value, (type, default) in zip(values, other, strict=True)
        ]

    # -- i64 index arithmetic, folded where constant -----------------------------------
    def add(self, a: str, b: str) -> str:
        if is_constant(a) and is_constant(b):
            return _wrap(int(a) + int(b))
        if a == "0" or b == "0":
            return b if a == "0" else a
        return self.do(f"add i64 {a}, {b}")

    def sub(self, a: str, b: str) -> str:
        if is_constant(a) and is_constant(b):
            return _wrap(int(a) - int(b))
        return a if b == "0" else self.do(f"sub i64 {a}, {b}")

    def mul(self, a: str, b: str) -> str:
        if is_constant(a) and is_constant(b):
            return _wrap(int(a) * int(b))
        if "0" in (a, b):
            return "0"
        if "1" in (a, b):
            return b if a == "1" else a
        return self.do(f"mul i64 {a}, {b}")

    # -- lanes ----------------------------------------------------------------------
    def splat(self, type: str, text: str, width: int) -> str:
        """The scalar in every lane."""
        if width == 1:
            return text
        if is_constant(text):
            return f"splat ({type} {text})"
        wide = vector(type, width)
        first = self.do(f"insertelement {wide} poison, {type} {text}, i64 0")
        return self.do(f"shufflevector {wide} {first}, {wide} poison, <{width} x i32> zeroinitializer")

    def iota(self, width: int, type: str = "i64") -> str:
        return "<" + ", ".join(f"{type} {lane}" for lane in range(width)) + ">"

    def halve(self, lanes: str, type: str, width: int, combine: Callable[[int, str, str], str]) -> str:
        """Fold a vector, lane i with lane i + half, down to its one value."""
        while width > 1:
            half = width // 2
            wide = vector(type, width)
            if half == 1:
                a, b = (self.do(f"extractelement {wide} {lanes}, i64 {i}") for i in (0, 1))
            else:
                parts = (", ".join(f"i32 {i}" for i in range(s, s + half)) for s in (0, half))
                a, b = (self.do(f"shufflevector {wide} {lanes}, {wide} poison, <{half} x i32> <{m}>") for m in parts)
            lanes = combine(half, a, b)
            width = half
        return lanes

    def widen(self, value: Val, width: int) -> str:
        """The value as a vector of `width` lanes (width 1: as a scalar)."""
        if value.lanes or width == 1:
            return value.text
        base = self.splat(LLVM_TYPE[value.type], value.text, width)
        if value.step == "0":
            return base
        wide = vector("i64", width)
        offsets = self.iota(width)
        if value.step != "1":
            offsets = self.do(f"mul {wide} {offsets}, {self.splat('i64', value.step, width)}")
        return self.do(f"add {wide} {base}, {offsets}")

    def below(self, count: str, width: int) -> str:
        """Mask of the lanes whose number is less than the scalar `count`, which is not negative."""
        near = self.intrinsic("umin", "i64", count, str(width))
        small = self.splat("i32", self.do(f"trunc i64 {near} to i32"), width)
        return self.do(f"icmp ult {vector('i32', width)} {self.iota(width, 'i32')}, {small}")

    def any_lane(self, mask: str, width: int) -> str:
        if width == 1:
            return mask
        wide = vector("i1", width)
        return self.call(f"llvm.vector.reduce.or.{suffix(wide)}", "i1", [(wide, mask)])
