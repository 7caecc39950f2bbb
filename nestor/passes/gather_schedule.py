"""Loops of statements that gather rows of memory: some rows side by side.

Each row lies somewhere else, so it begins with a miss that no prefetcher saw coming, and one that
follows only the row at hand never gets going. With several rows in turns, a vector of each, their
misses come at once (an embedding of 768 floats: 4.7 → 2.6 ms, what a copy takes). Rows of a small
table lie in a cache, and one after the other is best.
"""

from __future__ import annotations

from nestor.ir.affine import Affine
from nestor.ir.expr import loads
from nestor.ir.program import Statement
from nestor.ir.schedule import Parallel, Reorder, Tile
from nestor.passes.analysis import expression_variables
from nestor.passes.rows_beside import is_near
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import bounding_indices, extent_of, is_constant, widest_bytes

ROWS = 8
"""Rows side by side: about as many misses as a core has under way."""

MAX_VECTORS = 32
"""Vectors that are written out side by side."""

MIN_VECTORS = 4
"""Rows of fewer vectors are over before the next one's misses could have been hidden."""


def gathered_rows(
    rules: Rules, s: Statement, vector: str, outer: list[str], seq: list[str]
) -> bool:
    """Schedule ``s`` with rows side by side; False if it gathers no rows along ``vector``.

    Args: outer: the other indices, outermost first. seq: sequential loops.
    """
    if s.reduction is not None or s.scatter or bounding_indices(s) or not is_constant(s, vector):
        return False
    lanes = rules.unit.lanes(widest_bytes(s))
    row = _gathering_index(s, vector, outer)
    if row is None or extent_of(s, vector) < MIN_VECTORS * lanes or extent_of(s, row) < 2 * ROWS:
        return False
    near = is_near(rules.kernel.tensors)
    default = 1 if near else ROWS
    rows = rules.choices.size(f"{s.name}.rows", (1, 2, 4, 8, 16), default, "rows side by side")
    sizes = [
        n for n in (1, 2, 4, 8) if n * rows <= MAX_VECTORS and n * lanes <= extent_of(s, vector)
    ]
    default = sizes[-1] if near else 1
    vectors = rules.choices.size(
        f"{s.name}.vectors", sizes, default, "vectors of a row in its turn"
    )
    name, along = f"{s.name}.{row}", f"{s.name}.{vector}"
    rules.out.append(Tile(loop=name, size=rows))
    rules.out.append(Tile(loop=along, size=vectors * lanes))
    loops = [f"{name}.o" if n == row else f"{s.name}.{n}" for n in outer]
    inner = [f"{along}.o", f"{name}.i", f"{along}.i"]
    if vectors > 1:
        rules.out.append(Tile(loop=inner.pop(), size=lanes))
        inner += [f"{along}.i.o", f"{along}.i.i"]
    rules.out.append(Reorder(statement=s.name, loops=(*seq, *loops, *inner)))
    rules.annotate_tile(inner[1:])
    rules.out += [Parallel(loop=loop) for loop in rules.parallel_loops(s.name, loops)]
    return True


def _gathering_index(s: Statement, vector: str, outer: list[str]) -> str | None:
    """The innermost of ``outer`` that decides which row is read; None if there are no rows."""
    found: set[str] = set()
    for load in (x for e in s.elements for x in loads(e)):
        if load.predicate:
            return None
        for index in load.indices:
            if not isinstance(index, Affine):
                found |= expression_variables(index)
    if vector in found:
        return None
    return next((n for n in reversed(outer) if n in found), None)
