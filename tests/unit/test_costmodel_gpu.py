"""Features of schedules for GPUs, and the estimate made of them."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nestor.autotune.space import GpuSpace
from nestor.cost_model.gpu_features import GPU_FEATURES, GpuFeatures, rank_gpu_schedules
from nestor.passes.fusion import FusedKernel
from nestor.target.gpu import parse_gpu_target
from tests.helpers.triton_cases import CASES, Of, kernels_of

H200 = parse_gpu_target("sm_90")


def product(m: int, k: int, n: int) -> FusedKernel:
    a, b = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((m, k), (k, n)))
    (found,) = kernels_of(Of(lambda a, b: a @ b), (a, b))
    return found


def estimate(fused: FusedKernel, **knobs: Any) -> float:
    """Microseconds of a schedule whose knobs end in these names."""
    space = GpuSpace(fused, H200)
    names = {
        k.name: value for k in space.knobs() for end, value in knobs.items() if k.name.endswith(end)
    }
    assert len(names) == len(knobs)
    return GpuFeatures(fused.kernel, H200).estimate_ns(space.at(names).schedule) / 1e3


@pytest.mark.parametrize("name", CASES)
def test_every_schedule_has_features(name: str) -> None:
    draw = Random(0)
    for fused in kernels_of(*CASES[name]):
        space = GpuSpace(fused, H200)
        features = GpuFeatures(fused.kernel, H200)
        for candidate in [space.default(), *(space.sample(draw) for _ in range(4))]:
            values = features.describe(candidate.schedule)
            assert set(values) == {f.name for f in GPU_FEATURES}
            vector = features.extract(candidate.schedule)
            assert vector.shape == (len(GPU_FEATURES),)
            assert np.isfinite(vector).all()
            assert 0 < values["tensor_share"] <= 1 or values["tensor_share"] == 0
            assert values["estimate"] >= 0
            assert 0 <= values["padding"] < 20


def test_products_want_large_tiles() -> None:
    fused = product(4096, 4096, 4096)
    large, small = estimate(fused, tile=(128, 128, 64)), estimate(fused, tile=(16, 16, 16))
    assert large < small / 3
    # The peak of 989 Tflop/s takes 139 µs.
    assert 139 < large < 400


def test_few_tiles_leave_processors_idle() -> None:
    fused = product(1024, 512, 1024)
    assert estimate(fused, tile=(64, 64, 64)) < estimate(fused, tile=(256, 128, 64))


def test_neighbouring_rows_share_what_they_read() -> None:
    fused = product(16384, 8192, 16384)
    features = GpuFeatures(fused.kernel, H200)
    space = GpuSpace(fused, H200)
    moved = [features.describe(space.at({"group": g}).schedule)["memory_bytes"] for g in (1, 8)]
    assert moved[1] < moved[0]


def test_rows_move_at_bandwidth() -> None:
    (fused,) = kernels_of(nn.Softmax(-1), (torch.zeros(16384, 4096),))
    # 512 MB at 4.8 TB/s take 112 µs.
    assert 100 < estimate(fused) < 200


def test_a_ranking_gives_speeds() -> None:
    fused = product(1024, 1024, 1024)
    space, draw = GpuSpace(fused, H200), Random(1)
    schedules = [space.sample(draw).schedule for _ in range(20)]
    speeds = rank_gpu_schedules(fused.kernel, H200)(schedules)
    assert speeds.shape == (20,)
    assert (speeds > 0).all()
    assert speeds.max() > 2 * speeds.min()
