"""A call's kernels, one after the other; or recorded once, and started as a whole."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Launch = Callable[[int, Sequence[Any], Sequence[int]], None]
"""Starts a kernel on the current stream: so many programs, on tensors and sizes."""

Step = Callable[[Mapping[int, Any]], None]
"""A part of a call: starts a kernel, or runs an operator, on tensors by slot."""


SCRATCH = -1
"""Where, among a call's tensors, the memory is that kernels write descriptors in."""

SCRATCH_ALIGNMENT = 128
"""Of each kernel's part of it [bytes]."""

MOST_COMPARED = 2000
"""Kernels of a call that may run side by side; longer ones run in order."""


class Graph(Protocol):
    """Kernels that a device starts as one."""

    def add(
        self,
        launch: Launch,
        programs: int,
        tensors: Sequence[Any],
        sizes: Sequence[int],
        after: Sequence[int],
    ) -> int:
        """One more kernel, which waits for those numbered ``after``; its number: 0, 1, …"""

    def finish(self) -> None:
        """All kernels are there."""

    def change(self, number: int, tensors: Sequence[Any], sizes: Sequence[int]) -> None:
        """Give a kernel other tensors from the next start on."""

    def start(self) -> None:
        """Start all on the current stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One kernel of a call.

    Attributes: slots: of its tensors; at the positions ``written`` it writes. further: tensors
        after them that every call has, and any number of kernels may write at once. scratch: where
        its own part of a call's ``SCRATCH`` begins [bytes]; None if it needs none.
    """

    launch: Launch
    programs: int
    slots: tuple[int, ...]
    further: tuple[Any, ...]
    sizes: tuple[int, ...]
    written: frozenset[int]
    scratch: int | None = None

    def __call__(self, tensors: Mapping[int, Any]) -> None:
        self.launch(self.programs, self.given(tensors), self.numbers(tensors))

    def numbers(self, tensors: Mapping[int, Any]) -> tuple[int, ...]:
        """What it is told behind its tensors: sizes, and the address of its scratch memory."""
        if self.scratch is None:
            return self.sizes
        return (*self.sizes, tensors[SCRATCH].data_ptr() + self.scratch)

    def given(self, tensors: Mapping[int, Any]) -> list[Any]:
        """What it works on."""
        return [*(tensors[s] for s in self.slots), *self.further]


Touched = list[tuple[int, int, bool]]
"""Bytes that a kernel touches, from the first to one past the last, and whether it writes there."""


def _touched(start: Start, tensors: Mapping[int, Any]) -> Touched:
    found = []
    for position, slot in enumerate(start.slots):
        tensor = tensors[slot]
        first = tensor.data_ptr()
        last = first + tensor.numel() * tensor.element_size()
        found.append((first, last, position in start.written))
    return found


def waits_of(kernels: Sequence[Touched]) -> list[list[int]]:
    """For each kernel those before it that it waits for: both touch a byte, and one writes."""
    written = [(low, high) for own in kernels for low, high, writes in own if writes]
    shared = _Union(written)
    before: list[tuple[int, int, bool, int]] = []
    waits: list[list[int]] = []
    for number, own in enumerate(kernels):
        after: set[int] = set()
        own = [access for access in own if shared.touches(*access[:2])]
        for low, high, writes in own:
            kept = []
            for access in before:
                first, last, wrote, who = access
                if first < high and low < last and (writes or wrote):
                    after.add(who)
                    if writes and low <= first and last <= high:
                        continue  # whoever comes later waits for this kernel
                kept.append(access)
            before = kept
        before += [(low, high, writes, number) for low, high, writes in own]
        waits.append(sorted(after))
    return waits


class _Union:
    """Bytes that lie in any of some ranges."""

    def __init__(self, ranges: Sequence[tuple[int, int]]):
        self._first: list[int] = []
        self._last: list[int] = []
        for low, high in sorted(r for r in ranges if r[0] < r[1]):
            if self._last and low <= self._last[-1]:
                self._last[-1] = max(self._last[-1], high)
            else:
                self._first.append(low)
                self._last.append(high)

    def touches(self, low: int, high: int) -> bool:
        """Whether one lies between ``low`` and ``high``."""
        at = bisect.bisect_right(self._last, low)
        return low < high and at < len(self._first) and self._first[at] < high


class RecordedCall:
    """Kernels on one arena and one set of weights, recorded; other tensors may be others each time.

    Args: moving: slots of those others. in_order: nothing is known of where they lie to each other,
        so no kernel starts before the one before it has ended.
    """

    def __init__(
        self,
        graph: Graph,
        starts: Sequence[Start],
        tensors: Mapping[int, Any],
        weights: object,
        moving: frozenset[int],
        *,
        in_order: bool = False,
    ):
        self.weights = weights
        self._graph = graph
        self._moving: list[tuple[int, Start, list[int]]] = []
        if in_order or len(starts) > MOST_COMPARED:
            waits = [[n - 1] if n else [] for n in range(len(starts))]
        else:
            waits = waits_of([_touched(start, tensors) for start in starts])
        for start, after in zip(starts, waits, strict=True):
            given = start.given(tensors)
            numbers = start.numbers(tensors)
            number = graph.add(start.launch, start.programs, given, numbers, after)
            if moving & {*start.slots}:
                self._moving.append((number, start, [t.data_ptr() for t in given]))
        graph.finish()

    def start(self, tensors: Mapping[int, Any]) -> None:
        """Start all kernels."""
        for n, (number, start, before) in enumerate(self._moving):
            given = start.given(tensors)
            places = [t.data_ptr() for t in given]
            if places != before:
                self._graph.change(number, given, start.numbers(tensors))
                self._moving[n] = (number, start, places)
        self._graph.start()
