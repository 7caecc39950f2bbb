"""Two loops as one: what a convolution's rows are on a GPU."""

from __future__ import annotations

import pytest

from nestor.errors import UserError
from nestor.ir.schedule import (
    Collapse,
    PredicatedTile,
    Reorder,
    Schedule,
    Tile,
    Warps,
    schedule_from_json,
    schedule_to_json,
)
from nestor.passes.nest import apply_schedule
from tests.helpers import ir_programs as programs
from tests.unit.test_passes_predicated_tiles import run_both

ROWS = (
    Reorder(statement="C0", loops=("C0.i", "C0.j", "C0.k")),
    Collapse(outer="C0.i", inner="C0.j"),
)


@pytest.mark.parametrize(
    "more",
    [
        (),
        (Tile(loop="C0.i_j", size=8),),
        (PredicatedTile(loop="C0.i_j", size=8),),
        (Reorder(statement="C0", loops=("C0.k", "C0.i_j")),),
    ],
)
def test_one_loop_runs_every_instance(more: Schedule) -> None:
    run_both(programs.matmul(5, 7, 6), (*ROWS, *more), {})


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_outer_loop_may_be_symbolic(n: int) -> None:
    run_both(programs.matmul("N", 7, 6), (*ROWS, PredicatedTile(loop="C0.i_j", size=16)), {"N": n})


def test_reduced_loops() -> None:
    program = programs.conv2d()
    (statement,) = program.statements
    names = [*statement.domain.names]
    reduced = list(statement.reduction.indices)
    order = [n for n in names if n not in reduced] + reduced
    loops = tuple(f"{statement.name}.{n}" for n in order)
    first, second, *_ = reduced
    step = Collapse(outer=f"{statement.name}.{first}", inner=f"{statement.name}.{second}")
    run_both(program, (Reorder(statement=statement.name, loops=loops), step), {})


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ((Collapse(outer="C0.i", inner="C0.k"),), "not directly inside"),
        ((Collapse(outer="C0.j", inner="C0.k"),), "one of the loops is reduced"),
        ((Tile(loop="C0.j", size=2), Collapse(outer="C0.i", inner="C0.j")), "was tiled"),
        ((Warps(count=3, stages=2),), "1, 2, 4, 8, 16 or 32 warps"),
        ((Warps(count=4, stages=0),), "1 to 16"),
    ],
)
def test_what_cannot_be_one(schedule: Schedule, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_schedule(programs.matmul(4, 4, 4), schedule)


def test_an_unknown_extent_inside() -> None:
    with pytest.raises(UserError, match="not a known number of times"):
        apply_schedule(programs.matmul(4, "N", 4), (Collapse(outer="C0.i", inner="C0.j"),))  # type: ignore[arg-type]


def test_steps_survive_json() -> None:
    steps = (*ROWS, Warps(count=8, stages=2))
    assert schedule_from_json(schedule_to_json(steps)) == steps
