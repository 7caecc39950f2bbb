"""Loops of products of matrices and few vectors that lie along the sum: dot products along memory.

A contraction whose large operand has unit stride along the summed index, and too few rows to pay
for a transposed copy, is read as it lies: one query against many keys.
"""

from __future__ import annotations

from nestor.ir.program import Statement
from nestor.ir.schedule import (
    Accumulate,
    Parallel,
    Reorder,
    SplitReduction,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.passes.contraction import Contraction
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import constant_extent, extent_of, free_indices, is_constant
from nestor.passes.strides import access_strides

MAX_ROWS = 8
"""Most rows that share a row of the large operand: each keeps its own partial sums."""

MAX_CHAINS = 4
"""Most vectors of partial sums of one dot product: an addition takes four cycles."""


def dot_index(rules: Rules, s: Statement, c: Contraction) -> str | None:
    """The summed index along which the large operand lies, if the sum is best taken along it."""
    if c.vector_operand is None or c.is_packable or len(c.reduced) != 1 or s.scatter:
        return None
    if s.reduction is not None and s.reduction.into:
        return None  # sums that start from what memory holds have no partial ones
    (summed,) = c.reduced
    tensor = rules.tensors[c.vector_operand.tensor]
    strides = access_strides(tensor, c.vector_operand.indices, s.domain.names)
    rows = 1
    for row in c.rows:
        rows *= constant_extent(s, row) or MAX_ROWS + 1
    extent = constant_extent(s, summed)
    if strides[summed] != 1 or strides[c.vector] == 1 or rows > MAX_ROWS:
        return None
    return summed if extent is not None and extent >= _lanes(rules, s) else None


def dot_loops(rules: Rules, s: Statement, c: Contraction, summed: str) -> None:
    """Threads over the large operand's rows, the few rows inside, vectors along the sum."""
    lanes = _lanes(rules, s)
    vectors = extent_of(s, summed) // lanes
    chains = max(n for n in (1, 2, MAX_CHAINS) if n <= max(1, vectors // 2))
    chains = min(chains, max(1, rules.unit.registers // (2 * _rows(s, c))))
    most = max(chains, min(vectors, rules.unit.registers // (_rows(s, c) + 1)))
    sizes = [n for n in (1, 2, 4, 8) if n <= most]
    chains = rules.choices.size(f"{s.name}.chains", sizes, chains, "vectors of partial sums")
    loop = f"{s.name}.{summed}"
    rules.out.append(SplitReduction(loop=loop, lanes=lanes * chains))
    outer = [f"{s.name}.{n}" for n in free_indices(s) if n not in c.rows]
    inner = [f"{s.name}.{n}" for n in c.rows]
    beside = _choose_beside(rules, s, c, chains)
    if beside > 1:
        large = f"{s.name}.{c.vector}"
        rules.out.append(Tile(loop=large, size=beside))
        outer[outer.index(large)] = f"{large}.o"
        inner.append(f"{large}.i")
    order = (*outer, f"{loop}.o", *inner, f"{loop}.i")
    rules.out.append(Reorder(statement=s.name, loops=order))
    for name in rules.parallel_loops(s.name, outer):
        rules.out.append(Parallel(loop=name))
    for name in inner:
        rules.out.append(Unroll(loop=name))
    rules.out.append(Vectorize(loop=f"{loop}.i"))
    rules.out.append(Accumulate(statement=s.name, scope="register"))


def _choose_beside(rules: Rules, s: Statement, c: Contraction, chains: int) -> int:
    """Rows of the large operand side by side: what the others hold is read once for all."""
    if not is_constant(s, c.vector):
        return 1
    most = rules.unit.registers // 2 // max(1, chains * _rows(s, c))
    sizes = [n for n in (1, 2, 4, 8) if n == 1 or n <= min(most, extent_of(s, c.vector))]
    return rules.choices.size(f"{s.name}.beside", sizes, 1, "rows of the large operand at once")


def _rows(s: Statement, c: Contraction) -> int:
    rows = 1
    for row in c.rows:
        rows *= extent_of(s, row)
    return rows


def _lanes(rules: Rules, s: Statement) -> int:
    return rules.unit.lanes(max(s.elements[0].dtype.bytes, 4))
