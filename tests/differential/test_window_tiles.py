"""Convolutions of small groups: vectors along pixels or channels, tails, strides, any target."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nestor

CASES = {
    "depthwise": nn.Conv2d(24, 24, 3, padding=1, groups=24),
    "depthwise_5_stride_2": nn.Conv2d(19, 19, 5, stride=2, padding=2, groups=19, bias=False),
    "depthwise_dilated": nn.Conv2d(17, 17, 3, dilation=2, groups=17),
    "depthwise_7": nn.Conv2d(33, 33, 7, padding=3, groups=33),
    "multiplied": nn.Conv2d(10, 30, 3, padding=1, groups=10),
    "grouped": nn.Conv2d(40, 40, 3, padding=1, groups=5, bias=False),
    "grouped_narrow": nn.Conv2d(12, 24, (1, 3), groups=4),
    "one_dimension": nn.Conv1d(24, 24, 5, padding=2, groups=24),
    "transposed": nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1, groups=16),
}


class Between(nn.Module):
    """A convolution whose channels stand last in memory: pointwise ones are around it."""

    def __init__(self, inner: nn.Conv2d):
        super().__init__()
        self.before = nn.Conv2d(8, inner.in_channels, 1)
        self.inner = inner
        self.after = nn.Conv2d(inner.out_channels, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(torch.relu(self.inner(torch.relu(self.before(x)))))


def _check(model: nn.Module, x: torch.Tensor, target: str) -> None:
    found = nestor.compile(model, (x,), target=target)(x)
    model = model.double()
    exact = model(x.double())
    model.float()
    assert found.shape == exact.shape
    scale = float(exact.abs().max()) + 1e-30
    assert float((found.double() - exact).abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("target", ["avx2", "native"])
@pytest.mark.parametrize("name", CASES)
def test_between_input_and_output(name: str, target: str) -> None:
    torch.manual_seed(0)
    model = CASES[name].eval()
    size = (21, 37) if not isinstance(model, nn.Conv1d) else (53,)
    with torch.no_grad():
        _check(model, torch.randn(2, model.in_channels, *size), target)


@pytest.mark.parametrize("target", ["avx2", "native"])
@pytest.mark.parametrize("name", [n for n, m in CASES.items() if type(m) is nn.Conv2d])
def test_between_pointwise_ones(name: str, target: str) -> None:
    torch.manual_seed(0)
    inner = CASES[name].eval()
    assert isinstance(inner, nn.Conv2d)
    with torch.no_grad():
        _check(Between(inner).eval(), torch.randn(1, 8, 15, 23), target)


@pytest.mark.parametrize("target", ["avx2", "native"])
@pytest.mark.parametrize("size", [(28, 28), (9, 16), (30, 33), (5, 8)])
@pytest.mark.parametrize(("taps", "stride"), [(7, 1), (7, 2), (3, 1), ((5, 2), 1)])
def test_lines_share_the_pixels_above_and_below(
    size: tuple[int, int], taps: int | tuple[int, int], stride: int, target: str
) -> None:
    """Rows of a tile read overlapping windows; its last vector and its last row are cut off."""
    torch.manual_seed(0)
    padding = 3 if taps == 7 else 1
    model = nn.Conv2d(12, 12, taps, stride, padding=padding, groups=12, bias=False).eval()
    with torch.no_grad():
        _check(model, torch.randn(2, 12, *size), target)


def test_bits_repeat() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(24, 24, 7, padding=3, groups=24, bias=False).eval()
    x = torch.randn(1, 24, 28, 28)
    with torch.no_grad():
        compiled = nestor.compile(model, (x,))
        first = compiled(x)
        assert all(torch.equal(first, compiled(x)) for _ in range(5))
