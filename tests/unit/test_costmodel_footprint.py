"""The footprint model against counting: loops are run and the lines they touch are counted."""

from __future__ import annotations

import itertools

import pytest

from nestor.cost_model.footprint import (
    INSIDE,
    Move,
    Stream,
    lines_touched,
    offset_moves,
    stream_traffic,
)


def counted_lines(moves: list[tuple[int, int]], size: int, line: int = 64) -> int:
    """Distinct lines of ``Σ stride*i`` over all i."""
    places = {
        sum(s * i for (s, _), i in zip(moves, point)) * size // line
        for point in itertools.product(*(range(n) for _, n in moves))
    }
    return len(places)


@pytest.mark.parametrize(
    "moves",
    [
        [(1, 256)],
        [(1, 16), (64, 8)],  # rows of a matrix
        [(64, 32)],  # a column
        [(1, 64), (64, 16)],  # rows that follow each other
        [(4, 64)],  # every fourth element
        [(1, 16), (16, 3), (256, 5)],
        [(1, 3), (1, 30), (100, 3), (100, 28)],  # a window over an image
        [(1, 3), (2, 30), (128, 3), (256, 14)],  # and with stride 2
        [(1000, 7), (1, 1)],
    ],
)
def test_lines_are_as_counted(moves: list[tuple[int, int]]) -> None:
    made = sorted((Move(s, float(n), 0) for s, n in moves), key=lambda m: m.stride)
    got = lines_touched(made, 0, 4, 64, 1e9)
    assert got == pytest.approx(counted_lines(moves, 4), rel=0.2)


def test_lines_are_no_more_than_the_tensor_has() -> None:
    assert lines_touched([Move(1000, 100.0, 0)], 0, 4, 64, 17.0) == 17.0


def test_only_inner_loops_count() -> None:
    moves = [Move(1, 16.0, 2), Move(64, 8.0, 1), Move(4096, 4.0, 0)]
    assert [lines_touched(moves, p, 4, 64, 1e9) for p in range(4)] == [32.0, 8.0, 1.0, 1.0]


def test_neighbours_reach_over_rows() -> None:
    """A five-point star spans three rows, and two more elements in each."""
    loops = [Move(1, 62.0, 1), Move(64, 62.0, 0)]
    apart = offset_moves([65, 1, 129, 64, 66], loops)
    assert sorted((m.stride, m.count) for m in apart) == [(1, 3.0), (64, 3.0)]
    assert all(m.level == INSIDE for m in apart)


def matrix_stream(by_rows: bool) -> Stream:
    """``B[k, j]`` (64 × 512 floats) in loops i, j, k or in loops i, k, j."""
    inner = [Move(1, 512.0, 2), Move(512, 64.0, 1)] if by_rows else []
    moves = inner or [Move(1, 512.0, 1), Move(512, 64.0, 2)]
    lines = tuple(lines_touched(moves, p, 4, 64, 2048.0) for p in range(4))
    return Stream(
        tensor="B", size=4, moves=tuple(moves), lines=lines, depth=3, members=1, is_write=False,
        is_masked=False, per_result=False, where="memory",
    )  # fmt: skip


def test_traffic_follows_from_what_fits() -> None:
    counts = (100.0, 64.0, 512.0)
    rows = matrix_stream(True)
    assert stream_traffic(rows, counts, 0) == 2048  # all of it stays
    assert stream_traffic(rows, counts, 1) == 2048  # reused by i, which holds one of B
    assert stream_traffic(rows, counts, 2) == 100 * 2048  # B comes again for each i
    assert stream_traffic(rows, counts, 3) == 100 * 64 * 32


def test_columns_lose_their_lines() -> None:
    counts = (100.0, 512.0, 64.0)
    columns = matrix_stream(False)
    assert stream_traffic(columns, counts, 2) == 100 * 2048  # a column's lines stay for the next
    assert stream_traffic(columns, counts, 3) == 100 * 512 * 64  # they do not: a line an element
