"""A Gaussian process over points: what the trials so far say about candidates not yet tried.

It starts from a prior (a cost model's opinion, or nothing), learns how far to trust it and what it
leaves over. With tens to hundreds of trials of one kernel this is the right size of model: it is
exact, it needs no training of its own, and it knows where it does not know. Source: Rasmussen,
Williams, Gaussian Processes for Machine Learning, 2006, chapters 2 and 5; expected improvement:
Jones, Schonlau, Welch, Efficient Global Optimization, 1998.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestor.autotune.space import Point
from nestor.passes.knobs import Value

Floats = NDArray[np.float64]

_LENGTHS = (0.5, 1.0, 2.0, 4.0)
"""Distances over which two points are alike, in standard deviations of a place's values."""

_NOISES = (0.01, 0.05, 0.2)
"""Variance that trials of one point have, against the variance between points."""

_TRUSTS = (1.0, 0.5, 0.0)
"""Parts of the prior that count; the first where trials do not say."""

_MOST_TRIALS = 512
"""Of more trials the best and the latest are kept: the cost grows with their cube."""


class Encoder:
    """Points as rows of numbers; what it has not seen is added as it comes.

    A size is the logarithm of it, a name a column of its own, and a knob that a point does not have
    is at its column's mean, which takes no side.
    """

    def __init__(self) -> None:
        self._columns: dict[tuple[str, object], int] = {}

    def encode(self, points: Sequence[Point]) -> Floats:
        """One row a point, NaN where a point has no such knob."""
        entries: list[tuple[int, int, float]] = []
        for row, point in enumerate(points):
            for name, value in point:
                entries += [(row, c, x) for c, x in self._places(name, value)]
        out = np.full((len(points), len(self._columns)), np.nan)
        for row, column, x in entries:
            out[row, column] = x
        named = [c for (_, what), c in self._columns.items() if isinstance(what, str)]
        if named:
            out[:, named] = np.nan_to_num(out[:, named], nan=0.0)
        return out

    def _places(self, name: str, value: Value) -> list[tuple[int, float]]:
        if isinstance(value, str):
            return [(self._column(name, value), 1.0)]
        sizes = value if isinstance(value, tuple) else (value,)
        return [(self._column(name, p), math.log2(1 + max(0, v))) for p, v in enumerate(sizes)]

    def _column(self, name: str, what: object) -> int:
        return self._columns.setdefault((name, what), len(self._columns))


@dataclass(frozen=True, slots=True)
class Belief:
    """What is expected of several points' scores: means, covariance, a trial's own variance."""

    mean: Floats
    covariance: Floats
    noise: float

    @property
    def deviation(self) -> Floats:
        """Standard deviations of the scores."""
        found: Floats = np.sqrt(np.maximum(0.0, np.diag(self.covariance)))
        return found

    def settled(self, at: int) -> Belief:
        """The same once the point at a position has been tried and done as expected: means stay,
        and what is alike is known better.

        Source: the kriging believer of Ginsbourger, Le Riche, Carraro, 2010.
        """
        column = self.covariance[:, at]
        less = np.outer(column, column) / (column[at] + self.noise)
        return Belief(self.mean, self.covariance - less, self.noise)

    def improvement(self, best: float) -> Floats:
        """The expected gain over ``best`` of trying each point."""
        spread = np.maximum(self.deviation, 1e-12)
        z = (self.mean - best) / spread
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        below = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z])
        gain: Floats = spread * (z * below + density)
        return gain


def believe(
    tried: Sequence[Point],
    scores: Floats,
    asked: Sequence[Point],
    prior: tuple[Floats, Floats] | None = None,
) -> Belief:
    """What trials say about other points.

    Args: tried, scores: points and what they reached, at least one. asked: points to judge.
        prior: expected scores of ``tried`` and of ``asked`` before any trial.
    """
    kept = _kept(scores)
    encoder = Encoder()
    rows = encoder.encode([*(tried[k] for k in kept), *asked])
    rows = _standardized(rows)
    count = len(kept)
    known, unknown = rows[:count], rows[count:]
    before, ahead = np.zeros(count), np.zeros(len(asked))
    if prior is not None:
        before, ahead = prior[0][kept], prior[1]
    fit = _fit(_distances(known, known), scores[kept], before)
    cross = _alike(_distances(unknown, known), fit.length)
    solved = np.linalg.solve(fit.factor, cross.T)
    covariance = _alike(_distances(unknown, unknown), fit.length) - solved.T @ solved
    mean = fit.trust * ahead + fit.center + fit.scale * (cross @ fit.weights)
    return Belief(mean, fit.scale**2 * covariance, fit.scale**2 * fit.noise)


def _kept(scores: Floats) -> NDArray[np.intp]:
    if len(scores) <= _MOST_TRIALS:
        return np.arange(len(scores))
    best = np.argsort(-scores, kind="stable")[: _MOST_TRIALS // 2]
    latest = np.arange(len(scores) - _MOST_TRIALS // 2, len(scores))
    return np.union1d(best, latest)


def _standardized(rows: Floats) -> Floats:
    if not rows.shape[1]:
        return rows
    seen = ~np.isnan(rows)
    count = np.maximum(1, seen.sum(axis=0))
    filled = np.where(seen, rows, 0.0)
    mean = filled.sum(axis=0) / count
    centered = np.where(seen, rows - mean, 0.0)
    spread = np.sqrt((centered**2).sum(axis=0) / count)
    out: Floats = centered / np.where(spread > 0, spread, 1.0)
    return out


def _distances(a: Floats, b: Floats) -> Floats:
    """Euclidean distances, by the mean square of a column's difference times the knobs' number."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    out: Floats = np.sqrt(np.maximum(0.0, squares))
    return out


def _alike(distance: Floats, length: float) -> Floats:
    """Matérn's covariance of smoothness 3/2: jumps between neighbours are nothing special."""
    x = math.sqrt(3.0) * distance / length
    out: Floats = (1.0 + x) * np.exp(-x)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """Under which trials are likeliest: scores are ``trust`` times the prior, plus ``center``, plus
    ``scale`` times a process of this ``length`` and ``noise`` (its covariance's factor, and the
    targets solved by it)."""

    trust: float
    center: float
    scale: float
    length: float
    noise: float
    factor: Floats
    weights: Floats


def _fit(near: Floats, scores: Floats, before: Floats) -> _Fit:
    best: tuple[float, _Fit] | None = None
    trusts = np.array(_TRUSTS if before.any() else (0.0,))
    rest = scores[:, None] - trusts * before[:, None]
    centers, scales = rest.mean(axis=0), np.maximum(1e-3, rest.std(axis=0))
    targets = (rest - centers) / scales
    count = len(scores)
    for length in _LENGTHS:
        alike = _alike(near, length)
        for noise in _NOISES:
            noisy = alike + (noise + 1e-8) * np.eye(count)
            factor: Floats = np.linalg.cholesky(noisy).astype(np.float64)
            volume = float(np.log(np.diag(factor)).sum())
            halves = np.linalg.solve(factor, targets)
            likelihoods = -0.5 * (halves**2).sum(axis=0) - volume - count * np.log(scales)
            at = int(np.argmax(likelihoods))
            if best is None or likelihoods[at] > best[0]:
                weights = np.linalg.solve(factor.T, halves[:, at]).astype(np.float64)
                fit = _Fit(
                    trust=float(trusts[at]),
                    center=float(centers[at]),
                    scale=float(scales[at]),
                    length=length,
                    noise=noise,
                    factor=factor,
                    weights=weights,
                )
                best = (float(likelihoods[at]), fit)
    assert best is not None
    return best[1]
