"""Reduce one large argument modulo π/2, with as many bits of 2/π as its exponent asks for.

Source: Payne and Hanek, "Radian reduction for trigonometric functions", SIGNUM Newsletter 18, 1983.
"""

from __future__ import annotations

from nestor.codegen.llvm.builder import float_text

WORDS = 24
NEEDS = (
    ("llvm.fshl.i64", "i64", "i64, i64, i64"),
    ("llvm.ctlz.i128", "i128", "i128, i1"),
    ("llvm.fma.f64", "double", "double, double, double"),
)
"""Intrinsics that the function calls: (name, result, arguments)."""


def two_over_pi_words(count: int) -> tuple[int, ...]:
    """The first ``count`` 64-bit words of 2/π after the binary point."""
    bits = 64 * count
    # π = 16 atan(1/5) - 4 atan(1/239) (Machin), in integers with guard bits.
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


def table_text() -> str:
    """The global ``@two_over_pi``: a zero word, then the words of 2/π."""
    words = ", ".join(f"i64 {w}" for w in (0, *two_over_pi_words(WORDS - 1)))
    return f"@two_over_pi = internal unnamed_addr constant [{WORDS} x i64] [{words}], align 64"


def function_text(half_pi: float, half_pi_low: float) -> str:
    """``void @nestor.reduce(double x, ptr out)`` for 2³⁰ ≤ |x| < ∞.

    Stores r, its error c and the quadrant q as doubles: x = q π/2 + (r + c). With x = m 2ᵉ (m of 53
    bits, e ≥ -62), four words of 2/π from word i = (e + 62)/64 on suffice: words before give
    multiples of 4, words after less than 2⁻⁶⁴ of an ULP.
    """
    return "\n".join(
        [
            "define internal void @nestor.reduce(double %x, ptr %out) noinline nounwind {",
            "entry:",
            *_product_text(),
            *_fraction_text(),
            *_result_text(float_text(half_pi, "double"), float_text(half_pi_low, "double")),
            "  ret void",
            "}",
        ]
    )


def _product_text() -> list[str]:
    """Words d0 (highest) … d3 of m times four words of 2/π, modulo 2²⁵⁶."""
    lines = [
        "  %bits = bitcast double %x to i64",
        "  %exp = lshr i64 %bits, 52",
        "  %exp.field = and i64 %exp, 2047",
        "  %e = sub i64 %exp.field, 1075",
        "  %frac = and i64 %bits, 4503599627370495",
        "  %m = or i64 %frac, 4503599627370496",
        "  %e62 = add i64 %e, 62",
        "  %i = lshr i64 %e62, 6",
        "  %m.wide = zext i64 %m to i128",
    ]
    for w in range(4):
        lines += [
            f"  %at{w} = add i64 %i, {w}",
            f"  %p{w}.at = getelementptr i64, ptr @two_over_pi, i64 %at{w}",
            f"  %w{w} = load i64, ptr %p{w}.at, align 8",
            f"  %w{w}.wide = zext i64 %w{w} to i128",
            f"  %prod{w} = mul i128 %m.wide, %w{w}.wide",
        ]
    lines.append("  %d3 = trunc i128 %prod3 to i64")
    carry = "%prod3"
    for w in (2, 1, 0):
        lines += [
            f"  %c{w} = lshr i128 {carry}, 64",
            f"  %s{w} = add i128 %prod{w}, %c{w}",
            f"  %d{w} = trunc i128 %s{w} to i64",
        ]
        carry = f"%s{w}"
    return lines


def _fraction_text() -> list[str]:
    """The quadrant q1, and the distance from it as a magnitude below one half times 2¹²⁸.

    The binary point stands at bit s = 64 (i + 3) - e; it is shifted to just below the top two bits.
    A fraction of a half or more belongs to the next quadrant, as a negative rest.
    """
    return [
        "  %i3 = add i64 %i, 3",
        "  %i64 = shl i64 %i3, 6",
        "  %s = sub i64 %i64, %e",
        "  %sh = sub i64 254, %s",
        "  %f0 = call i64 @llvm.fshl.i64(i64 %d0, i64 %d1, i64 %sh)",
        "  %f1 = call i64 @llvm.fshl.i64(i64 %d1, i64 %d2, i64 %sh)",
        "  %f2 = call i64 @llvm.fshl.i64(i64 %d2, i64 %d3, i64 %sh)",
        "  %q0 = lshr i64 %f0, 62",
        "  %g0 = call i64 @llvm.fshl.i64(i64 %f0, i64 %f1, i64 2)",
        "  %g1 = call i64 @llvm.fshl.i64(i64 %f1, i64 %f2, i64 2)",
        "  %half = icmp slt i64 %g0, 0",
        "  %half.int = zext i1 %half to i64",
        "  %q1 = add i64 %q0, %half.int",
        "  %g0.wide = zext i64 %g0 to i128",
        "  %g0.up = shl i128 %g0.wide, 64",
        "  %g1.wide = zext i64 %g1 to i128",
        "  %g = or i128 %g0.up, %g1.wide",
        "  %g.minus = sub i128 0, %g",
        "  %mag = select i1 %half, i128 %g.minus, i128 %g",
    ]


def _result_text(high: str, low: str) -> list[str]:
    """The magnitude times π/2, in two doubles: (top + rest 2⁻⁵³) 2^(-53 - lz), lz leading zeros."""
    lines = [
        "  %lz = call i128 @llvm.ctlz.i128(i128 %mag, i1 false)",
        "  %norm = shl i128 %mag, %lz",
        "  %top.wide = lshr i128 %norm, 75",
        "  %top = trunc i128 %top.wide to i64",
        "  %rest.wide = lshr i128 %norm, 22",
        "  %rest.cut = trunc i128 %rest.wide to i64",
        "  %rest = and i64 %rest.cut, 9007199254740991",
        "  %lz64 = trunc i128 %lz to i64",
        "  %exponent = sub i64 970, %lz64",
        "  %unit.bits = shl i64 %exponent, 52",
        "  %unit = bitcast i64 %unit.bits to double",
        "  %top.float = uitofp i64 %top to double",
        "  %rest.float = uitofp i64 %rest to double",
        "  %rest.down = fmul double %rest.float, 0x3CA0000000000000",
        "  %a = fmul double %top.float, %unit",
        "  %b = fmul double %rest.down, %unit",
        f"  %r = fmul double %a, {high}",
        "  %r.minus = fneg double %r",
        f"  %t0 = call double @llvm.fma.f64(double %a, double {high}, double %r.minus)",
        f"  %t1 = call double @llvm.fma.f64(double %a, double {low}, double %t0)",
        f"  %c = call double @llvm.fma.f64(double %b, double {high}, double %t1)",
        "  %negative = icmp slt i64 %bits, 0",
        "  %flip = xor i1 %negative, %half",
        "  %c.minus = fneg double %c",
        "  %r.out = select i1 %flip, double %r.minus, double %r",
        "  %c.out = select i1 %flip, double %c.minus, double %c",
        "  %q1.minus = sub i64 0, %q1",
        "  %q = select i1 %negative, i64 %q1.minus, i64 %q1",
        "  %q.float = sitofp i64 %q to double",
    ]
    for position, name in enumerate(("%r.out", "%c.out", "%q.float")):
        lines.append(f"  %out{position} = getelementptr double, ptr %out, i64 {position}")
        lines.append(f"  store double {name}, ptr %out{position}, align 8")
    return lines
