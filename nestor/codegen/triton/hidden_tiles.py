"""Tiles of an attention that its mask hides as a whole: nothing of them has to be read.

Which keys a query sees may be data (documents in one row, the keys that were there, a mask that is
given), so what a mask leaves out is known tile by tile, when the kernel runs. A score that is −∞
adds nothing to a softmax; masked terms count as if what they multiply were finite.

Source: Dong et al., FlexAttention, MLSys 2025, which keeps lists of blocks beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nestor.codegen.triton.blocks import Context, Value
from nestor.codegen.triton.expressions import Expressions
from nestor.codegen.triton.online import runs_along
from nestor.ir.affine import Affine
from nestor.ir.expr import Load, loads
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, Node
from nestor.ir.scores import visible


@dataclass(frozen=True, slots=True)
class _Place:
    """A compute in a loop's body: the tile's loops around it, and what is tested there."""

    compute: Compute
    axes: tuple[str, ...]
    conditions: tuple[Affine, ...]


def emit_test(ctx: Context, body: Node) -> bool:
    """Write ``if`` for what follows in a loop over keys, where the softmax that it updates has
    scores that a mask may hide; whether there is one."""
    places = list(_places(body, (), ()))
    for place in places:
        if place.compute.phase == "update" and runs_along(place.compute):
            score = place.compute.values[0]
            if isinstance(score, Load) and score.tensor not in ctx.pointers:
                return _emit_for(ctx, score.tensor, places)
    return False


def _emit_for(ctx: Context, scores: str, places: list[_Place]) -> bool:
    for place in places:
        stored = [s.target for s in place.compute.stores]
        if stored != [scores] or place.compute.phase in ("init", "update"):
            continue
        seen = visible(place.compute.values[0])
        if seen is None or any(x.tensor not in ctx.pointers for x in loads(seen)):
            return False
        before, conditions = ctx.axes, ctx.conditions
        ctx.axes, ctx.conditions = place.axes, (*conditions, *place.conditions)
        value = Expressions(ctx).value(seen)
        mask = ctx.condition(ctx.conditions)
        if mask.text:
            value = Value(f"({value.text}) & ({mask.text})", value.dims | mask.dims)
        ctx.axes, ctx.conditions = before, conditions
        ctx.line(f"if lib.any_of({value.text}):")
        return True
    return False


def _places(node: Node, axes: tuple[str, ...], conditions: tuple[Affine, ...]) -> Iterator[_Place]:
    match node:
        case Compute():
            yield _Place(node, axes, conditions)
        case Block():
            for child in node.body:
                yield from _places(child, axes, conditions)
        case Alloc():
            yield from _places(node.body, axes, conditions)
        case Guard():
            if node.orelse is None:
                yield from _places(node.body, axes, (*conditions, *node.conditions))
        case Loop(kind="vector" | "unroll"):
            yield from _places(node.body, (*axes, node.index), conditions)
        case Loop():
            yield from _places(node.body, axes, conditions)
