"""Loops of pointwise statements, reductions and scans: threads outside, vectors along memory."""

from __future__ import annotations

from collections.abc import Sequence
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
from nestor.passes.analysis import expression_work
from nestor.passes.column_tiles import column_loops
from nestor.passes.gather_schedule import gathered_rows
from nestor.passes.rows_beside import is_near, sharing_rows, waiting_rows
from nestor.passes.scan_schedule import chained_scan, scan_rows
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
from nestor.passes.vector_axis import choose_vector, rectangular, vector_axis

MAX_UNROLLED_TAPS = 9
"""Reduced loops of constant extents with at most this many iterations together are unrolled."""

MAX_STRAIGHT_TAPS = 32
"""Terms of sums side by side that may be written out if a search finds that it pays."""

MAX_ROW_VECTORS, MIN_SHORT_ROWS = 8, 256
"""Rows with a border of at most so many vectors are straight code, if there are enough of them."""

MAX_ORDERED_LOOPS = 4
"""More loops than that stay in the order of memory."""

MAX_ROWS_BESIDE = 8
"""Most rows side by side."""

MAX_STRAIGHT_WORK = 128.0
"""Work and loads of vectors side by side that are written out (``expression_work``)."""


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
    vector = vector_axis(rules, s, names, rectangular(s, free))
    outer = _by_stride(rules, s, [n for n in free if n != vector])
    outer = _choose_order(rules, s, outer)
    if vector is None and outer and chained_scan(rules, s, outer[-1]):
        scan_rows(rules, s, [*seq, *(f"{s.name}.{n}" for n in outer)], len(seq))
        return
    if vector is not None and vector in free and column_loops(rules, s, vector, outer, seq):
        return
    if vector is not None and gathered_rows(rules, s, vector, outer, seq):
        return
    loops = [f"{s.name}.{n}" for n in outer]
    halves: list[str] = []
    tile: list[str] = []
    lanes = rules.unit.lanes(widest_bytes(s))
    rest = [n for n in names if n in reduced]
    is_short = is_short_row(s, vector, outer, lanes)
    rows, vectors = _choose_tile(rules, s, outer, vector, is_short)
    if rows > 1:
        loops[-1:], tile = _cut(rules, loops[-1], rows)
    if vector is not None and vector in free:
        loop = f"{s.name}.{vector}"
        if extent_of(s, vector) > lanes or not is_constant(s, vector):
            loops += _vector_blocks(rules, s, loop, lanes, vectors)
            loop = f"{loops[-1][:-2]}.i"
            if vectors > 1:
                beside, (loop,) = _cut(rules, loop, lanes)
                tile += beside
        halves = [loop]
    plain_inner(rules, s, [*seq, *loops], halves, rest, vector_half=True, tile=tile)
    if halves and is_short:
        rules.out.append(Unroll(loop=loops.pop()))
    for loop in rules.parallel_loops(s.name, loops, whole_of=s):
        rules.out.append(Parallel(loop=loop))


def _cut(rules: Rules, loop: str, size: int) -> tuple[list[str], list[str]]:
    """Tile ``loop``; its outer loop, and its inner one."""
    rules.out.append(Tile(loop=loop, size=size))
    return [f"{loop}.o"], [f"{loop}.i"]


def _choose_tile(
    rules: Rules, s: Statement, outer: list[str], vector: str | None, is_short: bool
) -> tuple[int, int]:
    """Rows and vectors that are written out side by side.

    Neighbours in a window or a stencil share what they read, and results that wait for nothing of
    each other run at the same time.
    """
    if vector is None or bounding_indices(s):
        return 1, 1
    lanes = rules.unit.lanes(widest_bytes(s))
    room = min(rules.unit.registers // 2, max(1, int(MAX_STRAIGHT_WORK // _straight_work(s))))
    rows = extent_of(s, outer[-1]) if outer and is_constant(s, outer[-1]) else 1
    columns = 1
    if vector not in reduced_indices(s) and is_constant(s, vector) and not is_short:
        columns = extent_of(s, vector) // lanes
    sizes = [
        (r, v)
        for r in (1, 2, 4, 8)
        if r <= rows
        for v in (1, 2, 4)
        if v <= columns and r * v <= room
    ]
    meaning = "rows and vectors side by side"
    sizes = sizes or [(1, 1)]
    default = (_rows_beside(rules, s, outer, vector, lanes, [r for r, v in sizes if v == 1]), 1)
    r, v = rules.choices.sizes(f"{s.name}.tile", sizes, default, meaning)
    return r, v


def _rows_beside(
    rules: Rules, s: Statement, outer: list[str], vector: str, lanes: int, sizes: Sequence[int]
) -> int:
    """Of ``sizes``, the rows that a statement takes side by side without search."""
    if not outer or len(sizes) < 2 or s.scatter:
        return 1
    reduced, near = reduced_indices(s), is_near(rules.kernel.tensors)
    if vector not in reduced:
        few = all(is_constant(s, n) for n in reduced)
        taps = prod(extent_of(s, n) for n in reduced)
        shares = few and taps <= MAX_UNROLLED_TAPS and _rows_around(s, outer, vector, lanes)
        return sharing_rows(s, outer[-1], sizes, near) if shares else 1
    if len(reduced) > 1 or not is_constant(s, vector) or (s.reduction and s.reduction.scan):
        return 1
    # Too few terms for vectors are added one by one.
    terms = extent_of(s, vector)
    is_split = terms >= 2 * lanes
    count = prod(extent_of(s, n) for n in outer)
    cut = [(s, terms / lanes if is_split else float(terms))]
    rows = waiting_rows(cut, count, bound=is_split and not near)
    return max(n for n in sizes if n <= rows)


def _rows_around(s: Statement, outer: list[str], vector: str, lanes: int) -> bool:
    """Whether there are whole vectors, and rows to tile."""
    return extent_of(s, vector) >= lanes and extent_of(s, outer[-1]) >= 2 * MAX_ROWS_BESIDE


def _straight_work(s: Statement) -> float:
    """Work of one vector of ``s`` that is written out, its unrolled taps included."""
    own = 1.0 + sum(expression_work(e) + sum(1 for _ in loads(e)) for e in s.elements)
    taps = prod(extent_of(s, n) for n in reduced_indices(s))
    return own * (taps if taps <= MAX_UNROLLED_TAPS else 1)


def _choose_order(rules: Rules, s: Statement, outer: list[str]) -> list[str]:
    """The loops around a vector, outermost first, in the order that is chosen."""
    if not 2 <= len(outer) <= MAX_ORDERED_LOOPS or bounding_indices(s):
        return outer
    orders = [" ".join(o) for o in permutations(outer)]
    name = f"{s.name}.order"
    order = rules.choices.word(name, orders, " ".join(outer), "loops around the vectors")
    return order.split()


def _vector_blocks(rules: Rules, s: Statement, loop: str, lanes: int, vectors: int) -> list[str]:
    """Loops over so many vectors at once of ``loop``; threads share out blocks of them, if that is
    chosen."""
    outer: list[str] = []
    _, index, *_ = loop_parts(loop, s.name)
    if is_constant(s, index):
        most = extent_of(s, index) // (2 * lanes)
        sizes = [0, *(n for n in (4, 16, 64, 256) if vectors < n <= most)]
        block = rules.choices.size(f"{s.name}.block", sizes, 0, "vectors of a block; 0: no blocks")
        if block:
            rules.out.append(Tile(loop=loop, size=block * lanes))
            outer, loop = [f"{loop}.o"], f"{loop}.i"
    rules.out.append(Tile(loop=loop, size=vectors * lanes))
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


def plain_inner(
    rules: Rules,
    s: Statement,
    outer: list[str],
    halves: list[str],
    rest: list[str],
    vector_half: bool,
    tile: Sequence[str] = (),
) -> None:
    """Order the inner loops of a statement: reduced ones, rows of a tile, then the vector.

    Args: outer: loops around, in order. halves: of shared rows; the last one is the vector if
        ``vector_half``. rest: the other indices. tile: loops written out around each vector.
    """
    name, reduced = s.name, reduced_indices(s)
    vector: list[str] = []
    inner: list[str] = []
    straight = False
    if vector_half and halves:
        vector, halves = halves[-1:], halves[:-1]
    free = [n for n in rest if n not in reduced]
    summed = _sums_in_order(rules, s, [n for n in in_reduction_order(s, rest) if n in reduced])
    if not vector:
        index = choose_vector(rules, s, rest)
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
                    beside = prod(_tile_size(rules, loop) for loop in tile)
                    within = min(within, max(1, rules.unit.registers // 2 // beside))
                    chains = min(chains, within)
                    sizes = [n for n in (1, 2, 4, 8, 16) if n <= min(1 << max(0, room), within)]
                    meaning = "vectors of partial results"
                    chains = rules.choices.size(f"{name}.chains", sizes, chains, meaning)
                    rules.out.append(SplitReduction(loop=loop, lanes=size * chains))
                    summed.remove(index)
                    inner, vector = [f"{loop}.o"], [f"{loop}.i"]
            else:
                free.remove(index)
                others = [n for n in s.domain.names if n not in reduced and n != index]
                straight = s.reduction is None and is_short_row(s, index, others, size)
                if extent_of(s, index) > size:
                    vectors = 1 if straight else _vectors_beside(rules, s, index, size, tile)
                    (around,), vector = _cut(rules, loop, vectors * size)
                    inner = [around]
                    if vectors > 1:
                        beside_it, vector = _cut(rules, vector[0], size)
                        tile = [*tile, *beside_it]
                else:
                    vector, straight = [loop], False
    loops = [f"{name}.{n}" for n in free]
    sums = [f"{name}.{n}" for n in summed]
    if vector and vector[0].endswith(".i") and inner and _is_reduced(rules, s, vector[0]):
        order = [*outer, *halves, *loops, *sums, *inner, *tile, *vector]
    else:
        order = [*outer, *halves, *loops, *inner, *sums, *tile, *vector]
    rules.out.append(Reorder(statement=name, loops=in_scope(s, order)))
    for loop in vector:
        rules.out.append(Vectorize(loop=loop))
    for loop in (*tile, *(inner if straight else ())):
        rules.out.append(Unroll(loop=loop))
    for loop in _straight_taps(rules, s, summed, tile):
        rules.out.append(Unroll(loop=loop))
    if s.reduction is not None:
        rules.out.append(Accumulate(statement=name, scope="register"))


def _tile_size(rules: Rules, loop: str) -> int:
    """Iterations of the inner loop of a tile."""
    return next((t.size for t in rules.out if isinstance(t, Tile) and f"{t.loop}.i" == loop), 1)


def _vectors_beside(rules: Rules, s: Statement, index: str, lanes: int, tile: Sequence[str]) -> int:
    """Vectors along ``index`` that are written out side by side."""
    if not is_constant(s, index):
        return 1
    rows = prod(_tile_size(rules, loop) for loop in tile)
    room = min(rules.unit.registers // 2, int(MAX_STRAIGHT_WORK // _straight_work(s))) // rows
    sizes = [n for n in (1, 2, 4, 8) if n == 1 or (n <= room and n * lanes <= extent_of(s, index))]
    return rules.choices.size(f"{s.name}.vectors", sizes, 1, "vectors of a row side by side")


def _sums_in_order(rules: Rules, s: Statement, summed: list[str]) -> list[str]:
    """The reduced indices, outermost first, in the order that is chosen where any will do."""
    if not 2 <= len(summed) <= 3 or not _may_split(rules, s) or bounding_indices(s):
        return summed
    orders = [" ".join(o) for o in permutations(summed)]
    meaning = "loops of a sum, outermost first"
    return rules.choices.word(f"{s.name}.sums", orders, " ".join(summed), meaning).split()


def _straight_taps(rules: Rules, s: Statement, summed: list[str], tile: Sequence[str]) -> list[str]:
    """Which loops over ``summed`` are written out: as many as is chosen, the innermost first."""
    if not summed or s.reduction is None or s.reduction.scan:
        return []
    counts, taps = [0], 1
    beside = prod(_tile_size(rules, loop) for loop in tile)
    for number, n in enumerate(reversed(summed), 1):
        taps *= extent_of(s, n)
        if taps > MAX_STRAIGHT_TAPS // beside or not is_constant(s, n):
            break
        counts.append(number)
    all_taps = prod(extent_of(s, n) for n in summed)
    default = len(summed) if all_taps <= MAX_UNROLLED_TAPS else 0
    meaning = "loops of a sum that are written out, innermost first"
    count = rules.choices.size(f"{s.name}.taps", counts, default, meaning)
    return [f"{s.name}.{n}" for n in summed[len(summed) - count :]]


def _is_reduced(rules: Rules, s: Statement, loop: str) -> bool:
    _, index, *_ = loop_parts(loop, s.name)
    return index in reduced_indices(s)


def _may_split(rules: Rules, s: Statement) -> bool:
    kind = s.reduction
    return kind is not None and kind.monoid.commutative and not kind.scan and not kind.into


def _by_stride(rules: Rules, s: Statement, names: list[str]) -> list[str]:
    write = s.writes[0]
    strides = access_strides(rules.tensors[write.tensor], write.indices, names)
    return sorted(names, key=lambda n: -magnitude(strides[n]))
