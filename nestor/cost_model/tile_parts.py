"""Whole tiles, and what is left over at the end of a tiled range.

Where rows or vectors of a register tile do not divide a range, its last tile is a smaller one, with
code of its own: fewer sums side by side, which wait for each other, and fewer uses of what was
loaded. A mean over all tiles hides that, so a statement is taken apart into whole and smaller ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod

from nestor.cost_model.loop_structure import Level
from nestor.cost_model.statement_profile import StatementProfile

_MOST_SPLITS = 3
"""Dimensions of a tile that are taken apart: each doubles the parts."""


def tile_parts(profile: StatementProfile) -> Iterator[StatementProfile]:
    """The statement's work as profiles whose unrolled loops all run to their ends."""
    levels = profile.levels
    splits = [
        (outer, inner, parts)
        for inner in range(profile.body, len(levels))
        if (outer := _outer_half(levels, inner)) is not None
        and len(parts := _parts(levels[outer].count, levels[inner].trips)) > 1
    ][:_MOST_SPLITS]
    if not splits:
        yield profile
        return
    for combination in product(*(parts for _, _, parts in splits)):
        changed = list(levels)
        for (outer, inner, _), (times, size) in zip(splits, combination):
            changed[outer] = replace(changed[outer], count=times)
            changed[inner] = replace(changed[inner], count=float(size), trips=size)
        ops = float(profile.vectors)
        for level in changed[profile.body :]:
            if level.kind == "unroll":
                ops *= level.count
        yield replace(
            profile,
            loops=replace(profile.loops, levels=tuple(changed)),
            body_ops=ops,
            bodies=prod(x.count for x in changed[: profile.body]),
        )


def _outer_half(levels: tuple[Level, ...], inner: int) -> int | None:
    """Position of the loop over the tiles that an unrolled loop is the inside of."""
    level = levels[inner]
    if level.kind != "unroll" or not level.name.endswith(".i"):
        return None
    name = f"{level.name[:-2]}.o"
    return next((p for p, x in enumerate(levels[:inner]) if x.name == name), None)


def _parts(tiles: float, size: int) -> list[tuple[float, int]]:
    """How many tiles of which size: whole ones, and what is left over."""
    whole = int(tiles + 1e-6)
    left = round((tiles - whole) * size)
    parts = [(float(whole), size)] if whole else []
    return [*parts, (1.0, left)] if left else parts
