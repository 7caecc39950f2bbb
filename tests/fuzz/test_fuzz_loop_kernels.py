"""Random loop nests under the untuned heuristic: what runs is what was written.

``pytest tests/fuzz/test_fuzz_loop_kernels.py --fuzz-seed 7 --fuzz-cases 2000`` tries others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.conftest import LOOP_COUNTS
from tests.fuzz.generate_loop_kernels import make_nests
from tests.fuzz.loop_kernel_harness import LoopCounts, run_case

SHARE = 4
"""Of so many cases that the options ask for, one is run: compiling takes long."""

ENOUGH = 40
"""Fewer cases say nothing about shares."""


def test_untuned_schedules(
    fuzz_seed: int, fuzz_cases: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """All results are right, and schedules do something."""
    counts = request.config.stash.setdefault(LOOP_COUNTS, LoopCounts())
    only = request.config.getoption("--fuzz-only")
    numbers = range(fuzz_cases // SHARE) if only is None else [only]
    for number in numbers:
        seed = fuzz_seed * 1_000_000 + number
        try:
            run_case(seed, tmp_path, counts)
        except Exception as error:
            text = make_nests(seed, reassociate=False).text
            raise AssertionError(f"--fuzz-seed {fuzz_seed} --fuzz-only {number}\n{text}") from error
    if len(numbers) < ENOUGH:
        return
    assert sum(counts.equal.values()) > 0.9 * len(numbers), counts.summary()
    assert counts.refused["IllegalSchedule"], counts.summary()
    for step in ("Arrange", "Tile", "Parallel", "Interchange", "Vectorize", "Unroll"):
        assert counts.steps[step], counts.summary()
