"""Promotion: keep the elements of a tensor that a loop touches again and again in a buffer.

``for k: A[i, j] -= A[i, k] * A[k, j]`` → ``P = A[i, j]; for k: P -= …; A[i, j] = P``, for a whole
register tile of ``i`` and ``j``. Nothing here proves that no other access meets the tile meanwhile:
the polyhedral checker judges the nest that results.
Source: scalar replacement; Callahan, Carr, Kennedy, Improving Register Allocation for Subscripted
Variables, PLDI 1990.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from nestor.errors import UserError
from nestor.ir.affine import Affine, affine, affine_sum
from nestor.ir.expr import Expr, IndexExpr, Load, loads, map_expr
from nestor.ir.loopnest import (
    Alloc,
    Block,
    Buffer,
    Compute,
    Guard,
    Loop,
    LoopNest,
    Node,
    Phase,
    Store,
    node_children,
)
from nestor.ir.program import Program, Tensor
from nestor.passes.loop_facts import LoopFacts

Cell = tuple[int, ...]

MAX_WRITTEN_OUT = 16
"""Longest serial loop [iterations] that is unrolled so that what it moves over is one tile."""

MAX_COPIES = 32
"""Most copies of a statement that unrolling for a tile may make."""


def promote(
    nest: LoopNest,
    kernel: Program,
    tensor: str,
    loop: str,
    scope: Literal["register", "local"] = "register",
) -> LoopNest:
    """Keep what each run of ``loop`` touches of ``tensor`` again and again in a buffer.

    Args: nest: as built. kernel: its Program. tensor: a tensor of the nest. loop: the index of
        serial loops; each of them that can be is treated. scope: of the buffer.
    Rewrite: ``for k: … A[8*io + ii, j] …`` → ``alloc P: [8] register holds A {
        unroll ii: copy P[ii] = A[8*io + ii, j]; for k: … P[ii] …;
        unroll ii: writeback A[8*io + ii, j] = P[ii] }``, the writeback only where it is written.
        Elements that may lie outside of the tensor are masked; a loop that may be empty is guarded.
        Short serial loops within (the rows of a tile at the edge) are unrolled, if only they move
        over the tile and nothing else does.
    Legal when: no other access meets the elements meanwhile (``check_nest`` decides).
    Raises: ``UserError`` if no loop of that name has such accesses.
    """
    found = next((t for t in nest.tensors if t.name == tensor), None)
    if found is None:
        raise UserError(f"nothing to promote: nest '{nest.name}' is given no tensor '{tensor}'")
    symbols = {s.name: (s.lower, s.upper) for s in nest.symbols}
    taken = {t.name for t in (*nest.tensors, *kernel.tensors)} | set(_buffer_names(nest.body))
    name = f"{tensor}.{loop}"
    while name in taken:
        name += ".p"
    rewriter = _Promoter(found, loop, scope, name)
    body = rewriter.visit(nest.body, LoopFacts(symbols))
    if not rewriter.done:
        reasons = "; ".join(dict.fromkeys(rewriter.reasons)) or "there is no such loop"
        raise UserError(f"nothing of '{tensor}' can be promoted around '{loop}': {reasons}")
    return replace(nest, body=body)


def _buffer_names(node: Node) -> Iterator[str]:
    if isinstance(node, Alloc):
        yield from (b.name for b in node.buffers)
    for child in node_children(node):
        yield from _buffer_names(child)


class _RefusedError(Exception):
    """This loop cannot be treated; the text says why."""


class _Promoter:
    """One walk over the nest."""

    def __init__(
        self, tensor: Tensor, loop: str, scope: Literal["register", "local"], name: str
    ) -> None:
        self.tensor = tensor
        self.loop = loop
        self.scope = scope
        self.name = name
        self.done = 0
        self.reasons: list[str] = []

    def visit(self, node: Node, facts: LoopFacts) -> Node:
        """``node`` with its loops called ``self.loop`` treated."""
        match node:
            case Loop():
                if node.index == self.loop:
                    try:
                        node_or_alloc = self._promote(node, facts)
                    except _RefusedError as reason:
                        self.reasons.append(str(reason))
                        return node
                    self.done += 1
                    return node_or_alloc
                return replace(node, body=self.visit(node.body, facts.inside(node)))
            case Alloc():
                return replace(node, body=self.visit(node.body, facts))
            case Guard():
                orelse = node.orelse
                if orelse is not None:
                    orelse = self.visit(orelse, facts)
                body = self.visit(node.body, facts.where(node.conditions))
                return replace(node, body=body, orelse=orelse)
            case Block():
                return Block(body=tuple(self.visit(child, facts) for child in node.body))
            case Compute():
                return node

    def _promote(self, loop: Loop, facts: LoopFacts) -> Node:
        if loop.kind != "serial":
            raise _RefusedError(f"a {loop.kind} loop keeps nothing")
        try:
            tiles = self._find_tiles(loop, facts)
        except _RefusedError:
            written_out = replace(loop, body=_write_out(loop.body))
            is_short = _copies(written_out) <= MAX_COPIES
            if self.scope != "register" or written_out == loop or not is_short:
                raise
            loop = written_out
            tiles = self._find_tiles(loop, facts, surely_apart=True)
        body: Node = loop
        for number, tile in enumerate(tiles):
            name = self.name if number == 0 else f"{self.name}.{number + 1}"
            body = self._around(body, tile, name, facts)
        if not facts.never_empty(loop):
            pairs = (u - low - 1 for u in loop.upper for low in loop.lower)
            open_pairs = tuple(dict.fromkeys(p for p in pairs if not facts.is_nonnegative(p)))
            return Guard(conditions=open_pairs, body=body)
        return body

    def _find_tiles(
        self, loop: Loop, facts: LoopFacts, *, surely_apart: bool = False
    ) -> list[_Tile]:
        """What to keep.

        Args: surely_apart: refuse also where another access might meet a tile that is written.
        Raises: ``_RefusedError`` if there is nothing.
        """
        at = _Inside(facts.inside(loop), facts.indices)
        accesses = list(_accesses(loop.body, self.tensor.name, at))
        tiles = _tiles(accesses)
        is_changed = any(a.is_write for a in accesses)
        others = [a for a in accesses if not any(a in tile.accesses for tile in tiles)]
        for tile in tiles if is_changed else ():
            for a in others:
                if tile.is_apart(a):
                    continue
                if a.offset is None and a.base == tile.base:
                    raise _RefusedError("a serial loop within moves over the tile too")
                if surely_apart:
                    raise _RefusedError("other accesses may meet its elements")
        return tiles

    def _around(self, loop: Node, tile: _Tile, name: str, facts: LoopFacts) -> Alloc:
        """``loop`` between the copies and the writebacks of ``tile``."""
        assert isinstance(loop, (Loop, Alloc))
        buffer = Buffer(
            name=name,
            dtype=self.tensor.dtype,
            shape=tuple(affine(e) for e in tile.extents),
            scope=self.scope,
            holds=self.tensor.name,
        )
        touched = _distinct(tile, list(tile.accesses))
        written = _distinct(tile, [a for a in tile.accesses if a.is_write])
        nodes = [self._transfer("copy", a, tile, name, facts) for a in touched]
        nodes.append(_redirect(loop, self.tensor.name, tile, name))
        nodes += [self._transfer("writeback", a, tile, name, facts) for a in written]
        return Alloc(buffers=(buffer,), body=Block(body=tuple(nodes)))

    def _transfer(
        self, phase: Phase, access: _Access, tile: _Tile, name: str, facts: LoopFacts
    ) -> Node:
        """The loops of one access around a copy or a writeback of what it touches."""
        loops = access.loops
        known = facts.indices | {x.index for x in loops} | facts.symbols.keys()
        conditions = [c for c in access.conditions if c.variables() <= known]
        within = facts.where(conditions)
        for x in loops:
            within = within.inside(x)
        for index, extent in zip(access.indices, self.tensor.shape):
            edges = (index, extent - 1 - index)
            conditions += [e for e in edges if not within.is_nonnegative(e)]
        here = Load(tensor=name, indices=tile.cell(access), dtype=self.tensor.dtype)
        there = Load(tensor=self.tensor.name, indices=access.indices, dtype=self.tensor.dtype)
        source, target = (there, here) if phase == "copy" else (here, there)
        node: Node = Compute(
            statement=self.tensor.name,
            phase=phase,
            instance=tuple((f"d{d}", i) for d, i in enumerate(access.indices)),
            stores=(Store(target=target.tensor, indices=target.indices),),
            values=(source,),
        )
        names = {x.index for x in loops}
        lanes = tuple(dict.fromkeys(c for c in conditions if c.variables() & names))
        outside = tuple(dict.fromkeys(c for c in conditions if not c.variables() & names))
        if lanes:
            node = Guard(conditions=lanes, body=node)
        for x in reversed(loops):
            node = replace(x, body=node)
        return Guard(conditions=outside, body=node) if outside else node


def _write_out(node: Node) -> Node:
    """``node`` with short serial loops written out, under conditions where they may end early.

    ``for i < min(8, N - 8*io)`` → ``unroll i < 8: if N - 8*io - i - 1 ≥ 0``.
    """
    match node:
        case Loop():
            body = _write_out(node.body)
            ends = [u.const for u in node.upper if u.is_const]
            is_short = bool(ends) and min(ends) <= MAX_WRITTEN_OUT and affine(0) in node.lower
            if node.kind != "serial" or not is_short or min(ends) < 1:
                return replace(node, body=body)
            index = affine(node.index)
            conditions = [u - index - 1 for u in node.upper if not u.is_const]
            conditions += [index - low for low in node.lower if low != affine(0)]
            if conditions:
                body = Guard(conditions=tuple(conditions), body=body)
            first, last = (affine(0),), (affine(min(ends)),)
            return replace(node, lower=first, upper=last, kind="unroll", body=body)
        case Alloc():
            return replace(node, body=_write_out(node.body))
        case Guard():
            orelse = None if node.orelse is None else _write_out(node.orelse)
            return replace(node, body=_write_out(node.body), orelse=orelse)
        case Block():
            return Block(body=tuple(map(_write_out, node.body)))
        case Compute():
            return node


def _copies(node: Node) -> int:
    """How many times the innermost code is written, at most."""
    inner = max(map(_copies, node_children(node)), default=1)
    if isinstance(node, Loop) and node.kind == "unroll":
        return inner * node.upper[0].const
    return inner


# --- accesses ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Inside:
    """Where we are in the loop's body. ``outer``: the indices around the promoted loop."""

    facts: LoopFacts
    outer: frozenset[str]
    loops: tuple[Loop, ...] = ()
    conditions: tuple[Affine, ...] = ()

    @property
    def fixed(self) -> dict[str, Loop]:
        """Loops around, within the promoted one, that are written out."""
        return {x.index: x for x in self.loops if x.kind in ("unroll", "vector")}


@dataclass(frozen=True, slots=True)
class _Access:
    """One access. ``base``: the part of each index that is the same throughout the promoted loop;
    ``offset``: the rest, over ``loops`` that are written out. None: it moves with a serial loop."""

    indices: tuple[Affine, ...]
    is_write: bool
    loops: tuple[Loop, ...]
    conditions: tuple[Affine, ...]
    base: tuple[Affine, ...]
    offset: tuple[Affine, ...] | None
    facts: LoopFacts

    def cells(self) -> frozenset[Cell]:
        """Every value of ``offset``."""
        assert self.offset is not None
        spans = [range(x.upper[0].const) for x in self.loops]
        names = [x.index for x in self.loops]
        points = (dict(zip(names, point)) for point in itertools.product(*spans))
        return frozenset(tuple(o.evaluate(p) for o in self.offset) for p in points)


def _accesses(node: Node, tensor: str, at: _Inside) -> Iterator[_Access]:
    """Every access of ``tensor`` below ``node``. Raises: ``_RefusedError`` for a gathered one."""
    match node:
        case Loop():
            inside = replace(at, facts=at.facts.inside(node), loops=(*at.loops, node))
            yield from _accesses(node.body, tensor, inside)
        case Guard():
            where = replace(at, conditions=(*at.conditions, *node.conditions))
            yield from _accesses(node.body, tensor, where)
            if node.orelse is not None:
                yield from _accesses(node.orelse, tensor, at)
        case Alloc() | Block():
            for child in node_children(node):
                yield from _accesses(child, tensor, at)
        case Compute():
            if node.phase in ("copy", "writeback") and node.statement == tensor:
                raise _RefusedError("a loop within keeps it already")
            for store in node.stores:
                if store.target == tensor:
                    yield _analyse(tensor, store.indices, True, at)
            for value in node.values:
                for x in loads(value):
                    if x.tensor == tensor:
                        access = _analyse(tensor, x.indices, False, at)
                        yield replace(access, offset=None) if x.predicate else access


def _analyse(tensor: str, indices: tuple[IndexExpr, ...], is_write: bool, at: _Inside) -> _Access:
    affines = tuple(i for i in indices if isinstance(i, Affine))
    if len(affines) != len(indices):
        raise _RefusedError(f"an index of '{tensor}' depends on data")
    parts = [_split(i, at) for i in affines]
    fixed = at.fixed
    used = {v for i in affines for v in i.variables()}
    loops = tuple(x for x in at.loops if x.index in fixed and x.index in used)
    known = all(offset is not None for _, offset in parts)
    return _Access(
        indices=affines,
        is_write=is_write,
        loops=loops,
        conditions=at.conditions,
        base=tuple(base for base, _ in parts),
        offset=tuple(o for _, o in parts if o is not None) if known else None,
        facts=at.facts.where(at.conditions),
    )


def _split(index: Affine, at: _Inside) -> tuple[Affine, Affine | None]:
    """``index = base + offset``: what is around the promoted loop, and what is written out in it.

    The offset is None if a serial loop takes part, or a division mixes the two.
    """
    fixed = at.fixed.keys()
    serial = at.facts.indices - at.outer - fixed
    base: list[tuple[Affine, int]] = []
    offset: list[tuple[Affine, int]] = []
    moves = False
    for atom, c in index.terms:
        names = {atom} if isinstance(atom, str) else atom.num.variables()
        part = Affine(((atom, 1),))
        if names & serial or (names & fixed and names - fixed):
            moves = True
        elif names & fixed:
            offset.append((part, c))
        else:
            base.append((part, c))
    return affine_sum(base), None if moves else affine_sum(offset, index.const)


# --- tiles -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tile:
    """Accesses of one base. ``origin`` and ``extents``: the box of their offsets."""

    base: tuple[Affine, ...]
    accesses: tuple[_Access, ...]
    origin: Cell
    extents: Cell

    def cell(self, access: _Access) -> tuple[Affine, ...]:
        """Where the buffer keeps what ``access`` touches."""
        assert access.offset is not None
        return tuple(o - k for o, k in zip(access.offset, self.origin))

    def is_apart(self, access: _Access) -> bool:
        """Whether ``access`` surely meets no element of the tile's box."""
        for index, base, low, extent in zip(access.indices, self.base, self.origin, self.extents):
            start = base + low
            edges = (start - index - 1, index - start - extent)
            if any(access.facts.is_nonnegative(e) for e in edges):
                return True
        return False


def _tiles(accesses: list[_Access]) -> list[_Tile]:
    """The tiles to keep: the written one, or all if nothing is written.

    Raises: ``_RefusedError`` if there is none, or they cannot be told apart.
    """
    groups: dict[tuple[Affine, ...], list[_Access]] = {}
    for a in accesses:
        if a.offset is not None:
            groups.setdefault(a.base, []).append(a)
    if not groups:
        raise _RefusedError("every access of it moves with the loop, or there is none")
    written = [base for base, members in groups.items() if any(a.is_write for a in members)]
    if len(written) > 1:
        raise _RefusedError("several tiles of it are written, which may overlap")
    is_changed = any(a.is_write for a in accesses)
    if is_changed and not written:
        raise _RefusedError("what it writes moves with the loop")
    return [_tile(base, groups[base]) for base in written or groups]


def _tile(base: tuple[Affine, ...], accesses: list[_Access]) -> _Tile:
    cells = frozenset[Cell]().union(*(a.cells() for a in accesses))
    if not cells:
        raise _RefusedError("a loop within has no iterations")
    low = tuple(min(c) for c in zip(*cells))
    high = tuple(max(c) for c in zip(*cells))
    extents = tuple(h - k + 1 for h, k in zip(high, low))
    return _Tile(base, tuple(accesses), low, extents)


def _distinct(tile: _Tile, accesses: list[_Access]) -> list[_Access]:
    """Accesses that together touch what all do: none inside another under the same conditions."""
    kept: list[_Access] = []
    for a in sorted(accesses, key=lambda a: -len(a.cells())):
        own = a.cells()
        names = {x.index for x in a.loops}
        covered = any(
            own <= b.cells()
            and (not b.conditions or (b.conditions == a.conditions and b.offset == a.offset))
            and (not b.conditions or {x.index for x in b.loops} == names)
            for b in kept
        )
        if not covered:
            kept.append(a)
    return kept


def _spans(loops: tuple[Loop, ...]) -> tuple[tuple[str, Affine], ...]:
    """What tells apart loops that are written out."""
    return tuple((x.index, x.upper[0]) for x in loops)


def _redirect(node: Loop | Alloc, tensor: str, tile: _Tile, name: str) -> Node:
    """``node`` with the tile's accesses sent to the buffer."""
    cells = {(a.indices, _spans(a.loops)): tile.cell(a) for a in tile.accesses}

    def place(indices: tuple[IndexExpr, ...], loops: tuple[Loop, ...]) -> tuple[Affine, ...] | None:
        affines = tuple(i for i in indices if isinstance(i, Affine))
        used = {v for i in affines for v in i.variables()}
        own = tuple(x for x in loops if x.kind in ("unroll", "vector") and x.index in used)
        return cells.get((affines, _spans(own))) if len(affines) == len(indices) else None

    def rewrite(x: Expr, loops: tuple[Loop, ...]) -> Expr:
        def one(e: Expr) -> Expr:
            if isinstance(e, Load) and e.tensor == tensor and not e.predicate:
                cell = place(e.indices, loops)
                return e if cell is None else replace(e, tensor=name, indices=cell)
            return e

        return map_expr(x, one)

    def visit(n: Node, loops: tuple[Loop, ...]) -> Node:
        match n:
            case Loop():
                return replace(n, body=visit(n.body, (*loops, n)))
            case Alloc():
                return replace(n, body=visit(n.body, loops))
            case Guard():
                orelse = None if n.orelse is None else visit(n.orelse, loops)
                return replace(n, body=visit(n.body, loops), orelse=orelse)
            case Block():
                return Block(body=tuple(visit(child, loops) for child in n.body))
            case Compute():
                stores = []
                for s in n.stores:
                    cell = place(s.indices, loops) if s.target == tensor else None
                    stores.append(s if cell is None else Store(target=name, indices=cell))
                values = tuple(rewrite(v, loops) for v in n.values)
                return replace(n, stores=tuple(stores), values=values)

    return visit(node, ())
