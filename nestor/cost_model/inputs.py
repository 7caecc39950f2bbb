"""What trees are given: features as they are, and beside what is usual among a kernel's schedules.

Schedules of one kernel are compared with each other, and how much of a resource is much differs
from kernel to kernel: the difference from the mean over its schedules says that at once, where
trees would have to find it kernel by kernel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nestor.cost_model.feature_table import (
    FEATURE_NAMES,
    MAIN_FEATURES,
    SCHEDULE_FEATURES,
    SECOND_FEATURES,
)

_VARYING = tuple(f.name for f in (*SCHEDULE_FEATURES, *MAIN_FEATURES, *SECOND_FEATURES))
_POSITIONS = np.array([FEATURE_NAMES.index(name) for name in _VARYING])

INPUT_NAMES: tuple[str, ...] = (*FEATURE_NAMES, *(f"relative_{name}" for name in _VARYING))
"""Inputs of a model, in order: the features, and those of schedules relative to their mean."""

Matrix = NDArray[np.float32]


def model_inputs(features: Matrix, means: Matrix) -> Matrix:
    """Inputs for rows of features, shape (rows, len(INPUT_NAMES)).

    Args: means: over the kernel's schedules, shape (features,) or a row for each row.
    """
    relative = features[:, _POSITIONS] - means[..., _POSITIONS]
    return np.hstack([features, relative]).astype(np.float32, copy=False)


def grouped_inputs(features: Matrix, groups: NDArray[np.int32]) -> Matrix:
    """Inputs for examples of several kernels. Args: groups: the kernel of each row."""
    _, inverse = np.unique(groups, return_inverse=True)
    inverse = inverse.reshape(-1)
    sums = np.zeros((int(inverse.max(initial=-1)) + 1, features.shape[1]), np.float64)
    np.add.at(sums, inverse, features)
    means = (sums / np.bincount(inverse)[:, None]).astype(np.float32)
    return model_inputs(features, means[inverse])
