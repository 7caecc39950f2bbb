"""The kernels of a model as tasks of the tuner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nestor.autotune.records.record import KernelKey
from nestor.autotune.space import space_of
from nestor.autotune.strategies import Ranker, strategy_for, strategy_named
from nestor.autotune.task import Task
from nestor.errors import UserError
from nestor.target.gpu import GpuTarget

if TYPE_CHECKING:
    from nestor.autotune.options import TuneOptions
    from nestor.compiler import ModelKernels
    from nestor.passes.fusion import FusedKernel


def model_tasks(
    kernels: ModelKernels,
    options: TuneOptions,
    ranker_for: Callable[[int], Ranker | None] = lambda number: None,
) -> list[Task]:
    """The kernels of a model that have decisions, as ``options`` want them.

    Args: ranker_for: the cost model's opinion on a kernel, by position.
    Raises: ``UserError`` for options that there cannot be.
    """
    _check_options(options, len(kernels.kernels))
    strategy_named(options.strategy)  # an unknown one is told of at once
    tasks: list[Task] = []
    for number, (fused, calls) in enumerate(zip(kernels.kernels, kernels.calls)):
        name = f"k{number}"
        sizes = kernels.sizes_of(number)
        if (options.only and name not in options.only) or sizes is None:
            continue
        space = space_of(fused, kernels.target)
        if not space.knobs():
            continue
        tasks.append(
            Task(
                name=name,
                key=KernelKey.of(fused.kernel, sizes),
                calls=calls,
                default=space.default(),
                strategy=strategy_for(options.strategy, space, options.seed, ranker_for(number)),
                limit_ns=_limit_ns(fused, sizes, kernels),
                sizes=sizes,
            )
        )
    return tasks


def _check_options(options: TuneOptions, kernels: int) -> None:
    """Raise ``UserError`` for a budget or kernels that there cannot be."""
    if options.trials is not None and options.trials < 1:
        raise UserError(f"{options.trials} trials find nothing; give at least 1")
    names = [f"k{n}" for n in range(kernels)]
    unknown = [name for name in options.only if name not in names]
    if unknown:
        raise UserError(
            f"the model has no kernel {unknown[0]!r}; its kernels are k0 to {names[-1]}: see "
            "`nestor compile` or the table of a run without --kernel"
            if names
            else f"the model has no kernel {unknown[0]!r}: it has none at all"
        )


def _limit_ns(fused: FusedKernel, sizes: Mapping[str, int], kernels: ModelKernels) -> float:
    """The least time that a kernel takes however it is scheduled [ns]."""
    from nestor.cost_model.kernel_facts import kernel_facts
    from nestor.cost_model.roofline import gpu_roofline, roofline

    facts = kernel_facts(fused.kernel, sizes)
    if isinstance(kernels.target, GpuTarget):
        return gpu_roofline(fused.kernel, facts, kernels.target).ns
    return roofline(facts, kernels.target, kernels.threads).ns
