"""The loops of a Program in its own order, statements sharing those that their orders share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Union

from nestor.codegen.c.names import fresh_name
from nestor.errors import Unsupported
from nestor.ir.affine import Affine, affine
from nestor.ir.program import Extern, Program, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The greatest (``max``) or the least (``min``) of ``terms``, at least one."""

    terms: tuple[Affine, ...]
    choose: Literal["max", "min"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CLoop:
    """``lower ≤ variable < upper``, ascending."""

    variable: str
    lower: Bound
    upper: Bound
    body: tuple[CNode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CIf:
    """``body`` where every condition is ≥ 0."""

    conditions: tuple[Affine, ...]
    body: tuple[CNode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CLeaf:
    """One statement; ``rename``: its index → the variable of the loop."""

    statement: Statement
    rename: Mapping[str, str]


CNode = Union[CLoop, CIf, CLeaf]


@dataclass(frozen=True, slots=True)
class _Item:
    """A statement on its way down: variables of the loops around it, constraints not yet tested."""

    statement: Statement
    rename: dict[str, str]
    pending: tuple[Affine, ...]

    def open(self, index: str, variable: str, more: Iterable[Affine] = ()) -> _Item:
        """Inside the loop of ``index``; ``more``: further constraints, in loop variables."""
        step = {index: variable}
        pending = tuple(c.substitute(step) for c in self.pending)
        return replace(self, rename={**self.rename, index: variable}, pending=(*pending, *more))

    def bounds(self, index: str) -> tuple[Affine, Affine]:
        """Lower and upper bound of ``index`` over loop variables and symbols."""
        r = self.statement.domain.range_of(index)
        unknown = (r.lower.variables() | r.upper.variables()) & {
            n for n in self.statement.domain.names if n not in self.rename
        }
        if unknown:
            raise Unsupported(
                f"{self.statement.name}: the bounds of {index.split('@')[0]} depend on"
                f" {min(unknown).split('@')[0]}, whose loop is further inside"
            )
        return r.lower.substitute(self.rename), r.upper.substitute(self.rename)

    def decided(self) -> list[Affine]:
        """Constraints whose indices all have a loop already."""
        waiting = set(self.statement.domain.names) - self.rename.keys()
        return [c for c in self.pending if not c.variables() & waiting]

    def without(self, constraints: Sequence[Affine]) -> _Item:
        """Less ``constraints``, which are tested outside."""
        return replace(self, pending=tuple(c for c in self.pending if c not in constraints))


class NestBuilder:
    """Builds the tree. Args: taken: names that no loop variable may have."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = frozenset(taken)

    def build(self, program: Program) -> tuple[CNode, ...]:
        """The loops and statements of ``program``. Raises: ``Unsupported``."""
        items = []
        for s in program.statements:
            if isinstance(s, Extern):
                raise Unsupported(f"{s.name}: {s.operator} has no C")
            if s.reduction is not None:
                raise Unsupported(
                    f"{s.name}: a reduction has no order of its own; print the Program from before"
                    " accumulations were recognised"
                )
            # Index names may equal those of loops around, which are other variables.
            unique = {n: f"{n}@{s.name}" for n in s.domain.names}
            items.append(_Item(_rename_indices(s, unique), {}, _constraints(s, unique)))
        return self._sequence(items, 0, ())

    def _sequence(
        self, items: Sequence[_Item], depth: int, around: tuple[str, ...]
    ) -> tuple[CNode, ...]:
        """Statements and loops at ``depth`` of their orders, by position."""
        groups: dict[int, list[_Item]] = {}
        for item in items:
            position = item.statement.order[depth]
            if not isinstance(position, int):
                raise Unsupported(f"{item.statement.name}: order entry {depth} is no position")
            groups.setdefault(position, []).append(item)
        out: list[CNode] = []
        for position in sorted(groups):
            members = groups[position]
            guard = _common(item.decided() for item in members)
            members = [item.without(guard) for item in members]
            body: list[CNode] = []
            for item in [m for m in members if len(m.statement.order) == depth + 1]:
                body += self._leaf(item, around)
            looped = [m for m in members if len(m.statement.order) > depth + 1]
            if looped:
                body.append(self._loop(looped, depth + 1, around))
            _append(out, guard, body)
        return tuple(out)

    def _loop(self, members: Sequence[_Item], depth: int, around: tuple[str, ...]) -> CLoop:
        """The loop that ``members`` share."""
        indices: list[str] = []
        for item in members:
            index = item.statement.order[depth]
            if not isinstance(index, str):
                raise Unsupported(f"{item.statement.name}: order entry {depth} is no index")
            indices.append(index)
        variable = fresh_name(indices[0].split("@")[0], self._taken | set(around))
        opened, lower, upper = _bounds(members, indices, variable)
        body = self._sequence(opened, depth + 1, (*around, variable))
        return CLoop(variable=variable, lower=lower, upper=upper, body=body)

    def _leaf(self, item: _Item, around: tuple[str, ...]) -> list[CNode]:
        """A statement inside the loops of its indices that no order names."""
        free = [n for n in item.statement.domain.names if n not in item.rename]
        if not free:
            rename = {n.split("@")[0]: v for n, v in item.rename.items()}
            leaf = CLeaf(statement=item.statement, rename=rename)
            return [CIf(conditions=item.pending, body=(leaf,))] if item.pending else [leaf]
        variable = fresh_name(free[0].split("@")[0], self._taken | set(around))
        opened, lower, upper = _bounds([item], free[:1], variable)
        guard = opened[0].decided()
        inner = self._leaf(opened[0].without(guard), (*around, variable))
        body: list[CNode] = []
        _append(body, guard, inner)
        return [CLoop(variable=variable, lower=lower, upper=upper, body=tuple(body))]


def _constraints(statement: Statement, unique: Mapping[str, str]) -> tuple[Affine, ...]:
    return tuple(c.substitute(unique) for c in statement.domain.constraints)


def _rename_indices(statement: Statement, unique: dict[str, str]) -> Statement:
    """``statement`` with its domain and order over new names (its expressions keep the old)."""
    ranges = tuple(
        replace(
            r,
            name=unique[r.name],
            lower=r.lower.substitute(unique),
            upper=r.upper.substitute(unique),
        )
        for r in statement.domain.ranges
    )
    order = tuple(unique[e] if isinstance(e, str) else e for e in statement.order)
    return replace(statement, domain=replace(statement.domain, ranges=ranges), order=order)


def _bounds(
    members: Sequence[_Item], indices: Sequence[str], variable: str
) -> tuple[list[_Item], Bound, Bound]:
    """Members inside the loop, and its bounds: their own if equal, otherwise those of the hull.

    Constraints that all members share and that bound the variable join the bounds.
    """
    own = [item.bounds(index) for item, index in zip(members, indices, strict=True)]
    if all(b == own[0] for b in own):
        opened = [m.open(i, variable) for m, i in zip(members, indices, strict=True)]
        lowers, uppers = [own[0][0]], [own[0][1]]
        folded = []
        for c in _common(item.decided() for item in opened):
            factor = c.coefficient(variable)
            rest = c - affine(variable) * factor
            if abs(factor) != 1 or variable in rest.variables():
                continue
            folded.append(c)
            if factor == 1:
                lowers.append(-rest)
            else:
                uppers.append(rest + 1)
        opened = [item.without(folded) for item in opened]
        lower = Bound(terms=_least(lowers, -1), choose="max")
        return opened, lower, Bound(terms=_least(uppers, 1), choose="min")
    lower = Bound(terms=_least([low for low, _ in own], 1), choose="min")
    upper = Bound(terms=_least([high for _, high in own], -1), choose="max")
    opened = []
    for item, index, (low, high) in zip(members, indices, own, strict=True):
        guards = []
        if lower.terms != (low,):
            guards.append(affine(variable) - low)
        if upper.terms != (high,):
            guards.append(high - 1 - affine(variable))
        opened.append(item.open(index, variable, guards))
    return opened, lower, upper


def _least(values: Sequence[Affine], sign: int) -> tuple[Affine, ...]:
    """``values`` less those that another is never above (``sign`` -1: never below)."""
    out: list[Affine] = []
    for v in values:
        if any((d := (v - o) * sign).is_const and d.const >= 0 for o in out):
            continue
        out = [o for o in out if not ((d := (o - v) * sign).is_const and d.const >= 0)]
        out.append(v)
    return tuple(out)


def _common(lists: Iterable[Sequence[Affine]]) -> list[Affine]:
    """What every list holds, in the order of the first, each once."""
    first, *others = lists
    return list(dict.fromkeys(c for c in first if all(c in other for other in others)))


def _append(out: list[CNode], guard: Sequence[Affine], body: Sequence[CNode]) -> None:
    """Add ``body`` under ``guard``, joining the ``if`` before it if that is the same."""
    if not guard:
        out.extend(body)
        return
    last = out[-1] if out else None
    if isinstance(last, CIf) and set(last.conditions) == set(guard):
        out[-1] = replace(last, body=(*last.body, *body))
    else:
        out.append(CIf(conditions=tuple(guard), body=tuple(body)))
