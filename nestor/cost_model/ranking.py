"""The cost model that ships with the package, as the search asks it: which candidates are fast."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestor.cost_model.features import FEATURES_VERSION, KernelFeatures
from nestor.cost_model.trees import TreeEnsemble, ensemble_from_bytes
from nestor.passes.fusion import FusedKernel
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.ir.schedule import Schedule

MODEL_FILE = "cpu.npz"
"""Name of the shipped model beside this file."""

Ranker = Callable[[Sequence["Schedule"]], NDArray[np.float64]]


@functools.cache
def shipped_model() -> TreeEnsemble | None:
    """The model trained beforehand; None where the package has none for these features."""
    file = resources.files("nestor.cost_model") / MODEL_FILE
    if not file.is_file():
        return None
    model = ensemble_from_bytes(file.read_bytes(), MODEL_FILE)
    return model if model.features_version == FEATURES_VERSION else None


def rank_schedules(
    model: TreeEnsemble, fused: FusedKernel, target: CpuTarget, threads: int
) -> Ranker:
    """A function that gives schedules of a kernel their expected speed, up to a common factor."""
    features = KernelFeatures(fused.kernel, target, threads)

    def rank(schedules: Sequence[Schedule]) -> NDArray[np.float64]:
        rows = np.stack([features.extract(s) for s in schedules])
        return np.exp2(model.predict(rows).astype(np.float64))

    return rank
