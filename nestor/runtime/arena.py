"""One block of memory for all temporaries of a call: where each lies, and the block itself.

Source: greedy by size with best fit among the gaps, Pisarchyk and Lee, "Efficient Memory Management
for Deep Neural Net Inference" (2020), section 5; several orders are tried and the best is taken.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from nestor.errors import InternalError
from nestor.runtime.memory import Mapping, round_up

ALIGNMENT = 64
_MANY = 1500
"""Above this number of arrays one order is tried instead of four: planning is quadratic."""

Lifetime = tuple[int, int]
"""First and last position (inclusive) at which an array is in use."""


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """``offsets`` of each array, the ``total``, and the most that is alive at once [bytes].

    No plan can be below ``lower_bound``.
    """

    offsets: tuple[int, ...]
    total: int
    lower_bound: int


def plan_arena(
    lifetimes: Sequence[Lifetime], sizes: Sequence[int], alignment: int = ALIGNMENT
) -> ArenaPlan:
    """Give every array a place such that arrays alive at the same time do not overlap.

    Args:
        lifetimes: inclusive positions of first and last use.
        sizes: of each array [bytes]; 0 takes no room.
        alignment: of every offset [bytes], a power of two.

    Raises:
        InternalError: the plan overlaps (checked independently of how it was made).
    """
    padded = [round_up(s, alignment) for s in sizes]
    bound = peak_live_bytes(lifetimes, padded)
    best: tuple[list[int], int] | None = None
    for order in _orders(lifetimes, padded):
        offsets, total = _place(order, lifetimes, padded)
        if best is None or total < best[1]:
            best = offsets, total
        if total == bound:
            break
    offsets, total = best or ([], 0)
    check_plan(lifetimes, padded, offsets, total)
    return ArenaPlan(tuple(offsets), total, bound)


def _orders(lifetimes: Sequence[Lifetime], sizes: Sequence[int]) -> list[list[int]]:
    items = range(len(sizes))

    def length(i: int) -> int:
        return lifetimes[i][1] - lifetimes[i][0] + 1

    by_size = sorted(items, key=lambda i: (-sizes[i], lifetimes[i][0]))
    if len(sizes) > _MANY:
        return [by_size]
    return [
        by_size,
        sorted(items, key=lambda i: (-sizes[i] * length(i), lifetimes[i][0])),
        sorted(items, key=lambda i: (-length(i), -sizes[i])),
        sorted(items, key=lambda i: (lifetimes[i][0], -sizes[i])),
    ]


def _place(
    order: Sequence[int], lifetimes: Sequence[Lifetime], sizes: Sequence[int]
) -> tuple[list[int], int]:
    offsets = [0] * len(sizes)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last; sorted by offset
    total = 0
    for item in order:
        size = sizes[item]
        if size == 0:
            continue
        first, last = lifetimes[item]
        best_gap, best_offset, end = -1, -1, 0
        for low, high, other_first, other_last in placed:
            if other_last < first or other_first > last:
                continue
            gap = low - end
            if gap >= size and (best_gap < 0 or gap < best_gap):
                best_gap, best_offset = gap, end
            if high > end:
                end = high
        offset = best_offset if best_gap >= 0 else end
        offsets[item] = offset
        total = max(total, offset + size)
        bisect.insort(placed, (offset, offset + size, first, last))
    return offsets, total


def peak_live_bytes(lifetimes: Sequence[Lifetime], sizes: Sequence[int]) -> int:
    """The largest sum of sizes that are alive at one position."""
    events: dict[int, int] = {}
    for (first, last), size in zip(lifetimes, sizes, strict=True):
        events[first] = events.get(first, 0) + size
        events[last + 1] = events.get(last + 1, 0) - size
    live = peak = 0
    for position in sorted(events):
        live += events[position]
        peak = max(peak, live)
    return peak


def check_plan(
    lifetimes: Sequence[Lifetime], sizes: Sequence[int], offsets: Sequence[int], total: int
) -> None:
    """Check that no two arrays share a byte at the same position, by sweeping over positions.

    Raises:
        InternalError: names the two arrays.
    """
    starts: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for i, (first, last) in enumerate(lifetimes):
        if first > last or offsets[i] < 0 or offsets[i] + sizes[i] > total:
            raise InternalError(f"arena plan: array {i} has no valid place or lifetime")
        if sizes[i]:
            starts.setdefault(first, []).append(i)
            ends.setdefault(last + 1, []).append(i)
    alive: set[int] = set()
    for position in sorted(starts.keys() | ends.keys()):
        alive.difference_update(ends.get(position, ()))
        if position not in starts:
            continue
        alive.update(starts[position])
        ordered = sorted(alive, key=lambda i: offsets[i])
        for a, b in itertools.pairwise(ordered):
            if offsets[a] + sizes[a] > offsets[b]:
                raise InternalError(f"arena plan: arrays {a} and {b} overlap at call {position}")


class Arena:
    """The block of memory of one call in flight; grows, and is reused between calls."""

    __slots__ = ("_mapping",)

    def __init__(self) -> None:
        self._mapping: Mapping | None = None

    def reserve(self, size: int) -> int:
        """Make room for ``size`` bytes; the address, aligned to a page (2 MiB for huge blocks).

        What the block held before may be lost.
        """
        if self._mapping is None or self._mapping.size < size:
            self._mapping = None  # given back first: old and new never exist together
            self._mapping = Mapping(max(size, ALIGNMENT))
        return self._mapping.address

    @property
    def size(self) -> int:
        """Bytes that are mapped."""
        return self._mapping.size if self._mapping else 0
