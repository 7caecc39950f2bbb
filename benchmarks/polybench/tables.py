"""What was measured, as a table for people, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import geometric_mean, to_markdown
from benchmarks.polybench import judge
from benchmarks.polybench.runner import PUBLISHED, Measured, spread
from nestor.tables import Table, format_seconds


def speed_table(results: Sequence[Measured], names: Sequence[str], threads: int) -> Table:
    """One row a benchmark; ratios are against the first peer, above 1 is faster."""
    base, others = names[0], list(names[1:])
    last = names[-1]
    columns = ["kernel", f">{base}", *(f">{p}" for p in others), ">best published", ">Gflop/s",
               ">of floor", ">compiled in", ">error", ">C's error"]  # fmt: skip
    rows = [_row(r, base, others, last) for r in results]
    rows.append(_means(results, others))
    size, dtype = (results[0].size, results[0].dtype) if results else ("", "")
    caption = (
        f"{size}, {dtype}, {threads} threads. Ratios: time of {base} over the peer's, median of"
        f" turns, quartiles in brackets. Best published: of gcc, Polly and Pluto, also over {base}."
        f" Gflop/s, share of the floor (the larger of operations over peak and bytes over"
        f" bandwidth, over the time), compile time and error are {last}'s. Errors: largest"
        f" difference over the largest value, from the C program in float64 without fast-math;"
        f" C's: of the C compilers' programs with it. Right is an error of at most"
        f" {judge.ALLOWED.get(dtype, 0):.0e}, or of {judge.FREEDOM:g} times C's."
        f"{_sensitive(results, last)}"
    )
    return Table(columns=tuple(columns), rows=tuple(rows), caption=caption)


def _sensitive(results: Sequence[Measured], last: str) -> str:
    """Which kernels are right by the second clause only."""
    found = [r.case.name for r in results if (p := r.peer(last)) and r.is_sensitive(p)]
    return f" By the second clause: {', '.join(found) or 'none'}."


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
        return (*cells, "–", "–", "–", "–", "–")
    cells += [
        f"{result.operations / judged.median / 1e9:.1f}",
        f"{result.floor_seconds / judged.median:.0%}",
        format_seconds(judged.compile_seconds),
        f"{judged.error:.0e}" + (" WRONG" if result.is_wrong(judged) else ""),
        f"{result.freedom_error:.0e}",
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
    return (*cells, "", "", "", "", "")


def failures(results: Sequence[Measured]) -> list[str]:
    """What did not take part or is wrong, one line each."""
    lines = []
    for r in results:
        for p in r.peers:
            if p.failure:
                lines.append(f"{r.case.name}: {p.name}: {p.failure.splitlines()[0]}")
            elif r.is_wrong(p):
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
