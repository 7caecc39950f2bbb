"""Tune loop kernels one after the other, time them against themselves untuned, keep every result.

A run that was stopped goes on with the first kernel that has no result for these settings; what was
measured of that one is in the records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import geometric_mean, to_markdown
from benchmarks.polybench import registry, runner
from benchmarks.polybench.peers import TUNED
from benchmarks.roofline import Machine
from nestor.autotune.tuner import Tuning
from nestor.errors import NestorError
from nestor.tables import Table, format_seconds

PUBLISHED_PEER = "pluto"

Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a result belongs to.

    Attributes: seconds: of tuning a kernel. names: of the peers: a C compiler, untuned, tuned.
    """

    seconds: float
    size: str
    dtype: str
    threads: int
    names: tuple[str, ...]

    def fits(self, entry: Mapping[str, Any]) -> bool:
        """Whether a kept result is one of these settings."""
        return all(entry.get(k) == getattr(self, k) for k in ("seconds", "size", "dtype")) and (
            entry.get("threads") == self.threads
        )


def read_results(file: Path) -> dict[str, dict[str, Any]]:
    """Results that were kept, by kernel; none if there is no file."""
    if not file.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["results"]
    return found


def tune_and_measure(
    name: str, settings: Settings, machine: Machine, rounds: int, tell: Tell
) -> dict[str, Any]:
    """Tune one kernel, then take turns. Returns: the result as plain data."""
    case = registry.CASES[name]
    kernel = registry.kernel(name, settings.dtype, reassociate=True, threads=settings.threads)
    failure, tuning = "", None
    try:
        tuning = kernel.tune(
            **case.make_inputs(settings.size, settings.dtype),
            seconds=settings.seconds,
            progress=lambda p: tell(
                f"{name}: {p.phase}, {p.trials} trials",
                0.9 * min(1.0, p.seconds / settings.seconds),
            ),
        )
    except NestorError as error:
        failure = str(error)
    measured = runner.measure(
        case,
        settings.size,
        settings.dtype,
        settings.names,
        machine,
        threads=settings.threads,
        rounds=rounds,
        tell=lambda what, done: tell(what, 0.9 + 0.1 * done),
    )
    wrong = [p.name for p in measured.peers if not p.failure and measured.is_wrong(p)]
    return {
        **measured.to_dict(),
        "seconds": settings.seconds,
        "threads": settings.threads,
        "wrong": wrong,
        "tuning": _tuning_data(tuning, failure),
    }


def _tuning_data(found: Tuning | None, failure: str) -> dict[str, Any]:
    """What a search did, as plain data."""
    if found is None:
        return {"failure": failure, "trials": 0, "confirmed_ratio": None}
    task = found.tasks[0]
    return {
        "failure": failure,
        "trials": found.trials,
        "seconds": found.seconds,
        "statuses": found.statuses,
        "reason": found.reason,
        "default_ns": task.default_ns,
        "best_ratio": task.ratio,
        "confirmed_ratio": task.confirmed,
        "point": dict(task.best.point) if task.confirmed is not None else None,
    }


def run_all(
    kernels: Sequence[str],
    settings: Settings,
    machine: Machine,
    about: dict[str, Any],
    files: tuple[Path, Path],
    *,
    rounds: int,
    again: bool,
    tell: Tell,
) -> dict[str, dict[str, Any]]:
    """Tune and measure what has no result yet; write all after each kernel.

    Args: files: Markdown and JSON. again: results that there are do not count.
    """
    markdown, data = files
    results = read_results(data)
    for i, name in enumerate(kernels):
        if not again and name in results and settings.fits(results[name]):
            continue
        results[name] = tune_and_measure(
            name,
            settings,
            machine,
            rounds,
            lambda what, done, i=i: tell(what, (i + done) / len(kernels)),  # type: ignore[misc]
        )
        write_results(results, settings, about, markdown, data)
    return results


def _times(entry: Mapping[str, Any], peer: str) -> list[float]:
    found = next((p for p in entry["peers"] if p["name"] == peer and not p["failure"]), None)
    return [] if found is None else found["seconds"]


def ratio(entry: Mapping[str, Any], peer: str, base: str) -> float | None:
    """How many times as fast as ``base`` a peer was: the median of its turns; None: one failed."""
    own, other = _times(entry, peer), _times(entry, base)
    if not own or not other:
        return None
    return float(np.median([b / t for b, t in zip(other, own, strict=True)]))


def published(entry: Mapping[str, Any]) -> float | None:
    """Pluto's published speed over clang's; None at another size or element type."""
    source = runner.PUBLISHED
    if (entry["size"], entry["dtype"]) != (source["size"], source["dtype"]):
        return None
    found: float | None = source["kernels"][entry["kernel"]][PUBLISHED_PEER]
    return found


def result_table(results: Mapping[str, Mapping[str, Any]], settings: Settings) -> Table:
    """One row a kernel, in the registry's order."""
    base, plain, _ = settings.names
    columns = ("kernel", f">{base}", f">untuned over {base}", f">tuned over {base}",
               ">tuned over untuned", f">{PUBLISHED_PEER} published", ">trials",
               ">in tuning")  # fmt: skip
    rows, gathered = [], [[], [], [], []]  # type: ignore[var-annotated]
    for name in registry.CASES:
        if name not in results:
            continue
        entry = results[name]
        figures = (
            ratio(entry, plain, base),
            ratio(entry, TUNED, base),
            ratio(entry, TUNED, plain),
            published(entry),
        )
        for column, figure in zip(gathered, figures, strict=True):
            if figure is not None:
                column.append(figure)
        times = _times(entry, base)
        confirmed = entry["tuning"]["confirmed_ratio"]
        rows.append(
            (
                name + (" WRONG" if entry["wrong"] else ""),
                format_seconds(float(np.median(times))) if times else "failed",
                *(_cell(f) for f in figures),
                str(entry["tuning"]["trials"]),
                "default kept" if confirmed is None else f"{1 / confirmed:.2f}×",
            )
        )
    means = (f"{geometric_mean(c):.2f}× of {len(c)}" if c else "–" for c in gathered)
    rows.append(("geometric mean", "", *means, "", ""))
    caption = (
        f"{settings.size}, {settings.dtype}, {settings.threads} threads, {settings.seconds:g} s of"
        f" tuning a kernel. Ratios are of times, medians over turns; above 1 is faster."
        f" {PUBLISHED_PEER.capitalize()}: measured once, over clang. In tuning: what the winner's"
        f" confirmation gave."
    )
    return Table(columns=columns, rows=tuple(rows), caption=caption)


def _cell(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.2f}×"


def write_results(
    results: Mapping[str, Mapping[str, Any]],
    settings: Settings,
    about: dict[str, Any],
    markdown: Path,
    data: Path,
) -> None:
    """The table as Markdown and everything as JSON."""
    for file in (markdown, data):
        file.parent.mkdir(parents=True, exist_ok=True)
    table = result_table(results, settings)
    markdown.write_text(to_markdown(table, failures(results), about), encoding="utf-8")
    content = {"machine": about, "published": runner.PUBLISHED["source"], "results": results}
    part = data.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(data)


def failures(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Peers that did not take part or are wrong, one line each."""
    lines = []
    for name, entry in results.items():
        lines += [
            f"{name}: {p['name']}: {p['failure'].splitlines()[0]}"
            for p in entry["peers"]
            if p["failure"]
        ]
        lines += [f"{name}: {peer} is wrong" for peer in entry["wrong"]]
        if entry["tuning"]["failure"]:
            lines.append(f"{name}: not tuned: {entry['tuning']['failure'].splitlines()[0]}")
    return lines
