"""Loops of pointwise statements that read along one index and write along another.

Neither can be given up: elements at a distance cost a cache line each. Tiles, square or as wide as
a line, are read as vectors along the one and written as vectors along the other (the code generator
transposes them between registers), and each line of the output is written at once.
"""

from __future__ import annotations

from nestor.ir.expr import loads
from nestor.ir.program import Statement
from nestor.ir.schedule import Parallel, Reorder, Tile, Unroll, Vectorize
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import bounding_indices, extent_of, is_constant, magnitude
from nestor.passes.strides import access_strides

MIN_EXTENT = 4
"""Along fewer elements a vector gains nothing."""

LINE_BYTES = 64
"""A line of the caches."""


def transposed_loops(rules: Rules, s: Statement, seq: list[str]) -> bool:
    """Schedule ``s`` in square tiles; False if it does not read across what it writes.

    Args: seq: sequential loops, which stay outermost.
    """
    if s.reduction is not None or s.scatter is not None or len(s.writes) != 1:
        return False
    if bounding_indices(s) or rules.tensors[s.writes[0].tensor].dtype.bytes not in (4, 8):
        return False
    pair = _directions(rules, s)
    if pair is None:
        return False
    across, along = pair
    lanes = rules.unit.lanes(rules.tensors[s.writes[0].tensor].dtype.bytes)
    tile: list[str] = []
    outer = {f"{s.name}.{n}": n for n in s.domain.names if n not in pair}
    # Whole lines are written even where vectors are shorter.
    line = LINE_BYTES // rules.tensors[s.writes[0].tensor].dtype.bytes
    for name, size in ((across, max(lanes, line)), (along, lanes)):
        loop = f"{s.name}.{name}"
        if extent_of(s, name) > size or not is_constant(s, name):
            rules.out.append(Tile(loop=loop, size=size))
            outer[f"{loop}.o"] = name
            loop = f"{loop}.i"
        tile.append(loop)
    outer = {loop: n for loop, n in outer.items() if loop not in seq}
    # What is read runs through memory; what is written comes in whole lines anyway.
    loops = sorted(outer, key=lambda loop: -_read_stride(rules, s, outer[loop]))
    rules.out.append(Reorder(statement=s.name, loops=(*seq, *loops, *tile)))
    rules.out.append(Unroll(loop=tile[0]))
    rules.out.append(Vectorize(loop=tile[1]))
    for loop in loops:
        rules.out.append(Parallel(loop=loop))
    return True


def _directions(rules: Rules, s: Statement) -> tuple[str, str] | None:
    """(the index that is written along, the one that is read along), if these are two."""
    names = s.domain.names
    write = s.writes[0]
    written = access_strides(rules.tensors[write.tensor], write.indices, names)
    reads = [
        access_strides(rules.tensors[x.tensor], x.indices, names)
        for e in s.elements
        for x in loads(e)
    ]
    across = [n for n in names if written[n] == 1]
    if len(across) != 1 or not reads or any(None in r.values() for r in reads):
        return None
    for along in names:
        if (
            along != across[0]
            and min(extent_of(s, along), extent_of(s, across[0])) >= MIN_EXTENT
            and is_constant(s, along)
            and is_constant(s, across[0])
            and magnitude(written[along]) > 1
            and any(r[along] == 1 for r in reads)
            and all(r[along] in (0, 1) for r in reads)
            and not any(r[across[0]] == 1 for r in reads)
        ):
            return across[0], along
    return None


def _read_stride(rules: Rules, s: Statement, name: str) -> int:
    return max(
        magnitude(access_strides(rules.tensors[x.tensor], x.indices, [name])[name])
        for e in s.elements
        for x in loads(e)
    )
