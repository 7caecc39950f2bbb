"""Give each accumulation loops of its own, with the summed ones innermost.

``for k: for j: C[i, j] += A[i, k] * A[j, k]`` sums over k, but k is not innermost, and in
``for j: { y[i] += A[i, j] * x[j]; z[i] += B[i, j] * x[j] }`` two sums share a loop: neither is seen
as one sum for each element. Both may be rewritten without changing a bit of the result: the terms
of each element keep their order.
"""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.affine import Affine
from nestor.ir.expr import Load, loads
from nestor.ir.program import AnyStatement, Order, Program, Statement, Write, shared_loops


def separate_sums(program: Program) -> Program:
    """Move accumulations ``x[f] = x[f] op e`` to loops of their own, summed loops innermost.

    Rewrite: ``for i { for k { for j { S; T } } }`` → ``for i { for k { for j { T } }
        for j { for k { S } } }`` where S's target moves with i and j.
    Legal when: in the loops from the outermost summed one inward no other statement writes what S
        touches, nor touches what S writes; S reads its target only to add to it; and, where loops
        change places, different iterations of the target's loops have different targets.
    """
    while (changed := _separate_one(program)) is not None:
        program = changed
    return program


def _separate_one(program: Program) -> Program | None:
    for s in program.statements:
        if isinstance(s, Statement):
            order = _better_order(program, s)
            if order is not None:
                return _with_order(program, s, order)
    return None


def _better_order(program: Program, s: Statement) -> Order | None:
    """The order that S should have, its position given as one after what it leaves."""
    if s.reduction is not None or s.scatter is not None or len(s.writes) != 1:
        return None
    write = s.writes[0]
    if not all(isinstance(i, Affine) for i in write.indices) or not _adds_to_target(s):
        return None
    used = frozenset[str]().union(*(i.variables() for i in write.indices if isinstance(i, Affine)))
    loops = [n for n in s.order if isinstance(n, str)]
    if set(loops) != set(s.domain.names):
        return None
    first = next((k for k, n in enumerate(loops) if n not in used), None)
    if first is None:
        return None
    inner = loops[first:]
    wanted = [n for n in inner if n in used] + [n for n in inner if n not in used]
    depth = 2 * first + 1
    sharing = _sharing(program, s, first)
    if (wanted == inner and not sharing) or not _bounds_allow(s, loops[:first], wanted):
        return None
    if wanted != inner and not _is_injective(write, inner):
        return None
    if not _is_alone(program, s, sharing):
        return None
    position = s.order[depth - 1]
    assert isinstance(position, int)
    tail: tuple[int | str, ...] = tuple(x for n in wanted for x in (n, 0))
    return (*s.order[: depth - 1], position + (1 if sharing else 0), *tail)


def _sharing(program: Program, s: Statement, level: int) -> list[Statement]:
    """Other statements in the loop of ``s`` at depth ``level`` (0 is the outermost)."""
    return [
        o
        for o in program.statements
        if isinstance(o, Statement) and o is not s and shared_loops(o.order, s.order) > level
    ]


def _is_injective(write: Write, inner: list[str]) -> bool:
    """Whether each of the loops ``inner`` that the target moves with is told by an index alone."""
    told: set[str] = set()
    used: set[str] = set()
    for index in write.indices:
        assert isinstance(index, Affine)
        mine = index.variables() & set(inner)
        used |= mine
        told |= {n for n in mine if len(mine) == 1 and index.coefficient(n)}
        if any(not isinstance(atom, str) for atom, _ in index.terms):
            told -= mine
    return told == used


def _adds_to_target(s: Statement) -> bool:
    """It reads its tensor once, at the element that it writes."""
    write = s.writes[0]
    own = [x for x in loads(s.elements[0]) if x.tensor == write.tensor]
    return len(own) == 1 and own[0] == Load(
        tensor=write.tensor, indices=write.indices, dtype=s.elements[0].dtype
    )


def _bounds_allow(s: Statement, outer: list[str], order: list[str]) -> bool:
    """Each loop's bounds mention only loops around it."""
    known = set(outer)
    for name in order:
        r = s.domain.range_of(name)
        mentioned = (r.lower.variables() | r.upper.variables()) & set(s.domain.names)
        if not mentioned <= known:
            return False
        known.add(name)
    return True


def _is_alone(program: Program, s: Statement, sharing: list[Statement]) -> bool:
    """No other statement of the shared loops has anything to do with what S touches."""
    roots = {t.name: t.alias_of or t.name for t in program.tensors}
    mine = roots[s.writes[0].tensor]
    read = {roots[x.tensor] for x in loads(s.elements[0])}
    for other in sharing:
        writes = {roots[w.tensor] for w in other.writes}
        touched = writes | {
            roots[x.tensor]
            for e in (*other.elements, *(other.reduction.final if other.reduction else ()))
            for x in loads(e)
        }
        touched |= {
            roots[x.tensor]
            for w in other.writes
            for i in w.indices
            if not isinstance(i, Affine)
            for x in loads(i)
        }
        if mine in touched or writes & read:
            return False
    return True


def _with_order(program: Program, s: Statement, order: Order) -> Program:
    """``s`` at ``order``; what came at that position or later moves one further."""
    moves_up = len(order) and order[: len(s.order)] != s.order
    at = next((k for k, (a, b) in enumerate(zip(order, s.order)) if a != b), None)
    is_inserted = moves_up and at is not None and isinstance(order[at], int)
    statements: list[AnyStatement] = []
    for o in program.statements:
        if o is s:
            statements.append(replace(s, order=order))
            continue
        if is_inserted and at is not None and shared_loops(o.order, order) >= at // 2:
            position, least = o.order[at], order[at]
            if isinstance(position, int) and isinstance(least, int) and position >= least:
                moved = (*o.order[:at], position + 1, *o.order[at + 1 :])
                o = replace(o, order=moved)
        statements.append(o)
    return replace(program, statements=tuple(statements))
