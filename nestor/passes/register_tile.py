"""Choose a contraction's tiles: rows × vectors in registers, and blocks of a long sum."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_SUMMED_TERMS = 512
"""Terms that one accumulator takes before it is added to the total: rounding errors of a sum grow
with its terms, and PyTorch's libraries block their sums too."""

MIN_SUMMED_TERMS = 64
"""Fewest terms for which adding a block to the total does not show in the time."""


CACHE_SETS = 64
"""Sets of a first-level cache: one every line of a page, whatever its size."""

FEW_REGISTERS = 16
"""With so few registers an accumulator that does not fit costs too much."""


@dataclass(frozen=True, slots=True)
class VectorUnit:
    """What the rules need to know of a CPU: vector width [bits] and number of vector registers."""

    bits: int = 512
    registers: int = 32

    def lanes(self, element_bytes: int) -> int:
        """Elements a vector of ``element_bytes`` [bytes] each."""
        return max(1, self.bits // (8 * element_bytes))


@functools.cache
def choose_register_tile(
    rows: int,
    columns: int,
    lanes: int,
    registers: int,
    terms: int = MAX_SUMMED_TERMS,
    row_sets: int = CACHE_SETS,
) -> tuple[int, int]:
    """Rows and vectors of a register tile for a contraction of ``rows`` × ``columns``.

    One accumulator per (row, vector), one register per vector of the vector operand and one for the
    broadcast; of 32 registers one may be too few, as a spilled accumulator costs a cycle a step.
    Minimises the estimated cycles of all tiles, tails included.

    Args: terms: of each sum. row_sets: how many sets of the first-level cache consecutive rows
        are spread over.
    """
    best, best_cost = (1, 1), float("inf")
    column_vectors = -(-columns // lanes)
    for tile, vectors in register_tiles(rows, column_vectors, registers):
        spilled = max(0, tile * vectors + vectors + 1 - registers)
        cost = _tile_cost(rows, column_vectors, tile, vectors, spilled, terms)
        cost *= _conflict_factor(-(-tile // row_sets))
        if cost < best_cost * 0.999:
            best, best_cost = (tile, vectors), cost
    return best


def register_tiles(rows: int, column_vectors: int, registers: int) -> Iterator[tuple[int, int]]:
    """Every tile of rows × vectors whose accumulators have a register each, next to a broadcast."""
    most = registers if registers > FEW_REGISTERS else registers - 1
    for vectors in range(1, min(8, column_vectors) + 1):
        for tile in range(1, min((most - vectors) // vectors, rows, 30) + 1):
            yield tile, vectors


def choose_window_rows(rows: int, taps: int, step: int, registers: int) -> int:
    """Rows of a register tile of one vector each that share the vectors of overlapping windows.

    In registers are a sum a row, every vector that a line of windows reads, and one of the weights.
    Minimises the estimated cycles of all tiles, each bound by its FMAs, their latency or its loads.
    """

    def cycles(tile: int) -> float:
        loads = tile * step + max(0, taps - step) + taps
        return max(tile * taps, 4 * taps, loads) + 2.0

    best, best_cost = 1, float("inf")
    for tile in window_rows(rows, taps, step, registers):
        cost = rows // tile * cycles(tile) + (cycles(rows % tile) if rows % tile else 0.0)
        if cost < best_cost:
            best, best_cost = tile, cost
    return best


def window_rows(rows: int, taps: int, step: int, registers: int) -> Iterator[int]:
    """Every number of rows whose sums and shared windows have a register each."""
    for tile in range(1, min(rows, registers) + 1):
        if tile > 1 and tile + tile * step + max(0, taps - step) + 1 > registers:
            break
        yield tile


def choose_window_tile(
    rows: int, columns: int, taps: int, step: int, registers: int
) -> tuple[int, int]:
    """Rows and vectors of a register tile whose rows share vectors that lie across their windows.

    In registers are a sum a row and vector, the vectors between the first and the last row's one
    for a tap, those that the next tap adds, and a broadcast weight. Vectors lie at any address:
    most loads cross cache lines and take two cycles. Minimises the estimated cycles of all tiles.

    Args: columns: of the result [vectors].
    """

    def cycles(tile: int, vectors: int) -> float:
        loads = 2 * vectors * (min(step, taps) * (tile - 1) + taps) + taps
        return max(tile * taps * vectors, 4 * taps, loads) + 0.3 * loads + 2.0

    best, best_cost = (1, 1), float("inf")
    for tile, vectors in window_tiles(rows, columns, step, registers):
        cost = rows // tile * cycles(tile, vectors)
        cost += cycles(rows % tile, vectors) if rows % tile else 0.0
        cost *= -(-columns // vectors)
        if cost < best_cost * 0.999:
            best, best_cost = (tile, vectors), cost
    return best


def window_tiles(rows: int, columns: int, step: int, registers: int) -> Iterator[tuple[int, int]]:
    """Every tile of rows × vectors that ``choose_window_tile`` can keep in registers."""
    for vectors in range(1, min(4, columns) + 1):
        for tile in range(1, min(rows, registers) + 1):
            if tile > 1 and vectors * (tile + step * tile + 1) + 1 > registers:
                break
            yield tile, vectors


def choose_side_rows(rows: int, vectors: int, registers: int) -> int:
    """Rows of ``vectors`` sums each to run side by side where rows share no load: enough to hide
    the latency of an FMA, few enough to divide ``rows`` without much of a tail."""
    best, best_cost = 1, float("inf")
    for tile in side_rows(rows, vectors, registers):
        cost = sum(
            count * (max(r * vectors, 8) + 2.0)
            for r, count in ((tile, rows // tile), (rows % tile, 1))
            if r
        )
        if cost < best_cost:
            best, best_cost = tile, cost
    return best


def side_rows(rows: int, vectors: int, registers: int) -> Iterator[int]:
    """Numbers of rows of ``vectors`` sums each that leave half of the registers free."""
    yield from range(1, max(1, min(rows, registers // 2 // vectors)) + 1)


def row_sets(stride_bytes: int | None) -> int:
    """Sets of the first-level cache that rows at distance ``stride_bytes`` are spread over.

    A distance that is a multiple of a page puts all of them into one.
    """
    page = CACHE_SETS * 64
    if not stride_bytes:
        return CACHE_SETS
    return min(CACHE_SETS, page // math.gcd(abs(stride_bytes), page))


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


def block_sizes(default: int) -> list[int]:
    """Sizes of a sum's blocks besides ``default``: never longer, so that errors do not grow."""
    return [default >> k for k in range(4) if default >> k >= MIN_SUMMED_TERMS // 2]


def _conflict_factor(ways: int) -> float:
    """What it costs that ``ways`` rows of a tile lie in one set of a cache with 8 ways: a little
    where the vector operand drives them out, much where they drive each other out (measured)."""
    return 1 + 0.01 * max(0, ways - 6) + 0.08 * max(0, ways - 11)


def _tile_cost(
    rows: int, column_vectors: int, tile: int, vectors: int, spilled: int, terms: int
) -> float:
    """Cycles per step of the reduced loop, for all tiles: FMAs, loads that FMAs do not hide, the
    vector operand's way from the second-level cache, and a share of the stores at the end.

    A tail of the columns counts as a whole tile: threads share out tiles, and the one that has no
    short tile is waited for. The weights were fitted to measured tiles (Zen 4, AVX-512, 30 shapes).
    """
    latency = 4.0
    cost = 0.0
    for r, count in ((tile, rows // tile), (rows % tile, 1)):
        if r:
            step = max(r * vectors, latency) + 0.3 * (r + vectors) + 0.35 * vectors + 0.5
            step += 4.0 * r / max(1, terms) + (spilled if r == tile else 0)
            cost += step * count
    return cost * -(-column_vectors // vectors)
