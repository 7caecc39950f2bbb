"""Elementary functions on float32 vectors.

========  =====================  ======================================================
function  error [ULP]            method
========  =====================  ======================================================
exp       ≤ 1.1                  n = round(x/ln 2), polynomial, 2ⁿ in two factors; with
                                 sixteenths of a power of two from a table: ≤ 0.8
exp2      ≤ 1.0                  n = round(x), polynomial
expm1     ≤ 1.6                  as exp, with the 1 subtracted before scaling
log       ≤ 1.0                  mantissa in [√½, √2), polynomial
tanh      ≤ 2.5                  expm1(-2|x|), one division
sigmoid   ≤ 2.5                  exp(-x), its exponent added as an integer; one division;
                                 of exp(x) where that has a table
erf       ≤ 2.0                  polynomials around multiples of 1/8 (AVX-512) or 17/32
sin, cos  ≤ 1.6                  argument reduced in float64, polynomial (``math_trig``)
rsqrt     ≤ 1.5                  1 / sqrt(x), both correctly rounded
========  =====================  ======================================================

The tests check the bounds over a dense sweep of all float32 values. Denormals, infinities, NaN and
signed zeros follow C. Functions not in the table go through float64 (``math_f64``) and are rounded
once. The coefficients come from ``tools/fit_polynomials.py``.

Source: Cody and Waite, "Software Manual for the Elementary Functions", 1980 (argument reduction);
Muller, "Elementary Functions", 3rd edition (expm1 and tanh without cancellation).
"""

from __future__ import annotations

import math

from nestor.codegen.llvm import math_tables as tables
from nestor.codegen.llvm.mathlib import Num, define

LOG2E = 1.4426950408889634
LN2_HIGH = 0.693145751953125
"""ln 2 in 16 bits: products with an exponent are exact."""
LN2_LOW = math.log(2.0) - LN2_HIGH
MAGIC = 12582912.0
"""1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits."""
MAGIC_BITS, ONE_BITS = 0x4B400000, 0x3F800000
"""The bits of ``MAGIC`` and of 1."""
EIGHTHS = 1572864.0
"""1.5 · 2²⁰: adding it rounds to a multiple of 1/8, whose number then stands in the low bits."""
SIXTEENTHS = 786432.0
"""1.5 · 2¹⁹: adding it rounds to a multiple of 1/16, whose number then stands in the low bits."""
ERF_STEP = 17 / 32
"""Between the wide rows of erf: eight of them reach where it is 1, and multiples are exact."""
MAX_SIGMOID_POWER = 100
"""Powers of two up to which a sigmoid's exponential is not scaled."""


def round_to_int(x: Num) -> tuple[Num, Num]:
    """The nearest integer to ``x``, |x| < 2²², as a float and as i32."""
    shifted = x + MAGIC
    return shifted - MAGIC, shifted.bits() - 0x4B400000


def power_of_two(n: Num) -> Num:
    """2ⁿ for an i32 n in [-126, 127]."""
    return ((n + 127) << 23).as_float()


def scale(p: Num, n: Num, whole: Num) -> Num:
    """``p · 2ⁿ`` for n in [-252, 254], given as a float and as i32.

    Without an instruction for it in two steps, so that denormals round once.
    """
    scaled = p.times_power_of_two(n)
    if scaled is not None:
        return scaled
    half = whole.shift_arithmetic(1)
    return p * power_of_two(half) * power_of_two(whole - half)


def _reduce_exp(x: Num) -> tuple[Num, Num, Num]:
    """``x = n ln 2 + r``: (r, n, n as i32)."""
    n, whole = round_to_int(x * LOG2E)
    r = n.fma(-LN2_HIGH, x)
    return n.fma(-LN2_LOW, r), n, whole


def _has_tables(x: Num) -> bool:
    """Whether numbers are looked up and scaled by powers of two: alone too, so that what is left
    over of a vector gets the same values."""
    return x.val.lanes <= 16 and "avx512vl" in x.fb.module.features


def _exp_by_table(x: Num) -> Num | None:
    """e to the x, |x| < 2^15, where the machine looks up sixteenths of a power of two and scales by
    the whole part: two thirds of the multiply-adds."""
    shifted = x.fma(LOG2E, SIXTEENTHS)
    n = shifted - SIXTEENTHS
    r = n.fma(-LN2_LOW, n.fma(-LN2_HIGH, x))
    fraction = shifted.bits().look_up(tables.EXP2_SIXTEENTHS)
    rest = shifted.bits().look_up(tables.EXP2_SIXTEENTHS_REST)
    if fraction is None or rest is None:
        return None
    p = fraction.fma(r.fma(r.fma(r.polynomial(tables.EXP_NEAR_F32), 1.0), rest), fraction)
    return p.times_power_of_two(n)


@define("exp", "float")
def exp_f32(x: Num) -> Num:
    """e to the x; inf from 88.73 on, 0 below -103.98."""
    x = x.at_most(89.0).at_least(-104.0)
    by_table = _exp_by_table(x) if _has_tables(x) else None
    if by_table is not None:
        return by_table
    r, n, whole = _reduce_exp(x)
    p = r.fma(r.fma(r.polynomial(tables.EXP_F32), 1.0), 1.0)
    return scale(p, n, whole)


@define("exp2", "float")
def exp2_f32(x: Num) -> Num:
    """2 to the x."""
    x = x.at_most(129.0).at_least(-151.0)
    n, whole = round_to_int(x)
    r = x - n
    return scale(r.fma(r.polynomial(tables.EXP2_F32), 1.0), n, whole)


def _expm1_parts(x: Num) -> tuple[Num, Num]:
    """``e**x - 1 = 2ⁿ p + (2ⁿ - 1)``: (p, n)."""
    r, _, n = _reduce_exp(x)
    return (r * r).fma(r.polynomial(tables.EXPM1_F32), r), n


@define("expm1", "float")
def expm1_f32(x: Num) -> Num:
    """e to the x, less 1, without cancellation near 0."""
    p, n = _expm1_parts(x.at_most(89.0).at_least(-18.0))
    # Half of it first: 2ⁿ itself may overflow where the result does not.
    half = power_of_two(n - 1)
    result = p.fma(half, half - 0.5) * 2.0
    return (x.abs() < 2.0**-25).where(x, result)


@define("log", "float")
def log_f32(x: Num) -> Num:
    """Natural logarithm."""
    is_small = x < 2.0**-126
    scaled = is_small.where(x * 2.0**25, x)
    bits = scaled.bits() - 0x3F3504F3
    e = bits.shift_arithmetic(23)
    f = ((bits & 0x007FFFFF) + 0x3F3504F3).as_float() - 1.0
    k = e.convert("sitofp", "float")
    k = is_small.where(k - 25.0, k)
    square = f * f
    tail = (square * f).fma(f.polynomial(tables.LOG_F32), k * LN2_LOW)
    result = k.fma(LN2_HIGH, square.fma(-0.5, tail) + f)
    return log_edges(x, result)


def log_edges(x: Num, result: Num) -> Num:
    """-inf at 0, NaN below, inf at inf; NaN stays."""
    result = x.equals(0.0).where(-math.inf, result)
    result = (x < math.inf).where(result, x)
    return (x < 0.0).where(math.nan, result)


@define("tanh", "float")
def tanh_f32(x: Num) -> Num:
    """Hyperbolic tangent: ``-u / (u + 2)`` with ``u = expm1(-2|x|)``."""
    magnitude = x.abs()
    p, n = _expm1_parts((magnitude * -2.0).at_least(-20.0))
    unit = power_of_two(n)
    u = p.fma(unit, unit - 1.0)
    result = (-u / (u + 2.0)).with_sign_of(x)
    return (magnitude < 2.0**-12).where(x, result)


@define("sigmoid", "float")
def sigmoid_f32(x: Num) -> Num:
    """``1 / (1 + exp(-x))``; where exp(-x) nears overflow, numerator and denominator are scaled."""
    x = x.at_most(80.0).at_least(-104.0)
    power = _exp_by_table(x) if _has_tables(x) else None
    if power is not None:
        # Nothing is left of the 1 beside a large power, and the other way.
        return power / (power + 1.0)
    shifted = x.fma(-LOG2E, MAGIC)
    n = shifted - MAGIC
    r = n.fma(LN2_LOW, n.fma(LN2_HIGH, x))  # exp(-x) = 2ⁿ exp(-r)
    p = r.polynomial(tables.EXP_NEGATIVE_F32)
    # Of the bits of MAGIC nothing is left beside the integer's after the shift.
    whole, most = shifted.bits(), MAGIC_BITS + MAX_SIGMOID_POWER
    power = ((whole.at_most(most) << 23) + ONE_BITS).as_float()
    beyond = whole.at_least(most) << 23
    one = ((ONE_BITS + (MAX_SIGMOID_POWER << 23)) - beyond).as_float()
    return one / p.fma(power, one)


def _erf_by_rows(x: Num) -> Num | None:
    """Error function from its Taylor-like rows at multiples of 1/8, or of 17/32 where tables have
    8 entries: a third or half of the operations of the polynomials over a whole range."""
    rows: tuple[tuple[float, ...], ...]
    if x.val.lanes <= 16 and "avx512f" in x.fb.module.features:
        magnitude = x.abs().at_most(3.93)  # from there on it is 1
        shifted = magnitude + EIGHTHS
        t = magnitude - (shifted - EIGHTHS)
        first, rows = shifted.equals(EIGHTHS), tables.ERF_ROWS_F32
    elif x.val.lanes <= 8:
        magnitude = x.abs().at_most(3.97)
        shifted = magnitude.fma(1 / ERF_STEP, MAGIC)
        n = shifted - MAGIC
        t = n.fma(-ERF_STEP, magnitude)  # exact
        first, rows = shifted.equals(MAGIC), tables.ERF_WIDE_ROWS_F32
    else:
        return None
    row = shifted.bits()
    found = [row.look_up(column) for column in zip(*rows, strict=True)]
    coefficients = [c for c in found if c is not None]
    if len(coefficients) < len(found):
        return None
    value, *rest = coefficients
    total = rest[-1]
    for c in reversed(rest[:-1]):
        total = t.fma(total, c)
    # Near 0 the row tells the difference from t, which stands in the place of its value.
    return t.fma(total, first.where(t, value)).with_sign_of(x)


@define("erf", "float")
def erf_f32(x: Num) -> Num:
    """Error function."""
    by_rows = _erf_by_rows(x)
    if by_rows is not None:
        return by_rows
    magnitude = x.abs()
    small = x.fma((x * x).polynomial(tables.ERF_SMALL_F32), x)
    t = magnitude.at_most(4.0) - 2.5  # exact from 1 on
    # The exponent lies in [-26, -2.6]: of an exponential nothing is left but its core, whose error
    # counts for a sixth at most.
    y = t.polynomial(tables.ERF_LARGE_F32)
    shifted = y + MAGIC
    r = y - (shifted - MAGIC)
    p = r.fma(r.polynomial(tables.ERF_EXP2_F32), 1.0)
    # Of the bits of MAGIC nothing is left beside the integer's after the shift.
    scaled = (p.bits() + (shifted.bits() << 23)).as_float()
    large = (1.0 - scaled).with_sign_of(x)
    # A NaN comes through the polynomial; the other way its bits are lost.
    return (magnitude >= 1.0).where(large, small)
