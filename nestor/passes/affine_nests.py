"""What may be done to one band of a schedule tree, and what its loops are good for.

A *nest* here is a band with no bands below: loops around statements that run one after the other.
Its facts (``affine_facts``) say what is legal, its strides (``affine_access``) what pays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from nestor.ir.program import Program
from nestor.ir.schedule_tree import Band, Leaf, Sequence, Tree, tree_statements
from nestor.passes.affine_access import OTHER, StatementView, typical_extents
from nestor.passes.affine_facts import BandFacts, DirectionVector


@dataclass(frozen=True, slots=True, kw_only=True)
class Nest:
    """One innermost band.

    Attributes:
        loops: its loops, outermost first.
        outer: loops of the bands around, outermost first.
        facts: dependences among ``loops``.
        views: its statements, in the order in which they run.
        extents: estimated length of each of ``loops``.
        lengths: estimated length of each of ``outer``.
    """

    loops: tuple[str, ...]
    outer: tuple[str, ...]
    facts: BandFacts
    views: tuple[StatementView, ...]
    extents: Mapping[str, int] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)

    @property
    def trips(self) -> int:
        """Estimated runs of the whole nest, that is iterations of ``outer``."""
        return math.prod(self.lengths.values())

    @property
    def deep(self) -> tuple[StatementView, ...]:
        """The statements with the most indices: they do the work."""
        depth = max(v.depth for v in self.views)
        return tuple(v for v in self.views if v.depth == depth)

    def is_tilable(self, loops: Iterable[str]) -> bool:
        """``loops`` may be tiled and put in any order inside of the others."""
        inside = [self.loops.index(n) for n in loops]
        return all(
            all(v.signs[k] >= 0 for k in inside)
            for v in self.facts.vectors
            if not v.is_reduction and self._is_inside(v, inside)
        )

    def _is_inside(self, v: DirectionVector, inside: list[int]) -> bool:
        """No loop outside of ``inside`` carries it."""
        return not any(s for k, s in enumerate(v.signs) if k not in inside)

    def tilable_suffix(self) -> tuple[str, ...]:
        """The largest group of inner loops that may be tiled together."""
        for start in range(len(self.loops)):
            if self.is_tilable(self.loops[start:]):
                return self.loops[start:]
        return self.loops[-1:]

    def can_vectorize(self, loop: str, unrolled: Iterable[str] = ()) -> bool:
        """``loop`` may run in lanes innermost, with tiles of ``unrolled`` right outside of it.

        Each statement then runs its whole register tile before the next one does: a dependence
        between two of them that only these loops carry must go to a later statement. A statement
        that stands still in one of the loops cannot be part of a tile.
        """
        unrolled = tuple(unrolled)
        if not self._move_in((loop, *unrolled)):
            return False
        place = {v.name: k for k, v in enumerate(self.views)}
        at = self.loops.index(loop)
        tile = {at, *(self.loops.index(n) for n in unrolled)}
        for v in self.facts.vectors:
            if any(s for k, s in enumerate(v.signs) if k not in tile):
                continue
            if v.source == v.target:
                if v.signs[at] and not any(v.signs[k] for k in tile - {at}):
                    return False
            elif place.get(v.source, 0) > place.get(v.target, 0):
                return False
        return True

    def moves_in(self, loop: str) -> bool:
        """Every statement is at another index in each iteration of ``loop``."""
        return self._move_in((loop,))

    def _move_in(self, loops: tuple[str, ...]) -> bool:
        """Every statement is at another index in each iteration of each of ``loops``.

        Its loops must tell its indices by whole multiples, or no register tile of it is known.
        """
        if not all(
            by_loop and all(step.denominator == 1 for step in by_loop.values())
            for v in self.views
            for by_loop in v.moves.values()
        ):
            return False
        return all(
            row.variables() & set(v.statement.domain.names)
            for v in self.views
            for name, row in v.rows
            if name in loops
        )

    def is_parallel_tile(self, loop: str) -> bool:
        """Iterations and tiles of ``loop`` are independent, whatever tiles are around."""
        return self.facts.is_coincident(loop)

    def is_parallel_at(self, loop: str, outside: Iterable[str]) -> bool:
        """Iterations of ``loop`` are independent with whole loops ``outside`` around it."""
        return not self.facts.carried(loop, outside)

    def is_stride_one(self, loop: str) -> bool:
        """``loop`` writes neighbours, and reads neighbours or one element."""
        return all(
            s.strides[loop] in (0, 1, -1) and not (s.is_write and s.strides[loop] == 0)
            for v in self.deep
            for s in v.streams
        )

    def gathers(self, loop: str) -> int:
        """Accesses of the deep statements that neither stand still nor run along memory."""
        return sum(s.strides[loop] == OTHER for v in self.deep for s in v.streams)

    def contiguous(self, loop: str) -> int:
        """Accesses of the deep statements that run along memory."""
        return sum(abs(s.strides[loop]) == 1 for v in self.deep for s in v.streams)

    def instances(self) -> float:
        """Estimated instances of the deep statements, in all runs."""
        total = float(self.trips)
        for loop in self.loops:
            total *= self.extents[loop]
        return total


def find_nests(
    program: Program,
    tree: Tree,
    bands: Iterable[BandFacts],
    views: Mapping[str, StatementView],
    sizes: Mapping[str, int] | None = None,
) -> list[Nest]:
    """The innermost bands of ``tree``, in order."""
    facts = {b.loops: b for b in bands}
    found: list[Nest] = []

    def visit(node: Tree, outer: tuple[str, ...]) -> None:
        match node:
            case Leaf():
                return
            case Sequence():
                for child in node.children:
                    visit(child, outer)
            case Band():
                loops = tuple(x.name for x in node.loops)
                if any(True for _ in _bands_below(node.child)):
                    visit(node.child, (*outer, *loops))
                    return
                own = tuple(views[s] for s in tree_statements(node))
                extents, lengths = _extents(program, own, loops, outer, sizes)
                found.append(
                    Nest(
                        loops=loops,
                        outer=outer,
                        facts=facts[loops],
                        views=own,
                        extents=extents,
                        lengths=lengths,
                    )
                )

    visit(tree, ())
    return found


def _bands_below(tree: Tree) -> Iterator[Band]:
    match tree:
        case Leaf():
            return
        case Band():
            yield tree
        case Sequence():
            for child in tree.children:
                yield from _bands_below(child)


def _extents(
    program: Program,
    views: tuple[StatementView, ...],
    loops: tuple[str, ...],
    outer: tuple[str, ...],
    sizes: Mapping[str, int] | None,
) -> tuple[dict[str, int], dict[str, int]]:
    """Lengths of ``loops`` and of ``outer`` for the deepest statement."""
    deepest = max(views, key=lambda v: v.depth)
    by_index = typical_extents(program, deepest.statement, sizes)
    rows = dict(deepest.rows)

    def length(loop: str) -> int:
        return max([1, *(by_index[n] for n in rows[loop].variables() if n in by_index)])

    around = {loop: length(loop) if loop in rows else 1 for loop in outer}
    return {loop: length(loop) for loop in loops}, around
