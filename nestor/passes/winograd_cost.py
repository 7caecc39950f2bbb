"""When Winograd's transforms pay: an estimate of both ways in cycles of a core."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from nestor.passes.context import PassContext
from nestor.passes.register_tile import choose_register_tile
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

_LEAST_TILES = 14
"""Tiles of a row for which products keep up with weights from the last cache: a core takes 64 /
tiles bytes of them a cycle (measured: 14 at 28×28 gain, 7 at 14×14 and 4 at 7×7 lose)."""

_MAX_LOCAL_BYTES = 15 << 16
"""Most that a kernel may keep of temps on its stack."""

_PARTS_PER_CORE = 2
"""Fewest parallel iterations that share the work evenly enough."""

_NEAR_BYTES_PER_CYCLE = 16.0
"""What one core moves to and from a cache further out than the first."""


Way = Literal["direct", "near", "apart"]
"""How windows are computed: as they are, or from transformed tiles, some at a time through all
steps or all of them one step after the other."""


def choose_way(w: Windows, ctx: PassContext) -> tuple[Way, str]:
    """How to compute windows, and why not from tiles if the estimate is against it.

    Knob: ``windows ROWSxRESULTS*SUMMED->COLUMNS``; ``near`` where its temps fit a kernel's stack.
    """
    reason = is_worth(w, ctx) or ""
    near = stays_near(w, ctx.target)
    default: Way = "direct" if reason else "near" if near else "apart"
    ways: list[Way] = ["direct", "apart"]
    if _near_bytes(w, ctx.target) <= _MAX_LOCAL_BYTES:
        ways.append("near")
    extents = [w.statement.domain.range_of(n).upper for n in w.rows]
    rows = "x".join(str(e) for e in (*extents, *(w.results(p) for p, _ in w.pairs)))
    shape = f"{rows}*{_extent(w, w.summed)}->{_extent(w, w.columns)} {w.operand.dtype.name}"
    meaning = "windows of three: as they are, or from transformed tiles, kept near or apart"
    chosen = ctx.choices.word(f"windows {shape}", ways, default, meaning)
    return next(way for way in get_args(Way) if way == chosen), reason


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

    sums, columns = _extent(w, w.summed), _extent(w, w.columns)
    results = _extent(w, w.rows) * math.prod(w.results(p) for p, _ in w.pairs)
    size, rank = w.operand.dtype.bytes, len(w.pairs)
    lanes = _lanes(target, size)
    far = _far(target)
    rows = typical(w.row_count())
    products = POINTS**rank * rows * sums * columns / (lanes * _TILED_EFFICIENCY)
    temps = _temp_bytes(w)
    moved = 2 * temps / _NEAR_BYTES_PER_CYCLE
    starts = _STARTS * _START_CYCLES * (1 if target is None else int(target.cores))
    if stays_near(w, target):
        moved, starts = moved / 2, 0.0
    tiled = max(products, _weight_bytes(w) / far) + moved + starts
    terms = results * sums * columns * TAPS**rank
    direct = max(terms / (lanes * _DIRECT_EFFICIENCY), TAPS**rank * sums * columns * size / far)
    return float(direct / tiled)


def stays_near(w: Windows, target: Any) -> bool:
    """Whether some tiles at a time go through all steps, or all tiles through one after the other.

    Some at a time, temps stay near, but the weights are read again for each row of tiles: from the
    second cache if they fit there, else from further out, which keeps up where a row has enough
    tiles for every weight. A few rows of tiles do not occupy all cores.
    """
    *rows, tiles = w.row_ranges()
    cores = 1 if target is None else int(target.cores)
    l2 = 1 << 20 if target is None else int(target.l2_bytes)
    parts = max(1, typical(tiles.upper) // _LEAST_TILES)
    if parts * math.prod(typical(r.upper) for r in rows) < _PARTS_PER_CORE * cores:
        return False
    if _near_bytes(w, target) > _MAX_LOCAL_BYTES:
        return False
    enough = typical(tiles.upper) >= _LEAST_TILES
    return enough or _weight_bytes(w) <= l2 or _temp_bytes(w) > _cache(target)


def _near_bytes(w: Windows, target: Any) -> int:
    """Temps of the tiles that go through all steps together [bytes]."""
    tiles = typical(w.row_ranges()[-1].upper)
    lanes = 16 if target is None else target.lanes(8 * max(4, w.operand.dtype.bytes))
    registers = 32 if target is None else int(target.vector_registers)
    tile, _ = choose_register_tile(tiles, _extent(w, w.columns), lanes, registers)
    return tile * _row_bytes(w)


def _temp_bytes(w: Windows) -> int:
    """Size of the transformed operand and of the products' sums."""
    return typical(w.row_count()) * _row_bytes(w)


def _row_bytes(w: Windows) -> int:
    """The part of those temps that one tile has."""
    return _points(w) * (_extent(w, w.summed) + _extent(w, w.columns))


def _weight_bytes(w: Windows) -> int:
    """Size of the transformed weights."""
    return _points(w) * _extent(w, w.summed) * _extent(w, w.columns)


def _points(w: Windows) -> int:
    """Bytes of all points of a tile."""
    return int(POINTS ** len(w.pairs) * w.operand.dtype.bytes)


def _extent(w: Windows, names: tuple[str, ...]) -> int:
    return math.prod(typical(w.statement.domain.range_of(n).upper) for n in names)


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
