"""Transposed convolutions become plain ones, a phase each: when and when not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nestor.frontends.torch import import_model
from nestor.ir.affine import affine
from nestor.ir.expr import const, loads
from nestor.ir.monoid import sum_of
from nestor.ir.program import Program, Statement, box
from nestor.ir.types import DType
from nestor.passes.delinearize import division_count
from nestor.passes.phases import split_phases
from tests.helpers.ir_programs import load, op, program, reduce, statement, tensor, write
from tests.helpers.pass_checks import run_checked

f32 = DType.f32


def dilated(
    stride: int, kernel: int, size: int = 5, other: float = 0.0, out: int | None = None
) -> Program:
    """``Y[y] = Σ_r X[(y - r)/stride]·W[r]`` over the (y, r) where that is whole and inside."""
    extent = out or (size - 1) * stride + kernel
    gap = affine("y") - "r" + stride * kernel
    at = gap // stride - kernel
    predicate = (at, affine(size - 1) - at, -(gap % stride))
    return program(
        "dilated",
        [
            tensor("X", 2, size),
            tensor("W", 2, 3, kernel, role="parameter"),
            tensor("Y", 3, extent, role="output"),
        ],
        statement(
            "S",
            box(o=3, y=extent, c=2, r=kernel),
            write("Y", "o", "y"),
            op(
                "mul",
                load("X", "c", at, predicate=predicate, other=const(other, f32)),
                load("W", "c", "o", "r"),
            ),
            reduction=reduce(sum_of(f32), "c", "r"),
        ),
    )


@pytest.mark.parametrize(("stride", "kernel"), [(2, 2), (2, 3), (2, 4), (3, 3), (3, 5), (4, 7)])
@pytest.mark.parametrize("out", [None, 9, 11])
def test_phases(stride: int, kernel: int, out: int | None) -> None:
    before = dilated(stride, kernel, out=out)
    after = run_checked(split_phases, before, tolerance=1e-5)
    assert len(after.statements) == stride
    for phase in after.statements:
        assert isinstance(phase, Statement) and division_count(phase) == 0


@pytest.mark.parametrize(
    "before",
    [
        dilated(3, 2),  # the third phase has no terms
        dilated(2, 3, other=1.0),  # the border is not what a sum may drop
    ],
)
def test_left_alone(before: Program) -> None:
    assert run_checked(split_phases, before, tolerance=1e-5) is before


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(3, 4, 4, 2, 1),
        nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1),
        nn.ConvTranspose2d(4, 6, (4, 3), (2, 3), groups=2),
        nn.ConvTranspose2d(3, 4, 3, 2, dilation=2),
        nn.ConvTranspose2d(3, 4, 3, 2, dilation=3),
    ],
)
def test_layers(layer: nn.Module) -> None:
    x = torch.randn(2, layer.in_channels, *([5] * (len(layer.weight.shape) - 2)))  # type: ignore[arg-type]
    before = import_model(layer.eval(), (x,)).program
    after = run_checked(split_phases, before, tolerance=1e-5)
    for s in after.statements:
        assert isinstance(s, Statement)
        steps = {str(p) for e in s.elements for y in loads(e) for p in y.predicate if "%" in str(p)}
        assert not steps or layer.dilation == (2, 2)
