"""Windows without a border: what is left out, and results at any number of threads."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import nestor
from nestor.frontends.torch import import_model
from nestor.ir.program import Program, Statement
from nestor.passes.context import PassContext, PassOptions
from nestor.passes.pipeline import run_pipeline
from tests.helpers.pass_checks import assert_same_results


@dataclass(frozen=True)
class Shape:
    """What goes into the convolution of each channel, and its window."""

    channels: int = 32
    height: int = 7
    width: int = 7
    taps: tuple[int, int] = (5, 5)
    step: tuple[int, int] = (1, 1)
    border: tuple[int, int] = (2, 2)
    dilation: int = 1
    batch: int = 1


class Widened(nn.Module):
    """A product of channels, each filtered by itself, another product; perhaps more readers."""

    def __init__(self, shape: Shape, other: str = "") -> None:
        super().__init__()
        n = shape.channels
        self.wide = nn.Conv2d(12, n, 1)
        self.each = nn.Conv2d(n, n, shape.taps, shape.step, shape.border, shape.dilation, groups=n)
        self.narrow = nn.Conv2d(n, 20, 1)
        self.full = nn.Conv2d(n, 8, 3, padding=1)
        self.other = other

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.relu(self.wide(x))
        y = self.narrow(torch.nn.functional.silu(self.each(x)))
        match self.other:
            case "mean":
                return y, x.mean((2, 3))
            case "window":
                return y, self.full(x)
            case "both":
                return y, x * 2.0
        return (y,)


def image(shape: Shape) -> torch.Tensor:
    return torch.randn(shape.batch, 12, shape.height, shape.width)


def main_of(model: nn.Module, x: torch.Tensor, trims: bool = True) -> tuple[Program, PassContext]:
    disabled = frozenset() if trims else frozenset({"trim_windows"})
    ctx = PassContext(options=PassOptions(disabled=disabled))
    return run_pipeline(import_model(model, (x,)).program, ctx).main, ctx


def is_trimmed(ctx: PassContext) -> list[str]:
    return [e.reason for e in ctx.entries("trim_windows", kind="changed")]


def zeros_written(program: Program) -> int:
    return sum("border" in s.name for s in program.statements if isinstance(s, Statement))


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        (Shape(), [2, 3]),
        (Shape(height=14, width=14, step=(2, 2)), [2, 3]),
        (Shape(height=14, width=14, taps=(3, 3), border=(1, 1)), [2, 3]),
        (Shape(height=14, width=14), [2]),  # tiles of half a line
        (Shape(height=9, width=40, taps=(3, 3), border=(1, 1)), [2]),
        (Shape(taps=(1, 5), border=(0, 2)), [3]),
    ],
    ids=str,
)
def test_what_goes(shape: Shape, dims: list[int]) -> None:
    model = Widened(shape).eval()
    after, ctx = main_of(model, image(shape))
    before, _ = main_of(model, image(shape), trims=False)
    assert is_trimmed(ctx) == [f"no border in dimensions {dims}"]
    assert zeros_written(after) < zeros_written(before)
    assert (zeros_written(after) == 0) == (3 in dims)
    assert any(s.domain.constraints for s in after.statements if isinstance(s, Statement))


def test_few_channels_are_rows_of_pixels_and_keep_their_border() -> None:
    shape = Shape(channels=9, height=28, width=28)
    assert is_trimmed(main_of(Widened(shape).eval(), image(shape))[1]) == []


def test_a_window_that_sums_channels_keeps_the_border() -> None:
    shape = Shape(taps=(3, 3), border=(1, 1))
    assert is_trimmed(main_of(Widened(shape, "window").eval(), image(shape))[1]) == []


def check(model: nn.Module, x: torch.Tensor) -> None:
    compiled = [nestor.compile(model, (x,), threads=threads)(x) for threads in (1, 2)]
    with torch.no_grad():
        want = model.double()(x.double())
    for one, two, exact in zip(*compiled, want, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("other", ["", "mean", "window", "both"])
def test_results_are_those_of_float64(other: str) -> None:
    torch.manual_seed(0)
    shape = Shape(taps=(3, 3), border=(1, 1))
    check(Widened(shape, other).eval(), image(shape))


@pytest.mark.parametrize("seed", range(10))
def test_random_shapes(seed: int) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    taps = chance.choice((1, 2, 3, 4, 5)), chance.choice((2, 3, 5, 7))
    shape = Shape(
        channels=chance.randrange(16, 70),
        height=chance.randrange(6, 17),
        width=chance.randrange(6, 17),
        taps=taps,
        step=(chance.choice((1, 2)), chance.choice((1, 2))),
        border=(chance.randrange(0, taps[0]), chance.randrange(0, taps[1])),
        dilation=chance.choice((1, 1, 2)),
        batch=chance.randrange(1, 3),
    )
    model, x = Widened(shape, chance.choice(("", "mean", "window", "both"))).eval(), image(shape)
    after, _ = main_of(model, x)
    before, _ = main_of(model, x, trims=False)
    assert_same_results(before, after, seeds=1, tolerance=2e-5)
    check(model, x)
