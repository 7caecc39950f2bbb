"""How far one run's outputs are from another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.polybench.registry import CASES

VANISHED = 1e-4
"""A diagonal element of R this far below the largest is what rounding left of a zero."""


def determined_columns(r: np.ndarray) -> int:
    """How many leading columns of ``Q`` the matrix determines, from the ``R`` of Gram-Schmidt.

    PolyBench's matrix for gramschmidt has linearly dependent columns. The first one that depends
    on those before it leaves a remainder of rounding errors, which the algorithm normalises and
    then takes out of all later columns: from there on each order of summation has its own Q and R.
    Their product is the matrix all the same.
    """
    diagonal = np.diag(r)
    vanished = np.flatnonzero(diagonal < VANISHED * diagonal.max())
    return int(vanished[0]) if len(vanished) else len(diagonal)


def compared(
    name: str, outputs: Mapping[str, Any], reference: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What of ``outputs`` is compared: for gramschmidt Q R and the well-determined columns.

    Args: name: of the benchmark; outputs: arrays by name; reference: the arrays that say how many
        columns are well determined.
    """
    if name != "gramschmidt":
        return {output: np.asarray(outputs[output]) for output in CASES[name].outputs}
    count = determined_columns(np.asarray(reference["R"]))
    q, r = np.asarray(outputs["Q"]), np.asarray(outputs["R"])
    return {"QR": q @ r, "Q": q[:, :count], "R": r[:count]}


def relative_error(name: str, outputs: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest difference over the largest expected value, of the worst output.

    NaN or infinity in one but not in the other, or another shape, counts as infinitely wrong.
    """
    worst = 0.0
    wanted = compared(name, expected, expected)
    for output, got in compared(name, outputs, expected).items():
        want = wanted[output].astype(np.float64)
        have = got.astype(np.float64)
        if have.shape != want.shape or not np.array_equal(np.isfinite(have), np.isfinite(want)):
            return float("inf")
        finite = np.isfinite(want)
        if not np.array_equal(have[~finite], want[~finite], equal_nan=True):
            return float("inf")
        largest = float(np.abs(want[finite]).max(initial=0.0))
        difference = float(np.abs(have[finite] - want[finite]).max(initial=0.0))
        if difference:
            worst = max(worst, difference / largest if largest else float("inf"))
    return worst
