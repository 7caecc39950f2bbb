"""Loops of contractions: register tiles, long sums in blocks, panels of weights, epilogues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from math import prod

from nestor.ir.affine import Affine
from nestor.ir.program import Statement
from nestor.ir.schedule import (
    Accumulate,
    Fuse,
    Pack,
    Parallel,
    Reorder,
    Tile,
    Unroll,
)
from nestor.passes.analysis import expression_work
from nestor.passes.contraction import Contraction
from nestor.passes.contraction_tile import (
    Window,
    contraction_tile,
    shared_window,
    tile_candidates,
)
from nestor.passes.dot_schedule import dot_index, dot_loops
from nestor.passes.panel_schedule import panel_loops
from nestor.passes.plain_schedule import plain_loops
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import (
    constant_extent,
    extent_of,
    free_indices,
    is_constant,
    loop_parts,
    reuse_extent,
    without_sequential,
)
from nestor.passes.strides import access_strides

_EXPENSIVE = 15.0
"""Work of an epilogue's vector (``expression_work``) from which a tile's are computed in a loop."""

MAX_NARROW_COLUMNS = 32
"""Tiles of fewer columns read the rows so fast that they wait for them: 4 bytes for 2 operations
a column, where a core makes about 32 in the time that 4 bytes take from the last cache."""

MAX_NEAR_ROWS_BYTES = 3 << 17
"""Rows and vector operand that stay in the second-level cache while they are used again [bytes]."""

MAX_UNROLLED_TERMS = 128
"""Multiply-adds in a row that a window's unrolled loops may come to."""

MANY_TAPS = 16
"""Windows of so many taps read each line of memory so often that it should be near: a column of
them is done before the next (drawn depthwise kernels: 0.90 of the time, geometric mean)."""

SET_BYTES = 4096
"""Lines this far apart meet in one set of a first-level cache."""

_COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of tiles that a block may have."""


def schedule_alone(rules: Rules, statement: Statement, sequential: list[str]) -> None:
    """One statement, a contraction or whatever else; ``sequential`` loops stay outside."""
    contraction = rules.contraction(statement)
    if contraction is not None:
        # The time loop of a recurrence is neither a row nor a column of its product.
        contraction = without_sequential(contraction, sequential)
    along = None
    if contraction is not None and not sequential:
        along = dot_index(rules, statement, contraction)
    if contraction is not None and along is not None:
        dot_loops(rules, statement, contraction, along)
    elif contraction is not None and not statement.scatter:
        outer = [n for n in free_indices(statement) if n not in sequential]
        contraction_loops(rules, statement, contraction, outer, sequential)
    elif sequential or not panel_loops(rules, statement):
        plain_loops(rules, statement, sequential, shared=[])


def schedule_epilogue(rules: Rules, anchor: Statement) -> None:
    """A contraction whose pointwise consumers run on its register tile."""
    contraction = rules.contraction(anchor)
    assert contraction is not None
    free = free_indices(anchor)
    parallel, tile = contraction_loops(rules, anchor, contraction, free, [])
    is_looped = any(is_expensive(s) for s in rules.statements[1:])
    for s in rules.statements[1:]:
        rename = dict(zip(rules.fused.shared[anchor.name], rules.fused.shared[s.name]))
        loops, inner = mirror_tile(rules, anchor, s, rename, parallel, tile)
        rules.out.append(Reorder(statement=s.name, loops=(*loops, *inner)))
        for first, second in zip(parallel, loops):
            rules.out.append(Fuse(first=first, second=second))
        rules.annotate_tile(inner[-1:] if is_looped else inner)
    rules.keep_temps("local" if is_looped else "register")


def is_expensive(s: Statement) -> bool:
    """Whether a vector of ``s`` takes so many instructions that a loop over the tile is best.

    Its constants then stand in registers, which written out they share with the tile's sums: all of
    them go to the stack and back around a call each. The loop's one copy has no call.
    """
    return sum(expression_work(e) for e in s.elements) >= _EXPENSIVE


def mirror_tile(
    rules: Rules,
    anchor: Statement,
    s: Statement,
    rename: dict[str, str],
    outer: list[str],
    tile: list[str],
) -> tuple[list[str], list[str]]:
    """Tile an epilogue's loops like the anchor's; returns its outer and inner loops.

    Args: rename: free index of the anchor → index of ``s``. outer, tile: loops of the anchor.
    """

    def other(loop: str) -> str:
        _, index, *halves = loop_parts(loop, anchor.name)
        return ".".join([s.name, rename[index], *halves])

    for step in list(rules.out):
        if isinstance(step, Tile) and step.loop.startswith(f"{anchor.name}."):
            _, index, *_ = loop_parts(step.loop, anchor.name)
            if index in rename:
                rules.out.append(Tile(loop=other(step.loop), size=step.size))
    return [other(p) for p in outer], [other(t) for t in tile]


def contraction_loops(
    rules: Rules,
    s: Statement,
    c: Contraction,
    free: list[str],
    sequential: list[str],
    around: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Register-tile a contraction; returns its outer (parallel) and its tile loops.

    Args: free: its free indices, without those of ``around``: loops that it shares with other
        statements and that threads share out; its own then are not parallel.
    """
    lane_bytes = max(s.elements[0].dtype.bytes, 4)
    lanes = rules.unit.lanes(lane_bytes)
    row, row_tile, vectors = _choose_tile(rules, s, c)
    columns = reuse_extent(s, c.vector)
    name, block = s.name, lanes * vectors
    batch = [n for n in free if n not in (c.vector, row)]
    window = shared_window(s, c)
    # Of loops inside shared rows, and of a product for each of a batch, none has far to reach.
    alone = window is None and not around and not _depends(rules, c, batch)
    outer_columns, v = _column_loops(rules, s, c, block, alone)
    tile: list[str] = []
    if vectors > 1 and columns > lanes:
        rules.out.append(Tile(loop=v, size=lanes))
        tile, v = [f"{v}.o"], f"{v}.i"
    near = 0
    if alone and outer_columns["columns"]:
        near = _choose_near(rules, s, c, row, row_tile, block)
    outer_rows, row_inner = _row_loops(rules, s, row, row_tile, near)
    tile = [*row_inner, *tile, v]
    groups = {"batch": [f"{name}.{n}" for n in batch], **outer_rows, **outer_columns}
    taps = prod(extent_of(s, n) for n in c.reduced)
    if window is not None and taps >= MANY_TAPS and columns * lane_bytes % SET_BYTES:
        order = "rows columns batch"  # a few channels' lines stay near from one window to the next
    elif window is not None:
        order = "batch rows columns"
    elif _depends(rules, c, batch):
        order = "batch columns rows"
    elif near:
        order = "batch far columns rows"
    else:
        order = "columns batch rows"
    outer = _choose_order(rules, s, groups, order)
    c = _choose_sums(rules, c, None if window is None else window.tap)
    reduced = rules.block_sums(s, c.reduced)
    if window is None and not sequential:
        _choose_unrolled(rules, s, reduced)
    seq = [rules.sequential_loop(s, n) for n in sequential]
    rules.out.append(Reorder(statement=name, loops=(*around, *seq, *outer, *reduced, *tile)))
    for loop in () if around else rules.parallel_loops(name, outer):
        rules.out.append(Parallel(loop=loop))
    if window is not None:
        _unroll_window(rules, s, window, row_tile * vectors, reduced)
    rules.annotate_tile(tile)
    rules.out.append(Accumulate(statement=name, scope="register"))
    if c.is_packable and c.vector_operand is not None and _choose_panels(rules, c):
        pack_operand(rules, c, block if columns > block else lanes * vectors)
    return outer, tile


def _choose_tile(rules: Rules, s: Statement, c: Contraction) -> tuple[str | None, int, int]:
    """The index of the register tile's rows, the number of rows, and of vectors."""
    row, rows, vectors = contraction_tile(s, c, rules.unit)
    if is_constant(s, c.vector) and (row is None or is_constant(s, row)):
        tiles = tile_candidates(s, c, rules.unit, row, vectors)
        meaning = "rows and vectors of a register tile"
        rows, vectors = rules.choices.sizes(f"{s.name}.tile", tiles, (rows, vectors), meaning)
    return row, rows, vectors


def _column_loops(
    rules: Rules, s: Statement, c: Contraction, block: int, alone: bool
) -> tuple[dict[str, list[str]], str]:
    """Loops over tiles of columns by name of their group, and the loop inside a tile."""
    v, columns = f"{s.name}.{c.vector}", reuse_extent(s, c.vector)
    groups: dict[str, list[str]] = {"wide": [], "columns": []}
    if columns <= block and is_constant(s, c.vector):
        return groups, v
    if alone and is_constant(s, c.vector):
        sizes = [0, *(n for n in _COUNTS if 2 * n * block <= columns)]
        meaning = "tiles of columns that all rows are taken for before the next ones; 0: all"
        wide = rules.choices.size(f"{s.name}.wide", sizes, 0, meaning)
        if wide:
            rules.out.append(Tile(loop=v, size=wide * block))
            groups["wide"], v = [f"{v}.o"], f"{v}.i"
    rules.out.append(Tile(loop=v, size=block))
    groups["columns"] = [f"{v}.o"]
    return groups, f"{v}.i"


def _row_loops(
    rules: Rules, s: Statement, row: str | None, row_tile: int, near: int
) -> tuple[dict[str, list[str]], list[str]]:
    """Loops over tiles of rows by name of their group, and those inside a tile."""
    groups: dict[str, list[str]] = {"far": [], "rows": []}
    if row is None:
        return groups, []
    rows, inner = reuse_extent(s, row), f"{s.name}.{row}"
    if near and near * row_tile < rows:
        rules.out.append(Tile(loop=inner, size=near * row_tile))
        groups["far"], inner = [f"{inner}.o"], f"{inner}.i"
    if rows > row_tile or not is_constant(s, row):
        rules.out.append(Tile(loop=inner, size=row_tile))
        groups["rows"], inner = [f"{inner}.o"], f"{inner}.i"
    return groups, [inner]


def _choose_near(
    rules: Rules, s: Statement, c: Contraction, row: str | None, row_tile: int, block: int
) -> int:
    """Tiles of rows that all columns are taken for before the next ones; 0: all of them."""
    near = _rows_near(s, c, row, row_tile, block)
    if row is None or not is_constant(s, row):
        return near
    sizes = [0, *(n for n in _COUNTS if 2 * n * row_tile <= reuse_extent(s, row))]
    meaning = "tiles of rows that all columns are taken for before the next ones; 0: all"
    return rules.choices.size(f"{s.name}.near", sizes, near, meaning)


def _choose_order(
    rules: Rules, s: Statement, groups: dict[str, list[str]], default: str
) -> list[str]:
    """The loops around the sums: groups of them in the order that is chosen."""
    given = [g for g in (*default.split(), "wide", "far") if groups[g]]
    # Of loops whose names stand twice, those beyond the near ones come first, as wide as can be.
    given = sorted(dict.fromkeys(given), key=lambda g: g != "wide")
    orders = [
        " ".join(order)
        for order in permutations(given)
        if _is_outside(order, "far", "rows") and _is_outside(order, "wide", "columns")
    ]
    word = " ".join(given)
    order = rules.choices.word(f"{s.name}.order", orders, word, "loops around the sums")
    return [loop for group in order.split() for loop in groups[group]]


def _is_outside(order: Sequence[str], outer: str, inner: str) -> bool:
    both = outer in order and inner in order
    return not both or order.index(outer) < order.index(inner)


def _choose_sums(rules: Rules, c: Contraction, last: str | None) -> Contraction:
    """The contraction with its summed indices in the order that is chosen, ``last`` innermost."""
    summed = [n for n in c.reduced if n != last]
    after = [] if last is None else [last]
    orders = [" ".join(o) for o in permutations(summed)] if len(summed) <= 3 else []
    name = f"{c.statement.name}.sums"
    order = rules.choices.word(name, orders, " ".join(summed), "loops of a sum, outermost first")
    return replace(c, reduced=(*order.split(), *after))


def _choose_panels(rules: Rules, c: Contraction) -> bool:
    """Whether the vector operand is stored in panels; else it is read as it lies, where that is
    along the vectors."""
    operand = c.vector_operand
    assert operand is not None
    tensor = rules.tensors[operand.tensor]
    strides = access_strides(tensor, operand.indices, [c.vector])
    ways = ["panels", "plain"] if strides[c.vector] == 1 and tensor.layout is None else ["panels"]
    meaning = "how the weights are stored"
    return rules.choices.word(f"{c.statement.name}.stored", ways, "panels", meaning) == "panels"


def _choose_unrolled(rules: Rules, s: Statement, reduced: list[str]) -> None:
    """Write some terms of the innermost sum out, if that is chosen; changes ``reduced``."""
    if not reduced:
        return
    _, index, *halves = loop_parts(reduced[-1], s.name)
    extent = constant_extent(s, index)
    for step in rules.out:
        if halves and isinstance(step, Tile) and f"{step.loop}.i" == reduced[-1]:
            extent = step.size if extent is not None and extent % step.size == 0 else None
    if extent is None or any(index in x.variables() for x in s.domain.constraints):
        return
    sizes = [n for n in (1, 2, 4, 8) if extent % n == 0 and n < extent]
    size = rules.choices.size(f"{s.name}.unrolled", sizes, 1, "terms of a sum written out")
    if size > 1:
        loop = reduced[-1]
        rules.out.append(Tile(loop=loop, size=size))
        rules.out.append(Unroll(loop=f"{loop}.i"))
        reduced[-1:] = [f"{loop}.o", f"{loop}.i"]


def _rows_near(s: Statement, c: Contraction, row: str | None, row_tile: int, block: int) -> int:
    """Tiles of rows that all columns are taken for before the next ones; 0: columns are outermost.

    Each tile of columns reads all rows again. Narrow tiles of many rows, which no cache near the
    core holds, then wait for them; some rows at a time stay near, and the vector operand is read
    again for each such block instead.
    """
    if row is None or block >= MAX_NARROW_COLUMNS or not is_constant(s, row):
        return 0
    if not all(is_constant(s, n) for n in (c.vector, *c.reduced)):
        return 0
    size = s.elements[0].dtype.bytes
    row_bytes = prod(reuse_extent(s, n) for n in c.reduced) * size
    columns, rows = reuse_extent(s, c.vector), reuse_extent(s, row)
    all_rows = prod(reuse_extent(s, n) for n in c.rows) * row_bytes
    near = max(1, MAX_NEAR_ROWS_BYTES // (row_bytes * row_tile))
    blocks = all_rows // row_bytes / min(near * row_tile, rows)
    vectors_bytes = columns * row_bytes
    again = blocks * vectors_bytes if vectors_bytes > MAX_NEAR_ROWS_BYTES else 0
    if all_rows <= MAX_NEAR_ROWS_BYTES or 2 * (all_rows + again) > all_rows * -(-columns // block):
        return 0
    return near


def _unroll_window(
    rules: Rules, s: Statement, window: Window, terms: int, reduced: list[str]
) -> None:
    """Unroll the taps of a window, so that rows share the loads, and short loops around them."""
    size = terms
    bounded = {n for c in s.domain.constraints for n in c.variables()}
    for loop in reversed(reduced):
        _, index, *halves = loop_parts(loop, s.name)
        extent = constant_extent(s, index)
        if index in bounded and index != window.tap:
            break  # A loop's bounds leave out what unrolled code would test.
        if halves or extent is None or (size * extent > MAX_UNROLLED_TERMS and index != window.tap):
            break
        rules.out.append(Unroll(loop=loop))
        size *= extent


def _depends(rules: Rules, c: Contraction, batch: list[str]) -> bool:
    """Whether the vector operand depends on any of the batch indices."""
    operand = c.vector_operand
    if operand is None:
        return True
    used: set[str] = set()
    for i in operand.indices:
        used |= i.variables() if isinstance(i, Affine) else set()
    return any(n in used for n in batch)


def pack_operand(rules: Rules, c: Contraction, block: int) -> None:
    """Store the vector operand as panels: vector index blocked innermost, reduced as looped."""
    operand = c.vector_operand
    assert operand is not None
    dim_of = {
        next(iter(i.variables())): d
        for d, i in enumerate(operand.indices)
        if isinstance(i, Affine) and i.variables()
    }
    if c.vector not in dim_of or any(
        step.tensor == operand.tensor for step in rules.out if isinstance(step, Pack)
    ):
        return
    v = dim_of[c.vector]
    inner = [dim_of[n] for n in c.reduced if n in dim_of]
    others = [d for d in range(len(operand.indices)) if d != v and d not in inner]
    rules.out.append(
        Pack(tensor=operand.tensor, order=(*others, v, *inner), dims=(v,), blocks=(block,))
    )
