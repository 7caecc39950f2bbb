"""Paired samples of a candidate and a reference: how many to take, and what they say.

Nothing here measures: whoever calls gives a function that does, so that every rule can be tested
with a clock that is made up.

A machine's speed drifts by 2× within minutes, but two samples taken one right after the other see
the same machine. So the figure of a candidate is the median of the ratios of its pairs, and what is
known of that median is an interval between two order statistics, for which the ratios need to have
no distribution in particular.

Source: order-statistic intervals of a quantile, David and Nagaraja, "Order Statistics" (2003),
section 7.1; sequential halving, Karnin, Koren and Somekh, "Almost Optimal Exploration in
Multi-Armed Bandits" (ICML 2013).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Pair = tuple[float, float]
"""(candidate, reference): time of one call of each [ns]."""

TakePairs = Callable[[int], Sequence[Pair]]
"""Takes so many further pairs."""

Clock = Callable[[], float]
"""Seconds from some moment on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The median of paired ratios, and what it lies within at 95 % confidence.

    A ratio is the candidate's time over the reference's: below 1 is faster. With fewer than six
    pairs no interval has that confidence, and it is everything from 0 to infinity.
    """

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Half the interval's length over the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPolicy:
    """When enough pairs are taken of one candidate.

    Attributes:
        least: pairs that are taken in any case.
        most: pairs at most.
        seconds: no pair starts after so long, if there are ``least`` [s].
        precision: an interval of this relative half-width is narrow enough.
        margin: a candidate whose interval lies further than this part above the best is surely
            worse. Without a margin many that are as good as the best would be given up too early,
            for a rule that is asked again and again meets bad luck at some time.
        hopeless: a candidate whose every ratio so far (of at least three) is above this many times
            the best is not looked at further: it would take a machine that changed between the
            halves of each pair, always in the same direction.
        dead: the same for a single ratio.
        batch: pairs taken before the rules are asked again.
    """

    least: int = 6
    most: int = 30
    seconds: float = 0.5
    precision: float = 0.01
    margin: float = 0.02
    hopeless: float = 1.25
    dead: float = 4.0
    batch: int = 3


def median_interval(ratios: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median of ``ratios`` (at least one), with its interval at ``confidence``.

    The k-th smallest and the k-th largest of n values enclose the median unless fewer than k of
    them fall on one side of it: with probability 1 - 2·P(Binomial(n, ½) < k).
    """
    ordered = sorted(ratios)
    n = len(ordered)
    tail, k = 0.0, 0
    while k < n // 2:
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 1 - confidence:
            break
        k += 1
    median = statistics.median(ordered)
    if k == 0:
        return Interval(median=median, low=0.0, high=math.inf)
    return Interval(median=median, low=ordered[k - 1], high=ordered[n - k])


@dataclass(slots=True)
class PairSeries:
    """The pairs of one candidate so far."""

    pairs: list[Pair] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Candidate over reference, pair by pair."""
        return [c / r for c, r in self.pairs]

    @property
    def interval(self) -> Interval:
        """See ``median_interval``; there must be a pair."""
        return median_interval(self.ratios)


def is_decided(series: PairSeries, best: float, policy: PairPolicy) -> bool:
    """Whether more pairs would not change what is made of the candidate.

    Args: best: the ratio to beat. True if the candidate is hopeless, if its interval lies above
        ``best``, or if it is narrow.
    """
    ratios = series.ratios
    least = min(ratios, default=0.0)
    if least > policy.dead * best or (len(ratios) >= 3 and least > policy.hopeless * best):
        return True
    if len(ratios) < policy.least:
        return False
    interval = median_interval(ratios)
    return interval.low > best * (1 + policy.margin) or interval.width <= policy.precision


def collect_pairs(
    take: TakePairs, policy: PairPolicy, *, best: float = 1.0, clock: Clock = time.monotonic
) -> PairSeries:
    """Take pairs until the candidate is decided against ``best``, or the budget is used."""
    series = PairSeries()
    end = clock() + policy.seconds
    while len(series.pairs) < policy.most:
        # The first one alone may show that a candidate is dead.
        wanted = min(policy.batch, policy.most - len(series.pairs)) if series.pairs else 1
        series.pairs.extend(take(wanted))
        if is_decided(series, best, policy):
            break
        if clock() >= end and len(series.pairs) >= policy.least:
            break
    return series


@dataclass(frozen=True, slots=True, kw_only=True)
class RacePolicy:
    """How close candidates are told apart.

    Attributes:
        first: pairs of each candidate in the first round; each later round doubles them.
        rounds: rounds at most.
        seconds: no round starts after so long [s].
        chunk: pairs of one candidate before the next one's turn, so that all see the same drift.
    """

    first: int = 6
    rounds: int = 6
    seconds: float = 10.0
    chunk: int = 3


@dataclass(slots=True, kw_only=True)
class RaceResult:
    """Positions of the candidates from best to worst, and the pairs of each by position."""

    order: list[int]
    series: list[PairSeries]


TakeTurn = Callable[[int, int], Sequence[Pair]]
"""Takes pairs of the candidate at a position; none if it failed, which puts it out."""


def run_race(
    count: int,
    take: TakeTurn,
    policy: RacePolicy,
    *,
    within: float = 0.02,
    clock: Clock = time.monotonic,
) -> RaceResult:
    """Sequential halving: each round gives the survivors twice the pairs and keeps half of them.

    Who is surely more than ``within`` behind the round's best leaves at once. A race ends early
    when all who are left surely lie ``within`` of the best: then any of them would do.

    Args: count: how many candidates.
    Returns: survivors first; who left in the same round stands by median; failed ones are left out.
    """
    series = [PairSeries() for _ in range(count)]
    alive = list(range(count))
    left: list[int] = []
    end = clock() + policy.seconds
    pairs = policy.first
    for _ in range(policy.rounds):
        if len(alive) <= 1 or clock() >= end:
            break
        alive = _take_round(alive, series, take, pairs, policy.chunk)
        pairs *= 2
        ranked = sorted(alive, key=lambda p: series[p].interval.median)
        kept = _keep(ranked, series, within)
        left = ranked[len(kept) :] + left
        alive = kept
        if _are_equal(alive, series, within):
            break
    if len(alive) == 1 and not series[alive[0]].pairs:
        alive = _take_round(alive, series, take, policy.first, policy.chunk)
    return RaceResult(order=alive + left, series=series)


def _take_round(
    alive: Sequence[int], series: Sequence[PairSeries], take: TakeTurn, pairs: int, chunk: int
) -> list[int]:
    """So many pairs of each, in turns of ``chunk``; the positions that did not fail."""
    running = list(alive)
    for done in range(0, pairs, chunk):
        for position in list(running):
            found = take(position, min(chunk, pairs - done))
            series[position].pairs.extend(found)
            if not found:
                running.remove(position)
    return running


def _keep(ranked: Sequence[int], series: Sequence[PairSeries], within: float) -> list[int]:
    """The better half, without those that are surely behind; at least the best."""
    if not ranked:
        return []
    limit = series[ranked[0]].interval.median * (1 + within)
    half = ranked[: (len(ranked) + 1) // 2]
    return [p for p in half if p == ranked[0] or series[p].interval.low <= limit]


def _are_equal(alive: Sequence[int], series: Sequence[PairSeries], within: float) -> bool:
    """Whether every survivor's interval lies ``within`` of the best's median."""
    if len(alive) <= 1:
        return True
    limit = series[alive[0]].interval.median * (1 + within)
    return all(series[p].interval.high <= limit for p in alive)
