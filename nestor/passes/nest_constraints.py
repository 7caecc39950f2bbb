"""Where the constraints of statements' domains are tested: loop bounds, guards around loops, or,
what is left, a guard around each instance.

A constraint that says how far one loop runs, given the loops around, becomes a bound of that loop:
``for k < N: if k//64*64 <= i: S`` → ``for k < min(N, i//64*64 + 64): S``. One that the loops around
decide alone is tested before the loops inside are entered. Both only where every statement inside
asks for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from nestor.ir.affine import Affine, FloorDiv, Interval, affine_sum, variable

if TYPE_CHECKING:
    from nestor.passes.nest_builder import Context, Item

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Bound:
    """A loop runs from ``value`` on, or, if ``is_upper``, stays below it."""

    is_upper: bool
    value: Affine


class Constraints:
    """The constraints of a kernel's statements, over loops.

    Args: ranges: inclusive bounds of loops and symbols. symbols: names of shape parameters.
    """

    def __init__(self, ranges: Mapping[str, Interval], symbols: frozenset[str]):
        self._ranges = ranges
        self._symbols = symbols

    def guards(self, items: Sequence[Item], ctx: Context) -> tuple[tuple[Affine, ...], Context]:
        """Conditions that the open loops decide and all of ``items`` ask for; the context inside
        a guard with them."""
        known = {*ctx.path, *self._symbols}

        def find(condition: Affine) -> Affine | None:
            return condition if condition.variables() <= known else None

        found, inner = self._shared(items, ctx, find)
        return tuple(c for c in found if not (c.is_const and c.const >= 0)), inner

    def bounds(
        self, loop: str, items: Sequence[Item], ctx: Context
    ) -> tuple[tuple[Bound, ...], Context]:
        """How far all of ``items`` let ``loop`` run; the context inside a loop so bounded."""
        known = {*ctx.path, *self._symbols, loop}

        def find(condition: Affine) -> Bound | None:
            used = condition.variables()
            return _solve(condition, loop) if loop in used and used <= known else None

        return self._shared(items, ctx, find)

    def left(self, item: Item, names: Sequence[str], ctx: Context) -> tuple[Affine, ...]:
        """Conditions that an instance over the domain indices ``names`` has still to test."""
        statement = item.user.statement
        return tuple(
            self._over_loops(item, c, ctx)
            for c in statement.domain.constraints
            if (statement.name, c) not in ctx.held and c.variables() <= {*names, *self._symbols}
        )

    def _shared(
        self, items: Sequence[Item], ctx: Context, find: Callable[[Affine], Found | None]
    ) -> tuple[tuple[Found, ...], Context]:
        """What ``find`` makes of the constraints of every item; those constraints then hold."""
        facts: list[dict[Found, set[tuple[str, Affine]]]] = []
        for item in items:
            of_item: dict[Found, set[tuple[str, Affine]]] = {}
            statement = item.user.statement
            for c in statement.domain.constraints:
                if (statement.name, c) in ctx.held or not _decides(item, c):
                    continue
                found = find(self._over_loops(item, c, ctx))
                if found is not None:
                    of_item.setdefault(found, set()).add((statement.name, c))
            facts.append(of_item)
        if not facts:
            return (), ctx
        shared = tuple(f for f in facts[0] if all(f in other for other in facts))
        held = {c for of_item in facts for f in shared for c in of_item[f]}
        return shared, replace(ctx, held=ctx.held | held) if held else ctx

    def _over_loops(self, item: Item, constraint: Affine, ctx: Context) -> Affine:
        over_loops = constraint.substitute(item.user.index_map).substitute(dict(ctx.values))
        tails = {f"{p}.i": (0, e.const - 1) for p, e in ctx.inner if e.is_const}
        return over_loops.simplify({**self._ranges, **tails})


def _decides(item: Item, constraint: Affine) -> bool:
    """Whether the whole item runs only where the constraint holds: a reduction also starts and
    ends where one on its reduced indices fails."""
    reduction = item.user.statement.reduction
    if reduction is None or item.phase == "update":
        return True
    return constraint.variables().isdisjoint(reduction.indices)


def _solve(condition: Affine, loop: str) -> Bound | None:
    """``condition ≥ 0`` as a bound of ``loop``, which occurs in it once: plainly, or within a
    floor division."""
    places = [(a, c) for a, c in condition.terms if loop in Affine(((a, 1),)).variables()]
    if len(places) != 1:
        return None
    atom, c = places[0]
    rest = affine_sum(((condition, 1), (Affine(((atom, 1),)), -c)))
    # c*atom + rest ≥ 0: the atom is at most ``most``, or at least ``least``.
    least_or_most = rest // -c if c < 0 else -(rest // c)
    if isinstance(atom, str):
        return Bound(True, least_or_most + 1) if c < 0 else Bound(False, least_or_most)
    if not isinstance(atom, FloorDiv):
        return None
    factor = atom.num.coefficient(loop)
    offset = atom.num - variable(loop) * factor
    if factor <= 0 or not offset.is_const:
        return None
    # (factor*loop + offset)//den ≤ most  ⇔  factor*loop + offset < den*(most + 1)
    limit = (least_or_most + 1 if c < 0 else least_or_most) * atom.den - offset
    return Bound(c < 0, (limit + (factor - 1)) // factor)
