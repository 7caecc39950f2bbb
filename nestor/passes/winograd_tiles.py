"""The transforms of Winograd's F(2, 3) as expressions, along one dimension after the other.

A tile of four inputs and a window of three taps give two outputs. Positions in a tile of several
dimensions are tuples; lists of elements are in lexicographic order of position.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from nestor.ir.expr import Expr, binary, const
from nestor.ir.types import DType

TAPS = 3
OUTPUTS = 2
POINTS = 4
"""Elements of a tile along one dimension: ``OUTPUTS + TAPS - 1``, and as many products."""

Position = tuple[int, ...]


def positions(extents: Sequence[int]) -> Iterator[Position]:
    """All positions of a box, last dimension fastest."""
    return itertools.product(*map(range, extents))


def input_transform(read: Callable[[Position], Expr], rank: int) -> list[Expr]:
    """``B'd`` along each dimension: what multiplies the weights at each point of a tile."""
    values = {at: read(at) for at in positions((POINTS,) * rank)}
    for d in range(rank):
        values = _along(values, d, _input_line)
    return [values[at] for at in sorted(values)]


def output_transform(read: Callable[[Position], Expr], rank: int) -> list[Expr]:
    """``A'm`` along each dimension: the results of a tile from its products' sums."""
    values = {at: read(at) for at in positions((POINTS,) * rank)}
    for d in range(rank):
        values = _along(values, d, _output_line)
    return [values[at] for at in sorted(values)]


def weight_transform(
    read: Callable[[Position], Expr], extents: Sequence[int], d: int, dtype: DType
) -> list[Expr]:
    """``Gw`` along dimension ``d`` of weights that have ``extents`` afterwards."""
    before = [TAPS if x == d else e for x, e in enumerate(extents)]
    values = {at: read(at) for at in positions(before)}
    half = const(0.5, dtype)

    def line(w: list[Expr]) -> list[Expr]:
        ends = binary("add", w[0], w[2])
        plus, minus = binary("add", ends, w[1]), binary("sub", ends, w[1])
        return [w[0], binary("mul", plus, half), binary("mul", minus, half), w[2]]

    values = _along(values, d, line)
    return [values[at] for at in sorted(values)]


def _input_line(x: list[Expr]) -> list[Expr]:
    return [
        binary("sub", x[0], x[2]),
        binary("add", x[1], x[2]),
        binary("sub", x[2], x[1]),
        binary("sub", x[1], x[3]),
    ]


def _output_line(m: list[Expr]) -> list[Expr]:
    return [
        binary("add", binary("add", m[1], m[2]), m[0]),
        binary("sub", binary("sub", m[1], m[2]), m[3]),
    ]


def _along(
    values: dict[Position, Expr], d: int, line: Callable[[list[Expr]], list[Expr]]
) -> dict[Position, Expr]:
    """Apply ``line`` to every row of ``values`` along dimension ``d``."""
    out: dict[Position, Expr] = {}
    length = 1 + max(at[d] for at in values)
    for at in values:
        if at[d]:
            continue
        row = [values[(*at[:d], n, *at[d + 1 :])] for n in range(length)]
        for n, value in enumerate(line(row)):
            out[(*at[:d], n, *at[d + 1 :])] = value
    return out
