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

import functools
import math

from nestor.codegen.llvm import math_tables as tables
from nestor.codegen.llvm.builder import FunctionBuilder, float_text
from nestor.codegen.llvm.math_f64 import round_to_int, two_product, two_sum
from nestor.codegen.llvm.mathlib import Num, define

TWO_OVER_PI = 0.6366197723675814
PIO2_1 = 1.5707963267948966
PIO2_2 = 6.123233995736766e-17
PIO2_3 = -1.4973849048591698e-33
REDUCTION_LIMIT = 1.0e9


def two_over_pi_words(count: int) -> tuple[int, ...]:
    """The first ``count`` 64-bit words of 2/π after the binary point, from π's digits."""
    bits = 64 * count
    # π = 16 atan(1/5) - 4 atan(1/239) (Machin) with guard bits, in integers.
    precision = bits + 64

    def arctan_inverse(n: int) -> int:
        total = term = (1 << precision) // n
        k, sign = 3, -1
        while term:
            term //= n * n
            total += sign * (term // k)
            k, sign = k + 2, -sign
        return total

    pi = 16 * arctan_inverse(5) - 4 * arctan_inverse(239)
    value = (2 << (2 * precision)) // pi >> (precision - bits)
    return tuple((value >> (64 * (count - 1 - i))) & ((1 << 64) - 1) for i in range(count))


@functools.cache
def _large_reduction() -> tuple[str, str]:
    """The table of 2/π, and a function that reduces one large finite argument.

    ``void(double x, ptr out)`` stores r, its error, and the quadrant as doubles: x = q π/2 + r.
    With x = m 2ᵉ (m of 53 bits, e ≥ -62) four words of 2/π from word i = (e+62)/64 on suffice (word
    0 is zero): words before give multiples of 4, words after less than 2⁻⁶⁴ of an ULP.
    """
    words = ", ".join(f"i64 {w}" for w in (0, *two_over_pi_words(23)))
    table = f"@two_over_pi = internal unnamed_addr constant [24 x i64] [{words}], align 64"
    lines = [
        "define internal void @nestor.reduce(double %x, ptr %out) noinline nounwind {",
        "entry:",
    ]
    add = lines.append
    add("  %bits = bitcast double %x to i64")
    add("  %exp = lshr i64 %bits, 52")
    add("  %exp.field = and i64 %exp, 2047")
    add("  %e = sub i64 %exp.field, 1075")
    add("  %frac = and i64 %bits, 4503599627370495")
    add("  %m = or i64 %frac, 4503599627370496")
    add("  %e62 = add i64 %e, 62")
    add("  %i = lshr i64 %e62, 6")
    add("  %m.wide = zext i64 %m to i128")
    for w in range(4):
        add(f"  %at{w} = add i64 %i, {w}")
        add(f"  %p{w}.at = getelementptr i64, ptr @two_over_pi, i64 %at{w}")
        add(f"  %w{w} = load i64, ptr %p{w}.at, align 8")
        add(f"  %w{w}.wide = zext i64 %w{w} to i128")
        add(f"  %prod{w} = mul i128 %m.wide, %w{w}.wide")
    # Words of the product from the lowest (d3) up, with carries.
    add("  %d3 = trunc i128 %prod3 to i64")
    carry = "%prod3"
    for w in (2, 1, 0):
        add(f"  %c{w} = lshr i128 {carry}, 64")
        add(f"  %s{w} = add i128 %prod{w}, %c{w}")
        add(f"  %d{w} = trunc i128 %s{w} to i64")
        carry = f"%s{w}"
    # The binary point stands at bit s = 64 (i+3) - e; shift it to just below the top two bits.
    add("  %i3 = add i64 %i, 3")
    add("  %i64 = shl i64 %i3, 6")
    add("  %s = sub i64 %i64, %e")
    add("  %sh = sub i64 254, %s")
    add("  %f0 = call i64 @llvm.fshl.i64(i64 %d0, i64 %d1, i64 %sh)")
    add("  %f1 = call i64 @llvm.fshl.i64(i64 %d1, i64 %d2, i64 %sh)")
    add("  %f2 = call i64 @llvm.fshl.i64(i64 %d2, i64 %d3, i64 %sh)")
    add("  %q0 = lshr i64 %f0, 62")
    add("  %g0 = call i64 @llvm.fshl.i64(i64 %f0, i64 %f1, i64 2)")
    add("  %g1 = call i64 @llvm.fshl.i64(i64 %f1, i64 %f2, i64 2)")
    # A fraction of a half or more belongs to the next quadrant, as a negative rest.
    add("  %half = icmp slt i64 %g0, 0")
    add("  %half.int = zext i1 %half to i64")
    add("  %q1 = add i64 %q0, %half.int")
    add("  %g0.wide = zext i64 %g0 to i128")
    add("  %g0.up = shl i128 %g0.wide, 64")
    add("  %g1.wide = zext i64 %g1 to i128")
    add("  %g = or i128 %g0.up, %g1.wide")
    add("  %g.minus = sub i128 0, %g")
    add("  %mag = select i1 %half, i128 %g.minus, i128 %g")
    add("  %lz = call i128 @llvm.ctlz.i128(i128 %mag, i1 false)")
    add("  %norm = shl i128 %mag, %lz")
    add("  %top.wide = lshr i128 %norm, 75")
    add("  %top = trunc i128 %top.wide to i64")
    add("  %rest.wide = lshr i128 %norm, 22")
    add("  %rest.cut = trunc i128 %rest.wide to i64")
    add("  %rest = and i64 %rest.cut, 9007199254740991")
    add("  %lz64 = trunc i128 %lz to i64")
    # value = (top + rest 2⁻⁵³) 2^(-53 - lz)
    add("  %exponent = sub i64 970, %lz64")
    add("  %unit.bits = shl i64 %exponent, 52")
    add("  %unit = bitcast i64 %unit.bits to double")
    add("  %top.float = uitofp i64 %top to double")
    add("  %rest.float = uitofp i64 %rest to double")
    add("  %rest.down = fmul double %rest.float, 0x3CA0000000000000")
    add("  %a = fmul double %top.float, %unit")
    add("  %b = fmul double %rest.down, %unit")
    high, low = _hex(PIO2_1), _hex(PIO2_2)
    add(f"  %r = fmul double %a, {high}")
    add("  %r.minus = fneg double %r")
    add(f"  %t0 = call double @llvm.fma.f64(double %a, double {high}, double %r.minus)")
    add(f"  %t1 = call double @llvm.fma.f64(double %a, double {low}, double %t0)")
    add(f"  %c = call double @llvm.fma.f64(double %b, double {high}, double %t1)")
    add("  %negative = icmp slt i64 %bits, 0")
    add("  %flip = xor i1 %negative, %half")
    add("  %c.minus = fneg double %c")
    add("  %r.out = select i1 %flip, double %r.minus, double %r")
    add("  %c.out = select i1 %flip, double %c.minus, double %c")
    add("  %q1.minus = sub i64 0, %q1")
    add("  %q = select i1 %negative, i64 %q1.minus, i64 %q1")
    add("  %q.float = sitofp i64 %q to double")
    for position, name in enumerate(("%r.out", "%c.out", "%q.float")):
        add(f"  %out{position} = getelementptr double, ptr %out, i64 {position}")
        add(f"  store double {name}, ptr %out{position}, align 8")
    add("  ret void")
    add("}")
    return table, "\n".join(lines)


def _hex(value: float) -> str:
    return float_text(value, "double")


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
    table, function = _large_reduction()
    fb.module.add_global("two_over_pi", table)
    for name, ty, args in (
        ("llvm.fshl.i64", "i64", "i64, i64, i64"),
        ("llvm.ctlz.i128", "i128", "i128, i1"),
        ("llvm.fma.f64", "double", "double, double, double"),
    ):
        fb.module.declare(name, ty, args)
    fb.module.add_helper("nestor.reduce", function)
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
