"""The tuner with a made-up machine: where trials go, what records keep, when it ends."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nestor.autotune.choosing import chosen_schedules
from nestor.autotune.measuring import Candidate, Confirmation, Measurement
from nestor.autotune.options import TuneOptions, parse_seconds
from nestor.autotune.pairing import median_interval
from nestor.autotune.records import KernelKey, Records, TargetKey
from nestor.autotune.task import Task
from nestor.autotune.tuner import CONFIRMED, Progress, Tuner, confirmed_schedule
from nestor.compiler import ModelKernels
from nestor.config import Config
from nestor.errors import InternalError, UserError
from nestor.ir.program import Program
from nestor.ir.schedule import Tile
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.target.cpu import parse_target
from tests.helpers import ir_programs as programs

TARGET = parse_target("avx512")


def kernel(program: Program) -> FusedKernel:
    (part,) = partition_program(program, l2_bytes=1 << 20).parts
    assert isinstance(part, FusedKernel)
    return canonicalize_kernel(part)[0]


LARGE = kernel(programs.matmul(512, 768, 700))
SMALL = kernel(programs.matmul(64, 96, 70))


def time_ns(candidate: Candidate) -> float:
    """Work by tiles of a size that suits this machine, which has nothing to do with any other."""
    sizes = [s.size for s in candidate.schedule if isinstance(s, Tile)]
    work = math.prod(e.const for t in candidate.kernel.tensors[:2] for e in t.shape) ** 0.75
    return work * (1 + 0.05 * sum(abs(math.log2(n) - 4) for n in sizes))


@dataclass
class Machine:
    """Stands in for a ``Measurer``.

    Attributes: fail: what becomes of a candidate, if it is not measured. asked: kernels in the
        order of their batches. stop_after: a batch that Ctrl-C ends.
    """

    fail: Callable[[Candidate], str] = lambda candidate: ""
    asked: list[Program] = field(default_factory=list)
    confirmed: list[Candidate] = field(default_factory=list)
    stop_after: int = 10**9
    broken: Program | None = None
    faster_alone: bool = True
    slots: int = 1

    def measure(
        self, candidates: Sequence[Candidate], reference: Candidate, **more: Any
    ) -> list[Measurement]:
        self.asked.append(reference.kernel)
        if len(self.asked) > self.stop_after:
            raise KeyboardInterrupt
        if reference.kernel == self.broken:
            raise InternalError("the reference schedule is wrong")
        return [self._one(c, reference) for c in candidates]

    def _one(self, candidate: Candidate, reference: Candidate) -> Measurement:
        status = self.fail(candidate)
        if status:
            return Measurement(status=status, detail="made up")  # type: ignore[arg-type]
        pairs = ((time_ns(candidate), time_ns(reference)),) * 6
        return Measurement(status="ok", samples_ns=pairs)

    def confirm(self, candidate: Candidate, default: Candidate, **more: Any) -> Confirmation:
        self.confirmed.append(candidate)
        found = self._one(candidate, default)
        if not self.faster_alone:
            found = Measurement(status="ok", samples_ns=((2.0, 1.0),) * 9)
        same = median_interval([1.0] * 9)
        return Confirmation(
            ratio=found.ratio, null=same, agrees=True, measurement=found, seeds=(1,)
        )


def kernels(*calls: tuple[FusedKernel, int]) -> ModelKernels:
    return ModelKernels(
        kernels=tuple(k for k, _ in calls),
        calls=tuple(n for _, n in calls),
        target=TARGET,
        threads=2,
    )


def tuner(
    path: Path, machine: Machine, *calls: tuple[FusedKernel, int], **options: Any
) -> tuple[Tuner, Records]:
    records = Records.open(path / "records.db")
    made = Tuner.of_model(kernels(*calls), machine, records, TuneOptions(**options))  # type: ignore[arg-type]
    return made, records


def test_what_is_found_is_confirmed_kept_and_chosen(tmp_path: Path) -> None:
    machine = Machine()
    search, records = tuner(tmp_path, machine, (LARGE, 1), trials=60)
    found = search.run()
    (task,) = found.tasks
    assert found.trials == 60
    assert found.statuses == {"ok": 60}
    assert found.tuned_ns < found.default_ns
    assert task.confirmed == task.ratio < 1
    assert [c.schedule for c in machine.confirmed] == [task.best.schedule]
    history = records.history(task.key.digest)
    assert len(history) == 61
    assert [r.strategy for r in history].count(CONFIRMED) == 1
    key = (KernelKey.of(LARGE.kernel), TargetKey.of(TARGET))
    assert confirmed_schedule(records, *key, threads=2) == task.best.schedule
    assert confirmed_schedule(records, *key, threads=1) is None
    both = kernels((LARGE, 1), (SMALL, 1))
    chosen = chosen_schedules(lambda: both, Config(cache_dir=tmp_path))
    assert chosen == {LARGE.kernel: task.best.schedule}


def test_a_kernel_whose_default_is_wrong_stops_no_other(tmp_path: Path) -> None:
    machine = Machine(broken=SMALL.kernel)
    search, records = tuner(tmp_path, machine, (SMALL, 10**6), (LARGE, 1), trials=40)
    found = search.run()
    assert found.unmeasured == {"k0": "the reference schedule is wrong"}
    assert {t.name: t.trials for t in found.tasks} == {"k0": 0, "k1": 40}
    assert found.trials == found.statuses["ok"] == 40
    assert not records.history(KernelKey.of(SMALL.kernel).digest)


def test_nothing_recorded_costs_nothing(tmp_path: Path) -> None:
    def fail() -> ModelKernels:
        raise AssertionError("nobody needs the kernels")

    assert chosen_schedules(fail, Config(cache_dir=tmp_path)) == {}


def test_trials_go_where_the_model_gains_most(tmp_path: Path) -> None:
    machine = Machine()
    search, _ = tuner(tmp_path, machine, (SMALL, 1), (LARGE, 4), trials=64)
    search.run()
    searched = machine.asked[2:]  # the first ones time the defaults
    assert searched.count(LARGE.kernel) > 2 * searched.count(SMALL.kernel)
    small, _ = tuner(tmp_path / "other", Machine(), (SMALL, 10**6), (LARGE, 1), trials=64)
    counts = {t.key.digest: t.trials for t in small.run().tasks}
    assert counts[KernelKey.of(SMALL.kernel).digest] > counts[KernelKey.of(LARGE.kernel).digest]


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    first, _ = tuner(tmp_path, Machine(), (LARGE, 1), trials=32)
    best = first.run().tasks[0].ratio
    machine = Machine()
    second, records = tuner(tmp_path, machine, (LARGE, 1), trials=32)
    task = second.tasks[0]
    found = second.run()
    assert task.ratio <= best
    assert found.trials == 32
    schedules = [r.schedule for r in records.history(task.key.digest) if r.strategy != CONFIRMED]
    assert len(set(schedules)) == len(schedules) == 64


def test_failures_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    statuses = ("crashed", "timeout", "wrong", "memory", "illegal")
    count = iter(range(10**6))

    def fail(candidate: Candidate) -> str:
        number = next(count)
        return statuses[number % 7] if number % 7 < len(statuses) and number > 1 else ""

    search, records = tuner(tmp_path, Machine(fail=fail), (LARGE, 1), trials=56)
    found = search.run()
    assert sum(found.statuses.values()) == 56
    assert set(statuses) <= set(found.statuses)
    kept = {r.status for r in records.history(found.tasks[0].key.digest)}
    assert set(statuses) <= kept


def test_what_is_not_confirmed_is_not_chosen(tmp_path: Path) -> None:
    search, records = tuner(tmp_path, Machine(faster_alone=False), (LARGE, 1), trials=24)
    (task,) = search.run().tasks
    assert task.ratio < 1
    assert task.confirmed is None
    key = (KernelKey.of(LARGE.kernel), TargetKey.of(TARGET))
    assert confirmed_schedule(records, *key, threads=2) is None


def test_ctrl_c_keeps_the_best(tmp_path: Path) -> None:
    search, records = tuner(tmp_path, Machine(stop_after=5), (LARGE, 1), trials=10**6)
    found = search.run()
    assert found.interrupted
    assert found.trials == 32
    assert len(records.history(found.tasks[0].key.digest)) >= 32
    assert found.tasks[0].best != found.tasks[0].default


def test_only_some_kernels(tmp_path: Path) -> None:
    search, _ = tuner(tmp_path, Machine(), (SMALL, 1), (LARGE, 1), trials=8, only=("k1",))
    assert [t.name for t in search.run().tasks] == ["k1"]


def test_kernels_without_decisions_are_left_out(tmp_path: Path) -> None:
    plain = kernel(programs.scatter_last())
    search, _ = tuner(tmp_path, Machine(), (plain, 1), trials=8)
    assert search.run().reason == "every schedule was tried"


def test_hope_fades(tmp_path: Path) -> None:
    search, _ = tuner(tmp_path, Machine(), (LARGE, 2), trials=8)
    task: Task = search.tasks[0]
    task.default_ns, task.limit_ns = 1000.0, 100.0
    first = task.expected_gain_ns()
    task.end_batch(8, 2.0)
    later = task.expected_gain_ns()
    assert 0 < later < first
    task.tell(task.strategy.propose(1)[0], 0.5)
    task.end_batch(8, 2.0)
    assert task.expected_gain_ns() > later
    task.limit_ns = 499.0
    assert task.expected_gain_ns() == 0.01 * task.total_ns
    assert task.expected_seconds(9.0) == 2.0


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[Progress] = []
    records = Records.open(tmp_path / "records.db")
    search = Tuner.of_model(
        kernels((LARGE, 1)),
        Machine(),
        records,
        TuneOptions(trials=16),
        report=told.append,  # type: ignore[arg-type]
    )
    search.run()
    assert [p.phase for p in told] == ["timing", "searching", "searching", "confirming"]
    assert told[-1].best_ns < told[0].default_ns


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60.0), ("1.5m", 90.0), ("2h", 7200.0), (7, 7.0), ("0.5", 0.5)]
)
def test_spans(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3s", "0", "10 d", "1e3"])
def test_wrong_spans_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="60s, 10m or 1h"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "give at least 1"),
        ({"trials": -3}, "give at least 1"),
        ({"only": ("k7",)}, "no kernel 'k7'; its kernels are k0 to k0"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tuner(tmp_path, Machine(), (LARGE, 1), **options)


def test_records_name_the_strategy_that_proposed(tmp_path: Path) -> None:
    tiny = kernel(programs.layer_norm(5, 100))
    search, records = tuner(tmp_path, Machine(), (tiny, 1), trials=4, strategy="random")
    (task,) = search.run().tasks
    found = {r.strategy for r in records.history(task.key.digest)} - {CONFIRMED}
    assert found == {"exhaustive"}  # a small space is walked through


def test_an_unknown_strategy_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no strategy 'luck'"):
        tuner(tmp_path, Machine(), (LARGE, 1), strategy="luck")


@dataclass
class Cluster(Machine):
    """Several machines, each of which takes a while; they note what they measure at once."""

    slots: int = 3
    at_once: list[tuple[str, ...]] = field(default_factory=list)
    lost_after: int = 10**9

    def __post_init__(self) -> None:
        self.lock, self.busy = threading.Lock(), list[str]()

    def measure(
        self, candidates: Sequence[Candidate], reference: Candidate, **more: Any
    ) -> list[Measurement]:
        name = KernelKey.of(reference.kernel).digest
        with self.lock:
            self.busy.append(name)
            self.at_once.append(tuple(self.busy))
            if len(self.at_once) > self.lost_after:
                self.slots = 1
        time.sleep(0.02)
        try:
            return super().measure(candidates, reference, **more)
        finally:
            with self.lock:
                self.busy.remove(name)


def test_several_machines_measure_different_kernels_at_once(tmp_path: Path) -> None:
    shapes = ((64, 96, 70), (96, 64, 70), (70, 96, 64), (128, 96, 70))
    calls = [(kernel(programs.matmul(*s)), 1) for s in shapes]
    machine = Cluster()
    search, records = tuner(tmp_path, machine, *calls, trials=84)
    found = search.run()
    assert found.trials == sum(found.statuses.values()) == 84
    kept = [r for t in found.tasks for r in records.history(t.key.digest)]
    assert sorted(r.trial for r in kept if r.strategy != CONFIRMED) == list(range(84))
    assert max(map(len, machine.at_once)) == 3
    assert all(len(set(names)) == len(names) for names in machine.at_once)


def test_machines_that_are_lost_leave_one_at_a_time(tmp_path: Path) -> None:
    calls = [(kernel(programs.matmul(64, 96, 64 + n)), 1) for n in range(4)]
    machine = Cluster(lost_after=8)
    search, _ = tuner(tmp_path, machine, *calls, trials=120)
    assert search.run().trials == 120
    assert all(len(names) == 1 for names in machine.at_once[-5:])


def test_ctrl_c_ends_a_search_on_several_machines(tmp_path: Path) -> None:
    calls = [(kernel(programs.matmul(64, 96, 64 + n)), 1) for n in range(4)]
    search, _ = tuner(tmp_path, Cluster(stop_after=9), *calls, trials=10**6)
    found = search.run()
    assert found.interrupted and 0 < found.trials < 80
