"""What each thread touches, and what is usual among a kernel's schedules."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.cost_model.feature_table import FEATURE_NAMES
from nestor.cost_model.features import KernelFeatures
from nestor.cost_model.inputs import INPUT_NAMES, grouped_inputs, model_inputs
from nestor.ir.parser import parse_program
from nestor.ir.schedule import Parallel, Reorder, Schedule, Tile, Vectorize
from nestor.target.cpu import parse_target

TARGET = parse_target("avx512")
COPY = """program p {
  input A: f32[256, 4096]
  output B: f32[256, 4096]
  statement S over { 0 <= i < 256, 0 <= j < 4096 }
    B[i, j] = A[i, j] * 2.0:f32
}"""


def described(*steps: object, threads: int = 2) -> dict[str, float]:
    features = KernelFeatures(parse_program(COPY), TARGET, threads)
    return features.describe(steps)  # type: ignore[arg-type]


def rows(parallel: str) -> Schedule:
    return (
        Tile(loop="S.j", size=16),
        Reorder(statement="S", loops=("S.i", "S.j.o", "S.j.i")),
        Vectorize(loop="S.j.i"),
        Parallel(loop=parallel),
    )


def test_threads_that_share_rows_store_long_runs() -> None:
    by_rows, by_columns = described(*rows("S.i")), described(*rows("S.j.o"))
    # Half of the rows each, all of them one run; or half of each row.
    assert by_rows["write_run"] == pytest.approx(np.log2(1 + 128 * 4096 * 4))
    assert by_columns["write_run"] == pytest.approx(np.log2(1 + 2048 * 4))
    assert by_rows["thread_bytes"] == pytest.approx(np.log2(1 + 256 * 4096 * 4), abs=1e-6)
    assert by_rows["overlap"] == by_columns["overlap"] == 1


def test_one_thread_touches_everything() -> None:
    alone = described(*rows("S.i"), threads=1)
    assert alone["thread_bytes"] == pytest.approx(np.log2(1 + 2 * 256 * 4096 * 4), abs=1e-6)
    assert alone["overlap"] == 1


def test_what_both_threads_read_overlaps() -> None:
    text = COPY.replace("input A: f32[256, 4096]", "input A: f32[4096]").replace("A[i, j]", "A[j]")
    features = KernelFeatures(parse_program(text), TARGET, 2)
    assert features.describe(rows("S.i"))["overlap"] > 1


def test_tiles_have_rows_and_columns() -> None:
    from nestor.ir.schedule import Unroll

    found = described(
        Tile(loop="S.i", size=4),
        Tile(loop="S.j", size=32),
        Tile(loop="S.j.i", size=16),
        Reorder(statement="S", loops=("S.i.o", "S.j.o", "S.i.i", "S.j.i.o", "S.j.i.i")),
        Unroll(loop="S.i.i"),
        Unroll(loop="S.j.i.o"),
        Vectorize(loop="S.j.i.i"),
    )
    assert (found["main_rows"], found["main_columns"]) == (2, 1)  # log2 of 4 and of 2


def test_pages_are_those_that_inner_loops_touch() -> None:
    found = described(*rows("S.i"))
    # A row of 16 KB of each array, and a vector of each.
    assert found["main_pages_inner"] == pytest.approx(np.log2(1 + 8), abs=0.2)


def test_inputs_are_relative_to_the_schedules_of_the_same_kernel() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((6, len(FEATURE_NAMES)), np.float32)
    groups = np.array([3, 3, 3, 9, 9, 9], np.int32)
    inputs = grouped_inputs(features, groups)
    assert inputs.shape == (6, len(INPUT_NAMES))
    np.testing.assert_array_equal(inputs[:, : len(FEATURE_NAMES)], features)
    for at in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(inputs[at, len(FEATURE_NAMES) :].mean(axis=0), 0, atol=1e-6)
        own = model_inputs(features[at], features[at].mean(axis=0))
        np.testing.assert_allclose(inputs[at], own, atol=1e-6)
    # What is the kernel's own does not differ among its schedules.
    assert not any(name.startswith("relative_op_") for name in INPUT_NAMES)
