"""What records teach: a data set for the cost model from everything that was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from nestor.autotune.records.record import Record
from nestor.cost_model.dataset import Dataset, Sample, Workload, nominal_target
from nestor.ir.schedule import Schedule
from nestor.target.cpu import CpuTarget

_QUANTILE = 0.25
"""Of a time's samples, what stands for it: a machine is often disturbed and never too fast."""

_NEAR = 8
"""Records before and after one that tell how fast the machine was then."""


def measured_dataset(
    records: Iterable[Record], families: Mapping[str, str] | None = None
) -> Dataset:
    """Everything that ran, with times that can be compared.

    A machine's speed drifts, and a reference ran beside every candidate: a candidate's time is
    corrected by what the reference took over the records around it. (The ratio of single pairs,
    which decides a search, carries the noise of two samples; ranks of candidates that lie within a
    few per cent of each other repeat better from times.)

    Args: families: by digest of a kernel, what it is; of others the records' own (equal texts but
        for sizes) is taken.
    """
    families = families or {}
    grouped: dict[tuple[str, str, int, str], list[Record]] = {}
    for record in records:
        if record.status == "ok" and record.samples_ns:
            place = (record.kernel.digest, record.target.digest, record.threads, record.generator)
            grouped.setdefault(place, []).append(record)
    out = Dataset()
    for group in grouped.values():
        first = group[0]
        family = families.get(first.kernel.digest, first.kernel.family)
        workload = Workload(family=family, kernel=first.kernel.program())
        key, target = out.add(workload, _target(first))
        for schedule, seconds in _times(group).items():
            out.samples.append(
                Sample(
                    workload=key,
                    target=target,
                    threads=first.threads,
                    schedule=schedule,
                    seconds=seconds,
                )
            )
    return out


def _target(record: Record) -> CpuTarget:
    facts: dict[str, Any] = dict(record.target.facts)
    return nominal_target(CpuTarget.from_json({**facts, "ghz": 1.0, "memory_gbps": 1.0}))


def _times(group: list[Record]) -> dict[Schedule, float]:
    """The time of each schedule [s]: the median of its records', at the machine's usual speed."""
    group = sorted(group, key=lambda record: record.created_ns)
    references = [[reference for _, reference in record.samples_ns] for record in group]
    usual = _low([time for times in references for time in times])
    found: dict[Schedule, list[float]] = {}
    for at, record in enumerate(group):
        near = references[max(0, at - _NEAR) : at + _NEAR + 1]
        speed = usual / _low([time for times in near for time in times])
        own = _low([time for time, _ in record.samples_ns])
        found.setdefault(record.schedule, []).append(own * speed * 1e-9)
    return {schedule: statistics.median(times) for schedule, times in found.items()}


def _low(times: list[float]) -> float:
    return sorted(times)[int(_QUANTILE * len(times))]
