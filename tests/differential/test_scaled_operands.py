"""Scales known at run time move to a product's smaller operand, and results stay the same."""

from __future__ import annotations

import pytest
import torch

import nestor
from nestor.frontends.torch import import_model
from nestor.passes.context import PassContext
from nestor.passes.pipeline import run_pipeline


class Excited(torch.nn.Module):
    """A depthwise convolution, its channels scaled by a product of their means, a product."""

    def __init__(self, channels: int, results: int) -> None:
        super().__init__()
        self.before = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.gate = torch.nn.Conv2d(channels, channels, 1)
        self.after = torch.nn.Conv2d(channels, results, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return self.after(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))


class Reused(Excited):
    """As above, but the scaled image is needed as well."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        x = self.before(x)
        scaled = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.after(scaled), scaled


def moved(model: torch.nn.Module, x: torch.Tensor) -> int:
    """How many scales the pipeline moves."""
    ctx = PassContext()
    run_pipeline(import_model(model, (x,)).program, ctx)
    return sum(e.pass_name == "move_scales" and e.kind == "changed" for e in ctx.log)


SHAPES = [
    (1, 8, 24, 6, 6),
    (3, 17, 5, 9, 7),
    (2, 16, 40, 12, 13),
    (1, 1, 3, 8, 8),
    (2, 33, 1, 5, 5),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_as_before(shape: tuple[int, ...]) -> None:
    batch, channels, results, height, width = shape
    torch.manual_seed(sum(shape))
    model, x = Excited(channels, results).eval(), torch.randn(batch, channels, height, width)
    got = nestor.compile(model, (x,), threads=2)(x)
    with torch.no_grad():
        want = model.double()(x.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-6)


def test_a_scale_moves_where_the_weight_is_the_smaller_one() -> None:
    assert moved(Excited(16, 24).eval(), torch.randn(2, 16, 9, 9)) == 1
    assert moved(Excited(16, 24).eval(), torch.randn(2, 16, 6, 6)) == 0
    assert moved(Reused(16, 24).eval(), torch.randn(2, 16, 9, 9)) == 0
