"""The cost model that ships with the package, as the search asks it: which candidates are fast."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestor.cost_model.dataset import nominal_target
from nestor.cost_model.features import FEATURES_VERSION, KernelFeatures
from nestor.cost_model.inputs import model_inputs
from nestor.cost_model.kernel_facts import kernel_facts
from nestor.cost_model.trees import TreeEnsemble, ensemble_from_bytes
from nestor.errors import UserError
from nestor.passes.fusion import FusedKernel
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.ir.schedule import Schedule

MODEL_FILE = "cpu.npz"
"""Name of the shipped model beside this file."""

NO_MODEL = Path("none")

Ranker = Callable[[Sequence["Schedule"]], NDArray[np.float64]]


@functools.cache
def shipped_model() -> TreeEnsemble | None:
    """The model trained beforehand; None where the package has none for these features."""
    file = resources.files("nestor.cost_model") / MODEL_FILE
    if not file.is_file():
        return None
    model = ensemble_from_bytes(file.read_bytes(), MODEL_FILE)
    return model if model.features_version == FEATURES_VERSION else None


def chosen_model(path: Path | None) -> TreeEnsemble | None:
    """The model of a file; None: that which ships; ``none``: none at all.

    Raises: ``UserError`` if the file is no model, or is one for other features.
    """
    if path is None:
        return shipped_model()
    if path == NO_MODEL:
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    model = ensemble_from_bytes(data, str(path))
    if model.features_version != FEATURES_VERSION:
        raise UserError(
            f"{str(path)!r} is a cost model for features version {model.features_version}; this "
            f"is {FEATURES_VERSION}\n  fix: nestor train"
        )
    return model


def rank_schedules(
    model: TreeEnsemble,
    fused: FusedKernel,
    target: CpuTarget,
    threads: int,
    *,
    sizes: Mapping[str, int] | None = None,
) -> Ranker:
    """A function that gives schedules of a kernel their expected speed, up to a common factor.

    The schedules that it is asked about first say what is usual for the kernel.
    Args: sizes: of the kernel's symbols; those left out get a typical one.
    """
    facts = kernel_facts(fused.kernel, sizes)
    features = KernelFeatures(fused.kernel, nominal_target(target), threads, facts=facts)
    usual: NDArray[np.float32] | None = None

    def rank(schedules: Sequence[Schedule]) -> NDArray[np.float64]:
        nonlocal usual
        rows = np.stack([features.extract(s) for s in schedules])
        usual = rows.mean(axis=0) if usual is None else usual
        return np.exp2(model.predict(model_inputs(rows, usual)).astype(np.float64))

    return rank
