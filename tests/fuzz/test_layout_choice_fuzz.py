"""Exact choice over random cost tables: as good as trying every combination, and repeatable."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nestor.passes.min_sum import CostTable, minimise_sum, total_cost


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, int], list[CostTable]]:
    """Up to seven variables of one to four values, tables over any three of them; costs tie."""
    values = {f"v{n}": draw(st.integers(1, 4)) for n in range(draw(st.integers(0, 7)))}
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    tables = []
    for _ in range(draw(st.integers(0, 9)) if values else 0):
        names = draw(st.lists(st.sampled_from(sorted(values)), unique=True, max_size=3))
        shape = [values[n] for n in names]
        tables.append(CostTable(tuple(names), rng.integers(0, 20, shape).astype(np.float64)))
    return values, tables


@settings(max_examples=250, deadline=None)
@given(problems())
def test_as_good_as_every_combination(problem: tuple[dict[str, int], list[CostTable]]) -> None:
    values, tables = problem
    chosen = minimise_sum(values, tables)
    assert chosen is not None and list(chosen) == list(values)
    assert all(0 <= chosen[n] < values[n] for n in values)
    least = min(
        total_cost(tables, dict(zip(values, place)))
        for place in itertools.product(*map(range, values.values()))
    )
    assert total_cost(tables, chosen) == least
    assert minimise_sum(values, tables) == chosen


def test_a_long_chain() -> None:
    """Five hundred variables: the answer of a dynamic programme along the chain."""
    rng = np.random.default_rng(3)
    values = {f"v{n}": 3 for n in range(500)}
    tables = [CostTable((f"v{n}", f"v{n + 1}"), rng.random((3, 3))) for n in range(499)]
    best = np.zeros(3)
    for table in tables:
        best = (best[:, None] + table.cost).min(axis=0)
    chosen = minimise_sum(values, tables)
    assert chosen is not None
    assert abs(total_cost(tables, chosen) - best.min()) < 1e-9


def test_too_entangled() -> None:
    """Every pair of twelve variables has a table: refused below 3¹² cells, not tried."""
    values = {f"v{n}": 3 for n in range(12)}
    tables = [CostTable(pair, np.ones((3, 3))) for pair in itertools.combinations(values, 2)]
    assert minimise_sum(values, tables, max_cells=1000) is None
