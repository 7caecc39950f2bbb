"""The polyhedral checker; the only part of Nestor that touches islpy.

Light to import: islpy is loaded when something is checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestor.passes.polyhedral.checker import CHECKER_VERSION, CheckReport, check_nest
    from nestor.passes.polyhedral.memory_plan import check_memory_plan

__all__ = ["CHECKER_VERSION", "CheckReport", "check_memory_plan", "check_nest"]


def __getattr__(name: str) -> Any:
    if name == "check_memory_plan":
        from nestor.passes.polyhedral.memory_plan import check_memory_plan

        return check_memory_plan
    if name in __all__:
        from nestor.passes.polyhedral import checker

        return getattr(checker, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
