"""The register tile of a contraction: one answer for its schedule and for who lays out panels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nestor.ir.program import Statement
from nestor.passes.contraction import Contraction
from nestor.passes.register_tile import (
    VectorUnit,
    choose_register_tile,
    choose_side_rows,
    choose_window_rows,
    choose_window_tile,
    register_tiles,
    row_sets,
    side_rows,
    window_rows,
    window_tiles,
)
from nestor.passes.statement_facts import constant_extent, extent_of, is_constant, reuse_extent

MAX_WINDOW_TAPS = 16
"""Longest window that is unrolled."""


@dataclass(frozen=True, slots=True)
class Window:
    """Neighbouring rows read overlapping windows: row ``x`` reads places ``x*step + tap``.

    Attributes:
        across: the vectors lie across the windows, and the other factor is broadcast.
    """

    row: str
    tap: str
    taps: int
    step: int
    across: bool = False


def shared_window(s: Statement, c: Contraction) -> Window | None:
    """The window in which rows of a tile can share loaded vectors: its loads are what limits such
    a tile. Depthwise convolutions have one, whether the row factor is read as vectors (of channels)
    or no row reuses the vector operand (pixels of a line)."""
    if c.row_moves and c.rows:
        return _overlap(s, c.rows[0], c.row_strides[0], c.reduced[-1:], c.reduced_strides[-1:])
    if not c.rows and not c.row_moves and c.spread:
        window = _overlap(s, c.spread[0], c.spread_strides[0], c.reduced, c.vector_strides)
        return None if window is None else replace(window, across=True)
    return None


def _overlap(
    s: Statement,
    row: str,
    stride: int | None,
    taps: tuple[str, ...],
    distances: tuple[int | None, ...],
) -> Window | None:
    """The window along the first of ``taps`` that moves the same way as ``row`` does."""
    for tap, distance in zip(taps, distances):
        if stride is None or not distance or stride % distance or not is_constant(s, row):
            continue
        extent, step = constant_extent(s, tap), stride // distance
        if extent is not None and 1 < extent <= MAX_WINDOW_TAPS and 0 < step < extent:
            return Window(row, tap, extent, step)
    return None


def tile_candidates(
    s: Statement, c: Contraction, unit: VectorUnit, row: str | None, vectors: int
) -> list[tuple[int, ...]]:
    """Every tile (rows, vectors) that could be chosen instead of ``contraction_tile``'s, with the
    same index of rows; ``vectors`` is what that chose."""
    columns = -(-reuse_extent(s, c.vector) // _lanes(s, unit))
    if row is None:
        return [(1, v) for _, v in register_tiles(1, columns, unit.registers)]
    rows = extent_of(s, row)
    window = shared_window(s, c)
    if window is not None and not window.across:
        sizes = window_rows(rows, window.taps, window.step, unit.registers)
        return [(n, 1) for n in sizes]
    if window is not None:
        return [*window_tiles(rows, columns, window.step, unit.registers)]
    if row not in c.rows:
        return [(n, vectors) for n in side_rows(rows, vectors, unit.registers)]
    return [*register_tiles(reuse_extent(s, row), columns, unit.registers)]


def _lanes(s: Statement, unit: VectorUnit) -> int:
    return unit.lanes(max(s.elements[0].dtype.bytes, 4))


def tile_row(s: Statement, c: Contraction) -> str | None:
    """The index of the rows of a register tile that reuse its vectors; None if none does."""
    return next((n for n in c.rows if is_constant(s, n)), c.rows[0] if c.rows else None)


def contraction_tile(s: Statement, c: Contraction, unit: VectorUnit) -> tuple[str | None, int, int]:
    """The row index of a contraction's register tile (None: there is none), rows, vectors."""
    window = shared_window(s, c)
    lanes = _lanes(s, unit)
    if window is not None:
        rows = extent_of(s, window.row)
        if not window.across:
            tile = choose_window_rows(rows, window.taps, window.step, unit.registers)
            return window.row, tile, 1
        columns = -(-reuse_extent(s, c.vector) // lanes)
        tile, vectors = choose_window_tile(rows, columns, window.taps, window.step, unit.registers)
        return window.row, tile, vectors
    row = tile_row(s, c)
    rows = reuse_extent(s, row) if row else 1
    sets = row_sets(c.row_strides[c.rows.index(row)] if row else None)
    terms = math.prod(reuse_extent(s, n) for n in c.reduced)
    columns = reuse_extent(s, c.vector)
    tile, vectors = choose_register_tile(rows, columns, lanes, unit.registers, terms, sets)
    if row is None and c.spread and is_constant(s, c.spread[0]):
        # No row reuses the vector operand: sums side by side hide the latency, at least.
        row = c.spread[0]
        tile = choose_side_rows(extent_of(s, row), vectors, unit.registers)
    return row, tile, vectors
