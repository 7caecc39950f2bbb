"""Schedules and steps put to the checker, one after the other, and what became of each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nestor.errors import IllegalSchedule, LegalityUnknown, Unsupported, UserError
from nestor.ir.loopnest import LoopNest
from nestor.ir.program import Program
from nestor.ir.schedule import Arrange, Schedule, Step
from nestor.passes.affine_facts import AffineFacts
from nestor.passes.affine_schedule import Reason, explain_schedule, fallback_points
from nestor.passes.affine_space import Space, schedule_of
from nestor.passes.knobs import Choices

if TYPE_CHECKING:
    from nestor.passes.polyhedral.checker import CheckReport

AS_WRITTEN = "the nest as written"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A step, or a whole schedule, and what became of it.

    Attributes:
        what: the step as Python text, or which schedule.
        accepted: it was applied and proved.
        error: the error's family; empty if accepted.
        message: the error's text, with the witness for people.
        question: which question of the checker was answered with no, if one was.
        witness: the counter-example, as the checker gives it.
        seconds: time of the legality check [s].
    """

    what: str
    accepted: bool
    error: str = ""
    message: str = ""
    question: str = ""
    witness: Mapping[str, object] = field(default_factory=dict)
    seconds: float = 0.0


def arranged(program: Program, schedule: Schedule) -> Schedule:
    """``schedule`` from a tree on, whose loops have names: the kernel's own, if it has none."""
    if schedule and isinstance(schedule[0], Arrange):
        return schedule
    from nestor.passes.polyhedral.order_tree import program_tree

    return (Arrange(tree=program_tree(program)), *schedule)


class Trial:
    """A schedule that grows by steps that are proved one after the other."""

    def __init__(self, program: Program):
        self.program = program
        self.schedule: Schedule = ()
        self.verdicts: list[Verdict] = []
        self._proved: tuple[LoopNest, CheckReport] | None = None

    def proved(self) -> tuple[LoopNest, CheckReport]:
        """The nest of ``schedule`` and what its proof took."""
        assert self._proved is not None, "start() comes first, and leaves a nest or raises"
        return self._proved

    def start(self, schedule: Schedule) -> bool:
        """Take ``schedule``, or the nest as written where that is refused; whether it was not."""
        if self._prove(schedule, "the schedule given"):
            return True
        self._prove(arranged(self.program, ()), AS_WRITTEN, must_hold=True)
        return False

    def start_in(self, space: Space, facts: AffineFacts) -> tuple[str, tuple[Reason, ...]]:
        """Take the first point of ``space`` that the checker accepts; its order, and why."""
        for number, point in enumerate(fallback_points(space)):
            what = "the schedule chosen" if number == 0 else f"a simpler one ({number})"
            if self._prove(schedule_of(space, point), what):
                return space.decide_order(Choices(point)), tuple(
                    explain_schedule(space, point, facts)
                )
        self._prove(arranged(self.program, ()), AS_WRITTEN, must_hold=True)
        return "original", ()

    def attempt(self, step: Step) -> None:
        """Add ``step`` if it is legal."""
        self._prove((*self.schedule, step), repr(step))

    def _prove(self, schedule: Schedule, what: str, *, must_hold: bool = False) -> bool:
        from nestor.ir.verifier import verify_nest
        from nestor.passes.nest import apply_schedule
        from nestor.passes.polyhedral import check_nest

        start = time.perf_counter()
        try:
            nest = apply_schedule(self.program, schedule)
            verify_nest(nest)
            start = time.perf_counter()
            report = check_nest(self.program, nest)
        except (IllegalSchedule, LegalityUnknown, UserError, Unsupported) as error:
            if must_hold:
                raise
            self.verdicts.append(_refusal(what, error, time.perf_counter() - start))
            return False
        self.verdicts.append(Verdict(what=what, accepted=True, seconds=time.perf_counter() - start))
        self.schedule, self._proved = schedule, (nest, report)
        return True


def _refusal(what: str, error: Exception, seconds: float) -> Verdict:
    illegal = error if isinstance(error, IllegalSchedule) else None
    return Verdict(
        what=what,
        accepted=False,
        error=type(error).__name__,
        message=str(error),
        question=illegal.question if illegal else "",
        witness=illegal.witness if illegal else {},
        seconds=seconds,
    )
