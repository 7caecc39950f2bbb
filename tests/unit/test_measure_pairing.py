"""How many pairs are taken, what they say, who wins a race: all with clocks that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from nestor.autotune.pairing import (
    Pair,
    PairPolicy,
    PairSeries,
    RacePolicy,
    collect_pairs,
    is_decided,
    median_interval,
    run_race,
)


class Machine:
    """A machine whose speed drifts, and a clock that shows the time that samples took on it."""

    def __init__(self, seed: int = 0, noise: float = 0.01, drift: float = 0.3) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise, self.drift = noise, drift
        self.now = 0.0
        self.taken: list[tuple[float, int]] = []

    def clock(self) -> float:
        return self.now

    def pair(self, ratio: float) -> Pair:
        """The speed is about the same for both halves of a pair."""
        speed = 1 + self.drift * math.sin(self.now)
        noise = self.rng.normal(1, self.noise, 2)
        own, other = 1e6 * ratio * speed * noise[0], 1e6 * speed * noise[1]
        self.now += 0.01
        return float(own), float(other)

    def taker(self, ratio: float) -> Callable[[int], Sequence[Pair]]:
        def take(count: int) -> Sequence[Pair]:
            self.taken.append((ratio, count))
            return [self.pair(ratio) for _ in range(count)]

        return take


@pytest.mark.parametrize(
    ("n", "k"), [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (20, 6), (25, 8), (30, 10)]
)
def test_interval_takes_the_order_statistics_of_the_tables(n: int, k: int) -> None:
    """k of David and Nagaraja's (and every sign test's) table for 95 %, two sides."""
    found = median_interval([float(i) for i in range(1, n + 1)])
    assert (found.low, found.high) == (k, n + 1 - k)
    assert found.median == (n + 1) / 2


def test_five_values_have_no_interval() -> None:
    found = median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.median, found.high) == (0.0, 3.0, math.inf)


def test_intervals_hold_the_median_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    draws = rng.lognormal(0.0, 0.5, (2000, 15))  # the median is 1
    held = sum(i.low <= 1 <= i.high for i in map(median_interval, draws.tolist()))
    assert held / 2000 > 0.94


def test_drift_cancels_in_pairs() -> None:
    machine = Machine(noise=0.002, drift=0.5)
    series = collect_pairs(machine.taker(0.9), PairPolicy(), clock=machine.clock)
    owns = [c for c, _ in series.pairs]
    assert abs(series.interval.median - 0.9) < 0.01
    assert max(owns) / min(owns) > 1.02  # while the times themselves moved


def test_a_dead_candidate_takes_one_pair_and_a_hopeless_one_few() -> None:
    machine = Machine()
    assert len(collect_pairs(machine.taker(50.0), PairPolicy(), clock=machine.clock).pairs) == 1
    hopeless = collect_pairs(machine.taker(1.6), PairPolicy(), clock=machine.clock)
    assert 3 <= len(hopeless.pairs) <= 4


def test_what_is_hopeless_depends_on_the_best() -> None:
    policy = PairPolicy()
    series = PairSeries(pairs=[(1.0, 1.0)] * 3)
    assert not is_decided(series, 1.0, policy)
    assert is_decided(series, 0.5, policy)


def test_near_candidates_take_pairs_until_the_interval_is_narrow() -> None:
    quiet = Machine(noise=0.001)
    loud = Machine(noise=0.05)
    policy = PairPolicy(seconds=100.0, most=60)
    few = collect_pairs(quiet.taker(0.98), policy, clock=quiet.clock)
    many = collect_pairs(loud.taker(0.98), policy, clock=loud.clock)
    assert len(few.pairs) <= 9
    assert few.interval.width <= policy.precision
    assert len(many.pairs) > 2 * len(few.pairs)


def test_the_budget_ends_it_but_not_before_the_least() -> None:
    machine = Machine(noise=0.2)
    policy = PairPolicy(seconds=0.0, most=100)
    assert len(collect_pairs(machine.taker(1.0), policy, clock=machine.clock).pairs) == 7
    machine = Machine(noise=0.2)
    policy = PairPolicy(seconds=0.2, most=1000, precision=0.0)
    taken = len(collect_pairs(machine.taker(1.0), policy, clock=machine.clock).pairs)
    assert 20 <= taken <= 24


def test_the_most_is_never_exceeded() -> None:
    machine = Machine(noise=0.3)
    policy = PairPolicy(seconds=1e9, most=20, batch=7, precision=0.0)
    assert len(collect_pairs(machine.taker(1.0), policy, clock=machine.clock).pairs) == 20


RATIOS = [1.0, 0.9, 0.91, 1.3, 0.97, 2.0, 0.905, 1.05]


def race(
    machine: Machine, ratios: Sequence[float], **options: float
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    log: list[tuple[int, int]] = []

    def take(position: int, count: int) -> Sequence[Pair]:
        log.append((position, count))
        return [machine.pair(ratios[position]) for _ in range(count)]

    policy = RacePolicy(**{k: v for k, v in options.items() if k != "within"})  # type: ignore[arg-type]
    within = options.get("within", 0.0)
    found = run_race(len(ratios), take, policy, within=within, clock=machine.clock)
    return found.order, [len(s.pairs) for s in found.series], log


def test_a_race_finds_the_order_and_gives_survivors_more_pairs() -> None:
    order, pairs, _ = race(Machine(noise=0.002), RATIOS)
    assert order[:1] == [1]
    assert set(order[:3]) == {1, 2, 6}
    assert order[-1] == 5
    assert sorted(order) == list(range(len(RATIOS)))
    assert pairs[1] == max(pairs)
    assert pairs[5] == min(pairs) == 6
    assert all(pairs[a] >= pairs[b] for a, b in pairwise(order))


def test_a_round_halves_and_doubles() -> None:
    _, pairs, _ = race(Machine(noise=0.05), [1.0] * 8)
    assert sorted(pairs) == [6] * 4 + [6 + 12] * 2 + [6 + 12 + 24] * 2


def test_candidates_take_turns_in_a_round() -> None:
    _, _, log = race(Machine(noise=0.002), [1.0, 1.0, 1.0], chunk=2)
    assert log[:9] == [(0, 2), (1, 2), (2, 2)] * 3


def test_equals_end_a_race_early() -> None:
    _, pairs, _ = race(Machine(noise=0.001), [1.0, 1.001, 1.0, 1.001], within=0.05)
    assert max(pairs) == 6


def test_who_is_surely_behind_leaves_at_once() -> None:
    _, pairs, _ = race(Machine(noise=0.001), [1.0, 1.001, 3.0, 3.1, 3.2, 3.3], within=0.02)
    assert pairs[2:] == [6, 6, 6, 6]


def test_failures_leave_the_race() -> None:
    machine = Machine(noise=0.002)

    def take(position: int, count: int) -> Sequence[Pair]:
        return [] if position == 1 else [machine.pair(1 + 0.1 * position)] * count

    found = run_race(3, take, RacePolicy(), clock=machine.clock)
    assert found.order == [0, 2]
    assert found.series[1].pairs == []


def test_one_alone_has_pairs_too_and_none_is_fine() -> None:
    order, pairs, _ = race(Machine(), [1.0])
    assert (order, pairs) == ([0], [6])
    assert race(Machine(), [])[0] == []


def test_the_race_ends_with_its_budget() -> None:
    _, pairs, _ = race(Machine(noise=0.2), [1.0] * 8, seconds=0.1)
    assert sum(pairs) == 8 * 6
