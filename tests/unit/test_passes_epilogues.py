"""Pointwise statements that become the end of a reduction."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir.expr import Load
from nestor.ir.interpreter import run_program
from nestor.ir.program import Program, Statement
from nestor.passes.context import PassContext
from nestor.passes.epilogues import absorb_epilogues
from tests.helpers.ir_programs import (
    box,
    f32,
    fn,
    load,
    op,
    program,
    reduce,
    s,
    statement,
    sum_of,
    tensor,
    write,
)
from tests.helpers.pass_checks import random_inputs


def product(
    user: Statement, *, columns: int = 4, rest: tuple[Statement, ...] = (), role: str = "temp"
) -> Program:
    """A product ``T`` of 3 × 4, what a statement makes of it, and further statements."""
    return program(
        "p",
        [
            tensor("A", 3, 5),
            tensor("B", 5, 4),
            tensor("D", 3, 4),
            tensor("T", 3, 4, role=role),  # type: ignore[arg-type]
            tensor("Y", 4, 3, role="output"),
            tensor("Z", 3, columns, role="output"),
        ],
        statement(
            "P",
            box(i=3, j=4, k=5),
            write("T", "i", "j"),
            op("mul", load("A", "i", "k"), load("B", "k", "j")),
            reduction=reduce(sum_of(f32), "k", final=(op("mul", s(0), load("D", "i", "j")),)),
            order=(0,),
        ),
        user,
        *rest,
    )


def turned(name: str = "U", order: int = 1) -> Statement:
    """``Y[k, i] = exp(T[i, k]) * T[i, k] + D[i, k]``: other names, other order, two reads."""
    t = load("T", "i", "k")
    value = op("add", op("mul", fn("exp", t), t), load("D", "i", "k"))
    return statement(name, box(i=3, k=4), write("Y", "k", "i"), value, order=(order,))


def sums(order: int = 2) -> Statement:
    return statement(
        "Z",
        box(i=3, j=4),
        write("Z", "i", "j"),
        op("add", load("T", "i", "j"), load("D", "i", "j")),
        order=(order,),
    )


def check(before: Program, merged: bool) -> Program:
    """The pass, and that it changes no value."""
    after = absorb_epilogues(before, PassContext())
    assert (len(after.statements) < len(before.statements)) == merged
    arrays = random_inputs(before)
    found, wanted = run_program(after, arrays), run_program(before, arrays)
    for name in ("Y", "Z"):
        if name in wanted and any(w.tensor == name for x in before.statements for w in x.writes):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)
    return after


def test_a_reader_becomes_the_end() -> None:
    after = check(product(turned()), True)
    (only,) = after.statements
    assert isinstance(only, Statement) and only.reduction is not None
    assert only.writes[0].tensor == "Y"
    assert "T" not in {t.name for t in after.tensors}
    assert isinstance(only.loads[0], Load)


def test_one_after_the_other() -> None:
    second = statement(
        "V", box(i=3, j=4), write("Z", "i", "j"), fn("tanh", load("Y", "j", "i")), order=(2,)
    )
    before = product(turned(), rest=(second,))
    tensors = tuple(t if t.name != "Y" else tensor("Y", 4, 3, role="temp") for t in before.tensors)
    before = Program(name="p", tensors=tensors, statements=before.statements)
    assert len(check(before, True).statements) == 1


@pytest.mark.parametrize(
    "before",
    [
        product(turned(), rest=(sums(),)),
        product(turned(), role="output"),
        product(statement("U", box(i=3, j=4), write("Z", "i", "j"), load("T", 0, "j"), order=(1,))),
        product(
            statement("U", box(i=3, j=2), write("Z", "i", "j"), load("T", "i", "j"), order=(1,)),
            columns=2,
        ),
        product(
            statement(
                "U",
                box(i=3, j=4),
                write("Z", "i", "j"),
                op("add", load("T", "i", "j"), load("T", "i", 0)),
                order=(1,),
            )
        ),
    ],
    ids=["two readers", "an output", "one row", "a part", "another element"],
)
def test_what_stays_apart(before: Program) -> None:
    check(before, False)


def test_what_is_overwritten_in_between() -> None:
    """The product reads ``D`` as it was; the statement between changes it."""
    change = statement(
        "W",
        box(i=3, j=4),
        write("D", "i", "j"),
        op("mul", load("D", "i", "j"), load("D", "i", "j")),
        order=(1,),
    )
    before = product(turned(order=2), rest=(change,))
    tensors = tuple(t if t.name != "D" else tensor("D", 3, 4, role="inout") for t in before.tensors)
    check(Program(name="p", tensors=tensors, statements=before.statements), False)
