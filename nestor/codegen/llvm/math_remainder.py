"""Exact remainders of floats, and what is built on them: ``rem``, ``mod``, ``floordiv``.

``rem(a, b)`` is C's fmod. Each step subtracts a multiple of the divisor scaled by a power of two,
exactly, and takes 51 bits off the quotient, so that nearly all arguments need one step.
"""

from __future__ import annotations

import math

from nestor.codegen.llvm.builder import FunctionBuilder, Val
from nestor.codegen.llvm.mathlib import Num, call_math, define


@define("rem", "double", inline=False)
def rem_f64(a: Num, b: Num) -> Num:
    """``a - b trunc(a/b)``, exactly, with a's sign; NaN for b = 0 and infinite a."""
    fb: FunctionBuilder = a.fb
    lanes = a.val.lanes
    size = b.abs()
    valid = (a.abs() < math.inf) & (size > 0.0)
    start = valid.where(a.abs(), 0.0)
    head, latch, after = fb.fresh("step"), fb.fresh("again"), fb.fresh("done")
    before = fb.label
    fb.line(f"br label %{head}")
    fb.start_block(head)
    rest, following = Val(f"%{fb.fresh('rest')}", "double", lanes), f"%{fb.fresh('next')}"
    fb.line(
        f"{rest.text} = phi {start.val.full} [ {start.val.text}, %{before} ], "
        f"[ {following}, %{latch} ]"
    )
    fb.push_scope()
    r = Num(fb, rest)
    more = r >= size
    any_more = fb.intrinsic_reduce("or", more.val) if lanes else more.val
    fb.line(f"br i1 {any_more.text}, label %{latch}, label %{after}")
    fb.start_block(latch)
    fb.push_scope()
    new = more.where(_step(r, size), r)
    fb.line(f"{following} = select i1 true, {rest.full} {new.val.text}, {rest.full} {new.val.text}")
    fb.line(f"br label %{head}")
    fb.pop_scope()
    fb.pop_scope()
    fb.start_block(after)
    result = Num(fb, rest).with_sign_of(a)
    return (valid & size.equals(size)).where(result, math.nan)


def _step(r: Num, size: Num) -> Num:
    """``r`` less a multiple of ``size``, r ≥ size: exact, since it takes at most 52 bits off."""
    # A quotient beyond the type's range: start from a larger multiple of the divisor.
    far = (r / size).equals(math.inf)
    base = far.where(size * 2.0**1000, size)
    exponent = ((r / base).bits() >> 52) - (1023 + 51)
    steps = (exponent < 0).where(exponent.like(0), exponent)
    multiple = base * ((steps + 1023) << 52).as_float()
    rest = (r / multiple).intrinsic("llvm.trunc").fma(-multiple, r)
    return (rest < 0.0).where(rest + multiple, rest)


def _rem(a: Num, b: Num) -> Num:
    return Num(a.fb, call_math(a.fb, "rem", (a.val, b.val)))


def _mod(a: Num, b: Num) -> Num:
    rest = _rem(a, b)
    moved = rest.differs(0.0) & ((b < 0.0) ^ (rest < 0.0))
    return moved.where(rest + b, rest)


def _floordiv(a: Num, b: Num) -> Num:
    """Python's ``a // b``: from the exact remainder, so that it agrees with ``mod``."""
    rest = _rem(a, b)
    quotient = (a - rest) / b
    quotient = (rest.differs(0.0) & ((b < 0.0) ^ (rest < 0.0))).where(quotient - 1.0, quotient)
    low = quotient.intrinsic("llvm.floor")
    low = ((quotient - low) > 0.5).where(low + 1.0, low)
    ratio = a / b
    low = quotient.differs(0.0).where(low, low.like(0.0).with_sign_of(ratio))
    return b.equals(0.0).where(ratio, low)


for _ty in ("float", "double"):
    define("mod", _ty, inline=False)(_mod)
    define("floordiv", _ty, inline=False)(_floordiv)
