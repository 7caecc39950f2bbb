"""Invert index maps: which instance of a statement wrote the element that an access reads.

A write map takes a statement's indices to the indices of a tensor. Where it is a permutation, with
constant offsets or strides, a merge such as ``e = h*D + d`` or a split such as ``(e//D, e%D)``, the
instance is an affine function of the element's indices again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nestor.ir.affine import (
    Affine,
    Atom,
    FloorDiv,
    Interval,
    Mod,
    affine,
    affine_sum,
    floor_div,
    modulo,
    variable,
)
from nestor.ir.program import Domain, IndexRange

Equation = tuple[Affine, Affine]
"""``left = right``: left over the unknown indices, right over known ones."""


def invert_map(
    indices: Sequence[Affine], domain: Domain, values: Sequence[Affine]
) -> dict[str, Affine] | None:
    """Solve ``indices = values`` for the indices of ``domain``.

    Args:
        indices: the map, over the domain's names and symbols.
        values: one per map index; assumed to lie in the map's image.
    Returns: each name as an affine over the variables of ``values``; None where the map cannot be
        inverted by the rules of this module.
    """
    ranges = {r.name: r for r in domain.ranges}
    solved: dict[str, Affine] = {}
    for name, r in ranges.items():
        if (r.upper - r.lower) == affine(1) and not r.lower.variables() & set(ranges):
            solved[name] = r.lower
    pending = [(left, right) for left, right in zip(indices, values, strict=True)]
    while pending and len(solved) < len(ranges):
        rest: list[Equation] = []
        progress = False
        for left, right in pending:
            left = left.substitute(solved) if solved else left
            if _solve_linear(left, right, ranges, solved):
                progress = True
            else:
                rest.append((left, right))
        merged, rest = _merge_splits(rest)
        if not progress and not merged:
            return None
        pending = rest + merged
    return solved if len(solved) == len(ranges) else None


def _solve_linear(
    left: Affine, right: Affine, ranges: Mapping[str, IndexRange], solved: dict[str, Affine]
) -> bool:
    """Solve one equation without ``//`` and ``%`` on the left; False if it is not of that form."""
    unknown: list[tuple[str, int]] = []
    known = Affine((), left.const)
    for atom, c in left.terms:
        if isinstance(atom, str):
            if atom in ranges and atom not in solved:
                unknown.append((atom, c))
            else:
                known = known + variable(atom) * c
        elif atom.num.variables() & set(ranges):
            return False
        else:
            known = known + Affine(((atom, c),))
    if not unknown:
        return True
    value = right - known
    if len(unknown) == 1:
        name, c = unknown[0]
        solved[name] = floor_div(value if c > 0 else -value, abs(c))
        return True
    return _solve_mixed_radix(unknown, value, ranges, solved)


def _solve_mixed_radix(
    unknown: list[tuple[str, int]],
    value: Affine,
    ranges: Mapping[str, IndexRange],
    solved: dict[str, Affine],
) -> bool:
    """``c1*a + c2*b + … = value`` where each later part is smaller than the earlier step."""
    unknown = sorted(unknown, key=lambda t: -t[1])
    if unknown[-1][1] <= 0:
        return False
    inner_max = 0
    for position in range(len(unknown) - 1, -1, -1):
        name, c = unknown[position]
        r = ranges[name]
        extent = r.upper - r.lower
        if inner_max >= c or r.lower.variables() & set(ranges):
            return False
        if position > 0:
            if not extent.is_const:
                return False
            inner_max += c * (extent.const - 1)
    rest = affine_sum(
        [(value, 1)] + [(ranges[name].lower, -c) for name, c in unknown]
    )  # every unknown counted from zero
    for name, c in unknown:
        solved[name] = floor_div(rest, c) + ranges[name].lower
        rest = modulo(rest, c)
    return True


def _merge_splits(equations: list[Equation]) -> tuple[list[Equation], list[Equation]]:
    """``num//D = q`` and ``num%D = r`` → ``num = D*q + r``; the merged ones and the rest."""
    divisions: dict[Affine, tuple[int, Affine]] = {}
    for position, (left, right) in enumerate(equations):
        if _single_atom(left) is not None:
            divisions[left] = (position, right)
    merged: list[Equation] = []
    used: set[int] = set()
    for position, (left, right) in enumerate(equations):
        atom = _single_atom(left)
        if not isinstance(atom, Mod) or position in used:
            continue
        partner = divisions.get(floor_div(atom.num, atom.den))
        if partner is None or partner[0] in used or partner[0] == position:
            continue
        used |= {position, partner[0]}
        merged.append((atom.num, partner[1] * atom.den + right))
    return merged, [e for p, e in enumerate(equations) if p not in used]


def _single_atom(value: Affine) -> FloorDiv | Mod | None:
    if len(value.terms) != 1 or value.const:
        return None
    atom, c = value.terms[0]
    return atom if c == 1 and not isinstance(atom, str) else None


def extremes(value: Affine, domain: Domain) -> tuple[Affine, Affine] | None:
    """Least and greatest value over a box, as affines of the symbols; None with ``//`` or ``%``."""
    ranges = {r.name: r for r in domain.ranges}
    low, high = value, value
    for atom, c in value.terms:
        if not isinstance(atom, str):
            return None
        if atom not in ranges:
            continue
        r = ranges[atom]
        if (r.lower.variables() | r.upper.variables()) & set(ranges):
            return None
        first, last = (r.lower, r.upper - 1) if c > 0 else (r.upper - 1, r.lower)
        low = low.substitute({atom: first})
        high = high.substitute({atom: last})
    return low, high


def is_plain(value: Affine) -> bool:
    """Whether no ``//`` or ``%`` occurs."""
    return all(isinstance(atom, str) for atom, _ in value.terms)


def atoms_within(value: Affine) -> list[Atom]:
    """All atoms, those nested in ``//`` and ``%`` too, outermost first."""
    out: list[Atom] = []
    for atom, _ in value.terms:
        out.append(atom)
        if not isinstance(atom, str):
            out += atoms_within(atom.num)
    return out


def is_within(
    value: Affine, low: Affine, high: Affine, domain: Domain, ranges: Mapping[str, Interval]
) -> bool:
    """Whether ``low ≤ value ≤ high`` is provable for all of ``domain``.

    Args: low, high: over symbols. ranges: bounds of symbols and of the domain's indices.
    """
    return is_at_least(value - low, domain, ranges) and is_at_least(high - value, domain, ranges)


def is_at_least(
    value: Affine, domain: Domain, ranges: Mapping[str, Interval], least: int = 0
) -> bool:
    """Whether ``value ≥ least`` is provable for all of ``domain``, symbolic bounds included."""
    value = value.simplify(ranges)
    bound, _ = value.bounds(ranges)
    if bound is not None and bound >= least:
        return True
    pair = extremes(value, domain)
    if pair is None:
        return False
    bound, _ = pair[0].bounds(ranges)
    return bound is not None and bound >= least
