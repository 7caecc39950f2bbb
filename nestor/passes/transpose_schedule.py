"""Loops of pointwise statements that read along one index and write along another.

Neither can be given up: elements at a distance cost a cache line each. Tiles, square or some lines
wide, are read as vectors along the one and written as vectors along the other (the code generator
transposes them between registers). The tiles run through what is written: lines that are stored in
parts, far apart, meet in a cache's sets, and threads whose stores lie side by side take lines from
each other (drawn transposes and copies between layouts: 0.74 and 0.71 of the time that tiles
along what is read take, geometric means). Only where a tile reads parts of lines, or lines that
meet in a set, they run through what is read.
"""

from __future__ import annotations

from itertools import permutations

from nestor.ir.expr import loads
from nestor.ir.program import Statement
from nestor.ir.schedule import Parallel, Reorder, Tile, Unroll, Vectorize
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import extent_of, is_constant, magnitude, transposed_pair
from nestor.passes.strides import access_strides

MAX_ORDERED_LOOPS = 4
"""More loops than that stay in the order of what is read."""

LINE_BYTES = 64
"""A line of the caches."""

SET_BYTES = 4096
"""Lines this far apart meet in one set of a first-level cache."""

MAX_LINES = 4
"""Lines that a tile writes side by side, if it stands alone."""

READ_LINES = 2
"""The same where tiles run through what is read (seven sides of 768 to 8192 floats: 0.62 of the
time that one line takes, geometric mean)."""


def transposed_loops(rules: Rules, s: Statement, seq: list[str], *, parallel: bool = True) -> bool:
    """Schedule ``s`` in square tiles; False if it does not read across what it writes.

    Args: seq: loops that stay outermost: sequential ones, or what ``s`` shares with other
        statements. parallel: the loops around the tiles are.
    """
    pair = transposed_pair(rules.tensors, s)
    if pair is None:
        return False
    across, along = pair
    lanes = rules.unit.lanes(rules.tensors[s.writes[0].tensor].dtype.bytes)
    tile: list[str] = []
    outer = {f"{s.name}.{n}": n for n in s.domain.names if n not in pair}
    # Whole lines are written even where vectors are shorter.
    line = max(lanes, LINE_BYTES // rules.tensors[s.writes[0].tensor].dtype.bytes)
    is_narrow = not parallel or _reads_parts(rules, s, across, along)
    through_read = is_narrow or _reads_one_set(rules, s, across)
    lines = 1 if is_narrow else READ_LINES if through_read else MAX_LINES
    wide = lines * line
    tiled = {across: _choose_across(rules, s, across, lanes, wide), along: lanes}
    blocks = _choose_blocks(rules, s, tiled) if parallel else {}
    for name, size in tiled.items():
        loop = f"{s.name}.{name}"
        if blocks:
            rules.out.append(Tile(loop=loop, size=blocks[name]))
            outer[f"{loop}.o"] = name
            loop = f"{loop}.i"
        if extent_of(s, name) > size or not is_constant(s, name):
            rules.out.append(Tile(loop=loop, size=size))
            outer[f"{loop}.o"] = name
            loop = f"{loop}.i"
        tile.append(loop)
    outer = {loop: n for loop, n in outer.items() if loop not in seq}
    stride = _read_stride if through_read else _write_stride
    loops = sorted(outer, key=lambda loop: -stride(rules, s, outer[loop]))
    if parallel:
        loops = _choose_order(rules, s, loops, blocks)
    rules.out.append(Reorder(statement=s.name, loops=(*seq, *loops, *tile)))
    rules.out.append(Unroll(loop=tile[0]))
    rules.out.append(Vectorize(loop=tile[1]))
    for loop in rules.parallel_loops(s.name, loops, whole_of=s) if parallel else ():
        rules.out.append(Parallel(loop=loop))
    return True


def _reads_parts(rules: Rules, s: Statement, across: str, along: str) -> bool:
    """Whether what a tile reads is shorter than a line."""
    size = rules.tensors[s.writes[0].tensor].dtype.bytes
    return extent_of(s, along) < min(LINE_BYTES // size, extent_of(s, across))


def _reads_one_set(rules: Rules, s: Statement, across: str) -> bool:
    """Whether the lines that a tile reads meet in one set of a cache."""
    size = rules.tensors[s.writes[0].tensor].dtype.bytes
    return _read_stride(rules, s, across) * size % SET_BYTES == 0


def _choose_across(rules: Rules, s: Statement, across: str, lanes: int, default: int) -> int:
    """Elements of a tile along what is written: whole vectors, ``default`` if there are so many."""
    extent = extent_of(s, across)
    sizes = [n * lanes for n in (1, 2, 4) if n == 1 or n * lanes <= extent]
    default = max(n for n in sizes if n <= default)
    meaning = "elements of a tile along what is written"
    return rules.choices.size(f"{s.name}.across", sizes, default, meaning)


def _choose_blocks(rules: Rules, s: Statement, tiled: dict[str, int]) -> dict[str, int]:
    """Sizes of blocks of tiles, which are done before the next block; none by default."""
    if not all(is_constant(s, n) for n in tiled):
        return {}
    most = {n: extent_of(s, n) // (2 * size) for n, size in tiled.items()}
    sizes = [
        (a, b)
        for a in (1, 2, 4, 8, 16)
        for b in (1, 2, 4, 8, 16)
        if all(k <= m for k, m in zip((a, b), most.values())) and 4 <= a * b <= 64
    ]
    meaning = "tiles of a block, along what is written and what is read; 0 0: no blocks"
    chosen = rules.choices.sizes(f"{s.name}.block", [(0, 0), *sizes], (0, 0), meaning)
    return {n: k * size for k, (n, size) in zip(chosen, tiled.items())} if any(chosen) else {}


def _choose_order(
    rules: Rules, s: Statement, loops: list[str], blocks: dict[str, int]
) -> list[str]:
    """The loops around the tiles in the order that is chosen; those in a block stay inside."""
    near = [loop for loop in loops if loop.endswith(".i.o")] if blocks else []
    far = [loop for loop in loops if loop not in near]
    if len(far) > MAX_ORDERED_LOOPS:
        return [*far, *near]
    head = f"{s.name}."
    first, last = ([loop.removeprefix(head) for loop in part] for part in (far, near))
    orders = [" ".join((*a, *b)) for a in permutations(first) for b in permutations(last)]
    default = " ".join((*first, *last))
    order = rules.choices.word(f"{s.name}.order", orders, default, "loops around the tiles")
    return [head + n for n in order.split()]


def _write_stride(rules: Rules, s: Statement, name: str) -> int:
    (write,) = s.writes
    return magnitude(access_strides(rules.tensors[write.tensor], write.indices, [name])[name])


def _read_stride(rules: Rules, s: Statement, name: str) -> int:
    return max(
        magnitude(access_strides(rules.tensors[x.tensor], x.indices, [name])[name])
        for e in s.elements
        for x in loads(e)
    )
