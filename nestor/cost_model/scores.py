"""How good predictions are for a search: ranks within a workload, regret of a short list, errors.

NumPy alone. Predictions and targets are ``log2`` of a fraction of the roofline: greater is faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]
MIN_GROUP = 3
"""Fewest schedules of a workload that have ranks worth comparing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Quality of predictions on workloads that they were not fitted to.

    Attributes:
        workloads, examples: how many there are (workloads with at least ``MIN_GROUP`` schedules).
        spearman: rank correlation within a workload, mean over workloads.
        spearman_low: its lower quartile over workloads.
        top1, top10: throughput of the best of the 1 or 10 schedules ranked first, over that of the
            best measured of the workload; mean over workloads, 1 is ideal.
        mape: mean relative error of the time, |predicted/measured - 1|, over all examples.
        by_family: ``spearman``, ``top10``, ``mape`` and ``workloads`` for each family.
    """

    workloads: int
    examples: int
    spearman: float
    spearman_low: float
    top1: float
    top10: float
    mape: float
    by_family: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One entry a field."""
        return asdict(self)


def ranks(values: Floats) -> NDArray[np.float64]:
    """Ranks from 0; equal values share their mean rank."""
    order = np.argsort(values, kind="stable")
    out = np.empty(len(values), dtype=np.float64)
    out[order] = np.arange(len(values), dtype=np.float64)
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    sums = np.bincount(group.reshape(-1), weights=out)
    return np.asarray((sums / counts)[group.reshape(-1)], dtype=np.float64)


def spearman(predicted: Floats, measured: Floats) -> float:
    """Rank correlation; 0 where one side does not vary."""
    a, b = ranks(predicted), ranks(measured)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / norm) if norm > 0 else 0.0


def best_of_top(predicted: Floats, measured: Floats, count: int) -> float:
    """Throughput of the best of the ``count`` ranked first, relative to the best of all."""
    first = np.argsort(-np.asarray(predicted, dtype=np.float64), kind="stable")[:count]
    return float(np.exp2(float(measured[first].max()) - float(measured.max())))


def relative_errors(predicted: Floats, measured: Floats) -> NDArray[np.float64]:
    """|predicted time / measured time - 1| of each example."""
    difference = np.asarray(measured, dtype=np.float64) - np.asarray(predicted, dtype=np.float64)
    return np.asarray(np.abs(np.exp2(np.clip(difference, -20, 20)) - 1), dtype=np.float64)


def group_positions(groups: NDArray[np.int32]) -> Iterator[NDArray[np.int64]]:
    """Positions of each group's examples."""
    for g in np.unique(groups):
        yield np.flatnonzero(groups == g)


def score_predictions(
    predicted: Floats, measured: Floats, groups: NDArray[np.int32], families: Sequence[str]
) -> Scores:
    """Scores of predictions.

    Args: groups: workload of each example. families: of each example.
    """
    rows: list[tuple[str, float, float, float]] = []
    for at in group_positions(groups):
        if len(at) >= MIN_GROUP:
            p, m = predicted[at], measured[at]
            top1, top10 = best_of_top(p, m, 1), best_of_top(p, m, 10)
            rows.append((families[int(at[0])], spearman(p, m), top1, top10))
    errors = relative_errors(predicted, measured)
    named = np.array(list(families))
    by_family: dict[str, dict[str, float]] = {}
    for family in sorted(set(families)):
        mine = [r for r in rows if r[0] == family]
        by_family[family] = {
            "workloads": float(len(mine)),
            "spearman": _mean([r[1] for r in mine]),
            "top10": _mean([r[3] for r in mine]),
            "mape": float(errors[named == family].mean()),
        }
    correlations = [r[1] for r in rows]
    return Scores(
        workloads=len(rows),
        examples=len(errors),
        spearman=_mean(correlations),
        spearman_low=float(np.quantile(correlations, 0.25)) if rows else float("nan"),
        top1=_mean([r[2] for r in rows]),
        top10=_mean([r[3] for r in rows]),
        mape=float(errors.mean()) if len(errors) else float("nan"),
        by_family=by_family,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
