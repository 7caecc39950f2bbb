"""Default schedules of kernels that memory bounds: who stores where, and what threads share."""

from __future__ import annotations

import pytest

from nestor.autotune.space import Space
from nestor.ir.parser import parse_program
from nestor.ir.program import Extern
from nestor.ir.schedule import Parallel
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import partition_program
from nestor.target.cpu import parse_target


def space_of(text: str, symbols: str = "") -> Space:
    made = parse_program(f"program p{symbols} {{\n{text}\n}}")
    (part,) = partition_program(made, l2_bytes=1 << 20).parts
    assert not isinstance(part, Extern)
    return Space(canonicalize_kernel(part)[0], parse_target("avx512"))


def knobs(text: str) -> dict[str, object]:
    return dict(space_of(text).default().point)


def transpose(rows: int, columns: int) -> str:
    return f"""input A: f32[{columns}, {rows}]
    output B: f32[{rows}, {columns}]
    statement S over {{ 0 <= i < {rows}, 0 <= j < {columns} }}
      B[i, j] = A[j, i]"""


def test_transposes_run_through_what_they_write() -> None:
    found = knobs(transpose(768, 1000))
    assert (found["S0.across"], found["S0.order"]) == (64, "i0.o i1.o")


def test_lines_read_4_kb_apart_are_used_up_first() -> None:
    found = knobs(transpose(1024, 1000))
    assert (found["S0.across"], found["S0.order"]) == (32, "i1.o i0.o")


def test_partial_lines_are_used_up_first() -> None:
    found = knobs(
        """input A: f32[64, 32, 64, 5]
        output B: f32[64, 32, 5, 64]
        statement S over { 0 <= i < 64, 0 <= j < 32, 0 <= k < 5, 0 <= l < 64 }
          B[i, j, k, l] = A[l, j, i, k]"""
    )
    assert (found["S0.across"], found["S0.order"]) == (16, "i3.o i1 i0")


def pointwise(rows: int, columns: int) -> str:
    return f"""input A: f32[{rows}, {columns}]
    output B: f32[{rows}, {columns}]
    statement S over {{ 0 <= i < {rows}, 0 <= j < {columns} }}
      B[i, j] = A[i, j] * 2.0:f32"""


@pytest.mark.parametrize(
    ("rows", "columns", "shared"),
    [
        (145, 145, 1),  # rows are shares enough of little work
        (8, 2000, 2),  # not eight of them
        (145, 1 << 20, 2),  # nor 145 of much work, for many cores
        (300, 1 << 20, 1),
    ],
)
def test_threads_share_rows_if_there_are_enough(rows: int, columns: int, shared: int) -> None:
    schedule = space_of(pointwise(rows, columns)).default().schedule
    assert sum(isinstance(step, Parallel) for step in schedule) == shared


def test_sizes_that_are_not_known_share_everything() -> None:
    text = pointwise(64, 64).replace("[64", "[N").replace("i < 64", "i < N")
    schedule = space_of(text, "(N: 1..4096)").default().schedule
    assert sum(isinstance(step, Parallel) for step in schedule) == 2


@pytest.mark.parametrize(("table", "rows", "vectors"), [(1000, 1, 8), (50_000, 8, 1)])
def test_rows_from_a_cache_are_gathered_one_by_one(table: int, rows: int, vectors: int) -> None:
    found = knobs(
        f"""parameter T: f32[{table}, 768]
        input A: i64[77]
        output B: f32[77, 768]
        statement S over {{ 0 <= i < 77, 0 <= j < 768 }}
          B[i, j] = T[A[i], j]"""
    )
    assert (found["S0.rows"], found["S0.vectors"]) == (rows, vectors)
