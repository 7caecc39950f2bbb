"""Memory of measured kernels: arrays in their physical layout, and fences around them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nestor.ir import narrow_floats
from nestor.ir.numeric import numpy_dtype
from nestor.ir.program import Tensor
from nestor.ir.types import DType
from nestor.runtime.memory import PAGE, READ, WRITE, round_up
from nestor.runtime.memory import Mapping as MemoryMapping

Bytes = NDArray[np.uint8]
Array = NDArray[Any]

CANARY = 0xC5
"""Byte that fences are filled with: as part of a float it is neither zero nor one, nor a NaN."""

GUARD_BYTES = 1 << 20
"""Address space on each side of an array that nobody may touch; it takes no memory."""

_NONE = 0  # PROT_NONE
_LINE = 64

_MEMORY: dict[DType, np.dtype[Any]] = {
    **narrow_floats.MEMORY,
    DType.bool: np.dtype(np.uint8),
}


def memory_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy type of an element's bytes: bits of a type that NumPy lacks; a bool is a byte."""
    found = _MEMORY.get(dtype)
    return numpy_dtype(dtype) if found is None else found


def to_memory(array: Array, dtype: DType) -> Array:
    """The interpreter's array as memory holds it."""
    if dtype in narrow_floats.MEMORY:
        return np.asarray(narrow_floats.to_bits(array, dtype))
    return array.astype(memory_dtype(dtype), copy=False)


def from_memory(array: Array, dtype: DType) -> Array:
    """Inverse of ``to_memory``."""
    if dtype in narrow_floats.MEMORY:
        return np.asarray(narrow_floats.from_bits(array, dtype))
    # Not a cast, which would make a 1 of any byte: a bool that is neither 0 nor 1 is a fault.
    return array


def logical_shape(t: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Extents of a tensor's indices."""
    return tuple(int(d.evaluate(sizes)) for d in t.shape)


def physical_bytes(t: Tensor, sizes: Mapping[str, int]) -> int:
    """What a tensor takes in its layout [bytes]."""
    shape = t.shape if t.layout is None else t.layout.shape
    return math.prod(int(d.evaluate(sizes)) for d in shape) * t.dtype.bytes


def store(view: Bytes, t: Tensor, values: Array, sizes: Mapping[str, int]) -> None:
    """Write logical ``values`` to a tensor's bytes; cells that no index maps to become zero."""
    cells = view.view(memory_dtype(t.dtype))
    memory = to_memory(values, t.dtype)
    if t.layout is None:
        cells[...] = memory.reshape(-1)
        return
    cells[...] = 0
    cells[_places(t, sizes)] = memory


def fetch(view: Bytes, t: Tensor, sizes: Mapping[str, int]) -> Array:
    """Logical values from a tensor's bytes, as the interpreter has them (a bool as a byte): the
    bytes themselves where nothing has to be moved or converted."""
    cells = view.view(memory_dtype(t.dtype))
    if t.layout is None:
        return from_memory(cells.reshape(logical_shape(t, sizes)), t.dtype)
    return from_memory(cells[_places(t, sizes)], t.dtype)


def spoil(view: Bytes, t: Tensor) -> None:
    """Fill with what nobody should read: NaN, or bytes 0xAB."""
    if t.dtype.is_float:
        view.view(memory_dtype(t.dtype))[...] = to_memory(np.array(np.nan, np.float32), t.dtype)
    else:
        view[...] = 0xAB


def _places(t: Tensor, sizes: Mapping[str, int]) -> NDArray[np.int64]:
    """Where each logical element lies, in elements from the start."""
    assert t.layout is not None
    shape = logical_shape(t, sizes)
    env = {f"d{d}": grid for d, grid in enumerate(np.ogrid[tuple(slice(0, n) for n in shape)])}
    place: NDArray[np.int64] = np.zeros((), np.int64)
    for index, extent in zip(t.layout.physical, t.layout.shape):
        place = place * int(extent.evaluate(sizes)) + index.evaluate({**sizes, **env})
    return np.broadcast_to(place, shape)


def _bytes_at(address: int, size: int) -> Bytes:
    """Memory that somebody else keeps alive."""
    memory: Any = (ctypes.c_uint8 * size).from_address(address)
    return np.ndarray((size,), np.uint8, memory)


class Fenced:
    """An array between pages that nobody may touch and bytes that nobody may change.

    ``[no access | canaries | array | canaries | no access]``: the array lies against the ``"end"``
    or the ``"start"`` of the accessible pages, so that what goes beyond that side by more than a
    cache line crashes, and a write beyond the other side shows in the canaries.

    Attributes: address: of the array. view: its bytes.
    """

    def __init__(self, size: int, side: Literal["start", "end"]):
        self.size = size
        self._inner = round_up(size, PAGE) + PAGE
        self._mapping = MemoryMapping(self._inner + 2 * GUARD_BYTES, huge=False)
        offset = 0 if side == "start" else self._inner - round_up(size, _LINE)
        self.address = self._mapping.address + GUARD_BYTES + offset
        self._whole = _bytes_at(self._mapping.address + GUARD_BYTES, self._inner)
        self.view: Bytes = self._whole[offset : offset + size]
        self._before, self._after = self._whole[:offset], self._whole[offset + size :]
        self._before[...] = CANARY
        self._after[...] = CANARY
        self._mapping.protect(0, GUARD_BYTES, _NONE)
        self._mapping.protect(GUARD_BYTES + self._inner, GUARD_BYTES, _NONE)

    def protect(self, writable: bool) -> None:
        """Forbid writes, or allow them again."""
        self._mapping.protect(GUARD_BYTES, self._inner, READ | WRITE if writable else READ)

    def damage(self) -> str:
        """Which canary bytes changed, in words; empty if none did."""
        before = np.flatnonzero(self._before != CANARY) - self._before.size
        if before.size:
            return f"bytes {before[0]} to {before[-1]} before its start"
        after = np.flatnonzero(self._after != CANARY)
        return f"bytes {after[0]} to {after[-1]} past its end" if after.size else ""


class Plain:
    """An array as a model has it: in huge pages where it is large, without fences.

    Attributes: address: of the array. view: its bytes.
    """

    def __init__(self, size: int):
        self._mapping = MemoryMapping(max(size, 1))
        self.address = self._mapping.address
        self.view = _bytes_at(self.address, size)
