"""What ``nestor tune`` shows while it searches: a table on a terminal, now and then a line else."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nestor.tables import Table, format_seconds, render_tables

if TYPE_CHECKING:
    from nestor.autotune.task import Task
    from nestor.autotune.tuner import Progress

LINE_SECONDS = 5.0
"""Between two lines where there is no terminal [s]."""

_ROWS = 16
"""Kernels shown at most; the terminal may have room for fewer."""

_FRAME_LINES = 7
"""Lines of the table beside its rows: title, headings, rule, notes."""


@dataclass(slots=True)
class View:
    """What stands beside a run's progress.

    Attributes: model: its name. seconds: the budget [s]; None: none. labels: what kernels compute,
        by name. peer, peer_seconds: who else runs the model, and how long it takes [s].
    """

    model: str
    seconds: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""
    peer_seconds: float | None = None


@contextlib.contextmanager
def live_view(view: View) -> Iterator[Callable[[Progress], None]]:
    """Shows progress on standard error while it lasts."""
    if not sys.stderr.isatty():
        yield _Lines(view).show
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def show(progress: Progress) -> None:
            width, height = shutil.get_terminal_size((100, 24))
            rows = max(1, min(_ROWS, height - _FRAME_LINES))
            text = render_tables([progress_table(progress, view, rows)], width=width, color=True)
            live.update(Text.from_ansi(text), refresh=True)

        yield show


class _Lines:
    """A plain line every few seconds, and one for each phase."""

    def __init__(self, view: View):
        self._view = view
        self._phase, self._due = "", 0.0

    def show(self, progress: Progress) -> None:
        if progress.phase == self._phase and time.monotonic() < self._due:
            return
        self._phase, self._due = progress.phase, time.monotonic() + LINE_SECONDS
        print(progress_text(progress, self._view), file=sys.stderr, flush=True)


def progress_text(progress: Progress, view: View) -> str:
    """One line: phase, kernel, trials a second, times so far and hoped for, time left."""
    return f"{progress.phase} {progress.kernel}: {_summary(progress, view)}"


def _summary(progress: Progress, view: View) -> str:
    rate = progress.trials / progress.seconds if progress.seconds else 0.0
    gain = progress.default_ns / progress.best_ns if progress.best_ns else 1.0
    more = progress.expected_ns / progress.best_ns if progress.best_ns else 0.0
    parts = [f"{progress.trials} trials ({rate:.1f}/s)"]
    if progress.remembered:
        parts.append(f"{progress.remembered} remembered")
    parts.append(
        f"kernels {format_seconds(progress.default_ns / 1e9)} → "
        f"{format_seconds(progress.best_ns / 1e9)} a call ({gain:.3f}×)"
    )
    parts.append(f"a further {more:.1%} hoped for")
    if view.peer_seconds is not None:
        parts.append(f"{view.peer} {format_seconds(view.peer_seconds)}")
    if view.seconds is not None:
        parts.append(f"{format_seconds(max(0.0, view.seconds - progress.seconds))} left")
    return ", ".join(parts)


def progress_table(progress: Progress, view: View, rows: int = _ROWS) -> Table:
    """The kernels that take most of the time, and how far each is."""
    tasks = sorted(progress.tasks, key=lambda t: -t.calls * t.default_ns)
    total = progress.default_ns or 1.0
    shown = tuple(_row(t, progress, view, total) for t in tasks[:rows])
    hidden = f"and {len(tasks) - rows} more kernels; " if len(tasks) > rows else ""
    return Table(
        title=f"{view.model}: {progress.phase}",
        columns=(
            "kernel", ">calls", ">default", ">share", ">best", ">of limit", ">trials", "status",
        ),
        rows=shown,
        caption=f"{hidden}{_summary(progress, view)}  (Ctrl-C keeps the best)",
    )  # fmt: skip


def _row(task: Task, progress: Progress, view: View, total_ns: float) -> tuple[str, ...]:
    time_ns = task.calls * task.default_ns
    now_ns = task.default_ns * task.ratio
    return (
        f"{task.name} {view.labels.get(task.name, '')}"[:32].rstrip(),
        str(task.calls),
        format_seconds(time_ns / 1e9) if time_ns else "–",
        f"{time_ns / total_ns:.0%}" if time_ns else "–",
        f"{1 / task.ratio:.3f}×" if time_ns else "–",
        f"{min(1.0, task.limit_ns / now_ns):.0%}" if now_ns else "–",
        str(task.trials),
        _status(task, progress),
    )


def _status(task: Task, progress: Progress) -> str:
    if task.name == progress.kernel:
        return {"timing": "timed", "searching": "searched", "confirming": "confirmed"}.get(
            progress.phase, progress.phase
        ) + " now"
    if task.confirmed is not None:
        return f"confirmed {1 / task.confirmed:.3f}×"
    if task.is_exhausted:
        return "all tried"
    return "waits" if task.default_ns else "not timed yet"
