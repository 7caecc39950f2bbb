"""Whether a candidate's results are those of the reference, within what rounding explains.

Reordering a sum changes its rounding, and how far that reaches into the results depends on the
kernel (a softmax forgives what a difference of large sums does not). It is found by experiment: the
reference itself runs again with every float input moved by a few units in the last place, more for
longer sums, and where its results move by so much, a candidate's may. Results that do not move then
(copies, comparisons, integers) have to agree to the last unit or exactly.

Source: the idea of measuring the condition of a computation by perturbing it: stochastic arithmetic
(CESTAC), Vignes, "A stochastic arithmetic for reliable scientific computation" (1993).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestor.autotune.kernel_inputs import Array, Sizes
from nestor.ir.affine import Interval
from nestor.ir.narrow_floats import round_to
from nestor.ir.program import Program, Statement, Tensor
from nestor.ir.types import DType

PERTURBED_RUNS = 3
SAFETY = 8.0
"""Over the largest movement seen in ``PERTURBED_RUNS``; and units in the last place of a result."""

_EPSILON = {
    DType.f64: 2.0**-52, DType.f32: 2.0**-23, DType.f16: 2.0**-10, DType.bf16: 2.0**-7,
    DType.f8e4m3: 2.0**-3, DType.f8e5m2: 2.0**-2,
}  # fmt: skip

_PIECE = 1 << 15
"""Elements that are compared at once: what is computed on the way stays in the cache."""

_NARROW_SHARE = 1 / 16
"""Part of the elements of narrow inputs that move: one unit there is much, and rounding within a
kernel flips few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What results should be.

    Attributes:
        expected: by tensor, logical shape; bools as bytes.
        allowed: greatest absolute difference of each element, for floats.
        strays: how many elements of an integer tensor may differ, for those that depend on rounding
            (the position of a maximum).
    """

    expected: dict[str, Array]
    allowed: dict[str, NDArray[np.float64]]
    strays: dict[str, int]


def reduction_terms(program: Program, sizes: Sizes) -> int:
    """How many terms the longest reduction of a kernel combines; at least 1."""
    longest = 1
    for statement in program.statements:
        if not isinstance(statement, Statement) or statement.reduction is None:
            continue
        ranges: dict[str, Interval] = {n: (v, v) for n, v in sizes.items()}
        terms = 1
        for r in statement.domain.ranges:
            low, high = r.lower.bounds(ranges)[0] or 0, (r.upper - 1).bounds(ranges)[1] or 0
            ranges[r.name] = (low, max(low, high))
            if r.name in statement.reduction.indices:
                terms *= max(1, high - low + 1)
        longest = max(longest, terms)
    return longest


def perturb_inputs(
    program: Program, inputs: Mapping[str, Array], terms: int, seed: int
) -> dict[str, Array]:
    """``inputs`` with floats moved by up to 2·√terms units in the last place, at random.

    √n, for so much more does a sum in one order move than a single term: rounding errors of n steps
    add up like a random walk over partial sums that grow like one.
    """
    rng = np.random.default_rng([seed, 0x5EED])
    dtypes = {t.name: t.dtype for t in program.tensors}
    moved: dict[str, Array] = {}
    for name, values in inputs.items():
        dtype = dtypes[name]
        if not dtype.is_float:
            moved[name] = values
        elif dtype.is_storage_only:
            unit = _EPSILON[dtype] * rng.choice((-1.0, 1.0), values.shape)
            chosen = rng.random(values.shape) < _NARROW_SHARE
            changed = (values * (1 + unit * chosen)).astype(np.float32)
            moved[name] = (
                changed.astype(np.float16)
                if dtype is DType.f16
                else np.asarray(round_to(changed, dtype))
            )
        else:
            reach = 2 * math.sqrt(terms) * _EPSILON[dtype]
            changed = np.empty(values.shape, values.dtype)
            for old, new in _pieces(values, changed):
                new[...] = old * (1 + reach * rng.uniform(-1, 1, old.shape))
            moved[name] = changed
    return moved


def _pieces(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same elements of arrays of one shape, ``_PIECE`` at a time, in order."""
    flat = [np.ascontiguousarray(a).reshape(-1) for a in arrays]
    for start in range(0, flat[0].size, _PIECE):
        yield tuple(f[start : start + _PIECE] for f in flat)


def _same_bits(a: Array, b: Array) -> bool:
    """Whether two contiguous arrays of one type hold equal bytes."""
    return bool(np.array_equal(a.view(np.uint8), b.view(np.uint8)))


def make_judgement(
    tensors: Sequence[Tensor],
    expected: Mapping[str, Array],
    plain: Mapping[str, Array],
    perturbed: Sequence[Mapping[str, Array]],
) -> Judgement:
    """What to expect of a candidate.

    Args: tensors: the results. expected: their values. plain: the reference's own results.
        perturbed: its results with perturbed inputs.
    """
    allowed: dict[str, NDArray[np.float64]] = {}
    strays: dict[str, int] = {}
    for t in tensors:
        if t.dtype.is_float:
            runs = [p[t.name] for p in perturbed]
            allowed[t.name] = _allowed(expected[t.name], plain[t.name], runs, t.dtype)
        else:
            counts = [int(np.count_nonzero(p[t.name] != plain[t.name])) for p in perturbed]
            strays[t.name] = math.ceil(SAFETY * max(counts, default=0))
    return Judgement(
        expected={t.name: expected[t.name] for t in tensors}, allowed=allowed, strays=strays
    )


def _allowed(
    expected: Array, plain: Array, perturbed: Sequence[Array], dtype: DType
) -> NDArray[np.float64]:
    """Movement of each element; not below half of what is usual in the tensor, since a few
    elements happen to stay where they are.
    """
    allowed = np.zeros(expected.shape, np.float64)
    total, count = 0.0, 0
    with np.errstate(all="ignore"):
        for moved, base, *runs in _pieces(allowed, plain, *perturbed):
            wide = base.astype(np.float64)
            for run in runs:
                distance = np.abs(run.astype(np.float64) - wide)
                distance[~np.isfinite(distance)] = 0.0
                # An element that turns NaN or infinite when inputs move a little may be anything.
                distance[np.isfinite(run) != np.isfinite(base)] = np.inf
                np.maximum(moved, distance, out=moved)
            finite = moved[np.isfinite(moved)]
            total, count = total + float(np.sum(finite**2)), count + finite.size
        usual = math.sqrt(total / count) if count else 0.0
        for moved, value in _pieces(allowed, expected):
            unit = _EPSILON[dtype] * np.abs(np.nan_to_num(value.astype(np.float64)))
            moved[...] = SAFETY * (np.maximum(moved, usual / 2) + unit)
    return allowed


def compare_results(judgement: Judgement, results: Mapping[str, Array]) -> str:
    """What is wrong with ``results``, in words; empty if nothing is."""
    for name, expected in judgement.expected.items():
        found = results[name]
        if name in judgement.allowed:
            bad = _bad_floats(expected, found, judgement.allowed[name])
        else:
            bad = found != expected
            if np.count_nonzero(bad) <= judgement.strays[name]:
                continue
        count = int(np.count_nonzero(bad))
        if count:
            return _describe(name, expected, found, bad, count, judgement)
    return ""


def worst_error(judgement: Judgement, results: Mapping[str, Array]) -> float:
    """The largest difference, as a part of what is allowed there; above 1 is wrong."""
    worst = 0.0
    for name, allowed in judgement.allowed.items():
        for a, b, most in _pieces(judgement.expected[name], results[name], allowed):
            if _same_bits(a, b):
                continue
            with np.errstate(all="ignore"):
                part = np.abs(b.astype(np.float64) - a.astype(np.float64)) / most
            part = part[np.isfinite(part)]
            worst = max(worst, float(part.max()) if part.size else 0.0)
    return worst


def _bad_floats(expected: Array, found: Array, allowed: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Elements that differ too much; NaN agrees with NaN, and an infinity with its like."""
    wrong = np.zeros(expected.shape, np.bool_)
    for a, b, most, bad in _pieces(expected, found, allowed, wrong):
        if _same_bits(a, b):
            continue
        with np.errstate(all="ignore"):
            close = np.abs(a.astype(np.float64) - b.astype(np.float64)) <= most
        if close.all():
            continue
        both = np.isnan(a) & np.isnan(b)
        bad[...] = ~(close | (a == b) | both | np.isposinf(most))
    return wrong


def _describe(
    name: str,
    expected: Array,
    found: Array,
    bad: NDArray[np.bool_],
    count: int,
    judgement: Judgement,
) -> str:
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
    limit = ""
    if name in judgement.allowed:
        limit = f" ± {float(judgement.allowed[name][at]):.3g}"
    return (
        f"{count} of {bad.size} elements of '{name}' are wrong; first {name}{list(at)} = "
        f"{found[at]!s}, expected {expected[at]!s}{limit}"
    )
