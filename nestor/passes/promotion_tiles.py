"""What a loop touches of a tensor, as tiles: the analysis behind ``promote``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import ZERO, Affine, affine, affine_sum
from nestor.ir.expr import IndexExpr, loads
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, Node, node_children
from nestor.passes.loop_facts import LoopFacts

Cell = tuple[int, ...]

MAX_ENUMERATED = 4096
"""Largest tile [elements] whose elements are listed, to see whether an access is in another."""


class RefusedError(Exception):
    """This loop cannot be treated; the text says why."""


@dataclass(frozen=True, slots=True)
class Span:
    """The values of a loop's index: ``start ≤ index < start + extent``, ``start`` fixed outside."""

    start: Affine
    extent: int


@dataclass(frozen=True, slots=True)
class Inside:
    """Where we are in the loop's body.

    Attributes:
        outer: the indices around the promoted loop.
        windows: serial loops within may be part of a tile, if they run over so many values.
    """

    facts: LoopFacts
    outer: frozenset[str]
    windows: bool
    loops: tuple[Loop, ...] = ()
    conditions: tuple[Affine, ...] = ()

    def spans(self) -> dict[str, Span]:
        """The loops within the promoted one that a tile may extend over."""
        found: dict[str, Span] = {}
        known = self.outer | self.facts.symbols.keys()
        for x in self.loops:
            if x.kind in ("unroll", "vector"):
                found[x.index] = Span(ZERO, x.upper[0].const)
            elif x.kind == "serial" and self.windows:
                window = _window(x, known)
                if window is not None:
                    found[x.index] = window
        return found


def _window(loop: Loop, known: frozenset[str]) -> Span | None:
    """The narrowest constant number of values between two of its bounds."""
    pairs = [
        Span(low, (high - low).const)
        for low in loop.lower
        for high in loop.upper
        if low.variables() <= known and (high - low).is_const
    ]
    return min(pairs, key=lambda s: s.extent, default=None)


@dataclass(frozen=True, slots=True)
class Access:
    """One access of the tensor in the loop's body.

    Attributes:
        base: the part of each index that is the same throughout the promoted loop.
        offset: the rest, over the indices of ``loops`` counted from the start of their ``spans``;
            None: it moves with another loop.
    """

    indices: tuple[Affine, ...]
    is_write: bool
    loops: tuple[Loop, ...]
    spans: tuple[Span, ...]
    conditions: tuple[Affine, ...]
    base: tuple[Affine, ...]
    offset: tuple[Affine, ...] | None
    facts: LoopFacts

    @property
    def count(self) -> int:
        """How many times it happens in one iteration of the promoted loop."""
        return math.prod(s.extent for s in self.spans)

    def cells(self) -> frozenset[Cell]:
        """Every value of ``offset``."""
        assert self.offset is not None
        names = [x.index for x in self.loops]
        ranges = (range(s.extent) for s in self.spans)
        points = (dict(zip(names, point)) for point in itertools.product(*ranges))
        return frozenset(tuple(o.evaluate(p) for o in self.offset) for p in points)

    def box(self) -> tuple[tuple[int, int], ...]:
        """Least and greatest value of each offset."""
        assert self.offset is not None
        ranges = {x.index: (0, s.extent - 1) for x, s in zip(self.loops, self.spans)}
        edges = [o.bounds(ranges) for o in self.offset]
        return tuple((low, high) for low, high in edges if low is not None and high is not None)


def accesses_of(node: Node, tensor: str, at: Inside) -> Iterator[Access]:
    """Every access of ``tensor`` below ``node``. Raises: ``RefusedError`` for a gathered one."""
    match node:
        case Loop():
            inside = replace(at, facts=at.facts.inside(node), loops=(*at.loops, node))
            yield from accesses_of(node.body, tensor, inside)
        case Guard():
            where = replace(at, conditions=(*at.conditions, *node.conditions))
            yield from accesses_of(node.body, tensor, where)
            if node.orelse is not None:
                yield from accesses_of(node.orelse, tensor, at)
        case Alloc() | Block():
            for child in node_children(node):
                yield from accesses_of(child, tensor, at)
        case Compute():
            if node.phase in ("copy", "writeback") and node.statement == tensor:
                raise RefusedError("a loop within keeps it already")
            for store in node.stores:
                if store.target == tensor:
                    yield _analyse(tensor, store.indices, True, at)
            for value in node.values:
                for x in loads(value):
                    if x.tensor == tensor:
                        access = _analyse(tensor, x.indices, False, at)
                        yield replace(access, offset=None) if x.predicate else access


def _analyse(tensor: str, indices: tuple[IndexExpr, ...], is_write: bool, at: Inside) -> Access:
    affines = tuple(i for i in indices if isinstance(i, Affine))
    if len(affines) != len(indices):
        raise RefusedError(f"an index of '{tensor}' depends on data")
    spans = at.spans()
    parts = [_split(i, at, spans) for i in affines]
    used = {v for i in affines for v in i.variables()}
    loops = tuple(x for x in at.loops if x.index in spans and x.index in used)
    known = all(offset is not None for _, offset in parts)
    return Access(
        indices=affines,
        is_write=is_write,
        loops=loops,
        spans=tuple(spans[x.index] for x in loops),
        conditions=at.conditions,
        base=tuple(base for base, _ in parts),
        offset=tuple(o for _, o in parts if o is not None) if known else None,
        facts=at.facts.where(at.conditions),
    )


def _split(index: Affine, at: Inside, spans: Mapping[str, Span]) -> tuple[Affine, Affine | None]:
    """``index = base + offset``: what is around the promoted loop, and what the tile extends over.

    The offset is None if another loop takes part, or a division mixes the two.
    """
    others = at.facts.indices - at.outer - spans.keys()
    base: list[tuple[Affine, int]] = []
    offset: list[tuple[Affine, int]] = []
    moves = False
    for atom, c in index.terms:
        names = frozenset((atom,)) if isinstance(atom, str) else atom.num.variables()
        part = Affine(((atom, 1),))
        if isinstance(atom, str) and atom in spans:
            base.append((spans[atom].start, c))
            offset.append((part, c))
        elif names & others:
            moves = True
        elif not names & spans.keys():
            base.append((part, c))
        elif names - spans.keys() or any(spans[n].start != ZERO for n in names):
            moves = True
        else:
            offset.append((part, c))
    return affine_sum(base), None if moves else affine_sum(offset, index.const)


# --- tiles -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """Accesses of one base. ``origin`` and ``extents``: the box of their offsets."""

    base: tuple[Affine, ...]
    accesses: tuple[Access, ...]
    origin: Cell
    extents: Cell

    def cell(self, access: Access) -> tuple[Affine, ...]:
        """Where the buffer keeps what ``access`` touches."""
        assert access.offset is not None
        starts = {x.index: affine(x.index) - s.start for x, s in zip(access.loops, access.spans)}
        return tuple(o.substitute(starts) - k for o, k in zip(access.offset, self.origin))

    def is_apart(self, access: Access) -> bool:
        """Whether ``access`` surely meets no element of the tile's box."""
        for index, base, low, extent in zip(access.indices, self.base, self.origin, self.extents):
            start = base + low
            edges = (start - index - 1, index - start - extent)
            if any(access.facts.is_nonnegative(e) for e in edges):
                return True
        return False


def find_tiles(accesses: list[Access]) -> list[Tile]:
    """The tiles to keep: the written one, or all if nothing is written.

    Raises: ``RefusedError`` if there is none, or they cannot be told apart.
    """
    groups: dict[tuple[Affine, ...], list[Access]] = {}
    for a in accesses:
        if a.offset is not None:
            groups.setdefault(a.base, []).append(a)
    if not groups:
        raise RefusedError("every access of it moves with the loop, or there is none")
    written = [base for base, members in groups.items() if any(a.is_write for a in members)]
    if len(written) > 1:
        raise RefusedError("several tiles of it are written, which may overlap")
    is_changed = any(a.is_write for a in accesses)
    if is_changed and not written:
        raise RefusedError("what it writes moves with the loop")
    return [_tile(base, groups[base]) for base in written or groups]


def _tile(base: tuple[Affine, ...], accesses: list[Access]) -> Tile:
    if any(a.count < 1 for a in accesses):
        raise RefusedError("a loop within has no iterations")
    boxes = list(zip(*(a.box() for a in accesses)))
    low = tuple(min(k for k, _ in edges) for edges in boxes)
    high = tuple(max(h for _, h in edges) for edges in boxes)
    extents = tuple(h - k + 1 for h, k in zip(high, low))
    return Tile(base, tuple(accesses), low, extents)


def distinct(accesses: list[Access]) -> list[Access]:
    """Accesses that together touch what all do: none inside another under the same conditions."""
    kept: list[Access] = []
    for a in sorted(accesses, key=lambda a: -a.count):
        if not any(_is_covered(a, b) for b in kept):
            kept.append(a)
    return kept


def _is_covered(a: Access, b: Access) -> bool:
    names, others = ([x.index for x in access.loops] for access in (a, b))
    if (a.offset, a.spans, names) == (b.offset, b.spans, others):
        return not b.conditions or a.conditions == b.conditions
    if b.conditions or max(a.count, b.count) > MAX_ENUMERATED:
        return False
    return a.cells() <= b.cells()
