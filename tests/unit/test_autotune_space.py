"""The space of a kernel's schedules: what the rules leave open, and points of it."""

from __future__ import annotations

import random

import pytest

from nestor.autotune.space import Space
from nestor.ir.program import Extern, Program
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import partition_program
from nestor.passes.knobs import Choices, Knob
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.passes.register_tile import VectorUnit
from nestor.target.cpu import parse_target
from tests.helpers import ir_programs as programs

TARGET = parse_target("avx2")
UNIT = VectorUnit(TARGET.vector_bits, TARGET.vector_registers)
PROGRAMS: dict[str, Program] = {
    "matmul": programs.matmul(40, 96, 70),
    "matmul symbolic": programs.matmul("N", 70, 6),
    "conv2d": programs.conv2d(),
    "softmax": programs.softmax(5, 300),
    "layer_norm": programs.layer_norm(5, 100),
    "attention": programs.attention(20, 33, 16),
    "cumsum": programs.cumsum(20, 8),
    "scatter_add": programs.scatter_add(),
}


def spaces(name: str) -> list[Space]:
    parts = partition_program(PROGRAMS[name], l2_bytes=1 << 20).parts
    return [Space(canonicalize_kernel(p)[0], TARGET) for p in parts if not isinstance(p, Extern)]


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_no_decision_is_the_default(name: str) -> None:
    for space in spaces(name):
        default = space.default()
        assert default.schedule == default_schedule(space.fused, UNIT)
        assert dict(default.point) == {k.name: k.default for k in space.knobs()}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_point_stands_for_its_schedule(name: str) -> None:
    rng = random.Random(1)
    for space in spaces(name):
        for _ in range(20):
            drawn = space.sample(rng)
            assert space.at(drawn.point) == drawn
            assert tuple(k.name for k in space.knobs(drawn.point)) == tuple(
                n for n, _ in drawn.point
            )


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_what_is_drawn_is_legal(name: str) -> None:
    rng = random.Random(2)
    for space in spaces(name):
        kernel = space.fused.kernel
        for _ in range(6):
            drawn = space.sample(rng)
            for candidate in (drawn, space.mutate(drawn.point, rng)):
                check_nest(kernel, apply_schedule(kernel, candidate.schedule))


def test_a_mutation_changes_one_decision_or_what_follows_from_it() -> None:
    (space,) = spaces("matmul")
    rng = random.Random(3)
    for _ in range(50):
        before = dict(space.sample(rng).point)
        after = dict(space.mutate(tuple(before.items()), rng).point)
        shared = [n for n in before if n in after]
        changed = [n for n in shared if before[n] != after[n]]
        assert changed
        # Blocks that were chosen may have no room left, or no loops around: these change as well.
        assert len(changed) <= 2 or {"S0.tile", "S0.wide", "S0.near"} & set(changed)


def test_a_crossing_decides_as_its_parents() -> None:
    (space,) = spaces("matmul")
    rng = random.Random(4)
    for _ in range(20):
        a, b = space.sample(rng).point, space.sample(rng).point
        child = space.cross(a, b, rng)
        given = {**{n: {v} for n, v in a}}
        for n, v in b:
            given.setdefault(n, set()).add(v)
        knobs = {k.name: k for k in space.knobs(child.point)}
        for n, v in child.point:
            if n in given and given[n] <= set(knobs[n].values):
                assert v in given[n]


def test_every_candidate_once() -> None:
    (space,) = spaces("layer_norm")
    every = list(space.every(10_000))
    assert every[0] == space.default()
    assert len({c.point for c in every}) == len(every) == space.size(10_000)
    rng = random.Random(5)
    assert {space.sample(rng).point for _ in range(200)} <= {c.point for c in every}
    assert space.size(3) == 3


def test_values_that_a_knob_does_not_have_give_way() -> None:
    (space,) = spaces("matmul")
    default = space.default()
    odd = {n: 10**6 if isinstance(v, int) else v for n, v in default.point} | {"nobody": 3}
    assert space.at(odd) == default


def test_choices() -> None:
    choices = Choices({"a": 4, "c": "x y"})
    assert choices.size("a", [1, 2, 4], 2, "") == 4
    assert choices.size("b", [8, 1], 2, "") == 2
    assert choices.asked["b"].values == (1, 2, 8)
    assert choices.word("c", ["y x", "x y"], "y x", "") == "x y"
    assert choices.sizes("d", [(1, 2)], (1, 2), "") == (1, 2)
    assert list(choices.asked) == ["a", "b", "c"]
    assert choices.point() == (("a", 4), ("b", 2), ("c", "x y"))


def test_neighbours() -> None:
    sizes = Knob(name="a", values=(1, 2, 8), default=1, meaning="")
    assert sizes.neighbours(2) == (1, 8)
    assert sizes.neighbours(8) == (2,)
    tiles = Knob(
        name="t", values=((1, 1), (1, 2), (2, 1), (4, 1), (4, 2)), default=(1, 1), meaning=""
    )
    assert set(tiles.neighbours((2, 1))) == {(1, 1), (4, 1)}
    assert set(tiles.neighbours((4, 2))) == {(1, 2), (4, 1)}
    with pytest.raises(ValueError, match="none of its values"):
        Knob(name="a", values=(1, 2), default=3, meaning="")
