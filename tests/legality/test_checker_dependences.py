"""Question 2: order, and what parallel and vector loops may not carry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nestor.errors import IllegalSchedule
from nestor.ir.affine import variable
from nestor.ir.expr import const, map_affines, unary
from nestor.ir.loopnest import Guard
from nestor.ir.program import Origin, Program
from nestor.ir.schedule import Fuse, Parallel, Reorder, SplitReduction, Tile, Vectorize
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from tests.legality.judge import accepted, refused
from tests.legality.kernels import (
    F32,
    I64,
    KERNELS,
    add,
    alloc,
    box,
    buffer,
    compute,
    guard,
    index_add,
    jacobi,
    load,
    loop,
    nest_of,
    scatter,
    seidel,
    state,
    statement,
    store,
    tensor,
    write,
)
from tests.legality.mutations import nodes_of, renamed, replaced
from tests.legality.nests import NESTS, SUM, ZERO, row_sums, smooth

i, j, t, x = map(variable, "ijtx")


@pytest.mark.parametrize("name", KERNELS)
def test_unscheduled_kernels_are_accepted(name):
    kernel = KERNELS[name]()
    accepted(kernel, apply_schedule(kernel, ()))


# Stencils


def stencil(order: str, **kinds: str):
    kernel = seidel()
    element = kernel.statements[0].elements[0]
    body = compute("S", "point", {"t": t, "i": i, "j": j}, store("A", i, j), element)
    for index in reversed(order):
        low, high = (0, 3) if index == "t" else (1, 5)
        body = loop(index, high, body, lower=low, kind=kinds.get(index, "serial"))
    return kernel, nest_of(kernel, body)


def test_a_reordered_stencil_is_refused_with_its_instances():
    accepted(*stencil("tij"))
    refusal = refused(
        *stencil("tji"), "dependence", "reverses a dependence in kernel 'seidel'", "S[t=",
        "must run before", "both touch A[", "fix:",
    )  # fmt: skip
    first, second = refusal.witness["a"]["instance"], refusal.witness["b"]["instance"]
    assert first["t"] == second["t"] and first["i"] < second["i"] and first["j"] > second["j"]


def test_the_message_names_instances_element_and_source():
    kernel, nest = stencil("tji")
    origin = Origin(op="A[i, j] = …", file="stencil.py", line=12)
    kernel = replace(kernel, statements=(replace(kernel.statements[0], origin=origin),))
    with pytest.raises(IllegalSchedule) as caught:
        check_nest(kernel, nest)
    assert str(caught.value).splitlines() == [
        "the loop nest reverses a dependence in kernel 'seidel'",
        "  S[t=0, i=1, j=2] must run before S[t=0, i=2, j=1]: both touch A[1, 2]",
        "  from A[i, j] = … at stencil.py:12",
        "  fix: keep the order of these loops, skew them, or drop the step",
    ]


@pytest.mark.parametrize("order", ["itj", "jti", "ijt"])
def test_time_may_not_move_inside(order):
    refused(*stencil(order), "dependence", "must run before")


@pytest.mark.parametrize("index", ["t", "i", "j"])
def test_no_loop_of_seidel_is_parallel(index):
    refused(*stencil("tij", **{index: "parallel"}), "dependence", f"loop '{index}' carries")


def wavefront(skew: int):
    """``w = skew·i + j`` outside, ``i`` parallel inside."""
    kernel = seidel()
    column = variable("w") - skew * i
    element = map_affines(kernel.statements[0].elements[0], lambda a: a.substitute({"j": column}))
    body = Guard(
        conditions=(column - 1, 4 - column),
        body=compute("S", "point", {"t": t, "i": i, "j": column}, store("A", i, column), element),
    )
    inner = loop("i", 5, body, lower=1, kind="parallel")
    last = 4 * skew + 5
    return kernel, nest_of(kernel, loop("t", 3, loop("w", last, inner, lower=skew + 1)))


def test_skewed_seidel_has_a_parallel_wavefront():
    accepted(*wavefront(2))
    refused(*wavefront(1), "dependence")


def test_jacobi_has_parallel_space_and_serial_time():
    kernel = jacobi()
    inner = [Parallel(loop="S.i"), Vectorize(loop="R.i")]
    accepted(kernel, apply_schedule(kernel, tuple(inner)))
    refused(kernel, apply_schedule(kernel, (Fuse(first="S.i", second="R.i"),)), "dependence")
    refused(kernel, apply_schedule(kernel, (Parallel(loop="S.t"),)), "dependence", "'S.t'")


def test_reversed_time_is_refused():
    kernel = jacobi()
    nest = apply_schedule(kernel, ())
    back = nest_of(kernel, loop("S.t", 3, renamed(nest.body.body, {"S.t": 2 - variable("S.t")})))
    refused(kernel, back, "dependence", "must run before")


# Reductions


def accumulated(kind: str, outer: str = "j"):
    kernel = row_sums()
    update = compute("S", "update", {"i": "i", "j": "j"}, store("Y", "i"), load("X", "i", "j"),
                     monoid=SUM)  # fmt: skip
    sizes = {"i": 3, "j": 6}
    inner = "i" if outer == "j" else "j"
    return kernel, nest_of(
        kernel,
        loop("i", 3, compute("S", "init", {"i": "i"}, store("Y", "i"), ZERO)),
        loop(outer, sizes[outer], loop(inner, sizes[inner], update), kind=kind),
    )


def test_a_reductions_own_order_is_free_but_not_its_threads():
    accepted(*accumulated("serial", "j"))
    accepted(*accumulated("parallel", "i"))
    refused(*accumulated("parallel", "j"), "dependence", "parallel loop 'j'")
    refused(*accumulated("vector", "j"), "dependence", "vector loop 'j'")
    refused(*accumulated("grid", "j"), "dependence", "grid loop 'j'")


def test_split_reductions():
    kernel = row_sums(N=10)
    split = (SplitReduction(loop="S.j", lanes=4), Vectorize(loop="S.j.i"), Parallel(loop="S.i"))
    accepted(kernel, apply_schedule(kernel, split))
    accepted(*NESTS["parallel_partials"]())


def test_shared_partials_race():
    """One partial state for all threads."""
    kernel = row_sums(R=1, N=6)
    a, b = variable("a"), variable("b")
    at = {"i": 0, "j": 3 * a + b}
    update = compute("S", "update", at, store("p"), load("X", 0, 3 * a + b), monoid=SUM)
    body = alloc(
        buffer("p", "S#0"),
        compute("S", "init", {"i": 0}, store("p"), ZERO),
        loop("a", 2, loop("b", 3, update), kind="parallel"),
        compute("S", "final", {"i": 0}, store("Y", 0), load("p")),
    )
    refused(kernel, nest_of(kernel, body), "dependence", "parallel loop 'a'")


def test_lanes_of_a_merge_are_exempt_its_threads_are_not():

    kernel, nest = NESTS["split_sum"]()
    for path, node in nodes_of(nest.body):
        if getattr(node, "kind", "") == "vector" and getattr(node.body, "phase", "") == "merge":
            threads = replaced(nest.body, path, lambda n: replace(n, kind="parallel"))
            refused(kernel, nest_of(kernel, threads), "dependence", "parallel loop 'b'")
            return
    pytest.fail("the nest has no merge")


# Producers and consumers


def test_an_epilogue_before_the_sum_is_complete():
    kernel = KERNELS["matmul"]()
    inside = (
        Tile(loop="C.k", size=1), Fuse(first="C.m", second="D.m"), Fuse(first="C.n", second="D.n"),
    )  # fmt: skip
    accepted(kernel, apply_schedule(kernel, inside))
    swapped = nest_of(kernel, *reversed(apply_schedule(kernel, ()).body.body))
    refused(kernel, swapped, "dependence", "C[", "must run before D[")


def test_a_consumer_that_looks_ahead_may_not_be_fused():
    kernel = Program(
        name="ahead",
        tensors=(tensor("X", 6), tensor("A", 6, role="temp"), tensor("Y", 5, role="output")),
        statements=(
            statement("A", box(i=6), write("A", "i"), unary("exp", load("X", "i"))),
            statement("Y", box(i=5), write("Y", "i"), load("A", i + 1), order=(1,)),
        ),
    )
    make = compute("A", "point", {"i": "i"}, store("A", "i"), unary("exp", load("X", "i")))
    use = compute("Y", "point", {"i": i - 1}, store("Y", i - 1), load("A", "i"))
    accepted(kernel, nest_of(kernel, loop("i", 6, make, guard(i - 1, use))))
    early = compute("Y", "point", {"i": "i"}, store("Y", "i"), load("A", i + 1))
    refused(
        kernel, nest_of(kernel, loop("i", 6, make, guard(4 - i, early))), "dependence", "A[i=1]"
    )


def test_shifted_fusion_may_not_be_parallel():
    kernel, nest = NESTS["shifted_fusion"]()
    accepted(kernel, nest)
    refused(
        kernel, nest_of(kernel, loop("i", 8, nest.body.body, kind="parallel")), "dependence",
        "parallel loop 'i' carries a dependence",
    )  # fmt: skip


def test_fusion_over_equal_indices_is_parallel():
    kernel = KERNELS["softmax"]()
    rows = tuple(Fuse(first="M.i", second=f"{s}.i") for s in "EZQ")
    accepted(kernel, apply_schedule(kernel, (*rows, Parallel(loop="M.i"))))
    late = Reorder(statement="Z", loops=("Z.j", "Z.i"))
    assert kernel.statements[2].name == "Z"
    accepted(kernel, apply_schedule(kernel, (late, Parallel(loop="E.i"))))


# Scans and order


def test_scans_keep_their_order():
    kernel, nest = NESTS["scan_in_chunks"]()
    buffers, body = nest.body.buffers, nest.body.body.body
    turned = renamed(body[1], {"a": 2 - variable("a")})
    refused(kernel, nest_of(kernel, alloc(buffers, body[0], turned)), "buffer")


def test_monoids_that_do_not_commute_keep_their_order():
    kernel, nest = NESTS["ordered_product"]()
    buffers, body = nest.body.buffers, nest.body.body.body
    turned = renamed(body[1], {"b": 2 - variable("b")})
    refused(
        kernel, nest_of(kernel, alloc(buffers, body[0], turned, body[2])), "buffer", "too early"
    )


# Scatters, aliases, ill-defined statements


def test_scatters():
    kernel = scatter()
    ids = load("ids", "i", dtype=I64)
    put = compute("A", "point", {"i": "i", "j": "j"}, store("Y", ids, "j"), load("X", "i", "j"))
    accepted(kernel, nest_of(kernel, loop("i", 4, loop("j", 3, put, kind="vector"))))
    accepted(kernel, nest_of(kernel, loop("j", 3, loop("i", 4, put), kind="parallel")))
    with pytest.raises(IllegalSchedule, match="parallel loop 'i'"):
        check_nest(kernel, nest_of(kernel, loop("i", 4, loop("j", 3, put), kind="parallel")))
    turned = loop("i", 4, loop("j", 3, renamed(put, {"i": 3 - i})))
    with pytest.raises(IllegalSchedule, match="must run before"):
        check_nest(kernel, nest_of(kernel, turned))


def test_index_add_in_threads():
    kernel = index_add()
    ids = load("ids", "i", dtype=I64)
    put = compute("A", "update", {"i": "i", "j": "j"}, store("Y", ids, "j"), load("X", "i", "j"),
                  monoid=SUM)  # fmt: skip
    accepted(kernel, nest_of(kernel, loop("j", 3, loop("i", 4, put), kind="parallel")))
    with pytest.raises(IllegalSchedule, match="parallel loop 'i'"):
        check_nest(kernel, nest_of(kernel, loop("i", 4, loop("j", 3, put), kind="parallel")))


def test_an_alias_depends_on_the_whole_tensor():
    kernel = KERNELS["pipeline"]()
    accepted(kernel, apply_schedule(kernel, (Parallel(loop="B.i"), Vectorize(loop="Z.j"))))
    nest = apply_schedule(kernel, ())
    order = list(nest.body.body)
    order[1], order[3] = order[3], order[1]
    refused(kernel, nest_of(kernel, *order), "dependence", "must run before Z[")


def test_a_statement_that_conflicts_with_itself_is_refused():
    kernel = Program(
        name="shift",
        tensors=(tensor("A", 6, role="inout"),),
        statements=(statement("S", box(i=5), write("A", "i"), load("A", i + 1)),),
    )
    body = loop("i", 5, compute("S", "point", {"i": "i"}, store("A", "i"), load("A", i + 1)))
    with pytest.raises(IllegalSchedule, match="conflicts with itself"):
        check_nest(kernel, nest_of(kernel, body))
    double = Program(
        name="double",
        tensors=(tensor("A", 6, role="output"),),
        statements=(statement("S", box(i=6, j=2), write("A", "i"), const(1, F32)),),
    )
    nest = apply_schedule(double, ())
    with pytest.raises(IllegalSchedule, match="conflicts with itself"):
        check_nest(double, nest)


def test_a_final_map_that_reads_its_own_target():
    """``Y = sum(X) + Y``: right with an accumulator, wrong with the state in ``Y`` itself."""
    kernel = row_sums()
    s = kernel.statements[0]
    final = (add(state(0), load("Y", "i")),)
    kernel = replace(
        kernel,
        tensors=(kernel.tensors[0], replace(kernel.tensors[1], role="inout")),
        statements=(replace(s, reduction=replace(s.reduction, final=final)),),
    )
    accepted(kernel, apply_schedule(kernel, (Parallel(loop="S.i"),)))
    at = {"i": "i"}
    in_place = loop(
        "i", 3,
        compute("S", "init", at, store("Y", "i"), ZERO),
        loop("j", 6, compute("S", "update", {"i": "i", "j": "j"}, store("Y", "i"),
                             load("X", "i", "j"), monoid=SUM)),
        compute("S", "final", at, store("Y", "i"), add(load("Y", "i"), load("Y", "i"))),
    )  # fmt: skip
    with pytest.raises(IllegalSchedule, match="conflicts with itself"):
        check_nest(kernel, nest_of(kernel, in_place))


def test_in_place_pointwise_statements_are_fine():
    kernel = Program(
        name="inc",
        tensors=(tensor("A", 6, role="inout"),),
        statements=(statement("S", box(i=6), write("A", "i"), unary("neg", load("A", "i"))),),
    )
    accepted(kernel, apply_schedule(kernel, (Parallel(loop="S.i"),)))


def test_smooth_needs_its_producer_first():
    kernel = smooth()
    nest = apply_schedule(kernel, ())
    refused(kernel, nest_of(kernel, *reversed(nest.body.body)), "dependence")
