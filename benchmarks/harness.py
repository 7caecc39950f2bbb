"""Time models by name against their peers, judge the answers, write a table and JSON.

``python -m benchmarks MODEL…``; see ``nestor.benchmarking`` for how turns are taken.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.criterion import Verdict, inputs_per_sample, judge, stack_outputs
from nestor.benchmarking.peers import Prepared
from nestor.benchmarking.turns import (
    OtherInputs,
    PeerProcess,
    PeerResult,
    Progress,
    Timing,
    compare,
)
from nestor.runtime.threads import available_cpus
from nestor.tables import Table, format_bytes, format_seconds

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


def load_case(name: str, seed: int, batch: int) -> tuple[Any, Any]:
    """A model of the collection and its inputs, for a peer's process."""
    from benchmarks.models import model_case

    case = model_case(name)
    return case.build(), case.inputs(seed, batch)


def load_inputs(name: str, seed: int, batch: int) -> Any:
    """Inputs of a model of the collection alone, for a peer's process."""
    from benchmarks.models import model_case

    return model_case(name).inputs(seed, batch)


def exact_and_eager(model: Any, inputs: Sequence[Any], threads: int) -> Prepared:
    """Not a peer: computes float32 and float64 eager, for the verdict."""
    import torch

    from benchmarks.criterion import reference

    def call() -> Any:
        with torch.inference_mode():
            own = model(*inputs)
        return [own, reference(model, inputs)]

    return Prepared(call=call)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What was measured of one model.

    Attributes:
        model: its name.
        batch: its batch size.
        threads: threads of each peer.
        peers: timings, in the order asked for.
        verdicts: peer → how far its answer is from float64; those that gave one.
    """

    model: str
    batch: int
    threads: int
    peers: tuple[PeerResult, ...]
    verdicts: dict[str, Verdict]

    def peer(self, name: str) -> PeerResult | None:
        """The result of peer ``name``, if it took part."""
        return next((p for p in self.peers if p.name == name and not p.failure), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "batch": self.batch,
            "threads": self.threads,
            "peers": [p.to_dict() for p in self.peers],
            "verdicts": {n: v.to_dict() for n, v in self.verdicts.items()},
        }


def run_case(
    model: str,
    peers: Sequence[str],
    *,
    batch: int = 1,
    seed: int = 0,
    threads: int = 2,
    timing: Timing | None = None,
    progress: Progress | None = None,
) -> CaseResult:
    """Time ``model`` of the collection by ``peers`` in turns and judge each answer."""
    arguments = {"name": model, "seed": seed, "batch": batch}
    return run_loader(
        model,
        "benchmarks.harness:load_case",
        arguments,
        peers,
        threads=threads,
        timing=timing,
        progress=progress,
        inputs_loader="benchmarks.harness:load_inputs",
    )


def run_loader(
    name: str,
    loader: str,
    arguments: dict[str, Any],
    peers: Sequence[str],
    *,
    threads: int,
    timing: Timing | None = None,
    progress: Progress | None = None,
    inputs_loader: str = "",
) -> CaseResult:
    """Time what ``loader`` returns by ``peers`` in turns and judge each answer.

    Args:
        loader, arguments: as of ``nestor.benchmarking.turns.compare``.
        inputs_loader: ``module:function`` that returns the inputs alone for the same keywords with
            another ``seed``; for outputs of few elements, which are judged at several inputs.
    """
    eager, exact, others = _references(loader, arguments, threads, inputs_loader)
    results = compare(
        peers,
        loader,
        arguments,
        threads=threads,
        timing=timing,
        folders=[str(ROOT)],
        progress=progress,
        others=others,
    )
    verdicts = {
        r.name: judge(stack_outputs([r.outputs, *r.others]), eager, exact)
        for r in results
        if r.outputs and len(r.others) == len(others.arguments)
    }
    return CaseResult(
        model=name,
        batch=arguments.get("batch", 1),
        threads=threads,
        peers=tuple(results),
        verdicts=verdicts,
    )


def _references(
    loader: str, arguments: dict[str, Any], threads: int, inputs_loader: str
) -> tuple[Any, Any, OtherInputs]:
    """A sample of float32 and float64 eager, and its inputs beside those of ``arguments``.

    Computed in a process that then goes away.
    """
    others = OtherInputs()
    with PeerProcess(threads=threads, folders=[str(ROOT)]) as process:
        process.ask("prepare", loader, arguments, "benchmarks.harness:exact_and_eager", threads)
        pairs = [process.fetch_outputs()]
        half = len(pairs[0]) // 2
        if inputs_loader:
            seeds = range(1, inputs_per_sample(pairs[0][:half]))
            more = tuple(arguments | {"seed": arguments["seed"] + i} for i in seeds)
            others = OtherInputs(loader=inputs_loader, arguments=more)
            pairs += process.fetch_others(others)
    eager = stack_outputs([pair[:half] for pair in pairs])
    return eager, stack_outputs([pair[half:] for pair in pairs]), others


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive ``values``; NaN of none."""
    if not values:
        return math.nan
    return math.exp(sum(math.log(v) for v in values) / len(values))


def speed_table(results: Sequence[CaseResult], peers: Sequence[str]) -> Table:
    """One row a model: eager's time, then each other peer's speed against the first peer."""
    base, others = peers[0], list(peers[1:])
    columns = ["model", f">{base}", *(f">{p}" for p in others), ">compiled in", ">memory", ">error"]
    rows = [_speed_row(r, base, others) for r in results]
    if others:
        means = []
        for name in others:
            ratios = [p.ratio.median for r in results if (p := r.peer(name)) and p.ratio]
            means.append(f"{geometric_mean(ratios):.2f}× of {len(ratios)}" if ratios else "–")
        rows.append(("geometric mean", "", *means, "", "", ""))
    last = others[-1] if others else base
    caption = (
        f"Each ratio is speed against {base} (above 1 is faster): median of rounds taken in turns, "
        f"quartiles in brackets. Compile time, memory ({base}'s after the bar) and error (over the "
        f"allowed error) are {last}'s. Memory is what the first call takes above the loaded model."
    )
    return Table(columns=tuple(columns), rows=tuple(rows), caption=caption)


def _speed_row(result: CaseResult, base: str, others: Sequence[str]) -> tuple[str, ...]:
    label = result.model + (f" ×{result.batch}" if result.batch > 1 else "")
    reference = result.peer(base)
    call = reference.call_seconds if reference else None
    cells = [label, format_seconds(call.median) if call else "failed"]
    for name in others:
        peer = result.peer(name)
        if peer is None or peer.ratio is None:
            cells.append("failed")
            continue
        ratio = peer.ratio
        cells.append(f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})")
    judged = result.peer(others[-1]) if others else reference
    if judged is None:
        return (*cells, "–", "–", "–")
    verdict = result.verdicts.get(judged.name)
    memory = format_bytes(judged.peak_bytes)
    if reference is not None and reference is not judged:
        memory += f" | {format_bytes(reference.peak_bytes)}"
    error = "–"
    if verdict is not None:
        share = verdict.error / verdict.allowed if verdict.allowed else verdict.error
        error = f"{verdict.error:.1e} ({share:.0%})" + ("" if verdict.correct else " WRONG")
    return (*cells, format_seconds(judged.compile_seconds), memory, error)


def failures(results: Sequence[CaseResult]) -> list[str]:
    """What did not take part or is wrong, one line each."""
    lines = []
    for result in results:
        for peer in result.peers:
            if peer.failure:
                lines.append(f"{result.model}: {peer.name}: {peer.failure.splitlines()[0]}")
        for name, verdict in result.verdicts.items():
            if not verdict.correct:
                lines.append(f"{result.model}: {name} is wrong: {verdict.reason}")
    return lines


def machine() -> dict[str, Any]:
    """What the figures were taken on: the processor's name, cores, versions."""
    from importlib.metadata import version

    name = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return {
        "cpu": name,
        "cores": available_cpus(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def to_markdown(table: Table, failed: Sequence[str], about: dict[str, Any]) -> str:
    """The table as Markdown, with what it was taken on and what failed."""
    headings = [c.removeprefix(">") for c in table.columns]
    rule = ["---:" if c.startswith(">") else "---" for c in table.columns]
    lines = [", ".join(f"{k}: {v}" for k, v in about.items()), ""]
    for cells in (headings, rule, *table.rows):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", table.caption]
    if failed:
        lines += ["", "Failed:", "", *(f"* {line}" for line in failed)]
    return "\n".join(lines) + "\n"


def write_results(
    results: Sequence[CaseResult], peers: Sequence[str], markdown: Path, data: Path
) -> None:
    """Write the table as Markdown and everything measured as JSON."""
    about = machine()
    text = to_markdown(speed_table(results, peers), failures(results), about)
    for file in (markdown, data):
        file.parent.mkdir(parents=True, exist_ok=True)
    markdown.write_text(text, encoding="utf-8")
    content = {"machine": about, "results": [r.to_dict() for r in results]}
    data.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
