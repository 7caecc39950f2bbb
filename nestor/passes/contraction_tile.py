"""The register tile of a contraction: one answer for its schedule and for who lays out panels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nestor.ir.program import Statement
from nestor.passes.contraction import Contraction
from nestor.passes.register_tile import (
    VectorUnit,
    choose_register_tile,
    choose_side_rows,
    choose_window_rows,
    row_sets,
)
from nestor.passes.statement_facts import constant_extent, extent_of, is_constant, reuse_extent

MAX_WINDOW_TAPS = 16
"""Longest window that is unrolled."""


@dataclass(frozen=True, slots=True)
class Window:
    """Neighbouring rows read overlapping windows: row ``x`` reads places ``x*step + tap``."""

    row: str
    tap: str
    taps: int
    step: int


def shared_window(s: Statement, c: Contraction) -> Window | None:
    """The window in which rows of a tile can share loaded vectors, if the row factor is read as
    vectors (depthwise convolutions): its loads are what limits such a tile."""
    if not c.row_moves or not c.reduced or not c.rows or c.row_strides[0] is None:
        return None
    row, tap, distance = c.rows[0], c.reduced[-1], c.reduced_strides[-1]
    if not distance or c.row_strides[0] % distance or not is_constant(s, row):
        return None
    taps, step = constant_extent(s, tap), c.row_strides[0] // distance
    if taps is None or not 1 < taps <= MAX_WINDOW_TAPS or not 0 < step < taps:
        return None
    return Window(row, tap, taps, step)


def contraction_tile(s: Statement, c: Contraction, unit: VectorUnit) -> tuple[str | None, int, int]:
    """The row index of a contraction's register tile (None: there is none), rows, vectors."""
    window = shared_window(s, c)
    if window is not None:
        rows = choose_window_rows(
            extent_of(s, window.row), window.taps, window.step, unit.registers
        )
        return window.row, rows, 1
    lanes = unit.lanes(max(s.elements[0].dtype.bytes, 4))
    row = next((n for n in c.rows if is_constant(s, n)), c.rows[0] if c.rows else None)
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
