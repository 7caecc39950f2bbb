"""When Winograd's transforms pay: an estimate of both ways in cycles of a core."""

from __future__ import annotations

import math
from typing import Any

from nestor.passes.context import PassContext
from nestor.passes.strides import typical
from nestor.passes.winograd_tiles import POINTS, TAPS
from nestor.passes.winograd_windows import Windows

_DIRECT_EFFICIENCY = 0.85
_TILED_EFFICIENCY = 0.75
"""Shares of a core's peak that the products reach (measured on ResNet-50's layers)."""

_NEAR_BYTES_PER_CYCLE = 16.0
"""What one core moves to and from a cache further out than the first."""


def is_worth(w: Windows, ctx: PassContext) -> str | None:
    """None if fewer products outweigh the transforms' traffic, else why not, in words."""
    reach = {p: w.results(p) for p, _ in w.pairs}
    rows = typical(w.row_count())
    sums = math.prod(typical(w.statement.domain.range_of(n).upper) for n in w.summed)
    columns = math.prod(typical(w.statement.domain.range_of(n).upper) for n in w.columns)
    results = math.prod(reach.values()) * math.prod(
        typical(w.statement.domain.range_of(n).upper) for n in w.rows
    )
    size = w.operand.dtype.bytes
    rank = len(w.pairs)
    lanes = _lanes(ctx.target, size)
    points = POINTS**rank
    direct = results * sums * columns * TAPS**rank / (lanes * _DIRECT_EFFICIENCY)
    products = points * rows * sums * columns / (lanes * _TILED_EFFICIENCY)
    moved = 2 * points * rows * (sums + columns) * size
    weights = (points - TAPS**rank) * sums * columns * size
    tiled = products + moved / _near(ctx.target, moved) + weights / _far(ctx.target)
    if tiled * ctx.options.least_window_gain > direct:
        return f"its transforms would take what they save (estimated gain {direct / tiled:.2f})"
    return None


def _lanes(target: Any, size: int) -> float:
    """Products that a core starts in a cycle."""
    return 64 / size if target is None else target.peak_flops_per_cycle(8 * size) / 2


def _near(target: Any, moved: int) -> float:
    """Bytes per cycle of a core for temps of ``moved`` bytes, written and read."""
    l3 = 32 << 20 if target is None else target.l3_bytes
    return _NEAR_BYTES_PER_CYCLE if moved < l3 else _far(target)


def _far(target: Any) -> float:
    """Bytes per cycle of a core from memory, when all cores ask for them."""
    if target is None:
        return 4.0
    return float(target.memory_gbps / target.ghz / target.cores)
