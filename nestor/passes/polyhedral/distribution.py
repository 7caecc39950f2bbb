"""Loop distribution: every loop around as few statements as the dependences allow.

Cheap and certain, where isl's scheduler may run out of time: the loops keep their order and only
fall apart. Source: Allen, Kennedy, Automatic Translation of Fortran Programs to Vector Form, 1987.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nestor.ir.names import Names
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence, Tree, tree_statements
from nestor.passes.polyhedral.dependence_analysis import DependenceAnalysis, Relation
from nestor.passes.polyhedral.order_tree import loop_names, normalize

Active = list[tuple[Relation, Any]]
"""Relations with what is left of their maps below some loops."""


def distribute_tree(analysis: DependenceAnalysis, tree: Tree) -> Tree:
    """``tree`` with each loop split between statements that are in no cycle of dependences.

    Rewrite: ``for i { S; T }`` → ``for i { S }`` ``for i { T }``; each loop has its own name.
    Legal when: no dependence goes from T back to S in a later iteration.
    """
    names = loop_names([s.name for s in analysis.program.symbols])
    active: Active = [(r, r.map) for r in analysis.relations]
    return normalize(_visit(normalize(tree), active, names))


def _visit(tree: Tree, active: Active, names: Names) -> Tree:
    match tree:
        case Leaf():
            return tree
        case Sequence():
            return Sequence(
                children=tuple(_visit(c, _within(active, c), names) for c in tree.children)
            )
        case Band():
            return _distribute(tree, active, names)


def _within(active: Active, tree: Tree) -> Active:
    """Dependences between statements of ``tree``."""
    own = set(tree_statements(tree))
    return [
        (r, m)
        for r, m in active
        if r.source.statement.name in own and r.target.statement.name in own
    ]


def _distribute(band: Band, active: Active, names: Names) -> Tree:
    children = band.child.children if isinstance(band.child, Sequence) else (band.child,)
    parts: list[Tree] = []
    for group in _components(children, active):
        inside = {s for child in group for s in tree_statements(child)}
        loops = tuple(
            BandLoop(
                name=names.fresh(loop.name),
                rows=tuple((s, row) for s, row in loop.rows if s in inside),
            )
            for loop in band.loops
        )
        child: Tree = group[0] if len(group) == 1 else Sequence(children=tuple(group))
        part = replace(band, loops=loops, child=child)
        below = _below(part, _within(active, part))
        parts.append(replace(part, child=_visit(child, below, names)))
    return parts[0] if len(parts) == 1 else Sequence(children=tuple(parts))


def _below(band: Band, active: Active) -> Active:
    """What the loops of ``band`` do not carry."""
    found: Active = []
    for r, m in active:
        left, right = (
            x.points.relation(tuple(loop.row(x.statement.name) for loop in band.loops))
            for x in (r.source, r.target)
        )
        rest = m.intersect(left.apply_range(right.reverse()))
        if not rest.is_empty():
            found.append((r, rest))
    return found


def _components(children: tuple[Tree, ...], active: Active) -> list[list[Tree]]:
    """Cycles of dependences among ``children``, in an order that keeps all dependences."""
    place = {s: k for k, child in enumerate(children) for s in tree_statements(child)}
    count = len(children)
    reach = [[a == b for b in range(count)] for a in range(count)]
    for r, _ in active:
        reach[place[r.source.statement.name]][place[r.target.statement.name]] = True
    for via in range(count):
        for a in range(count):
            if reach[a][via]:
                reach[a] = [x or y for x, y in zip(reach[a], reach[via])]
    left = list(range(count))
    found: list[list[Tree]] = []
    while left:
        # The first child that only depends on those that are done, with its cycle.
        first = next(a for a in left if all(reach[a][b] for b in left if reach[b][a]))
        cycle = [b for b in left if reach[first][b] and reach[b][first]]
        found.append([children[b] for b in cycle])
        left = [b for b in left if b not in cycle]
    return found
