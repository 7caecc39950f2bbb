"""Trigonometric functions on float32 and float64 vectors.

==============  ============  ============================================================
function        error [ULP]   method
==============  ============  ============================================================
sin, cos (f32)  ≤ 1.6         argument reduced in float64, polynomial in float32
sin, cos (f64)  ≤ 1.5         argument reduced to two floats, polynomial
tan (f64)       ≤ 3.0         sin / cos
asin, acos      ≤ 3.0         polynomial below 1/2, a square root above
atan, atan2     ≤ 3.0         reduced to |t| ≤ tan(π/8), polynomial
==============  ============  ============================================================

Up to 10⁹ the argument is reduced with π/2 in three floats; beyond, lane by lane, by a product with
the bits of 2/π that matter. Source: Payne and Hanek, SIGNUM Newsletter 18, 1983; Cody and Waite.
"""

from __future__ import annotations

import math

from nestor.codegen.llvm import math_tables as tables
from nestor.codegen.llvm.builder import FunctionBuilder
from nestor.codegen.llvm.math_f64 import round_to_int, two_product, two_sum
from nestor.codegen.llvm.mathlib import Num, define
from nestor.codegen.llvm.payne_hanek import NEEDS, function_text, table_text

TWO_OVER_PI = 0.6366197723675814
PIO2_1 = 1.5707963267948966
PIO2_2 = 6.123233995736766e-17
PIO2_3 = -1.4973849048591698e-33
REDUCTION_LIMIT = 1.0e9


def reduce_argument(x: Num) -> tuple[Num, Num, Num]:
    """``x = q π/2 + (r + c)``, |r| ≤ π/4: (r, c, q as i64). Infinities and NaN give NaN."""
    n, _ = round_to_int((x * TWO_OVER_PI).at_most(2.0**50).at_least(-(2.0**50)))
    first = n.fma(-PIO2_1, x)
    # ``first`` is exact: both operands are multiples of 2⁻⁵³ and it is less than 1.
    second, second_error = two_product(n, -PIO2_2)
    r = first + second
    # Knuth's sum: either may be the larger.
    part = r - first
    lost = (first - (r - part)) + (second - part)
    c = n.fma(-PIO2_3, lost + second_error)
    is_large = (x.abs() > REDUCTION_LIMIT) & (x.abs() < math.inf)
    r, c, n = _mend_large(x, is_large, r, c, n)
    r = (x.abs() < math.inf).where(r, math.nan)
    return r, c, round_to_int(n)[1]


def _mend_large(x: Num, is_large: Num, r: Num, c: Num, n: Num) -> tuple[Num, Num, Num]:
    """Replace the lanes with large arguments, one after the other; usually there is none."""
    fb: FunctionBuilder = x.fb
    fb.module.add_global("two_over_pi", table_text())
    for name, ty, args in NEEDS:
        fb.module.declare(name, ty, args)
    fb.module.add_helper("nestor.reduce", function_text(PIO2_1, PIO2_2))
    room = fb.alloca("[3 x double], align 16", "out")
    lanes = x.val.lanes
    any_large = fb.intrinsic_reduce("or", is_large.val) if lanes else is_large.val
    parts = [r.val, c.val, n.val]
    slow, after = fb.fresh("slow"), fb.fresh("fast")
    before = fb.label
    fb.line(f"br i1 {any_large.text}, label %{slow}, label %{after}")
    fb.start_block(slow)
    fb.push_scope()
    mended = list(parts)
    # The function is only for finite arguments above the limit.
    safe = is_large.where(x, x.like(2.0**40))
    for lane in range(max(1, lanes)):
        item = fb.extract(safe.val, lane)
        fb.line(f"call void @nestor.reduce(double {item.text}, ptr {room})")
        for position in range(3):
            at = fb.emit(f"getelementptr double, ptr {room}, i64 {position}", "ptr")
            value = fb.effect(f"load double, ptr {at.text}, align 8", "double")
            old = mended[position]
            if lanes:
                rhs = f"insertelement {old.full} {old.text}, double {value.text}, i64 {lane}"
                mended[position] = fb.emit(rhs, "double", lanes)
            else:
                mended[position] = value
    mended = [fb.select(is_large.val, new, old) for new, old in zip(mended, parts, strict=True)]
    fb.line(f"br label %{after}")
    fb.pop_scope()
    fb.start_block(after)
    out = []
    for old, new in zip(parts, mended, strict=True):
        rhs = f"phi {old.full} [ {old.text}, %{before} ], [ {new.text}, %{slow} ]"
        out.append(Num(fb, fb.effect(rhs, "double", lanes)))
    return out[0], out[1], out[2]


def _sin_cos(r: Num, c: Num) -> tuple[Num, Num]:
    """Sine and cosine of ``r + c``, |r| ≤ π/4, c its error."""
    z = r * r
    half = z * 0.5
    sine = r + (z * r).fma(z.polynomial(tables.SIN_F64), c * (1.0 - half))
    main = 1.0 - half
    rest = ((1.0 - main) - half) - r * c
    cosine = main + (z * z).fma(z.polynomial(tables.COS_F64), rest)
    return sine, cosine


def _pick(q: Num, sine: Num, cosine: Num) -> Num:
    """The sine of ``q π/2 + r``."""
    value = (q & 1).differs(0).where(cosine, sine)
    return (q & 2).differs(0).where(-value, value)


@define("sin", "double", inline=False)
def sin_f64(x: Num) -> Num:
    """Sine."""
    r, c, q = reduce_argument(x)
    result = _pick(q, *_sin_cos(r, c))
    return (x.abs() < 2.0**-27).where(x, result)


@define("cos", "double", inline=False)
def cos_f64(x: Num) -> Num:
    """Cosine."""
    r, c, q = reduce_argument(x)
    return _pick(q + 1, *_sin_cos(r, c))


@define("tan", "double", inline=False)
def tan_f64(x: Num) -> Num:
    """Tangent."""
    r, c, q = reduce_argument(x)
    sine, cosine = _sin_cos(r, c)
    is_odd = (q & 1).differs(0)
    result = is_odd.where(-cosine, sine) / is_odd.where(sine, cosine)
    return (x.abs() < 2.0**-27).where(x, result)


def _pick_f32(x: Num, shift: int) -> Num:
    """Sine of ``x + shift π/2`` in float32: the reduced argument is good to 2⁻⁵⁰ there."""
    r, _, q = reduce_argument(x.convert("fpext", "double"))
    t = r.convert("fptrunc", "float")
    turn = q.convert("trunc", "i32") + shift
    z = t * t
    sine = (z * t).fma(z.polynomial(tables.SIN_F32), t)
    cosine = (z * z).fma(z.polynomial(tables.COS_F32), z.fma(-0.5, 1.0))
    return _pick(turn, sine, cosine)


@define("sin", "float", inline=False)
def sin_f32(x: Num) -> Num:
    """Sine."""
    return x.equals(0.0).where(x, _pick_f32(x, 0))


@define("cos", "float", inline=False)
def cos_f32(x: Num) -> Num:
    """Cosine."""
    return _pick_f32(x, 1)


def sin_of_pi(a: Num) -> Num:
    """``sin(π a)`` for a ≥ 0, exact at integers."""
    n = (a * 2.0).intrinsic("llvm.roundeven")
    f = n.fma(-0.5, a)
    sine, cosine = _sin_cos(f * math.pi, f * 1.2246467991473532e-16)
    quarter = (n - (n * 0.25).intrinsic("llvm.floor") * 4.0).at_most(3.0)
    q = round_to_int(quarter)[1]
    return _pick(q, sine, cosine)


# --- inverse functions ---------------------------------------------------------------------------


def _atan_positive(a: Num) -> Num:
    """Arctangent of a ≥ 0 (infinity too)."""
    is_large = a > 2.414213562373095
    is_middle = a > 0.41421356237309503
    top = is_large.where(-1.0, is_middle.where(a - 1.0, a))
    bottom = is_large.where(a, is_middle.where(a + 1.0, a.like(1.0)))
    t = top / bottom
    z = t * t
    poly = (t * z) * z.polynomial(tables.ATAN_F64)
    base = is_large.where(t.like(PIO2_1), is_middle.where(t.like(PIO2_1 / 2), t.like(0.0)))
    low = is_large.where(t.like(PIO2_2), is_middle.where(t.like(PIO2_2 / 2), t.like(0.0)))
    total, lost = two_sum(base, t)
    return (a <= 0.41421356237309503).where(t + poly, total + (lost + (poly + low)))


@define("atan", "double")
def atan_f64(x: Num) -> Num:
    """Arctangent."""
    return _atan_positive(x.abs()).with_sign_of(x)


@define("atan2", "double", inline=False)
def atan2_f64(y: Num, x: Num) -> Num:
    """Angle of the point (x, y), by C's rules for zeros and infinities."""
    a, b = x.abs(), y.abs()
    is_steep = b > a
    top, bottom = is_steep.where(a, b), is_steep.where(b, a)
    ratio = top / bottom
    ratio = bottom.equals(0.0).where(0.0, ratio)
    ratio = top.equals(math.inf).where(1.0, ratio)
    t = _atan_positive(ratio)
    is_left = x.bits() < 0
    turned = (is_steep ^ is_left).where(-t, t)
    zero = t.like(0.0)
    base = is_steep.where(t.like(PIO2_1), is_left.where(t.like(2 * PIO2_1), zero))
    low = is_steep.where(t.like(PIO2_2), is_left.where(t.like(2 * PIO2_2), zero))
    result = (base + (turned + low)).with_sign_of(y)
    return (x.is_nan() | y.is_nan()).where(math.nan, result)


def _asin_tail(z: Num) -> Num:
    """``asin(t)/t - 1`` for z = t² ≤ 1/4."""
    return z * z.polynomial(tables.ASIN_F64)


@define("asin", "double", inline=False)
def asin_f64(x: Num) -> Num:
    """Arcsine; NaN beyond ±1."""
    a = x.abs()
    is_small = a < 0.5
    z = is_small.where(a * a, (1.0 - a) * 0.5)
    t = is_small.where(a, z.sqrt())
    value = t.fma(_asin_tail(z), t)
    large = PIO2_1 - (value * 2.0 - PIO2_2)
    return is_small.where(value, large).with_sign_of(x)


@define("acos", "double", inline=False)
def acos_f64(x: Num) -> Num:
    """Arccosine; NaN beyond ±1."""
    a = x.abs()
    is_small = a < 0.5
    z = is_small.where(a * a, (1.0 - a) * 0.5)
    t = is_small.where(x, z.sqrt())
    tail = _asin_tail(z)
    near = PIO2_1 - (t - (PIO2_2 - t * tail))
    twice = t.fma(tail, t) * 2.0
    far = (x < 0.0).where(2 * PIO2_1 - (twice - 2 * PIO2_2), twice)
    return is_small.where(near, far)
