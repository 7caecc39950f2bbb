"""Data sets: what examples are made of, and what records teach."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.autotune.learning import measured_dataset
from nestor.autotune.records.record import KernelKey, Record, TargetKey
from nestor.cost_model.dataset import Dataset, Sample, Workload, make_examples, nominal_target
from nestor.cost_model.feature_table import FEATURES
from nestor.ir.parser import parse_program
from nestor.ir.schedule import Parallel, Schedule, Tile, Vectorize
from nestor.target.cpu import CpuTarget

TARGET = CpuTarget(
    cpu="x86-64-v4", features=("avx",), vector_bits=512, vector_registers=32, fma_bits_per_cycle=512
)
SCALE = """program kernel {
  input A: f32[64, 256]
  output B: f32[64, 256]
  statement S over { 0 <= i < 64, 0 <= j < 256 }
    B[i, j] = A[i, j] * 2.0:f32
}"""
WORKLOAD = Workload(family="pointwise", kernel=parse_program(SCALE))
KEY = KernelKey.of(WORKLOAD.kernel)
SCHEDULE: Schedule = (
    Tile(loop="S.j", size=16),
    Vectorize(loop="S.j.i"),
    Parallel(loop="S.i"),
)


def sample(schedule: Schedule, seconds: float, threads: int = 1) -> Sample:
    return Sample(
        workload=WORKLOAD.id,
        target=TARGET.fingerprint(),
        threads=threads,
        schedule=schedule,
        seconds=seconds,
    )


def test_examples_are_fractions_of_the_roofline() -> None:
    data = Dataset()
    data.add(WORKLOAD, TARGET)
    data.samples = [
        sample((), 5e-5),
        sample(SCHEDULE, 1e-5),
        sample(SCHEDULE, 1e-5, threads=2),
        sample((Tile(loop="S.q", size=3),), 1e-5),  # of another version: no such loop
    ]
    examples = make_examples(data)
    assert examples.features.shape == (3, len(FEATURES))
    assert examples.groups.tolist() == [0, 0, 1]
    assert examples.target[1] - examples.target[0] == pytest.approx(np.log2(5), abs=1e-5)
    expected = np.log2(examples.roofline_ns[0] / 5e4)
    assert examples.target[0] == pytest.approx(expected, abs=1e-5)
    some = examples.take(np.array([False, True, True]))
    assert len(some) == 2
    assert some.workloads == (WORKLOAD.id,) * 2


def record(schedule: Schedule, *pairs: tuple[float, float], **other: object) -> Record:
    facts: dict[str, object] = {"status": "ok", "threads": 2, **other}
    return Record(
        kernel=KEY, target=TargetKey.of(TARGET), schedule=schedule, samples_ns=pairs, **facts
    )  # type: ignore[arg-type]


def test_times_of_records_are_those_of_one_machine_state() -> None:
    others = [(Tile(loop="S.j", size=k),) for k in range(2, 42)]
    # While the first twenty were measured, all took twice as long.
    records = [
        record(o, (2e4 if k < 20 else 1e4, 2e4 if k < 20 else 1e4), created_ns=10 * k)
        for k, o in enumerate(others)
    ]
    records.append(record(SCHEDULE, (1e4, 2e4), created_ns=95))
    records.append(record((), (1e4, 1e4), created_ns=305))
    records.append(record((), status="crashed"))
    data = measured_dataset(records, {KEY.digest: "scale"})
    assert [w.family for w in data.workloads.values()] == ["scale"]
    times = {s.schedule: s.seconds for s in data.samples}
    assert times[SCHEDULE] == pytest.approx(5e-6)
    assert times[()] == pytest.approx(1e-5)


def test_measurements_of_the_same_schedule_are_one_sample() -> None:
    records = [record((), (k * 1e4, 1e4), created_ns=int(k)) for k in (1.0, 1.1, 5.0)]
    (only,) = measured_dataset(records).samples
    assert only.seconds == pytest.approx(1.1e-5)


def test_machines_that_differ_in_speed_alone_are_taken_alike() -> None:
    other = CpuTarget.from_json({**TARGET.to_json(), "ghz": 5.0, "memory_gbps": 99.0})
    assert nominal_target(other) == nominal_target(TARGET)
