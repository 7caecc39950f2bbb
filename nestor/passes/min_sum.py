"""Exact choice of one value for each variable, where costs are tables over a few variables each.

Variables are eliminated one after the other, the one with the fewest neighbours first: what the
others cost with the best value of the one is a new table. On graphs that are nearly chains, as
networks are, tables stay small; where they would not, the caller hears of it before any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_CELLS = 1 << 22
"""Cells that all tables of an elimination may have together: well under a second."""


@dataclass(frozen=True, slots=True)
class CostTable:
    """What each combination of values of ``names`` costs; an axis of ``cost`` for each name."""

    names: tuple[str, ...]
    cost: npt.NDArray[np.float64]


def minimise_sum(
    values: Mapping[str, int], tables: Sequence[CostTable], max_cells: int = MAX_CELLS
) -> dict[str, int] | None:
    """Values whose tables have the least sum; None if that takes more than ``max_cells``.

    Of several least sums the answer has the least value of what is eliminated last, and so on:
    equal inputs give equal answers.

    Args: values: how many each variable has, numbered from 0. tables: names are among ``values``.
    Source: bucket elimination (Dechter, 1999); the order of Tinney's minimum degree.
    """
    order = _elimination_order(values, tables, max_cells)
    if order is None:
        return None
    left = list(tables)
    steps: list[CostTable] = []
    for name in order:
        own = [t for t in left if name in t.names]
        left = [t for t in left if name not in t.names]
        others = tuple(dict.fromkeys(n for t in own for n in t.names if n != name))
        total = np.zeros([values[n] for n in (*others, name)])
        for table in own:
            total = total + _spread(table, (*others, name))
        steps.append(CostTable((*others, name), total))
        if others:
            left.append(CostTable(others, total.min(axis=-1)))
    chosen: dict[str, int] = {}
    for step in reversed(steps):
        place = tuple(chosen[n] for n in step.names[:-1])
        chosen[step.names[-1]] = int(step.cost[place].argmin())
    return {name: chosen[name] for name in values}


def total_cost(tables: Sequence[CostTable], chosen: Mapping[str, int]) -> float:
    """The sum of the tables at the chosen values."""
    return float(sum(t.cost[tuple(chosen[n] for n in t.names)] for t in tables))


def _elimination_order(
    values: Mapping[str, int], tables: Sequence[CostTable], max_cells: int
) -> list[str] | None:
    """Variables, fewest neighbours first; None if the tables would have too many cells."""
    near: dict[str, set[str]] = {name: set() for name in values}
    for table in tables:
        for name in table.names:
            near[name] |= set(table.names) - {name}
    rank = {name: position for position, name in enumerate(values)}
    left, order, cells = set(values), list[str](), 0
    while left:
        name = min(left, key=lambda n: (len(near[n]), rank[n]))
        size = values[name]
        for other in near[name]:
            size *= values[other]
        cells += size
        if cells > max_cells:
            return None
        for other in near[name]:
            near[other] |= near[name]
            near[other] -= {name, other}
        left.remove(name)
        order.append(name)
    return order


def _spread(table: CostTable, names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """The table's costs with axes as ``names``, of length one where it does not depend on one."""
    order = [table.names.index(n) for n in names if n in table.names]
    shape = [table.cost.shape[table.names.index(n)] if n in table.names else 1 for n in names]
    return table.cost.transpose(order).reshape(shape)
