"""How element types look in LLVM: in registers, and in memory."""

from __future__ import annotations

from nestor.ir.types import DType

REGISTER_TYPE = {
    DType.f64: "double", DType.f32: "float", DType.f16: "half", DType.bf16: "i16",
    DType.f8e4m3: "i8", DType.f8e5m2: "i8",
    DType.i64: "i64", DType.i32: "i32", DType.i16: "i16", DType.i8: "i8", DType.u8: "i8",
    DType.bool: "i1",
}  # fmt: skip
"""LLVM's type of a value in registers; bf16 and the floats of 8 bits are their bits."""

MEMORY_TYPE = {**REGISTER_TYPE, DType.bool: "i8"}
"""LLVM's type of a value in memory; a bool is a byte holding 0 or 1."""

TYPE_BYTES = {"double": 8, "float": 4, "half": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1}
"""Size of a memory type [bytes]."""
