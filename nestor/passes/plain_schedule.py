"""Loops of pointwise statements, reductions and scans: threads outside, vectors along memory."""

from __future__ import annotations

from itertools import permutations
from math import prod

from nestor.ir.expr import loads
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
from nestor.passes.column_tiles import column_loops
from nestor.passes.gather_schedule import gathered_rows
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import (
    block_of,
    bounding_indices,
    extent_of,
    in_reduction_order,
    in_scope,
    is_constant,
    loop_parts,
    magnitude,
    reduced_indices,
    widest_bytes,
)
from nestor.passes.strides import access_strides
from nestor.passes.transpose_schedule import transposed_loops

MAX_UNROLLED_TAPS = 9
"""Reduced loops of constant extents with at most this many iterations together are unrolled."""

SCAN_ROWS, SCAN_STEPS = 4, 16
"""Rows of a scan that are run in turns, and steps of each turn: a cache line of 4-byte elements.
One row alone waits for its additions; more rows than ways of the first-level cache may fall out of
it where their distance is a power of two."""

MIN_SCAN_LANES = 4
"""Fewer rows as lanes gain nothing over rows in turns."""

MAX_ROW_VECTORS, MIN_SHORT_ROWS = 8, 256
"""Rows with a border of at most so many vectors are straight code, if there are enough of them."""

MAX_ORDERED_LOOPS = 4
"""More loops than that stay in the order of memory."""

MAX_NEAR_STRIDE = 4
"""Lanes at most this far apart share their cache lines [elements]."""


def plain_loops(rules: Rules, s: Statement, sequential: list[str], shared: list[str]) -> None:
    """A statement of its own: parallel over its outer indices, vector along memory."""
    serial = s.scatter == "last" or (s.reduction is not None and s.reduction.into)
    seq = [rules.sequential_loop(s, n) for n in sequential]
    names = in_reduction_order(s, [n for n in s.domain.names if n not in sequential])
    reduced = reduced_indices(s)
    if serial:
        rules.out.append(Reorder(statement=s.name, loops=(*seq, *(f"{s.name}.{n}" for n in names))))
        return
    free = [n for n in names if n not in reduced]
    if transposed_loops(rules, s, seq):
        return
    vector = _choose_vector(rules, s, names, _rectangular(s, free))
    outer = _by_stride(rules, s, [n for n in free if n != vector])
    outer = _choose_order(rules, s, outer)
    if vector is None and outer and _chained_scan(rules, s, outer[-1]):
        _scan_rows(rules, s, [*seq, *(f"{s.name}.{n}" for n in outer)], len(seq))
        return
    if vector is not None and vector in free and column_loops(rules, s, vector, outer, seq):
        return
    if vector is not None and gathered_rows(rules, s, vector, outer, seq):
        return
    loops = [f"{s.name}.{n}" for n in outer]
    halves: list[str] = []
    if vector is not None and vector in free:
        loop = f"{s.name}.{vector}"
        size = rules.unit.lanes(widest_bytes(s))
        if extent_of(s, vector) > size or not is_constant(s, vector):
            loops += _vector_blocks(rules, s, loop, size)
            loop = f"{loops[-1][:-2]}.i"
            halves = [loop]
        else:
            halves = [loop]
    rest = [n for n in names if n in reduced]
    plain_inner(rules, s, [*seq, *loops], halves, rest, vector_half=True)
    if halves and is_short_row(s, vector, outer, rules.unit.lanes(widest_bytes(s))):
        rules.out.append(Unroll(loop=loops.pop()))
    for loop in loops:
        rules.out.append(Parallel(loop=loop))


def _choose_order(rules: Rules, s: Statement, outer: list[str]) -> list[str]:
    """The loops around a vector, outermost first, in the order that is chosen."""
    if not 2 <= len(outer) <= MAX_ORDERED_LOOPS or bounding_indices(s):
        return outer
    orders = [" ".join(o) for o in permutations(outer)]
    name = f"{s.name}.order"
    order = rules.choices.word(name, orders, " ".join(outer), "loops around the vectors")
    return order.split()


def _vector_blocks(rules: Rules, s: Statement, loop: str, lanes: int) -> list[str]:
    """Loops over the vectors of ``loop``; threads share out blocks of them, if that is chosen."""
    outer: list[str] = []
    _, index, *_ = loop_parts(loop, s.name)
    if is_constant(s, index):
        sizes = [0, *(n for n in (4, 16, 64, 256) if 2 * n * lanes <= extent_of(s, index))]
        block = rules.choices.size(f"{s.name}.block", sizes, 0, "vectors of a block; 0: no blocks")
        if block:
            rules.out.append(Tile(loop=loop, size=block * lanes))
            outer, loop = [f"{loop}.o"], f"{loop}.i"
    rules.out.append(Tile(loop=loop, size=lanes))
    return [*outer, f"{loop}.o"]


def is_short_row(s: Statement, vector: str | None, outer: list[str], lanes: int) -> bool:
    """Whether rows are a few vectors and there are many of them: straight code for a row saves
    finding the place of each vector, and makes constants of the masks of a border."""
    if vector is None or not is_constant(s, vector) or bounding_indices(s):
        return False
    if not any(x.predicate for e in s.elements for x in loads(e)):
        return False
    rows = prod(extent_of(s, n) for n in outer)
    return lanes < extent_of(s, vector) <= MAX_ROW_VECTORS * lanes and rows >= MIN_SHORT_ROWS


def _chained_scan(rules: Rules, s: Statement, row: str) -> bool:
    """Whether ``s`` is a scan along memory in which each step waits for the one before."""
    scan = s.reduction is not None and s.reduction.scan and len(s.reduction.indices) == 1
    if not scan or s.reduction is None or bounding_indices(s):
        return False
    return extent_of(s, row) >= SCAN_ROWS and extent_of(s, s.reduction.indices[0]) >= SCAN_STEPS


def _scan_rows(rules: Rules, s: Statement, outer: list[str], sequential: int) -> None:
    """Some rows of a scan at once, a cache line of each: their chains run at the same time.

    Rows are the lanes of vectors where their elements can be transposed in registers on the way
    from and to memory; else a few rows take turns.
    """
    assert s.reduction is not None
    row, step = outer.pop(), f"{s.name}.{s.reduction.indices[0]}"
    lanes = _scan_lanes(rules, s, loop_parts(row, s.name)[1])
    rules.out.append(Tile(loop=row, size=lanes or SCAN_ROWS))
    rules.out.append(Tile(loop=step, size=SCAN_STEPS))
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


def plain_inner(
    rules: Rules,
    s: Statement,
    outer: list[str],
    halves: list[str],
    rest: list[str],
    vector_half: bool,
) -> None:
    """Order the inner loops of a statement: reduced ones, rows of a tile, then the vector."""
    name, reduced = s.name, reduced_indices(s)
    vector: list[str] = []
    inner: list[str] = []
    if vector_half and halves:
        vector, halves = halves[-1:], halves[:-1]
    free = [n for n in rest if n not in reduced]
    summed = [n for n in in_reduction_order(s, rest) if n in reduced]
    if not vector:
        index = _choose_vector(rules, s, rest)
        if index is not None:
            size = rules.unit.lanes(widest_bytes(s))
            loop = f"{name}.{index}"
            if index in summed:
                if extent_of(s, index) >= 2 * size and _may_split(rules, s):
                    # Wide states (a value and its index) still run in vectors of what is read.
                    most = 4 * max(1, rules.unit.lanes(s.elements[0].dtype.bytes) // size)
                    room = (extent_of(s, index) // (2 * size)).bit_length() - 1
                    # Constraints count in blocks: all lanes are of one.
                    within = (block_of(s, index) or size * most) // size
                    chains = max(1, min(most, 1 << room, within))
                    sizes = [n for n in (1, 2, 4, 8, 16) if n <= min(1 << max(0, room), within)]
                    meaning = "vectors of partial results"
                    chains = rules.choices.size(f"{name}.chains", sizes, chains, meaning)
                    rules.out.append(SplitReduction(loop=loop, lanes=size * chains))
                    summed.remove(index)
                    inner, vector = [f"{loop}.o"], [f"{loop}.i"]
            else:
                free.remove(index)
                if extent_of(s, index) > size:
                    rules.out.append(Tile(loop=loop, size=size))
                    inner, vector = [f"{loop}.o"], [f"{loop}.i"]
                else:
                    vector = [loop]
    loops = [f"{name}.{n}" for n in free]
    sums = [f"{name}.{n}" for n in summed]
    if vector and vector[0].endswith(".i") and inner and _is_reduced(rules, s, vector[0]):
        order = [*outer, *halves, *loops, *sums, *inner, *vector]
    else:
        order = [*outer, *halves, *loops, *inner, *sums, *vector]
    rules.out.append(Reorder(statement=name, loops=in_scope(s, order)))
    for loop in vector:
        rules.out.append(Vectorize(loop=loop))
    taps = 1
    for n in summed:
        taps *= extent_of(s, n)
    if summed and taps <= MAX_UNROLLED_TAPS and s.reduction and not s.reduction.scan:
        for loop in sums:
            rules.out.append(Unroll(loop=loop))
    if s.reduction is not None:
        rules.out.append(Accumulate(statement=name, scope="register"))


def _is_reduced(rules: Rules, s: Statement, loop: str) -> bool:
    _, index, *_ = loop_parts(loop, s.name)
    return index in reduced_indices(s)


def _may_split(rules: Rules, s: Statement) -> bool:
    kind = s.reduction
    return kind is not None and kind.monoid.commutative and not kind.scan and not kind.into


def _choose_vector(
    rules: Rules, s: Statement, names: list[str], masked: frozenset[str] = frozenset()
) -> str | None:
    """The index along which the statement's accesses are contiguous, if any gains.

    Its extent is constant, or it is one of ``masked``, whose last vector may be masked.
    """
    if s.scatter == "last":
        return None
    reduced = reduced_indices(s)
    scanned = reduced if s.reduction and s.reduction.scan else set()
    bounding = bounding_indices(s)  # loops around others, whose extents they decide
    names = [n for n in names if n not in scanned | bounding]
    candidates = [n for n in names if n in masked or is_constant(s, n)]
    best = max(candidates, key=lambda n: _vector_key(rules, s, n, reduced), default=None)
    if best is None or unit_score(rules, s, best) <= 0 or extent_of(s, best) < 2:
        return None
    return best


def _rectangular(s: Statement, names: list[str]) -> frozenset[str]:
    """Those of ``names`` whose ranges are the same for all values of the other indices."""
    ranges = {n: s.domain.range_of(n) for n in names}
    own = set(s.domain.names)
    return frozenset(
        n for n, r in ranges.items() if not (r.lower.variables() | r.upper.variables()) & own
    )


def _vector_key(rules: Rules, s: Statement, n: str, reduced: set[str]) -> tuple[float, ...]:
    extent = min(extent_of(s, n), rules.unit.lanes(widest_bytes(s)))
    return (unit_score(rules, s, n) * extent, float(n not in reduced), float(extent_of(s, n)))


def unit_score(rules: Rules, s: Statement, index: str) -> float:
    """How contiguous the accesses are along ``index``: a unit stride counts, a jump costs.

    A store counts twice, as a line that is written is read first; after a reduction, by how often
    it happens: what reads a thousand elements for each that it writes should read them in order.
    Lanes a few elements apart still share their cache lines: they neither gain nor cost.
    """
    score = 0.0
    stored = 2.0 / _terms(s)
    accesses = [(w.tensor, w.indices, stored) for w in s.writes]
    accesses += [(x.tensor, x.indices, 1.0) for e in s.elements for x in loads(e)]
    for tensor, indices, weight in accesses:
        stride = access_strides(rules.tensors[tensor], indices, [index])[index]
        if stride == 1:
            score += weight
        elif stride is None or abs(stride) > MAX_NEAR_STRIDE:
            score -= weight
    return score


def _terms(s: Statement) -> int:
    """How many elements are read for each result."""
    if s.reduction is None or s.reduction.scan:
        return 1
    return prod(extent_of(s, n) for n in reduced_indices(s))


def _by_stride(rules: Rules, s: Statement, names: list[str]) -> list[str]:
    write = s.writes[0]
    strides = access_strides(rules.tensors[write.tensor], write.indices, names)
    return sorted(names, key=lambda n: -magnitude(strides[n]))
