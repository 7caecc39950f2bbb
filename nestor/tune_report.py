"""The report of a search: its history as plain data, and one HTML file with plots of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nestor.cli_live import View
from nestor.errors import OutputError
from nestor.tables import format_seconds
from nestor.target.gpu import GpuTarget

if TYPE_CHECKING:
    from nestor.autotune.history import Trial
    from nestor.autotune.task import Task
    from nestor.autotune.tuner import Tuning
    from nestor.compiler import ModelKernels
    from nestor.cost_model.kernel_facts import KernelFacts
    from nestor.cost_model.trees import TreeEnsemble
    from nestor.ir.schedule import Schedule
    from nestor.passes.fusion import FusedKernel


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelHistory:
    """One kernel of a report.

    Attributes:
        name, label: its task's, and what it computes.
        calls: how often the model calls it.
        default_ns, limit_ns: time of a call with the default, and the least there can be [ns].
        trials: of this kernel. best: (trial of the whole run, speed over the default) at every
            improvement.
        again: the same where a winner was measured once more, to confirm it.
        flops, bytes: floating-point operations of a call, and the least that it moves.
        predictions: (predicted, measured) speed over the default, a pair a schedule; empty without
            a cost model.
    """

    name: str
    label: str
    calls: int
    default_ns: float
    limit_ns: float
    trials: int
    best: tuple[tuple[int, float], ...]
    again: tuple[tuple[int, float], ...]
    flops: float
    bytes: float
    predictions: tuple[tuple[float, float], ...] = ()

    @property
    def speed(self) -> float:
        """The best over the default: of what was measured twice, if anything was."""
        return max([1.0, *(s for _, s in self.again or self.best)])


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport:
    """What a report shows.

    Attributes:
        title, cpu, threads: what was tuned, and for what.
        trials: in all; ``remembered`` of them by earlier runs.
        seconds: of this run [s]; 0: from records alone.
        reason: why it ended. statuses: how many trials ended how.
        kernels: with trials or not, the most time first.
        whole: (trial, time of all kernels in a call of the model with the best so far [ns]).
        peak_gflops: of all threads. gbps: bandwidth by level, nearest first [10⁹ bytes/s].
        peer, peer_seconds: see ``View``.
    """

    title: str
    cpu: str
    threads: int
    trials: int
    remembered: int
    seconds: float
    reason: str
    statuses: dict[str, int]
    kernels: tuple[KernelHistory, ...]
    whole: tuple[tuple[int, float], ...]
    peak_gflops: float
    gbps: tuple[tuple[str, float], ...]
    peer: str = ""
    peer_seconds: float | None = None


def collect_report(
    view: View, tuning: Tuning, kernels: ModelKernels, model: TreeEnsemble | None
) -> TuneReport:
    """The report of a run of ``Tuner.of_model`` for these kernels.

    Args: model: the cost model that the run asked; None: it asked none.
    """
    peak, levels = _speeds(kernels)
    statuses: dict[str, int] = {}
    for trial in tuning.history:
        statuses[trial.status] = statuses.get(trial.status, 0) + 1
    tasks = sorted(tuning.tasks, key=lambda t: -t.calls * t.default_ns)
    return TuneReport(
        title=view.model,
        cpu=kernels.target.name if isinstance(kernels.target, GpuTarget) else kernels.cpu.cpu,
        threads=kernels.threads,
        trials=len(tuning.history),
        remembered=tuning.remembered,
        seconds=tuning.seconds,
        reason=tuning.reason,
        statuses=statuses,
        kernels=tuple(_kernel(t, view, tuning.history, kernels, model) for t in tasks),
        whole=_whole(tasks, tuning.history),
        peak_gflops=peak,
        gbps=levels,
        peer=view.peer,
        peer_seconds=view.peer_seconds,
    )


def _speeds(kernels: ModelKernels) -> tuple[float, tuple[tuple[str, float], ...]]:
    """The peak of f32 [10⁹ operations/s], and the bandwidth of each level [10⁹ bytes/s]."""
    from nestor.cost_model.roofline import level_ns, slot_ns

    if isinstance(kernels.target, GpuTarget):
        return kernels.target.tflops * 1e3, (("memory", kernels.target.memory_gbps),)
    cpu = kernels.cpu
    workers = max(1, min(kernels.threads, cpu.cores))
    peak = 2 * cpu.lanes(32) / slot_ns(cpu) * workers
    names = ("L1", "L2", "L3", "memory")
    return peak, tuple((n, 1 / ns) for n, ns in zip(names, level_ns(cpu, workers)))


def _kernel(
    task: Task,
    view: View,
    history: Sequence[Trial],
    kernels: ModelKernels,
    model: TreeEnsemble | None,
) -> KernelHistory:
    from nestor.cost_model.kernel_facts import kernel_facts
    from nestor.cost_model.roofline import compulsory_bytes

    fused = kernels.kernels[int(task.name[1:])]
    facts = kernel_facts(fused.kernel, task.sizes)
    best: list[tuple[int, float]] = []
    again: list[tuple[int, float]] = []
    own = [(n, t) for n, t in enumerate(history, 1) if t.kernel == task.name]
    for number, trial in own:
        if trial.ratio is None:
            continue
        if trial.is_confirmation:
            again.append((number, 1 / trial.ratio))
        elif 1 / trial.ratio > (best[-1][1] if best else 1.0):
            best.append((number, 1 / trial.ratio))
    return KernelHistory(
        name=task.name,
        label=view.labels.get(task.name, ""),
        calls=task.calls,
        default_ns=task.default_ns,
        limit_ns=task.limit_ns,
        trials=len(own),
        best=tuple(best),
        again=tuple(again),
        flops=_flops(facts),
        bytes=compulsory_bytes(facts),
        predictions=_predictions(task, fused, [t for _, t in own], kernels, model),
    )


def _flops(facts: KernelFacts) -> float:
    ops = [s.total_ops for s in facts.statements.values()]
    return sum(2 * o.fma + o.add + o.mul + o.div + o.transcendental for o in ops)


def _predictions(
    task: Task,
    fused: FusedKernel,
    trials: Sequence[Trial],
    kernels: ModelKernels,
    model: TreeEnsemble | None,
) -> tuple[tuple[float, float], ...]:
    """Speeds as the cost model expects them, and as they were measured."""
    from nestor.cost_model.ranking import rank_schedules

    measured: dict[object, list[float]] = {}
    schedules: dict[Schedule, None] = {}
    for trial in trials:
        if trial.ratio is not None:
            schedules[trial.schedule] = None
            measured.setdefault(trial.schedule, []).append(1 / trial.ratio)
    if model is None or not schedules or isinstance(kernels.target, GpuTarget):
        return ()
    rank = rank_schedules(model, fused, kernels.cpu, kernels.threads, sizes=task.sizes)
    # Scores are speeds up to a factor; the default's is the one that everything is measured by.
    default, *scores = rank([task.default.schedule, *schedules])
    medians = (statistics.median(measured[s]) for s in schedules)
    return tuple((float(s / default), m) for s, m in zip(scores, medians, strict=True))


def _whole(tasks: Sequence[Task], history: Sequence[Trial]) -> tuple[tuple[int, float], ...]:
    """Time of all kernels with the best so far, at the start and at every improvement [ns]."""
    times = {t.name: t.calls * t.default_ns for t in tasks}
    best = dict.fromkeys(times, 1.0)
    points = [(0, sum(times.values()))]
    for number, trial in enumerate(history, 1):
        if trial.ratio is not None and trial.ratio < best.get(trial.kernel, 0.0):
            best[trial.kernel] = trial.ratio
            points.append((number, sum(times[k] * best[k] for k in times)))
    return tuple(points)


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's; nan for fewer than three pairs."""
    from nestor.cost_model.scores import spearman

    if len(pairs) < 3:
        return math.nan
    return spearman(*(np.array(side) for side in zip(*pairs, strict=True)))


# ---------------------------------------------------------------------------------- HTML

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } svg { max-width: 100%; height: auto; }
p.note { color: #555; }
"""  # noqa: E501


def write_report(path: str | Path, report: TuneReport) -> None:
    """Write one HTML file that needs no other.

    Raises: ``UserError`` without matplotlib; ``OutputError`` if it cannot be written.
    """
    text = render_report(report)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error


def render_report(report: TuneReport) -> str:
    """The HTML text. Raises: ``UserError`` without matplotlib."""
    from nestor.tune_plots import plot_best, plot_predictions, plot_roofline

    parts = [
        f"<h1>{escape(report.title)}: search for schedules</h1>",
        *(f"<p>{escape(line)}</p>" for line in _facts(report)),
        "<h2>Best so far</h2>",
        plot_best(report),
        '<p class="note">Lines: speed over the default schedule, the best trial so far; dots: '
        "winners measured once more, with other inputs. Dashed: where this run began.</p>",
        "<h2>Roofline</h2>",
        plot_roofline(report),
        '<p class="note">Hollow: default; filled: tuned. Operations over the least bytes that a '
        "kernel moves; kernels without floating-point operations are left out. The lines rest on a "
        "guess at the processor's clock and bandwidth.</p>",
        "<h2>Predicted and measured</h2>",
    ]
    if any(k.predictions for k in report.kernels):
        parts.append(plot_predictions(report))
        pairs = [(k.name, rank_correlation(k.predictions)) for k in report.kernels if k.predictions]
        ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in pairs if not math.isnan(rank))
        parts.append(f'<p class="note">Rank correlation: {escape(ranks or "too few trials")}.</p>')
    else:
        parts.append('<p class="note">No cost model for this version, or nothing measured.</p>')
    parts += ["<h2>Kernels</h2>", _table(report)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _facts(report: TuneReport) -> list[str]:
    start, end = report.whole[0][1], report.whole[-1][1]
    gain = start / end if end else 1.0
    failed = ", ".join(f"{n} {s}" for s, n in sorted(report.statuses.items()) if s != "ok")
    lines = [
        f"{report.cpu}, {report.threads} thread{'s' * (report.threads != 1)}; {report.trials} "
        f"trials, {report.remembered} of them by earlier runs"
        + (f"; {format_seconds(report.seconds)}" if report.seconds else "")
        + (f"; {report.reason}" if report.reason else "")
        + (f"; failed: {failed}" if failed else ""),
        f"All kernels of a call: {format_seconds(start / 1e9)} by default, "
        f"{format_seconds(end / 1e9)} with the best of each ({gain:.3f}×).",
    ]
    if report.peer_seconds is not None:
        lines.append(f"A call by {report.peer}: {format_seconds(report.peer_seconds)}.")
    return lines


def _table(report: TuneReport) -> str:
    heads = ("kernel", "calls", "default", "trials", "best", "again", "of limit")
    rows = []
    for k in report.kernels:
        best = max([1.0, *(s for _, s in k.best)])
        again = f"{max(s for _, s in k.again):.3f}×" if k.again else "–"
        share = min(1.0, k.limit_ns * k.speed / k.default_ns) if k.default_ns else 0.0
        cells = (
            f"{k.name} {k.label}", str(k.calls), format_seconds(k.calls * k.default_ns / 1e9),
            str(k.trials), f"{best:.3f}×", again, f"{share:.0%}",
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    head = "".join(f"<th>{h}</th>" for h in heads)
    return f"<table><tr>{head}</tr>\n" + "\n".join(rows) + "</table>"
