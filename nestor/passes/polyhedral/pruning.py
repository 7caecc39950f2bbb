"""Take out of a nest what never runs.

Scanning and splitting make copies of loop bodies, many of them for cases that cannot occur. Each
costs time in every later step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node
from nestor.ir.program import Program
from nestor.passes.polyhedral.model import nest_sites


def drop_idle(kernel: Program, nest: LoopNest) -> LoopNest:
    """``nest`` without computes that run for no size, and without loops left empty."""
    runs = (not site.points.domain().is_empty() for site in nest_sites(kernel, nest))
    return replace(nest, body=_pruned(nest.body, runs) or Block(body=()))


def _pruned(node: Node, runs: Iterator[bool]) -> Node | None:
    """The node without idle computes; ``runs`` tells of each in the order of the text."""
    match node:
        case Compute():
            return node if next(runs) else None
        case Block():
            found = [n for n in (_pruned(child, runs) for child in node.body) if n is not None]
            if len(found) <= 1:
                return found[0] if found else None
            return Block(body=tuple(found))
        case Alloc() | Loop():
            body = _pruned(node.body, runs)
            return None if body is None else replace(node, body=body)
        case Guard():
            body = _pruned(node.body, runs)
            orelse = None if node.orelse is None else _pruned(node.orelse, runs)
            if body is None and orelse is None:
                return None
            return replace(node, body=body or Block(body=()), orelse=orelse)
