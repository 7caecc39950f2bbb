"""How many rows a statement takes side by side: what they share, and what they wait for.

A row of a window or a stencil reads again most of what its neighbour reads: written out together,
each vector is loaded once. A row that is summed ends with its lanes being added up, each addition
waiting for the one before, and with a branch that nobody foresaw; of a few vectors, it waits for as
long as it computes. Some rows at once wait together (measured on Zen 4: sums of 16 to 512 elements
take 0.4 to 0.85 of the time, layer norms of 64 to 768 elements 0.7 to 0.9).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import prod

from nestor.ir.affine import Affine
from nestor.ir.expr import loads
from nestor.ir.program import Statement, Tensor
from nestor.passes.analysis import expression_work
from nestor.passes.statement_facts import extent_of, reduced_indices

TAIL_CYCLES = 35.0
"""What a row's sum takes after its last vector: four or five dependent shuffles and additions, and
the end of a loop."""

LEAST_SHARE = 0.09
"""Part of a row's time, from which on waiting decides: softmax over 512 elements takes 0.82 of the
time with four rows at once, over 1024 elements 0.96; layer norms of 640 elements 0.93."""

LEAST_RAGGED_SHARE = 0.4
"""The same where rows are left over, which run one by one, for rows of elementary functions."""

MIN_GROUPS = 3
"""Fewer groups of rows are shared out unevenly."""

NEAR_BYTES = 8 << 20
"""Kernels that touch no more find most of it in caches. What comes from memory comes fastest in one
stream: with four rows at once sums of 512 elements took 2.5 times as long, layer norms of 128
elements 2.3 times."""

MAX_STREAMS, MAX_FAR_STREAMS = 12, 8
"""Lines that a window reads and writes at once, where they are near and where they are not: about
as many as hardware prefetching follows."""

RAGGED_ROWS = 256
"""From so many rows on, some may be left over."""

NEAR_BEST = 1.1
"""Fewer rows are as good, if they load at most this many times what is loaded at best."""

_EXPENSIVE_WORK = 15.0
"""From this work of a vector on, those side by side want each other's registers."""


def is_near(tensors: Iterable[Tensor]) -> bool:
    """Whether what a kernel touches is small enough to be in caches."""
    size = 0
    for t in tensors:
        if t.role != "temp" and t.alias_of is None:
            if not all(e.is_const for e in t.shape):
                return False
            size += t.dtype.bytes * prod(e.const for e in t.shape)
    return size <= NEAR_BYTES


def sharing_rows(s: Statement, row: str, sizes: Sequence[int], near: bool) -> int:
    """Of ``sizes``, the rows along ``row`` that load least for each result; 1 if none shares.

    Args: near: see ``is_near``.
    """
    most = MAX_STREAMS if near else MAX_FAR_STREAMS
    loaded: dict[int, float] = {}
    for n in sizes:
        places, streams = _distinct_loads(s, row, n)
        if not loaded or streams + n <= most:
            loaded[n] = places / n
    # Rows left over run one by one; among few rows they take most of the time.
    extent = extent_of(s, row)
    loaded = {n: v for n, v in loaded.items() if extent >= RAGGED_ROWS or extent % n == 0}
    if not loaded:
        return 1
    best = min(loaded.values())
    chosen = min(n for n in loaded if loaded[n] <= NEAR_BEST * best)
    return chosen if NEAR_BEST * loaded[chosen] < loaded[min(loaded)] else 1


def _distinct_loads(s: Statement, row: str, rows: int) -> tuple[int, int]:
    """Different places that ``rows`` neighbouring results read, for fixed other indices, of those
    tensors of which each reads several; and the lines of memory that these lie in."""
    found = [x for e in s.elements for x in loads(e)]
    if not all(isinstance(i, Affine) for x in found for i in x.indices):
        return rows * len(found), rows * len(found)
    taps = sorted(reduced_indices(s))
    zero = dict.fromkeys(s.domain.names, 0)
    places: dict[str, set[tuple[int, ...]]] = {}
    several: set[str] = set()
    for r, *at in product(range(rows), *(range(extent_of(s, n)) for n in taps)):
        point: Mapping[str, int] = {**zero, row: r, **dict(zip(taps, at))}
        for x in found:
            affines = (i for i in x.indices if isinstance(i, Affine))
            if all(set(i.variables()) <= point.keys() for i in affines):
                where = tuple(i.evaluate(point) for i in x.indices if isinstance(i, Affine))
                places.setdefault(x.tensor, set()).add(where)
        if r == 0:
            several = {t for t, found_at in places.items() if len(found_at) > 1}
    kept = [(t, where) for t, found_at in places.items() for where in found_at if t in several]
    return len(kept), len({(t, where[:-1]) for t, where in kept})


def waiting_rows(statements: Sequence[tuple[Statement, float]], rows: int, bound: bool) -> int:
    """Rows side by side for statements on the same rows, of which some sum a row each.

    Args: statements: and into how many vectors each one's part of a row is cut. rows: how many
        there are. bound: memory decides how long they take, if not arithmetic.
    """
    waits = TAIL_CYCLES * sum(s.reduction is not None for s, _ in statements)
    work = sum(vectors * _vector_work(s) / 2 for s, vectors in statements)
    dear = any(_vector_work(s) >= _EXPENSIVE_WORK for s, _ in statements)
    if not waits or bound:
        return 1
    for count in (4, 2):
        is_ragged = rows % count > 0
        least = LEAST_RAGGED_SHARE if is_ragged else LEAST_SHARE
        enough = waits / (waits + work) >= least and rows >= MIN_GROUPS * count
        if enough and (dear or not is_ragged):
            return count
    return 1


def _vector_work(s: Statement) -> float:
    """Instructions for one vector, about."""
    own = sum(expression_work(e) + sum(1 for _ in loads(e)) for e in s.elements)
    return own + (1.0 if s.reduction is not None or s.writes else 0.0)
