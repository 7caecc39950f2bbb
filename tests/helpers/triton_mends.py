"""What Triton's interpreter does otherwise than a GPU, mended; in Triton 3.6 more than later."""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_plain_splat = InterpreterBuilder.create_splat


def _splat(self: Any, shape: Any, scalar: Any) -> Any:
    """The interpreter makes integers of a truth value that becomes a block, and then refuses them
    as a mask."""
    made = _plain_splat(self, shape, scalar)
    if scalar.data.dtype == np.bool_:
        made.data = made.data.astype(np.bool_)
    return made


InterpreterBuilder.create_splat = _splat

_plain_dot = InterpreterBuilder.create_dot


def _dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    """The interpreter holds bfloat16 as its bits, and multiplies those."""
    wide = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _plain_dot(self, *wide, *rest)


InterpreterBuilder.create_dot = _dot

_plain_cast = InterpreterBuilder.cast_impl


def _cast(self: Any, value: Any, dtype: Any) -> Any:
    """The interpreter knows bfloat16 from float32 only, takes the smallest numbers for 0, and cuts
    off what bfloat16 has no bits for; a GPU rounds to nearest even."""
    source, target = value.dtype.scalar, dtype.scalar
    if source == tl.bfloat16 and value.data.dtype != np.uint16:
        source = value.dtype = tl.int1  # of a comparison, whose handle has its operands' type
    if tl.bfloat16 in (source, target) and tl.float32 not in (source, target) and source != target:
        return _cast(self, _cast(self, value, tl.float32), dtype)
    if source == tl.bfloat16 and target == tl.float32:
        wide = value.data.astype(np.uint32) << np.uint32(16)
        return TensorHandle(wide.view(np.float32), tl.float32)
    if source == tl.float32 and target == tl.bfloat16:
        bits = value.data.view(np.uint32)
        up = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.where(np.isnan(value.data), bits | np.uint32(1 << 22), up)
        return TensorHandle((rounded >> np.uint32(16)).astype(np.uint16), tl.bfloat16)
    return _plain_cast(self, value, dtype)


InterpreterBuilder.cast_impl = _cast

_plain_ones = InterpreterBuilder.get_all_ones_value


def _ones(self: Any, dtype: Any) -> Any:
    """Triton 3.6 asks NumPy for an unsigned -1."""
    if not dtype.is_int_unsigned() or dtype.primitive_bitwidth == 1:
        return _plain_ones(self, dtype)
    return TensorHandle(np.array([~np.zeros((), f"uint{dtype.primitive_bitwidth}")]), dtype.scalar)


InterpreterBuilder.get_all_ones_value = _ones

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor: Any, scope: Any) -> None:
    """Triton 3.6 makes an int of an array with one element, which NumPy 2.4 refuses."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))


interpreter._patch_lang_tensor = _patch_tensor_and_index


def _fused(name: str, kind: Any) -> Any:
    """The C library's multiplication and addition that round once, of arrays."""
    function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    function.restype, function.argtypes = kind, (kind,) * 3
    return np.frompyfunc(function, 3, 1)


_FUSED = {
    np.dtype("f4"): _fused("fmaf", ctypes.c_float),
    np.dtype("f8"): _fused("fma", ctypes.c_double),
}


def _fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    """Triton 3.6 rounds the product, too."""
    dtype = z.data.dtype
    found = _FUSED[dtype](x.data, y.data, z.data)
    return TensorHandle(np.asarray(found).astype(dtype), z.dtype.scalar)


if not hasattr(interpreter._interpreter, "fma_fp64"):
    InterpreterBuilder.create_fma = _fma
