"""The records database: every schedule that was measured, for all runs, processes and machines.

A *record* says: this kernel, on this kind of target, with this many threads, under this schedule,
took these times (beside a reference), or failed like this. Records are never changed; a digest of
its content names each, so that databases merge and files are imported twice without doubles.

* ``record``: ``Record``, ``KernelKey``, ``TargetKey``: immutable, always validated.
* ``store``: ``Records``, the database as the rest of Nestor sees it.
* ``database``, ``schema``, ``rows``: SQLAlchemy over SQLite or PostgreSQL; migrations.
* ``exchange``: export, import, merge. ``upkeep``: prune, verify. ``misses``: why nothing was found.

The database holds data only. Whatever is read back is treated as written by a stranger: bounded,
parsed strictly, compared with its digest, and left out if anything is wrong with it. A schedule
from a record is proved by the checker like any other before code is made from it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestor.autotune.records.checking import BadRecord
    from nestor.autotune.records.database import RecordsWarning
    from nestor.autotune.records.misses import Difference, Finding, find_difference
    from nestor.autotune.records.record import (
        KernelKey,
        Knob,
        Point,
        Record,
        TargetKey,
        current_generator,
    )
    from nestor.autotune.records.store import Records
    from nestor.autotune.records.summary import KernelSummary, Summary
    from nestor.autotune.records.upkeep import Verification

_LAZY = {
    "BadRecord": "checking",
    "Difference": "misses",
    "Finding": "misses",
    "KernelKey": "record",
    "KernelSummary": "summary",
    "Knob": "record",
    "Point": "record",
    "Record": "record",
    "Records": "store",
    "RecordsWarning": "database",
    "Summary": "summary",
    "TargetKey": "record",
    "Verification": "upkeep",
    "current_generator": "record",
    "find_difference": "misses",
}


def __getattr__(name: str) -> Any:
    """Load a part, and SQLAlchemy with it, at first use."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


__all__ = [
    "BadRecord",
    "Difference",
    "Finding",
    "KernelKey",
    "KernelSummary",
    "Knob",
    "Point",
    "Record",
    "Records",
    "RecordsWarning",
    "Summary",
    "TargetKey",
    "Verification",
    "current_generator",
    "find_difference",
]
