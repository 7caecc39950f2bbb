"""Which schedules a model is compiled with: what a search just confirmed, else what records say."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestor.benchmarking.outputs import arrays
from nestor.config import Config
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.target.gpu import GpuTarget

if TYPE_CHECKING:
    from nestor.autotune.measuring import Limits, Measurer
    from nestor.autotune.options import TuneOptions
    from nestor.autotune.pairing import Pair
    from nestor.autotune.program_search import CompareWhole, ProgramTuning
    from nestor.autotune.program_space import ProgramPoint, ProgramSpace
    from nestor.autotune.ray_pool import RayPool
    from nestor.autotune.strategies import Ranker
    from nestor.autotune.tuner import Progress, Tuning
    from nestor.compiler import ModelKernels

_PROGRAM_SHARE = 0.4
"""Part of a budget that the Program's own decisions get at most, before they are confirmed."""

_LEAST_SECONDS = 30.0
"""Smaller budgets are for kernels alone: each decision takes a run of all passes [s]."""

_LEAST_PAIRS, _MOST_PAIRS = 7, 101
_PAIRS_SECONDS = 3.0


def chosen_schedules(
    kernels: Callable[[], ModelKernels], config: Config, tuning: Tuning | None = None
) -> dict[Program, Schedule]:
    """The schedules that kernels are known to be faster with, by kernel; of all others the default
    is the best known.

    Args: kernels: makes the model's kernels; not called where nothing is recorded. tuning: of this
        very model, if there was one: it counts where records could not be written.
    """
    found: dict[Program, Schedule] = {}
    if has_records(config):
        found = _confirmed(kernels(), config)
    for task in tuning.tasks if tuning is not None else ():
        if task.winner is not None:
            # Where records tell as well, their word counts: a later process has nothing else.
            found.setdefault(task.kernel, task.winner.schedule)
    return found


def has_records(config: Config) -> bool:
    """Whether there may be records to read."""
    return config.cache is not None or Path(config.cache_dir, "records.db").exists()


def known_point(space: ProgramSpace) -> ProgramPoint:
    """What records say of a Program's own decisions; empty: the rules decide."""
    if not space.has_sizes or not has_records(space.config):
        return ()
    from nestor.autotune.program_search import recorded_point
    from nestor.autotune.records import Records

    with Records.open(space.config, create=False) as records:
        return recorded_point(space, records)


def _confirmed(kernels: ModelKernels, config: Config) -> dict[Program, Schedule]:
    from nestor.autotune.records import KernelKey, Records, TargetKey
    from nestor.autotune.tuner import confirmed_schedules

    sizes = (kernels.sizes_of(n) for n in range(len(kernels.kernels)))
    keys = {
        fused.kernel: KernelKey.of(fused.kernel, own)
        for fused, own in zip(kernels.kernels, sizes)
        if own is not None
    }
    target = TargetKey.of(kernels.target)
    with Records.open(config, create=False) as records:
        found = confirmed_schedules(records, list(keys.values()), target, kernels.threads)
    return {kernel: found[key.digest] for kernel, key in keys.items() if key.digest in found}


class ModelTuner:
    """Tunes a model within one budget: first the Program's own decisions, then kernels.

    Args: options: with few or no ``seconds``, or with kernels by name, only kernels are tuned.
    """

    def __init__(
        self,
        config: Config,
        options: TuneOptions,
        report: Callable[[Progress], None] = lambda progress: None,
    ):
        self._config = config
        self._options = options
        self._report = report
        self._spent = 0.0

    def decide(self, space: ProgramSpace, compare: CompareWhole) -> ProgramTuning | None:
        """Search the Program's decisions for a part of the budget; None: it is not to be done."""
        self._spent = 0.0
        seconds = self._options.seconds
        if seconds is None or seconds < _LEAST_SECONDS or self._options.only:
            return None
        if not space.has_sizes:
            return None
        start = time.perf_counter()
        tuning = decide_program(space, compare, _PROGRAM_SHARE * seconds)
        self._spent = time.perf_counter() - start
        return tuning

    def tune(self, kernels: ModelKernels) -> Tuning:
        """Search kernels' schedules for the rest of it."""
        options = self._options
        if options.seconds is not None:
            least = (1 - _PROGRAM_SHARE) * options.seconds / 2
            options = replace(options, seconds=max(least, options.seconds - self._spent))
        return tune_kernels(kernels, self._config, options, self._report)


def decide_program(space: ProgramSpace, compare: CompareWhole, seconds: float) -> ProgramTuning:
    """Search a Program's own decisions; records keep what the whole model confirms."""
    from nestor.autotune.measuring import Measurer
    from nestor.autotune.program_search import ProgramTuner
    from nestor.autotune.records import Records

    kernels = space.at().kernels
    with (
        Records.open(space.config) as records,
        Measurer(kernels.target, threads=kernels.threads, config=space.config) as measurer,
    ):
        return ProgramTuner(space, measurer, records, compare, seconds=seconds).run()


def tune_kernels(
    kernels: ModelKernels,
    config: Config,
    options: TuneOptions,
    report: Callable[[Progress], None] = lambda progress: None,
    *,
    found: Callable[[Tuning], None] = lambda tuning: None,
    limits: Limits | None = None,
    compile_workers: int | None = None,
) -> Tuning:
    """Search schedules for the kernels of a model; records keep what is measured.

    Args: report, found: see ``Tuner``. limits, compile_workers: see ``Measurer``.
    """
    from nestor.autotune.records import Records
    from nestor.autotune.tuner import Tuner

    with (
        Records.open(config) as records,
        _measurer(kernels, config, limits, compile_workers) as measurer,
    ):
        return Tuner.of_model(
            kernels,
            measurer,
            records,
            options,
            ranker_for=lambda number: _ranker(number, kernels, config),
            report=report,
            found=found,
        ).run()


def recalled_tuning(kernels: ModelKernels, config: Config) -> Tuning:
    """What records know of a model's kernels here, as if it had just been searched."""
    from nestor.autotune.measuring import Measurer
    from nestor.autotune.options import TuneOptions
    from nestor.autotune.records import Records
    from nestor.autotune.tuner import Tuner

    with (
        Records.open(config, create=False) as records,
        Measurer(kernels.target, threads=kernels.threads, config=config) as measurer,
    ):
        # The cheapest strategy to tell: none is asked.
        tuner = Tuner.of_model(kernels, measurer, records, TuneOptions(strategy="random"))
        tuner.recall()
        tuner.result.reason = "from records"
        return tuner.result


def _measurer(
    kernels: ModelKernels, config: Config, limits: Limits | None, compile_workers: int | None
) -> Measurer | RayPool:
    """This machine, or the cluster that ``config`` names."""
    from nestor.autotune.measuring import Measurer

    def local() -> Measurer:
        return Measurer(
            kernels.target,
            threads=kernels.threads,
            config=config,
            limits=limits,
            compile_workers=compile_workers,
            precisions={
                k.kernel: precision for k, precision in zip(kernels.kernels, kernels.precisions)
            },
        )

    if config.ray is None or isinstance(kernels.target, GpuTarget):
        return local()
    from nestor.autotune.ray_pool import RayPool
    from nestor.autotune.records import TargetKey

    key = TargetKey.of(kernels.target)
    return RayPool(config.ray, target=config.target, key=key, threads=kernels.threads, local=local)


def _ranker(number: int, kernels: ModelKernels, config: Config) -> Ranker | None:
    """The cost model's opinion on a kernel's candidates; None without such a model.

    Args: number: the kernel's position.
    """
    from nestor.cost_model.gpu_features import rank_gpu_schedules
    from nestor.cost_model.ranking import NO_MODEL, chosen_model, rank_schedules

    fused, sizes = kernels.kernels[number], kernels.sizes_of(number)
    if isinstance(kernels.target, GpuTarget):
        if config.cost_model == NO_MODEL:
            return None
        rank = rank_gpu_schedules(fused.kernel, kernels.target, sizes=sizes)
    else:
        model = chosen_model(config.cost_model)
        if model is None:
            return None
        rank = rank_schedules(model, fused, kernels.target, kernels.threads, sizes=sizes)
    return lambda candidates: rank([c.schedule for c in candidates])


def is_slower(
    call: Callable[[], Any], other: Callable[[], Any], seconds: float = _PAIRS_SECONDS
) -> bool:
    """Whether ``call`` takes longer than ``other``, by the median of paired times."""
    return time_ratio(call, other, seconds) > 1


def time_ratio(
    call: Callable[[], Any],
    other: Callable[[], Any],
    seconds: float = _PAIRS_SECONDS,
    is_over: Callable[[], bool] = lambda: False,
) -> float:
    """The time of ``call`` over that of ``other``, by the median of pairs.

    Args: seconds, is_over: see ``time_calls``; what an ended one gives means nothing.
    """
    return statistics.median(c / o for c, o in time_calls(call, other, seconds, is_over))


def time_calls(
    call: Callable[[], Any],
    other: Callable[[], Any],
    seconds: float = _PAIRS_SECONDS,
    is_over: Callable[[], bool] = lambda: False,
) -> list[Pair]:
    """Times of two functions' calls in turns [ns].

    Args: seconds: to take pairs for, if there are some already [s]. is_over: ends it at once.
    """
    call(), other()
    pairs: list[Pair] = []
    begin = time.perf_counter()
    while len(pairs) < _MOST_PAIRS and not (pairs and is_over()):
        if len(pairs) >= _LEAST_PAIRS and time.perf_counter() - begin > seconds:
            break
        start = time.perf_counter_ns()
        call()
        middle = time.perf_counter_ns()
        other()
        pairs.append((middle - start, time.perf_counter_ns() - middle))
    return pairs


def agree(outputs: Any, wanted: Any) -> bool:
    """Whether two results of a model are the same but for rounding.

    Decisions of a Program reassociate sums, layer after layer, so there is no bound from first
    principles; what is wrong rather than rounded is off by more than the root of a type's unit
    roundoff, of the largest element. Integers are to be equal.
    """
    found, expected = arrays(outputs), arrays(wanted)
    return len(found) == len(expected) and all(map(_agree, found, expected))


def _agree(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not np.issubdtype(expected.dtype, np.inexact):
        return bool(np.array_equal(found, expected))
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return False
    largest = float(np.abs(expected[finite]).max(initial=0.0))
    error = np.abs(found[finite] - expected[finite]).max(initial=0.0)
    return bool(error <= float(np.finfo(expected.dtype).eps) ** 0.5 * largest)
