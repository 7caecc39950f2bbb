"""``nestor tune``: search schedules for a model's kernels, watched on a terminal."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nestor.cli_models import load_model
from nestor.config import Config
from nestor.tables import Table, format_seconds, print_tables

if TYPE_CHECKING:
    from nestor.autotune.tuner import Progress, Tuning
    from nestor.compiler import ModelKernels

_SHOWN = 20
"""Kernels in the final table; the rest take little time."""


def tune_command(given: argparse.Namespace, config: Config) -> int:
    """Search until the time or the trials are spent, and tell what was found."""
    from nestor.autotune.choosing import tune_kernels
    from nestor.autotune.tuner import TuneOptions, parse_seconds
    from nestor.building import build_model

    options = TuneOptions(
        # Without any limit a search could go on for hours that nobody asked for.
        seconds=parse_seconds(given.time or "60s") if given.time or given.trials is None else None,
        trials=given.trials,
        strategy=given.strategy,
        seed=given.seed,
        only=tuple(given.kernel),
    )
    named = load_model(given.model)
    names: list[str] = []
    with _live(options.seconds) as show:

        def tune(kernels: ModelKernels) -> Tuning:
            names.extend("+".join(_statements(k)) for k in kernels.kernels)
            return tune_kernels(kernels, config, options, show)

        built = build_model(
            named.model,
            tuple(named.inputs),
            {},
            config,
            dynamic_shapes=named.dynamic_shapes,
            name=named.name,
            tune=tune,
        )
    tuning = built.tuning
    assert tuning is not None
    if given.json:
        print(json.dumps(tuning_to_json(tuning)))
    else:
        print_tables(_table(named.name, tuning, names))
    return 0


def _statements(fused: Any) -> list[str]:
    origins = (str(s.origin or s.name).split(" at ")[0] for s in fused.kernel.statements)
    return [o.removeprefix("aten.").split(".")[0] for o in dict.fromkeys(origins)]


def tuning_to_json(tuning: Tuning) -> dict[str, Any]:
    """What came of a run, as plain data; times in nanoseconds a call of the model."""
    return {
        "seconds": tuning.seconds,
        "trials": tuning.trials,
        "statuses": tuning.statuses,
        "interrupted": tuning.interrupted,
        "reason": tuning.reason,
        "kept_default": tuning.kept_default,
        "default_ns": tuning.default_ns,
        "tuned_ns": tuning.tuned_ns,
        "kernels": [
            {
                "name": t.name,
                "digest": t.key.digest,
                "calls": t.calls,
                "trials": t.trials,
                "default_ns": t.calls * t.default_ns,
                "best_ratio": t.ratio,
                "confirmed_ratio": t.confirmed,
            }
            for t in tuning.tasks
        ],
    }


def _table(name: str, tuning: Tuning, names: list[str]) -> Table:
    rows = []
    for task in tuning.tasks[:_SHOWN]:
        gain = "–" if task.confirmed is None else f"{1 / task.confirmed:.3f}×"
        changed = dict(task.default.point)
        decisions = (f"{n}={v}" for n, v in task.best.point if changed.get(n) != v)
        rows.append(
            (
                f"{task.name} {names[int(task.name[1:])][:40]}",
                str(task.calls),
                format_seconds(task.calls * task.default_ns / 1e9),
                str(task.trials),
                gain,
                " ".join(decisions)[:60] if task.confirmed else "",
            )
        )
    failed = {k: n for k, n in tuning.statuses.items() if k != "ok"}
    whole = tuning.default_ns / tuning.tuned_ns if tuning.tuned_ns else 1.0
    caption = (
        f"{tuning.trials} trials in {format_seconds(tuning.seconds)}; {tuning.reason}; kernels "
        f"together {whole:.3f}× the default"
        + (f"; failed: {failed}" if failed else "")
        + ("; the whole model was no faster and keeps the default" if tuning.kept_default else "")
    )
    columns = ("kernel", ">calls", ">default", ">trials", ">gain", "decided otherwise")
    return Table(title=f"{name}, tuned", columns=columns, rows=tuple(rows), caption=caption)


@contextlib.contextmanager
def _live(seconds: float | None) -> Iterator[Callable[[Progress], None]]:
    """A line that is drawn anew after each batch, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True) as live:
        yield lambda progress: live.update(progress_text(progress, seconds))


def progress_text(progress: Progress, seconds: float | None) -> str:
    """One line: phase, kernel, trials a second, gain so far and expected, time left."""
    rate = progress.trials / progress.seconds if progress.seconds else 0.0
    gain = progress.default_ns / progress.best_ns if progress.best_ns else 1.0
    more = progress.expected_ns / progress.best_ns if progress.best_ns else 0.0
    left = ""
    if seconds is not None:
        left = f", {format_seconds(max(0.0, seconds - progress.seconds))} left"
    return (
        f"{progress.phase} {progress.kernel}: {progress.trials} trials ({rate:.1f}/s), "
        f"{gain:.3f}× so far, a further {more:.1%} hoped for{left}  (Ctrl-C keeps the best)"
    )
