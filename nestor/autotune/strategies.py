"""Strategies: which schedules of a kernel to try next.

All have one interface: ``propose`` gives candidates that were not tried yet, ``tell`` says how one
did. A *score* is the speed against a reference schedule measured beside it (above 1 is faster);
None stands for a candidate that failed. For one seed and the same scores a strategy proposes the
same candidates.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from nestor.autotune.space import Candidate, RuleSpace
from nestor.autotune.surrogate import Floats, believe
from nestor.errors import UserError
from nestor.ir.schedule import Schedule

Ranker = Callable[[Sequence[Candidate]], Floats]
"""A cost model's opinion: expected scores, up to a factor that all candidates share."""

_ATTEMPTS = 50
"""Draws in a row without anything new, after which a space is taken to be exhausted."""

_SMALL_SPACE = 48
"""Spaces of at most so many candidates are tried in order."""

_POOL = 128
"""Candidates from which the next are chosen."""

_ELITE = 16
"""Best candidates so far whose neighbours are looked at."""

_FAILED_SCORE = 0.25
"""What a failed candidate counts for where a model learns from it: it is not worth a second try."""


class Strategy(ABC):
    """What a strategy knows: the space, and how every candidate so far did.

    Args: space: of the kernel. seed: of all that is drawn. ranker: a cost model, if there is one.
    """

    def __init__(self, space: RuleSpace, seed: int = 0, ranker: Ranker | None = None):
        self.space = space
        self.rng = random.Random(seed)
        self.ranker = ranker
        self.scores: dict[Schedule, float | None] = {}
        self.tried: list[Candidate] = []
        self._proposed: set[Schedule] = set()
        self._suggested: list[Candidate] = []

    @property
    def name(self) -> str:
        """What it is called in records."""
        return next(name for name, kind in STRATEGIES.items() if kind is type(self))

    def suggest(self, candidates: Sequence[Candidate]) -> None:
        """Candidates that did well elsewhere: they are tried before any that are made up."""
        self._suggested += candidates

    def propose(self, count: int) -> list[Candidate]:
        """Up to ``count`` candidates that were not proposed before; fewer: no more were found."""
        waiting = list({c.schedule: c for c in self._suggested}.values())
        first = [c for c in waiting if c.schedule not in self._proposed][:count]
        self._suggested = [c for c in waiting if c not in first]
        self._proposed |= {c.schedule for c in first}
        more = self._invent(count - len(first)) if len(first) < count else []
        self._proposed |= {c.schedule for c in more}
        return [*first, *more]

    @abstractmethod
    def _invent(self, count: int) -> list[Candidate]:
        """Up to ``count`` new candidates."""

    def tell(self, candidate: Candidate, score: float | None) -> None:
        """What became of a candidate, proposed here or found in a record."""
        self._proposed.add(candidate.schedule)
        if candidate.schedule not in self.scores:
            self.tried.append(candidate)
        self.scores[candidate.schedule] = score

    def best(self) -> tuple[Candidate, float] | None:
        """The fastest candidate and its score."""
        ranked = self._ranked()
        return ranked[0] if ranked else None

    def _ranked(self) -> list[tuple[Candidate, float]]:
        known = [(c, s) for c in self.tried if (s := self.scores[c.schedule]) is not None]
        return sorted(known, key=lambda pair: -pair[1])

    def _fresh(self, source: Callable[[], Candidate], count: int) -> list[Candidate]:
        """Candidates from ``source`` that are new, each once."""
        found: dict[Schedule, Candidate] = {}
        vain = 0
        while len(found) < count and vain < _ATTEMPTS:
            candidate = source()
            vain += 1
            if candidate.schedule not in self._proposed and candidate.schedule not in found:
                found[candidate.schedule] = candidate
                vain = 0
        return list(found.values())

    def _mutated(self, parents: Sequence[Candidate]) -> Candidate:
        """A child of one or two of ``parents``."""
        first = self.rng.choice(parents)
        if len(parents) > 1 and self.rng.random() < 0.3:
            first = self.space.cross(first.point, self.rng.choice(parents).point, self.rng)
        child = self.space.mutate(first.point, self.rng)
        while self.rng.random() < 0.3:
            child = self.space.mutate(child.point, self.rng)
        return child

    def _pool(self, size: int) -> list[Candidate]:
        """New candidates: half of them near the best so far, half anywhere."""
        parents = [c for c, _ in self._ranked()[:_ELITE]] or [self.space.default()]
        near = self._fresh(lambda: self._mutated(parents), size // 2)
        anywhere = self._fresh(lambda: self.space.sample(self.rng), size - len(near))
        return list({c.schedule: c for c in (*near, *anywhere)}.values())


class RandomSearch(Strategy):
    """Candidates drawn evenly: what every other strategy has to beat."""

    def _invent(self, count: int) -> list[Candidate]:
        return self._fresh(lambda: self.space.sample(self.rng), count)


class Exhaustive(Strategy):
    """Every candidate, each once: for small spaces."""

    def __init__(self, space: RuleSpace, seed: int = 0, ranker: Ranker | None = None):
        super().__init__(space, seed, ranker)
        self._all = space.every(limit=1 << 30)

    def _invent(self, count: int) -> list[Candidate]:
        new = (c for c in self._all if c.schedule not in self._proposed)
        found: dict[Schedule, Candidate] = {}
        for candidate in new:
            found[candidate.schedule] = candidate
            if len(found) == count:
                break
        return list(found.values())


class Evolution(Strategy):
    """Children of the best so far; the cost model, if there is one, says which to try.

    A share of each batch is drawn evenly, and no two of a batch decide alike but for one decision
    if that can be helped: a population of copies learns nothing.
    """

    _DRAWN = 0.2

    def _invent(self, count: int) -> list[Candidate]:
        pool = self._pool(_POOL)
        if self.ranker is not None and pool:
            order = np.argsort(-self.ranker(pool), kind="stable")
            pool = [pool[k] for k in order]
        else:
            self.rng.shuffle(pool)
        drawn = self._fresh(lambda: self.space.sample(self.rng), round(self._DRAWN * count))
        chosen = _apart(pool, count - len(drawn))
        return list({c.schedule: c for c in (*chosen, *drawn)}.values())[:count]


class Bayesian(Strategy):
    """The candidates from which a Gaussian process over the trials so far expects the largest gain.

    The cost model is where it starts from; each trial moves its opinion nearby.
    """

    _FIRST = 8

    def __init__(self, space: RuleSpace, seed: int = 0, ranker: Ranker | None = None):
        super().__init__(space, seed, ranker)
        self._worth: dict[Schedule, float] = {}

    def _invent(self, count: int) -> list[Candidate]:
        pool = self._pool(_POOL)
        if not pool:
            return []
        known = [(c, self.scores[c.schedule]) for c in self.tried]
        worth = self._opinion(pool)
        if len(known) < self._FIRST:
            order = np.argsort(-worth, kind="stable") if self.ranker else np.arange(len(pool))
            if self.ranker is None:
                self.rng.shuffle(pool)
            return _apart([pool[k] for k in order], count)
        scores = np.array([_FAILED_SCORE if s is None else s for _, s in known])
        tried = [c for c, _ in known]
        return self._greedy(tried, np.log(scores), pool, worth, count)

    def _opinion(self, candidates: Sequence[Candidate]) -> Floats:
        """The cost model's logarithms of scores; zero without one."""
        if self.ranker is None:
            return np.zeros(len(candidates))
        if new := [c for c in candidates if c.schedule not in self._worth]:
            worth = np.log(np.maximum(1e-6, self.ranker(new)))
            self._worth.update((c.schedule, float(w)) for c, w in zip(new, worth))
        return np.array([self._worth[c.schedule] for c in candidates])

    def _greedy(
        self,
        tried: list[Candidate],
        scores: Floats,
        pool: list[Candidate],
        worth: Floats,
        count: int,
    ) -> list[Candidate]:
        """One after the other; each is then taken to do as expected, so that the next differs."""
        best = float(scores.max())
        points, asked = [c.point for c in tried], [c.point for c in pool]
        belief = believe(points, scores, asked, (self._opinion(tried), worth))
        chosen: dict[int, Candidate] = {}
        while len(chosen) < min(count, len(pool)):
            gains = belief.improvement(best)
            gains[list(chosen)] = -np.inf
            at = int(np.argmax(gains))
            chosen[at] = pool[at]
            best = max(best, float(belief.mean[at]))
            belief = belief.settled(at)
        return list(chosen.values())


def _apart(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first ``count`` that differ from each other in two decisions; then the others."""
    chosen: list[Candidate] = []
    close: list[Candidate] = []
    for candidate in candidates:
        if len(chosen) == count:
            break
        mine = set(candidate.point)
        is_close = any(len(mine ^ set(c.point)) <= 2 for c in chosen)
        (close if is_close else chosen).append(candidate)
    return [*chosen, *islice(close, count - len(chosen))]


STRATEGIES: dict[str, type[Strategy]] = {
    "bayesian": Bayesian,
    "evolution": Evolution,
    "random": RandomSearch,
    "exhaustive": Exhaustive,
}


def strategy_for(name: str, space: RuleSpace, seed: int, ranker: Ranker | None) -> Strategy:
    """The strategy called ``name`` for a space; a small one is tried whole."""
    kind = strategy_named(name)
    if space.size(_SMALL_SPACE + 1) <= _SMALL_SPACE:
        kind = Exhaustive
    return kind(space, seed, ranker)


def strategy_named(name: str) -> type[Strategy]:
    """The strategy called ``name``. Raises: ``UserError`` naming those that there are."""
    if name not in STRATEGIES:
        raise UserError(f"no strategy {name!r}; there are: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
