"""What each thread touches: its share of the lines, what others touch as well, and how its stores
lie among theirs.

Threads take contiguous shares of the iterations of the parallel loops. A core keeps what its thread
touches from call to call if that fits into its own caches, and cores whose stores lie close to each
other's take lines from one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nestor.cost_model.footprint import Move, Stream, lines_touched
from nestor.cost_model.statement_profile import PAGE_BYTES, StatementProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadShare:
    """One thread's part of a kernel.

    Attributes:
        touched: by one thread [bytes]. overlap: what all threads touch, each for itself, over what
            they touch together: 1 if nothing is shared.
        write_run: contiguous bytes that one thread stores before those of another follow.
    """

    touched: float
    overlap: float
    write_run: float


def thread_share(
    profiles: Sequence[StatementProfile], main: StatementProfile, workers: int, line: int
) -> ThreadShare:
    """The share of each of ``workers`` threads. Args: line: of a cache [bytes]."""
    own: dict[str, float] = {}
    whole: dict[str, float] = {}
    for p in profiles:
        parts = _parts(p, workers)
        for s in p.streams:
            if s.where == "memory":
                lines = lines_touched(_shared(s, parts), 0, s.size, line, s.lines[0])
                own[s.tensor] = max(own.get(s.tensor, 0.0), lines)
                whole[s.tensor] = max(whole.get(s.tensor, 0.0), s.lines[0])
    touched = sum(own.values())
    parts = _parts(main, workers)
    runs = [_run(s, parts) for s in main.streams if s.is_write and s.where == "memory"]
    return ThreadShare(
        touched=touched * line,
        overlap=workers * touched / max(1.0, sum(whole.values())) if parts else 1.0,
        write_run=min(runs, default=0.0),
    )


def pages_touched(profile: StatementProfile, position: int, line: int) -> float:
    """Pages of memory that the loops from ``position`` inwards touch."""
    total = 0.0
    for s in profile.streams:
        if s.where == "memory":
            most = max(1.0, s.lines[0] * line / PAGE_BYTES)
            total += lines_touched(s.moves, max(0, position), s.size, PAGE_BYTES, most)
    return total


def _parts(p: StatementProfile, workers: int) -> dict[int, float]:
    """By position of a parallel loop, the share of its iterations that a thread runs."""
    found: dict[int, float] = {}
    left = float(workers)
    for position, level in enumerate(p.levels):
        if level.kind == "parallel":
            taken = max(1.0, min(left, level.count))
            found[position] = 1.0 / taken
            left /= taken
        elif found:
            break
    return found


def _shared(s: Stream, parts: dict[int, float]) -> list[Move]:
    """A stream's moves in one thread."""
    moves = [replace(m, count=m.count * parts.get(m.level, 1.0)) for m in s.moves]
    return [m for m in moves if m.count > 1]


def _run(s: Stream, parts: dict[int, float]) -> float:
    span = float(s.size)
    for move in _shared(s, parts):
        step = move.stride * s.size
        if step > span:
            break
        span += step * (move.count - 1)
    return span
