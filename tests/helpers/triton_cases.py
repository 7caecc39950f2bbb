"""Operators whose kernels for GPUs are tested, at small and odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nestor.frontends.torch import import_model
from nestor.ir.program import Extern
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_pipeline import gpu_kernels, prepare_for_gpu
from nestor.target.gpu import parse_gpu_target


class Of(nn.Module):
    """A module of a function."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *given: torch.Tensor) -> Any:
        return self.function(*given)


R = torch.randn
ONE = torch.tensor(1.0)
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
        nn.Sequential(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.SiLU()),
        (R(2, 3, 9, 9),),
    ),
    "convolution to few channels": (nn.Conv2d(3, 5, 3), (R(2, 3, 9, 8),)),
    "two channels of one": (nn.Conv2d(6, 12, 3, groups=6), (R(2, 6, 9, 8),)),
    "depthwise": (nn.Conv2d(16, 16, 3, padding=1, groups=16), (R(1, 16, 9, 9),)),
    "depthwise between products": (
        nn.Sequential(
            nn.Conv2d(3, 24, 1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 5, 2, 2, groups=24),
            nn.Conv2d(24, 8, 1),
        ),
        (R(1, 3, 11, 9),),
    ),
    "sums of pairs": (Of(lambda a: a.unflatten(-1, (-1, 2)).sum(-1)), (R(9, 64),)),
    "a border around one element": (
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        (R(1, 16, 1, 1),),
    ),
    "concatenation": (Of(lambda a, b: torch.cat([a, b], 1) * 2), (R(3, 5), R(3, 6))),
    "maximum pool": (nn.MaxPool2d(2), (R(2, 3, 8, 8),)),
    "average pool": (nn.AdaptiveAvgPool2d(1), (R(2, 5, 7, 7),)),
    "upsampling": (nn.Upsample(scale_factor=2), (R(1, 2, 4, 4),)),
    "transpose": (Of(lambda a: a.transpose(1, 2).contiguous()), (R(3, 20, 30),)),
    "sum": (Of(lambda a: a.sum()), (R(50, 70),)),
    "argmax": (Of(lambda a: a.argmax(-1)), (R(6, 50),)),
    "running sums": (Of(lambda a: a.cumsum(-1)), (R(4, 30),)),
    "embedding": (nn.Embedding(10, 32), (torch.randint(0, 10, (3, 5)),)),
    "integers": (Of(lambda a, b: a // 3 + a % b), (torch.arange(-20, 30), torch.full((50,), 7))),
    "attention": (Of(F.scaled_dot_product_attention), heads),
    "wide heads": (
        Of(F.scaled_dot_product_attention),
        (R(1, 2, 40, 256), R(1, 2, 70, 256), R(1, 2, 70, 250)),
    ),
    "causal attention": (
        Of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        heads,
    ),
    "documents": (
        Of(
            lambda q, k, v, n: F.scaled_dot_product_attention(
                q, k, v, attn_mask=n[:, None] == n[None, :]
            )
        ),
        (R(1, 2, 90, 32), R(1, 2, 90, 32), R(1, 2, 90, 32), torch.arange(90) // 40),
    ),
    # Products of bf16 are beyond Triton's interpreter.
    "attention over tiles of keys": (
        Of(F.scaled_dot_product_attention),
        (R(1, 2, 90, 32), R(1, 2, 150, 32), R(1, 2, 150, 32)),
    ),
    "halves": (nn.Linear(32, 48).half(), (R(20, 32).half(),)),
    "float8": (
        Of(lambda a, b: torch._scaled_mm(a, b.t(), ONE, ONE, out_dtype=torch.float32)),
        (R(32, 64).to(torch.float8_e4m3fn), R(48, 64).to(torch.float8_e4m3fn)),
    ),
    "bf16": (Of(lambda a, b: torch.softmax(a * b, -1)), (R(5, 40).bfloat16(), R(40).bfloat16())),
}


def kernels_of(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[FusedKernel]:
    """The kernels that a module is cut into."""
    imported = import_model(module.eval(), inputs, {}, dynamic_shapes=None, name="m")
    target = parse_gpu_target("sm_90")
    found = gpu_kernels(prepare_for_gpu(imported.program, target).main, target)
    kernels = [k for k in found if not isinstance(k, Extern)]
    assert len(kernels) == len(found)
    return kernels
