"""NVIDIA's driver, as far as running kernels takes it: no toolkit, no compiler, no PyTorch.

Source: CUDA Driver API, modules ``cuModule*`` and ``cuLaunchKernel``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nestor.errors import ArtifactError, InternalError, Unsupported

_LIBRARY = "libcuda.so.1"
_SHARED_ATTRIBUTE = 8
"""``CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES``."""

_PLAIN_SHARED_BYTES = 48 << 10
"""Dynamic shared memory that every kernel may have without being asked [bytes]."""

_NO_BINARY = (200, 209)
"""``CUDA_ERROR_INVALID_IMAGE`` and ``…_NO_BINARY_FOR_GPU``."""

MAX_PROGRAMS = (1 << 31) - 1

WARP = 32
"""Threads of a warp."""


class Driver:
    """The driver's functions. Args: path: of the library."""

    def __init__(self, path: str):
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise Unsupported(
                f"NVIDIA's driver is not there: {error}\n"
                "fix: install it, or compile the model for a CPU"
            ) from None
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function. Raises: ``ArtifactError``, ``InternalError`` if it fails."""
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            message = (text.value or b"unknown error").decode()
            kind = ArtifactError if status in _NO_BINARY else InternalError
            raise kind(f"{name} failed with {status}: {message}")

    def has(self, name: str) -> bool:
        """Whether it is new enough to have a function."""
        return hasattr(self._library, name)

    def forget(self, name: str, handle: Any) -> None:
        """Call a function that ends something; nobody cares any more whether it fails."""
        getattr(self._library, name)(handle)

    def use_device(self, number: int) -> None:
        """Make a device's primary context, which PyTorch uses too, the calling thread's."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), number)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def load(self, code: bytes, function: str, shared_bytes: int) -> int:
        """Load a cubin into the current context; the address of one of its functions.

        Raises: ``ArtifactError`` for code of another chip.
        """
        module, found = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), code)
        self.call("cuModuleGetFunction", ctypes.byref(found), module, function.encode())
        if shared_bytes > _PLAIN_SHARED_BYTES:
            self.call("cuFuncSetAttribute", found, _SHARED_ATTRIBUTE, shared_bytes)
        assert found.value is not None
        return found.value

    def launch(
        self, function: int, programs: int, warps: int, shared_bytes: int, stream: int, values: Any
    ) -> None:
        """Start ``programs`` programs. Args: values: ``Arguments.places``, by reference."""
        self.call(
            "cuLaunchKernel",
            ctypes.c_void_p(function),
            *(programs, 1, 1),
            *(WARP * warps, 1, 1),
            shared_bytes,
            ctypes.c_void_p(stream),
            values,
            None,
        )


@functools.cache
def driver() -> Driver:
    """The machine's driver. Raises: ``Unsupported`` without one."""
    return Driver(_LIBRARY)


@dataclass(frozen=True, slots=True)
class Arguments:
    """Values of a kernel's arguments, and ``places``: an array of their addresses."""

    held: Any
    places: Any


class CudaKernel:
    """A kernel of a loaded cubin, in the current context.

    Args: parameters: how many eight-byte values its entry takes; those that no call gives are 0.
    """

    def __init__(
        self, code: bytes, function: str, *, warps: int, shared_bytes: int, parameters: int
    ):
        self._driver = driver()
        self.function = self._driver.load(code, function, shared_bytes)
        self.warps, self.shared_bytes = warps, shared_bytes
        self._count = parameters

    def launch(self, programs: int, values: Sequence[int], stream: int) -> None:
        """Start it on a stream. Args: values: addresses of tensors, then sizes."""
        check_programs(programs)
        given = self.arguments(values)
        self._driver.launch(
            self.function,
            programs,
            self.warps,
            self.shared_bytes,
            stream,
            ctypes.byref(given.places),
        )

    def arguments(self, values: Sequence[int]) -> Arguments:
        """What the driver copies when a kernel is asked for."""
        held = (ctypes.c_uint64 * self._count)(*values)
        start = ctypes.addressof(held)
        places = (ctypes.c_void_p * self._count)(*range(start, start + 8 * self._count, 8))
        return Arguments(held, places)


def check_programs(count: int) -> None:
    """Refuse more programs than a grid has."""
    if count > MAX_PROGRAMS:
        raise Unsupported(f"a kernel of {count} programs; a GPU starts {MAX_PROGRAMS}")
