"""Question 1: instances that are missing, doubled or added."""

from __future__ import annotations

import pytest

from nestor.ir.affine import affine, variable
from nestor.ir.expr import unary
from nestor.ir.program import Program
from tests.legality.judge import accepted, refused
from tests.legality.kernels import (
    Symbol,
    box,
    compute,
    guard,
    load,
    loop,
    nest_of,
    statement,
    store,
    tensor,
    write,
)
from tests.legality.nests import NESTS, SUM, ZERO, row_sums

i, a, b = map(variable, "iab")


def vector(N=10, symbols=()):
    return Program(
        name="vector",
        symbols=symbols,
        tensors=(tensor("X", N), tensor("Y", N, role="output")),
        statements=(statement("Y", box(i=N), write("Y", "i"), unary("exp", load("X", "i"))),),
    )


def at(index):
    return compute("Y", "point", {"i": index}, store("Y", index), unary("exp", load("X", index)))


def test_a_tile_that_divides():
    kernel = vector(12)
    accepted(kernel, nest_of(kernel, loop("a", 3, loop("b", 4, at(4 * a + b), kind="vector"))))


def test_a_missing_tail():
    kernel = vector()
    refused(
        kernel, nest_of(kernel, loop("a", 2, loop("b", 4, at(4 * a + b)))), "coverage",
        "an instance is missing", "never runs", "needs a tail",
    )  # fmt: skip


def test_a_tail_without_guard():
    kernel = vector()
    refused(
        kernel, nest_of(kernel, loop("a", 3, loop("b", 4, at(4 * a + b), kind="vector"))),
        "coverage", "outside the statement's domain", "guard the tail",
    )  # fmt: skip


def test_tails_by_guard_by_copy_and_by_mask():
    kernel = vector()
    masked = loop("a", 3, loop("b", 4, guard(9 - 4 * a - b, at(4 * a + b)), kind="vector"))
    accepted(kernel, nest_of(kernel, masked))
    copy = loop("a", 2, loop("b", 4, at(4 * a + b))), loop("b", 2, at(b + 8))
    accepted(kernel, nest_of(kernel, *copy))
    branch = guard(1 - a, loop("b", 4, at(4 * a + b)), loop("b", 2, at(b + 8)))
    accepted(kernel, nest_of(kernel, loop("a", 3, branch, kind="parallel")))
    wrong = guard(1 - a, loop("b", 4, at(4 * a + b)), loop("b", 1, at(b + 8)))
    refused(kernel, nest_of(kernel, loop("a", 3, wrong)), "coverage", "Y[i=9]")


def test_an_overlapping_tail_runs_twice():
    kernel = vector()
    copy = loop("a", 2, loop("b", 4, at(4 * a + b))), loop("b", 3, at(b + 7))
    refused(kernel, nest_of(kernel, *copy), "coverage", "runs twice", "Y[i=7]")


def test_one_loop_that_visits_twice():
    kernel = vector()
    refused(kernel, nest_of(kernel, loop("a", 5, loop("b", 4, at(2 * a + b)))), "coverage")
    refused(kernel, nest_of(kernel, loop("a", 2, loop("i", 10, at(i)))), "coverage", "again")


def test_guards_with_several_conditions():
    kernel = vector()
    inside = loop("b", 6, at(b + 2))
    ends = loop("a", 10, guard(a - 2, guard(7 - a, loop("b", 0, at(a)), at(a)), at(a)))
    accepted(kernel, nest_of(kernel, inside, ends))


def test_symbolic_sizes():
    kernel = vector("N", (Symbol(name="N", lower=1),))
    count = (affine("N") + 3) // 4
    good = loop("a", count, loop("b", 4, guard(affine("N") - 1 - 4 * a - b, at(4 * a + b)),
                                 kind="vector"), kind="parallel")  # fmt: skip
    accepted(kernel, nest_of(kernel, good), {"N": 1}, {"N": 4}, {"N": 7})
    short = loop("a", affine("N") // 4, loop("b", 4, at(4 * a + b)))
    refused(kernel, nest_of(kernel, short), "coverage", symbols={"N": 3})
    bounded = vector("N", (Symbol(name="N", lower=3, upper=8),))
    accepted(
        bounded, nest_of(bounded, loop("a", 8, guard(affine("N") - 1 - a, at(a)), kind="vector")),
        {"N": 3}, {"N": 8},
    )  # fmt: skip
    refused(
        bounded, nest_of(bounded, loop("a", 7, guard(affine("N") - 1 - a, at(a)))), "coverage",
        symbols={"N": 8},
    )  # fmt: skip


def sums(*body):
    kernel = row_sums()
    return kernel, nest_of(kernel, *body)


def update(index):
    return compute("S", "update", {"i": "i", "j": index}, store("Y", "i"), load("X", "i", index),
                   monoid=SUM)  # fmt: skip


START = compute("S", "init", {"i": "i"}, store("Y", "i"), ZERO)


def test_updates_are_covered():
    accepted(*sums(loop("i", 3, START, loop("j", 6, update("j")))))
    refused(*sums(loop("i", 3, START, loop("j", 5, update("j")))), "coverage", "j=5")
    refused(
        *sums(loop("i", 3, START, loop("j", 6, update("j")), loop("j", 1, update("j")))),
        "coverage", "runs twice",
    )  # fmt: skip


def test_an_empty_reduction_needs_its_start():
    kernel, nest = NESTS["in_place_sum"]()
    refused(kernel, nest_of(kernel, nest.body.body[1]), "coverage", "(init) never runs")


@pytest.mark.parametrize("phase", ["final"])
def test_a_missing_final(phase):
    kernel, nest = NESTS["reused_accumulator"]()
    body = nest.body.body.body
    short = type(nest.body)(
        buffers=nest.body.buffers,
        body=loop("i", 3, *(x for x in body.body if getattr(x, "phase", "") != phase)),
    )
    refused(kernel, nest_of(kernel, short), "coverage", "(final) never runs")
