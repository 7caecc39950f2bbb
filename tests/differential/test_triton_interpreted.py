"""Triton kernels of PyTorch's operators, run in Triton's interpreter, against the IR's meaning."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nestor.passes.gpu_schedule import gpu_schedule
from nestor.passes.knobs import Choices
from tests.helpers import ir_programs as programs
from tests.helpers.pass_checks import random_inputs
from tests.helpers.triton_cases import CASES, Of, R, kernels_of
from tests.helpers.triton_runs import check_kernel
from tests.unit.test_passes_predicated_tiles import tiled


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str, tmp_path: Path) -> None:
    kernels = kernels_of(*CASES[name])
    assert kernels
    tolerance = {"halves": 2e-3, "bf16": 1e-2}.get(name, 1e-5)
    for fused in kernels:
        arrays = random_inputs(fused.kernel)
        check_kernel(fused.kernel, gpu_schedule(fused), arrays, tmp_path, tolerance=tolerance)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((50, 70, 90), (16, 32, 32)),
        ((64, 32, 16), (32, 16, 16)),
        ((5, 7, 6), (4, 4, 4)),
        ((1, 33, 100), (1, 32, 64)),
    ],
)
def test_products(shape: tuple[int, int, int], tile: tuple[int, int, int], tmp_path: Path) -> None:
    program = programs.matmul(*shape)
    kernel = check_kernel(program, tiled(*tile), random_inputs(program), tmp_path)
    assert ("tl.dot" in kernel.source) == (min(tile) >= 16)


@pytest.mark.parametrize("m", [1, 16, 37])
def test_a_symbolic_size(m: int, tmp_path: Path) -> None:
    program = programs.matmul("N", 40, 30)
    arrays = random_inputs(program, symbols={"N": m})
    kernel = check_kernel(program, tiled(16, 16, 16), arrays, tmp_path, sizes={"N": m})
    assert kernel.symbols == ("N",)
    assert kernel.programs({"N": m}) == -(-m // 16) * 3


def test_infinities_and_nan(tmp_path: Path) -> None:
    (fused,) = kernels_of(Of(lambda a: torch.amax(a, -1)), (R(6, 50),))
    arrays = random_inputs(fused.kernel)
    (name,) = arrays
    arrays[name][1, 3], arrays[name][2, :], arrays[name][4, 7] = np.nan, -np.inf, np.inf
    check_kernel(fused.kernel, gpu_schedule(fused), arrays, tmp_path)


@pytest.mark.parametrize("name", ["attention", "causal attention", "attention over tiles of keys"])
def test_an_attention_is_one_kernel(name: str, tmp_path: Path) -> None:
    (fused,) = kernels_of(*CASES[name])
    kernel = check_kernel(fused.kernel, gpu_schedule(fused), random_inputs(fused.kernel), tmp_path)
    assert kernel.source.count("tl.dot") == 2
    assert kernel.source.count("tl.store") == 1


@pytest.mark.parametrize(
    "name", ["softmax", "linear", "batched", "convolution", "convolution, norm", "causal attention"]
)
def test_any_decisions(name: str, tmp_path: Path) -> None:
    """Whatever a search may decide is legal, and right."""
    rng = Random(name)
    for fused in kernels_of(*CASES[name]):
        arrays, probe = random_inputs(fused.kernel), Choices()
        gpu_schedule(fused, probe)
        assert probe.asked
        for _ in range(4):
            point = {k: rng.choice(knob.values) for k, knob in probe.asked.items()}
            schedule = gpu_schedule(fused, Choices(point))
            check_kernel(fused.kernel, schedule, arrays, tmp_path)


def test_a_convolution_is_one_product(tmp_path: Path) -> None:
    """Its rows are pixels of all images; what is done to its results happens in registers."""
    (fused,) = kernels_of(*CASES["convolution, norm"])
    kernel = check_kernel(fused.kernel, gpu_schedule(fused), random_inputs(fused.kernel), tmp_path)
    assert "tl.dot" in kernel.source
    assert kernel.source.count("tl.store") == 1


def test_tiles_that_a_mask_hides_are_not_made(tmp_path: Path) -> None:
    """Keys run to a tile's last query only; values behind it may be anything."""
    shape = (1, 2, 200, 16)
    attend = Of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    (fused,) = kernels_of(attend, (R(*shape), R(*shape), R(*shape)))
    arrays = random_inputs(fused.kernel)
    kernel = check_kernel(fused.kernel, gpu_schedule(fused), arrays, tmp_path)
    (loop,) = re.findall(r"for \w+ in range\((.*)\):", kernel.source)
    assert "tl.minimum" in loop


def test_a_long_sum_has_many_programs(tmp_path: Path) -> None:
    kernels = kernels_of(Of(lambda a: a.sum()), (R(1000, 3000),))
    assert len(kernels) == 2
    made = [
        check_kernel(k.kernel, gpu_schedule(k), random_inputs(k.kernel), tmp_path) for k in kernels
    ]
    assert made[0].programs({}) > 100


@pytest.mark.parametrize("shape", [(100, 70, 20), (33, 200, 20), (16, 16, 20)])
@pytest.mark.parametrize("batch", [1, 3])
def test_programs_in_groups(shape: tuple[int, int, int], batch: int, tmp_path: Path) -> None:
    """Rows of tiles in groups, the last one short: every tile is still made once."""
    m, n, k = shape
    (fused,) = kernels_of(Of(torch.matmul), (R(batch, m, k), R(batch, k, n)))
    probe = Choices()
    gpu_schedule(fused, probe)
    (tile,) = (name for name in probe.asked if name.endswith(".tile"))
    arrays = random_inputs(fused.kernel)
    for group in (1, 2, 4):
        schedule = gpu_schedule(fused, Choices({tile: (16, 16, 16), "group": group}))
        kernel = check_kernel(fused.kernel, schedule, arrays, tmp_path)
        loops = (m > 16) + (n > 16) + (batch > 1)
        assert ("place" in kernel.source) == (group > 1 and loops > 1)
