"""The figures of models as a table, as Markdown and as JSON, from which a run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    OWN,
    CaseResult,
    failures,
    geometric_mean,
    median_seconds,
    read_rows,
    to_markdown,
)
from benchmarks.roofline import Machine
from nestor.benchmarking.turns import PeerResult
from nestor.tables import Table, format_bytes, format_seconds


def speed_table(
    results: Sequence[CaseResult], peers: Sequence[str], machine: Machine | None = None
) -> Table:
    """One row a model; the last row holds geometric means.

    Args:
        peers: those asked for, in order; ratios are against the first.
        machine: its peaks, that times are held against; None if they are not known.
    """
    base, others = peers[0], list(peers[1:])
    columns = ["model", f">{base}", *(f">{p}" for p in others), f">{OWN} : best", ">of limit",
               ">compiled in", ">memory : least", ">error"]  # fmt: skip
    rows = [_row(r, base, others, machine) for r in results]
    if others:
        rows.append(("geometric mean", "", *_means(results, others), "", "", "", ""))
    caption = (
        f"float32. Ratios of peers: speed against {base} (above 1 is faster); of {OWN} : best, "
        f"against the fastest other peer: medians of rounds taken in turns, quartiles in brackets. "
        f"The rest is {OWN}'s: the least time of the model's products or, if longer, of moving its "
        f"weights, inputs and outputs once, over its time (Winograd's convolutions multiply less "
        f"than is counted); compile time with export; what the first call takes above the loaded "
        f"model, and the least of the other peers; the error over the allowed error. Rounds in "
        f"which the machine withheld a part of its cores were taken again."
    )
    return Table(columns=tuple(columns), rows=tuple(rows), caption=caption)


def _means(results: Sequence[CaseResult], others: Sequence[str]) -> list[str]:
    columns = [
        [p.ratio.median for r in results if (p := r.peer(name)) and p.ratio] for name in others
    ]
    columns.append([ratio.median for r in results if (ratio := r.versus_best)])
    return [f"{geometric_mean(c):.2f}× of {len(c)}" if c else "–" for c in columns]


def _row(
    result: CaseResult, base: str, others: Sequence[str], machine: Machine | None
) -> tuple[str, ...]:
    label = result.model + (f" ×{result.batch}" if result.batch > 1 else "")
    reference = result.peer(base)
    cells = [label, format_seconds(median_seconds(reference)) if reference else "failed"]
    for name in others:
        ratio = peer.ratio if (peer := result.peer(name)) else None
        cells.append("failed" if ratio is None else _spread(ratio))
    own, against = result.own, result.versus_best
    cells.append("–" if against is None else _spread(against))
    if own is None:
        return (*cells, "–", "–", "–", "–")
    limit = "–"
    if machine is not None:
        floor = machine.floor_seconds(result.work.operations, result.work.moved_bytes)
        limit = f"{floor / median_seconds(own):.0%}"
    least = min((p.peak_bytes for p in result.others if p.peak_bytes is not None), default=None)
    memory = f"{format_bytes(own.peak_bytes)} : {format_bytes(least)}"
    return (*cells, limit, format_seconds(own.compile_seconds), memory, _error(result, own))


def _spread(ratio: Any) -> str:
    return f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})"


def _error(result: CaseResult, peer: PeerResult) -> str:
    verdict = result.verdicts.get(peer.name)
    if verdict is None:
        return "–"
    share = verdict.error / verdict.allowed if verdict.allowed else verdict.error
    return f"{verdict.error:.1e} ({share:.0%})" + ("" if verdict.correct else " WRONG")


def write_results(
    results: Sequence[CaseResult],
    peers: Sequence[str],
    about: Mapping[str, Any],
    machine: Machine | None,
    markdown: Path,
    data: Path,
) -> None:
    """Write the table as Markdown and everything measured as JSON."""
    text = to_markdown(speed_table(results, peers, machine), failures(results), dict(about))
    content = {
        "machine": dict(about),
        "peers": list(peers),
        "results": [r.to_dict() for r in results],
    }
    for file, what in ((markdown, text), (data, json.dumps(content, indent=1) + "\n")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(what, encoding="utf-8")


def read_results(data: Path, peers: Sequence[str]) -> list[CaseResult]:
    """What an earlier run of the same peers wrote; nothing if there is no such file.

    Raises: UserError when the file holds something else, or other peers' figures.
    """
    return read_rows(data, peers, CaseResult.from_dict)
