"""Weights of a compiled model: derived ones evaluated, packed ones laid out, live ones kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestor.compiler import Slot
from nestor.ir.narrow_floats import MEMORY, to_bits
from nestor.ir.program import Program
from nestor.ir.types import DType
from nestor.passes.packing import pack_array
from nestor.runtime import memory

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
_PACKERS = 4
"""Threads that lay out weights, each one array at a time."""

_LINE = 64
"""What packed arrays are aligned to [bytes], as kernels and the runtime want their weights."""

WEIGHT_ROLES = ("parameter", "constant", "state")


def memory_array(tensor: torch.Tensor) -> Array:
    """A torch tensor's elements as NumPy sees the memory (bits of a type that it lacks), dense."""
    import torch

    dense = tensor.detach().cpu().contiguous()
    bits = _bits_of(dense.dtype)
    if bits is None:
        return dense.numpy()
    flat = dense.reshape(-1).view(torch.uint8).numpy().view(bits)
    return flat.reshape(tuple(dense.shape))


def _bits_of(dtype: torch.dtype) -> np.dtype[Any] | None:
    """What holds the bits of a type that NumPy lacks."""
    from nestor.frontends.torch.dtypes import from_torch, is_supported

    return MEMORY.get(from_torch(dtype)) if is_supported(dtype) else None


def value_array(tensor: torch.Tensor) -> Array:
    """A torch tensor's values as the interpreter takes them (of types that NumPy lacks float32)."""
    dense = tensor.detach().cpu()
    return (dense if _bits_of(dense.dtype) is None else dense.float()).contiguous().numpy()


def to_memory(array: Array, dtype: DType) -> Array:
    """An interpreter's array as the memory holds it."""
    if dtype in MEMORY and array.dtype == np.float32:
        return np.asarray(to_bits(array, dtype))
    return array


def evaluate_weights(
    weights: Mapping[str, torch.Tensor], weight_program: Program | None
) -> dict[str, Array]:
    """Memory arrays of the derived parameters: the weight program, run by the interpreter."""
    if weight_program is None or not weight_program.statements:
        return {}
    from nestor.ir.interpreter import run_program

    wanted = {t.name for t in weight_program.by_role("parameter", "constant", "input", "state")}
    results = run_program(
        weight_program, {n: value_array(t) for n, t in weights.items() if n in wanted}
    )
    dtypes = {t.name: t.dtype for t in weight_program.tensors}
    return {n: to_memory(a, dtypes[n]) for n, a in results.items()}


def is_live(slot: Slot, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether kernels may read the model's own storage: an original weight, dense, not packed."""
    source = weights.get(slot.tensor.name)
    return source is not None and slot.layout is None and source.is_contiguous()


def slot_arrays(
    slots: Sequence[Slot | None], weights: Mapping[str, torch.Tensor], derived: Mapping[str, Array]
) -> dict[int, Array]:
    """The array of each weight slot, laid out as its kernels read it; None is left out.

    Raises: MemoryError.
    """
    own = {
        position: slot
        for position, slot in enumerate(slots)
        if slot is not None and slot.tensor.role in WEIGHT_ROLES and slot.tensor.alias_of is None
    }
    room = _Room(sum(_packed_bytes(slot) for slot in own.values()))

    def laid_out(slot: Slot) -> Array:
        tensor = slot.tensor
        array = (
            derived[tensor.name] if tensor.name in derived else memory_array(weights[tensor.name])
        )
        shape = tuple(e.const for e in tensor.shape)
        if slot.layout is not None:
            array = pack_array(array.reshape(shape), slot.layout, room.zeros)
        return np.ascontiguousarray(array).reshape(-1) if array.ndim == 0 else array

    with ThreadPoolExecutor(_PACKERS) as pool:
        return dict(zip(own, pool.map(laid_out, own.values())))


def _packed_bytes(slot: Slot) -> int:
    """Bytes that a slot's packed array takes of a room; 0 where it is not packed."""
    if slot.layout is None:
        return 0
    count = math.prod(e.const for e in slot.layout.shape)
    return memory.round_up(count * slot.tensor.dtype.bytes, _LINE)


class _Room:
    """Zeroed arrays beside each other in one mapping with large pages, of whose addresses the
    processor keeps more at hand: kernels that stream weights wait for fewer."""

    def __init__(self, size: int):
        self._memory = memory.Mapping(size).buffer() if size else b""
        self._used = 0
        self._lock = threading.Lock()

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """The next array, at a multiple of 64 bytes."""
        count = math.prod(shape)
        with self._lock:
            start = self._used
            self._used += memory.round_up(count * dtype.itemsize, _LINE)
        return np.frombuffer(self._memory, dtype, count, start).reshape(shape)
