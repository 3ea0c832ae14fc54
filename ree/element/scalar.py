"""The meaning of each element-program instruction on values (NumPy arrays), for the interpreter.

Every function is total: it has one defined result for every input. Callers silence NumPy's
floating-point warnings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ree.element.fma import fma32, fma64
from ree.types import DType, Type

Array = np.ndarray

NUMPY: dict[Type, type[np.generic]] = {
    Type.BOOL: np.bool_,
    Type.I32: np.int32,
    Type.I64: np.int64,
    Type.U32: np.uint32,
    Type.U64: np.uint64,
    Type.F32: np.float32,
    Type.F64: np.float64,
}

# unsigned NumPy dtype of the same width, and the canonical NaN's bits, by item size
_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_NAN_BITS = {2: 0x7E00, 4: 0x7FC00000, 8: 0x7FF8000000000000}
_BF16_NAN_BITS = 0x7FC0


def _is_float(a: Array) -> bool:
    return a.dtype.kind == "f"


def canonical(a: Array) -> Array:
    """The array with every NaN replaced by the canonical one."""
    if not _is_float(a):
        return a
    size = a.dtype.itemsize
    nan = np.array([_NAN_BITS[size]], dtype=_BITS[size]).view(a.dtype)
    return np.where(np.isnan(a), nan, a)


# -- storage --------------------------------------------------------------------------------


def store(a: Array, dtype: DType) -> Array:
    """Values as memory of this dtype holds them: rounded or wrapped, NaN canonical."""
    if dtype is DType.BF16:
        return _to_bf16(a)
    return canonical(a.astype(dtype.numpy))


def widen(a: Array, dtype: DType) -> Array:
    """Elements of memory of this dtype as values of its element type (exact)."""
    if dtype is DType.BF16:
        return (a.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return a.astype(NUMPY[dtype.element])


def _to_bf16(a: Array) -> Array:
    """float32 to bfloat16 bits, to nearest even: the upper half, after adding just under half."""
    bits = np.ascontiguousarray(a).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(a), np.uint16(_BF16_NAN_BITS), rounded.astype(np.uint16))


# -- arithmetic -----------------------------------------------------------------------------


def _div(a: Array, b: Array) -> Array:
    if _is_float(a):
        return a / b
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        toward_zero = (quotient < 0) & (quotient * safe != a)  # NumPy divides toward -inf
        quotient = np.where(safe == -1, -a, quotient + toward_zero.astype(a.dtype))  # -MIN = MIN
    return np.where(b == 0, b.dtype.type(0), quotient)


def _rem(a: Array, b: Array) -> Array:
    return a - _div(a, b) * b


def _fma(a: Array, b: Array, c: Array) -> Array:
    return fma32(a, b, c) if a.dtype == np.float32 else fma64(a, b, c)


def _neg(a: Array) -> Array:
    return np.negative(a) if _is_float(a) else (a.dtype.type(0) - a)


def _abs(a: Array) -> Array:
    return np.abs(a)


def _min(a: Array, b: Array) -> Array:
    if not _is_float(a):
        return np.minimum(a, b)
    smaller = np.where((a < b) | ((a == b) & np.signbit(a)), a, b)
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), smaller)


def _max(a: Array, b: Array) -> Array:
    if not _is_float(a):
        return np.maximum(a, b)
    larger = np.where((a > b) | ((a == b) & np.signbit(b)), a, b)
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), larger)


def _copysign(a: Array, b: Array) -> Array:
    return np.copysign(a, np.where(np.isnan(b), b.dtype.type(1), b))


def _shl(a: Array, b: Array) -> Array:
    bits = a.dtype.itemsize * 8
    inside = (b >= 0) & (b < bits)
    return np.where(inside, a << np.where(inside, b, b.dtype.type(0)), a.dtype.type(0))


def _shr(a: Array, b: Array) -> Array:
    bits = a.dtype.itemsize * 8
    inside = (b >= 0) & (b < bits)
    fill = a >> a.dtype.type(bits - 1) if a.dtype.kind == "i" else a.dtype.type(0)
    return np.where(inside, a >> np.where(inside, b, b.dtype.type(0)), fill)


def _select(condition: Array, a: Array, b: Array) -> Array:
    return np.where(condition, a, b)


OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _div,
    "rem": _rem,
    "fma": _fma,
    "sqrt": np.sqrt,
    "neg": _neg,
    "abs": _abs,
    "min": _min,
    "max": _max,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "rint": np.rint,
    "copysign": _copysign,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": _shl,
    "shr": _shr,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "select": _select,
}


# -- conversion -----------------------------------------------------------------------------


def convert(a: Array, to: Type) -> Array:
    """By value: to bool is a != 0; float to int truncates, saturates, NaN gives 0; int to int wraps."""
    target = np.dtype(NUMPY[to])
    if to is Type.BOOL:
        return a != 0
    if not (_is_float(a) and to.is_int):
        return a.astype(target)
    limits = np.iinfo(target)
    top = float(limits.max + 1)  # a power of two: exact in both widths
    inside = (a >= float(limits.min)) & (a < top)  # just below the minimum truncates to it
    whole = np.trunc(np.where(inside, a, a.dtype.type(0))).astype(target)
    outside = np.where(a >= top, target.type(limits.max), target.type(limits.min))
    return np.where(inside, whole, np.where(np.isnan(a), target.type(0), outside))


def bitcast(a: Array, to: Type) -> Array:
    """The same bits under another type of equal width; a NaN is made canonical first."""
    return np.ascontiguousarray(canonical(a)).view(NUMPY[to])


# -- order-free folds: kind -> (neutral element of a type, how two values join) ----------------------


def _lowest(type: Type) -> float | int:
    return -np.inf if type.is_float else int(np.iinfo(np.dtype(NUMPY[type]).name).min)


def _highest(type: Type) -> float | int:
    return np.inf if type.is_float else int(np.iinfo(np.dtype(NUMPY[type]).name).max)


JOINS: dict[str, tuple[Callable[[Type], float | int | bool], Callable[[Array, Array], Array]]] = {
    "max": (_lowest, _max),
    "min": (_highest, _min),
    "isum": (lambda type: 0, np.add),
    "any": (lambda type: False, np.logical_or),
    "all": (lambda type: True, np.logical_and),
}
