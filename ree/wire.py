"""Canonical binary messages: little endian, no padding, every length checked before it is used."""

from __future__ import annotations

import struct

from ree.errors import VerificationError

DIGEST_BYTES = 32


class Writer:
    """Bytes of a message, field after field."""

    def __init__(self, *magic: bytes) -> None:
        self._parts = list(magic)

    def u8(self, value: int) -> Writer:
        return self.raw(struct.pack("<B", value))

    def u32(self, value: int) -> Writer:
        return self.raw(struct.pack("<I", value))

    def u64(self, value: int) -> Writer:
        return self.raw(struct.pack("<Q", value))

    def leb(self, value: int) -> Writer:
        """An unsigned number, 7 bits a byte from the lowest, the last without the upper bit (LEB128)."""
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        return self.raw(bytes(out))

    def raw(self, data: bytes) -> Writer:
        """Bytes whose number the reader knows."""
        self._parts.append(data)
        return self

    def sized(self, data: bytes) -> Writer:
        """A length (u32), then so many bytes."""
        return self.u32(len(data)).raw(data)

    def bytes(self) -> bytes:
        return b"".join(self._parts)


class Reader:
    """Fields of a message that came from outside; VerificationError, naming `what`, if it is none."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = memoryview(data)
        self._what = what

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data)

    def raw(self, count: int) -> bytes:
        if count > len(self._data):
            raise VerificationError(f"{self._what} is truncated")
        found, self._data = bytes(self._data[:count]), self._data[count:]
        return found

    def magic(self, expected: bytes) -> None:
        if self.raw(min(len(expected), self.left)) != expected:
            raise VerificationError(f"{self._what} is expected, this is none")

    def u8(self) -> int:
        return self.raw(1)[0]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.raw(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.raw(8))[0])

    def leb(self) -> int:
        """An unsigned LEB128 number below 2^63 in its shortest form."""
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 56:
                raise VerificationError(f"{self._what} holds a number that is too large")
        if byte == 0 and shift > 7:
            raise VerificationError(f"{self._what} holds a number in a longer form than it needs")
        return value

    def digest(self) -> bytes:
        return self.raw(DIGEST_BYTES)

    def count(self, most: int, least_bytes: int) -> int:
        """A number (u32) of items of at least so many bytes each, which must fit what is left."""
        found = self.u32()
        if found > most or found * least_bytes > self.left:
            raise VerificationError(f"{self._what} names {found} items")
        return found

    def digests(self, most: int) -> tuple[bytes, ...]:
        return tuple(self.digest() for _ in range(self.count(most, DIGEST_BYTES)))

    def sized(self, most: int) -> bytes:
        return self.raw(self.count(most, 1))

    def finish(self) -> None:
        if self.left:
            raise VerificationError(f"{self._what} is followed by {self.left} bytes")
