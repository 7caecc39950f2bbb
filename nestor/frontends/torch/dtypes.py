"""Element types of PyTorch as types of the IR, and PyTorch's promotion rules."""

from __future__ import annotations

import functools
from typing import Any

import torch

from nestor.errors import Unsupported
from nestor.ir.types import DType

_FROM_TORCH: dict[torch.dtype, DType] = {
    torch.float64: DType.f64,
    torch.float32: DType.f32,
    torch.float16: DType.f16,
    torch.bfloat16: DType.bf16,
    torch.float8_e4m3fn: DType.f8e4m3,
    torch.float8_e5m2: DType.f8e5m2,
    torch.int64: DType.i64,
    torch.int32: DType.i32,
    torch.int16: DType.i16,
    torch.int8: DType.i8,
    torch.uint8: DType.u8,
    torch.bool: DType.bool,
}
_TO_TORCH = {v: k for k, v in _FROM_TORCH.items()}


def is_supported(dtype: torch.dtype) -> bool:
    """Whether the IR has this element type."""
    return dtype in _FROM_TORCH


def from_torch(dtype: torch.dtype) -> DType:
    """The IR's type.

    Raises: Unsupported for complex, quantised and exotic types.
    """
    try:
        return _FROM_TORCH[dtype]
    except KeyError:
        raise Unsupported(
            f"element type {dtype} is not supported; convert it to a real type"
        ) from None


def to_torch(dtype: DType) -> torch.dtype:
    """The PyTorch type."""
    return _TO_TORCH[dtype]


def compute_type(dtype: DType) -> DType:
    """The type that arithmetic on ``dtype`` is written in: f32 for storage types."""
    return DType.f32 if dtype.is_storage_only else dtype


def promote(*operands: tuple[DType, int] | bool | int | float) -> DType:
    """PyTorch's result type of tensors ``(dtype, rank)`` and Python scalars.

    Source: ``torch.result_type``: dimensioned tensors outrank zero-dimensional ones, and these
    outrank Python scalars, within a category (bool, integer, float).
    """
    # Left to right is sound: categories only rise, and the stand-in keeps type and priority.
    result: Any = None
    rank = 0
    for operand in sorted(operands, key=_priority):
        item: Any = _stand_in(*_key(operand)) if isinstance(operand, tuple) else operand
        rank = max(rank, operand[1] if isinstance(operand, tuple) else 0)
        result = item if result is None else _stand_in(_result_type(result, item), min(rank, 1))
    if not isinstance(result, torch.Tensor):
        result = torch.tensor(result)
    return from_torch(result.dtype)


def _priority(operand: object) -> int:
    if isinstance(operand, tuple):
        return 0 if operand[1] > 0 else 1
    return 2


def _key(operand: tuple[DType, int]) -> tuple[torch.dtype, int]:
    return _TO_TORCH[operand[0]], min(operand[1], 1)


def _result_type(a: Any, b: Any) -> torch.dtype:
    return torch.result_type(a, b)


@functools.cache
def _stand_in(dtype: torch.dtype, rank: int) -> torch.Tensor:
    return torch.empty((1,) * rank, dtype=dtype, device="meta")


def finite_limit(dtype: DType) -> float:
    """The largest finite value of a float type."""
    return float(torch.finfo(_TO_TORCH[dtype]).max)
