"""Constraints of domains become loop bounds, guards around loops, or guards around instances."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Load, Var, binary
from nestor.ir.loopnest import Guard, Loop, LoopNest, Node, node_children
from nestor.ir.monoid import sum_of
from nestor.ir.nest_interpreter import run_nest
from nestor.ir.program import Domain, Program, Reduction, Statement, Tensor, Write, box
from nestor.ir.schedule import Schedule, SplitReduction, Tile, Unroll, Vectorize
from nestor.ir.types import DType
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest

F32 = DType.f32
ROW, TERM = variable("i"), variable("k")
ROWS, TERMS = 13, 40


def row_sums(*constraints: Affine) -> Program:
    """``y[i] = Σ_k x[i,k] * v[k]`` where the constraints hold."""
    shapes = {"x": (ROWS, TERMS), "v": (TERMS,), "y": (ROWS,)}
    tensors = tuple(
        Tensor(
            name=n,
            shape=tuple(map(affine, shape)),
            dtype=F32,
            role="output" if n == "y" else "input",
        )
        for n, shape in shapes.items()
    )
    product = binary(
        "mul",
        Load(tensor="x", indices=(ROW, TERM), dtype=F32),
        Load(tensor="v", indices=(TERM,), dtype=F32),
    )
    statement = Statement(
        name="S",
        domain=Domain(ranges=box(i=ROWS, k=TERMS).ranges, constraints=constraints),
        order=(0,),
        writes=(Write(tensor="y", indices=(ROW,)),),
        elements=(product,),
        reduction=Reduction(indices=("k",), monoid=sum_of(F32), final=(Var(name="s0", dtype=F32),)),
    )
    return Program(name="sums", tensors=tensors, statements=(statement,))


def nodes(node: Node) -> list[Node]:
    return [node, *(x for child in node_children(node) for x in nodes(child))]


def guards(nest: LoopNest) -> list[Guard]:
    return [n for n in nodes(nest.body) if isinstance(n, Guard)]


def bounds_of(nest: LoopNest, loop: str) -> tuple[set[str], set[str]]:
    """Texts of the lower and upper bounds of the first loop of that name."""
    found = next(n for n in nodes(nest.body) if isinstance(n, Loop) and n.index == loop)
    return {str(a) for a in found.lower}, {str(a) for a in found.upper}


def check_sums(program: Program, schedule: Schedule) -> LoopNest:
    """Prove the nest, and compare it with sums over the points that satisfy the constraints."""
    nest = apply_schedule(program, schedule)
    check_nest(program, nest)
    rng = np.random.default_rng(0)
    x, v = (rng.integers(-4, 5, s).astype(np.float32) for s in ((ROWS, TERMS), (TERMS,)))
    i, k = np.indices((ROWS, TERMS))
    keep = np.ones((ROWS, TERMS), bool)
    for c in program.statements[0].domain.constraints:  # type: ignore[union-attr]
        keep &= c.evaluate({"i": i, "k": k}) >= 0
    arrays = {"x": x, "v": v, "y": np.full(ROWS, np.nan, np.float32)}
    run_nest(nest, arrays)
    np.testing.assert_array_equal(arrays["y"], (x * keep) @ v)
    return nest


def test_a_triangle_bounds_its_loop() -> None:
    nest = check_sums(row_sums(ROW - TERM), ())
    assert bounds_of(nest, "S.k") == ({"0"}, {"40", "S.i + 1"})
    assert not guards(nest)


def test_a_band_bounds_its_loop_on_both_sides() -> None:
    nest = check_sums(row_sums(ROW - TERM, TERM - ROW + 3), ())
    assert bounds_of(nest, "S.k") == ({"0", "S.i - 3"}, {"40", "S.i + 1"})
    assert not guards(nest)


@pytest.mark.parametrize("factor", [2, 3, -2, -3])
def test_coefficients_round_inwards(factor: int) -> None:
    nest = check_sums(row_sums(ROW - TERM * factor + 7), ())
    assert not guards(nest)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_blocks_bound_tiles(size: int, sign: int) -> None:
    """A tile that divides a block, is one, or holds several."""
    condition = (ROW // 4 * 4 + 3 - TERM // 8 * 8) * sign + 5
    schedule = (Tile(loop="S.i", size=4), Tile(loop="S.k", size=size))
    nest = check_sums(row_sums(condition), schedule)
    inner = {n.index for g in guards(nest) for n in nodes(g) if isinstance(n, Loop)}
    if size <= 8:
        assert "S.k.o" not in inner, "whole tiles run without a test"
        assert len(bounds_of(nest, "S.k.o")[0 if sign < 0 else 1]) == 2


def test_lanes_run_whole() -> None:
    condition = ROW // 4 * 4 + 3 - TERM // 8 * 8
    schedule = (
        Tile(loop="S.i", size=4),
        SplitReduction(loop="S.k", lanes=8),
        Vectorize(loop="S.k.i"),
    )
    nest = check_sums(row_sums(condition), schedule)
    assert not guards(nest)


def test_a_tail_is_guarded_outside_its_loops() -> None:
    """The rest of 40 terms in tiles of 16 starts at 32, which no row of ours reaches."""
    condition = ROW // 4 * 4 + 3 - TERM // 8 * 8
    schedule = (Tile(loop="S.i", size=4), Tile(loop="S.k", size=16), Unroll(loop="S.k.i"))
    nest = check_sums(row_sums(condition), schedule)
    tails = [g for g in guards(nest) if any(isinstance(n, Loop) for n in nodes(g.body))]
    assert tails


def test_a_constraint_on_results_alone_guards_the_reduction() -> None:
    program = row_sums(ROW - 3)
    nest = apply_schedule(program, ())
    check_nest(program, nest)
    assert bounds_of(nest, "S.i") == ({"0", "3"}, {"13"})


def test_remainders_stay_a_test_of_each_instance() -> None:
    nest = check_sums(row_sums(-((ROW + TERM) % 3)), ())
    assert len(guards(nest)) == 1
