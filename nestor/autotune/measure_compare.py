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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestor.autotune.kernel_inputs import Array, Sizes
from nestor.ir.affine import Interval
from nestor.ir.numeric import round_to_bf16
from nestor.ir.program import Program, Statement, Tensor
from nestor.ir.types import DType

PERTURBED_RUNS = 3
SAFETY = 8.0
"""Over the largest movement seen in ``PERTURBED_RUNS``; and units in the last place of a result."""

_EPSILON = {DType.f64: 2.0**-52, DType.f32: 2.0**-23, DType.f16: 2.0**-10, DType.bf16: 2.0**-7}

_NARROW_SHARE = 1 / 16
"""Part of the elements of 16-bit inputs that move: one unit there is much, and rounding within a
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
                np.asarray(round_to_bf16(changed))
                if dtype is DType.bf16
                else changed.astype(np.float16)
            )
        else:
            reach = 2 * math.sqrt(terms) * _EPSILON[dtype]
            factor = 1 + reach * rng.uniform(-1, 1, values.shape)
            moved[name] = (values * factor).astype(values.dtype)
    return moved


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
    moved = np.zeros(expected.shape, np.float64)
    base = plain.astype(np.float64)
    with np.errstate(all="ignore"):
        for run in perturbed:
            distance = np.abs(run.astype(np.float64) - base)
            # An element that turns NaN or infinite when inputs move a little may be anything.
            odd = np.isfinite(run) != np.isfinite(plain)
            distance = np.where(odd, np.inf, np.nan_to_num(distance, nan=0.0, posinf=0.0))
            moved = np.maximum(moved, distance)
        finite = moved[np.isfinite(moved)]
        usual = math.sqrt(float(np.mean(finite**2))) if finite.size else 0.0
        unit = _EPSILON[dtype] * np.abs(np.nan_to_num(expected.astype(np.float64)))
        return SAFETY * (np.maximum(moved, usual / 2) + unit)


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


def without_unwritten(judgement: Judgement, results: Mapping[str, Array]) -> dict[str, Array]:
    """``results`` with NaN where that is expected: a kernel that fills a part of a tensor leaves
    the rest as it was, and only fenced arrays begin as NaN."""
    out = dict(results)
    for name in judgement.allowed:
        expected = judgement.expected[name]
        out[name] = np.where(np.isnan(expected), expected, results[name])
    return out


def worst_error(judgement: Judgement, results: Mapping[str, Array]) -> float:
    """The largest difference, as a part of what is allowed there; above 1 is wrong."""
    worst = 0.0
    for name, allowed in judgement.allowed.items():
        expected = judgement.expected[name].astype(np.float64)
        with np.errstate(all="ignore"):
            part = np.abs(results[name].astype(np.float64) - expected) / allowed
        part = part[np.isfinite(part)]
        worst = max(worst, float(part.max()) if part.size else 0.0)
    return worst


def _bad_floats(expected: Array, found: Array, allowed: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Elements that differ too much; NaN agrees with NaN, and an infinity with its like."""
    with np.errstate(all="ignore"):
        a, b = expected.astype(np.float64), found.astype(np.float64)
        close = np.abs(a - b) <= allowed
    fine = close | (a == b) | (np.isnan(a) & np.isnan(b)) | np.isposinf(allowed)
    return np.asarray(~fine, np.bool_)


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
