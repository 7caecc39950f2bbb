"""The figures of operators as a table, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import OWN, failures, geometric_mean, read_rows, to_markdown
from benchmarks.ops.runner import Measured
from benchmarks.roofline import Machine
from nestor.benchmarking.turns import PeerResult, Spread
from nestor.tables import Table, format_seconds

BEHIND = 0.85
"""Below so much of the best peer's speed an operator counts as behind."""


def speed_table(measured: Sequence[Measured], peers: Sequence[str]) -> Table:
    """One row an operator; the last row holds geometric means."""
    base = peers[0]
    columns = ["operator", ">best peer", f">{base}", *(f">{p}" for p in peers[1:]),
               f">{OWN} : best", ">Gflop/s", ">of limit", ">error"]  # fmt: skip
    rows = [_row(m, peers) for m in measured]
    means = []
    for name in peers[1:]:
        found = [p.ratio.median for m in measured if (p := m.result.peer(name)) and p.ratio]
        means.append(f"{geometric_mean(found):.2f}× of {len(found)}" if found else "–")
    ratios = [r.median for m in measured if (r := m.versus_best)]
    against = f"{geometric_mean(ratios):.2f}× of {len(ratios)}" if ratios else "–"
    rows.append(("geometric mean", "", "", *means, against, "", "", ""))
    caption = (
        f"float32. Ratios of peers: speed against {base} (above 1 is faster); of {OWN} : best, "
        f"against the fastest other peer: medians of rounds taken in turns, quartiles in brackets. "
        f"Gflop/s, share of the limit (the larger of operations over the peak of multiply-adds and "
        f"least bytes over the bandwidth of a copy, c or m, over the time; a copy also reads what "
        f"it overwrites and Winograd's convolutions multiply less than is counted, so both may "
        f"be passed) and error (over the allowed error) are {OWN}'s "
        f"or, without it, the best peer's. Rounds in "
        f"which the machine withheld a part of its cores were taken again."
    )
    return Table(columns=tuple(columns), rows=tuple(rows), caption=caption)


def summary(measured: Sequence[Measured]) -> dict[str, Any]:
    """How Nestor stands against the best peers."""
    ratios = {m.case.name: r.median for m in measured if (r := m.versus_best)}
    mean = geometric_mean(list(ratios.values()))
    return {
        "compared": len(ratios),
        "geometric_mean": None if math.isnan(mean) else mean,
        "at_least_best": sum(r >= 1.0 for r in ratios.values()),
        "behind": sorted((n for n, r in ratios.items() if r < BEHIND), key=lambda n: ratios[n]),
        "externs": {m.case.name: m.own.externs for m in measured if m.own and m.own.externs},
        "wrong": [m.case.name for m in measured if (v := m.result.verdicts.get(OWN))
                  and not v.correct],
    }  # fmt: skip


def summary_lines(measured: Sequence[Measured]) -> list[str]:
    """``summary`` in words."""
    found = summary(measured)
    if not found["compared"]:
        return []
    behind: list[str] = found["behind"]
    lines = [
        f"{OWN} against the best peer: {found['geometric_mean']:.2f}× as the geometric mean of "
        f"{found['compared']}; at least 1.00× in {found['at_least_best']}; below {BEHIND}× in "
        f"{len(behind)}" + (f": {', '.join(behind)}" if behind else "")
    ]
    if found["externs"]:
        each = (f"{name} ({count})" for name, count in found["externs"].items())
        lines.append(f"operators left to PyTorch: {', '.join(each)}")
    return lines


def _row(measured: Measured, peers: Sequence[str]) -> tuple[str, ...]:
    best, base = measured.best, measured.result.peer(peers[0])
    cells = [measured.case.name, _best_cell(best), _time_cell(base)]
    for name in peers[1:]:
        peer = measured.result.peer(name)
        cells.append(f"{peer.ratio.median:.2f}×" if peer and peer.ratio else "failed")
        verdict = measured.result.verdicts.get(name)
        if verdict is not None and not verdict.correct:
            cells[-1] += " !"
    cells.append(_spread_cell(measured.versus_best))
    own = measured.own
    if own is not None and own.externs:
        cells[-1] += f" {own.externs} extern"
    return (*cells, *_figures(measured, own or best))


def _best_cell(best: PeerResult | None) -> str:
    return f"{best.name} {_time_cell(best)}" if best else "–"


def _time_cell(peer: PeerResult | None) -> str:
    spread = peer.call_seconds if peer else None
    return format_seconds(spread.median) if spread else "failed"


def _spread_cell(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})" if ratio else "–"


def _figures(measured: Measured, peer: PeerResult | None) -> tuple[str, str, str]:
    """Rate, share of the limit and error of one peer."""
    if peer is None or not peer.turns_ns:
        return "–", "–", "–"
    share = measured.share_of_limit(peer)
    limit = f"{share:.0%} {measured.limit_by[:1]}" if share is not None else "–"
    rate = f"{measured.flops(peer) / 1e9:.1f}" if measured.case.operations else "–"
    verdict = measured.result.verdicts.get(peer.name)
    error = "–"
    if verdict is not None:
        part = verdict.error / verdict.allowed if verdict.allowed else verdict.error
        error = f"{verdict.error:.1e} ({part:.0%})" + ("" if verdict.correct else " WRONG")
    return rate, limit, error


def to_json(
    measured: Sequence[Measured], peers: Sequence[str], about: dict[str, Any]
) -> dict[str, Any]:
    """Everything measured, as plain data."""
    return {
        "machine": about,
        "peers": list(peers),
        "summary": summary(measured),
        "results": [m.to_dict() for m in measured],
    }


def write_results(
    measured: Sequence[Measured], peers: Sequence[str], about: dict[str, Any], markdown: Path
) -> None:
    """Write the table as Markdown, and everything measured as JSON beside it."""
    table = speed_table(measured, peers)
    text = to_markdown(table, failures([m.result for m in measured]), about)
    if lines := summary_lines(measured):
        text += "\n" + "\n\n".join(lines) + "\n"
    markdown.parent.mkdir(parents=True, exist_ok=True)
    markdown.write_text(text, encoding="utf-8")
    data = json.dumps(to_json(measured, peers, about), indent=1) + "\n"
    markdown.with_suffix(".json").write_text(data, encoding="utf-8")


def read_results(data: Path, peers: Sequence[str], machine: Machine | None) -> list[Measured]:
    """What an earlier run of the same peers wrote; nothing if there is no such file.

    Raises: UserError when the file holds something else, or other peers' figures.
    """
    return read_rows(data, peers, lambda row: Measured.from_dict(row, machine))
