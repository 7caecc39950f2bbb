"""Questions 3 and 4: buffers, accumulators, bounds, and the memory plan."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from nestor.errors import IllegalSchedule, LegalityUnknown
from nestor.ir.affine import variable
from nestor.ir.expr import binary, unary
from nestor.ir.loopnest import Alloc, Compute, Loop, LoopNest, Node
from nestor.ir.program import Domain, IndexRange, Layout, Program
from nestor.ir.schedule import ComputeAt, Fuse, Pack, Parallel, Tile, Unroll, Vectorize
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_memory_plan, check_nest
from tests.legality.judge import accepted, refused
from tests.legality.kernels import (
    KERNELS,
    Symbol,
    add,
    affine,
    alloc,
    blur,
    box,
    buffer,
    compute,
    load,
    loop,
    masked,
    matmul,
    nest_of,
    softmax,
    statement,
    store,
    tensor,
    write,
)
from tests.legality.mutations import nodes_of, replaced
from tests.legality.nests import NESTS, ZERO, row_sums, smooth

i, j, a, b = map(variable, "ijab")


def change(nest: LoopNest, wanted, f) -> LoopNest:
    """The nest with ``f`` applied to the first node for which ``wanted`` holds."""
    for path, node in nodes_of(nest.body):
        if wanted(node):
            return replace(nest, body=replaced(nest.body, path, f))
    raise AssertionError("no such node")


def is_phase(phase: str, statement: str = ""):
    def wanted(node: Node) -> bool:
        return isinstance(node, Compute) and node.phase == phase and statement in node.statement

    return wanted


# Temps in buffers


def exponentials(consumer, shape=(7,), index="i", producer="i"):
    """All of ``A`` in a buffer, then ``Y``."""
    kernel = smooth()
    make = compute("A", "point", {"i": "i"}, store("x", producer), unary("exp", load("X", "i")))
    use = compute("Y", "point", {"i": "i"}, store("Y", "i"),
                  add(load("x", consumer), masked("x", (i - 1,), (i - 1,))))  # fmt: skip
    return kernel, nest_of(
        kernel, alloc(buffer("x", "A", *shape), loop("i", 7, make), loop("i", 7, use)),
        without=("A",),
    )  # fmt: skip


def test_a_temp_in_a_buffer():
    accepted(*exponentials("i"))
    refused(*exponentials(6 - i), "buffer", "not written before")
    refused(*exponentials("i", producer=6 - i), "buffer", "reads A[")


def test_a_buffer_that_is_too_small():
    refused(*exponentials("i", shape=(6,)), "bounds", "leaves its buffer", "x[6]")


def test_the_ring_needs_two_cells_and_the_right_order():
    kernel, nest = NESTS["ring_buffer"]()
    accepted(kernel, nest)
    one = change(nest, lambda n: isinstance(n, Compute), lambda n: renamed_cells(n, 1))
    refused(kernel, one, "buffer")
    body = nest.body.body
    swapped = replace(nest, body=replace(nest.body, body=replace(body, body=flipped(body.body))))
    with pytest.raises(IllegalSchedule):
        check_nest(kernel, swapped)


def renamed_cells(node: Compute, size: int) -> Compute:
    stores = tuple(replace(s, indices=tuple(x % size for x in s.indices)) for s in node.stores)
    return replace(node, stores=stores)


def flipped(block):
    return replace(block, body=tuple(reversed(block.body)))


def test_a_ring_of_one_is_clobbered():
    """One cell for all: the value of the iteration before is gone."""
    kernel = smooth()
    body = alloc(
        buffer("x", "A", 1),
        loop(
            "i", 7,
            compute("A", "point", {"i": "i"}, store("x", 0), unary("exp", load("X", i))),
            compute("Y", "point", {"i": "i"}, store("Y", "i"),
                    add(load("x", 0), masked("x", (affine(0),), (i - 1,)))),
        ),
    )  # fmt: skip
    refused(kernel, nest_of(kernel, body, without=("A",)), "buffer", "overwritten by")


def test_a_buffer_of_each_iteration_forgets_the_last_one():
    kernel, nest = NESTS["ring_buffer"]()
    inside = replace(nest.body.body, body=replace(nest.body, body=nest.body.body.body))
    refused(kernel, replace(nest, body=inside), "buffer", "not written before")


def test_a_shared_buffer_in_parallel_races():
    kernel, nest = NESTS["rewritten_temp"]()
    outside = replace(nest.body.body, body=replace(nest.body, body=nest.body.body.body))
    refused(kernel, replace(nest, body=outside), "dependence", "parallel loop 'i'")


def test_a_rewritten_temp_keeps_its_versions_apart():
    kernel, nest = NESTS["rewritten_temp"]()
    block = nest.body.body.body
    order = [block.body[k] for k in (0, 2, 1, 3)]
    body = replace(nest.body, body=replace(nest.body.body, body=replace(block, body=tuple(order))))
    refused(kernel, replace(nest, body=body), "dependence")


def test_computed_at_temps():
    kernel = blur()
    at = (Fuse(first="A.i", second="Y.i"), Parallel(loop="A.i"), ComputeAt(tensor="A"))
    accepted(kernel, apply_schedule(kernel, at))
    row = (*at, Vectorize(loop="A.j"), Unroll(loop="Y.j"))
    accepted(kernel, apply_schedule(kernel, row))
    fused = (*at, Fuse(first="A.j", second="Y.j"))
    assert apply_or_none(kernel, fused) is None or refuses(kernel, apply_or_none(kernel, fused))


def apply_or_none(kernel, schedule):
    from nestor.errors import UserError

    try:
        return apply_schedule(kernel, schedule)
    except UserError:
        return None


def refuses(kernel, nest) -> bool:
    with pytest.raises(IllegalSchedule):
        check_nest(kernel, nest)
    return True


def test_mixed_homes_of_a_temp_are_unknown():
    kernel = smooth()
    make = compute("A", "point", {"i": "i"}, store("x"), unary("exp", load("X", "i")))
    use = compute("Y", "point", {"i": "i"}, store("Y", "i"),
                  add(load("x"), masked("A", (i - 1,), (i - 1,))))  # fmt: skip
    with pytest.raises(LegalityUnknown, match="in memory"):
        check_nest(kernel, nest_of(kernel, loop("i", 7, alloc(buffer("x", "A"), make, use))))


# Staged copies


def test_a_staged_row_must_be_the_right_one_and_complete():
    kernel, nest = NESTS["staged_row"]()
    short = change(
        nest,
        lambda n: isinstance(n, Loop) and n.index == "b",
        lambda n: replace(n, upper=(affine(5),)),
    )
    refused(kernel, short, "buffer", "not written before")

    def other_row(node: Compute) -> Compute:
        row = 3 - i
        return compute("X", "copy", {"d0": row, "d1": "b"}, store("row", "b"), load("X", row, "b"))

    refused(kernel, change(nest, is_phase("copy"), other_row), "buffer")

    def wrong_load(node: Compute) -> Compute:
        return replace(node, values=(load("X", 3 - i, "b"),))

    refused(kernel, change(nest, is_phase("copy"), wrong_load), "value", "copies another element")


def test_a_copy_goes_stale_when_its_tensor_is_written():
    kernel, nest = NESTS["staged_state"]()
    accepted(kernel, nest)
    copy, *rest = nest.body.body.body.body
    once = replace(nest, body=replace(nest.body, body=nest_body(copy, loop("t", 3, *rest))))
    refused(kernel, once, "buffer", "stale after H[")


def nest_body(*nodes: Node) -> Node:
    return nest_of(smooth(), *nodes).body


# Accumulators


def test_accumulators_of_all_kinds_are_accepted():
    for name in ("split_sum", "reused_accumulator", "in_place_mean", "added_to_target"):
        accepted(*NESTS[name]())


def reused(nest: LoopNest):
    return nest.body.body.body.body


def test_an_accumulator_that_is_started_too_late_or_never():
    kernel, nest = NESTS["reused_accumulator"]()
    init, update, final = reused(nest)

    def rebuilt(*nodes):
        return nest_of(kernel, alloc(nest.body.buffers, loop("i", 3, *nodes)))

    refused(kernel, rebuilt(update, init, final), "buffer")
    refused(kernel, rebuilt(init, final, update), "buffer", "misses what comes later")
    refused(kernel, rebuilt(update, final), "buffer", "no state that was started")
    refused(kernel, rebuilt(init, replace(update, body=block_of(init, update.body)), final),
            "buffer", "started again")  # fmt: skip
    outside = nest_of(
        kernel, alloc(nest.body.buffers, loop("i", 3, init), loop("i", 3, update, final))
    )
    refused(kernel, outside, "buffer")


def block_of(*nodes: Node) -> Node:
    return nest_body(*nodes)


def test_an_accumulator_lost_with_its_buffer():
    kernel, nest = NESTS["reused_accumulator"]()
    init, update, final = reused(nest)
    inner = replace(update, body=alloc(nest.body.buffers, init, update.body))
    with pytest.raises(IllegalSchedule, match=r"never read|no state"):
        check_nest(
            kernel, nest_of(kernel, alloc(nest.body.buffers, loop("i", 3, init, inner, final)))
        )


def test_points_that_share_an_accumulator_must_not_overlap():
    kernel, nest = NESTS["reused_accumulator"]()
    init, update, final = reused(nest)
    mixed = alloc(
        nest.body.buffers, loop("i", 3, init), loop("j", 6, loop("i", 3, update.body)),
        loop("i", 3, final),
    )  # fmt: skip
    refused(kernel, nest_of(kernel, mixed), "buffer", "another point")


def test_partial_states_are_merged_once_and_all():
    kernel, nest = NESTS["split_sum"]()

    def is_merge_loop(n: Node) -> bool:
        return isinstance(n, Loop) and is_phase("merge")(n.body)

    twice = change(nest, is_merge_loop, lambda n: block_of(n, n))
    refused(kernel, twice, "buffer", "merged again")
    fewer = change(nest, is_merge_loop, lambda n: replace(n, upper=(affine(3),)))
    refused(kernel, fewer, "buffer", "never read by a final or a merge")
    none = change(nest, is_merge_loop, lambda n: replace(n, upper=(affine(0),)))
    refused(kernel, none, "buffer", "never read")
    itself = change(nest, is_phase("merge"), lambda n: replace(n, stores=(store("p", "b"),)))
    refused(kernel, itself, "buffer")


def test_a_target_is_added_to_once():
    kernel, nest = NESTS["added_to_target"]()
    from_zero = change(nest, is_phase("init"), lambda n: replace(n, values=(ZERO,)))
    refused(kernel, from_zero, "buffer", "wrong start")
    seen = 0

    def second_init(n: Node) -> bool:
        nonlocal seen
        seen += is_phase("init")(n)
        return is_phase("init")(n) and seen == 2

    doubled = change(nest, second_init, lambda n: replace(n, values=(load("Y", "i"),)))
    refused(kernel, doubled, "buffer", "wrong start")


def test_a_final_before_the_sum_of_an_in_place_mean():
    kernel, nest = NESTS["in_place_mean"]()
    init, update, final = nest.body.body.body
    swapped = nest_of(kernel, loop("i", 3, init, final, update))
    refused(kernel, swapped, "buffer")


def test_state_in_place_needs_its_target_unread():
    """``Y[i] = Σ_j Y_old[i] · X[i, j]``: the state would overwrite what the elements read."""
    kernel = row_sums()
    s = kernel.statements[0]
    element = binary("mul", load("Y", "i"), load("X", "i", "j"))
    kernel = replace(
        kernel,
        tensors=(kernel.tensors[0], replace(kernel.tensors[1], role="inout")),
        statements=(replace(s, elements=(element,)),),
    )
    nest = NESTS["in_place_sum"]()[1]
    read = change(nest, is_phase("update"), lambda n: replace(n, values=(element,)))
    with pytest.raises(IllegalSchedule, match="conflicts with itself"):
        check_nest(kernel, read)


def test_scans_keep_one_state():
    kernel, nest = NESTS["scan_in_chunks"]()
    two = change(nest, lambda n: isinstance(n, Alloc), lambda n: replace(
        n, buffers=(buffer("s", "S#0", 4, 2),)))  # fmt: skip
    j_of = 2 * variable("a") + variable("b")

    def split(n: Compute) -> Compute:
        if n.phase == "final":
            return replace(n, values=(load("s", "i", j_of % 2),))
        return replace(n, stores=(store("s", "i", j_of % 2),))

    for phase in ("update", "final"):
        two = change(two, is_phase(phase), split)
    init = Compute(statement="S", phase="init", instance=(("i", i),), stores=(store("s", i, b),),
                   values=(ZERO,))  # fmt: skip
    two = change(two, is_phase("init"), lambda n: loop("b", 2, init, kind="unroll"))
    refused(kernel, two, "buffer", "another cell")


# Bounds


def test_a_kernel_that_reads_outside_its_tensor():
    kernel = Program(
        name="outside",
        tensors=(tensor("X", 6), tensor("Y", 6, role="output")),
        statements=(statement("Y", box(i=6), write("Y", "i"), load("X", i + 1)),),
    )
    nest = apply_schedule(kernel, ())
    refused(kernel, nest, "bounds", "leaves its tensor", "Y[i=5]", "index 6")
    guarded = replace(kernel.statements[0], elements=(masked("X", (i + 1,), (4 - i,)),))
    kernel = replace(kernel, statements=(guarded,))
    accepted(kernel, apply_schedule(kernel, (Tile(loop="Y.i", size=4), Vectorize(loop="Y.i.i"))))


def test_symbolic_bounds():
    n = affine("N")
    symbols = (Symbol(name="N", lower=2, upper=9),)
    domain = Domain(ranges=(IndexRange(name="i", lower=affine(0), upper=n - 1),))
    kernel = Program(
        name="next",
        symbols=symbols,
        tensors=(tensor("X", n), tensor("Y", n - 1, role="output")),
        statements=(statement("Y", domain, write("Y", "i"), load("X", i + 1)),),
    )
    accepted(kernel, apply_schedule(kernel, ()), {"N": 2}, {"N": 9})
    short = replace(kernel, tensors=(tensor("X", 8), kernel.tensors[1]))
    refused(short, apply_schedule(short, ()), "bounds", "index 8", symbols={"N": 9})


def test_layouts_are_injective_and_inside_their_shape():
    kernel = matmul()
    nest = apply_schedule(kernel, (Pack(tensor="B", order=(1, 0), dims=(1,), blocks=(4,)),))
    accepted(kernel, nest)
    d0, d1 = affine("d0"), affine("d1")
    for physical, shape, words in (
        ((d1 // 4, d0, d1 % 4), (1, 3, 4), "leaves its physical shape"),
        ((d1 // 4, d0, d1 % 3), (2, 3, 3), "two elements one cell"),
    ):
        layout = Layout(physical=physical, shape=tuple(map(affine, shape)))
        tensors = tuple(replace(t, layout=layout) if t.name == "B" else t for t in nest.tensors)
        with pytest.raises(IllegalSchedule, match=words) as caught:
            check_nest(kernel, replace(nest, tensors=tensors))
        assert caught.value.question == "bounds"


@pytest.mark.parametrize("name", ["matmul", "softmax", "layernorm", "convolution"])
def test_gathered_dimensions_and_vectors_stay_inside(name):
    kernel = KERNELS[name]()
    for s in kernel.statements:
        last = s.domain.names[-1]
        if s.reduction is None:
            schedule = (Tile(loop=f"{s.name}.{last}", size=4), Vectorize(loop=f"{s.name}.{last}.i"))
            accepted(kernel, apply_schedule(kernel, schedule))


def test_a_gather_needs_the_whole_dimension():
    kernel, nest = NESTS["gathered_buffer"]()
    accepted(kernel, nest)
    first = change(
        nest,
        lambda n: isinstance(n, Loop) and isinstance(n.body, Compute) and n.body.statement == "T",
        lambda n: replace(n, lower=(affine(1),)),
    )
    with pytest.raises(IllegalSchedule):
        check_nest(kernel, first)


# Budget, threads, report


def test_the_budget_is_a_refusal_without_a_verdict():
    kernel = matmul()
    nest = apply_schedule(kernel, ())
    with pytest.raises(LegalityUnknown, match="more than 100 isl operations"):
        check_nest(kernel, nest, max_operations=100)
    with pytest.raises(LegalityUnknown, match="longer than 0 s"):
        check_nest(kernel, nest, max_seconds=0)
    report = check_nest(kernel, nest, max_operations=None)
    assert report.computes == 4 and report.queries > 10 and report.pairs > 0
    assert set(report.seconds) >= {"value", "coverage", "bounds", "dependence", "buffer"}


def test_each_thread_has_a_context_of_its_own():
    from concurrent.futures import ThreadPoolExecutor

    kernel = softmax()
    nest = apply_schedule(kernel, tuple(Fuse(first="M.i", second=f"{s}.i") for s in "EZQ"))
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: check_nest(kernel, nest), range(16)))
    assert len({r.queries for r in reports}) == 1


# The memory plan


def test_memory_plans():
    check_memory_plan([])
    check_memory_plan([("a", 0, 2, 0, 64), ("b", 1, 3, 64, 64), ("c", 3, 5, 0, 64)])
    check_memory_plan([("a", 0, 9, 0, 0), ("b", 0, 9, 0, 64)])
    with pytest.raises(IllegalSchedule, match="'a' and 'b' over each other") as caught:
        check_memory_plan([("a", 0, 2, 0, 65), ("b", 2, 3, 64, 64)])
    assert caught.value.witness["kernel"] == 2 and caught.value.witness["byte"] == 64
    with pytest.raises(ValueError):
        check_memory_plan([("a", 2, 1, 0, 64)])


def test_memory_plans_against_a_bitmap():
    rng = Random(3)
    for _ in range(300):
        slots = []
        for k in range(rng.randrange(1, 7)):
            first = rng.randrange(5)
            slots.append((f"t{k}", first, first + rng.randrange(3), rng.randrange(12),
                          rng.randrange(5)))  # fmt: skip
        owners: set[tuple[int, int]] = set()
        clash = False
        for _, first, last, offset, size in slots:
            cells = {(k, x) for k in range(first, last + 1) for x in range(offset, offset + size)}
            clash |= bool(cells & owners)
            owners |= cells
        if clash:
            with pytest.raises(IllegalSchedule):
                check_memory_plan(slots)
        else:
            check_memory_plan(slots)
