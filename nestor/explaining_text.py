"""An ``Explanation`` as text for people: the nests as loops, the rest as tables."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace

from nestor.explaining import Explanation
from nestor.explaining_dependences import DependenceRow
from nestor.explaining_proofs import Verdict
from nestor.ir.schedule import Arrange
from nestor.ir.schedule_tree import print_tree
from nestor.passes.affine_facts import Dependence, Witness
from nestor.tables import Table, format_seconds, render_tables

MAX_LINES = 100
"""Lines of the nest after that are shown by default."""


def explanation_text(
    e: Explanation, *, lines: int = MAX_LINES, width: int | None = None, color: bool = False
) -> str:
    """The whole explanation.

    Args: lines: of the nest after, at most (0: all). width, color: as ``render_tables`` takes them.
    """

    def draw(table: Table) -> str:
        return render_tables([table], width=width, color=color)

    parts = [_head(e), _section("As written", _aligned(e.before))]
    parts.append(draw(dependence_table(e)))
    parts.append(draw(loop_table(e)))
    parts.append(_section(*_schedule(e)))
    if e.reasons:
        parts.append(draw(reason_table(e)))
    parts += [_accepted(v) if v.accepted else _refused(v) for v in e.verdicts]
    parts.append(_section("As it runs", _cut(e.after, lines)))
    parts.append(_section("Legality check", check_lines(e)))
    if e.unfinished:
        parts.append(_section("Not finished", e.unfinished))
    return "\n\n".join(parts)


def _head(e: Explanation) -> str:
    sizes = ", ".join(f"{n}={v}" for n, v in e.sizes.items())
    about = [e.target, "sums in any order" if e.reassociate else "sums in the order written"]
    about += [f"chosen for {sizes}"] if sizes else []
    head = f"{e.kernel} ({e.file}:{e.line}): {', '.join(about)}"
    return "\n".join([head, *(f"  {note}" for note in e.notes)])


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"  {line}" if line else "" for line in lines)])


def _aligned(lines: Sequence[str]) -> list[str]:
    """Notes at the end of lines, below each other where lines are short."""
    split = [line.partition("  # ") for line in lines]
    column = max((len(code) for code, mark, _ in split if mark and len(code) <= 72), default=0)
    return [f"{code.ljust(column)}  # {note}" if mark else code for code, mark, note in split]


def _cut(lines: Sequence[str], limit: int) -> list[str]:
    if limit <= 0 or len(lines) <= limit:
        return list(lines)
    return [*lines[:limit], f"… and {len(lines) - limit} more lines (--lines 0 shows them)"]


# Dependences


def dependence_table(e: Explanation) -> Table:
    """Every dependence: what, how far, which loop carries it, and two instances."""
    titles = ("from", "to", "on", "kind", "distance", "carried by")
    columns = (">no", *titles, "for example")
    rows = []
    for r in e.dependences:
        d = r.dependence
        cells = [str(r.number), d.source, d.target, d.tensor, _kind(r), distance_text(d)]
        cells.append(_carried(r.carried_by))
        rows.append((*cells, _example(d.witness, d.source, d.target)))
    caption = "" if rows else "none: the instances may run in any order"
    if rows:
        caption = (
            "distance: the target's iteration less the source's, in the loops both share; "
            "< later, = same, * any. A flow is from the last write. Carried by the statements' "
            "order where no loop does"
        )
    return Table(title="Dependences", columns=columns, rows=tuple(rows), caption=caption)


def _kind(r: DependenceRow) -> str:
    d = r.dependence
    notes = [f"×{r.accesses}"] if r.accesses > 1 else []
    notes += ["reduction"] if d.is_reduction else []
    notes += [] if d.exact else ["not exact"]
    return f"{d.kind} ({', '.join(notes)})" if notes else d.kind


def distance_text(d: Dependence) -> str:
    """``(t: 1, i: <=)``: a number where it is constant, otherwise its sign."""
    parts = []
    for (a, b), direction, distance in zip(d.loops, d.directions, d.distances):
        name = a if a == b else f"{a}/{b}"
        parts.append(f"{name}: {direction if distance is None else distance}")
    return ", ".join(parts) or "no loop shared"


def _carried(loops: Sequence[str]) -> str:
    return ", ".join(name or "order" for name in loops)


def _example(w: Witness | None, source: str, target: str) -> str:
    if w is None:
        return "–"
    sizes = ", ".join(f"{n}={v}" for n, v in w.symbols)
    a, b = (f"{s}[{', '.join(str(v) for _, v in at)}]" for s, at in _ends(w, source, target))
    return f"{a} → {b}" + (f" ({sizes})" if sizes else "")


def _ends(
    w: Witness, source: str, target: str
) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    return ((source, w.source), (target, w.target))


def loop_table(e: Explanation) -> Table:
    """Which loops of the nest as written could run in parallel."""
    rows = tuple(
        (
            r.name,
            ", ".join(r.statements),
            "yes" if r.is_parallel else "no",
            ", ".join(map(str, r.carries)) or ("nothing" if r.is_parallel else "not known"),
        )
        for r in e.loops
    )
    return Table(
        title="Loops as written",
        columns=("loop", "statements", "parallel", "carries (dependence no)"),
        rows=rows,
    )


# The schedule


def _schedule(e: Explanation) -> tuple[str, list[str]]:
    names = {
        "original": "the order as written",
        "given": "the order given",
    }
    title = f"Schedule: {names.get(e.order, f'order {e.order!r}')}"
    lines: list[str] = []
    for step in e.schedule:
        lines += print_tree(step.tree).splitlines() if isinstance(step, Arrange) else [repr(step)]
    others = [p.origin for p in e.orders if p.origin != e.order]
    if others:
        lines.append(f"(also possible: {', '.join(others)})")
    return title, lines


def reason_table(e: Explanation) -> Table:
    """Why each choice was made, with the number of the dependence behind it."""
    number = {replace(r.dependence, witness=None): r.number for r in e.dependences}
    rows = []
    for r in e.reasons:
        at = number.get(replace(r.dependence, witness=None)) if r.dependence else None
        rows.append((r.choice, r.reason, "" if at is None else str(at)))
    return Table(title="Reasons", columns=("choice", "reason", ">dependence"), rows=tuple(rows))


def _refused(v: Verdict) -> str:
    message = textwrap.indent(v.message, "  ")
    tail = f"  (asked for {format_seconds(v.seconds)})"
    return f"Refused: {v.what}\n  {v.error}:\n{message}\n{tail}"


def _accepted(v: Verdict) -> str:
    return f"Accepted: {v.what}\n  proved in {format_seconds(v.seconds)}"


def check_lines(e: Explanation) -> list[str]:
    """What the proof of the nest that runs took."""
    total = sum(e.check.seconds.values())
    slowest = sorted(e.check.seconds.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in slowest)
    counts = f"{e.check.computes} computes, {e.check.pairs} pairs, {e.check.queries} questions"
    phases = ", ".join(f"{name} {format_seconds(s)}" for name, s in e.seconds.items())
    return [f"proved in {format_seconds(total)} ({counts}; {parts})", f"time: {phases}"]
