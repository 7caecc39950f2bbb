"""Windows of three become products of transformed tiles: when, when not, and with what result."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from nestor.frontends.torch import import_model
from nestor.ir.interpreter import run_program
from nestor.ir.program import Program
from nestor.passes.context import PassContext, PassOptions
from nestor.passes.pipeline import run_pipeline
from nestor.passes.winograd import transform_windows
from nestor.target.cpu import parse_target
from tests.helpers.pass_checks import run_checked

ALWAYS = PassOptions(least_window_gain=0.0)


class Branch(nn.Module):
    """Two convolutions with what follows them, added to the input where sizes allow it."""

    def __init__(self, channels: int, padding: int, residual: bool):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=padding)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        y = self.second(x)
        return torch.relu(y + x) if self.residual else y.sigmoid()


def transformed(before: Program, tolerance: float = 1e-5) -> tuple[Program, int]:
    """The rewritten program, checked against ``before``, and how many sums it took."""
    context = PassContext(options=ALWAYS)
    after = run_checked(transform_windows, before, ctx=context, tolerance=tolerance)
    return after, len(context.entries("transform_windows", kind="changed"))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (7, 6), (5, 9)])
@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("residual", [True, False])
def test_sizes(size: tuple[int, int], padding: int, residual: bool) -> None:
    x = torch.randn(2, 3, *size)
    before = import_model(Branch(5, padding, residual).eval(), (x,)).program
    _, count = transformed(before)
    assert count == (padding - 1 if size == (1, 1) else 2)  # a single result slides no window


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 4, 3),
        nn.Conv1d(3, 4, 3, padding=2),
        nn.Conv2d(3, 4, (3, 1)),
        nn.Conv2d(3, 4, (1, 3), padding=(0, 1)),
        nn.Conv2d(3, 4, 3, bias=False),
        nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=2),
    ],
)
@pytest.mark.parametrize("extent", [5, 8])
def test_layers(layer: nn.Module, extent: int) -> None:
    """One window or two, dilated as they are strided; the sum itself is the output."""
    x = torch.randn(2, 3, *[extent] * (layer.weight.dim() - 2))  # type: ignore[operator,union-attr]
    before = import_model(layer.eval(), (x,)).program
    assert transformed(before)[1] == 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 4, (3, 5)),
        nn.Conv2d(4, 4, 1),
        nn.Conv3d(4, 4, 3),
        nn.MaxPool2d(3, 1),
        nn.AvgPool2d(3, 1),
    ],
)
def test_left_alone(layer: nn.Module) -> None:
    x = torch.randn(2, 4, *[7] * (3 if isinstance(layer, nn.Conv3d) else 2))
    before = import_model(layer.eval(), (x,)).program
    assert transformed(before)[0] is before


@pytest.mark.parametrize(
    ("channels", "size", "pays"),
    [((64, 64), 56, True), ((256, 256), 14, True), ((3, 64), 224, False), ((512, 512), 2, False)],
)
def test_only_where_it_pays(channels: tuple[int, int], size: int, pays: bool) -> None:
    x = torch.randn(1, channels[0], size, size)
    before = import_model(nn.Conv2d(*channels, 3, padding=1).eval(), (x,)).program
    context = PassContext(target=parse_target("x86-64-v4"))
    after = transform_windows(before, context)
    assert (after is not before) == pays
    (entry,) = context.entries("transform_windows")
    assert entry.kind == ("changed" if pays else "refused")


def test_symbolic_batch() -> None:
    batch = torch.export.Dim("batch", min=1, max=16)
    layer = nn.Conv2d(3, 4, 3, padding=1).eval()
    imported = import_model(layer, (torch.randn(2, 3, 5, 6),), dynamic_shapes=({0: batch},))
    result = run_pipeline(imported.program, PassContext(options=ALWAYS))
    weights = {n: w.detach().numpy() for n, w in imported.weights.items()}
    made = run_program(result.weight_program, weights)
    for n in (1, 3):
        x = torch.randn(n, 3, 5, 6)
        names = {t.name: x.numpy() for t in result.main.by_role("input")}
        given = {**names, **weights, **made}
        known = {t.name for t in result.main.by_role("input", "parameter", "constant")}
        (out,) = run_program(result.main, {k: v for k, v in given.items() if k in known}).values()
        np.testing.assert_allclose(out, layer(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert any(e.pass_name == "transform_windows" for e in result.log)


def test_nan_taints_the_same_results() -> None:
    """A NaN reaches the results whose window holds it, and no others of its tile."""
    layer = nn.Conv2d(2, 3, 3, padding=1).double().eval()
    for y, x in product(range(6), range(5)):
        image = torch.randn(1, 2, 6, 5, dtype=torch.float64)
        image[0, 1, y, x] = float("nan")
        program = import_model(layer, (image,)).program
        after = transform_windows(program, PassContext(options=ALWAYS))
        weights = {n: w.detach().numpy() for n, w in layer.named_parameters()}
        given = {
            t.name: weights[t.name.removeprefix("p_")] if t.role == "parameter" else image.numpy()
            for t in program.by_role("input", "parameter")
        }
        (out,) = run_program(after, given).values()
        np.testing.assert_allclose(out, layer(image).detach().numpy(), rtol=1e-9, atol=1e-9)
