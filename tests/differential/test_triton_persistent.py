"""Products whose programs take tile after tile, and whose operands are copied as boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nestor.passes.gpu_schedule import gpu_schedule, warps_of
from nestor.passes.knobs import Choices
from tests.helpers.pass_checks import random_inputs
from tests.helpers.triton_cases import Of, R, kernels_of
from tests.helpers.triton_runs import check_kernel

E4M3 = torch.float8_e4m3fn
PRODUCTS: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
    "linear": (nn.Sequential(nn.Linear(72, 50), nn.ReLU()), (R(100, 72),)),
    "odd sizes": (Of(lambda a, b: a @ b), (R(70, 33), R(33, 47))),
    "batched": (Of(lambda a, b: a @ b), (R(3, 40, 24), R(3, 24, 36))),
    "transposed": (Of(lambda a, b: a.t() @ b.t()), (R(48, 100), R(64, 48))),
    "halves": (Of(lambda a, b: a @ b), (R(190, 136).half(), R(136, 72).half())),
    "bytes": (
        Of(torch._int_mm),
        (torch.randint(-9, 9, (140, 64), dtype=torch.int8),
         torch.randint(-9, 9, (64, 48), dtype=torch.int8)),
    ),
    "convolution": (nn.Conv2d(16, 24, 3, padding=1), (R(2, 16, 9, 9),)),
}  # fmt: skip
BOXED = {"linear", "batched", "transposed", "halves", "bytes"}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("most", [1, 3])
def test_tile_after_tile(name: str, most: int, tmp_path: Path) -> None:
    for fused in kernels_of(*PRODUCTS[name]):
        schedule = gpu_schedule(fused, Choices({"persistent": 1}), 90)
        arrays = random_inputs(fused.kernel)
        tolerance = 4e-3 if name == "halves" else 1e-5
        kernel = check_kernel(
            fused.kernel, schedule, arrays, tmp_path, tolerance=tolerance, most=most
        )
        is_product = "tl.dot" in kernel.source
        assert (warps_of(schedule).persistent > 0) == is_product
        assert ("tl.num_programs" in kernel.source) == is_product


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("persistent", [0, 1])
def test_boxes(name: str, persistent: int, tmp_path: Path) -> None:
    boxes = 0
    for fused in kernels_of(*PRODUCTS[name]):
        choices = Choices({"persistent": persistent, "descriptors": 1})
        arrays = random_inputs(fused.kernel)
        tolerance = 4e-3 if name == "halves" else 1e-5
        schedule = gpu_schedule(fused, choices, 90)
        kernel = check_kernel(fused.kernel, schedule, arrays, tmp_path, tolerance=tolerance)
        boxes += kernel.source.count("make_tensor_descriptor")
    assert (boxes > 0) == (name in BOXED)


def test_specialised_warps_read_the_same(tmp_path: Path) -> None:
    (fused,) = kernels_of(*PRODUCTS["halves"])
    for persistent in (0, 1):
        choices = Choices({"persistent": persistent, "descriptors": 1, "specialize": 1})
        schedule = gpu_schedule(fused, choices, 100)
        assert warps_of(schedule).specialize == 1
        arrays = random_inputs(fused.kernel)
        kernel = check_kernel(fused.kernel, schedule, arrays, tmp_path, tolerance=4e-3)
        assert "warp_specialize=True" in kernel.source


def test_older_chips_have_no_boxes() -> None:
    (fused,) = kernels_of(*PRODUCTS["halves"])
    for capability, wanted in ((80, set()), (90, {"descriptors"}), (100, {"descriptors"})):
        choices = Choices({"descriptors": 1})
        gpu_schedule(fused, choices, capability)
        names: set[Any] = {k for k in choices.asked if k in ("descriptors", "specialize")}
        assert names == wanted | ({"specialize"} if capability == 100 else set())


def test_choices_leave_a_default() -> None:
    make: Callable[[], Any] = lambda: kernels_of(*PRODUCTS["linear"])[0]  # noqa: E731
    warps = warps_of(gpu_schedule(make(), None, 100))
    assert (warps.persistent, warps.descriptors, warps.specialize) == (0, 0, 0)
