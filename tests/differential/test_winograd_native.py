"""Transformed windows as native code: odd sizes, symbolic batches, and the same bits every time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import nestor
from benchmarks.criterion import judge
from nestor.passes import winograd_cost


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window that may be transformed is, whether or not it pays."""
    monkeypatch.setattr(winograd_cost, "is_worth", lambda windows, context: None)


class Block(nn.Module):
    """Convolutions in a row: the second one's result has a residual, the third one's leaves."""

    def __init__(self, inside: int, outside: int, padding: int):
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, padding=padding)
        self.second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outside)
        self.third = nn.Conv2d(outside, inside, 3, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.third(torch.relu(self.norm(self.second(x)) + x))


def is_correct(model: nn.Module, compiled: object, x: torch.Tensor) -> None:
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        verdict = judge(compiled(x), model(x), exact)  # type: ignore[operator]
    assert verdict.correct, verdict.reason


@pytest.mark.parametrize(
    ("size", "channels", "padding", "batch"),
    [
        ((1, 1), (1, 3), 1, 1),
        ((1, 5), (2, 16), 2, 2),
        ((4, 3), (3, 17), 0, 1),
        ((7, 7), (16, 32), 1, 3),
        ((17, 19), (5, 70), 1, 1),
        ((8, 19), (70, 33), 0, 2),
        ((14, 6), (64, 64), 2, 1),
    ],
)
def test_sizes(size: tuple[int, int], channels: tuple[int, int], padding: int, batch: int) -> None:
    torch.manual_seed(0)
    model = Block(*channels, padding).eval()
    x = torch.randn(batch, channels[0], *size)
    compiled = nestor.compile(model, x, strict=True)
    is_correct(model, compiled, x)
    is_correct(model, compiled, torch.randn_like(x))


@pytest.mark.parametrize("length", [2, 9, 32])
def test_one_dimension(length: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(8, 20, 3, padding=1), nn.GELU(), nn.Conv1d(20, 5, 3, padding=2)
    ).eval()
    x = torch.randn(2, 8, length)
    is_correct(model, nestor.compile(model, x, strict=True), x)


def test_symbolic_batch() -> None:
    torch.manual_seed(0)
    model = Block(8, 24, 1).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    compiled = nestor.compile(
        model, torch.randn(2, 8, 7, 10), dynamic_shapes=({0: batch},), strict=True
    )
    for n in (1, 2, 5):
        is_correct(model, compiled, torch.randn(n, 8, 7, 10))


def test_same_bits_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    model = Block(32, 48, 1).eval()
    x = torch.randn(2, 32, 13, 12)
    outputs = [
        nestor.compile(model, x, threads=threads)(x).numpy()
        for threads in (1, 2, 3)
        for _ in range(2)
    ]
    for out in outputs[1:]:
        np.testing.assert_array_equal(out, outputs[0])


def test_weights_may_change() -> None:
    """Transformed weights follow the model's."""
    torch.manual_seed(0)
    model = nn.Conv2d(8, 16, 3, padding=1).eval()
    x = torch.randn(1, 8, 6, 6)
    compiled = nestor.compile(model, x)
    before = compiled(x).clone()
    with torch.no_grad():
        model.weight *= 2
        model.bias.zero_()  # type: ignore[union-attr]
    is_correct(model, compiled, x)
    assert not torch.equal(before, compiled(x))


class Counts(nn.Module):
    """A convolution of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", torch.randint(-5, 6, (8, 8, 3, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.taps, padding=1)


def test_integers_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model, x = Counts().eval(), torch.randint(-5, 6, (1, 8, 9, 9))
    assert torch.equal(nestor.compile(model, (x,))(x), model(x))
