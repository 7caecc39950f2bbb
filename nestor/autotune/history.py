"""What a search tried, in order: what the report of a run is drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from nestor.ir.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One schedule of one kernel, and what came of it.

    Attributes:
        kernel: name of its task.
        schedule: that was tried.
        status: as of ``Measurement``.
        ratio: its time over the default's; None unless ``status`` is ``ok``.
        seconds: when it was known, from the start of the run [s]; 0 for a remembered one.
        is_confirmation: it was a winner, measured once more.
        is_remembered: an earlier run measured it.
    """

    kernel: str
    schedule: Schedule
    status: str
    ratio: float | None
    seconds: float = 0.0
    is_confirmation: bool = False
    is_remembered: bool = False
