"""Instructions of element programs as LLVM IR, for one value or for lanes alike.

Each rule gets the writer, the target, the operands' element type, the number of lanes and
the operands, and returns the result's name. IEEE throughout: no fast-math flag exists here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ree.element.llvm_text import LLVM_TYPE, Writer, is_constant, literal, suffix, vector
from ree.types import DType, Type


@dataclass(frozen=True, slots=True)
class Target:
    """What the code is printed for.

    masks: lanes can be masked at no cost; rounds: has an instruction for floor, ceil, trunc
    and round-half-even; halves: has conversions between f16 and f32.
    """

    triple: str
    cpu: str
    features: str
    abi: str
    masks: bool
    rounds: bool
    halves: bool

    @property
    def text(self) -> str:
        return f"{self.triple} {self.cpu} {self.features} {self.abi}"


class Ops:
    """Prints instructions over `width` lanes (1: scalars) with one writer for one target."""

    def __init__(self, writer: Writer, target: Target, width: int) -> None:
        self.w = writer
        self.target = target
        self.width = width

    # -- small words -------------------------------------------------------------
    def type(self, type: Type) -> str:
        return vector(LLVM_TYPE[type], self.width)

    def of(self, llvm: str) -> str:
        return vector(llvm, self.width)

    def constant(self, llvm: str, text: str | int) -> str:
        return str(text) if self.width == 1 else f"splat ({llvm} {text})"

    def number(self, type: Type, bits: int) -> str:
        return self.constant(LLVM_TYPE[type], literal(bits, type))

    def select(self, condition: str, wide: str, a: str, b: str) -> str:
        return self.w.do(f"select {self.of('i1')} {condition}, {wide} {a}, {wide} {b}")

    def compare(self, how: str, wide: str, a: str, b: str) -> str:
        kind = "fcmp" if "float" in wide or "double" in wide else "icmp"
        return self.w.do(f"{kind} {how} {wide} {a}, {b}")

    def binary(self, op: str, wide: str, a: str, b: str) -> str:
        return self.w.do(f"{op} {wide} {a}, {b}")

    def cast(self, op: str, wide: str, a: str, to: str) -> str:
        return self.w.do(f"{op} {wide} {a} to {to}")

    # -- dispatch -------------------------------------------------------------------
    def emit(self, op: str, type: Type, args: list[str], result: Type, imm: tuple[int | str, ...]) -> str:
        """The instruction applied to operands of `type` (for select: of the chosen values)."""
        if op in ("convert", "bitcast"):
            return (self.convert if op == "convert" else self.bitcast)(type, result, args[0])
        if op == "round":
            return self.load_widen(DType(str(imm[0])), self.store_narrow(DType(str(imm[0])), args[0]))
        wide = self.type(type)
        if op == "select":
            return self.select(args[0], wide, args[1], args[2])
        if op in _COMPARE:
            return self.compare(_COMPARE[op][0 if type.is_float else 1 if type.is_signed else 2], wide, *args)
        if type.is_float:
            return self._float(op, type, wide, args)
        return self._integer(op, type, wide, args)

    # -- floats -----------------------------------------------------------------------
    def _float(self, op: str, type: Type, wide: str, args: list[str]) -> str:
        if op in _FLOAT_BINARY:
            return self.binary(_FLOAT_BINARY[op], wide, args[0], args[1])
        if op == "neg":
            return self.w.do(f"fneg {wide} {args[0]}")
        if op in _FLOAT_INTRINSIC:
            return self.w.intrinsic(_FLOAT_INTRINSIC[op], wide, *args)
        if op in ("min", "max"):
            return self.extremum(op, type, args[0], args[1])
        if op == "copysign":
            positive = self.w.intrinsic("fabs", wide, args[0])
            signed = self.w.intrinsic("copysign", wide, args[0], args[1])
            return self.select(self.compare("uno", wide, args[1], args[1]), wide, positive, signed)
        if op in _ROUNDING:
            return self._rounding(op, type, wide, args[0])
        raise AssertionError(f"{op} of {type.value}")

    def extremum(self, op: str, type: Type, a: str, b: str) -> str:
        """IEEE 754-2019 maximum or minimum; with a constant operand it is one compare and a select."""
        wide = self.type(type)
        for constant, other in ((a, b), (b, a)):
            plain = _float_constant(constant)
            if plain is not None and "0x7FF8" not in plain:
                # at equality the constant is right, unless it is the zero that loses
                loses = plain == ("0x8000000000000000" if op == "max" else "0x0000000000000000")
                how = {"max": "olt" if loses else "ole", "min": "ogt" if loses else "oge"}[op]
                return self.select(self.compare(how, wide, other, constant), wide, constant, other)
        return self.w.intrinsic("maximum" if op == "max" else "minimum", wide, a, b)

    def _rounding(self, op: str, type: Type, wide: str, a: str) -> str:
        if self.target.rounds:
            return self.w.intrinsic(_ROUNDING[op], wide, a)
        # without an instruction LLVM would call libm: adding 2^(p-1) rounds |a| to an integer
        magic = self.number(type, 0x4B000000 if type is Type.F32 else 0x4330000000000000)
        one = self.number(type, 0x3F800000 if type is Type.F32 else 0x3FF0000000000000)
        size = self.w.intrinsic("fabs", wide, a)
        near = self.binary("fsub", wide, self.binary("fadd", wide, size, magic), magic)
        if op == "trunc":
            less = self.binary("fsub", wide, near, one)
            near = self.select(self.compare("ogt", wide, near, size), wide, less, near)
        near = self.w.intrinsic("copysign", wide, near, a)
        if op == "floor":
            less = self.binary("fsub", wide, near, one)
            near = self.select(self.compare("ogt", wide, near, a), wide, less, near)
        if op == "ceil":
            more = self.binary("fadd", wide, near, one)
            near = self.select(self.compare("olt", wide, near, a), wide, more, near)
        near = self.w.intrinsic("copysign", wide, near, a)
        return self.select(self.compare("olt", wide, size, magic), wide, near, a)

    def canonical_bits(self, type: Type, a: str) -> str:
        """The bits of a float, those of the canonical NaN for every NaN.

        The choice is between integers: LLVM holds all NaNs equal and would drop one between floats.
        """
        wide, bits = self.type(type), self.of(f"i{type.bits}")
        raw = self.cast("bitcast", wide, a, bits)
        nan = self.constant(f"i{type.bits}", 0x7FC00000 if type is Type.F32 else 0x7FF8000000000000)
        return self.select(self.compare("uno", wide, a, a), bits, nan, raw)

    # -- integers and bits ---------------------------------------------------------------
    def _integer(self, op: str, type: Type, wide: str, args: list[str]) -> str:
        a = args[0]
        element = LLVM_TYPE[type]
        if op in _INT_BINARY:
            return self.binary(_INT_BINARY[op], wide, a, args[1])
        if op == "neg":
            return self.binary("sub", wide, self.constant(element, 0), a)
        if op == "not":
            return self.binary("xor", wide, a, self.constant(element, "true" if type is Type.BOOL else -1))
        if op == "abs":
            negated = self.binary("sub", wide, self.constant(element, 0), a)
            return self.select(self.compare("slt", wide, a, self.constant(element, 0)), wide, negated, a)
        if op in ("min", "max"):
            return self.w.intrinsic(("s" if type.is_signed else "u") + op, wide, a, args[1])
        if op in ("div", "rem"):
            return self._divide(op, type, wide, a, args[1])
        if op in ("shl", "shr"):
            return self._shift(op, type, wide, a, args[1])
        raise AssertionError(f"{op} of {type.value}")

    def _divide(self, op: str, type: Type, wide: str, a: str, b: str) -> str:
        element = LLVM_TYPE[type]
        zero = self.compare("eq", wide, b, self.constant(element, 0))
        unsafe = zero
        if type.is_signed:
            least = self.compare("eq", wide, a, self.constant(element, -(1 << (type.bits - 1))))
            minus = self.compare("eq", wide, b, self.constant(element, -1))
            both = self.binary("and", self.of("i1"), least, minus)
            unsafe = self.binary("or", self.of("i1"), zero, both)
        divisor = self.select(unsafe, wide, self.constant(element, 1), b)
        result = self.binary(("s" if type.is_signed else "u") + op, wide, a, divisor)
        return self.select(zero, wide, self.constant(element, 0) if op == "div" else a, result)

    def _shift(self, op: str, type: Type, wide: str, a: str, b: str) -> str:
        element = LLVM_TYPE[type]
        last = self.constant(element, type.bits - 1)
        inside = self.compare("ule", wide, b, last)
        amount = self.select(inside, wide, b, last)
        how = "shl" if op == "shl" else "ashr" if type.is_signed else "lshr"
        shifted = self.binary(how, wide, a, amount)
        if how == "ashr":  # a shift by bits-1 fills with the sign already
            return shifted
        return self.select(inside, wide, shifted, self.constant(element, 0))

    # -- conversion ------------------------------------------------------------------------
    def convert(self, source: Type, to: Type, a: str) -> str:
        """By value: float to int truncates and saturates, NaN gives 0; to bool is `!= 0`."""
        wide, target = self.type(source), self.type(to)
        if source is to or (LLVM_TYPE[source] == LLVM_TYPE[to]):
            return a
        if to is Type.BOOL:
            zero = self.number(source, 0)
            return self.compare("une" if source.is_float else "ne", wide, a, zero)
        if source.is_float and to.is_float:
            return self.cast("fpext" if to is Type.F64 else "fptrunc", wide, a, target)
        if source.is_float:
            name = f"llvm.fpto{'s' if to.is_signed else 'u'}i.sat.{suffix(target)}.{suffix(wide)}"
            return self.w.call(name, target, [(wide, a)])
        if to.is_float:
            return self.cast("sitofp" if source.is_signed else "uitofp", wide, a, target)
        if to.bits < source.bits:
            return self.cast("trunc", wide, a, target)
        return self.cast("sext" if source.is_signed else "zext", wide, a, target)

    def bitcast(self, source: Type, to: Type, a: str) -> str:
        if source.is_float:
            return self.canonical_bits(source, a)
        return self.cast("bitcast", self.type(source), a, self.type(to)) if to.is_float else a

    # -- storage ------------------------------------------------------------------------------
    def load_widen(self, dtype: DType, raw: str) -> str:
        """The element of storage bits (LLVM type `STORAGE`)."""
        stored = self.of(STORAGE[dtype])
        if dtype is DType.BOOL:
            return self.compare("ne", stored, raw, self.constant("i8", 0))
        if dtype in (DType.I8, DType.I16):
            return self.cast("sext", stored, raw, self.of("i32"))
        if dtype is DType.U8:
            return self.cast("zext", stored, raw, self.of("i32"))
        if dtype is DType.BF16:
            return self.cast("bitcast", self.of("i32"), self._high_half(raw), self.of("float"))
        if dtype is DType.F16:
            return self._widen_f16(raw)
        return raw

    def _high_half(self, raw: str) -> str:
        wide = self.cast("zext", self.of("i16"), raw, self.of("i32"))
        return self.binary("shl", self.of("i32"), wide, self.constant("i32", 16))

    def store_narrow(self, dtype: DType, a: str) -> str:
        """Storage bits of an element (LLVM type iN): rounded to nearest even, NaN canonical, integers wrapped."""
        if dtype is DType.BOOL:
            return self.cast("zext", self.of("i1"), a, self.of("i8"))
        if dtype in (DType.I8, DType.U8, DType.I16):
            return self.cast("trunc", self.of("i32"), a, self.of(STORAGE[dtype]))
        if dtype is DType.BF16:
            return self._narrow_bf16(a)
        if dtype is DType.F16:
            return self._narrow_f16(a)
        return self.canonical_bits(dtype.element, a) if dtype.is_float else a

    def _narrow_bf16(self, a: str) -> str:
        wide = self.of("i32")
        bits = self.cast("bitcast", self.of("float"), a, wide)
        odd = self.binary("and", wide, self._shift_down(bits, 16), self.constant("i32", 1))
        half = self.binary("add", wide, bits, self.constant("i32", 0x7FFF))
        rounded = self._shift_down(self.binary("add", wide, half, odd), 16)
        nan = self.compare("uno", self.of("float"), a, a)
        return self.cast("trunc", wide, self.select(nan, wide, self.constant("i32", 0x7FC0), rounded), self.of("i16"))

    def _shift_down(self, bits: str, count: int) -> str:
        return self.binary("lshr", self.of("i32"), bits, self.constant("i32", count))

    def _widen_f16(self, raw: str) -> str:
        if self.target.halves:
            half = self.cast("bitcast", self.of("i16"), raw, self.of("half"))
            return self.cast("fpext", self.of("half"), half, self.of("float"))
        wide, float_ = self.of("i32"), self.of("float")
        bits = self.cast("zext", self.of("i16"), raw, wide)
        size = self.binary("and", wide, bits, self.constant("i32", 0x7FFF))
        moved = self.binary("shl", wide, size, self.constant("i32", 13))
        # as a float, 2^112 too small, subnormals included: one exact product corrects it
        scaled = self.binary(
            "fmul", float_, self.cast("bitcast", wide, moved, float_), self.number(Type.F32, (127 + 112) << 23)
        )
        special = self.binary("or", wide, moved, self.constant("i32", 0x7F800000))
        huge = self.compare("uge", wide, size, self.constant("i32", 0x7C00))
        finite = self.cast("bitcast", float_, scaled, wide)
        value = self.select(huge, wide, special, finite)
        sign = self.binary("and", wide, bits, self.constant("i32", 0x8000))
        sign = self.binary("shl", wide, sign, self.constant("i32", 16))
        return self.cast("bitcast", wide, self.binary("or", wide, value, sign), float_)

    def _narrow_f16(self, a: str) -> str:
        short = self.of("i16")
        if self.target.halves:
            half = self.cast("fptrunc", self.of("float"), a, self.of("half"))
            bits = self.cast("bitcast", self.of("half"), half, short)
        else:
            bits = self._narrow_f16_bits(a)
        nan = self.compare("uno", self.of("float"), a, a)
        return self.select(nan, short, self.constant("i16", 0x7E00), bits)

    def _narrow_f16_bits(self, a: str) -> str:
        wide, float_ = self.of("i32"), self.of("float")
        bits = self.cast("bitcast", float_, a, wide)
        size = self.binary("and", wide, bits, self.constant("i32", 0x7FFFFFFF))
        # normal results: rebias the exponent, round the lower 13 bits to even by addition
        odd = self.binary("and", wide, self._shift_down(size, 13), self.constant("i32", 1))
        rebias = self.binary("add", wide, size, self.constant("i32", 0x0FFF - (112 << 23)))
        normal = self._shift_down(self.binary("add", wide, rebias, odd), 13)
        # subnormal results: adding 0.5 leaves them, correctly rounded, in the low bits
        sized = self.cast("bitcast", wide, size, float_)
        shifted = self.binary("fadd", float_, sized, self.number(Type.F32, 0x3F000000))
        low = self.binary("sub", wide, self.cast("bitcast", float_, shifted, wide), self.constant("i32", 0x3F000000))
        tiny = self.compare("ult", wide, size, self.constant("i32", 0x38800000))
        huge = self.compare("uge", wide, size, self.constant("i32", 0x47800000))
        value = self.select(tiny, wide, low, normal)
        value = self.select(huge, wide, self.constant("i32", 0x7C00), value)
        sign = self.binary("and", wide, self._shift_down(bits, 16), self.constant("i32", 0x8000))
        return self.cast("trunc", wide, self.binary("or", wide, value, sign), self.of("i16"))


STORAGE = {
    DType.BOOL: "i8",
    DType.I8: "i8",
    DType.U8: "i8",
    DType.I16: "i16",
    DType.I32: "i32",
    DType.I64: "i64",
    DType.U32: "i32",
    DType.U64: "i64",
    DType.F16: "i16",
    DType.BF16: "i16",
    DType.F32: "float",
    DType.F64: "double",
}

_COMPARE = {
    # float, signed, unsigned
    "eq": ("oeq", "eq", "eq"),
    "ne": ("une", "ne", "ne"),
    "lt": ("olt", "slt", "ult"),
    "le": ("ole", "sle", "ule"),
    "gt": ("ogt", "sgt", "ugt"),
    "ge": ("oge", "sge", "uge"),
}
_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_FLOAT_INTRINSIC = {"fma": "fma", "sqrt": "sqrt", "abs": "fabs"}
_ROUNDING = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "roundeven"}
_INT_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}


def _float_constant(text: str) -> str | None:
    """The hexadecimal of a float constant, also inside `splat (...)`."""
    if not is_constant(text):
        return None
    return text.removeprefix("splat (").removesuffix(")").split(" ")[-1]
