"""Derive the polynomials of the vector math in ``nestor/codegen/llvm/math_tables.py``.

Each is a minimax fit by the Remez exchange in 60 decimal digits, then its coefficients are rounded
to the type one by one from the constant term up, refitting the rest after each: so the rounding of
one is made good by the others. Run ``python tools/fit_polynomials.py`` to print the whole table;
needs mpmath (PyTorch brings it).

Source: Remez 1934; the refitting of rounded coefficients is a simple form of Brisebarre and
Chevillard, "Efficient polynomial L∞-approximations", ARITH 2007.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath as mp
from mpmath import mpf

mp.mp.dps = 60
Function = Callable[[mpf], mpf]


def round_to(value: mpf, bits: int) -> mpf:
    """Nearest float32 (bits = 32) or float64."""
    x = float(value)
    return mpf(struct.unpack("<f", struct.pack("<f", x))[0]) if bits == 32 else mpf(x)


@dataclass
class Fit:
    """Approximate ``f`` on ``[low, high]`` by a polynomial of ``degree``.

    The error minimised is ``weight(x) * (f(x) - p(x))``.
    """

    name: str
    bits: int
    f: Function
    low: float | mpf
    high: float | mpf
    degree: int
    weight: Function = lambda x: mpf(1)


def chebyshev_points(low: mpf, high: mpf, count: int) -> list[mpf]:
    return [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * i / (count - 1)) for i in range(count)
    ]


def remez(values: list[tuple[mpf, mpf, mpf]], start: int, degree: int) -> tuple[list[mpf], mpf]:
    """Minimax coefficients of ``x**start … x**degree`` on sampled (x, target, weight)."""
    count = degree - start + 1
    step = (len(values) - 1) / (count)
    reference = [round(i * step) for i in range(count + 1)]
    coefficients: list[mpf] = []
    error = mpf(0)
    for _ in range(30):
        rows, right = [], []
        for sign, index in enumerate(reference):
            x, y, w = values[index]
            rows.append([x**p for p in range(start, degree + 1)] + [(-1) ** sign / w])
            right.append(y)
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix(right))
        coefficients = [solution[i] for i in range(count)]
        error = abs(solution[count])
        residual = [w * (y - mp.polyval(coefficients[::-1], x) * x**start) for x, y, w in values]
        new = _alternating(residual, count + 1)
        if new is None or new == reference:
            break
        reference = new
        if max(abs(r) for r in residual) < error * mpf("1.001"):
            break
    residual = [w * (y - mp.polyval(coefficients[::-1], x) * x**start) for x, y, w in values]
    return coefficients, max(abs(r) for r in residual)


def _alternating(residual: list[mpf], count: int) -> list[int] | None:
    """Positions of ``count`` extrema of alternating sign, the greatest ones."""
    runs: list[int] = []
    for i, r in enumerate(residual):
        if runs and (r >= 0) == (residual[runs[-1]] >= 0):
            if abs(r) > abs(residual[runs[-1]]):
                runs[-1] = i
        else:
            runs.append(i)
    while len(runs) > count:
        if len(runs) - count == 1 or abs(residual[runs[0]]) < abs(residual[runs[-1]]):
            drop_first = abs(residual[runs[0]]) < abs(residual[runs[-1]])
            runs = runs[1:] if drop_first else runs[:-1]
        else:
            runs = runs[:-1]
    return runs if len(runs) == count else None


def fit(task: Fit, samples: int = 600) -> tuple[list[float], float]:
    """Rounded coefficients from the constant term up, and the greatest weighted error."""
    points = chebyshev_points(mpf(task.low), mpf(task.high), samples)
    weights = [task.weight(x) for x in points]
    least = max(weights) / 10**6
    values = [(x, task.f(x), w) for x, w in zip(points, weights, strict=True) if w > least]
    fixed: list[mpf] = []
    coefficients: list[mpf] = []
    for position in range(task.degree + 1):
        rest = [
            (x, y - sum((c * x**p for p, c in enumerate(fixed)), mpf(0)), w) for x, y, w in values
        ]
        coefficients = _refit(rest, position, task.degree, coefficients[1:])
        fixed.append(round_to(coefficients[0], task.bits))
    worst = max(abs(w * (y - mp.polyval(fixed[::-1], x))) for x, y, w in values)
    return [float(c) for c in fixed], float(worst)


def _refit(
    values: list[tuple[mpf, mpf, mpf]], start: int, degree: int, known: list[mpf]
) -> list[mpf]:
    """Coefficients of ``x**start …``; the known ones where the exchange is degenerate.

    Powers from ``start`` > 0 on are no Chebyshev system on an interval around 0.
    """
    try:
        found, worst = remez(values, start, degree)
    except ZeroDivisionError:
        return known
    if not known:
        return found
    kept = max(abs(w * (y - mp.polyval(known[::-1], x) * x**start)) for x, y, w in values)
    return found if worst <= kept else known


LN2 = mp.log(2)
ROOT_HALF = mp.sqrt(mpf(1) / 2)


def _of_square(f: Function, power: int) -> Function:
    """``(f(x) - x) / x**power`` as a function of x²."""

    def g(t: mpf) -> mpf:
        x = mp.sqrt(t)
        return (f(x) - x) / x**power

    return g


def _centred(f: Function, centre: float, unit: float) -> Function:
    return lambda t: f(mpf(centre) + mpf(unit) * t)


def _scaled_erfc(t: mpf) -> mpf:
    """``exp(x²) erfc(x) (1 + 2x)`` for ``t = (x - 4)/(x + 4)``."""
    x = 4 * (1 + t) / (1 - t)
    return mp.erfc(x) * mp.exp(x * x) * (1 + 2 * x)


FITS: list[Fit] = [
    # exp(r) = 1 + r + r² p(r)
    Fit("EXP_F32", 32, lambda r: (mp.exp(r) - 1 - r) / r**2, -LN2 / 2, LN2 / 2, 4,
        lambda r: r * r),
    Fit("EXP_F64", 64, lambda r: (mp.exp(r) - 1 - r) / r**2, -LN2 / 2, LN2 / 2, 10,
        lambda r: r * r),
    Fit("EXP_NEGATIVE_F32", 32, lambda r: mp.exp(-r), -LN2 / 2, LN2 / 2, 6, mp.exp),
    Fit("EXP_NEAR_F32", 32, lambda r: (mp.exp(r) - 1 - r) / r**2, -LN2 / 32, LN2 / 32, 1,
        lambda r: r * r),
    # expm1(r) = r + r² p(r), relative
    Fit("EXPM1_F32", 32, lambda r: (mp.expm1(r) - r) / r**2, -LN2 / 2, LN2 / 2, 5,
        lambda r: abs(r)),
    Fit("EXPM1_F64", 64, lambda r: (mp.expm1(r) - r) / r**2, -LN2 / 2, LN2 / 2, 11,
        lambda r: abs(r)),
    # 2**r = 1 + r p(r)
    Fit("EXP2_F32", 32, lambda r: (mp.mpf(2) ** r - 1) / r, -0.5, 0.5, 5, lambda r: abs(r)),
    # log(1 + f) = f - f²/2 + f³ p(f)
    Fit("LOG_F32", 32, lambda f: (mp.log1p(f) - f + f * f / 2) / f**3, ROOT_HALF - 1,
        mp.sqrt(2) - 1, 7, lambda f: f * f),
    # log((1+s)/(1-s)) = 2 s + s³ p(s²)
    Fit("LOG_F64", 64, lambda t: (2 * mp.atanh(mp.sqrt(t)) / mp.sqrt(t) - 2) / t, 1e-30,
        ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2, 7, lambda t: t),
    # sin(r) = r + r³ p(r²), cos(r) = 1 - r²/2 + r⁴ p(r²)
    Fit("SIN_F32", 32, _of_square(mp.sin, 3), 1e-30, (mp.pi / 4) ** 2, 2, lambda t: t),
    Fit("COS_F32", 32, lambda t: (mp.cos(mp.sqrt(t)) - 1 + t / 2) / t**2, 1e-12,
        (mp.pi / 4) ** 2, 2, lambda t: t * t),
    Fit("SIN_F64", 64, _of_square(mp.sin, 3), 1e-20, (mp.pi / 4) ** 2, 6, lambda t: t),
    Fit("COS_F64", 64, lambda t: (mp.cos(mp.sqrt(t)) - 1 + t / 2) / t**2, 1e-12,
        (mp.pi / 4) ** 2, 6, lambda t: t * t),
    # erf(x) = x + x p(x²) for |x| < 1; log2(erfc(2.5 + t)) = p(t) for |t| ≤ 1.5
    Fit("ERF_SMALL_F32", 32, _of_square(mp.erf, 1), 1e-30, 1.0, 6),
    Fit("ERF_LARGE_F32", 32, _centred(lambda x: mp.log(mp.erfc(x), 2), 2.5, 1.0), -1.5, 1.5, 6,
        lambda t: mp.erfc(mpf(2.5) + t) * LN2),
    Fit("ERF_EXP2_F32", 32, lambda r: (mp.mpf(2) ** r - 1) / r, -0.5, 0.5, 4, lambda r: abs(r)),
    Fit("ERF_SMALL_F64", 64, _of_square(mp.erf, 1), 1e-30, 1.0, 13),
    # exp(x²) erfc(x) (1 + 2x) = p(t) for x ≥ 1/2, t = (x - 4)/(x + 4)
    Fit("ERFC_F64", 64, _scaled_erfc, (mpf("0.5") - 4) / (mpf("0.5") + 4), 24 / mpf(32), 22),
    # atan(t) = t + t³ p(t²), |t| ≤ tan(π/8)
    Fit("ATAN_F64", 64, _of_square(mp.atan, 3), 1e-20, mp.tan(mp.pi / 8) ** 2, 11,
        lambda t: t),
    # asin(t) = t + t³ p(t²), |t| ≤ 1/2
    Fit("ASIN_F64", 64, _of_square(mp.asin, 3), 1e-20, 0.25, 12, lambda t: t),
    # log(gamma(2 + t)) = t (1 + t) p(t), |t| ≤ 1
    Fit("LGAMMA_F64", 64, lambda t: mp.loggamma(2 + t) / (t * (1 + t)), -1 + mpf(10) ** -20,
        1.0, 26),
]  # fmt: skip


def erf_rows(count: int, step: mpf, degree: int) -> list[list[float]]:
    """For the first multiples c of ``step``: coefficients of erf(c + t), 2|t| ≤ step, in float32.

    At 0 those of erf(t) - t from the linear one up, with nothing before them.
    """

    def near(c: mpf) -> Fit:
        return Fit("", 32, lambda t: mp.erf(c + t), -step / 2, step / 2, degree,
                   lambda t: 1 / mp.erf(c + t))  # fmt: skip

    first = Fit("", 32, lambda t: (mp.erf(t) - t) / t, mpf(10) ** -20, step / 2, degree - 1)
    rows = [[0.0, *map(float, fit(first, 200)[0])]]
    return rows + [list(map(float, fit(near(k * step), 200)[0])) for k in range(1, count)]


def _print_numbers(name: str, numbers: list[mpf], meaning: str) -> None:
    print(f"\n{name} = (")
    for number in numbers:
        print(f"    {float(number)!r},")
    print(f")  # {meaning}")


def main() -> None:
    """Print the table; with names as arguments only those."""
    wanted = set(sys.argv[1:])
    print('"""Coefficients of the vector math, made by ``tools/fit_polynomials.py``."""')
    print("\n# fmt: off")
    for task in FITS:
        if wanted and task.name not in wanted:
            continue
        coefficients, worst = fit(task, 300 if task.bits == 64 else 600)
        print(f"\n{task.name} = (")
        for c in coefficients:
            print(f"    {c!r},")
        print(f")  # weighted error {worst:.2e} = 2**{mp.nstr(mp.log(worst, 2), 4)}", flush=True)
    if not wanted or "EXP2_SIXTEENTHS" in wanted:
        exact = [mpf(2) ** (mpf(k) / 16) for k in range(16)]
        nearest = [round_to(e, 32) for e in exact]
        _print_numbers("EXP2_SIXTEENTHS", nearest, "2 to the multiples of 1/16 below 1")
        rests = [round_to(e / n - 1, 32) for e, n in zip(exact, nearest, strict=True)]
        _print_numbers("EXP2_SIXTEENTHS_REST", rests, "what these lack, over them")
    rows = {"ERF_ROWS_F32": (32, mpf(1) / 8, 4), "ERF_WIDE_ROWS_F32": (8, mpf(17) / 32, 7)}
    for name, (count, step, degree) in rows.items():
        if wanted and name not in wanted:
            continue
        print(f"\n{name} = (")
        for row in erf_rows(count, step, degree):
            print(f"    ({', '.join(map(repr, row[:3]))},")
            for at in range(3, len(row), 3):
                end = ")," if at + 3 >= len(row) else ","
                print(f"     {', '.join(map(repr, row[at : at + 3]))}{end}")
        print(")")


if __name__ == "__main__":
    assert Path(__file__).exists()
    main()
