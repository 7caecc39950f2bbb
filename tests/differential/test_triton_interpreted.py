"""Triton kernels of PyTorch's operators, run in Triton's interpreter, against the IR's meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nestor.frontends.torch import import_model
from nestor.ir.program import Extern
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_pipeline import gpu_kernels, prepare_for_gpu
from nestor.passes.gpu_schedule import gpu_schedule
from nestor.target.gpu import parse_gpu_target
from tests.helpers import ir_programs as programs
from tests.helpers.pass_checks import random_inputs
from tests.helpers.triton_runs import check_kernel
from tests.unit.test_passes_predicated_tiles import tiled


class Of(nn.Module):
    """A module of a function."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *given: torch.Tensor) -> Any:
        return self.function(*given)


R = torch.randn
heads = (R(1, 2, 20, 16), R(1, 2, 20, 16), R(1, 2, 20, 16))

CASES: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]] = {
    "pointwise": (Of(lambda a, b: a * b + torch.tanh(a)), (R(5, 70), R(5, 70))),
    "broadcast": (Of(lambda a, b: F.gelu(a + b)), (R(4, 6, 33), R(33))),
    "functions": (
        Of(lambda a: torch.log1p(a.abs()) + torch.expm1(a) + torch.sign(a) * torch.round(a)),
        (R(3, 50),),
    ),
    "softmax": (Of(lambda a: torch.softmax(a, -1)), (R(7, 100),)),
    "log_softmax": (Of(lambda a: F.log_softmax(a, -1)), (R(5, 40),)),
    "layer_norm": (nn.LayerNorm(96), (R(9, 96),)),
    "group_norm": (nn.GroupNorm(2, 6), (R(2, 6, 5, 5),)),
    "variance": (Of(lambda a: a.var(-1)), (R(5, 40),)),
    "linear": (nn.Sequential(nn.Linear(40, 50), nn.ReLU()), (R(20, 40),)),
    "vector": (nn.Linear(100, 60), (R(1, 100),)),
    "batched": (Of(lambda a, b: a @ b), (R(3, 17, 20), R(3, 20, 19))),
    "convolution": (nn.Conv2d(8, 20, 3, padding=1), (R(2, 8, 9, 11),)),
    "convolution of one tap": (nn.Conv2d(16, 24, 1), (R(1, 16, 8, 8),)),
    "convolution, norm": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU()),
        (R(2, 3, 9, 9),),
    ),
    "depthwise": (nn.Conv2d(16, 16, 3, padding=1, groups=16), (R(1, 16, 9, 9),)),
    "concatenation": (Of(lambda a, b: torch.cat([a, b], 1) * 2), (R(3, 5), R(3, 6))),
    "maximum pool": (nn.MaxPool2d(2), (R(2, 3, 8, 8),)),
    "average pool": (nn.AdaptiveAvgPool2d(1), (R(2, 5, 7, 7),)),
    "upsampling": (nn.Upsample(scale_factor=2), (R(1, 2, 4, 4),)),
    "transpose": (Of(lambda a: a.transpose(1, 2).contiguous()), (R(3, 20, 30),)),
    "sum": (Of(lambda a: a.sum()), (R(50, 70),)),
    "argmax": (Of(lambda a: a.argmax(-1)), (R(6, 50),)),
    "running sums": (Of(lambda a: a.cumsum(-1)), (R(4, 30),)),
    "embedding": (nn.Embedding(10, 32), (torch.randint(0, 10, (3, 5)),)),
    "attention": (Of(F.scaled_dot_product_attention), heads),
    "causal attention": (
        Of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        heads,
    ),
    # Products of bf16 are beyond Triton's interpreter.
    "halves": (nn.Linear(32, 48).half(), (R(20, 32).half(),)),
    "bf16": (Of(lambda a, b: torch.softmax(a * b, -1)), (R(5, 40).bfloat16(), R(40).bfloat16())),
}


def kernels_of(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[FusedKernel]:
    """The kernels that a module is cut into."""
    imported = import_model(module.eval(), inputs, {}, dynamic_shapes=None, name="m")
    found = gpu_kernels(prepare_for_gpu(imported.program).main, parse_gpu_target("sm_90"))
    kernels = [k for k in found if not isinstance(k, Extern)]
    assert len(kernels) == len(found)
    return kernels


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
