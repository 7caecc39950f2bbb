"""Choose a contraction's tiles: rows × vectors in registers, and blocks of a long sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_SUMMED_TERMS = 512
"""Terms that one accumulator takes before it is added to the total: rounding errors of a sum grow
with its terms, and PyTorch's libraries block their sums too."""

MIN_SUMMED_TERMS = 64
"""Fewest terms for which adding a block to the total does not show in the time."""


@dataclass(frozen=True, slots=True)
class VectorUnit:
    """What the rules need to know of a CPU: vector width [bits] and number of vector registers."""

    bits: int = 512
    registers: int = 32

    def lanes(self, element_bytes: int) -> int:
        """Elements a vector of ``element_bytes`` [bytes] each."""
        return max(1, self.bits // (8 * element_bytes))


def choose_register_tile(rows: int, columns: int, lanes: int, registers: int) -> tuple[int, int]:
    """Rows and vectors of a register tile for a contraction of ``rows`` × ``columns``.

    One accumulator per (row, vector), one register per vector of the vector operand and one for the
    broadcast. Minimises the estimated cycles of all tiles, tails included: per step of the reduced
    loop an FMA per accumulator, and half a cycle per load.
    """
    best, best_cost = (1, 1), float("inf")
    column_vectors = -(-columns // lanes)
    for vectors in range(1, min(8, column_vectors) + 1):
        limit = (registers - 2 - vectors) // vectors
        for tile in range(1, max(1, min(limit, rows, 30)) + 1):
            if tile * vectors + vectors + 1 > registers:
                continue
            cost = _tile_cost(rows, column_vectors, tile, vectors)
            if cost < best_cost * 0.999:
                best, best_cost = (tile, vectors), cost
    return best


def choose_block(extents: Sequence[int | None]) -> tuple[int | None, int]:
    """Where to cut a sum over nested reduced loops (outermost first) into blocks.

    Returns: position of the loop whose iterations are summed apart (None: no blocks), and the size
        to tile it by first (0: as it is).
    """
    inner = 1
    for at in range(len(extents) - 1, -1, -1):
        extent = extents[at]
        if extent is None:
            return None, 0
        if inner * extent > MAX_SUMMED_TERMS:
            break
        inner *= extent
    else:
        return None, 0
    outer_terms = inner * extent
    if inner >= MIN_SUMMED_TERMS:
        return at, 0
    if outer_terms <= 2 * MAX_SUMMED_TERMS and at == 0:
        return None, 0
    most = MAX_SUMMED_TERMS // inner
    divisors = [d for d in range(most, most // 4, -1) if extent % d == 0]
    return at, divisors[0] if divisors else most


def _tile_cost(rows: int, column_vectors: int, tile: int, vectors: int) -> float:
    latency = 4.0
    cost = 0.0
    for r, row_count in ((tile, rows // tile), (rows % tile, 1)):
        for v, column_count in (
            (vectors, column_vectors // vectors),
            (column_vectors % vectors, 1),
        ):
            if r and v:
                step = max(r * v, latency, 0.5 * (r + v)) + 0.25 * (r + v) + 0.5
                cost += step * row_count * column_count
    return cost
