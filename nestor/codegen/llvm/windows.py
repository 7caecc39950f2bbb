"""Neighbouring loads of one row share what they read.

``a[j-1] + a[j] + a[j+1]`` over several vectors reads every element three times, twice across cache
lines. Within a vector loop that runs whole vectors, one after the other in straight-line code, the
first of these accesses is loaded, and the others are put together from two of its vectors. At the
ends of the loop, where one of the two is missing, they are loaded as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nestor.codegen.llvm.builder import Val
from nestor.ir.loopnest import Block, Compute, Loop, Node


@dataclass(slots=True)
class Windows:
    """The rows loaded in one vector loop.

    Attributes:
        low, high: first value of the loop's index, and one past the last.
        lanes: of one vector; ``high - low`` is a multiple, at least two.
        stored: roots of the tensors that the loop writes: these are not shared.
        start: first value of the index in the vector that is being written.
        first: row → offset of its first access from ``start`` [elements].
        rows: (row, offset) → the vector loaded there.
    """

    low: int
    high: int
    lanes: int
    stored: frozenset[str]
    start: int = 0
    first: dict[str, int] = field(default_factory=dict)
    rows: dict[tuple[str, int], Val] = field(default_factory=dict)

    def parts(self, row: str, offset: int) -> tuple[int, int] | None:
        """Where the vector of ``row`` at ``offset`` comes from: (offset of the first of two loaded
        vectors, lanes to skip in it; 0 if it is that vector). None if it must be loaded itself."""
        delta = offset - self.start
        skip = delta - self.first.setdefault(row, delta)
        if skip == 0:
            return offset, 0
        if 0 < skip < self.lanes and self.start + self.lanes < self.high:
            return offset - skip, skip
        if -self.lanes < skip < 0 and self.start > self.low:
            return offset - skip - self.lanes, self.lanes + skip
        return None


def is_straight(node: Node) -> bool:
    """Whether a vector loop's body is computes without conditions or loops that stay loops."""
    match node:
        case Compute():
            return node.phase == "point"
        case Block():
            return all(map(is_straight, node.body))
        case Loop():
            return node.kind == "unroll" and is_straight(node.body)
        case _:
            return False


def stored_tensors(node: Node) -> set[str]:
    """Names of what the computes of a straight body write."""
    match node:
        case Compute():
            return {s.target for s in node.stores}
        case Block():
            return set().union(*(stored_tensors(n) for n in node.body))
        case Loop():
            return stored_tensors(node.body)
        case _:
            return set()
