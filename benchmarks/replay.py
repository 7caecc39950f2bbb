"""What the cost model is worth to a search: strategies played on recorded schedules.

``python -m benchmarks.replay`` takes every kernel of ``records/test.jsonl.gz`` with enough measured
schedules for a space of its own, lets each strategy search there, with the model's opinion and
without, and tells what part of the best recorded speed it has after so many trials. Nothing is
measured, so the outcome is the same on any machine. Where a strategy asks for a neighbour that was
not measured it gets the nearest one that was.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gather import RECORDS, WORKLOADS
from benchmarks.tuning import RESULTS, mean
from nestor.autotune.learning import measured_dataset
from nestor.autotune.records.exchange import read_records
from nestor.autotune.records.record import KernelKey
from nestor.autotune.space import Candidate, Point, readable_point
from nestor.autotune.strategies import STRATEGIES
from nestor.cost_model.dataset import nominal_target
from nestor.cost_model.features import KernelFeatures
from nestor.cost_model.inputs import model_inputs
from nestor.cost_model.ranking import chosen_model
from nestor.cost_model.scores import best_of_top, spearman
from nestor.errors import UserError
from nestor.tables import Table, render_tables

LEAST = 150
"""Fewest schedules of a kernel for a search that means anything."""

MARKS = (1, 8, 16, 32, 64, 128)
BATCH = 8
PLAYERS = ("random", "evolution", "evolution, model", "bayesian", "bayesian, model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A kernel's measured candidates, the default first: their speeds and the model's opinion."""

    name: str
    candidates: tuple[Candidate, ...]
    speeds: NDArray[np.float64]
    predicted: NDArray[np.float64]


class RecordedSpace:
    """A space of recorded candidates, as a strategy asks it."""

    def __init__(self, candidates: Sequence[Candidate]):
        self._all = list(candidates)
        self._points = [dict(c.point) for c in candidates]

    def default(self) -> Candidate:
        """The first."""
        return self._all[0]

    def sample(self, rng: random.Random) -> Candidate:
        """Any."""
        return rng.choice(self._all)

    def mutate(self, point: Point, rng: random.Random) -> Candidate:
        """One with a decision that another one has, otherwise as like ``point`` as there is."""
        wanted = dict(point)
        knob = rng.choice(list(wanted)) if wanted else None
        other = dict(rng.choice(self._all).point)
        if knob in other:
            wanted[knob] = other[knob]
        return self._nearest(wanted, rng, point)

    def cross(self, a: Point, b: Point, rng: random.Random) -> Candidate:
        """As like a mixture of two points as there is."""
        both = dict(a), dict(b)
        names = dict.fromkeys(n for p in both for n in p)
        mixed = {n: rng.choice([p[n] for p in both if n in p]) for n in names}
        return self._nearest(mixed, rng, None)

    def _nearest(
        self, wanted: Mapping[str, object], rng: random.Random, without: Point | None
    ) -> Candidate:
        distances = [
            len(wanted.keys() ^ p.keys()) + sum(p[n] != wanted[n] for n in p if n in wanted)
            if c.point != without
            else len(wanted) + len(p) + 1
            for c, p in zip(self._all, self._points)
        ]
        least = min(distances)
        return self._all[rng.choice([k for k, d in enumerate(distances) if d == least])]


def recorded_kernels(records: Path, families: Path) -> Iterator[Recorded]:
    """The kernels of exported records that have enough schedules, with the shipped model's
    opinion."""
    model = chosen_model(None)
    if model is None:
        raise UserError("the package has no cost model for these features\n  fix: nestor train")
    named = {k: w["family"] for k, w in json.loads(families.read_text()).items()}
    points = {(r.kernel.digest, r.schedule): readable_point(r.point) for r in read_records(records)}
    data = measured_dataset(read_records(records), named)
    for key, workload in data.workloads.items():
        samples = [s for s in data.samples if s.workload == key]
        if len(samples) < LEAST:
            continue
        digest = KernelKey.of(workload.kernel).digest
        target = nominal_target(data.targets[samples[0].target])
        features = KernelFeatures(workload.kernel, target, samples[0].threads)
        rows = np.stack([features.extract(s.schedule) for s in samples])
        predicted = model.predict(model_inputs(rows, rows.mean(axis=0))).astype(np.float64)
        yield Recorded(
            name=f"{workload.family} {key[:6]}",
            candidates=tuple(Candidate(points[digest, s.schedule], s.schedule) for s in samples),
            speeds=np.array([samples[0].seconds / s.seconds for s in samples]),
            predicted=predicted,
        )


def play(kernel: Recorded, player: str, seed: int) -> list[float]:
    """Parts of the best recorded speed after ``MARKS`` trials, the default among them."""
    speed = {c.schedule: float(v) for c, v in zip(kernel.candidates, kernel.speeds)}
    opinion = {c.schedule: float(v) for c, v in zip(kernel.candidates, kernel.predicted)}
    strategy, _, model = player.partition(", ")

    def rank(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        return np.exp2(np.array([opinion[c.schedule] for c in candidates]))

    space: Any = RecordedSpace(kernel.candidates)
    search = STRATEGIES[strategy](space, seed, rank if model else None)
    reached = [speed[kernel.candidates[0].schedule]]
    search.tell(kernel.candidates[0], reached[0])
    while len(reached) < MARKS[-1] and (batch := search.propose(BATCH)):
        for candidate in batch:
            score = speed[candidate.schedule]
            search.tell(candidate, score)
            reached.append(max(reached[-1], score))
    best = float(kernel.speeds.max())
    return [reached[min(n, len(reached)) - 1] / best for n in MARKS]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("--records", type=Path, default=RECORDS / "test.jsonl.gz")
    parser.add_argument("--seeds", type=int, default=4)
    given = parser.parse_args(arguments)
    curves: dict[str, list[list[float]]] = {player: [] for player in PLAYERS}
    ranks = []
    for kernel in recorded_kernels(given.records, WORKLOADS):
        measured = np.log2(kernel.speeds)
        rank = spearman(kernel.predicted, measured)
        top = best_of_top(kernel.predicted, measured, 10)
        ranks.append((kernel.name, str(len(measured)), f"{rank:.2f}", f"{top:.1%}"))
        print("  ".join(ranks[-1]), file=sys.stderr, flush=True)
        for player in PLAYERS:
            runs = [play(kernel, player, seed) for seed in range(given.seeds)]
            curves[player].append(np.mean(runs, axis=0).tolist())
    tables = [
        Table(
            title="the model's ranks",
            columns=("kernel", ">schedules", ">rank correlation", ">best of 10"),
            rows=tuple(ranks),
        ),
        Table(
            title="part of the best recorded speed after so many trials",
            columns=("trials", *(f">{player}" for player in PLAYERS)),
            rows=tuple(
                (str(mark), *(f"{mean([c[k] for c in curves[p]]):.1%}" for p in PLAYERS))
                for k, mark in enumerate(MARKS)
            ),
            caption=f"Geometric means over {len(ranks)} kernels, {given.seeds} seeds each.",
        ),
    ]
    text = render_tables(tables, width=120)
    (RESULTS / "replay.md").write_text(f"# Searches on recorded schedules\n\n```\n{text}\n```\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
