"""What was measured, as a table for people, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import geometric_mean, to_markdown
from benchmarks.polybench.native import C_PEERS
from benchmarks.polybench.runner import PUBLISHED, Measured, PeerTimes, spread
from nestor.tables import Table, format_seconds

ALLOWED = {"float64": 1e-10, "float32": 1e-4}
"""Relative difference from the first peer that rounding explains in a well-conditioned kernel."""

MOST = 1e-6
"""C compilers that are this far apart in float64 do not compile the same program."""


def allowed_error(result: Measured, peer: PeerTimes) -> float:
    """How far ``peer`` may be from the first peer.

    All sum in an order of their own. Where two C compilers with the same flags are further apart
    than ``ALLOWED``, the kernel is that sensitive (durbin is), and four times as much is allowed.
    """
    if peer.name in C_PEERS:
        return MOST if result.dtype == "float64" else 1.0
    apart = max((p.error for p in result.peers if p.name in C_PEERS), default=0.0)
    return max(ALLOWED[result.dtype], 4 * apart)


def is_wrong(result: Measured, peer: PeerTimes) -> bool:
    """Whether the peer's outputs differ from the first peer's by more than rounding explains."""
    return not peer.error <= allowed_error(result, peer)


def speed_table(results: Sequence[Measured], names: Sequence[str], threads: int) -> Table:
    """One row a benchmark; ratios are against the first peer, above 1 is faster."""
    base, others = names[0], list(names[1:])
    last = names[-1]
    columns = ["kernel", f">{base}", *(f">{p}" for p in others), ">best published", ">Gflop/s",
               ">of floor", ">compiled in", ">error"]  # fmt: skip
    rows = [_row(r, base, others, last) for r in results]
    rows.append(_means(results, others))
    size, dtype = (results[0].size, results[0].dtype) if results else ("", "")
    caption = (
        f"{size}, {dtype}, {threads} threads. Ratios: time of {base} over the peer's, median of"
        f" turns, quartiles in brackets. Best published: of gcc, Polly and Pluto, also over {base}."
        f" Gflop/s, share of the floor (the larger of operations over peak and bytes over"
        f" bandwidth, over the time), compile time and error (largest difference from {base} over"
        f" the largest value) are {last}'s."
    )
    return Table(columns=tuple(columns), rows=tuple(rows), caption=caption)


def _row(result: Measured, base: str, others: Sequence[str], last: str) -> tuple[str, ...]:
    reference = result.peer(base)
    cells = [result.case.name, format_seconds(reference.median) if reference else "failed"]
    for name in others:
        peer = result.peer(name)
        if peer is None or not peer.ratios:
            cells.append("failed")
        elif len(peer.ratios) < 3:
            cells.append(f"{_ratio(spread(peer).median)}×")
        else:
            s = spread(peer)
            cells.append(f"{_ratio(s.median)}× ({_ratio(s.low)}–{_ratio(s.high)})")
    best = result.published()
    cells.append(f"{best[1]:.2f}× {best[0]}" if best else "–")
    judged = result.peer(last)
    if judged is None:
        return (*cells, "–", "–", "–", "–")
    cells += [
        f"{result.operations / judged.median / 1e9:.1f}",
        f"{result.floor_seconds / judged.median:.0%}",
        format_seconds(judged.compile_seconds),
        f"{judged.error:.0e}" + (" WRONG" if is_wrong(result, judged) else ""),
    ]
    return tuple(cells)


def _ratio(value: float) -> str:
    """Two decimals, more where they would be zeros."""
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}"


def _means(results: Sequence[Measured], others: Sequence[str]) -> tuple[str, ...]:
    cells = ["geometric mean", ""]
    for name in others:
        ratios = [spread(p).median for r in results if (p := r.peer(name)) and p.ratios]
        cells.append(f"{_ratio(geometric_mean(ratios))}× of {len(ratios)}" if ratios else "–")
    best = [b[1] for r in results if (b := r.published())]
    cells.append(f"{geometric_mean(best):.2f}× of {len(best)}" if best else "–")
    return (*cells, "", "", "", "")


def failures(results: Sequence[Measured]) -> list[str]:
    """What did not take part or is wrong, one line each."""
    lines = []
    for r in results:
        for p in r.peers:
            if p.failure:
                lines.append(f"{r.case.name}: {p.name}: {p.failure.splitlines()[0]}")
            elif is_wrong(r, p):
                lines.append(f"{r.case.name}: {p.name} is wrong: relative error {p.error:.1e}")
    return lines


def write_results(
    results: Sequence[Measured],
    names: Sequence[str],
    threads: int,
    about: dict[str, Any],
    markdown: Path,
    data: Path,
) -> None:
    """Write the table as Markdown and everything measured as JSON."""
    for file in (markdown, data):
        file.parent.mkdir(parents=True, exist_ok=True)
    table = speed_table(results, names, threads)
    markdown.write_text(to_markdown(table, failures(results), about), encoding="utf-8")
    content = {
        "machine": about,
        "threads": threads,
        "published": PUBLISHED["source"],
        "results": [r.to_dict() for r in results],
    }
    data.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
