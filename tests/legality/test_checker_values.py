"""Question 0: a compute that is not the statement's is refused, with where it differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nestor.errors import IllegalSchedule, IRError
from nestor.ir.affine import affine, variable
from nestor.ir.expr import Cast, Expr, Index, Select, binary, const, unary
from nestor.ir.monoid import max_of
from nestor.ir.program import Program
from nestor.ir.types import DType
from nestor.passes.polyhedral import check_nest
from tests.legality.judge import accepted, refused
from tests.legality.kernels import (
    F32,
    add,
    alloc,
    box,
    buffer,
    compute,
    load,
    loop,
    masked,
    matmul,
    mul,
    nest_of,
    statement,
    store,
    tensor,
    write,
)
from tests.legality.nests import NESTS, SUM, ZERO, row_sums, smooth

i, j, a, b = map(variable, "ijab")


@pytest.mark.parametrize("name", NESTS)
def test_hand_made_nests_are_accepted(name):
    accepted(*NESTS[name]())


def pointwise(value: Expr) -> Program:
    return Program(
        name="pointwise",
        tensors=(tensor("X", 4, 6), tensor("Y", 4, 6, role="output")),
        statements=(statement("Y", box(i=4, j=6), write("Y", "i", "j"), value),),
    )


def tiled(value: Expr, target=("i", 3 * a + b)):
    """``i`` serial, ``j`` tiled by 3."""
    instance = {"i": i, "j": 3 * a + b}
    return loop("i", 4, loop("a", 2, loop("b", 3, compute(
        "Y", "point", instance, store("Y", *target), value))))  # fmt: skip


def test_indices_are_compared_as_functions_of_the_loops():
    kernel = pointwise(unary("exp", load("X", "i", "j")))
    same = ((3 * a + b) * 2 + 1) // 2  # needs 3a + b itself, written differently
    accepted(kernel, nest_of(kernel, tiled(unary("exp", load("X", i, same)))))
    fused = loop("j", 24, compute("Y", "point", {"i": j // 6, "j": j % 6},
                                  store("Y", j // 6, j % 6),
                                  unary("exp", load("X", j // 6, j - 6 * (j // 6)))))  # fmt: skip
    accepted(kernel, nest_of(kernel, fused))


@pytest.mark.parametrize(
    "value",
    [
        load("X", i, 3 * a + b),
        unary("sin", load("X", i, 3 * a + b)),
        unary("exp", load("X", i, 2 * a + b)),
        unary("exp", load("X", i, 3 * a)),
        unary("exp", load("Y", i, 3 * a + b)),
        unary("exp", const(0, F32)),
        Cast(x=unary("exp", load("X", i, 3 * a + b)), dtype=F32),
    ],
)
def test_another_value_is_refused(value):
    kernel = pointwise(unary("exp", load("X", "i", "j")))
    refused(kernel, nest_of(kernel, tiled(value)), "value")


def test_another_target_is_refused():
    kernel = pointwise(unary("exp", load("X", "i", "j")))
    value = unary("exp", load("X", i, 3 * a + b))
    wrong = nest_of(kernel, tiled(value, target=(i, 5 - 3 * a - b)))
    refused(kernel, wrong, "value", "another element of 'Y'")


def test_constants_differ_by_bits():
    kernel = pointwise(add(load("X", "i", "j"), const(0.0, F32)))
    good = add(load("X", i, 3 * a + b), const(0.0, F32))
    accepted(kernel, nest_of(kernel, tiled(good)))
    bad = add(load("X", i, 3 * a + b), const(-0.0, F32))
    refused(kernel, nest_of(kernel, tiled(bad)), "value")


def test_index_values_are_compared():
    def value(at):
        is_late = binary("gt", Index(value=affine(at)), const(2, DType.i64))
        return Select(condition=is_late, a=const(1, F32), b=ZERO)

    kernel = pointwise(value("j"))
    accepted(kernel, nest_of(kernel, tiled(value(3 * a + b))))
    refused(kernel, nest_of(kernel, tiled(value(2 * a + b))), "value")


# Predicates


def shifted(shift: int) -> Program:
    """``Y[i, j] = X[i, j - shift]``, zero outside."""
    at = j - shift
    return pointwise(masked("X", ("i", at), (at, 5 - at)))


def test_a_predicate_may_be_dropped_where_it_is_implied():
    kernel = shifted(1)
    first = compute("Y", "point", {"i": "i", "j": 0}, store("Y", "i", 0), ZERO)
    rest = loop("b", 5, compute("Y", "point", {"i": "i", "j": b + 1}, store("Y", i, b + 1),
                                load("X", i, b)), kind="vector")  # fmt: skip
    accepted(kernel, nest_of(kernel, loop("i", 4, first, rest)))


def test_a_predicate_that_matters_may_not_be_dropped_or_changed():
    kernel = shifted(1)
    at = 3 * a + b - 1
    accepted(kernel, nest_of(kernel, tiled(masked("X", (i, at), (at,)))))
    refused(kernel, nest_of(kernel, tiled(load("X", i, at))), "value", "predicate")
    refused(kernel, nest_of(kernel, tiled(masked("X", (i, at), (at - 1,)))), "value", "predicate")
    other = replace(masked("X", (i, at), (at,)), other=const(1, F32))
    refused(kernel, nest_of(kernel, tiled(other)), "value")


# Reductions


def summed(init=ZERO, element=None, monoid=SUM, final=None, kernel=None):
    kernel = kernel or row_sums()
    return kernel, nest_of(
        kernel,
        loop(
            "i", 3,
            alloc(
                buffer("s", "S#0"),
                compute("S", "init", {"i": "i"}, store("s"), init),
                loop("j", 6, compute("S", "update", {"i": "i", "j": "j"}, store("s"),
                                     element or load("X", "i", "j"), monoid=monoid)),
                compute("S", "final", {"i": "i"}, store("Y", "i"), final or load("s")),
            ),
        ),
    )  # fmt: skip


def test_reduction_phases():
    accepted(*summed())
    refused(*summed(init=const(1, F32)), "value")
    refused(*summed(init=load("Y", "i")), "value", "not from the identity")
    refused(*summed(element=load("X", "i", 0)), "value")
    refused(*summed(monoid=max_of(F32)), "value", "another monoid")
    refused(*summed(final=binary("div", load("s"), const(6, F32))), "value")
    scaled = row_sums(scaled=True)
    accepted(*summed(final=binary("div", load("s"), const(6, F32)), kernel=scaled))
    refused(*summed(kernel=scaled), "value")


def test_an_accumulator_of_another_type_is_refused():
    kernel, nest = summed()
    assert kernel.tensors[1].dtype is F32
    outer = nest.body
    wide = replace(outer.body, buffers=(buffer("s", "S#0", dtype=DType.f64),))
    with pytest.raises(IllegalSchedule, match="type"):
        check_nest(kernel, replace(nest, body=replace(outer, body=wide)))


def test_a_buffer_of_another_tensor_is_refused():
    kernel = smooth()
    at = {"i": "i"}
    body = loop(
        "i", 7,
        alloc(
            (buffer("x", "A"), buffer("z", "Y")),
            compute("A", "point", at, store("x"), unary("exp", load("X", "i"))),
            compute("Y", "point", at, store("z"), add(load("x"), ZERO)),
        ),
    )  # fmt: skip
    with pytest.raises(IllegalSchedule, match="seen from outside"):
        check_nest(kernel, nest_of(kernel, body, without=("A",)))


# Malformed nests


def test_malformed_nests_are_errors_of_the_ir():
    kernel = pointwise(load("X", "i", "j"))
    here = {"i": "i", "j": "j"}
    good = compute("Y", "point", here, store("Y", "i", "j"), load("X", "i", "j"))
    cases = [
        loop("i", 4, good),  # j is in no scope
        loop("i", 4, loop("i", 6, good)),
        loop("i", 4, loop("j", "M", good)),
        loop("i", 4, loop("j", affine("i") + 1, good, kind="vector")),
        loop("i", 4, loop("j", 6, replace(good, statement="Z"))),
        loop("i", 4, loop("j", 6, replace(good, stores=(store("W", "i", "j"),)))),
    ]
    for body in cases:
        with pytest.raises(IRError):
            check_nest(kernel, nest_of(kernel, body))


def test_a_swapped_operand_is_refused():
    kernel = matmul()
    body = loop("m", 5, loop("n", 6, alloc(
        buffer("s", "C#0"),
        compute("C", "init", {"m": "m", "n": "n"}, store("s"), ZERO),
        loop("k", 3, compute("C", "update", {"m": "m", "n": "n", "k": "k"}, store("s"),
                             mul(load("B", "k", "n"), load("A", "m", "k")), monoid=SUM)),
        compute("C", "final", {"m": "m", "n": "n"}, store("C", "m", "n"), load("s")),
    )), )  # fmt: skip
    with pytest.raises(IllegalSchedule, match="reads 'B' where the statement reads 'A'"):
        check_nest(kernel, nest_of(kernel, body))
