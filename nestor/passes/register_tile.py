"""Choose the register tile of a contraction: rows × vectors that stay in registers."""

from __future__ import annotations

from dataclasses import dataclass


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
