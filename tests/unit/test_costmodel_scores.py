"""Metrics of rankings on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.cost_model.scores import (
    best_of_top,
    ranks,
    relative_errors,
    score_predictions,
    spearman,
)


def test_equal_values_share_their_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_spearman() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(a, a**3) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2.0, 4.0, 3.0]), a) == pytest.approx(0.8)
    assert spearman(np.zeros(4), a) == 0


def test_a_short_list_costs_what_it_misses() -> None:
    measured = np.log2(np.array([1.0, 0.5, 0.25]))
    assert best_of_top(np.array([0.0, 1.0, 2.0]), measured, 1) == pytest.approx(0.25)
    assert best_of_top(np.array([0.0, 1.0, 2.0]), measured, 2) == pytest.approx(0.5)
    assert best_of_top(np.array([0.0, 1.0, 2.0]), measured, 10) == pytest.approx(1.0)


def test_errors_are_of_times() -> None:
    """Half the throughput predicted is twice the time."""
    errors = relative_errors(np.array([-1.0, 1.0]), np.array([0.0, 0.0]))
    assert errors.tolist() == [1.0, 0.5]


def test_scores_are_means_over_workloads() -> None:
    measured = np.array([0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0])
    predicted = np.array([0.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.0])
    groups = np.array([0, 0, 0, 0, 7, 7, 7], dtype=np.int32)
    families = ("a",) * 4 + ("b",) * 3
    s = score_predictions(predicted, measured, groups, families)
    assert (s.workloads, s.examples) == (2, 7)
    assert s.spearman == pytest.approx(0.0)
    assert s.by_family["a"]["spearman"] == pytest.approx(1)
    assert s.by_family["b"]["spearman"] == pytest.approx(-1)
    assert s.top1 == pytest.approx((1 + 0.25) / 2)
