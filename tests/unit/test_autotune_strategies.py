"""Strategies on a made-up machine: what they propose, and that they find what is fast."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest

from nestor.autotune.space import Candidate, Space
from nestor.autotune.strategies import (
    STRATEGIES,
    Bayesian,
    Evolution,
    Exhaustive,
    RandomSearch,
    Strategy,
    strategy_named,
)
from nestor.autotune.surrogate import Encoder, believe
from nestor.errors import UserError
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.target.cpu import parse_target
from tests.helpers import ir_programs as programs


def space(rows: int = 128, columns: int = 512, terms: int = 700) -> Space:
    (part,) = partition_program(programs.matmul(rows, columns, terms), l2_bytes=1 << 20).parts
    assert isinstance(part, FusedKernel)
    return Space(canonicalize_kernel(part)[0], parse_target("avx512"))


def speed(candidate: Candidate) -> float:
    """A smooth ridge of fast tiles, an order that matters, unrolling that helps small tiles."""
    point = dict(candidate.point)
    rows, vectors = point["S0.tile"]  # type: ignore[misc]
    work = rows * vectors  # type: ignore[operator]
    value = -abs(math.log2(work / 24)) - 0.3 * abs(math.log2(rows / vectors / 3))  # type: ignore
    value += 0.2 * (str(point.get("S0.order", "")).startswith("columns"))
    value += 0.1 * math.log2(int(point.get("S0.unrolled", 1))) * (work < 12)  # type: ignore[arg-type]
    value -= 0.1 * abs(math.log2(1 + int(point.get("S0.near", 0))) - 2)  # type: ignore[arg-type]
    return 2.0**value


def run(strategy: Strategy, trials: int, batch: int = 8) -> list[Candidate]:
    told: list[Candidate] = []
    while len(told) < trials:
        proposed = strategy.propose(min(batch, trials - len(told)))
        if not proposed:
            break
        for candidate in proposed:
            strategy.tell(candidate, speed(candidate))
        told += proposed
    return told


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_nothing_is_proposed_twice_and_a_seed_decides(name: str) -> None:
    runs = [run(STRATEGIES[name](space(), seed=7), 40) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len({c.schedule for c in runs[0]}) == len(runs[0]) == 40
    if name != "exhaustive":
        assert run(STRATEGIES[name](space(), seed=8), 40) != runs[0]


def test_an_exhaustive_search_ends() -> None:
    small = space(4, 16, 8)
    strategy = Exhaustive(small)
    told = run(strategy, 10_000)
    assert {c.schedule for c in told} == {c.schedule for c in small.every(10_000)}
    best = strategy.best()
    assert best is not None
    assert best[1] == max(map(speed, told))
    assert strategy.propose(4) == []


@pytest.mark.parametrize("kind", [Evolution, Bayesian, RandomSearch])
def test_small_spaces_run_out(kind: type[Strategy]) -> None:
    small = space(4, 16, 8)
    told = run(kind(small), 10_000)
    assert len(told) <= small.size(10_000)


def _reached(kind: type[Strategy], trials: int, **more: object) -> float:
    """What a strategy reaches, the middle one of several seeds."""
    found = []
    for seed in range(5):
        strategy = kind(space(), seed=seed, **more)  # type: ignore[arg-type]
        run(strategy, trials)
        best = strategy.best()
        assert best is not None
        found.append(best[1])
    return statistics.median(found)


def test_feedback_beats_chance() -> None:
    chance = _reached(RandomSearch, 48)
    assert _reached(Evolution, 48) >= chance
    assert _reached(Bayesian, 48) > chance


def test_a_cost_model_shows_the_way() -> None:
    def rank(candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([speed(c) for c in candidates])

    for kind in (Evolution, Bayesian):
        assert _reached(kind, 8, ranker=rank) > _reached(kind, 8)


def test_failures_are_not_proposed_again() -> None:
    strategy = Bayesian(space(), seed=1)
    for _ in range(5):
        for candidate in strategy.propose(6):
            strategy.tell(candidate, None)
    assert strategy.best() is None
    assert strategy.propose(3)


def test_records_of_others_are_heeded() -> None:
    strategy = Evolution(space(), seed=1)
    known = strategy.space.sample(strategy.rng)
    strategy.tell(known, 3.0)
    assert strategy.best() == (known, 3.0)
    assert all(known.schedule != c.schedule for c in strategy.propose(30))


def test_beliefs() -> None:
    points = [(("S0.a", n), ("S0.order", "x y")) for n in (1, 4, 16, 64)]
    scores = np.array([0.0, 1.0, 2.0, 3.0])
    asked = [(("S0.a", 8), ("S0.order", "x y")), (("S0.a", 4096), ("S0.order", "y x"))]
    belief = believe(points, scores, asked)
    assert 0.9 < belief.mean[0] < 2.1
    assert belief.deviation[0] < belief.deviation[1]
    assert (belief.improvement(3.0) >= 0).all()
    same = believe(points, scores, points)
    assert np.abs(same.mean - scores).max() < 0.3


def test_what_was_tried_in_thought_makes_its_like_known_better() -> None:
    points = [(("a", n),) for n in (1, 1 << 4, 1 << 12)]
    scores = np.array([0.0, 1.0, 0.5])
    asked = [(("a", n),) for n in (1 << 8, 1 << 7, 1 << 20)]
    belief = believe(points, scores, asked)
    after = belief.settled(0)
    assert (after.mean == belief.mean).all()
    assert (after.deviation <= belief.deviation + 1e-12).all()
    # The same as a fit with that trial, lengths and noises alike.
    assert after.deviation[0] ** 2 == pytest.approx(
        belief.deviation[0] ** 2 * belief.noise / (belief.deviation[0] ** 2 + belief.noise)
    )
    near, far = (after.deviation / belief.deviation)[1:]
    assert near < far


def test_a_prior_is_what_is_believed_far_away() -> None:
    points = [(("a", n),) for n in (1, 2)]
    far = [(("a", 1 << 20),)]
    scores = np.array([1.0, 1.0])
    told = believe(points, scores, far, (np.array([1.0, 1.0]), np.array([5.0])))
    assert told.mean[0] > 4.5


def test_names_and_absent_knobs_are_encoded() -> None:
    rows = Encoder().encode([(("o", "x"), ("n", 3)), (("o", "y"),), (("t", (1, 7)),)])
    assert rows.shape == (3, 5)
    assert np.isnan(rows[1]).sum() == 3
    assert rows[0, 0] == 1
    assert rows[1, 0] == 0


def test_unknown_strategies_are_refused() -> None:
    assert strategy_named("bayesian") is Bayesian
    with pytest.raises(UserError, match="there are: bayesian, evolution"):
        strategy_named("luck")
