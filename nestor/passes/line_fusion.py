"""What takes a convolution's results line by line, so that they never reach memory.

A depthwise convolution and the pointwise product behind it (the second half of an inverted
residual) share lines of the image: a line's results stay in a first- or second-level cache until
the product has read them. So do a convolution, which makes all channels of a pixel together, and
what stores its results plane by plane. Cf. fused tiles of producers and consumers in Halide
(Ragan-Kelley et al., PLDI 2013), where the line is the level at which the producer is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nestor.ir.program import Statement, Tensor
from nestor.passes.contraction import Contraction
from nestor.passes.contraction_tile import shared_window, tile_row
from nestor.passes.statement_facts import constant_extent, transposed_pair

MAX_IDLE = 1 / 16
"""Largest part of the cores' time that lines may leave idle: about what keeping them near gains."""

MIN_TURNED = 16
"""Pixels of a line, and channels, from which storing it plane by plane fills whole cache lines."""


def line_rows(
    first: Contraction,
    second: Contraction,
    shared: Sequence[str],
    rows: Sequence[str | None],
    l2_bytes: int,
) -> list[str | None] | None:
    """What the two still share if ``second`` takes whole lines of ``first``'s results.

    ``first`` costs little and reuses vectors along the line only; ``second`` multiplies by a
    parameter, which every line reads again: as a register tile of it is part of a line either way,
    that costs nothing while the parameter stays in the second-level cache.

    Args: shared: indices of ``first`` that its group shares; rows: those of ``second`` that match
        them, None where none does. l2_bytes: of the cache [bytes].
    Returns: ``rows`` without the one along the line; None if ``second`` does not take lines.
    """
    window = shared_window(first.statement, first)
    if window is None or window.across or window.row not in shared:
        return None
    along = list(shared).index(window.row)
    row = tile_row(second.statement, second)
    if row is None or rows[along] != row or second.row_moves or second.vector in rows:
        return None
    if second.vector_operand_role not in ("parameter", "constant"):
        return None
    if (first.vector_operand_bytes + second.vector_operand_bytes) * 2 > l2_bytes:
        return None
    if first.vector in (shared[p] for p, r in enumerate(rows) if r is not None):
        return None
    left = [None if p == along else r for p, r in enumerate(rows)]
    return left if any(left) else None


def turned_line_rows(
    first: Contraction,
    reader: Statement,
    tensors: Mapping[str, Tensor],
    shared: Sequence[str],
    rows: Sequence[str | None],
    l2_bytes: int,
) -> list[str | None] | None:
    """What a product and ``reader`` still share if that takes whole lines, to store them turned.

    The product's vectors lie along channels, ``reader`` writes along the pixels of a line. On a
    register tile of a few pixels it would store parts of cache lines; over the whole image the
    results would leave the caches near the core first.

    Args: shared: indices of ``first`` that its group shares; rows: those of ``reader`` that match
        them, None where none does. l2_bytes: of the second-level cache [bytes].
    Returns: ``rows`` without those of a line; None if ``reader`` does not turn lines.
    """
    s = first.statement
    along = tile_row(s, first)
    if along is None or not {along, first.vector} <= set(shared):
        return None
    if shared_window(s, first) is not None:
        return None
    if first.vector_operand_role not in ("parameter", "constant"):
        return None
    if first.vector_operand_bytes * 2 > l2_bytes:
        return None
    pair = transposed_pair(tensors, reader)
    line = [list(shared).index(n) for n in (along, first.vector)]
    if pair is None or [rows[p] for p in line] != list(pair):
        return None
    if any((constant_extent(reader, n) or 0) < MIN_TURNED for n in pair):
        return None
    left = [None if p in line else r for p, r in enumerate(rows)]
    single = all(r is not None or constant_extent(s, n) == 1 for r, n in zip(rows, shared))
    return left if single and any(left) else None


def is_balanced(reader: Statement, rows: Sequence[str | None], cores: int) -> bool:
    """Whether the lines, shared out to ``cores``, keep them about equally busy."""
    count = 1
    for r in rows:
        extent = constant_extent(reader, r) if r is not None else 1
        if extent is None:
            return True
        count *= extent
    rounds = -(-count // cores)
    return rounds * cores - count <= MAX_IDLE * rounds * cores


def tiles_inside(c: Contraction | None, shared: Sequence[str]) -> bool:
    """Whether the register tile of ``c`` lies inside rows that share the indices ``shared``."""
    if c is None or c.vector in shared:
        return False
    row = tile_row(c.statement, c)
    return row is not None and row not in shared
