"""Elementary functions on float64 vectors: exponentials, logarithms, error functions, powers.

==========================  ============  ==================================================
function                    error [ULP]   method
==========================  ============  ==================================================
exp, exp2                   ≤ 1.5         n = round(x/ln 2), polynomial, 2ⁿ in two factors
expm1                       ≤ 2.0         the 1 subtracted before scaling
log, log2, log1p            ≤ 1.5         mantissa in [√½, √2), s = f/(2+f), polynomial in s²
tanh, sinh, cosh            ≤ 3.0         expm1(-2|x|); expm1 or exp(|x|)/2
asinh, acosh, atanh         ≤ 4.0         log1p
sigmoid                     ≤ 2.5         exp(-|x|)
erf, erfc                   ≤ 3.0         polynomial below 1; exp(-x²) times a polynomial above
pow                         ≤ 1.5         logarithm in two doubles
lgamma                      ≤ 8.0         for x > 0; absolute 1e-14 near the zeros of x < 0
==========================  ============  ==================================================

Measured by the tests against 60-digit arithmetic on random and edge arguments. Trigonometric
functions are in ``math_trig``, remainders in ``math_remainder``. The coefficients come from
``tools/fit_polynomials.py``.

Source: Cody and Waite 1980 (argument reduction); Muller, "Elementary Functions" (logarithm by
2 atanh s); Shepherd and Laframboise, Math. Comp. 36, 1981 (erfc by (1+2x) exp(x²) erfc(x)); Dekker,
Numer. Math. 18, 1971 (sums and products in two doubles).
"""

from __future__ import annotations

import math

from nestor.codegen.llvm import math_tables as tables
from nestor.codegen.llvm.mathlib import Num, define

LOG2E = 1.4426950408889634
LN2_HIGH = 0.6931471805599453
LN2_LOW = 2.3190468138462996e-17
LOG2E_LOW = 2.0355273740931033e-17
MAGIC = 6755399441055744.0
"""1.5 · 2⁵²: adding it rounds to an integer, which then stands in the low bits."""
MAGIC_BITS = 0x4338000000000000


def round_to_int(x: Num) -> tuple[Num, Num]:
    """The nearest integer to ``x``, |x| < 2⁵¹, as a float and as i64."""
    shifted = x + MAGIC
    return shifted - MAGIC, shifted.bits() - MAGIC_BITS


def power_of_two(n: Num) -> Num:
    """2ⁿ for an i64 n in [-1022, 1023]."""
    return ((n + 1023) << 52).as_float()


def scale(p: Num, whole: Num) -> Num:
    """``p · 2ⁿ`` for an integral float n, |n| < 2044; in two steps, so denormals round once."""
    scaled = p.times_power_of_two(whole)
    if scaled is not None:
        return scaled
    half_float, half = round_to_int(whole * 0.5)
    _, rest = round_to_int(whole - half_float)
    return p * power_of_two(half) * power_of_two(rest)


def two_sum(a: Num, b: Num) -> tuple[Num, Num]:
    """``a + b`` exactly, as a float and its error; |a| ≥ |b| or either zero."""
    total = a + b
    return total, b - (total - a)


def two_product(a: Num, b: Num | float) -> tuple[Num, Num]:
    """``a * b`` exactly, as a float and its error."""
    product = a * b
    return product, a.fma(b, -product)


def _reduce_exp(x: Num) -> tuple[Num, Num]:
    """``x = n ln 2 + r``: (r, n as a float)."""
    n, _ = round_to_int(x * LOG2E)
    r = n.fma(-LN2_HIGH, x)
    return n.fma(-LN2_LOW, r), n


def exp_parts(x: Num) -> tuple[Num, Num]:
    """``e**x = p · 2ⁿ``: (p, n as a float); x within ±1500."""
    r, n = _reduce_exp(x)
    return (r * r).fma(r.polynomial(tables.EXP_F64), r) + 1.0, n


@define("exp", "double")
def exp_f64(x: Num) -> Num:
    """e to the x."""
    return scale(*exp_parts(x.at_most(710.0).at_least(-746.0)))


@define("exp2", "double")
def exp2_f64(x: Num) -> Num:
    """2 to the x."""
    x = x.at_most(1025.0).at_least(-1076.0)
    n, _ = round_to_int(x)
    high, low = two_product(x - n, LN2_HIGH)
    low = (x - n).fma(LN2_LOW, low)
    p = (high * high).fma(high.polynomial(tables.EXP_F64), low + high) + 1.0
    return scale(p, n)


def _expm1_parts(x: Num) -> tuple[Num, Num]:
    """``e**x - 1 = 2ⁿ p + (2ⁿ - 1)``: (p, n as i64)."""
    r, n = _reduce_exp(x)
    return (r * r).fma(r.polynomial(tables.EXPM1_F64), r), round_to_int(n)[1]


@define("expm1", "double")
def expm1_f64(x: Num) -> Num:
    """e to the x, less 1, without cancellation near 0."""
    p, n = _expm1_parts(x.at_most(710.0).at_least(-40.0))
    half = power_of_two(n - 1)
    return (x.abs() < 2.0**-54).where(x, p.fma(half, half - 0.5) * 2.0)


def _split(x: Num) -> tuple[Num, Num, Num]:
    """``x = 2ᵏ (1 + f)``, 1 + f in [√½, √2): (f, k as a float, x was denormal)."""
    is_small = x < 2.0**-1022
    bits = is_small.where(x * 2.0**54, x).bits() - 0x3FE6A09E667F3BCD
    f = ((bits & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).as_float() - 1.0
    # The exponent, made positive, so that no arithmetic shift of 64 bits is needed.
    exponent = (bits + (2048 << 52)) >> 52
    k = ((exponent | 0x4330000000000000).as_float()) - (2.0**52 + 2048.0)
    return f, is_small.where(k - 54.0, k), is_small


def _log1p_tail(f: Num) -> tuple[Num, Num]:
    """``log(1 + f) = f - (f²/2 - tail)``: (f²/2, tail)."""
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    return half_square, s * (z.fma(z.polynomial(tables.LOG_F64), half_square))


def _log_edges(x: Num, result: Num) -> Num:
    result = x.equals(0.0).where(-math.inf, result)
    result = (x < math.inf).where(result, x)
    return (x < 0.0).where(math.nan, result)


@define("log", "double")
def log_f64(x: Num) -> Num:
    """Natural logarithm."""
    f, k, _ = _split(x)
    half_square, tail = _log1p_tail(f)
    # ln 2 is split so that k times its upper part is exact.
    low = k.fma(LN2_LOW, tail)
    high, error = two_product(k, LN2_HIGH)
    rest = (low + error) - half_square
    total, lost = two_sum(high, f)
    small = k.equals(0.0).where(f + rest, total + (lost + rest))
    return _log_edges(x, small)


@define("log2", "double")
def log2_f64(x: Num) -> Num:
    """Logarithm to base 2."""
    f, k, _ = _split(x)
    half_square, tail = _log1p_tail(f)
    high, low = two_sum(f, tail - half_square)
    product, error = two_product(high, LOG2E)
    error = high.fma(LOG2E_LOW, low.fma(LOG2E, error))
    total, lost = two_sum(k, product)
    result = k.equals(0.0).where(product + error, total + (lost + error))
    return _log_edges(x, result)


@define("log1p", "double")
def log1p_f64(x: Num) -> Num:
    """Logarithm of 1 + x, exact near 0."""
    u = x + 1.0
    f, k, _ = _split(u)
    # What was lost in 1 + x; (u - 1) is exact where it matters.
    lost = (x > 1.0).where(1.0 - (u - x), x - (u - 1.0)) / u
    at_zero = k.equals(0.0)
    f = at_zero.where(x, f)
    half_square, tail = _log1p_tail(f)
    correction = at_zero.where(lost.like(0.0), lost)
    rest = (k.fma(LN2_LOW, tail) + correction) - half_square
    result = at_zero.where(f + rest, k.fma(LN2_HIGH, f + rest))
    result = (x.abs() < 2.0**-54).where(x, result)
    result = x.equals(-1.0).where(-math.inf, result)
    result = (x < math.inf).where(result, x)
    return (x < -1.0).where(math.nan, result)


@define("tanh", "double")
def tanh_f64(x: Num) -> Num:
    """Hyperbolic tangent: ``-u / (u + 2)`` with ``u = expm1(-2|x|)``."""
    magnitude = x.abs()
    p, n = _expm1_parts((magnitude * -2.0).at_least(-44.0))
    unit = power_of_two(n)
    u = p.fma(unit, unit - 1.0)
    result = (-u / (u + 2.0)).with_sign_of(x)
    return (magnitude < 2.0**-27).where(x, result)


def _half_exp(magnitude: Num) -> Num:
    """``exp(|x|) / 2``, which overflows only where sinh and cosh do."""
    p, n = exp_parts(magnitude.at_most(1000.0))
    return scale(p, n - 1.0)


@define("sinh", "double")
def sinh_f64(x: Num) -> Num:
    """Hyperbolic sine."""
    magnitude = x.abs()
    half = _half_exp(magnitude)
    p, n = _expm1_parts(magnitude.at_most(1.0))
    unit = power_of_two(n)
    u = p.fma(unit, unit - 1.0)
    small = (u + u / (u + 1.0)) * 0.5
    result = (magnitude < 1.0).where(small, half - 0.25 / half)
    return (magnitude < 2.0**-27).where(x, result.with_sign_of(x))


@define("cosh", "double")
def cosh_f64(x: Num) -> Num:
    """Hyperbolic cosine."""
    half = _half_exp(x.abs())
    return half + 0.25 / half


@define("asinh", "double", inline=False)
def asinh_f64(x: Num) -> Num:
    """Inverse hyperbolic sine."""
    a = x.abs()
    square = a * a
    small = log1p_f64(a + square / ((square + 1.0).sqrt() + 1.0))
    large = log_f64(a) + LN2_HIGH
    return (a > 2.0**28).where(large, small).with_sign_of(x)


@define("acosh", "double", inline=False)
def acosh_f64(x: Num) -> Num:
    """Inverse hyperbolic cosine; NaN below 1."""
    t = x - 1.0
    small = log1p_f64(t + (t * 2.0 + t * t).sqrt())
    result = (x > 2.0**28).where(log_f64(x) + LN2_HIGH, small)
    return (x < 1.0).where(math.nan, result)


@define("atanh", "double")
def atanh_f64(x: Num) -> Num:
    """Inverse hyperbolic tangent; infinite at ±1, NaN beyond."""
    a = x.abs()
    result = log1p_f64(a * 2.0 / (1.0 - a)) * 0.5
    return (a < 2.0**-28).where(x, result.with_sign_of(x))


@define("sigmoid", "double")
def sigmoid_f64(x: Num) -> Num:
    """``1 / (1 + exp(-x))``; for negative x as ``exp(x) / (1 + exp(x))``."""
    e = exp_f64(-x.abs())
    return (x < 0.0).where(e, e.like(1.0)) / (e + 1.0)


# --- error functions ---------------------------------------------------------------------------


def _erf_small(x: Num) -> Num:
    return x.fma((x * x).polynomial(tables.ERF_SMALL_F64), x)


def _erfc_large(a: Num) -> Num:
    """``erfc(a)`` for a ≥ 1/2."""
    a = a.at_most(28.0)
    t = (a - 4.0) / (a + 4.0)
    factor = t.polynomial(tables.ERFC_F64) / a.fma(2.0, 1.0)
    square, error = two_product(a, a)
    p, n = exp_parts(-square)
    return scale(p * (factor - factor * error), n)


@define("erf", "double", inline=False)
def erf_f64(x: Num) -> Num:
    """Error function."""
    a = x.abs()
    return (a < 1.0).where(_erf_small(x), (1.0 - _erfc_large(a)).with_sign_of(x))


@define("erfc", "double", inline=False)
def erfc_f64(x: Num) -> Num:
    """Complementary error function, accurate where it is tiny."""
    a = x.abs()
    tail = _erfc_large(a)
    tail = (x < 0.0).where(2.0 - tail, tail)
    return (a < 0.5).where(1.0 - _erf_small(x), tail)


# --- powers ------------------------------------------------------------------------------------


def _log_two_doubles(x: Num) -> tuple[Num, Num]:
    """``log(x)`` for 0 < x < inf as a sum of two floats, to about 2⁻⁶⁵."""
    f, k, _ = _split(x)
    u = f + 2.0
    u_lost = f - (u - 2.0)
    s = f / u
    s_low = (s.fma(-u, f) - s * u_lost) / u
    z, z_low = two_product(s, s)
    z_low = (s * 2.0).fma(s_low, z_low)
    cube, cube_low = two_product(s, z)
    cube_low = s.fma(z_low, z * s_low) + cube_low
    first, *rest = tables.LOG_F64
    third, third_low = two_product(cube, first)
    third_low = cube_low.fma(first, third_low)
    third_low = (cube * z).fma(z.polynomial(tuple(rest)), third_low)
    high, low = two_sum(s * 2.0, third)
    low = low + (s_low * 2.0 + third_low)
    k_high, k_error = two_product(k, LN2_HIGH)
    total, lost = two_sum(k_high, high)
    lost = k.equals(0.0).where(low, lost + (low + k.fma(LN2_LOW, k_error)))
    total = k.equals(0.0).where(high, total)
    return two_sum(total, lost)


def _signed_power(x: Num, y: Num, result: Num) -> Num:
    """C's rules: the sign of x to an odd y; NaN for a negative x to a fraction; 1s."""
    whole = y.intrinsic("llvm.trunc")
    half = y * 0.5
    is_odd = whole.equals(y) & half.intrinsic("llvm.trunc").differs(half)
    is_negative = (x < 0.0) | (x.equals(0.0) & (x.bits() < 0))
    result = (is_negative & is_odd).where(-result, result)
    fraction = whole.differs(y) & (y.abs() < math.inf)
    # An infinite base is no invalid operation.
    invalid = (x < 0.0) & (x > -math.inf) & fraction
    result = invalid.where(math.nan, result)
    result = (x.is_nan() | y.is_nan()).where(math.nan, result)
    return (y.equals(0.0) | x.equals(1.0)).where(1.0, result)


@define("pow", "double", inline=False)
def pow_f64(x: Num, y: Num) -> Num:
    """x to the y."""
    a = x.abs()
    high, low = _log_two_doubles(a)
    p, p_low = two_product(y, high)
    p_low = y.fma(low, p_low)
    finite = p.abs() < 2000.0
    p_low = finite.where(p_low, 0.0)
    clamped = p.at_most(1000.0).at_least(-1000.0)
    base, n = exp_parts(clamped)
    result = scale(base.fma(p_low, base), n)
    # log(0), log(inf) and an infinite y: the sign of y log a decides.
    grows = (y > 0.0).where(a > 1.0, a < 1.0)
    extreme = a.equals(0.0) | a.equals(math.inf) | y.abs().equals(math.inf)
    edge = a.equals(1.0).where(1.0, grows.where(result.like(math.inf), result.like(0.0)))
    return _signed_power(x, y, extreme.where(edge, result))


@define("pow", "float", inline=False)
def pow_f32(x: Num, y: Num) -> Num:
    """x to the y, through float64: one rounding of a value good to 1e-13."""
    wide, exponent = x.convert("fpext", "double"), y.convert("fpext", "double")
    product = exponent * log_f64(wide.abs())
    result = exp_f64(product)
    # (±1) to an infinite power is 1; the logarithm's 0 times infinity is not.
    result = wide.abs().equals(1.0).where(1.0, result)
    return _signed_power(wide, exponent, result).convert("fptrunc", "float")


# --- lgamma ------------------------------------------------------------------------------------


def _lgamma_centre(t: Num) -> Num:
    """``log gamma(2 + t)``, |t| ≤ 1."""
    return t * (t + 1.0) * t.polynomial(tables.LGAMMA_F64)


def _lgamma_positive(x: Num) -> Num:
    """``log gamma(x)`` for x > 0."""
    product = x.like(1.0)
    y = x.at_most(10.0)
    for _ in range(7):
        step = y >= 3.0
        y = step.where(y - 1.0, y)
        product = step.where(product * y, product)
    below = x < 1.0
    centre = _lgamma_centre(below.where(x - 1.0, y - 2.0))
    shift = log_f64(below.where(x, product))
    small = centre + below.where(-shift, shift)
    inverse = 1.0 / x
    z = inverse * inverse
    series = inverse * z.polynomial(STIRLING)
    log_x = log_f64(x)
    large = (x - 0.5) * (log_x - 1.0) + (series + HALF_LOG_2PI_LESS_HALF)
    return (x < 10.0).where(small, large)


STIRLING = (
    1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400,
)  # fmt: skip
HALF_LOG_2PI_LESS_HALF = 0.41893853320467274178
"""½ log 2π - ½: ``(x-½) log x - x + ½ log 2π = (x-½)(log x - 1) - ½ + ½ log 2π``."""


@define("lgamma", "double", inline=False)
def lgamma_f64(x: Num) -> Num:
    """Logarithm of |gamma(x)|; +inf at the poles 0, -1, -2, …"""
    from nestor.codegen.llvm.math_trig import sin_of_pi

    a = x.abs()
    positive = _lgamma_positive(a)
    # gamma(x) gamma(-x) = -π / (x sin πx)
    reflected = log_f64(math.pi / (a * sin_of_pi(a)).abs()) - positive
    result = (x < 0.0).where(reflected, positive)
    pole = (x <= 0.0) & x.intrinsic("llvm.trunc").equals(x)
    tiny = a < 1e-20
    result = tiny.where(-log_f64(a), result)
    result = (pole | a.equals(math.inf)).where(math.inf, result)
    return x.is_nan().where(x, result)
