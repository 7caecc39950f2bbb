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
from nestor.passes.statement_facts import extent_of, is_constant, magnitude, transposed_pair
from nestor.passes.strides import access_strides

LINE_BYTES = 64
"""A line of the caches."""


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
    for loop in loops if parallel else ():
        rules.out.append(Parallel(loop=loop))
    return True


def _read_stride(rules: Rules, s: Statement, name: str) -> int:
    return max(
        magnitude(access_strides(rules.tensors[x.tensor], x.indices, [name])[name])
        for e in s.elements
        for x in loads(e)
    )
