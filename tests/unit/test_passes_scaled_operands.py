"""``move_scales``: where a scale moves, where it stays, and that results are the interpreter's."""

from __future__ import annotations

import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import Expr
from nestor.ir.monoid import sum_of
from nestor.ir.program import Program, Statement, Symbol, Tensor, box
from nestor.ir.types import DType
from nestor.passes.scaled_operands import move_scales
from tests.helpers.ir_programs import fn, load, op, program, reduce, statement, tensor, write
from tests.helpers.pass_checks import run_checked

X, S = load("X", "n", "c", "p"), load("S", "n", "c")
SCALED = op("mul", X, S)


def product(
    scaled: Expr = SCALED,
    *,
    images: int = 2,
    pixels: int | str = 20,
    weight: str = "parameter",
    last: tuple[Statement, ...] = (),
    tensors: tuple[Tensor, ...] = (),
) -> Program:
    """``T = scaled; C[n, o, p] = Σ_c T[n, c, p]·W[o, c]`` with 6 channels and 5 results."""
    return program(
        "excited",
        [
            tensor("X", images, 6, pixels),
            tensor("S", images, 6),
            tensor("V", 6),
            tensor("W", 5, 6, role=weight),  # type: ignore[arg-type]
            tensor("T", images, 6, pixels, role="temp"),
            tensor("C", images, 5, pixels, role="output"),
            *tensors,
        ],
        statement("scale", box(n=images, c=6, p=pixels), write("T", "n", "c", "p"), scaled),
        statement(
            "dot",
            box(n=images, o=5, p=pixels, c=6),
            write("C", "n", "o", "p"),
            op("mul", load("T", "n", "c", "p"), load("W", "o", "c")),
            reduction=reduce(sum_of(DType.f32), "c"),
            order=(1,),
        ),
        *last,
        symbols=(Symbol(name=pixels, lower=64),) if isinstance(pixels, str) else (),
    )


@pytest.mark.parametrize(
    "scaled", [op("mul", X, S), op("mul", S, X), op("mul", X, load("V", "c"))], ids=str
)
def test_a_scale_moves(scaled: Expr) -> None:
    after = run_checked(move_scales, product(scaled), tolerance=1e-5)
    names = {t.name for t in after.tensors}
    assert "T" not in names and "W_scaled" in names


def test_a_scale_of_places_that_the_weight_does_not_have() -> None:
    """One of an image alone makes a weight for every image."""
    after = run_checked(move_scales, product(op("mul", X, load("S", "n", 0))), tolerance=1e-5)
    assert next(t for t in after.tensors if t.name == "W_scaled").shape[0].const == 2


def test_the_order_of_images_may_differ() -> None:
    turned = op("mul", X, load("S", 1 - affine("n"), "c"))
    before = product(turned)
    assert run_checked(move_scales, before, tolerance=1e-5) is not before


@pytest.mark.parametrize(
    "before",
    [
        product(pixels=9),  # 60 scaled weights for 108 elements
        product(weight="input"),
        product(op("add", X, S)),
        product(op("mul", X, X)),
        product(fn("exp", op("mul", X, S))),
        product(op("mul", X, fn("exp", S))),
        product(
            last=(
                statement("other", box(p=20), write("Y", "p"), load("T", 0, 0, "p"), order=(2,)),
            ),
            tensors=(tensor("Y", 20, role="output"),),
        ),
    ],
    ids=["small", "no weight", "sum", "square", "exp", "unfinished scale", "read twice"],
)
def test_a_scale_stays(before: Program) -> None:
    assert run_checked(move_scales, before, tolerance=1e-5) is before
