"""Contractions whose register tiles lie inside shared rows, and the pointwise statements on their
results: depthwise convolutions, and products that take their lines.

Where a row is an image, its copy with a border stays near while the windows slide over it. Where it
is a line, what a convolution makes stays near until a product has read it (``line_fusion``). Tiles
are part of one image or one line anyway, so nothing is lost by sharing these.
"""

from __future__ import annotations

from dataclasses import dataclass

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import loads
from nestor.ir.program import Statement
from nestor.ir.schedule import Fuse, Reorder
from nestor.passes.contraction import Contraction
from nestor.passes.contraction_schedule import contraction_loops, is_expensive, mirror_tile
from nestor.passes.contraction_tile import shared_window
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import free_indices


@dataclass(frozen=True, slots=True)
class WindowTile:
    """The loops of a scheduled contraction inside its shared rows: around its tile, and of it."""

    statement: Statement
    outer: list[str]
    tile: list[str]


def is_window_of_rows(s: Statement, c: Contraction | None) -> bool:
    """Whether ``s`` is a convolution whose register tile reuses nothing from row to row."""
    return c is not None and not c.rows and shared_window(s, c) is not None


def window_tile(rules: Rules, s: Statement, c: Contraction, rows: list[str]) -> WindowTile:
    """Schedule a contraction inside the shared loops ``rows``."""
    shared = set(rules.fused.shared[s.name])
    own = [n for n in free_indices(s) if n not in shared]
    outer, tile = contraction_loops(rules, s, c, own, [], around=rows)
    return WindowTile(s, outer, tile)


def follow_tile(
    rules: Rules, anchor: WindowTile, s: Statement, shared: list[str], rows: list[str]
) -> bool:
    """Run ``s`` on the anchor's tile, if it takes the results one by one; False if it does not.

    Args: shared: the loops around the anchor that all statements share; rows: those of ``s``.
    """
    renamed = _renamed(anchor.statement, s)
    if renamed is None:
        return False
    outer, inner = mirror_tile(rules, anchor.statement, s, renamed, anchor.outer, anchor.tile)
    rules.out.append(Reorder(statement=s.name, loops=(*rows, *outer, *inner)))
    for first, second in zip((*shared, *anchor.outer), (*rows, *outer)):
        rules.out.append(Fuse(first=first, second=second))
    rules.annotate_tile(inner[-1:] if is_expensive(s) else inner)
    return True


def _renamed(anchor: Statement, s: Statement) -> dict[str, str] | None:
    """Free index of ``anchor`` → index of ``s``, if that runs over the same box and reads the
    result there and nowhere else."""
    names = free_indices(anchor)
    if s.reduction is not None or len(s.domain.names) != len(names):
        return None
    write = anchor.writes[0]
    reads = [x for e in s.elements for x in loads(e) if x.tensor == write.tensor]
    if not reads or any(x != reads[0] or x.predicate for x in reads):
        return None
    found: dict[str, str] = {}
    for a, b in zip(write.indices, reads[0].indices):
        if not isinstance(a, Affine) or not isinstance(b, Affine):
            return None
        mine, theirs = a.variables(), b.variables()
        if len(mine) != len(theirs) or len(mine) > 1:
            return None
        pair = dict(zip(mine, theirs))
        if a.substitute({m: variable(t) for m, t in pair.items()}) != b:
            return None
        found |= pair
    same = set(found) == set(names) and all(
        anchor.domain.range_of(m).lower == s.domain.range_of(t).lower
        and anchor.domain.range_of(m).upper == s.domain.range_of(t).upper
        for m, t in found.items()
    )
    return found if same else None
