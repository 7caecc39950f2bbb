"""Split a statement where it reads, within one sweep of a loop, what it writes there.

``for j: p[i, j] = min(p[i, j], p[i, k] + p[k, j])`` writes ``p[i, k]`` at ``j = k`` and reads it at
every ``j``: the loop carries a dependence. Cut into ``j < k``, ``j = k`` and ``j > k`` its parts
carry none, and can run in vectors. Source: Griebl, Feautrier, Lengauer, Index Set Splitting, IJPP
2000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import loads
from nestor.ir.program import AnyStatement, Domain, Order, Program, Statement, shared_loops

IsEmpty = Callable[[Program, Domain], bool]


def split_at_own_reads(program: Program, is_empty: IsEmpty) -> Program:
    """The same instances in the same order, in statements that carry fewer dependences.

    Rewrite: ``for j { S }`` → ``for j { S, j < v }  for j { S, j = v }  for j { S, j > v }``
    Legal when: no other statement runs in loop ``j``, and ``v`` is the same in all of its
        iterations: it mentions neither ``j`` nor an index of the loops inside.
    Args: is_empty: whether a domain of the program has no instances.
    """
    depth = max((len(s.order) // 2 for s in program.statements), default=0)
    for level in range(1, depth):  # what the outermost loop carries stays
        program = _split_level(program, level, is_empty)
    return program


def _split_level(program: Program, level: int, is_empty: IsEmpty) -> Program:
    """Split statements that are alone in their loop at depth ``level`` (0 is the outermost)."""
    splits: dict[str, list[Statement]] = {}
    taken = {s.name for s in program.statements}
    for s in program.statements:
        if not isinstance(s, Statement) or not _is_alone(program, s, level):
            continue
        value = _cut(s, level)
        if value is None:
            continue
        parts = _parts(s, str(s.order[2 * level + 1]), value)
        if taken.isdisjoint(p.name for p in parts):
            parts = [p for p in parts if not is_empty(program, p.domain)]
            if len(parts) > 1:
                splits[s.name] = parts
                taken |= {p.name for p in parts}
    place = 2 * level  # the position of the loop that is split
    statements: list[AnyStatement] = []
    for s in program.statements:
        order = s.order
        for parts in splits.values():
            order = _renumbered(order, parts[0].order, place)
        for k, part in enumerate(splits.get(s.name, ())):
            position = order[place]
            assert isinstance(position, int)
            own: Order = (*order[:place], position + k, *order[place + 1 :])
            statements.append(replace(part, order=own))
        if s.name not in splits:
            statements.append(replace(s, order=order))
    return replace(program, statements=tuple(statements))


def _renumbered(order: Order, split: Order, place: int) -> Order:
    """``order`` with room for three loops where ``split`` has the one after ``place``."""
    if shared_loops(order, split) < place // 2:
        return order
    position = order[place]
    assert isinstance(position, int)
    return (*order[:place], 3 * position, *order[place + 1 :])


def _is_alone(program: Program, s: Statement, level: int) -> bool:
    """Whether ``s`` is pointwise, wholly ordered, and alone in its loop at ``level``."""
    if s.reduction is not None or s.scatter is not None or len(s.order) // 2 <= level:
        return False
    if {x for x in s.order if isinstance(x, str)} != set(s.domain.names):
        return False
    return not any(
        o is not s and shared_loops(o.order, s.order) > level for o in program.statements
    )


def _cut(s: Statement, level: int) -> Affine | None:
    """The value of the loop's index where the statement writes what all of the loop reads."""
    index = str(s.order[2 * level + 1])
    within = frozenset(x for x in s.order[2 * level + 1 :] if isinstance(x, str))
    for write in s.writes:
        for element in s.elements:
            for load in loads(element):
                if load.tensor == write.tensor:
                    value = _meeting(index, write.indices, load.indices)
                    if value is not None and value.variables().isdisjoint(within):
                        return value
    return None


def _meeting(index: str, written: tuple[object, ...], read: tuple[object, ...]) -> Affine | None:
    """Where ``written`` meets ``read``, which does not depend on ``index``."""
    value: Affine | None = None
    for w, r in zip(written, read):
        if not isinstance(w, Affine) or not isinstance(r, Affine) or index in r.variables():
            return None
        if w == r:
            continue
        factor = w.coefficient(index)
        rest = w - variable(index) * factor
        if value is not None or abs(factor) != 1 or index in rest.variables():
            return None
        value = (r - rest) * factor
    return value


def _parts(s: Statement, index: str, value: Affine) -> list[Statement]:
    """The instances before ``index = value``, at it, and after it."""
    at = variable(index)
    conditions = {
        "before": (value - at - 1,),
        "at": (at - value, value - at),
        "after": (at - value - 1,),
    }
    found = []
    for name, more in conditions.items():
        domain = replace(s.domain, constraints=(*s.domain.constraints, *more))
        found.append(replace(s, name=f"{s.name}_{name}", domain=domain))
    return found
