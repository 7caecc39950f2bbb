"""Whether an access hits distinct cells: definite answers only, by arithmetic, without isl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nestor.ir.affine import Affine

MAX_ENUMERATED = 1 << 14
"""Largest box [cells] that is enumerated when arithmetic does not decide."""


def find_collision(
    indices: Sequence[Affine], extents: Mapping[str, int | None]
) -> tuple[dict[str, int], dict[str, int]] | None:
    """Two points of a zero-based box that an access maps to the same cell, or None.

    Args:
        indices: the access; variables outside ``extents`` are fixed.
        extents: extent of each free index; None where it is not known (taken as at least 2).
    Returns: None also where neither arithmetic nor enumeration decides.
    """
    names = [n for n, e in extents.items() if e is None or e > 1]
    if any(e == 0 for e in extents.values()) or not names:
        return None
    used = frozenset[str]().union(*(i.variables() for i in indices))
    for name in names:
        if name not in used:
            return dict.fromkeys(extents, 0), {**dict.fromkeys(extents, 0), name: 1}
    if _is_mixed_radix(indices, names, extents):
        return None
    return _enumerate(indices, extents)


def _is_mixed_radix(
    indices: Sequence[Affine], names: Sequence[str], extents: Mapping[str, int | None]
) -> bool:
    """Each index is in one dimension only, with steps larger than what the smaller ones span."""
    seen: set[str] = set()
    for index in indices:
        mine = index.variables() & frozenset(names)
        if mine & seen or any(not isinstance(a, str) for a, _ in index.terms):
            return False
        seen |= mine
        span: int | None = 0
        for name in sorted(mine, key=lambda n: abs(index.coefficient(n))):
            step, extent = abs(index.coefficient(name)), extents[name]
            if span is None or step <= span:
                return False
            span = None if extent is None else span + step * (extent - 1)
    return True


def _enumerate(
    indices: Sequence[Affine], extents: Mapping[str, int | None]
) -> tuple[dict[str, int], dict[str, int]] | None:
    """Try every point; free variables outside the box are set to 0 (they shift all points alike).

    A ``//`` or ``%`` of an outside variable could matter, so such accesses are left undecided.
    """
    sizes = [e for e in extents.values() if e is not None]
    if len(sizes) < len(extents) or np.prod(sizes, dtype=np.float64) > MAX_ENUMERATED:
        return None
    outside = frozenset[str]().union(*(i.variables() for i in indices)) - extents.keys()
    if outside and any(not isinstance(a, str) for i in indices for a, _ in i.terms):
        return None
    grid = np.indices(sizes).reshape(len(sizes), -1)
    env = {**dict.fromkeys(outside, 0), **dict(zip(extents, grid, strict=True))}
    cells = np.stack([np.broadcast_to(i.evaluate(env), grid.shape[1]) for i in indices])
    _, first, inverse = np.unique(cells, axis=1, return_index=True, return_inverse=True)
    if len(first) == grid.shape[1]:
        return None
    again = int(np.flatnonzero(first[inverse.reshape(-1)] != np.arange(grid.shape[1]))[0])
    points = (int(first[inverse.reshape(-1)[again]]), again)
    a, b = ({n: int(grid[k, p]) for k, n in enumerate(extents)} for p in points)
    return a, b
