"""Promotion: keep the elements of a tensor that a loop touches again and again in a buffer.

``for k: A[i, j] -= A[i, k] * A[k, j]`` → ``P = A[i, j]; for k: P -= …; A[i, j] = P``, for a whole
register tile of ``i`` and ``j``. Nothing here proves that no other access meets the tile meanwhile:
the polyhedral checker judges the nest that results.
Source: scalar replacement; Callahan, Carr, Kennedy, Improving Register Allocation for Subscripted
Variables, PLDI 1990.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

from nestor.errors import UserError
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Expr, IndexExpr, Load, map_expr
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
from nestor.ir.names import fresh_name
from nestor.ir.program import Program, Tensor
from nestor.passes.loop_facts import LoopFacts
from nestor.passes.promotion_tiles import (
    Access,
    Inside,
    RefusedError,
    Tile,
    accesses_of,
    distinct,
    find_tiles,
)

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
        In registers, short serial loops within (the rows of a tile at the edge) are unrolled, if
        they alone move over the tile and nothing else meets it. In scope *local*, a tile extends
        over serial loops within that run over a constant number of values.
    Legal when: no other access meets the elements meanwhile (``check_nest`` decides).
    Raises: ``UserError`` if no loop of that name has such accesses.
    """
    found = next((t for t in nest.tensors if t.name == tensor), None)
    if found is None:
        raise UserError(f"nothing to promote: nest '{nest.name}' is given no tensor '{tensor}'")
    symbols = {s.name: (s.lower, s.upper) for s in nest.symbols}
    taken = {t.name for t in (*nest.tensors, *kernel.tensors)} | set(_buffer_names(nest.body))
    name = fresh_name(f"{tensor}.{loop}", taken, separator=".")
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
                    except RefusedError as reason:
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
            raise RefusedError(f"a {loop.kind} loop keeps nothing")
        try:
            tiles = self._find_tiles(loop, facts)
        except RefusedError:
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
    ) -> list[Tile]:
        """What to keep.

        Args: surely_apart: refuse also where another access might meet a tile that is written.
        Raises: ``RefusedError`` if there is nothing.
        """
        at = Inside(facts.inside(loop), facts.indices, self.scope == "local")
        accesses = list(accesses_of(loop.body, self.tensor.name, at))
        tiles = find_tiles(accesses)
        is_changed = any(a.is_write for a in accesses)
        others = [a for a in accesses if not any(a in tile.accesses for tile in tiles)]
        for tile in tiles if is_changed else ():
            for a in others:
                if tile.is_apart(a):
                    continue
                if a.offset is None and a.base == tile.base:
                    raise RefusedError("a serial loop within moves over the tile too")
                if surely_apart:
                    raise RefusedError("other accesses may meet its elements")
        return tiles

    def _around(self, loop: Node, tile: Tile, name: str, facts: LoopFacts) -> Alloc:
        """``loop`` between the copies and the writebacks of ``tile``."""
        assert isinstance(loop, (Loop, Alloc))
        buffer = Buffer(
            name=name,
            dtype=self.tensor.dtype,
            shape=tuple(affine(e) for e in tile.extents),
            scope=self.scope,
            holds=self.tensor.name,
        )
        touched = distinct(list(tile.accesses))
        written = distinct([a for a in tile.accesses if a.is_write])
        nodes = [self._transfer("copy", a, tile, name, facts) for a in touched]
        nodes.append(_redirect(loop, self.tensor.name, tile, name))
        nodes += [self._transfer("writeback", a, tile, name, facts) for a in written]
        return Alloc(buffers=(buffer,), body=Block(body=tuple(nodes)))

    def _transfer(
        self, phase: Phase, access: Access, tile: Tile, name: str, facts: LoopFacts
    ) -> Node:
        """The loops of one access around a copy or a writeback of what it touches."""
        around = facts.indices | facts.symbols.keys()
        loops = [_within(x, around) for x in access.loops]
        known = around | {x.index for x in loops}
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


def _within(loop: Loop, known: frozenset[str]) -> Loop:
    """``loop`` with the bounds that mean something outside of the promoted loop."""
    lower = tuple(b for b in loop.lower if b.variables() <= known)
    return replace(loop, lower=lower, upper=tuple(b for b in loop.upper if b.variables() <= known))


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


Bounds = tuple[tuple[str, tuple[Affine, ...], tuple[Affine, ...]], ...]


def _bounds(loops: Iterable[Loop]) -> Bounds:
    """What tells apart loops that a tile extends over."""
    return tuple((x.index, x.lower, x.upper) for x in loops)


def _redirect(node: Loop | Alloc, tensor: str, tile: Tile, name: str) -> Node:
    """``node`` with the tile's accesses sent to the buffer."""
    cells = {(a.indices, _bounds(a.loops)): tile.cell(a) for a in tile.accesses}
    names = {x.index for a in tile.accesses for x in a.loops}

    def place(indices: tuple[IndexExpr, ...], loops: tuple[Loop, ...]) -> tuple[Affine, ...] | None:
        affines = tuple(i for i in indices if isinstance(i, Affine))
        used = {v for i in affines for v in i.variables()}
        own = _bounds(x for x in loops if x.index in used and x.index in names)
        return cells.get((affines, own)) if len(affines) == len(indices) else None

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
