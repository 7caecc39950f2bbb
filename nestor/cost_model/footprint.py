"""How many cache lines loops touch, and what therefore crosses each level of the caches.

The model is the classic one of footprints and reuse distances. An access is a sum of strides, one a
loop; the lines that some inner loops touch follow from sorting the strides: those that continue a
contiguous span lengthen it, others multiply it. A cache keeps what is reused if everything touched
between two uses fits into it: reuse carried by a loop is kept where one iteration of that loop
touches no more than the cache holds.

Source: Wolf, Lam, A data locality optimizing algorithm, PLDI 1991; Ferrante, Sarkar, Thrash, On
estimating and enhancing cache effectiveness, LCPC 1991.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from nestor.cost_model.kernel_facts import Address
from nestor.cost_model.loop_structure import Level

ANYWHERE = 1 << 40
"""Stride of a loop along which an access jumps [elements]: never near the last one."""


@dataclass(frozen=True, slots=True)
class Move:
    """``count`` steps of ``stride`` [elements, ≥ 0] by the loop at position ``level``."""

    stride: int
    count: float
    level: int


def loop_moves(address: Address, levels: Sequence[Level]) -> list[Move]:
    """How each loop moves an access, least stride first; loops that do not move it are left out."""
    linear = dict(address.linear)
    moves: list[Move] = []
    for position, level in enumerate(levels):
        stride, inner_stride, outer_stride, period = 0, 0, 0, 0.0
        for index, factor in level.advance:
            if index in address.irregular:
                stride = ANYWHERE
                break
            stride += linear.get(index, 0) * factor
        for part in address.parts if stride != ANYWHERE else ():
            step = abs(sum(c * f for n, c in part.coefficients for i, f in level.advance if i == n))
            if step == 0 or (part.is_mod and step % part.den == 0):
                continue
            if step >= part.den:
                if part.is_mod:
                    inner_stride += part.stride * (step % part.den)
                else:
                    stride += part.stride * (step // part.den)
                continue
            turn = part.den / step
            period = min(period, turn) if period else turn
            if part.is_mod:
                inner_stride += part.stride * step
            else:
                outer_stride += part.stride
        moves += _level_moves(stride, inner_stride, outer_stride, period, level.count, position)
    moves.sort(key=_by_stride)
    return moves


def _by_stride(move: Move) -> int:
    return move.stride


def _level_moves(
    stride: int, inner: int, outer: int, period: float, count: float, position: int
) -> list[Move]:
    """Moves of one loop: ``inner`` strides wrap after ``period`` iterations, ``outer`` ones come
    once a period."""
    if not period:
        total = abs(stride + inner)
        return [Move(total, count, position)] if total and count > 1 else []
    within = min(count, period)
    moves = [Move(abs(stride + inner), within, position)]
    if count > within:
        moves.append(Move(abs(int(stride * within) + outer), count / within, position))
    return [m for m in moves if m.stride and m.count > 1]


def lines_touched(
    moves: Sequence[Move], from_level: int, size: int, line: int, most: float
) -> float:
    """Distinct lines that the loops from position ``from_level`` inwards touch.

    Args: moves: least stride first. size: of an element [bytes]. line: of a cache [bytes].
        most: of the whole tensor [lines].
    """
    span = float(size)
    rows, row_stride, row_count, grain = 1.0, 0, 1.0, 0
    for move in moves:
        if move.level < from_level:
            continue
        step = move.stride * size
        if step <= span or step <= line:
            span += step * (move.count - 1)
        elif row_count > 1 and step <= row_stride * row_count and step % row_stride == 0:
            # Windows overlap: a convolution's rows and taps move through the same dimension.
            row_count += step // row_stride * (move.count - 1)
        else:
            rows *= row_count
            row_stride, row_count = step, move.count
            grain = gcd(grain, step)
    # Rows start at multiples of ``grain``: a span that straddles takes a part of a line more.
    straddling = 1.0 - gcd(grain, line) / line if grain else 0.0
    return min(most, rows * row_count * max(1.0, span / line + straddling))


INSIDE = 1 << 20
"""Level of moves between accesses of one instance: inside every loop."""


def offset_moves(offsets: Sequence[int], moves: Sequence[Move]) -> list[Move]:
    """Moves between accesses that differ by constants, in terms of the loops' strides.

    ``A[i-1, j]``, ``A[i+1, j]`` and ``A[i, j]`` reach over three rows: three steps of the stride
    that ``i`` has. The box around the offsets counts, as if it were full.
    """
    rest = [o - min(offsets) for o in offsets]
    out: list[Move] = []
    for stride in sorted({m.stride for m in moves if m.stride != ANYWHERE}, reverse=True):
        steps = [(r + stride // 2) // stride for r in rest]
        rest = [r - q * stride for r, q in zip(rest, steps)]
        reach = max(steps) - min(steps)
        if reach:
            out.append(Move(stride, reach + 1.0, INSIDE))
    return out


@dataclass(frozen=True, slots=True)
class Stream:
    """Accesses of one statement that move alike through one tensor.

    Attributes:
        tensor: whose bytes they are in.
        size: of an element [bytes].
        moves: of its loops, least stride first.
        lines: touched by the loops from each position inwards [lines].
        depth: positions below which the access is in registers or a buffer of its own.
        members: how many accesses there are.
        is_write: whether they store.
    """

    tensor: str
    size: int
    moves: tuple[Move, ...]
    lines: tuple[float, ...]
    depth: int
    members: int
    is_write: bool
    is_masked: bool
    per_result: bool
    where: str

    def moved_by(self, position: int) -> bool:
        """Whether the loop at ``position`` moves it."""
        return any(m.level == position for m in self.moves)


def stream_traffic(stream: Stream, counts: Sequence[float], fits: int) -> float:
    """Lines that a stream brings into a cache.

    Args: counts: mean iterations of each loop. fits: the outermost position whose loops, together,
        touch no more than the cache holds; past the innermost loop where none does.
    """
    fits = min(fits, stream.depth)
    if fits == 0:
        return stream.lines[0]
    # Reuse carried by the loop just outside is kept; so is that of loops around it that do not
    # move the access, as long as none in between does.
    at = fits - 1
    traffic = stream.lines[at]
    kept = not stream.moved_by(at)
    for position in range(at - 1, -1, -1):
        if kept and not stream.moved_by(position):
            continue
        kept = False
        traffic *= counts[position]
    return traffic
