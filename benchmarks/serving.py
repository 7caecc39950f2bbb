"""``python -m benchmarks.serving MODEL…``: calls from two Python threads against one caller.

Three ways of keeping two cores busy with one compiled model, in turns: one caller whose calls use
both cores; two callers whose calls use one core each (``torch.set_num_threads`` in each caller);
two callers whose calls use both cores each, which is what a server gets that sets nothing. Every
caller that runs parallel regions has a team of OpenMP threads of its own, so the last way runs more
threads than there are cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nestor.cli import run_guarded
from nestor.tables import Table, print_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How calls are made: ``callers`` Python threads, each call on ``threads`` cores."""

    callers: int
    threads: int

    @property
    def label(self) -> str:
        """As the table's heading has it, e.g. ``2 × 1``."""
        return f"{self.callers} × {self.threads}"


def ways(cores: int) -> tuple[Way, ...]:
    """One caller with all cores, a caller a core, and a caller a core with all cores each."""
    return (
        Way(callers=1, threads=cores),
        Way(callers=cores, threads=1),
        Way(callers=cores, threads=cores),
    )


def throughput(call: Callable[[], Any], way: Way, seconds: float) -> float:
    """Calls a second [1/s] over about ``seconds``; callers warm up before the clock starts."""
    import torch

    counts = [0] * way.callers
    gate = threading.Barrier(way.callers + 1)
    stop = threading.Event()
    failures: list[Exception] = []

    def serve(caller: int) -> None:
        try:
            torch.set_num_threads(way.threads)
            call()
            gate.wait()
            while not stop.is_set():
                call()
                counts[caller] += 1
        except Exception as error:
            failures.append(error)
            gate.abort()

    # Even one caller is a thread of its own, so that the ways differ in nothing else.
    callers = [threading.Thread(target=serve, args=(n,)) for n in range(way.callers)]
    for caller in callers:
        caller.start()
    try:
        gate.wait()
        start = time.perf_counter()
        stop.wait(seconds)
    except threading.BrokenBarrierError:
        start = time.perf_counter()
    stop.set()
    for caller in callers:
        caller.join()
    if failures:
        raise failures[0]
    return sum(counts) / (time.perf_counter() - start)


def measure(name: str, cores: int, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Median calls a second of a model, by peer (``nestor``, ``eager``) and way."""
    import torch

    import nestor
    from benchmarks.models import model_case

    case = model_case(name)
    model, inputs = case.build(), case.inputs(0, 1)
    torch.set_num_threads(cores)
    compiled = nestor.compile(model, inputs)

    def eager() -> Any:
        with torch.inference_mode():
            return model(*inputs)

    calls: dict[str, Callable[[], Any]] = {"nestor": lambda: compiled(*inputs), "eager": eager}
    found: dict[str, dict[str, list[float]]] = {peer: {} for peer in calls}
    for _ in range(rounds):
        for peer, call in calls.items():
            for way in ways(cores):
                taken = found[peer].setdefault(way.label, [])
                taken.append(throughput(call, way, seconds))
    return {
        peer: {label: statistics.median(taken) for label, taken in of_peer.items()}
        for peer, of_peer in found.items()
    }


def table(results: dict[str, dict[str, dict[str, float]]], cores: int) -> Table:
    """Calls a second by model, peer and way."""
    labels = [way.label for way in ways(cores)]
    rows = []
    for name, by_peer in results.items():
        for peer, by_way in by_peer.items():
            rate = [by_way[label] for label in labels]
            rows.append((name, peer, *(f"{r:.1f}/s ({r / rate[0]:.2f}×)" for r in rate)))
    return Table(
        columns=("model", "peer", *(f">{label}" for label in labels)),
        rows=tuple(rows),
        caption="Calls a second: callers × threads of a call; in brackets against one caller.",
    )


def main(given: Sequence[str] | None = None) -> int:
    """Measure the models asked for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way and round")
    asked = parser.parse_args(given)
    results = {
        name: measure(name, asked.cores, asked.rounds, asked.seconds) for name in asked.models
    }
    print_tables(table(results, asked.cores))
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: main(None)))
