"""NumPy arrays and PyTorch tensors behind one small interface; PyTorch is never imported here.

A tensor of PyTorch is told by ``sys.modules``: who passes one has imported it.

NumPy has no bfloat16: such arrays are ``uint16`` that hold the bits (arrays of ``ml_dtypes`` are
taken as well).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from math import prod
from typing import Any, Protocol

import numpy as np

from nestor.runtime.manifest import ITEM_BYTES

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "f64": np.dtype(np.float64), "f32": np.dtype(np.float32), "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16), "f8e4m3": np.dtype(np.uint8), "f8e5m2": np.dtype(np.uint8),
    "i64": np.dtype(np.int64), "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16), "i8": np.dtype(np.int8), "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}  # fmt: skip

DTYPE_NAMES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "i64": "int64",
    "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip
"""The names that users know, by dtype of the IR."""

BITS_ONLY = ("bf16", "f8e4m3", "f8e5m2")
"""Types that NumPy lacks: such arrays hold their bits."""

_addressof, _from_buffer = ctypes.addressof, ctypes.c_char.from_buffer

Shape = tuple[int, ...]
Order = Shape | None
"""Physical order of dimensions, outermost first; None is row-major."""


class Library(Protocol):
    """What the runtime needs of an array library; every array is one of that library's."""

    name: str
    place: str
    """Where its arrays lie, for people."""

    move: str
    """What brings a tensor there."""

    def problem(self, value: Any, dtype: str) -> str | None:
        """What keeps native code from reading ``value`` as ``dtype`` in CPU memory, or None."""

    def dense(self, value: Any, order: Order) -> Any:
        """``value``, or a copy of it, with its memory dense in ``order``."""

    def pointer(self, value: Any) -> int:
        """Address of the first element."""

    def ready(self, value: object, dtype: Any, shape: Shape, written: bool) -> int:
        """Address of an array that native code may use as it is; 0 if anything has to be asked.

        Args: dtype: the library's, as an earlier array had it. written: native code writes to it.
        """

    def empty(self, shape: Shape, dtype: str, order: Order) -> Any:
        """A new array, not initialised, dense in ``order``."""

    def over(self, memory: Any, shape: Shape, dtype: str, order: Order) -> Any:
        """An array over the start of a ctypes buffer, which it keeps alive, dense in ``order``."""

    def view(self, value: Any, order: Order, shape: Shape, strides: Shape, offset: int) -> Any:
        """A view of the memory of ``value``, dense in ``order`` [strides, offset in elements]."""

    def assign(self, target: Any, source: Any) -> None:
        """Copy element by element."""

    def is_writable(self, value: Any) -> bool:
        """Whether the memory may be written."""

    def touched(self, value: Any) -> None:
        """Tell the library that native code wrote to ``value``."""


class NumpyLibrary:
    """``Library`` for ``numpy.ndarray``."""

    name = "numpy"
    place = "CPU memory"
    move = "cpu()"

    def problem(self, value: Any, dtype: str) -> str | None:
        """See ``Library``."""
        if value.dtype == NUMPY_DTYPES[dtype]:  # unequal for another byte order
            return None
        if dtype in BITS_ONLY and value.dtype.name == DTYPE_NAMES[dtype]:
            return None
        return f"dtype {value.dtype if value.dtype.isnative else value.dtype.str}"

    def dense(self, value: Any, order: Order) -> Any:
        """See ``Library``."""
        stored = value if order is None else value.transpose(order)
        flags = stored.flags
        if flags.c_contiguous and flags.aligned:
            return value
        copy = np.array(stored, order="C", copy=True, subok=False)
        return copy if order is None else copy.transpose(_inverse(order))

    def pointer(self, value: Any) -> int:
        """See ``Library``."""
        return int(value.__array_interface__["data"][0])

    def ready(self, value: object, dtype: Any, shape: Shape, written: bool) -> int:
        """See ``Library``. Arrays that are read-only have to be asked."""
        del written
        if type(value) is not np.ndarray or value.dtype is not dtype or value.shape != shape:
            return 0
        try:  # only of memory that is writable and dense
            address = _addressof(_from_buffer(value))  # type: ignore[arg-type]
        except (BufferError, TypeError, ValueError):
            return 0
        return 0 if address % dtype.alignment else address

    def empty(self, shape: Shape, dtype: str, order: Order) -> Any:
        """See ``Library``."""
        if order is None:
            return np.empty(shape, NUMPY_DTYPES[dtype])
        stored = np.empty([shape[p] for p in order], NUMPY_DTYPES[dtype])
        return stored.transpose(_inverse(order))

    def over(self, memory: Any, shape: Shape, dtype: str, order: Order) -> Any:
        """See ``Library``."""
        if order is None:
            return np.ndarray(shape, NUMPY_DTYPES[dtype], memory)
        stored = np.ndarray([shape[p] for p in order], NUMPY_DTYPES[dtype], memory)
        return stored.transpose(_inverse(order))

    def view(self, value: Any, order: Order, shape: Shape, strides: Shape, offset: int) -> Any:
        """See ``Library``; ValueError where it reaches outside."""
        stored = value if order is None else value.transpose(order)
        item = value.dtype.itemsize
        steps = [s * item for s in strides]
        return np.ndarray(shape, value.dtype, stored.reshape(-1), offset * item, steps)

    def assign(self, target: Any, source: Any) -> None:
        """See ``Library``."""
        target[...] = source

    def is_writable(self, value: Any) -> bool:
        """See ``Library``."""
        return bool(value.flags.writeable)

    def touched(self, value: Any) -> None:
        """See ``Library``."""


class TorchLibrary:
    """``Library`` for ``torch.Tensor``; made once PyTorch is loaded."""

    name = "torch"
    place = "CPU memory"
    move = "cpu()"

    def __init__(self, torch: Any):
        self._torch = torch
        self._empty = torch.empty
        self._empty_strided = torch.empty_strided
        self._strided = torch.strided
        self._cpu = torch.device("cpu")
        self._plain = (torch.Tensor, torch.nn.Parameter)
        self.dtypes = {d: getattr(torch, name) for d, name in DTYPE_NAMES.items()}

    def problem(self, value: Any, dtype: str) -> str | None:
        """See ``Library``."""
        if (
            value.dtype is self.dtypes[dtype]
            and value.is_cpu
            and value.layout is self._strided
            and (type(value) in self._plain or not self._is_wrapper(value))
        ):
            return None
        if value.dtype is not self.dtypes[dtype]:
            return f"dtype {str(value.dtype).removeprefix('torch.')}"
        if not value.is_cpu:
            return f"device {value.device}"
        if value.layout is not self._strided:
            return f"layout {value.layout}"
        return f"a {type(value).__name__}, whose memory is not an ordinary tensor's"

    def _is_wrapper(self, value: Any) -> bool:
        plain = self._torch.Tensor
        return type(value).__torch_dispatch__ is not plain.__torch_dispatch__

    def dense(self, value: Any, order: Order) -> Any:
        """See ``Library``."""
        if value.is_neg():
            value = value.resolve_neg()
        if order is None:
            return value if value.is_contiguous() else value.detach().contiguous()
        stored = value.permute(order)
        if stored.is_contiguous():
            return value
        return stored.detach().contiguous().permute(_inverse(order))

    def pointer(self, value: Any) -> int:
        """See ``Library``."""
        return int(value.data_ptr())

    def ready(self, value: Any, dtype: Any, shape: Shape, written: bool) -> int:
        """See ``Library``."""
        if (
            type(value) not in self._plain
            or value.dtype is not dtype
            or value.shape != shape
            or not value.is_cpu
            or value.layout is not self._strided
            or not value.is_contiguous()
            or value.is_neg()
            or (written and value.requires_grad)
        ):
            return 0
        return int(value.data_ptr())

    def empty(self, shape: Shape, dtype: str, order: Order) -> Any:
        """See ``Library``."""
        if order is None:
            return self._empty(shape, dtype=self.dtypes[dtype], device=self._cpu)
        strides = _strides(shape, order)
        return self._empty_strided(shape, strides, dtype=self.dtypes[dtype], device=self._cpu)

    def over(self, memory: Any, shape: Shape, dtype: str, order: Order) -> Any:
        """See ``Library``. Its memory cannot be resized, as that of any tensor over a buffer."""
        flat = self._torch.frombuffer(memory, dtype=self.dtypes[dtype], count=prod(shape))
        strides = _strides(shape, order or tuple(range(len(shape))))
        # A tensor of its own, where a view would carry the flat one along.
        return flat.set_(flat.untyped_storage(), 0, shape, strides)

    def view(self, value: Any, order: Order, shape: Shape, strides: Shape, offset: int) -> Any:
        """See ``Library``; RuntimeError where it reaches outside."""
        del order
        return value.as_strided(shape, strides, value.storage_offset() + offset)

    def assign(self, target: Any, source: Any) -> None:
        """See ``Library``."""
        with self._torch.no_grad():
            target.copy_(source)

    def is_writable(self, value: Any) -> bool:
        """See ``Library``. An expanded tensor has one element behind several indices."""
        pairs = zip(value.stride(), value.shape, strict=True)
        return not any(stride == 0 and size > 1 for stride, size in pairs)

    def touched(self, value: Any) -> None:
        """See ``Library``."""
        with contextlib.suppress(RuntimeError):  # tensors of inference mode keep no version
            self._torch.autograd.graph.increment_version(value)


NUMPY = NumpyLibrary()


@functools.cache
def torch_library() -> TorchLibrary | None:
    """The library of PyTorch, if it is loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "autograd") or not hasattr(torch, "nn"):
        torch_library.cache_clear()  # it may be loaded later
        return None
    return TorchLibrary(torch)


def library_of(value: object) -> Library | None:
    """The library that ``value`` is an array of; None for anything else."""
    if isinstance(value, np.ndarray):
        return NUMPY
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    if tensor is not None and isinstance(value, tensor):
        return torch_library()
    return None


def array_at(address: int, shape: Shape, dtype: str) -> np.ndarray[Any, Any]:
    """A row-major NumPy array over memory that somebody else keeps alive."""
    size = prod(shape) * ITEM_BYTES[dtype]
    if size == 0:
        return np.empty(shape, NUMPY_DTYPES[dtype])
    memory: Any = (ctypes.c_char * size).from_address(address)
    return np.ndarray(shape, NUMPY_DTYPES[dtype], memory)


def aligned_copy(value: Any, alignment: int = 64) -> np.ndarray[Any, Any]:
    """A row-major copy of a NumPy array whose address is a multiple of ``alignment`` [bytes]."""
    size = value.nbytes
    memory = np.empty(size + alignment, np.uint8)
    start = -NUMPY.pointer(memory) % alignment
    copy: np.ndarray[Any, Any] = memory[start : start + size].view(value.dtype)
    copy = copy.reshape(value.shape)
    copy[...] = value
    return copy


def _strides(shape: Shape, order: Shape) -> list[int]:
    """Strides [elements] of an array dense in ``order``."""
    strides = [0] * len(shape)
    step = 1
    for p in reversed(order):
        strides[p] = step
        step *= max(shape[p], 1)
    return strides


def _inverse(order: Shape) -> Shape:
    inverse = [0] * len(order)
    for position, dimension in enumerate(order):
        inverse[dimension] = position
    return tuple(inverse)
