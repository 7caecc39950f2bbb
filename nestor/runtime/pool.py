"""Memory for large outputs, used again once nobody refers to an output any more.

Fresh memory costs a page fault for every 4 KiB: writing 150 MB takes longer in the kernel of the
operating system than in ours. PyTorch and NumPy ask for fresh memory for every large array; here it
comes from mappings with huge pages, and goes back to them when the last array over it is collected.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

from nestor.runtime.memory import HUGE_PAGE, Mapping, round_up

POOLED_BYTES = 1 << 20
"""Outputs below this size [bytes] come from the C library, which keeps small blocks itself."""

_MANY = 64
"""Idle blocks of one size at most; the limit in bytes is met long before."""


class OutputPool:
    """Blocks of memory lent to outputs; threads may share one.

    At most as many bytes stay idle as the outputs of the largest call so far take.
    """

    def __init__(self) -> None:
        self._idle: defaultdict[int, deque[Mapping]] = defaultdict(lambda: deque(maxlen=_MANY))
        self._limit = 0

    @property
    def idle_bytes(self) -> int:
        """Bytes that are mapped and lent to nobody."""
        return sum(size * len(blocks) for size, blocks in self._idle.items())

    def allow(self, sizes: Iterable[int]) -> None:
        """Let as much stay idle as a call with outputs of these sizes [bytes] needs."""
        needed = sum(_room(size) for size in sizes if size >= POOLED_BYTES)
        self._limit = max(self._limit, needed)

    def take(self, size: int) -> Any:
        """A ctypes buffer of ``size`` bytes, not initialised; the memory is lent while it lives.

        Raises: MemoryError.
        """
        room = _room(size)
        try:
            block = self._idle[room].pop()
        except IndexError:
            block = Mapping(room, used=size)
        buffer: Any = (ctypes.c_char * size).from_address(block.address)
        buffer.lease = _Lease(self, block)
        return buffer

    def give_back(self, block: Mapping) -> None:
        """Keep a block for the next call, or unmap it where enough are kept.

        Blocks of other sizes go first: calls of other shapes left them.
        """
        for size, blocks in list(self._idle.items()):
            while size != block.size and self.idle_bytes + block.size > self._limit:
                try:
                    blocks.popleft()
                except IndexError:
                    break
        if self.idle_bytes + block.size <= self._limit:
            self._idle[block.size].append(block)


def _room(size: int) -> int:
    return round_up(size, HUGE_PAGE)


class _Lease:
    """Gives a block back when the buffer that holds it is collected."""

    __slots__ = ("_block", "_pool")

    def __init__(self, pool: OutputPool, block: Mapping):
        self._pool = pool
        self._block = block

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end parts may be gone
            self._pool.give_back(self._block)
