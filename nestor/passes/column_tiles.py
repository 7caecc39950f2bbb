"""Loops of reductions over rows: a tile of columns is summed at once, read as whole runs of memory.

With one vector of columns at a time, every row costs a cache line of another page: neither the
hardware's prefetching nor its translation of addresses keeps up.
"""

from __future__ import annotations

from math import prod

from nestor.ir.expr import loads
from nestor.ir.program import Statement
from nestor.ir.schedule import (
    Accumulate,
    Parallel,
    Reorder,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.passes.rows_beside import is_near
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import (
    bounding_indices,
    constant_extent,
    extent_of,
    in_reduction_order,
    is_constant,
    loop_parts,
    reduced_indices,
    widest_bytes,
)
from nestor.passes.strides import access_strides

TILE_BYTES = 8 << 10
"""Accumulators of a tile of columns: a quarter of the smallest first-level cache, so that
the rows that stream through it do not drive them out (measured: 4 to 16 KB are as good)."""

MIN_TILES = 16
"""Tiles of columns are made so small that there are about as many, for the threads to share."""

LEAST_VECTORS = 2
"""Tiles are no narrower: pairs of lines come together from memory."""

VECTORS, TERMS_BESIDE = 4, 4
"""Vectors of a row that are added one after the other without a branch, and rows that are added to
each while it is in registers, where they come from a cache (ten sums and maxima: 0.84 of the time
of two rows)."""

FAR_SUM = (2, 4)
"""The same for sums that come from memory (0.83 of the time of four vectors and one row). Maxima,
which need no sums of blocks, are best with one row."""

MIN_TERMS = 16
"""Shorter sums are as well off with one vector of columns at a time, in registers."""


def column_loops(rules: Rules, s: Statement, vector: str, outer: list[str], seq: list[str]) -> bool:
    """Schedule ``s`` with tiles of columns along ``vector``; False if that does not suit it.

    It suits long reductions and scans whose elements are contiguous along ``vector``.

    Args: outer: the other free indices, the one nearest in memory last. seq: sequential loops.
    """
    reduced = reduced_indices(s)
    kind = s.reduction
    if kind is None or kind.into or s.scatter or bounding_indices(s):
        return False
    if prod(extent_of(s, n) for n in reduced) < MIN_TERMS or not is_constant(s, vector):
        return False
    strides = [
        access_strides(rules.tensors[x.tensor], x.indices, [vector, *outer])
        for e in s.elements
        for x in loads(e)
    ]
    if not strides or any(t[vector] not in (0, 1) for t in strides):
        return False
    lanes = rules.unit.lanes(widest_bytes(s))
    width = extent_of(s, vector)
    columns = prod([width, *(extent_of(s, n) for n in outer)])
    room = TILE_BYTES // sum(d.bytes for d in kind.monoid.dtypes)
    room = max(LEAST_VECTORS * lanes, min(room, columns // MIN_TILES) // lanes * lanes)
    sizes = [n * lanes for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n * lanes <= 2 * columns]
    meaning = "columns that are reduced at once"
    room = rules.choices.size(f"{s.name}.columns", sizes, room, meaning)
    inside: list[str] = []
    loops = [f"{s.name}.{n}" for n in outer]
    column = f"{s.name}.{vector}"
    if width > room:
        rules.out.append(Tile(loop=column, size=room))
        loops.append(f"{column}.o")
        column = f"{column}.i"
    elif outer and room >= 2 * width and all(t[outer[-1]] in (0, width) for t in strides):
        # The next index continues the same run of memory.
        inside = [loops.pop()]
        if extent_of(s, outer[-1]) > room // width or not is_constant(s, outer[-1]):
            rules.out.append(Tile(loop=inside[0], size=room // width))
            loops.append(f"{inside[0]}.o")
            inside = [f"{inside[0]}.i"]
    meaning = "vectors of a row without a branch"
    is_sum = kind.monoid.name == "sum" and not kind.scan
    is_close = is_near(rules.kernel.tensors)
    default, most = (VECTORS, TERMS_BESIDE if is_close else 1)
    if is_sum and not is_close:
        default, most = FAR_SUM
    vectors = rules.choices.size(f"{s.name}.vectors", (1, 2, 4, 8), default, meaning)
    step = vectors * lanes
    if min(width, room) > step:
        rules.out.append(Tile(loop=column, size=step))
        inside.append(f"{column}.o")
        column = f"{column}.i"
    sums = _summed(rules, s)
    beside = _terms_beside(rules, s, sums, vectors, most)
    order = (*seq, *loops, *sums, *inside, *beside, column)
    rules.out.append(Reorder(statement=s.name, loops=order))
    rules.out += [Unroll(loop=loop) for loop in beside]
    rules.out.append(Vectorize(loop=column))
    rules.out.append(Accumulate(statement=s.name, scope="local"))
    for loop in rules.parallel_loops(s.name, loops):
        rules.out.append(Parallel(loop=loop))
    return True


def _terms_beside(
    rules: Rules, s: Statement, sums: list[str], vectors: int, most: int
) -> list[str]:
    """The loop over terms that are added to a vector of columns while it is in registers, ``most``
    by default; changes ``sums``, the reduced loops."""
    assert s.reduction is not None
    _, index, *halves = loop_parts(sums[-1], s.name)
    extent = constant_extent(s, index)
    for step in rules.out:
        if halves and isinstance(step, Tile) and f"{step.loop}.i" == sums[-1]:
            extent = step.size if extent is not None and extent % step.size == 0 else None
    if extent is None or s.reduction.scan:
        return []
    sizes = [n for n in (1, 2, 4, 8) if extent % n == 0 and n < extent and n * vectors <= 32]
    meaning = "rows that are added to a vector of columns at once"
    default = max((n for n in sizes if n <= most), default=1)
    size = rules.choices.size(f"{s.name}.beside", sizes, default, meaning)
    if size == 1:
        return []
    loop = sums.pop()
    rules.out.append(Tile(loop=loop, size=size))
    sums.append(f"{loop}.o")
    return [f"{loop}.i"]


def _summed(rules: Rules, s: Statement) -> list[str]:
    """The reduced loops; long floating-point sums are cut into blocks that are summed apart."""
    assert s.reduction is not None
    reduced = reduced_indices(s)
    names = [n for n in in_reduction_order(s, list(s.domain.names)) if n in reduced]
    if (
        s.reduction.scan
        or s.reduction.monoid.name != "sum"
        or not s.reduction.monoid.dtypes[0].is_float
    ):
        return [f"{s.name}.{n}" for n in names]
    return rules.block_sums(s, names)
