"""What Nestor does to a loop kernel and why, as plain data: ``explain_kernel → Explanation``.

The text for people is ``explaining_text``'s, the picture ``picture``'s. Every verdict is the
checker's: a step that a person tries is applied and proved like any other.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.errors import Unsupported, UserError
from nestor.explaining_dependences import (
    DependenceRow,
    LoopRow,
    dependence_rows,
    loop_rows,
    row_to_dict,
)
from nestor.explaining_proofs import Trial, Verdict, arranged
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import Schedule, Step, schedule_to_json
from nestor.nest_text import condition, nest_lines, program_lines, statement_lines
from nestor.passes.affine_facts import Proposal, dependence_to_json
from nestor.passes.affine_schedule import Reason, affine_space
from nestor.proposing import propose
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.loop_kernel import Kernel
    from nestor.passes.polyhedral.checker import CheckReport

LIMIT_SECONDS = 2.0
"""For finding dependences and proposals, as a compilation takes them; what is missing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementLine:
    """A statement: its name, what one instance does, and the line it comes from (0: unknown)."""

    name: str
    text: str
    file: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All about one kernel; ``to_dict`` gives plain data for JSON.

    Attributes:
        kernel, file, line: the function, and where it is.
        target: the CPU; reassociate: sums may be taken in any order.
        notes: what was done before any schedule (sums recognised, sizes restricted).
        program: what schedules apply to, after that.
        before, after: the nest as written and as it runs, as lines.
        dependences, loops: what must be kept, and which loops it binds.
        orders: the orders that were proposed; order: the one chosen, ``given`` for a person's.
        schedule, reasons: the steps, and why.
        verdicts: on schedules until one is accepted, then on each step tried on top of it.
        check: questions and time of the legality check of the nest that runs.
        seconds: time by phase [s].
        unfinished: what was given up for lack of time.
    """

    kernel: str
    file: str
    line: int
    target: str
    reassociate: bool
    sizes: Mapping[str, int]
    notes: tuple[str, ...]
    program: Program
    statements: tuple[StatementLine, ...]
    before: tuple[str, ...]
    dependences: tuple[DependenceRow, ...]
    loops: tuple[LoopRow, ...]
    orders: tuple[Proposal, ...]
    order: str
    schedule: Schedule
    reasons: tuple[Reason, ...]
    verdicts: tuple[Verdict, ...]
    after: tuple[str, ...]
    check: CheckReport
    seconds: Mapping[str, float]
    unfinished: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: numbers, texts, lists and dictionaries."""
        from nestor.ir.printer import print_program

        special = ("program", "dependences", "orders", "schedule", "reasons", "check")
        names = [f.name for f in dataclasses.fields(self) if f.name not in special]
        out: dict[str, Any] = {name: plain_data(getattr(self, name)) for name in names}
        out["program"] = print_program(self.program)
        out["dependences"] = [row_to_dict(row) for row in self.dependences]
        out["orders"] = [
            {"origin": p.origin, "is_legal": p.is_legal, "seconds": p.seconds} for p in self.orders
        ]
        out["schedule"] = schedule_to_json(self.schedule)
        out["reasons"] = [
            {
                "choice": r.choice,
                "reason": r.reason,
                "dependence": dependence_to_json(r.dependence) if r.dependence else None,
            }
            for r in self.reasons
        ]
        out["check"] = plain_data(self.check)
        return out


def plain_data(value: object) -> Any:
    """``value`` with dataclasses and mappings as dictionaries, tuples as lists, others as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain_data(v) for k, v in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [plain_data(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def explain_kernel(
    kernel: Kernel,
    target: CpuTarget,
    *,
    sizes: Mapping[str, int] | None = None,
    reassociate: bool | None = None,
    schedule: Schedule | None = None,
    attempts: Sequence[Step] = (),
    limit_seconds: float = LIMIT_SECONDS,
) -> Explanation:
    """Explain ``kernel``.

    Args:
        sizes: of symbols; the schedule is chosen for them. None: for any.
        reassociate: None: as the kernel says.
        schedule: a person's, in place of the chosen one; empty: the nest as written.
        attempts: steps to try on top, in order; what is refused is left out of the next.
    Raises: ``UserError`` for a size that the kernel does not have, or a kernel that is out of
        bounds at any size; ``Unsupported`` for a program that has no schedule tree.
    """
    source = kernel.__nestor_kernel__.source
    clock = _Clock()
    reassociate = kernel.reassociate if reassociate is None else reassociate
    given_sizes = dict(sizes or {})
    _check_sizes(kernel.program, given_sizes)
    program, notes = _prepare(kernel, reassociate)
    clock.lap("prepare")
    facts = propose(program, limit_seconds=limit_seconds)
    clock.lap("dependences")
    trial = Trial(program)
    if schedule is None:
        space = affine_space(
            program,
            target,
            reassociate=reassociate,
            sizes=given_sizes or None,
            propose=lambda *_: facts,
        )
        clock.lap("choose")
        order, reasons = trial.start_in(space, facts)
    else:
        reasons = ()
        order = "given" if trial.start(arranged(program, schedule)) else "original"
    for step in attempts:
        trial.attempt(step)
    clock.lap("prove")
    rows = dependence_rows(facts)
    nest, report = trial.proved()
    return Explanation(
        kernel=kernel.name,
        file=source.file,
        line=source.first_line,
        target=target.cpu,
        reassociate=reassociate,
        sizes=given_sizes,
        notes=notes,
        program=program,
        statements=tuple(_statement_lines(program)),
        before=tuple(program_lines(kernel.program)),
        dependences=rows,
        loops=loop_rows(facts, rows),
        orders=facts.proposals,
        order=order,
        schedule=trial.schedule,
        reasons=reasons,
        verdicts=tuple(trial.verdicts),
        after=tuple(nest_lines(nest)),
        check=report,
        seconds=clock.seconds,
        unfinished=facts.unfinished,
    )


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """``phase`` ends now."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now


# What schedules apply to


def _check_sizes(program: Program, sizes: Mapping[str, int]) -> None:
    known = [s.name for s in program.symbols]
    for name, value in sizes.items():
        if name not in known:
            have = f"its sizes are {', '.join(known)}" if known else "it has no sizes"
            raise UserError(f"kernel '{program.name}' has no size '{name}'; {have}")
        if value < 0:
            raise UserError(f"{name}={value}: a size cannot be negative")


def _prepare(kernel: Kernel, reassociate: bool) -> tuple[Program, tuple[str, ...]]:
    """The Program that is compiled for sizes of at least 1, and what was done to get it."""
    from nestor.kernel_native import Conditions
    from nestor.passes.affine_pipeline import prepare_affine

    # A certain error is refused with its witness, as a call would.
    conditions = Conditions(kernel.program)
    found, program = conditions.found, conditions.restrict(0, 1)
    notes = ["sizes are taken to be at least 1"] if program.symbols else []
    if found.outside:
        text = " and ".join(condition(c) for c in found.pieces[0])
        notes.append(f"accesses stay inside their arrays if {text}; asked at each call")
    prepared = prepare_affine(program, reassociate=reassociate)
    names = {s.name for s in program.statements}
    for s in prepared.statements:
        if isinstance(s, Statement) and s.reduction is not None:
            loops = ", ".join(s.reduction.indices)
            kind = s.reduction.monoid.name
            notes.append(f"{s.name} is a {kind} over {loops}, in any order (reassociate)")
        if s.name not in names:
            notes.append(f"{s.name} is part of a statement, split where it reads its own results")
    return prepared, tuple(notes)


def _statement_lines(program: Program) -> list[StatementLine]:
    lines = []
    for s in program.statements:
        if not isinstance(s, Statement):
            raise Unsupported(f"kernel '{program.name}': '{s.name}' has no instances to explain")
        origin = s.origin
        lines.append(
            StatementLine(
                name=s.name,
                text="; ".join(statement_lines(s)),
                file=Path(origin.file).name if origin else "",
                line=origin.line if origin else 0,
            )
        )
    return lines
