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
    return tl.where(bits < 0, -tl.abs(x), tl.abs(x))


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
