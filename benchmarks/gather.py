"""Measure schedules of drawn kernels: what the cost model is trained on and judged by.

``python -m benchmarks.gather --cache sqlite:////data/gathered.db --minutes 30`` goes on where the
last run ended. ``--set train`` takes the kernels of one seed, ``--set test`` those of another, with
many more schedules each, so that the best on record is near the best there is. Everything is a
record (``nestor cache``); which operator a kernel was drawn as stands in ``workloads.json`` beside
the exported records.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.alone import alone
from nestor.autotune.measuring import Candidate as Scheduled
from nestor.autotune.measuring import Limits, Measurement, Measurer
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.records import KernelKey, Record, Records, TargetKey
from nestor.autotune.space import Candidate, Space
from nestor.autotune.strategies import Strategy, strategy_for
from nestor.config import Config
from nestor.cost_model.workload_texts import FAMILIES
from nestor.cost_model.workloads import GeneratedWorkload, generate_workloads
from nestor.errors import InternalError
from nestor.target.cpu import CpuTarget, host_target

RECORDS = Path(__file__).parent / "records"
WORKLOADS = RECORDS / "workloads.json"
SEEDS = {"train": 1, "test": 2}
EACH = {"train": 32, "test": 1000}
LEAST_SPACE = {"train": 2, "test": 200}
"""Kernels with fewer schedules than this say nothing about ranks."""

BATCH = 16
_COUNTED = 1 << 20
_POLICY = PairPolicy(least=6, most=8, seconds=0.15, precision=0.01, margin=0.5, hopeless=3.0)
_PASSES = 2
"""A batch is measured so often from beginning to end: what disturbs a machine for a second should
not fall on all pairs of one schedule."""

_LIMITS = Limits(interpreted=2_000_000, compile_seconds=10.0, run_seconds=5.0)
_SINGLE = 4
"""Of so many training kernels one runs on one thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """What to measure: which set, how many schedules a kernel, until when [s]."""

    kind: str
    each: int
    seconds: float
    families: tuple[str, ...]


class Gatherer:
    """Measures one kernel after the other into a database."""

    def __init__(self, records: Records, target: CpuTarget, config: Config, what: Gathering):
        self._records, self._target, self._what = records, target, what
        self._config = config
        self._measurers: dict[int, Measurer] = {}
        self._key = TargetKey.of(target)
        self._end = time.monotonic() + what.seconds

    def close(self) -> None:
        """End all processes."""
        for measurer in self._measurers.values():
            measurer.close()

    def run(self) -> None:
        """Kernels in turn until the time is over."""
        clock = time.monotonic()
        total = 0
        for number, drawn in enumerate(
            workloads(self._what.kind, self._target, self._what.families)
        ):
            if time.monotonic() >= self._end:
                break
            is_single = self._what.kind == "train" and number % _SINGLE == 3
            threads = 1 if is_single else self._target.cores
            space = Space(drawn.fused, self._target)
            if space.size(LEAST_SPACE[self._what.kind]) < LEAST_SPACE[self._what.kind]:
                continue
            try:
                count, best = self._kernel(drawn, space, threads)
            except InternalError as error:
                print(f"{drawn.family}: {error}"[:300], file=sys.stderr)
                continue
            total += count
            if count:
                rate = total / (time.monotonic() - clock)
                print(
                    f"{number} {drawn.family} ({threads} threads): {count} schedules, best "
                    f"{1 / best:.2f}x the default; {total} in all, {rate:.1f}/s",
                    flush=True,
                )

    def _kernel(self, drawn: GeneratedWorkload, space: Space, threads: int) -> tuple[int, float]:
        """Measure what is missing of one kernel's share: how many, and the best ratio."""
        key = KernelKey.of(drawn.fused.kernel)
        known = self._records.history(key.digest, target=self._key.digest, threads=threads)
        wanted = self._what.each - len(known)
        if wanted <= 0:
            return 0, 1.0
        note_family(key.digest, drawn.family, self._what.kind)
        seed = SEEDS[self._what.kind]
        searches = [strategy_for(n, space, seed, None) for n in ("random", "bayesian")]
        for record in known:
            candidate = Candidate(record.point or (), record.schedule)  # type: ignore[arg-type]
            _tell(searches, candidate, record.ratio)
        count, best = 0, 1.0
        default = space.default()
        while count < wanted and time.monotonic() < self._end:
            done = len(known) + count
            search = searches[done >= self._what.each // 2]
            candidates = _next(search, default if done == 0 else None, wanted - count)
            if not candidates:
                break
            found = self._measure(drawn, threads, candidates, default, best)
            self._keep(key, threads, search.name, done, zip(candidates, found))
            count += len(candidates)
            for c, m in zip(candidates, found):
                ratio = None if m.ratio is None else m.ratio.median
                best = min(best, ratio or best)
                _tell(searches, c, ratio)
        return count, best

    def _keep(
        self,
        key: KernelKey,
        threads: int,
        strategy: str,
        trial: int,
        measured: Iterable[tuple[Candidate, Measurement]],
    ) -> None:
        self._records.add_many(
            Record(
                kernel=key,
                target=self._key,
                threads=threads,
                schedule=candidate.schedule,
                point=candidate.point,
                status=found.status,
                samples_ns=rounded(found),
                detail=found.detail,
                strategy=strategy,
                trial=trial + n,
            )
            for n, (candidate, found) in enumerate(measured)
        )

    def _measure(
        self,
        drawn: GeneratedWorkload,
        threads: int,
        candidates: Sequence[Candidate],
        default: Candidate,
        best: float,
    ) -> list[Measurement]:
        if threads not in self._measurers:
            self._measurers[threads] = Measurer(
                self._target, threads=threads, config=self._config, policy=_POLICY, limits=_LIMITS
            )
        kernel = drawn.fused.kernel
        scheduled = [Scheduled(kernel=kernel, schedule=c.schedule) for c in candidates]
        reference = Scheduled(kernel=kernel, schedule=default.schedule)
        measurer = self._measurers[threads]
        passes = [measurer.measure(scheduled, reference, best=best) for _ in range(_PASSES)]
        return [_together(parts) for parts in zip(*passes)]


def _together(passes: Sequence[Measurement]) -> Measurement:
    """One measurement of several; of a failure, the first."""
    failed = [m for m in passes if m.status != "ok"]
    pairs = tuple(pair for m in passes for pair in m.samples_ns)
    return failed[0] if failed else replace(passes[0], samples_ns=pairs)


def _next(search: Strategy, first: Candidate | None, wanted: int) -> list[Candidate]:
    """What to measure now, ``first`` before all others."""
    size = min(BATCH, wanted)
    if first is None:
        return search.propose(size)
    rest = [c for c in search.propose(size) if c.schedule != first.schedule]
    return [first, *rest][:size]


def _tell(searches: Sequence[Strategy], candidate: Candidate, ratio: float | None) -> None:
    for search in searches:
        search.tell(candidate, None if ratio is None else 1 / ratio)


def rounded(found: Measurement) -> tuple[tuple[float, float], ...]:
    """Pairs to whole nanoseconds: the rest is noise, which does not compress."""
    return tuple((max(1.0, round(c)), max(1.0, round(r))) for c, r in found.samples_ns)


def workloads(kind: str, target: CpuTarget, families: Sequence[str]) -> Iterator[GeneratedWorkload]:
    """Kernels of a set; those of the test set are none of the training set's shapes."""
    drawn = generate_workloads(_COUNTED, SEEDS[kind], target, families or None)
    if kind == "train":
        return drawn
    known = json.loads(WORKLOADS.read_text()) if WORKLOADS.exists() else {}
    trained = {d for d, w in known.items() if w["set"] == "train"}
    return (d for d in drawn if KernelKey.of(d.fused.kernel).digest not in trained)


def note_family(digest: str, family: str, kind: str) -> None:
    """Keep which operator a kernel was drawn as, and for which set."""
    known = json.loads(WORKLOADS.read_text()) if WORKLOADS.exists() else {}
    known[digest] = {"family": family, "set": kind}
    WORKLOADS.parent.mkdir(parents=True, exist_ok=True)
    part = WORKLOADS.with_suffix(".part")
    part.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n")
    part.replace(WORKLOADS)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gather", description=__doc__)
    parser.add_argument("--set", choices=sorted(SEEDS), default="train")
    parser.add_argument(
        "--cache", required=True, help="database of records: sqlite:///PATH or another URL"
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--each", type=int, help="schedules of a kernel")
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES), default=[])
    given = parser.parse_args(arguments)
    config = Config.load(cache=given.cache)
    what = Gathering(
        kind=given.set,
        each=given.each or EACH[given.set],
        seconds=60 * given.minutes,
        families=tuple(given.family),
    )
    with alone(), Records.open(config) as records:
        gatherer = Gatherer(records, host_target(), config, what)
        try:
            gatherer.run()
        except KeyboardInterrupt:
            print("stopped; what was measured is on record", file=sys.stderr)
        finally:
            gatherer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
