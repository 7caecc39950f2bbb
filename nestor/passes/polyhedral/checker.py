"""The one trusted check: does a loop nest compute what its kernel says?

It looks at the nest, never at the steps that made it: a mistake of the scheduler is caught like a
mistake of the schedule. A nest is accepted only if every question is answered with a proof.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import islpy as isl

from nestor.errors import LegalityUnknown
from nestor.ir.loopnest import LoopNest
from nestor.ir.program import Program
from nestor.passes.polyhedral.accumulators import check_accumulators
from nestor.passes.polyhedral.bounds import check_bounds
from nestor.passes.polyhedral.buffers import check_buffers
from nestor.passes.polyhedral.coverage import check_coverage
from nestor.passes.polyhedral.dependences import check_dependences
from nestor.passes.polyhedral.isl_util import Session, context, is_spent
from nestor.passes.polyhedral.model import Model, build_model
from nestor.passes.polyhedral.promotions import check_promotions
from nestor.passes.polyhedral.races import check_races
from nestor.passes.polyhedral.values import check_values

CHECKER_VERSION = "5"
"""Raised whenever what is accepted may change: recorded verdicts of other versions do not count."""

MAX_OPERATIONS = 20_000_000
"""Default budget in isl's own unit; a large tiled convolution takes well under a million."""

MAX_SECONDS = 30.0
"""Default wall-clock limit; looked at between questions to isl."""

QUESTIONS: tuple[tuple[str, Callable[[Model, Session], None]], ...] = (
    # Ordering: values first, for it finds out what every access means. Coverage before the rest,
    # which relies on instances running once and inside the domain.
    ("value", check_values),
    ("coverage", check_coverage),
    ("bounds", check_bounds),
    ("state", check_accumulators),
    ("dependence", check_dependences),
    ("buffer", check_buffers),
    ("promotion", check_promotions),
    ("race", check_races),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a passed check cost.

    Attributes:
        seconds: wall-clock time of each question, and of taking the nest apart (``model``).
        pairs: pairs of accesses or computes asked about.
        queries: questions put to isl.
        computes: computes in the nest.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    pairs: int = 0
    queries: int = 0
    computes: int = 0


def check_nest(
    kernel: Program,
    nest: LoopNest,
    *,
    max_operations: int | None = MAX_OPERATIONS,
    max_seconds: float = MAX_SECONDS,
) -> CheckReport:
    """Prove that ``nest`` computes ``kernel``.

    Args: max_operations: budget of isl operations (None: unlimited). max_seconds: wall-clock limit.
    Raises: ``IllegalSchedule`` with a witness where it does not; ``LegalityUnknown`` where that
        cannot be decided, or not within the budget; ``IRError`` for a malformed nest.
    """
    ctx = context()
    session = Session(time.monotonic() + max_seconds, max_seconds)
    seconds: dict[str, float] = {}
    ctx.reset_operations()
    ctx.set_max_operations(max_operations or 0)
    try:
        start = time.perf_counter()
        model = build_model(kernel, nest)
        seconds["model"] = time.perf_counter() - start
        for name, question in QUESTIONS:
            start = time.perf_counter()
            question(model, session)
            seconds[name] = time.perf_counter() - start
    except isl.Error as error:
        if "maximal number of operations" in str(error) or is_spent():
            raise LegalityUnknown(
                f"kernel '{kernel.name}': the legality check needs more than {max_operations} "
                "isl operations"
            ) from None
        raise
    finally:
        ctx.set_max_operations(0)
        ctx.reset_operations()
    return CheckReport(
        seconds=seconds, pairs=session.pairs, queries=session.queries, computes=len(model.sites)
    )
