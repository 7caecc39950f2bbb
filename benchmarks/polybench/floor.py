"""The least time that a loop kernel takes on a machine."""

from __future__ import annotations

from benchmarks.polybench.case import Case
from benchmarks.roofline import Machine


def floor_seconds(machine: Machine, case: Case, size: str, dtype: str) -> float:
    """The least time for ``case``. Integer operations are not fused: half the peak [s]."""
    operations = case.work(size)
    if case.integer and dtype == "float32":
        operations *= 2
    # For float64 an int32 vector holds twice as many elements, which makes up for it.
    return machine.floor_seconds(operations, case.floor_bytes(size, dtype))
