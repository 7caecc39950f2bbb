"""The cost model as the search asks it: expected speeds of schedules."""

from __future__ import annotations

import random

import numpy as np

from nestor.autotune.space import Space
from nestor.cost_model.features import FEATURES_VERSION, KernelFeatures
from nestor.cost_model.inputs import INPUT_NAMES
from nestor.cost_model.ranking import rank_schedules, shipped_model
from nestor.cost_model.trees import TreeEnsemble
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.target.cpu import parse_target
from tests.helpers import ir_programs as programs

TARGET = parse_target("avx512")


def one_split(feature: int, threshold: float, below: float, above: float) -> TreeEnsemble:
    """log2 of the speed is ``below`` or ``above``, by one feature."""
    return TreeEnsemble(
        features_version=FEATURES_VERSION,
        names=INPUT_NAMES,
        base_score=1.0,
        roots=np.array([0], np.int32),
        feature=np.array([feature, -1, -1], np.int16),
        threshold=np.array([threshold, 0, 0], np.float32),
        left=np.array([1, 1, 2], np.int32),
        right=np.array([2, 1, 2], np.int32),
        missing_left=np.array([True, True, True]),
        value=np.array([0, below, above], np.float32),
    )


def test_speeds_are_powers_of_what_trees_say() -> None:
    (part,) = partition_program(programs.matmul(128, 512, 300), l2_bytes=1 << 20).parts
    assert isinstance(part, FusedKernel)
    fused = canonicalize_kernel(part)[0]
    space, rng = Space(fused, TARGET), random.Random(0)
    schedules = [space.sample(rng).schedule for _ in range(40)]
    features = KernelFeatures(fused.kernel, TARGET, 2)
    rows = np.stack([features.extract(s) for s in schedules])
    moving = int(np.argmax(rows.std(axis=0) / (np.abs(rows).mean(axis=0) + 1e-6)))
    middle = float(rows[:, moving].mean())
    rank = rank_schedules(one_split(moving, middle, -1.0, 2.0), fused, TARGET, 2)
    speeds = rank(schedules)
    assert set(np.unique(speeds)) == {1.0, 8.0}
    np.testing.assert_array_equal(speeds == 1.0, rows[:, moving] < np.float32(middle))


def test_a_model_that_ships_fits_the_features() -> None:
    model = shipped_model()
    assert model is None or model.names == INPUT_NAMES
