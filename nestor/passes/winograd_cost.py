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

_STARTS = 2
"""Kernels that the transforms add."""

_START_CYCLES = 10_000.0
"""What it takes to hand a kernel to the threads and to wait for them, on each core."""

_NEAR_BYTES_PER_CYCLE = 16.0
"""What one core moves to and from a cache further out than the first."""


def is_worth(w: Windows, ctx: PassContext) -> str | None:
    """None if fewer products outweigh the transforms' traffic, else why not, in words."""
    gain = estimated_gain(w, ctx.target)
    if gain < ctx.options.least_window_gain:
        return f"its transforms would take what they save (estimated gain {gain:.2f})"
    return None


def estimated_gain(w: Windows, target: Any) -> float:
    """Time of the sum as it is over that of transformed tiles.

    Cycles of one core for all the work, with its share of the memory's bandwidth. Weights stream
    from memory while products run; temps are written and read in between.

    Args: target: a ``nestor.target`` description, or None where none is known.
    """

    def extent(names: tuple[str, ...]) -> int:
        return math.prod(typical(w.statement.domain.range_of(n).upper) for n in names)

    sums, columns = extent(w.summed), extent(w.columns)
    results = extent(w.rows) * math.prod(w.results(p) for p, _ in w.pairs)
    size, rank = w.operand.dtype.bytes, len(w.pairs)
    lanes = _lanes(target, size)
    near, far = _NEAR_BYTES_PER_CYCLE, _far(target)
    rows = typical(w.row_count())
    products = POINTS**rank * rows * sums * columns / (lanes * _TILED_EFFICIENCY)
    temps = POINTS**rank * rows * (sums + columns) * size
    moved = 2 * temps / (near if temps <= _cache(target) else far)
    tiled = max(products, POINTS**rank * sums * columns * size / far) + moved
    terms = results * sums * columns * TAPS**rank
    direct = max(terms / (lanes * _DIRECT_EFFICIENCY), TAPS**rank * sums * columns * size / far)
    cores = 1 if target is None else int(target.cores)
    return float(direct / (tiled + _STARTS * _START_CYCLES * cores))


def _lanes(target: Any, size: int) -> float:
    """Products that a core starts in a cycle."""
    return 64 / size if target is None else target.peak_flops_per_cycle(8 * size) / 2


def _cache(target: Any) -> int:
    """What the last-level cache holds [bytes]."""
    return 32 << 20 if target is None else int(target.l3_bytes)


def _far(target: Any) -> float:
    """Bytes per cycle of a core from memory, when all cores ask for them."""
    if target is None:
        return 4.0
    return float(target.memory_gbps / target.ghz / target.cores)
