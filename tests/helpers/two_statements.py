"""Programs of two statements, for tests of passes between them."""

from __future__ import annotations

from nestor.ir.expr import Expr
from nestor.ir.program import Program, Statement, Tensor, box
from tests.helpers.ir_programs import load, program, statement, tensor, write

X = load("X", "i", "j")


def chain(*statements: Statement, tensors: list[Tensor]) -> Program:
    """The statements, one after the other."""
    return program("p", tensors, *statements)


def two(
    first: Expr, second: Expr, middle: tuple[int, ...] = (4, 6), out: tuple[int, ...] = (4, 6)
) -> Program:
    """``T[i0, …] = first; Y[i0, …] = second``."""
    names = ["i", "j", "k"]
    a, b = names[: len(middle)], names[: len(out)]
    return program(
        "p",
        [
            tensor("X", 4, 6),
            tensor("Z", 4, 6),
            tensor("T", *middle, role="temp"),
            tensor("Y", *out, role="output"),
        ],
        statement("A", box(**dict(zip(a, middle))), write("T", *a), first, order=(0,)),
        statement("B", box(**dict(zip(b, out))), write("Y", *b), second, order=(1,)),
    )
