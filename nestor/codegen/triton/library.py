"""Functions that Triton has no name for, as generated kernels call them.

Plain ``tl`` only: no library of the chip's vendor and no inline assembly, so that kernels run in
Triton's interpreter as well.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rsqrt(x):
    return 1.0 / tl.sqrt(x)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def expm1(x):
    # Near 0 as (u - 1) x / log(u) with u = exp(x), which cancels the error of u.
    # Source: Higham, Accuracy and Stability of Numerical Algorithms, 1.14.1.
    u = tl.exp(x)
    small = tl.where(u == 1.0, x, (u - 1.0) * x / tl.log(u))
    return tl.where(tl.abs(x) < 0.5, small, u - 1.0)


@triton.jit
def log1p(x):
    # As x log(u) / (u - 1) with u = 1 + x. Source: the same.
    u = 1.0 + x
    small = tl.where(u == 1.0, x, tl.log(u) * x / (u - 1.0))
    return tl.where(tl.abs(x) < 0.5, small, tl.log(u))


@triton.jit
def tanh(x):
    e = expm1(2.0 * tl.abs(x))
    y = tl.where(tl.abs(x) > 10.0, 1.0, e / (e + 2.0))
    return tl.where(x != x, x, tl.where(x < 0.0, -y, y))


@triton.jit
def trunc(x):
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def round(x):
    down = tl.floor(x)
    rest = x - down
    odd = down - 2.0 * tl.floor(down * 0.5)
    up = (rest > 0.5) | ((rest == 0.5) & (odd == 1.0))
    return tl.where(up, down + 1.0, down)


@triton.jit
def sign(x):
    return tl.where(x > 0, 1, tl.where(x < 0, -1, 0)).to(x.dtype)


@triton.jit
def isinf(x):
    return tl.abs(x) == float("inf")


@triton.jit
def copysign(x, y):
    bits = y.to(tl.int64 if y.dtype == tl.float64 else tl.int32, bitcast=True)
    return tl.where(bits < 0, tl.abs(x) * -1.0, tl.abs(x))  # Triton 3.6 makes 0 of -0


@triton.jit
def tan(x):
    return tl.sin(x) / tl.cos(x)


@triton.jit
def any_of(x):
    whole = x.to(tl.int32)
    return (tl.max(whole) if whole.type.is_block() else whole) != 0


@triton.jit
def rem(a, b):
    # C's fmod, exactly: each turn takes up to 51 bits off the quotient.
    size = tl.abs(b)
    valid = (tl.abs(a) < float("inf")) & (size > 0.0)
    rest = tl.where(valid, tl.abs(a), 0.0)
    more = valid & (rest >= size)
    while any_of(more):
        rest = tl.where(more, less_by_a_multiple(rest, size), rest)
        more = valid & (rest >= size)
    return tl.where(valid, copysign(rest, a), float("nan"))


@triton.jit
def less_by_a_multiple(r, size):
    # Of ``size`` scaled by a power of two; exact, since it takes at most 52 bits off.
    huge = 1.0715086071862673e301
    base = tl.where(r / size == float("inf"), size * huge, size)
    exponent = ((r / base).to(tl.int64, bitcast=True) >> 52) - (1023 + 51)
    steps = tl.maximum(exponent, 0)
    multiple = base * ((steps + 1023) << 52).to(tl.float64, bitcast=True)
    rest = tl.fma(trunc(r / multiple), -multiple, r)
    return tl.where(rest < 0.0, rest + multiple, rest)


@triton.jit
def report(failed, wrong):
    if any_of(wrong):
        tl.store(failed, 1)


@triton.jit
def bits(x):
    return x.to(tl.uint8, bitcast=True)


@triton.jit
def to_stored(pointer, x):
    return x.to(pointer.dtype.element_ty, bitcast=True)


@triton.jit
def from_e5m2(x):
    return (bits(x).to(tl.int16) << 8).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def from_e4m3(x):
    wide = bits(x).to(tl.int16)
    size = wide & 0x7F
    half = ((size << 7) | ((wide & 0x80) << 8)).to(tl.float16, bitcast=True)
    return tl.where(size == 0x7F, float("nan"), half.to(tl.float32) * 256.0)


@triton.jit
def to_e5m2(x):
    size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    found = rounded_to_byte(size, 21, (112 << 23) - (1 << 20) + 1, 128.0, 0x43000000, 0x38800000)
    found = tl.where(size >= 0x47700000, 0x7C, found)  # from 61440 on it is infinity
    return with_sign(x, tl.where(size > 0x7F800000, 0x7F, found))


@triton.jit
def to_e4m3(x):
    size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    found = rounded_to_byte(size, 20, (120 << 23) - (1 << 19) + 1, 16384.0, 0x46800000, 0x3C800000)
    found = tl.where(size > 0x43E80000, 0x7E, found)  # beyond 464 it stays at 448
    return with_sign(x, tl.where(size > 0x7F800000, 0x7F, found))


@triton.jit
def rounded_to_byte(size, cut, less, magic, magic_bits, least):
    # To nearest even; below the least normal number by adding one whose last bit is the byte's.
    normal = (size - less + ((size >> cut) & 1)) >> cut
    small = (size.to(tl.float32, bitcast=True) + magic).to(tl.int32, bitcast=True) - magic_bits
    return tl.where(size < least, small, normal)


@triton.jit
def with_sign(x, size):
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    return (size | sign).to(tl.uint8)


@triton.jit
def half_of(x, kind: tl.constexpr):
    return (from_e4m3(x) if kind == "e4m3" else from_e5m2(x)).to(tl.float16)


@triton.jit
def dot_of_bytes(a, b, state, kind: tl.constexpr, other: tl.constexpr):
    # Products of 8 bits where the chip has them, each tile's sum added in f32; else of f16, which
    # has all values of both types.
    if a.dtype.is_fp8() and b.dtype.is_fp8():
        return tl.dot(a, b, state, max_num_imprecise_acc=32, out_dtype=tl.float32)
    return tl.dot(half_of(a, kind), half_of(b, other), state, out_dtype=tl.float32)
