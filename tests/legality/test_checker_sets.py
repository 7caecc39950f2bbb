"""The layer over isl: affines and domains mean in isl what they mean in the IR."""

from __future__ import annotations

from random import Random

import islpy as isl
import pytest

from nestor.errors import IRError
from nestor.ir.affine import Affine, affine, affine_sum, floor_div, modulo, variable
from nestor.ir.program import Symbol
from nestor.passes.polyhedral.isl_util import (
    IN,
    OUT,
    Points,
    conflict,
    context,
    coordinates,
    free_variable,
    ordered_pairs,
    pairs_by_level,
)

NAMES = ("C.m.o", "x#1", "N")


def random_affine(rng: Random, depth: int = 2) -> Affine:
    parts = [(variable(rng.choice(NAMES)), rng.randrange(-4, 5)) for _ in range(3)]
    if depth:
        inner = random_affine(rng, depth - 1)
        den = rng.randrange(2, 6)
        parts.append((rng.choice([floor_div, modulo])(inner, den), rng.randrange(-3, 4)))
    return affine_sum(parts, rng.randrange(-9, 10))


def box_points(*constraints: Affine) -> Points:
    bounds = []
    for name in NAMES[:2]:
        bounds += [affine(name), 5 - affine(name)]
    return Points(NAMES[:2], (Symbol(name="N", lower=1, upper=4),), (*bounds, *constraints))


def members(x: isl.Set) -> set[tuple[int, ...]]:
    found: set[tuple[int, ...]] = set()

    def add(point: isl.Point) -> None:
        params = point.get_space().dim(isl.dim_type.param)
        dims = point.get_space().dim(isl.dim_type.set)
        found.add(
            tuple(
                point.get_coordinate_val(kind, k).to_python()
                for kind, count in ((isl.dim_type.param, params), (isl.dim_type.set, dims))
                for k in range(count)
            )
        )

    x.foreach_point(add)
    return found


def everything() -> list[dict[str, int]]:
    return [
        {"N": size, NAMES[0]: a, NAMES[1]: b}
        for size in range(1, 5)
        for a in range(6)
        for b in range(6)
    ]


@pytest.mark.parametrize("seed", range(40))
def test_relations_agree_with_evaluation(seed):
    rng = Random(seed)
    value, condition = random_affine(rng), random_affine(rng)
    relation = box_points().relation((value,), (condition,))
    wanted = {
        (env["N"], env[NAMES[0]], env[NAMES[1]], value.evaluate(env))
        for env in everything()
        if condition.evaluate(env) >= 0
    }
    assert members(relation.wrap()) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_domains_agree_with_evaluation(seed):
    rng = Random(1000 + seed)
    always, left, right = (random_affine(rng) for _ in range(3))
    points = box_points(always)
    points.choices = (((left,), (right, -left - 1)),)
    wanted = {
        (env["N"], env[NAMES[0]], env[NAMES[1]])
        for env in everything()
        if always.evaluate(env) >= 0 and (left.evaluate(env) >= 0 or right.evaluate(env) >= 0)
    }
    assert members(points.domain()) == wanted


def test_free_variables_range_over_their_dimension():
    relation = box_points().relation((free_variable(0) + variable("N"),), (), (affine("N"),))
    for size, _, _, free, out in members(relation.wrap()):
        assert 0 <= free < size and out == free + size


def test_levels_split_all_pairs():
    points = Points(("i", "j"), (), (affine("i"), 2 - affine("i"), affine("j"), 2 - affine("j")))
    everyone = conflict(points.relation(()), points.relation(()))
    before = members_of_pairs(
        [p for level, p in pairs_by_level(everyone, 2, 0, ascending=True) if level < 2]
    )
    assert before == {
        (a, b, c, d)
        for a in range(3) for b in range(3) for c in range(3) for d in range(3)
        if (a, b) < (c, d)
    }  # fmt: skip
    after = members_of_pairs(list(ordered_pairs(everyone, 2, 1, ascending=False, at_equal=True)))
    assert after == {
        (a, b, c, d)
        for a in range(3) for b in range(3) for c in range(3) for d in range(3)
        if a == c and b >= d
    }  # fmt: skip


def members_of_pairs(maps: list[isl.Map]) -> set[tuple[int, ...]]:
    return set().union(*(members(m.wrap()) for m in maps))


def test_names_out_of_scope_and_empty_sets():
    points = box_points()
    with pytest.raises(IRError, match="'k' in"):
        points.relation((variable("k"),))
    with pytest.raises(IRError, match="'k' in"):
        box_points(variable("k")).domain()
    assert coordinates(points.domain((affine(-1),))) is None
    assert coordinates(points.domain((variable("N") - 4,)))[0] == [4]
    assert points.relation((affine(1),)).dim(IN) == 2 and points.relation(()).dim(OUT) == 0


def test_a_counter_example_has_the_least_symbols() -> None:
    """The least value of the first symbol, then that of the second one, and a point there."""
    x = isl.Set(
        "[p0, p1] -> { [i] : 1 <= p0 <= 1000 and 1 <= p1 and 0 <= i and p0 mod 7 = 3"
        " and 37 <= i + p1 and i < p0 }",
        context(),
    )
    found = coordinates(x)
    assert found is not None
    symbols, (i,) = found
    assert symbols == [3, 35]
    assert i == 2
    assert coordinates(isl.Set("[p0] -> { [i] : 5 <= p0 and p0 <= i < 5 }", context())) is None
