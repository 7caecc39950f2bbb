"""Triton sources, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nestor.codegen.triton import Siblings, emit_kernel
from nestor.ir.printer import print_program
from nestor.passes.gpu_schedule import gpu_schedule, warps_of
from nestor.passes.knobs import Choices
from nestor.passes.nest import apply_schedule
from tests.differential.test_triton_persistent import PRODUCTS
from tests.helpers.triton_cases import CASES, kernels_of

NAMES = (
    "broadcast",
    "softmax",
    "layer_norm",
    "linear",
    "batched",
    "convolution",
    "convolution, norm",
    "depthwise",
    "maximum pool",
    "transpose",
    "argmax",
    "running sums",
    "embedding",
    "causal attention",
    "integers",
    "float8",
)


@pytest.mark.parametrize("name", NAMES)
def test_source(name: str, golden: Callable[[str, str], None]) -> None:
    parts = []
    for fused in kernels_of(*CASES[name]):
        kernel = emit_kernel(apply_schedule(fused.kernel, gpu_schedule(fused)))
        grid = " × ".join(map(str, kernel.grid)) or "1"
        parts += [print_program(fused.kernel), f"grid: {grid}\n\n{kernel.source}"]
    golden(f"triton_{name.replace(', ', '_').replace(' ', '_')}.txt", "\n".join(parts))


def test_tile_after_tile_in_boxes(golden: Callable[[str, str], None]) -> None:
    (fused,) = kernels_of(*PRODUCTS["halves"])
    choices = Choices({"persistent": 1, "descriptors": 1, "group": 4})
    schedule = gpu_schedule(fused, choices, 90)
    kernel = emit_kernel(apply_schedule(fused.kernel, schedule), warps=warps_of(schedule))
    golden("triton_persistent_boxes.txt", kernel.source)


def test_siblings(golden: Callable[[str, str], None]) -> None:
    (fused,) = kernels_of(*PRODUCTS["linear"])
    schedule = gpu_schedule(fused, Choices({"persistent": 1, "group": 4}))
    nest = apply_schedule(fused.kernel, schedule)
    apart = frozenset(t.name for t in nest.tensors[1:])
    kernel = emit_kernel(nest, warps=warps_of(schedule), siblings=Siblings(3, apart))
    golden("triton_siblings.txt", kernel.source)
