"""Floating-point types that NumPy lacks: bfloat16, and the two of 8 bits.

Their values are held in float32 arrays (interpreter, inputs of searches); memory has their bits.
``f8e4m3`` (4 bits of exponent, 3 of mantissa; PyTorch's ``float8_e4m3fn``) has no infinity: what
is beyond becomes ±448, as PyTorch 2.13 and GPUs have it. ``f8e5m2`` is the upper byte of a float16.

Source: Micikevicius et al., FP8 formats for deep learning, 2022.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from nestor.ir.types import DType

Value = Any
"""A NumPy array or a NumPy scalar."""


@dataclass(frozen=True, slots=True)
class Byte:
    """A type of one byte: bits of its mantissa, bias of its exponent, its largest finite value,
    and the byte of positive infinity, if there is one."""

    mantissa: int
    bias: int
    largest: float
    infinity: int | None


BYTES = {
    DType.f8e4m3: Byte(mantissa=3, bias=7, largest=448.0, infinity=None),
    DType.f8e5m2: Byte(mantissa=2, bias=15, largest=57344.0, infinity=0x7C),
}

MEMORY: dict[DType, np.dtype[Any]] = {
    DType.bf16: np.dtype(np.uint16),
    **dict.fromkeys(BYTES, np.dtype(np.uint8)),
}
"""What holds the bits of a type that NumPy lacks."""


def round_to(x: Value, dtype: DType) -> Value:
    """Round float32 values to the nearest of a type of ``MEMORY``, ties to even.

    Args: x: array or scalar, converted to float32 first.
    """
    x = np.asarray(x, dtype=np.float32)
    return (_round_to_bf16(x) if dtype is DType.bf16 else _round_to_byte(x, BYTES[dtype]))[()]


def _round_to_bf16(x: Value) -> Value:
    bits = x.view(np.uint32)
    bias = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = ((bits + bias) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(x), x, rounded)


def _round_to_byte(x: Value, kind: Byte) -> Value:
    finite = np.where(np.isfinite(x), x, np.float32(0))
    _, exponent = np.frexp(finite)  # of a mantissa in [1/2, 1)
    least = 1 - kind.bias
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, least) - kind.mantissa)
    rounded = np.copysign(np.rint(finite / step) * step, x)
    beyond = np.inf if kind.infinity is not None else kind.largest
    is_beyond = np.isinf(x) | (np.abs(rounded) > kind.largest)
    rounded = np.where(is_beyond, np.copysign(np.float32(beyond), x), rounded)
    return np.where(np.isnan(x), x, rounded).astype(np.float32)


def to_bits(array: Value, dtype: DType) -> Value:
    """The bits of values that a type of ``MEMORY`` has, given as float32."""
    values = np.asarray(array, np.float32, order="C")
    if dtype is DType.bf16:
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    table = _table(dtype)
    positive = table[: int(np.argmax(np.isnan(table)))]
    found = np.searchsorted(positive, np.abs(values)).astype(np.uint8)
    found = np.where(np.isnan(values), np.uint8(0x7F), found)
    return found | (np.signbit(values).astype(np.uint8) << np.uint8(7))


def from_bits(array: Value, dtype: DType) -> Value:
    """Inverse of ``to_bits``."""
    if dtype is DType.bf16:
        return (np.asarray(array).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return _table(dtype)[np.asarray(array)]


@functools.cache
def _table(dtype: DType) -> Value:
    """The value of every byte."""
    kind = BYTES[dtype]
    byte = np.arange(256)
    exponent = (byte & 0x7F) >> kind.mantissa
    mantissa = byte & ((1 << kind.mantissa) - 1)
    whole = np.where(exponent > 0, mantissa + (1 << kind.mantissa), mantissa)
    values = np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - kind.bias - kind.mantissa)
    top = byte & 0x7F
    if kind.infinity is None:
        values = np.where(top == 0x7F, np.nan, values)
    else:
        values = np.where(top == kind.infinity, np.inf, values)
        values = np.where(top > kind.infinity, np.nan, values)
    return np.where(byte < 0x80, values, -values).astype(np.float32)
