"""Which schedules a model is compiled with: what a search just confirmed, else what records say."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.config import Config
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.passes.fusion import FusedKernel

if TYPE_CHECKING:
    from nestor.autotune.strategies import Ranker
    from nestor.autotune.tuner import Progress, TuneOptions, Tuning
    from nestor.compiler import ModelKernels

_LEAST_PAIRS, _MOST_PAIRS = 7, 101
_PAIRS_SECONDS = 3.0


def chosen_schedules(
    kernels: Callable[[], ModelKernels], config: Config, tuning: Tuning | None = None
) -> dict[Program, Schedule]:
    """The schedules that kernels are known to be faster with, by kernel; of all others the default
    is the best known.

    Args: kernels: makes the model's kernels; not called where nothing is recorded. tuning: of this
        very model, if there was one: it counts even where records could not be written.
    """
    found: dict[Program, Schedule] = {}
    if config.cache is not None or Path(config.cache_dir, "records.db").exists():
        found = _confirmed(kernels(), config)
    for task in tuning.tasks if tuning is not None else ():
        if task.confirmed is not None:
            found[task.strategy.space.fused.kernel] = task.best.schedule
    return found


def _confirmed(kernels: ModelKernels, config: Config) -> dict[Program, Schedule]:
    from nestor.autotune.records import KernelKey, Records, TargetKey
    from nestor.autotune.tuner import confirmed_schedule

    found: dict[Program, Schedule] = {}
    target = TargetKey.of(kernels.target)
    with Records.open(config, create=False) as records:
        for fused in kernels.kernels:
            if fused.kernel.symbols:
                continue
            key = KernelKey.of(fused.kernel)
            schedule = confirmed_schedule(records, key, target, kernels.threads)
            if schedule is not None:
                found[fused.kernel] = schedule
    return found


def tune_kernels(
    kernels: ModelKernels,
    config: Config,
    options: TuneOptions,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Tuning:
    """Search schedules for the kernels of a model; records keep what is measured."""
    from nestor.autotune.measuring import Measurer
    from nestor.autotune.records import Records
    from nestor.autotune.tuner import Tuner

    with (
        Records.open(config) as records,
        Measurer(kernels.target, threads=kernels.threads, config=config) as measurer,
    ):
        return Tuner(
            kernels,
            measurer,
            records,
            options,
            ranker_for=lambda fused: _ranker(fused, kernels),
            report=report,
        ).run()


def _ranker(fused: FusedKernel, kernels: ModelKernels) -> Ranker | None:
    """The shipped cost model's opinion on a kernel's candidates; None without such a model."""
    from nestor.cost_model.ranking import rank_schedules, shipped_model

    model = shipped_model()
    if model is None:
        return None
    rank = rank_schedules(model, fused, kernels.target, kernels.threads)
    return lambda candidates: rank([c.schedule for c in candidates])


def is_slower(call: Callable[[], Any], other: Callable[[], Any]) -> bool:
    """Whether ``call`` takes longer than ``other``, by the median of paired times."""
    call(), other()
    ratios: list[float] = []
    begin = time.perf_counter()
    while len(ratios) < _MOST_PAIRS:
        if len(ratios) >= _LEAST_PAIRS and time.perf_counter() - begin > _PAIRS_SECONDS:
            break
        start = time.perf_counter()
        call()
        middle = time.perf_counter()
        other()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(ratios) > 1
