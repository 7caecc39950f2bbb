"""Loops of statements that share rows: normalisations, softmax, attention."""

from __future__ import annotations

import math
from itertools import permutations

from nestor.ir.program import Statement, Tensor
from nestor.ir.schedule import (
    Accumulate,
    ComputeAt,
    Fuse,
    Parallel,
    Reorder,
    Tile,
)
from nestor.passes.contraction import Contraction
from nestor.passes.contraction_schedule import is_expensive, pack_operand
from nestor.passes.contraction_tile import shared_window
from nestor.passes.line_fusion import tiles_inside
from nestor.passes.plain_schedule import plain_inner
from nestor.passes.register_tile import choose_register_tile
from nestor.passes.rows_beside import is_near, waiting_rows
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import (
    block_of,
    bounding_indices,
    extent_of,
    free_indices,
    is_constant,
    loop_parts,
    reuse_extent,
    transposed_pair,
    widest_bytes,
)
from nestor.passes.strides import access_strides
from nestor.passes.transpose_schedule import transposed_loops
from nestor.passes.vector_axis import unit_score
from nestor.passes.window_rows import WindowTile, follow_tile, is_window_of_rows, window_tile

MAX_TILE_ROWS = 30
"""Rows beyond which a tile gains nothing: each vector is used often enough."""

MAX_NEAR_BYTES = 15 << 16
"""Most bytes that a tile of rows keeps in temps: what code generation puts on the stack, less a
little for packed operands."""


def schedule_rows(rules: Rules) -> None:
    """Normalisations, softmax, attention: rows shared outside, each statement alone inside."""
    shared = rules.fused.shared
    first = rules.statements[0]
    positions = list(range(len(shared[first.name])))
    turned = _turns_lines(rules)
    in_lines = turned or _in_lines(rules)
    reusing = set(positions) if in_lines else _reusing(rules, positions)
    order = sorted(positions, key=lambda p: (p not in reusing, _row_stride(rules, p)), reverse=True)
    order = _choose_order(rules, order)
    tile_at, row_tile = (None, 1) if in_lines else _row_tile(rules, positions)
    vector_at = _shared_vector(rules, positions) if tile_at is None and not turned else None
    beside_at, beside = None, 1
    if order and tile_at is None and vector_at is None and not in_lines:
        beside_at, beside = order[-1], _choose_beside(rules, order[-1])
    outer_first: list[str] = []
    window: WindowTile | None = None
    in_registers: list[str] = []
    for s in rules.statements:
        at, size = (tile_at, row_tile) if beside == 1 else (beside_at, beside)
        outer, inner_halves = _shared_loops(rules, s, order, at, size, vector_at)
        c = rules.contraction(s)
        if c is not None and not inner_halves and (in_lines or is_window_of_rows(s, c)):
            window = window_tile(rules, s, c, outer)
        elif turned and transposed_loops(rules, s, outer, parallel=False):
            window = None
        elif window is not None and follow_tile(rules, window, s, outer_first, outer):
            name = window.statement.writes[0].tensor
            is_alone = rules.tensors[name].role == "temp" and _readers(rules, name) == 1
            if is_alone and not is_expensive(s):
                in_registers.append(name)
            window = None
            continue
        else:
            window = None
            _inner_loops(rules, s, outer, inner_halves, tile_at, beside > 1)
        if s is first:
            outer_first = outer
        else:
            for a, b in zip(outer_first, outer):
                rules.out.append(Fuse(first=a, second=b))
    for loop in rules.parallel_loops("rows", outer_first):
        rules.out.append(Parallel(loop=loop))
    rules.keep_temps("local")
    for name in in_registers:
        rules.out.append(ComputeAt(tensor=name, scope="register"))


def _in_lines(rules: Rules) -> bool:
    """Whether the rows are lines of a convolution, and a product takes them: the register tiles of
    both lie inside a line."""
    found = [c for s in rules.statements if (c := rules.contraction(s)) is not None]
    return (
        len(found) == 2
        and shared_window(found[0].statement, found[0]) is not None
        and all(tiles_inside(c, rules.fused.shared[c.statement.name]) for c in found)
    )


def _turns_lines(rules: Rules) -> bool:
    """Whether the rows are lines of a product whose results are stored along other memory."""
    first, *rest = rules.statements
    c = rules.contraction(first)
    if c is None or len(rest) != 1 or transposed_pair(rules.tensors, rest[0]) is None:
        return False
    return shared_window(first, c) is None and tiles_inside(c, rules.fused.shared[first.name])


def _readers(rules: Rules, name: str) -> int:
    return sum(any(x.tensor == name for x in s.loads) for s in rules.statements)


def _row_stride(rules: Rules, position: int) -> int:
    last = rules.statements[-1]
    index = rules.fused.shared[last.name][position]
    write = last.writes[0]
    stride = access_strides(rules.tensors[write.tensor], write.indices, [index])[index]
    return 0 if stride is None else abs(stride)


def _reusing(rules: Rules, positions: list[int]) -> set[int]:
    """Shared indices that every contraction's vector operand stays the same along: innermost, so
    that one head's keys and values stay near a core for all of its rows."""
    found = set(positions)
    for s in rules.statements:
        c = rules.contraction(s)
        if c is not None and is_window_of_rows(s, c):
            return set(positions)
        if c is not None:
            found &= {p for p in found if rules.fused.shared[s.name][p] in c.rows}
    return found


def _choose_order(rules: Rules, order: list[int]) -> list[int]:
    """The shared positions, outermost first, in the order that is chosen."""
    if not 2 <= len(order) <= 3 or any(bounding_indices(s) for s in rules.statements):
        return order
    names = [str(p) for p in order]
    orders = [" ".join(o) for o in permutations(names)]
    meaning = "shared loops by their number, outermost first"
    word = rules.choices.word("rows.order", orders, " ".join(names), meaning)
    return [int(p) for p in word.split()]


def _choose_beside(rules: Rules, position: int) -> int:
    """Rows along a shared index that each statement takes side by side: short rows wait for
    themselves, and several at once do not."""
    rows = [(s, rules.fused.shared[s.name][position]) for s in rules.statements]
    if any(bounding_indices(s) or not is_constant(s, n) or s.scatter for s, n in rows):
        return 1
    sizes = [n for n in (1, 2, 4) if n <= min(extent_of(s, name) for s, name in rows)]
    default = max(n for n in sizes if n <= _waiting_rows(rules))
    return rules.choices.size("rows", sizes, default, "rows side by side")


def _waiting_rows(rules: Rules) -> int:
    """Rows side by side that make up for what each waits for at its end."""
    cut: list[tuple[Statement, float]] = []
    rows = 1
    for s in rules.statements:
        shared = rules.fused.shared[s.name]
        own = [n for n in s.domain.names if n not in shared]
        kind = s.reduction
        if len(own) > 1 or (kind is not None and (kind.scan or kind.into)):
            return 1
        if not all(is_constant(s, n) for n in (*own, *shared)) or rules.contraction(s) is not None:
            return 1
        lanes = rules.unit.lanes(widest_bytes(s))
        rows = math.prod(extent_of(s, n) for n in shared)
        cut.append((s, math.prod(extent_of(s, n) for n in own) / lanes))
    return waiting_rows(cut, rows, bound=not is_near(rules.kernel.tensors))


def _row_tile(rules: Rules, positions: list[int]) -> tuple[int | None, int]:
    """The shared index that the contractions of the group reuse, and its tile."""
    for s in rules.statements:
        c = rules.contraction(s)
        if c is None:
            continue
        for row in c.rows:
            if row in rules.fused.shared[s.name]:
                lanes = rules.unit.lanes(4)
                most = _most_rows(rules)
                block = block_of(s, row)
                if block is not None:
                    parts = (n for n in range(min(block, most), 0, -1) if block % n == 0)
                    return rules.fused.shared[s.name].index(row), next(parts)
                tile, _ = choose_register_tile(
                    reuse_extent(s, row),
                    reuse_extent(s, c.vector),
                    lanes,
                    rules.unit.registers,
                )
                tile = min(tile, most)
                if is_constant(s, row):
                    sizes = range(1, min(most, reuse_extent(s, row), MAX_TILE_ROWS) + 1)
                    tile = rules.choices.size("rows", sizes, tile, "rows that statements share")
                return rules.fused.shared[s.name].index(row), tile
    return None, 1


def _most_rows(rules: Rules) -> int:
    """Most rows of a tile whose temps fit on a kernel's stack together."""
    row_bytes = 0
    for t in rules.kernel.tensors:
        if t.role == "temp" and rules.is_bounded(t):
            row_bytes += _row_elements(rules, t) * t.dtype.bytes
    return max(1, MAX_NEAR_BYTES // max(1, row_bytes))


def _row_elements(rules: Rules, t: Tensor) -> int:
    """What is kept of ``t`` for each row [elements]."""
    for s in rules.statements:
        rows = {str(n) for n in rules.fused.shared[s.name]}
        for w in s.writes:
            if w.tensor == t.name:
                kept = (e for i, e in zip(w.indices, t.shape) if str(i) not in rows)
                return math.prod(e.const for e in kept)
    return 0


def _shared_vector(rules: Rules, positions: list[int]) -> int | None:
    """A shared index along which most memory is contiguous; it is then split for vectors."""
    best, best_score = None, 0.0
    scores: dict[int, float] = {}
    for p in positions:
        if any(rules.fused.shared[s.name][p] in bounding_indices(s) for s in rules.statements):
            continue
        score = 0.0
        for s in rules.statements:
            score += unit_score(rules, s, rules.fused.shared[s.name][p])
        first = rules.statements[0]
        if score > 0 and extent_of(first, rules.fused.shared[first.name][p]) >= 4:
            scores[p] = score
            if score > best_score:
                best, best_score = p, score
    alternatives = 0.0
    for s in rules.statements:
        inner = [n for n in s.domain.names if n not in rules.fused.shared[s.name]]
        alternatives += max((unit_score(rules, s, n) for n in inner), default=0.0)
    default = "own" if best is None or best_score <= alternatives else str(best)
    words = [*(["own"] if alternatives > 0 else []), *map(str, scores)]
    meaning = "shared loop by its number that vectors lie along, or each statement's own"
    word = rules.choices.word("rows.vector", words, default, meaning)
    return None if word == "own" else int(word)


def _shared_loops(
    rules: Rules,
    s: Statement,
    order: list[int],
    tile_at: int | None,
    row_tile: int,
    vector_at: int | None,
) -> tuple[list[str], list[str]]:
    outer: list[str] = []
    inner: list[str] = []
    for p in order:
        index = rules.fused.shared[s.name][p]
        loop = f"{s.name}.{index}"
        size = row_tile if p == tile_at else 0
        if p == vector_at:
            size = rules.unit.lanes(widest_bytes(s))
            size = rules.unit.lanes(max(widest_bytes(t) for t in rules.statements))
        if size and (extent_of(s, index) > size or not is_constant(s, index)):
            rules.out.append(Tile(loop=loop, size=size))
            outer.append(f"{loop}.o")
            inner.append(f"{loop}.i")
        elif size:
            inner.append(loop)
        else:
            outer.append(loop)
    return outer, inner


def _inner_loops(
    rules: Rules,
    s: Statement,
    outer: list[str],
    halves: list[str],
    tile_at: int | None,
    beside: bool,
) -> None:
    """Args: beside: ``halves`` are rows that are written out side by side."""
    c = rules.contraction(s)
    shared = set(rules.fused.shared[s.name])
    if c is not None and c.vector not in shared and tile_at is not None:
        _row_contraction(rules, s, c, outer, halves)
        return
    rest = [n for n in s.domain.names if n not in shared]
    if beside and not (s.reduction is not None and s.reduction.scan):
        plain_inner(rules, s, outer, [], rest, vector_half=False, tile=halves)
    else:
        vector_half = tile_at is None and not beside and bool(halves)
        plain_inner(rules, s, outer, halves, rest, vector_half=vector_half)


def _row_contraction(
    rules: Rules, s: Statement, c: Contraction, outer: list[str], halves: list[str]
) -> None:
    """A contraction inside shared rows: the row tile is in ``halves``, columns are its own."""
    lanes = rules.unit.lanes(max(s.elements[0].dtype.bytes, 4))
    row_tile = 1
    if halves:
        row = loop_parts(halves[0], s.name)[1]
        tiles = [t.size for t in rules.out if isinstance(t, Tile) and t.loop == f"{s.name}.{row}"]
        row_tile = tiles[0] if tiles else reuse_extent(s, row)
    columns = reuse_extent(s, c.vector)
    # Constraints count in blocks: a tile of columns is part of one.
    most = min(columns, block_of(s, c.vector) or columns)
    _, vectors = choose_register_tile(row_tile, most, lanes, rules.unit.registers)
    # The rows are given: as many vectors as leave every sum in a register.
    most_vectors = max(1, rules.unit.registers // (row_tile + 1))
    vectors = max(1, min(vectors, most_vectors))
    if is_constant(s, c.vector):
        sizes = range(1, min(most_vectors, -(-most // lanes)) + 1)
        vectors = rules.choices.size(f"{s.name}.vectors", sizes, vectors, "vectors of a row's tile")
    v = f"{s.name}.{c.vector}"
    shared = set(rules.fused.shared[s.name])
    own = [f"{s.name}.{n}" for n in free_indices(s) if n not in shared and n != c.vector]
    if columns > lanes * vectors or not is_constant(s, c.vector):
        rules.out.append(Tile(loop=v, size=lanes * vectors))
        own.append(f"{v}.o")
        v = f"{v}.i"
    tile: list[str] = []
    if vectors > 1 and columns > lanes:
        rules.out.append(Tile(loop=v, size=lanes))
        tile, v = [f"{v}.o"], f"{v}.i"
    reduced = rules.block_sums(s, c.reduced)
    tile = [*halves, *tile, v]
    rules.out.append(Reorder(statement=s.name, loops=(*outer, *own, *reduced, *tile)))
    rules.annotate_tile(tile)
    rules.out.append(Accumulate(statement=s.name, scope="register"))
    if c.is_packable:
        pack_operand(rules, c, lanes * vectors)
