"""Element types of tensors and expressions.

``float16``, ``bfloat16`` and the floats of 8 bits are *storage* types: they are loaded, stored and
cast, and every arithmetic operation on them is written in the IR as cast to ``float32``, operate,
cast back.
"""

from __future__ import annotations

import builtins
import enum


class DType(enum.Enum):
    """An element type; ``value`` is its short name in the IR's text."""

    f64 = "f64"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    f8e4m3 = "f8e4m3"
    f8e5m2 = "f8e5m2"
    i64 = "i64"
    i32 = "i32"
    i16 = "i16"
    i8 = "i8"
    u8 = "u8"
    bool = "bool"

    @property
    def bits(self) -> int:
        """Width of a value in arithmetic [bits]; a bool counts 1."""
        return _BITS[self.value]

    @property
    def bytes(self) -> int:
        """Size in memory [bytes]; a bool takes one byte holding 0 or 1."""
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> builtins.bool:
        """True for f64, f32 and the storage types."""
        return self.value in ("f64", "f32", *_STORAGE)

    @property
    def is_storage_only(self) -> builtins.bool:
        """True for the types that have no arithmetic (f16, bf16, f8e4m3, f8e5m2)."""
        return self.value in _STORAGE

    @property
    def is_int(self) -> builtins.bool:
        """True for signed and unsigned integers, not for bool."""
        return self.value in ("i64", "i32", "i16", "i8", "u8")

    @property
    def is_signed(self) -> builtins.bool:
        """True for signed integers and floats."""
        return self.value not in ("u8", "bool")

    def __repr__(self) -> str:
        return self.value

    __str__ = __repr__


_STORAGE = ("f16", "bf16", "f8e4m3", "f8e5m2")

_BITS = {
    "f64": 64, "f32": 32, "f16": 16, "bf16": 16, "f8e4m3": 8, "f8e5m2": 8,
    "i64": 64, "i32": 32, "i16": 16, "i8": 8, "u8": 8, "bool": 1,
}  # fmt: skip
