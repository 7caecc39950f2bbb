"""Enclosures of reductions: any order of combining is allowed where the monoid commutes.

Elements are sorted by output point: ``starts[p]`` is the first element of point ``p``, and each
point has at least one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nestor.ir.monoid import Monoid
from nestor.ir.types import DType
from tests.fuzz.enclosure import (
    INF,
    LARGEST,
    LEAST,
    UNIT,
    Array,
    Enclosure,
    anything,
    known,
    significant_bits,
    unary,
    whole,
)

BITS = {DType.f32: 24, DType.f64: 53}
Combine = Callable[[list[Enclosure], list[Enclosure]], list[Enclosure]]


@dataclass(slots=True)
class Segments:
    """Where the elements of each point lie."""

    starts: Array
    counts: Array

    def any(self, flags: Array) -> Array:
        """Per point: some element has the flag."""
        return np.logical_or.reduceat(flags, self.starts)

    def all(self, flags: Array) -> Array:
        """Per point: every element has the flag."""
        return np.logical_and.reduceat(flags, self.starts)

    def sum(self, values: Array) -> Array:
        """Per point: the sum, in extended precision."""
        return np.add.reduceat(values.astype(np.longdouble), self.starts)

    def max(self, values: Array) -> Array:
        """Per point: the greatest."""
        return np.maximum.reduceat(values, self.starts)

    def min(self, values: Array) -> Array:
        """Per point: the least."""
        return np.minimum.reduceat(values, self.starts)


def reduce_states(
    monoid: Monoid, elements: list[Enclosure], at: Segments, combine: Combine
) -> list[Enclosure]:
    """The state of every point, by component."""
    if not elements[0].dtype.is_float or monoid.name in ("argmax", "argmin"):
        return fold(elements, at, combine)
    rule = _RULES.get(monoid.name)
    if rule is None:
        raise NotImplementedError(f"no enclosure of the monoid {monoid.name}")
    return rule(elements, at)


def fold(elements: list[Enclosure], at: Segments, combine: Combine) -> list[Enclosure]:
    """From the left, all points at once: for exact types, and where comparisons decide."""
    state = [e.take(at.starts) for e in elements]
    for step in range(1, int(at.counts.max(initial=1))):
        active = np.nonzero(at.counts > step)[0]
        left = [s.take(active) for s in state]
        right = [e.take(at.starts[active] + step) for e in elements]
        for s, new in zip(state, combine(left, right), strict=True):
            s.put(active, new)
    return state


def _sum(elements: list[Enclosure], at: Segments) -> list[Enclosure]:
    return [sum_enclosure(elements[0], at)]


def sum_enclosure(e: Enclosure, at: Segments) -> Enclosure:
    """``Σ e`` in any order, products fused or not."""
    lo, hi = np.fmin(e.lo, e.xlo), np.fmax(e.hi, e.xhi)
    finite = np.isfinite(lo) & np.isfinite(hi)
    size = np.where(finite, np.maximum(np.abs(lo), np.abs(hi)), 0)
    magnitude = at.sum(size)
    total_lo, total_hi = at.sum(lo), at.sum(hi)
    point = e.num & ~e.nan & (lo == hi) & finite
    exact = at.all(point) & _on_grid(lo, size, magnitude, at, BITS[e.dtype])
    exact &= magnitude <= LARGEST[e.dtype]
    # Sums of floats are exact among denormals, fused products are not.
    error = at.counts * (np.longdouble(UNIT[e.dtype]) * magnitude * 1.001 + LEAST[e.dtype])
    down, up = _outward(total_lo - error, total_hi + error)
    down = np.where(exact, total_lo.astype(np.float64), down)
    up = np.where(exact, total_hi.astype(np.float64), up)
    up_inf, down_inf = at.any(e.num & (hi == INF)), at.any(e.num & (lo == -INF))
    overflow = magnitude * 1.001 > LARGEST[e.dtype]
    surely = at.any(e.num & ~e.nan & (lo == INF)) & at.any(e.num & ~e.nan & (hi == -INF))
    nan = at.any(e.nan) | (up_inf & down_inf) | overflow
    num = at.all(e.num) & ~surely
    down = np.where(overflow & ~exact, -INF, down)
    up = np.where(overflow & ~exact, INF, up)
    return whole(e.dtype, down, up, nan & ~exact, num)


def _on_grid(x: Array, size: Array, magnitude: Array, at: Segments, bits: int) -> Array:
    """True where all elements are multiples of one power of two and no sum needs more bits."""
    _, exponent = np.frexp(np.where(np.isfinite(x), x, 0.0))
    lowest = np.where(size > 0, exponent - significant_bits(x), 4000)
    grid = at.min(lowest)
    reach = np.ldexp(np.longdouble(1.0), np.minimum(grid + bits, 4000).astype(np.int32))
    return np.asarray(magnitude <= reach)


def _outward(lo: Array, hi: Array) -> tuple[Array, Array]:
    """Extended precision to float64, outward."""
    down, up = lo.astype(np.float64), hi.astype(np.float64)
    return np.nextafter(down, -INF), np.nextafter(up, INF)


def _extreme(op: str) -> Callable[[list[Enclosure], Segments], list[Enclosure]]:
    def rule(elements: list[Enclosure], at: Segments) -> list[Enclosure]:
        e = elements[0]
        pick = at.max if op == "max" else at.min
        empty = -INF if op == "max" else INF
        lo, hi = np.where(e.num, e.lo, empty), np.where(e.num, e.hi, empty)
        return [whole(e.dtype, pick(lo), pick(hi), at.any(e.nan), at.all(e.num))]

    return rule


def _prod(elements: list[Enclosure], at: Segments) -> list[Enclosure]:
    """Exact where the significant bits of known factors fit together, else ``n·u`` relative."""
    e = elements[0]
    lo, hi = np.fmin(e.lo, e.xlo), np.fmax(e.hi, e.xhi)
    finite = np.isfinite(lo) & np.isfinite(hi)
    point = e.num & ~e.nan & (lo == hi) & finite
    straddles = (lo < 0) & (hi > 0) | ((lo == 0) != (hi == 0))
    least = np.where(straddles | ~finite, 0, np.minimum(np.abs(lo), np.abs(hi)))
    most = np.where(finite, np.maximum(np.abs(lo), np.abs(hi)), 1)
    with np.errstate(divide="ignore"):
        grow = at.sum(np.maximum(np.log2(np.maximum(most, 1)), 0))
        shrink = at.sum(np.minimum(np.log2(np.where(least > 0, np.minimum(least, 1), 1)), 0))
    limit = 120 if e.dtype is DType.f32 else 1000
    calm = (grow < limit) & (shrink > -limit)
    bits = at.sum(significant_bits(lo))
    exact = at.all(point) & calm & (bits <= BITS[e.dtype])
    low = np.multiply.reduceat(least.astype(np.longdouble), at.starts)
    high = np.multiply.reduceat(most.astype(np.longdouble), at.starts)
    slack = at.counts * np.longdouble(UNIT[e.dtype]) * 1.01
    low, high = np.where(exact, low, low * (1 - slack)), np.where(exact, high, high * (1 + slack))
    negative = at.sum((hi < 0).astype(np.int64)) % 2 == 1
    mixed = at.any(straddles)
    down = np.where(mixed, -high, np.where(negative, -high, low)).astype(np.float64)
    up = np.where(mixed, high, np.where(negative, -low, high)).astype(np.float64)
    grown = ~exact
    down, up = (
        np.where(grown, np.nextafter(down, -INF), down),
        np.where(grown, np.nextafter(up, INF), up),
    )
    vague = at.any(~finite & e.num) | ~calm
    down, up = np.where(vague, -INF, down), np.where(vague, INF, up)
    return [whole(e.dtype, down, up, at.any(e.nan) | vague, at.all(e.num))]


def _middle(e: Enclosure) -> tuple[Array, Array, Array]:
    """Middle and radius of finite enclosures, and where they are finite numbers."""
    ok = e.num & ~e.nan & np.isfinite(e.lo) & np.isfinite(e.hi)
    lo, hi = np.where(ok, np.fmin(e.lo, e.xlo), 0), np.where(ok, np.fmax(e.hi, e.xhi), 0)
    return (lo + hi) / 2, (hi - lo) / 2, ok & np.isfinite(lo + hi)


def _around(dtype: DType, value: Array, error: Array, ok: Array) -> Enclosure:
    lo, hi = _outward(value - error, value + error)
    size = lo.shape
    out = whole(dtype, lo, hi, False, True)
    rest = anything(dtype, int(np.prod(size)))
    for mine, other in zip(out.fields(), rest.fields(), strict=True):
        mine[...] = np.where(ok, mine, other)
    return out


def _welford(elements: list[Enclosure], at: Segments) -> list[Enclosure]:
    """Mean within ``c·n·u·max|x|``; M2 follows from it (Chan, Golub, LeVeque 1983, table 1)."""
    dtype = elements[0].dtype
    unit = np.longdouble(UNIT[dtype])
    x, radius, fine = _middle(elements[0])
    plain = (elements[1].lo == 0) & (elements[1].hi == 0) & (elements[2].lo == 1)
    plain &= elements[2].hi == 1
    n = at.counts.astype(np.longdouble)
    size = at.max(np.abs(x))
    ok = at.all(fine & plain) & (size < (1e15 if dtype is DType.f32 else 1e100))
    mean = at.sum(x) / n
    spread = x - np.repeat(mean, at.counts)
    m2 = at.sum(spread * spread)
    off = 8 * n * unit * size + at.max(radius)
    error = 8 * n * unit * m2 + 4 * np.sqrt(n * m2) * off + 4 * n * off * off
    tiny = np.longdouble(1e-40 if dtype is DType.f32 else 1e-300)
    alone = n == 1
    mean_error = np.where(alone, at.max(radius), off + tiny)
    m2_error = np.where(alone, 0, error + tiny)
    count = n.astype(np.float64)
    return [
        _around(dtype, mean, mean_error, ok),
        _around(dtype, m2, m2_error, ok),
        whole(dtype, count, count, False, True),
    ]


def _softmax(elements: list[Enclosure], at: Segments) -> list[Enclosure]:
    """(max, Σ l·exp(x−max)[, Σ v·exp(x−max)]): each term is rescaled at most ``n`` times."""
    dtype = elements[0].dtype
    unit = np.longdouble(UNIT[dtype])
    top = _extreme("max")(elements, at)[0]
    x, radius, fine = _middle(elements[0])
    n = at.counts.astype(np.longdouble)
    m = at.max(x)
    gap = np.repeat(m, at.counts) - x
    weight = np.exp(-gap.astype(np.longdouble))
    reach = at.max(gap) + at.max(radius)
    # Rescaling underflows gradually: an absolute error of a denormal for each of n steps.
    tiny = n * np.longdouble(1e-37 if dtype is DType.f32 else 1e-300)
    relative = 16 * n * unit + 2 * unit * reach + 4 * at.max(radius)
    out = [top]
    for e in elements[1:]:
        value, own, good = _middle(e)
        size = at.sum((np.abs(value) + own) * weight)
        most = at.max(np.abs(value) + own)
        ok = at.all(fine & good) & (relative < 0.01) & (most < 1e30)
        error = relative * size + at.sum(own * weight) + tiny * np.maximum(most, 1)
        out.append(_around(dtype, at.sum(value * weight), error, ok))
    return out


_RULES = {
    "sum": _sum,
    "prod": _prod,
    "max": _extreme("max"),
    "min": _extreme("min"),
    "welford": _welford,
    "logsumexp": _softmax,
    "online_softmax": _softmax,
}

__all__ = ["Segments", "fold", "known", "reduce_states", "sum_enclosure", "unary"]
