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
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.autotune.strategies import Ranker
    from nestor.autotune.tuner import Progress, TuneOptions, Tuning
    from nestor.compiler import ModelKernels

_LEAST_PAIRS, _MOST_PAIRS = 7, 101
_PAIRS_SECONDS = 3.0


def schedule_chooser(
    target: CpuTarget, threads: int, config: Config, tuning: Tuning | None = None
) -> Callable[[FusedKernel], Schedule | None] | None:
    """What gives kernels their schedules; None where nothing is known, at no cost.

    Args: target, threads: of the kernels. tuning: of this very model, if there was one.
    """
    found: dict[Program, Schedule] = {}
    for task in tuning.tasks if tuning is not None else ():
        if task.confirmed is not None:
            found[task.strategy.space.fused.kernel] = task.best.schedule
    if config.cache is None and not Path(config.cache_dir, "records.db").exists():
        return (lambda fused: found.get(fused.kernel)) if found else None

    from nestor.autotune.records import KernelKey, Records, TargetKey
    from nestor.autotune.tuner import confirmed_schedule

    records = Records.open(config, create=False)
    key = TargetKey.of(target)

    def choose(fused: FusedKernel) -> Schedule | None:
        if fused.kernel in found or fused.kernel.symbols:
            return found.get(fused.kernel)
        return confirmed_schedule(records, KernelKey.of(fused.kernel), key, threads)

    return choose


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
