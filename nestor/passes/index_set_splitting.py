"""Move conditions out of loops: ``for k: if c: A else: B`` → ``if c: for k: A`` …, or split ``k``.

A condition that does not mention the loop's index goes around the loop. One that is linear in it
cuts the loop's range in up to three, so that the inner loops run without asking.
"""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.affine import Affine, floor_div, variable
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, Node


def split_index_sets(node: Node) -> Node:
    """The same computes in the same order, with conditions as far out as they go."""
    match node:
        case Compute():
            return node
        case Block():
            return Block(body=tuple(map(split_index_sets, node.body)))
        case Alloc():
            return replace(node, body=split_index_sets(node.body))
        case Guard():
            orelse = split_index_sets(node.orelse) if node.orelse is not None else None
            return replace(node, body=split_index_sets(node.body), orelse=orelse)
        case Loop():
            if node.kind in ("vector", "unroll"):
                return node
            return _split(replace(node, body=split_index_sets(node.body)))


def _split(loop: Loop) -> Node:
    """Take the conditions of the guard that is all of ``loop``'s body out of it."""
    guard = loop.body
    if not isinstance(guard, Guard):
        return loop
    outside = tuple(c for c in guard.conditions if loop.index not in c.variables())
    cuts = [_cut(loop.index, c) for c in guard.conditions if c not in outside]
    starts = [value for side, value in cuts if side == "start" and value is not None]
    ends = [value for side, value in cuts if side == "end" and value is not None]
    inside: tuple[Affine, ...] = ()
    few = guard.orelse is None or (len(starts) <= 1 and len(ends) <= 1)
    if len(starts) + len(ends) < len(cuts) or not few or loop.kind != "serial":
        starts, ends = [], []
        inside = tuple(c for c in guard.conditions if c not in outside)
    if not outside and inside:
        return loop
    body = replace(guard, conditions=inside) if inside else guard.body
    kept = _pieces(replace(loop, body=body), guard.orelse, starts, ends)
    if not outside:
        return kept
    orelse = _split(replace(loop, body=guard.orelse)) if guard.orelse is not None else None
    return Guard(conditions=outside, body=kept, orelse=orelse)


def _pieces(loop: Loop, orelse: Node | None, starts: list[Affine], ends: list[Affine]) -> Node:
    """``loop`` from the start to the end; before and after it runs ``orelse``."""
    kept = replace(loop, lower=_with(loop.lower, starts), upper=_with(loop.upper, ends))
    if orelse is None or not (starts or ends):
        return kept
    rest = replace(loop, body=orelse)
    nodes: list[Node] = [kept]
    if starts:
        nodes.insert(0, _split(replace(rest, upper=_with(loop.upper, starts))))
    if ends:
        # Where the end lies before the start, the first loop has run what is between.
        nodes.append(_split(replace(rest, lower=_with(loop.lower, [*ends, *starts]))))
    return Block(body=tuple(nodes))


def _with(bounds: tuple[Affine, ...], more: list[Affine]) -> tuple[Affine, ...]:
    return tuple(dict.fromkeys((*bounds, *more)))


def _cut(index: str, condition: Affine) -> tuple[str, Affine | None]:
    """Where ``condition ≥ 0`` starts to hold or ends to, as ``index`` grows; None if unknown."""
    factor = condition.coefficient(index)
    rest = condition - variable(index) * factor
    if factor == 0 or index in rest.variables():
        return "start", None
    if factor > 0:
        return "start", floor_div(-rest + (factor - 1), factor)
    return "end", floor_div(rest, -factor) + 1
