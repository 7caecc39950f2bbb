"""The untuned schedule: what it makes of textbook nests, that it is legal, and its space."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nestor.autotune.space import RuleSpace
from nestor.errors import IllegalSchedule, LegalityUnknown, Unsupported, UserError
from nestor.ir.interpreter import run_program
from nestor.ir.nest_interpreter import run_nest
from nestor.ir.program import Program
from nestor.ir.schedule import Arrange, Parallel, Schedule, schedule_from_json, schedule_to_json
from nestor.ir.schedule_tree import tree_bands
from nestor.ir.verifier import verify_nest, verify_program
from nestor.passes.affine_pipeline import prepare_affine
from nestor.passes.affine_schedule import (
    affine_space,
    choose_schedule,
    explain_schedule,
    fallback_points,
)
from nestor.passes.affine_space import ORDER, Space, choice_at, schedule_of
from nestor.passes.knobs import Choices
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.passes.polyhedral.proposals import propose_here
from nestor.passes.self_copies import drop_self_copies
from nestor.passes.separate_sums import separate_sums
from nestor.target.cpu import CpuTarget
from tests.helpers.affine_programs import KERNELS, affine_program

TARGET = CpuTarget(
    cpu="x86-64-v4",
    features=(),
    vector_bits=512,
    vector_registers=32,
    fma_bits_per_cycle=1024,
    cores=2,
)


def prepared(name: str) -> Program:
    return prepare_affine(KERNELS[name](), reassociate=True)


def space_of(name: str, size: int = 2000) -> Space:
    program = prepared(name)
    sizes = {s.name: size for s in program.symbols}
    return affine_space(program, TARGET, reassociate=True, sizes=sizes, limit_seconds=20.0)


def shapes(space: Space) -> set[str]:
    point = space.default()
    plan = space.plans[space.decide_order(Choices(point))]
    return {choice_at(space, point, k).shape for k in range(len(plan.nests))}


def arrays(program: Program, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    symbols = {s.name: size for s in program.symbols}
    found = {}
    for t in program.tensors:
        shape = tuple(int(e.evaluate(symbols)) for e in t.shape)
        value = rng.uniform(0.5, 1.0, shape)
        if len(shape) == 2 and shape[0] == shape[1]:
            value += size * np.eye(size)  # factorizations stay tame
        found[t.name] = value
    return found


def assert_equal(program: Program, prepared: Program, schedule: Schedule, size: int) -> None:
    symbols = {s.name: size for s in program.symbols}
    given = arrays(program, size)
    wanted = run_program(program, given, symbols)
    nest = apply_schedule(prepared, schedule)
    verify_nest(nest)
    check_nest(prepared, nest)
    got = {name: value.copy() for name, value in given.items()}
    for t in nest.tensors:
        if t.name not in got:
            got[t.name] = np.zeros([int(e.evaluate(symbols)) for e in t.shape])
    run_nest(nest, got, symbols)
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("gemm", "contract"),
        ("syrk", "dot"),
        ("lu", "contract"),
        ("mvt", "panel"),
        ("mvt", "dot"),
        ("atax", "panel"),
        ("jacobi_2d", "wavefront"),
        ("seidel_2d", "wavefront"),
    ],
)
def test_shapes_follow_from_structure(name: str, expected: str) -> None:
    assert expected in shapes(space_of(name))


def test_small_stencils_stay_serial() -> None:
    program = prepared("jacobi_1d")
    schedule = choose_schedule(program, TARGET, sizes={"T": 500, "N": 2000})
    assert not any(isinstance(step, Parallel) for step in schedule)


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"heat_3d", "floyd_warshall"}))
def test_defaults_are_legal_and_right(name: str) -> None:
    space = space_of(name)
    schedule = schedule_of(space, space.default())
    assert schedule_from_json(schedule_to_json(schedule)) == schedule
    assert_equal(KERNELS[name](), space.program, schedule, 11)


def test_order_of_sums_is_kept_unless_allowed() -> None:
    program = prepare_affine(KERNELS["mvt"](), reassociate=False)
    space = affine_space(program, TARGET, sizes={"N": 2000}, limit_seconds=20.0)
    choices = [c for plan in space.plans.values() for own in plan.choices for c in own]
    assert not any(c.is_split for c in choices)


@pytest.mark.parametrize("name", ["gemm", "atax", "jacobi_2d"])
def test_every_point_is_refused_or_right(name: str) -> None:
    rules = space_of(name)
    space, rng = RuleSpace(rules.program, rules.schedule), random.Random(7)
    accepted = 0
    for _ in range(6):
        try:
            assert_equal(KERNELS[name](), rules.program, space.sample(rng).schedule, 9)
            accepted += 1
        except (IllegalSchedule, LegalityUnknown, UserError, Unsupported):
            continue
    assert accepted >= 2


def test_points_are_forgiving() -> None:
    space = space_of("gemm")
    point = space.default()
    assert point[ORDER] == space.order
    assert all(k.default == point[k.name] for k in space.knobs({}))
    default = schedule_of(space, {})
    assert schedule_of(space, {**point, "nonsense": 1, ORDER: "sideways"}) == default
    other = next(o for o in space.plans if o != space.order)
    moved = {k.name for k in space.knobs({ORDER: other})}
    assert ORDER in moved and not moved & set(point) - {ORDER}


def test_fallbacks_become_simpler() -> None:
    space = space_of("gemm")
    points = fallback_points(space)
    assert points[0] == space.default() and len(points) == 4
    last = schedule_of(space, points[-1])
    assert_equal(KERNELS["gemm"](), space.program, last, 5)


def test_reasons_name_dependences() -> None:
    program = prepared("seidel_2d")
    facts = propose_here(program)
    space = affine_space(program, TARGET, propose=lambda p, s: facts)
    reasons = explain_schedule(space, facts=facts)
    assert reasons[0].choice.startswith("order: ")
    assert any(r.dependence is not None and r.dependence.tensor == "A" for r in reasons)


def test_nothing_known_still_gives_a_schedule() -> None:
    program = KERNELS["gemm"]()
    schedule = choose_schedule(program, TARGET, limit_seconds=0.0)
    assert_equal(program, program, schedule, 5)


def test_sums_get_loops_of_their_own() -> None:
    program = affine_program(
        "two", "N", {"A": "N, N", "B": "N, N", "x": "N", "y": "N", "z": "N"},
        """for i in 0..N { for j in 0..N { y[i] = y[i] + A[i, j] * x[j];
             z[i] = z[i] + B[i, j] * x[j]; } y[i] = y[i] + z[i]; }""", inputs="A B x",
    )  # fmt: skip
    found = separate_sums(program)
    verify_program(found)
    assert [s.order for s in found.statements] == [
        (0, "i", 1, "j", 0), (0, "i", 0, "j", 1), (0, "i", 2),
    ]  # fmt: skip
    given = arrays(program, 6)
    wanted, got = (run_program(p, given, {"N": 6}) for p in (program, found))
    assert all(np.array_equal(wanted[n], got[n]) for n in wanted)


def test_sums_that_others_see_stay() -> None:
    program = affine_program(
        "seen", "N", {"A": "N, N", "y": "N", "z": "N, N"},
        "for i in 0..N { for j in 0..N { y[i] = y[i] + A[i, j]; z[i, j] = y[i]; } }", inputs="A",
    )  # fmt: skip
    assert separate_sums(program) is program


def test_self_copies_vanish() -> None:
    program = affine_program(
        "kept", "N", {"x": "N"}, "for i in 0..N { x[i] = x[i]; x[i] = x[i] + 1.0; }"
    )
    assert [s.name for s in drop_self_copies(program).statements] == ["S1"]


def test_rows_that_run_apart_are_not_skewed() -> None:
    space = space_of("jacobi_2d")
    arrange = schedule_of(space, space.default())[0]
    assert isinstance(arrange, Arrange)
    skewed, *rows = tree_bands(arrange.tree)
    assert len(rows) == len(space.program.statements)
    assert all(len(row.variables()) > 1 for _, row in skewed.loops[-1].rows)
    assert all(len(row.variables()) == 1 for band in rows for _, row in band.loops[0].rows)
