"""Anonymous memory with protections and alignment: the few system calls that ``mmap`` lacks."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
MAP_32BIT = 0x40

READ, WRITE, EXECUTE = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


class Mapping:
    """Zeroed private memory at a fixed address, unmapped when nobody refers to it any more.

    Attributes:
        address: first byte, aligned to a page (to 2 MiB for huge sizes).
        size: usable bytes.
    """

    __slots__ = ("__weakref__", "_memory", "_pin", "address", "size")

    def __init__(self, size: int, *, low: bool = False, huge: bool = True, used: int | None = None):
        """Map memory.

        Args:
            size: at least so many bytes.
            low: at an address below 2 GiB.
            huge: in pages of 2 MiB where whole ones fit.
            used: only so many bytes are expected to be used; None: all.

        Raises: MemoryError.
        """
        used = size if used is None else used
        size = round_up(max(size, 1), PAGE)
        is_huge = huge and size >= 2 * HUGE_PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (MAP_32BIT if low else 0)
        slack = HUGE_PAGE if is_huge else 0
        try:
            self._memory = mmap.mmap(-1, size + slack, flags=flags, prot=READ | WRITE)
        except OSError as error:
            raise MemoryError(f"cannot map {size} bytes of memory: {error}") from error
        self._pin = ctypes.c_char.from_buffer(self._memory)
        start = ctypes.addressof(self._pin)
        self.address = round_up(start, HUGE_PAGE) if is_huge else start
        self.size = size
        if is_huge and hasattr(mmap, "MADV_HUGEPAGE"):
            # Whole pages only: a last one of 2 MiB would be taken in full for a few bytes.
            if whole := min(used, size) // HUGE_PAGE * HUGE_PAGE:
                self._memory.madvise(mmap.MADV_HUGEPAGE, self.address - start, whole)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``offset``; ValueError outside the mapping."""
        if offset < 0 or offset + len(data) > self.size:
            raise ValueError("write outside a mapping")
        start = self.address - ctypes.addressof(self._pin) + offset
        self._memory[start : start + len(data)] = bytes(data)

    def buffer(self) -> memoryview:
        """Its bytes, writable; the memory lives as long as they do."""
        start = self.address - ctypes.addressof(self._pin)
        return memoryview(self._memory)[start : start + self.size]

    def protect(self, offset: int, size: int, protection: int) -> None:
        """Set the protection of whole pages; OSError when the system refuses."""
        if size and _libc().mprotect(self.address + offset, size, protection):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.mprotect.restype = ctypes.c_int
    return libc


@functools.cache
def libc_address(name: str) -> int:
    """Address of a C library function, e.g. ``memcpy``; AttributeError if there is none."""
    address = ctypes.cast(getattr(_libc(), name), ctypes.c_void_p).value
    if not address:
        raise AttributeError(name)
    return address


def copy_bytes(destination: int, source: int, size: int) -> None:
    """``memmove`` between two addresses [bytes]."""
    if size:
        ctypes.memmove(destination, source, size)
