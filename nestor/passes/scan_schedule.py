"""Loops of scans along memory: each step waits for the one before, so some rows run at once."""

from __future__ import annotations

from nestor.ir.expr import loads
from nestor.ir.program import Statement
from nestor.ir.schedule import (
    Accumulate,
    Parallel,
    Reorder,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import (
    bounding_indices,
    extent_of,
    is_constant,
    loop_parts,
    widest_bytes,
)
from nestor.passes.strides import access_strides

SCAN_ROWS, SCAN_STEPS = 4, 16
"""Rows of a scan that are run in turns, and steps of each turn: a cache line of 4-byte elements.
One row alone waits for its additions; more rows than ways of the first-level cache may fall out of
it where their distance is a power of two."""

MIN_SCAN_LANES = 4
"""Fewer rows as lanes gain nothing over rows in turns."""


def chained_scan(rules: Rules, s: Statement, row: str) -> bool:
    """Whether ``s`` is a scan along memory in which each step waits for the one before."""
    scan = s.reduction is not None and s.reduction.scan and len(s.reduction.indices) == 1
    if not scan or s.reduction is None or bounding_indices(s):
        return False
    return extent_of(s, row) >= SCAN_ROWS and extent_of(s, s.reduction.indices[0]) >= SCAN_STEPS


def scan_rows(rules: Rules, s: Statement, outer: list[str], sequential: int) -> None:
    """Some rows of a scan at once, a cache line of each: their chains run at the same time.

    Rows are the lanes of vectors where their elements can be transposed in registers on the way
    from and to memory; else a few rows take turns.
    """
    assert s.reduction is not None
    row, step = outer.pop(), f"{s.name}.{s.reduction.indices[0]}"
    lanes = _scan_lanes(rules, s, loop_parts(row, s.name)[1])
    lanes, rows, steps = _scan_tile(rules, s, loop_parts(row, s.name)[1], lanes)
    rules.out.append(Tile(loop=row, size=rows))
    rules.out.append(Tile(loop=step, size=steps))
    outer.append(f"{row}.o")
    inner = (
        [f"{step}.o", f"{step}.i", f"{row}.i"] if lanes else [f"{step}.o", f"{row}.i", f"{step}.i"]
    )
    rules.out.append(Reorder(statement=s.name, loops=(*outer, *inner)))
    for loop in inner[1:2] if lanes else inner[1:]:
        rules.out.append(Unroll(loop=loop))
    if lanes:
        rules.out.append(Vectorize(loop=inner[2]))
    rules.out.append(Accumulate(statement=s.name, scope="register"))
    for loop in outer[sequential:]:
        rules.out.append(Parallel(loop=loop))


def _scan_tile(rules: Rules, s: Statement, row: str, lanes: int) -> tuple[int, int, int]:
    """Lanes that rows of a scan are (0: they take turns), rows at once, and steps at once."""
    assert s.reduction is not None
    extent, length = extent_of(s, row), extent_of(s, s.reduction.indices[0])
    ways = ["lanes", "turns"] if lanes else ["turns"]
    way = rules.choices.word(f"{s.name}.rows", ways, ways[0], "what rows of a scan are")
    lanes = lanes if way == "lanes" else 0
    rows = [n for n in (1, 2, 4, 8, 16) if n <= extent and not lanes]
    steps = [n for n in (4, 8, 16, 32, 64) if n <= length and n * (lanes or 8) <= 512]
    tile = [(r, n) for r in rows or [lanes] for n in steps if lanes or r * n <= 128]
    meaning = "rows and steps of a scan at once"
    default = (lanes or SCAN_ROWS, SCAN_STEPS)
    r, n = rules.choices.sizes(f"{s.name}.tile", tile, default, meaning)
    return lanes, r, n


def _scan_lanes(rules: Rules, s: Statement, row: str) -> int:
    """How many rows of a scan are the lanes of a vector; 0 if they are none: all that it reads and
    writes has to be contiguous along its steps, at a known distance from row to row."""
    assert s.reduction is not None
    states = [d.bytes for d in s.reduction.monoid.dtypes]
    lanes = rules.unit.lanes(max(widest_bytes(s), *states))
    if len(s.writes) != 1 or not is_constant(s, row) or extent_of(s, row) < lanes:
        return 0
    accesses = [(w.tensor, w.indices) for w in s.writes]
    accesses += [(x.tensor, x.indices) for e in s.elements for x in loads(e)]
    step = s.reduction.indices[0]
    for tensor, indices in accesses:
        strides = access_strides(rules.tensors[tensor], indices, [row, step])
        is_row = strides[step] == 1 and abs(strides[row] or 0) > 1
        if not is_row or rules.tensors[tensor].dtype.bytes not in (4, 8):
            return 0
    return lanes if lanes >= MIN_SCAN_LANES else 0
