"""Tiles of one size whose last one tests its indices, and programs of a grid."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.errors import IllegalSchedule
from nestor.ir.interpreter import run_program
from nestor.ir.loopnest import Guard, Loop, Node, node_children
from nestor.ir.nest_interpreter import run_nest
from nestor.ir.nest_verifier import verify_nest
from nestor.ir.parser import parse_nest
from nestor.ir.printer import print_nest
from nestor.ir.program import Program
from nestor.ir.schedule import (
    Accumulate,
    Bind,
    PredicatedTile,
    Reorder,
    Schedule,
    Unroll,
    Vectorize,
    schedule_from_json,
    schedule_to_json,
)
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from tests.helpers import ir_programs as programs


def tiled(rows: int, columns: int, terms: int) -> Schedule:
    """A product's tile, as a GPU has it: two dimensions side by side, the third summed."""
    return (
        PredicatedTile(loop="C0.i", size=rows),
        PredicatedTile(loop="C0.j", size=columns),
        PredicatedTile(loop="C0.k", size=terms),
        Reorder(statement="C0", loops=("C0.i.o", "C0.j.o", "C0.k.o", "C0.i.i", "C0.j.i", "C0.k.i")),
        Bind(loop="C0.i.o"),
        Bind(loop="C0.j.o"),
        Vectorize(loop="C0.i.i"),
        Vectorize(loop="C0.j.i"),
        Unroll(loop="C0.k.i"),
        Accumulate(statement="C0", scope="register"),
    )


def nodes(node: Node) -> list[Node]:
    return [node, *(n for child in node_children(node) for n in nodes(child))]


def run_both(program: Program, schedule: Schedule, sizes: dict[str, int]) -> None:
    nest = apply_schedule(program, schedule)
    verify_nest(nest)
    check_nest(program, nest)
    rng = np.random.default_rng(0)
    arrays = {
        t.name: rng.standard_normal([int(e.evaluate(sizes)) for e in t.shape]).astype(np.float32)
        for t in program.tensors
    }
    given = {t.name: arrays[t.name] for t in program.tensors if t.role != "output"}
    wanted = run_program(program, given, sizes)
    run_nest(nest, arrays, sizes, order_seed=3)
    for name, array in wanted.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((5, 7, 6), (4, 4, 4)),
        ((8, 8, 8), (4, 4, 4)),
        ((3, 9, 5), (8, 2, 8)),
        ((1, 1, 1), (2, 2, 2)),
    ],
)
def test_tiles_of_one_size(shape: tuple[int, int, int], tile: tuple[int, int, int]) -> None:
    run_both(programs.matmul(*shape), tiled(*tile), {})


@pytest.mark.parametrize("m", [1, 4, 6])
def test_a_symbolic_range(m: int) -> None:
    run_both(programs.matmul("N", 7, 6), tiled(4, 4, 4), {"N": m})


def test_loops_are_as_asked_for_and_guarded_once() -> None:
    nest = apply_schedule(programs.matmul(5, 8, 6), tiled(4, 4, 4))
    loops = {n.index: n for n in nodes(nest.body) if isinstance(n, Loop)}
    assert loops["C0.i.o"].kind == loops["C0.j.o"].kind == "grid"
    assert {n: loops[n].upper[0].const for n in loops} == {
        "C0.i.o": 2, "C0.j.o": 2, "C0.k.o": 2, "C0.i.i": 4, "C0.j.i": 4, "C0.k.i": 4,
    }  # fmt: skip
    # 8 columns are two whole tiles: nothing is asked of them.
    tested = {str(c) for n in nodes(nest.body) if isinstance(n, Guard) for c in n.conditions}
    assert {t for t in tested if "C0.j" in t} == set()
    assert len(tested) == 2
    assert print_nest(parse_nest(print_nest(nest))) == print_nest(nest)


def test_steps_are_data() -> None:
    schedule = tiled(16, 32, 64)
    assert schedule_from_json(schedule_to_json(schedule)) == schedule


def test_programs_of_a_grid_do_not_share_a_sum() -> None:
    program = programs.matmul(4, 4, 8)
    schedule = (Reorder(statement="C0", loops=("C0.k", "C0.i", "C0.j")), Bind(loop="C0.k"))
    with pytest.raises(IllegalSchedule):
        check_nest(program, apply_schedule(program, schedule))
