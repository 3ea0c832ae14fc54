"""Dtypes, dimensions and tensor types.

`DType` is what memory holds, `Type` is what an element program computes with: narrow
dtypes are widened by a load and rounded by a store (docs/SPEC.md, "Types").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from ree.dims import Dim, is_static


class Type(StrEnum):
    """A type of element-program values."""

    BOOL = "bool"
    I32 = "i32"
    I64 = "i64"
    U32 = "u32"
    U64 = "u64"
    F32 = "f32"
    F64 = "f64"

    @property
    def is_float(self) -> bool:
        return self in (Type.F32, Type.F64)

    @property
    def is_int(self) -> bool:
        return self in (Type.I32, Type.I64, Type.U32, Type.U64)

    @property
    def is_signed(self) -> bool:
        return self in (Type.I32, Type.I64)

    @property
    def bits(self) -> int:
        return {"bool": 1, "i32": 32, "u32": 32, "f32": 32}.get(self.value, 64)


class DType(StrEnum):
    """A storage dtype; the value is its canonical name, the member's name its code in safetensors files."""

    BOOL = "bool"
    I8 = "i8"
    U8 = "u8"
    I16 = "i16"
    I32 = "i32"
    I64 = "i64"
    U32 = "u32"
    U64 = "u64"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"

    @property
    def size_bytes(self) -> int:
        return _SIZE_BYTES[self]

    @property
    def element(self) -> Type:
        """The type that a load of this dtype gives."""
        return _ELEMENT[self]

    @property
    def numpy(self) -> str:
        """NumPy's dtype string (bf16 has none and is held as uint16)."""
        return _NUMPY[self]

    @property
    def is_float(self) -> bool:
        return self.element.is_float

    @property
    def is_int(self) -> bool:
        return self.element.is_int


_TABLE = (
    # dtype, bytes, element type, numpy
    (DType.BOOL, 1, Type.BOOL, "bool"),
    (DType.I8, 1, Type.I32, "int8"),
    (DType.U8, 1, Type.I32, "uint8"),
    (DType.I16, 2, Type.I32, "int16"),
    (DType.I32, 4, Type.I32, "int32"),
    (DType.I64, 8, Type.I64, "int64"),
    (DType.U32, 4, Type.U32, "uint32"),
    (DType.U64, 8, Type.U64, "uint64"),
    (DType.F16, 2, Type.F32, "float16"),
    (DType.BF16, 2, Type.F32, "uint16"),
    (DType.F32, 4, Type.F32, "float32"),
    (DType.F64, 8, Type.F64, "float64"),
)
_SIZE_BYTES = {row[0]: row[1] for row in _TABLE}
_ELEMENT = {row[0]: row[2] for row in _TABLE}
_NUMPY = {row[0]: row[3] for row in _TABLE}


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape (ints, or `Dim` expressions of a dynamic program) and dtype of a tensor."""

    shape: tuple[int | Dim, ...]
    dtype: DType

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(is_static(extent) for extent in self.shape)

    def extents(self) -> tuple[int, ...]:
        """The shape of a static type."""
        if not self.is_static:
            raise TypeError(f"{self} has a dynamic dimension")
        return tuple(extent for extent in self.shape if isinstance(extent, int))

    def numel(self) -> int:
        """Number of elements of a static shape."""
        return math.prod(self.extents())

    def size_bytes(self) -> int:
        return self.numel() * self.dtype.size_bytes

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(self.shape, dtype)

    def __str__(self) -> str:
        return f"{self.dtype.value}[{','.join(str(extent) for extent in self.shape)}]"
