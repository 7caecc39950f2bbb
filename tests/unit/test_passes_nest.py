"""Schedules become nests: structure, tails, accumulators, buffers, refusals of malformed steps."""

import numpy as np
import pytest

from nestor.errors import UserError
from nestor.ir.affine import affine
from nestor.ir.expr import Load, Var, binary, unary
from nestor.ir.loopnest import Alloc, Compute, Guard, Loop, Node, node_children
from nestor.ir.monoid import sum_of
from nestor.ir.nest_interpreter import run_nest
from nestor.ir.program import Program, Reduction, Statement, Symbol, Tensor, Write, box
from nestor.ir.schedule import (
    Accumulate,
    BlockReduction,
    ComputeAt,
    Fuse,
    Pack,
    Parallel,
    Reorder,
    SplitReduction,
    Tile,
    Unroll,
    Vectorize,
    schedule_from_json,
    schedule_to_json,
)
from nestor.ir.types import DType
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.passes.register_tile import choose_block

F32 = DType.f32


def tensor(name, shape, role):
    return Tensor(name=name, shape=tuple(affine(s) for s in shape), dtype=F32, role=role)


def load(name, *indices):
    return Load(tensor=name, indices=tuple(affine(i) for i in indices), dtype=F32)


def write(name, *indices):
    return Write(tensor=name, indices=tuple(affine(i) for i in indices))


def matmul(m=20, n=40, k=7, epilogue=True):
    product = Statement(
        name="C",
        domain=box(m=m, n=n, k=k),
        order=(0,),
        writes=(write("c", "m", "n"),),
        elements=(binary("mul", load("a", "m", "k"), load("b", "k", "n")),),
        reduction=Reduction(indices=("k",), monoid=sum_of(F32), final=(Var(name="s0", dtype=F32),)),
    )
    tensors = (tensor("a", (m, k), "input"), tensor("b", (k, n), "parameter"))
    if not epilogue:
        return Program(
            name="mm", tensors=(*tensors, tensor("c", (m, n), "output")), statements=(product,)
        )
    after = Statement(
        name="E",
        domain=box(m=m, n=n),
        order=(1,),
        writes=(write("y", "m", "n"),),
        elements=(unary("exp", load("c", "m", "n")),),
    )
    tensors += (tensor("c", (m, n), "temp"), tensor("y", (m, n), "output"))
    return Program(name="mm", tensors=tensors, statements=(product, after))


def nodes(node: Node):
    yield node
    for child in node_children(node):
        yield from nodes(child)


def loops(nest):
    return {n.index: n for n in nodes(nest.body) if isinstance(n, Loop)}


def computes(nest, phase):
    return [n for n in nodes(nest.body) if isinstance(n, Compute) and n.phase == phase]


TILED = (
    Tile(loop="C.m", size=8),
    Tile(loop="C.n", size=16),
    Tile(loop="E.m", size=8),
    Tile(loop="E.n", size=16),
    Reorder(statement="C", loops=("C.n.o", "C.m.o", "C.k", "C.m.i", "C.n.i")),
    Reorder(statement="E", loops=("E.n.o", "E.m.o", "E.m.i", "E.n.i")),
    Fuse(first="C.n.o", second="E.n.o"),
    Fuse(first="C.m.o", second="E.m.o"),
    ComputeAt(tensor="c", scope="register"),
    Accumulate(statement="C"),
    Parallel(loop="C.n.o"),
    Unroll(loop="C.m.i"),
    Vectorize(loop="C.n.i"),
    Vectorize(loop="E.n.i"),
    Pack(tensor="b", order=(1, 0), dims=(1,), blocks=(16,)),
)


def test_as_written_has_one_accumulator_per_point():
    nest = apply_schedule(matmul(epilogue=False), ())
    allocs = [n for n in nodes(nest.body) if isinstance(n, Alloc)]
    assert [b.shape for a in allocs for b in a.buffers] == [()]
    assert [len(computes(nest, p)) for p in ("init", "update", "final")] == [1, 1, 1]


def test_tails_have_exact_constant_extents():
    nest = apply_schedule(matmul(), TILED)
    extents = {
        (n.index, n.upper[0].const)
        for n in nodes(nest.body)
        if isinstance(n, Loop) and n.index == "C.m.i"
    }
    assert extents == {("C.m.i", 8), ("C.m.i", 4)}
    vectors = {
        n.upper[0].const for n in nodes(nest.body) if isinstance(n, Loop) and n.kind == "vector"
    }
    assert vectors == {16, 8}


def test_parallel_tail_is_chosen_by_a_guard():
    nest = apply_schedule(matmul(), TILED)
    outer = nest.body
    assert isinstance(outer, Loop) and outer.kind == "parallel" and outer.upper[0].const == 3
    assert isinstance(outer.body, Guard) and outer.body.orelse is not None


def test_buffers_hold_the_tile_only_and_leave_the_arguments():
    nest = apply_schedule(matmul(), TILED)
    buffers = {b.name: b for n in nodes(nest.body) if isinstance(n, Alloc) for b in n.buffers}
    assert {tuple(e.const for e in b.shape) for b in buffers.values()} == {(8, 16)}
    assert [t.name for t in nest.tensors] == ["a", "b", "y"]
    packed = nest.tensors[1].layout
    assert packed is not None and [e.const for e in packed.shape] == [3, 7, 16]


def test_split_reduction_merges_lanes():
    nest = apply_schedule(
        matmul(k=40, epilogue=False),
        (SplitReduction(loop="C.k", lanes=16), Vectorize(loop="C.k.i")),
    )
    assert len(computes(nest, "merge")) == 1
    assert len(computes(nest, "update")) == 2
    assert {
        n.upper[0].const for n in nodes(nest.body) if isinstance(n, Loop) and n.kind == "vector"
    } == {16, 8}


def test_inner_half_outside_its_outer_half_is_guarded():
    schedule = (
        Tile(loop="C.m", size=8),
        Reorder(statement="C", loops=("C.m.i", "C.m.o", "C.n", "C.k")),
    )
    nest = apply_schedule(matmul(epilogue=False), schedule)
    assert any(isinstance(n, Guard) for n in nodes(nest.body))


def test_symbolic_extent_is_split_without_a_mask():
    kernel = matmul(m="N", epilogue=False)
    kernel = Program(
        name="mm", symbols=(Symbol(name="N"),), tensors=kernel.tensors, statements=kernel.statements
    )
    nest = apply_schedule(
        kernel,
        (
            Tile(loop="C.m", size=8),
            Reorder(statement="C", loops=("C.m.o", "C.k", "C.m.i", "C.n")),
            Unroll(loop="C.m.i"),
        ),
    )
    loops = [n for n in nodes(nest.body) if isinstance(n, Loop) and n.index == "C.m.i"]
    assert {n.kind for n in loops} == {"unroll"}
    assert {str(n.upper[0]) for n in loops} == {str(extent) for extent in range(2, 9)}


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Tile(loop="C.z", size=2), "has no loop 'C.z'"),
        (Tile(loop="C.m", size=0), "size of at least 1"),
        (Reorder(statement="C", loops=("C.m",)), "has the loops C.m, C.n, C.k"),
        (Reorder(statement="Z", loops=()), "no statement is called 'Z'"),
        (Fuse(first="C.m", second="E.n"), "differ"),
        (ComputeAt(tensor="y"), "is no temp"),
        (SplitReduction(loop="C.m", lanes=4), "not a reduced loop"),
    ],
)
def test_malformed_steps_name_the_trouble(step, text):
    with pytest.raises(UserError, match=text):
        apply_schedule(matmul(), (step,))


def test_schedules_round_trip_through_json():
    assert schedule_from_json(schedule_to_json(TILED)) == TILED


BLOCKED = (
    Tile(loop="C.k", size=4),
    Reorder(statement="C", loops=("C.m", "C.k.o", "C.k.i", "C.n")),
    Vectorize(loop="C.n"),
    BlockReduction(loop="C.k.o"),
)


@pytest.mark.parametrize("k", [8, 10])
def test_blocks_of_a_sum_are_merged_and_proved(k):
    kernel = matmul(m=3, n=5, k=k, epilogue=False)
    nest = apply_schedule(kernel, BLOCKED)
    check_nest(kernel, nest)
    assert len(computes(nest, "merge")) == (1 if k == 8 else 2)
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((3, k)).astype(np.float32),
        "b": rng.standard_normal((k, 5)).astype(np.float32),
        "c": np.zeros((3, 5), np.float32),
    }
    run_nest(nest, arrays)
    np.testing.assert_allclose(arrays["c"], arrays["a"] @ arrays["b"], rtol=1e-5, atol=1e-6)


def test_blocks_and_lanes_exclude_each_other():
    schedule = (
        SplitReduction(loop="C.k", lanes=2),
        Reorder(statement="C", loops=("C.m", "C.n", "C.k.o", "C.k.i")),
        BlockReduction(loop="C.k.o"),
    )
    with pytest.raises(UserError, match="in blocks or in lanes"):
        apply_schedule(matmul(epilogue=False), schedule)


@pytest.mark.parametrize(
    ("extents", "choice"),
    [
        ([768], (None, 0)),
        ([3072], (0, 512)),
        ([64, 1024], (1, 512)),
        ([3, 3, 64], (0, 0)),
        ([5000, 3], (0, 125)),
        ([None], (None, 0)),
    ],
)
def test_long_sums_are_cut_where_it_is_cheap(extents, choice):
    assert choose_block(extents) == choice
