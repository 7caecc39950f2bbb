"""Time models by name against their peers, judge the answers, write a table and JSON.

``python -m benchmarks MODEL…``; see ``nestor.benchmarking`` for how turns are taken.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.criterion import Verdict, inputs_per_sample, judge, stack_outputs
from benchmarks.work import Work, work_of
from nestor.benchmarking.peers import Prepared
from nestor.benchmarking.turns import (
    Gauge,
    OtherInputs,
    PeerProcess,
    PeerResult,
    Progress,
    Spread,
    Timing,
    compare,
    pair_turns,
)
from nestor.errors import UserError
from nestor.runtime.threads import available_cpus
from nestor.tables import Table

OWN = "nestor"
"""The peer that the others are held against."""

_Row = TypeVar("_Row")

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
    """Not a peer: computes float32 and float64 eager, for the verdict; notes the model's work."""
    import torch

    from benchmarks.criterion import reference

    def call() -> Any:
        with torch.inference_mode():
            own = model(*inputs)
        return [own, reference(model, inputs)]

    return Prepared(call=call, note=work_of(model, inputs).to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What was measured of one model.

    Attributes:
        model: its name.
        batch: its batch size.
        threads: threads of each peer.
        peers: timings, in the order asked for.
        verdicts: peer → how far its answer is from float64; those that gave one.
        work: the least that a call must do.
    """

    model: str
    batch: int
    threads: int
    peers: tuple[PeerResult, ...]
    verdicts: dict[str, Verdict]
    work: Work

    def peer(self, name: str) -> PeerResult | None:
        """The result of peer ``name``, if it took part."""
        return next((p for p in self.peers if p.name == name and not p.failure), None)

    @property
    def own(self) -> PeerResult | None:
        """Nestor's result, if it took part."""
        return self.peer(OWN)

    @property
    def others(self) -> list[PeerResult]:
        """The results of all other peers that took part."""
        return [p for p in self.peers if p.name not in (OWN, "artifact") and p.turns_ns
                and not p.failure]  # fmt: skip

    @property
    def best(self) -> PeerResult | None:
        """The fastest of the other peers, if any took part."""
        return min(self.others, key=median_seconds, default=None)

    @property
    def versus_best(self) -> Spread | None:
        """The best peer's turn over Nestor's of the same round: above 1, Nestor is faster."""
        own, best = self.own, self.best
        if own is None or best is None or not own.turns_ns:
            return None
        return Spread.of([b / n for b, n in zip(best.turns_ns, own.turns_ns, strict=False)])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "batch": self.batch,
            "threads": self.threads,
            "peers": [p.to_dict() for p in self.peers],
            "verdicts": {n: v.to_dict() for n, v in self.verdicts.items()},
            "work": asdict(self.work),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CaseResult:
        """From ``to_dict``'s data."""
        peers = tuple(PeerResult.from_dict(p) for p in data["peers"])
        pair_turns(peers)
        return cls(
            model=data["model"],
            batch=data["batch"],
            threads=data["threads"],
            peers=peers,
            verdicts={n: Verdict(**v) for n, v in data["verdicts"].items()},
            work=Work(**data["work"]),
        )


def median_seconds(peer: PeerResult) -> float:
    """The median of a peer's turns [s]; it took some."""
    spread = peer.call_seconds
    assert spread is not None, f"{peer.name} took no turn"
    return spread.median


def run_case(
    model: str,
    peers: Sequence[str],
    *,
    batch: int = 1,
    seed: int = 0,
    threads: int = 2,
    timing: Timing | None = None,
    gauge: Gauge | None = None,
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
        gauge=gauge,
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
    gauge: Gauge | None = None,
    progress: Progress | None = None,
    inputs_loader: str = "",
) -> CaseResult:
    """Time what ``loader`` returns by ``peers`` in turns and judge each answer.

    Args:
        loader, arguments, gauge: as of ``nestor.benchmarking.turns.compare``.
        inputs_loader: ``module:function`` that returns the inputs alone for the same keywords with
            another ``seed``; for outputs of few elements, which are judged at several inputs.
    """
    eager, exact, others, work = _references(loader, arguments, threads, inputs_loader)
    results = compare(
        peers,
        loader,
        arguments,
        threads=threads,
        timing=timing,
        gauge=gauge,
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
        work=work,
    )


def _references(
    loader: str, arguments: dict[str, Any], threads: int, inputs_loader: str
) -> tuple[Any, Any, OtherInputs, Work]:
    """A sample of float32 and float64 eager, its inputs beside those of ``arguments``, the work.

    Computed in a process that then goes away.
    """
    others = OtherInputs()
    with PeerProcess(threads=threads, folders=[str(ROOT)]) as process:
        make = "benchmarks.harness:exact_and_eager"
        answer = process.ask("prepare", loader, arguments, make, threads)
        pairs = [process.fetch_outputs()]
        half = len(pairs[0]) // 2
        if inputs_loader:
            seeds = range(1, inputs_per_sample(pairs[0][:half]))
            more = tuple(arguments | {"seed": arguments["seed"] + i} for i in seeds)
            others = OtherInputs(loader=inputs_loader, arguments=more)
            pairs += process.fetch_others(others)
    eager = stack_outputs([pair[:half] for pair in pairs])
    exact = stack_outputs([pair[half:] for pair in pairs])
    return eager, exact, others, Work.from_json(answer["note"])


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of positive ``values``; NaN of none."""
    if not values:
        return math.nan
    return math.exp(sum(math.log(v) for v in values) / len(values))


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


def read_rows(
    data: Path, peers: Sequence[str], read: Callable[[dict[str, Any]], _Row]
) -> list[_Row]:
    """The rows of an earlier run of the same peers; nothing if there is no such file.

    Args: data: JSON with ``peers`` and ``results``; read: makes a row of one of the results.
    Raises: UserError when the file holds something else, or other peers' figures.
    """
    if not data.exists():
        return []
    try:
        content = json.loads(data.read_text(encoding="utf-8"))
        found = [read(r) for r in content["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{data} cannot be gone on from: {error!r}; leave out --resume") from error
    if content.get("peers") != list(peers):
        raise UserError(
            f"{data} holds figures of {content.get('peers')}, not of {list(peers)}; "
            "leave out --resume, or name another file"
        )
    return found
