"""What the loops and guards around a place say about affine values there, without isl.

Definite answers only: what ``is_nonnegative`` says holds, but it may miss a true fact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nestor.ir.affine import Affine, FloorDiv, Interval, Mod, affine, affine_sum
from nestor.ir.loopnest import Loop

MAX_STEPS = 400
"""Substitutions tried for one question."""


@dataclass(frozen=True, slots=True)
class LoopFacts:
    """Loops around, innermost last, the conditions (``≥ 0``) of the guards, and symbols' ranges."""

    symbols: Mapping[str, Interval]
    loops: tuple[Loop, ...] = ()
    conditions: tuple[Affine, ...] = field(default=())

    def inside(self, loop: Loop) -> LoopFacts:
        """The facts in the body of ``loop``."""
        return replace(self, loops=(*self.loops, loop))

    def where(self, conditions: Iterable[Affine]) -> LoopFacts:
        """The facts where further conditions hold."""
        return replace(self, conditions=(*self.conditions, *conditions))

    @property
    def indices(self) -> frozenset[str]:
        """Names of the loops around."""
        return frozenset(loop.index for loop in self.loops)

    def is_nonnegative(self, value: Affine) -> bool:
        """Whether ``value ≥ 0`` follows from one condition or none, and the loops' bounds."""
        budget = [MAX_STEPS]
        if self._follows(value, budget):
            return True
        return any(self._follows(value - c, budget) for c in self.conditions)

    def never_empty(self, loop: Loop) -> bool:
        """Whether ``loop``, standing here, surely runs."""
        return all(self.is_nonnegative(u - low - 1) for u in loop.upper for low in loop.lower)

    def _follows(self, value: Affine, budget: list[int]) -> bool:
        """Replace loop indices by their least favourable bounds, innermost first."""
        low = value.bounds(self.symbols)[0]
        if low is not None and low >= 0:
            return True
        value = _without_divisions(value, self.loops)
        low = value.bounds(self.symbols)[0]
        if low is not None:
            return low >= 0
        for loop in reversed(self.loops):
            c = value.coefficient(loop.index)
            if not c:
                continue
            bounds = loop.lower if c > 0 else tuple(u - 1 for u in loop.upper)
            rest = value - affine(loop.index) * c
            for bound in bounds:
                budget[0] -= 1
                if budget[0] < 0:
                    return False
                if self._follows(rest + bound * c, budget):
                    return True
            return False
        return False


def _without_divisions(value: Affine, loops: tuple[Loop, ...]) -> Affine:
    """A lower bound of ``value`` in which divisions by a factor's divisor are plain affines.

    ``num - den + 1 ≤ den * (num // den) ≤ num``.
    """
    names = {loop.index for loop in loops}
    parts: list[tuple[Affine, int]] = []
    for atom, c in value.terms:
        part, factor = Affine(((atom, 1),)), c
        if isinstance(atom, FloorDiv) and c % atom.den == 0:
            part = atom.num if c < 0 else atom.num - (atom.den - 1)
            factor = c // atom.den
        elif isinstance(atom, Mod) and atom.num.variables() & names:
            part = affine(0 if c > 0 else atom.den - 1)
        parts.append((part, factor))
    return affine_sum(parts, value.const)
