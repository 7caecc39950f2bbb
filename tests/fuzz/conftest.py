"""The counts of a fuzzing run, printed at its end however quiet the run is."""

from __future__ import annotations

import pytest

from tests.fuzz.affine_harness import AffineCounts
from tests.fuzz.harness import Counts
from tests.fuzz.loop_kernel_harness import LoopCounts

COUNTS = pytest.StashKey[Counts]()
AFFINE_COUNTS = pytest.StashKey[AffineCounts]()
LOOP_COUNTS = pytest.StashKey[LoopCounts]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """What happened, over all random programs."""
    counts = config.stash.get(COUNTS, None)
    if counts is not None:
        terminalreporter.section("random programs and schedules")
        terminalreporter.write_line(counts.summary())
    affine = config.stash.get(AFFINE_COUNTS, None)
    if affine is not None:
        terminalreporter.section("affine programs and steps on schedule trees")
        terminalreporter.write_line(affine.summary())
    loops = config.stash.get(LOOP_COUNTS, None)
    if loops is not None:
        terminalreporter.section("loop kernels and the untuned heuristic")
        terminalreporter.write_line(loops.summary())
