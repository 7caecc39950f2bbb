"""Enclosures: for every value, the set of results that the semantics allows.

A float enclosure is an interval and whether NaN, or a number, is possible; an integer or bool is
known or not. Arithmetic that the IR calls correctly rounded maps points to points, so most values
are compared bit by bit. What widens an enclosure is what ``nestor/ir/__init__.py`` leaves open:

* *contraction*: a product keeps, beside its rounded value, the unrounded one for a later sum;
* elementary functions: some units in the last place (``ULPS``);
* the order of a reduction: the classical bound ``n·u·Σ|x|`` (Higham, "Accuracy and Stability of
  Numerical Algorithms", 4.2), or nothing where all sums are exact on a common grid;
* the sign of a zero that decides between two infinities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nestor.ir import numeric
from nestor.ir.types import DType

Array = np.ndarray[Any, Any]
INF = np.inf

ULPS = {DType.f32: 4, DType.f64: 8}
"""Allowed error of an elementary function; the stated ones are smaller, with tests of their own."""

UNIT = {DType.f64: 2.0**-53, DType.f32: 2.0**-24, DType.f16: 2.0**-11, DType.bf16: 2.0**-8}
LEAST = {DType.f32: 2.0**-149, DType.f64: 2.0**-1074}
LARGEST = {DType.f32: float(np.finfo(np.float32).max), DType.f64: float(np.finfo(np.float64).max)}


@dataclass(slots=True)
class Enclosure:
    """Values of one type at many points.

    Attributes:
        lo, hi: floats: bounds of the numbers possible, float64. Others: the value, twice.
        nan: NaN is possible; num: a number is possible (floats).
        open: nothing is known (integers and bools).
        xlo, xhi: bounds of the value before its last rounding, where that was a product.
    """

    dtype: DType
    lo: Array
    hi: Array
    nan: Array
    num: Array
    open: Array
    xlo: Array
    xhi: Array

    @property
    def size(self) -> int:
        """How many points."""
        return int(self.lo.size)

    def fields(self) -> list[Array]:
        """All arrays."""
        return [self.lo, self.hi, self.nan, self.num, self.open, self.xlo, self.xhi]

    def take(self, where: Array) -> Enclosure:
        """The points at flat positions ``where``."""
        return Enclosure(self.dtype, *(f[where] for f in self.fields()))

    def put(self, where: Array, values: Enclosure) -> None:
        """Overwrite the points at flat positions ``where``."""
        for own, new in zip(self.fields(), values.fields(), strict=True):
            own[where] = new

    def copy(self) -> Enclosure:
        """An independent copy."""
        return Enclosure(self.dtype, *(f.copy() for f in self.fields()))

    @property
    def is_point(self) -> Array:
        """Where exactly one value is possible."""
        if not self.dtype.is_float:
            return np.logical_not(self.open)
        return np.where(self.num, (self.lo == self.hi) & ~self.nan, True)


def whole(dtype: DType, lo: Array, hi: Array, nan: Array | bool, num: Array | bool) -> Enclosure:
    """A float enclosure; bounds that came out NaN become open."""
    lo, hi = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    shape = lo.shape
    lo = np.where(np.isnan(lo), -INF, lo)
    hi = np.where(np.isnan(hi), INF, hi)
    nan = np.broadcast_to(np.asarray(nan, np.bool_), shape).copy()
    num = np.broadcast_to(np.asarray(num, np.bool_), shape).copy()
    # Where no number is possible the bounds mean nothing; zeros keep later arithmetic quiet.
    lo, hi = np.where(num, lo, 0.0), np.where(num, hi, 0.0)
    return Enclosure(dtype, lo, hi, nan, num, np.zeros(shape, np.bool_), lo.copy(), hi.copy())


def exactly(values: Array, dtype: DType) -> Enclosure:
    """The enclosure of known values (the interpreter's representation of ``dtype``)."""
    values = np.asarray(values).reshape(-1)
    if dtype.is_float:
        wide = values.astype(np.float64)
        return whole(dtype, wide, wide, np.isnan(wide), ~np.isnan(wide))
    return known(values, dtype, np.zeros(values.shape, np.bool_))


def known(values: Array, dtype: DType, is_open: Array) -> Enclosure:
    """Integers or bools, some of them unknown."""
    values = np.array(values, numeric.numpy_dtype(dtype))
    no, yes = np.zeros(values.shape, np.bool_), np.ones(values.shape, np.bool_)
    return Enclosure(dtype, values, values, no, yes, np.array(is_open, np.bool_), values, values)


def anything(dtype: DType, size: int) -> Enclosure:
    """No knowledge."""
    if not dtype.is_float:
        return known(np.zeros(size, numeric.numpy_dtype(dtype)), dtype, np.ones(size, np.bool_))
    return whole(dtype, np.full(size, -INF), np.full(size, INF), True, True)


def hull(a: Enclosure, b: Enclosure) -> Enclosure:
    """Everything that ``a`` or ``b`` allows."""
    if not a.dtype.is_float:
        return known(a.lo, a.dtype, a.open | b.open | (a.lo != b.lo))
    both = a.num & b.num
    out = whole(
        a.dtype,
        np.where(both, np.minimum(a.lo, b.lo), np.where(a.num, a.lo, b.lo)),
        np.where(both, np.maximum(a.hi, b.hi), np.where(a.num, a.hi, b.hi)),
        a.nan | b.nan,
        a.num | b.num,
    )
    out.xlo = np.where(both, np.minimum(a.xlo, b.xlo), np.where(a.num, a.xlo, b.xlo))
    out.xhi = np.where(both, np.maximum(a.xhi, b.xhi), np.where(a.num, a.xhi, b.xhi))
    return out


def where(condition: Enclosure, a: Enclosure, b: Enclosure) -> Enclosure:
    """``a if condition else b``."""
    yes, is_open = condition.lo.astype(np.bool_), condition.open
    either = hull(a, b)
    out = [
        np.where(is_open, e, np.where(yes, x, y))
        for e, x, y in zip(either.fields(), a.fields(), b.fields(), strict=True)
    ]
    return Enclosure(a.dtype, *out)


def round_to(values: Array, dtype: DType) -> Array:
    """Nearest values of ``dtype``, as float64 (monotone, so it maps bounds to bounds)."""
    if dtype is DType.f64:
        return np.asarray(values, np.float64)
    return np.asarray(numeric.cast(values, DType.f64, dtype), np.float64)


def widen(e: Enclosure, ulps: int) -> Enclosure:
    """Move the bounds outward by units in the last place of the type."""
    kind = np.float32 if e.dtype is DType.f32 else np.float64
    lo, hi = e.lo.astype(kind), e.hi.astype(kind)
    for _ in range(ulps):
        lo, hi = np.nextafter(lo, kind(-INF)), np.nextafter(hi, kind(INF))
    return whole(e.dtype, np.minimum(lo, e.lo), np.maximum(hi, e.hi), e.nan, e.num)


# ------------------------------------------------------------------------------------- unary

_INCREASING = {
    "exp": (-INF, INF), "exp2": (-INF, INF), "expm1": (-INF, INF), "log": (0.0, INF),
    "log2": (0.0, INF), "log1p": (-1.0, INF), "sqrt": (0.0, INF), "asin": (-1.0, 1.0),
    "atan": (-INF, INF), "sinh": (-INF, INF), "tanh": (-INF, INF), "asinh": (-INF, INF),
    "acosh": (1.0, INF), "atanh": (-1.0, 1.0), "erf": (-INF, INF), "sigmoid": (-INF, INF),
    "floor": (-INF, INF), "ceil": (-INF, INF), "trunc": (-INF, INF), "round": (-INF, INF),
}  # fmt: skip
_DECREASING = {"acos": (-1.0, 1.0), "erfc": (-INF, INF)}
_EXACT = {"sqrt", "floor", "ceil", "trunc", "round"}


def unary(op: str, x: Enclosure) -> Enclosure:
    """``op(x)``."""
    if not x.dtype.is_float:
        if op in ("isnan", "isinf"):
            return known(np.zeros(x.lo.shape, np.bool_), DType.bool, x.open & False)
        return known(numeric.unary(op, x.lo, x.dtype), x.dtype, x.open)
    if op == "neg":
        out = whole(x.dtype, -x.hi, -x.lo, x.nan, x.num)
        out.xlo, out.xhi = -x.xhi, -x.xlo
        return out
    if op == "abs":
        low = np.where((x.lo <= 0) & (x.hi >= 0), 0.0, np.minimum(np.abs(x.lo), np.abs(x.hi)))
        return whole(x.dtype, low, np.maximum(np.abs(x.lo), np.abs(x.hi)), x.nan, x.num)
    if op == "isnan":
        return known(x.nan, DType.bool, x.nan & x.num)
    if op == "isinf":
        surely = x.num & ((x.lo == INF) | (x.hi == -INF)) & ~x.nan
        never = ~x.num | (np.isfinite(x.lo) & np.isfinite(x.hi))
        return known(surely, DType.bool, ~surely & ~never)
    if op == "reciprocal":
        one = np.ones(x.size)
        return binary("div", whole(x.dtype, one, one, False, True), x)
    if op == "rsqrt":
        return _rsqrt(x)
    if op == "sign":  # of NaN it is 0
        lo = np.where(x.nan, np.minimum(np.sign(x.lo), 0), np.sign(x.lo))
        hi = np.where(x.nan, np.maximum(np.sign(x.hi), 0), np.sign(x.hi))
        return whole(x.dtype, np.where(x.num, lo, 0), np.where(x.num, hi, 0), False, True)
    if op in _INCREASING:
        return _monotone(op, x, _INCREASING[op], increasing=True)
    if op in _DECREASING:
        return _monotone(op, x, _DECREASING[op], increasing=False)
    return _other(op, x)


def _real(op: str, x: Array) -> Array:
    return np.asarray(numeric.unary(op, x, DType.f64))


def _monotone(op: str, x: Enclosure, domain: tuple[float, float], *, increasing: bool) -> Enclosure:
    low, high = domain
    outside = (x.lo < low) | (x.hi > high)
    inside = (x.hi >= low) & (x.lo <= high)
    a, b = _real(op, np.clip(x.lo, low, high)), _real(op, np.clip(x.hi, low, high))
    lo, hi = (a, b) if increasing else (b, a)
    exact = op in _EXACT
    out = whole(
        x.dtype,
        round_to(lo, x.dtype),
        round_to(hi, x.dtype),
        x.nan | (outside & x.num),
        x.num & inside,
    )
    return out if exact else widen(out, ULPS[x.dtype])


def _rsqrt(x: Enclosure) -> Enclosure:
    outside, inside = x.lo < 0, x.hi >= 0
    root_lo, root_hi = np.sqrt(np.maximum(x.lo, 0)), np.sqrt(np.maximum(x.hi, 0))
    lo, hi = 1 / round_to(root_hi, x.dtype), 1 / round_to(root_lo, x.dtype)
    lo = np.where(x.lo <= 0, np.where(x.hi == 0, -INF, np.where(x.lo == 0, -INF, lo)), lo)
    out = whole(
        x.dtype,
        round_to(lo, x.dtype),
        round_to(np.abs(hi), x.dtype),
        x.nan | (outside & x.num),
        x.num & inside,
    )
    return widen(out, 1)


def _other(op: str, x: Enclosure) -> Enclosure:
    point = x.lo == x.hi
    value = _real(op, x.lo)
    width = x.hi - x.lo
    lo = np.where(point, value, -INF)
    hi = np.where(point, value, INF)
    nan = x.nan | (x.num & point & np.isnan(value)) | ~point
    num = x.num & ~(point & np.isnan(value))
    if op in ("sin", "cos"):
        finite = np.isfinite(x.lo) & np.isfinite(x.hi)
        near = finite & (width < 1)
        lo = np.where(near, np.maximum(value - width, -1), -1.0)
        hi = np.where(near, np.minimum(value + width, 1), 1.0)
        nan = x.nan | (x.num & ~finite)
        num = x.num & ~(np.isinf(x.lo) & point)
    elif op == "lgamma":  # an absolute error is stated near its zeros
        lo, hi = lo - 2e-14, hi + 2e-14
    elif op == "cosh":
        mirrored = unary("abs", x)
        lo, hi = _real("cosh", mirrored.lo), _real("cosh", mirrored.hi)
        nan, num = x.nan, x.num
    return widen(
        whole(x.dtype, round_to(lo, x.dtype), round_to(hi, x.dtype), nan, num), ULPS[x.dtype]
    )


# ------------------------------------------------------------------------------------- binary

_COMPARE = {"eq", "ne", "lt", "le", "gt", "ge"}


def binary(op: str, a: Enclosure, b: Enclosure) -> Enclosure:
    """``a op b``."""
    if op in _COMPARE:
        return _compare(op, a, b)
    if not a.dtype.is_float:
        return known(numeric.binary(op, a.lo, b.lo), a.dtype, a.open | b.open)
    if op in ("add", "sub"):
        return add(a, b if op == "add" else unary("neg", b))
    if op == "mul":
        return _multiply(a, b)
    if op == "div":
        return _divide(a, b)
    if op in ("min", "max"):
        pick = np.minimum if op == "min" else np.maximum
        return whole(a.dtype, pick(a.lo, b.lo), pick(a.hi, b.hi), a.nan | b.nan, a.num & b.num)
    if op == "truncdiv":
        return unary("trunc", _divide(a, b))
    return _pointwise(op, a, b)


def _compare(op: str, a: Enclosure, b: Enclosure) -> Enclosure:
    if not a.dtype.is_float:
        return known(numeric.binary(op, a.lo, b.lo), DType.bool, a.open | b.open)
    if op in ("gt", "ge"):
        return _compare({"gt": "lt", "ge": "le"}[op], b, a)
    unordered = ~a.num | ~b.num
    sure = a.num & b.num & ~a.nan & ~b.nan
    if op == "lt":
        yes, no = a.hi < b.lo, a.lo >= b.hi
    elif op == "le":
        yes, no = a.hi <= b.lo, a.lo > b.hi
    else:
        yes = (a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo)
        no = (a.hi < b.lo) | (b.hi < a.lo)
    true, false = sure & yes, unordered | no
    is_open = ~true & ~false
    return known(false if op == "ne" else true, DType.bool, is_open)


def add(a: Enclosure, b: Enclosure) -> Enclosure:
    """``a + b``; products among the operands may enter unrounded."""
    dtype = a.dtype
    nan = a.nan | b.nan
    opposite = ((a.hi == INF) & (b.lo == -INF)) | ((a.lo == -INF) & (b.hi == INF))
    surely = ((a.lo == INF) & (b.hi == -INF)) | ((a.hi == -INF) & (b.lo == INF))
    num = a.num & b.num & ~surely
    lo, hi = round_to(a.lo + b.lo, dtype), round_to(a.hi + b.hi, dtype)
    fused = (a.xlo != a.lo) | (a.xhi != a.hi) | (b.xlo != b.lo) | (b.xhi != b.hi)
    if fused.any():
        low = np.minimum(a.lo, a.xlo) + np.minimum(b.lo, b.xlo)
        high = np.maximum(a.hi, a.xhi) + np.maximum(b.hi, b.xhi)
        low, high = np.nextafter(low, -INF), np.nextafter(high, INF)
        # A product that overflows when rounded may be finite when it is not.
        low = np.where(np.isnan(low), -INF, low)
        high = np.where(np.isnan(high), INF, high)
        lo = np.where(fused, np.fmin(lo, round_to(low, dtype)), lo)
        hi = np.where(fused, np.fmax(hi, round_to(high, dtype)), hi)
        num = num | (fused & a.num & b.num)
    return whole(dtype, lo, hi, nan | (opposite & a.num & b.num), num)


def _corners(f: Any, a: Enclosure, b: Enclosure) -> tuple[Array, Array, Array]:
    """Least and greatest value of ``f`` at the corners, and whether one of them is NaN."""
    values = [f(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    bad = np.logical_or.reduce([np.isnan(v) for v in values])
    return np.fmin.reduce(values), np.fmax.reduce(values), bad


def _contains_zero(e: Enclosure) -> Array:
    return np.asarray((e.lo <= 0) & (e.hi >= 0))


def _contains_inf(e: Enclosure) -> Array:
    return np.asarray(np.isinf(e.lo) | np.isinf(e.hi))


def _multiply(a: Enclosure, b: Enclosure) -> Enclosure:
    lo, hi, bad = _corners(np.multiply, a, b)
    maybe = (_contains_zero(a) & _contains_inf(b)) | (_contains_zero(b) & _contains_inf(a))
    points = (a.lo == a.hi) & (b.lo == b.hi)
    surely = points & bad
    lo, hi = np.where(bad | maybe, np.fmin(lo, 0), lo), np.where(bad | maybe, np.fmax(hi, 0), hi)
    num = a.num & b.num & ~surely
    out = whole(
        a.dtype,
        round_to(lo, a.dtype),
        round_to(hi, a.dtype),
        a.nan | b.nan | ((maybe | bad) & a.num & b.num),
        num,
    )
    if a.dtype is DType.f64:  # the product of two float32 is exact in float64, this one is not
        inexact = ~_is_exact_product(lo, a, b)
        lo = np.where(inexact, np.nextafter(lo, -INF), lo)
        hi = np.where(inexact, np.nextafter(hi, INF), hi)
    out.xlo, out.xhi = np.where(num, lo, 0.0), np.where(num, hi, 0.0)
    return out


def _is_exact_product(product: Array, a: Enclosure, b: Enclosure) -> Array:
    """True where both factors are known, with few significant bits, and nothing underflows."""
    points = (a.lo == a.hi) & (b.lo == b.hi)
    short = significant_bits(a.lo) + significant_bits(b.lo) <= 53
    size = np.abs(product)
    return np.asarray(
        points & short & ((size == 0) & ((a.lo == 0) | (b.lo == 0)) | (size > 1e-290))
    )


def significant_bits(x: Array) -> Array:
    """Bits between the first and the last 1 of a finite float64."""
    mantissa, _ = np.frexp(np.where(np.isfinite(x), x, 0.0))
    whole_bits = np.abs(mantissa * 2.0**53).astype(np.int64)
    lowest = whole_bits & -whole_bits
    trailing = np.where(lowest > 0, np.log2(np.maximum(lowest, 1)), 53).astype(np.int64)
    return np.asarray(53 - trailing)


def _divide(a: Enclosure, b: Enclosure) -> Enclosure:
    lo, hi, bad = _corners(np.divide, a, b)
    by_zero = _contains_zero(b)
    maybe = (_contains_zero(a) & by_zero) | (_contains_inf(a) & _contains_inf(b))
    points = (a.lo == a.hi) & (b.lo == b.hi)
    surely = points & bad
    vague = by_zero | (bad & ~points) | (maybe & ~points)
    lo, hi = np.where(vague, -INF, lo), np.where(vague, INF, hi)
    return whole(
        a.dtype,
        round_to(lo, a.dtype),
        round_to(hi, a.dtype),
        a.nan | b.nan | ((maybe | bad) & a.num & b.num),
        a.num & b.num & ~surely,
    )


def _pointwise(op: str, a: Enclosure, b: Enclosure) -> Enclosure:
    """Operations that are known at points only."""
    kind = numeric.numpy_dtype(a.dtype)
    points = (a.lo == a.hi) & (b.lo == b.hi)
    x, y = a.lo.astype(kind), b.lo.astype(kind)
    value = np.asarray(numeric.binary(op, x, y), np.float64)
    lo, hi = np.where(points, value, -INF), np.where(points, value, INF)
    is_nan = points & np.isnan(value)
    # The sign of a zero decides between infinities (pow, floordiv) or between -pi and pi (atan2).
    if op in ("pow", "atan2", "floordiv"):
        signed = points & ((a.lo == 0) | (b.lo == 0)) & ~is_nan & (value != 0)
        signed &= (op != "pow") | np.isinf(value)
        lo = np.where(signed, -np.abs(value), lo)
        hi = np.where(signed, np.abs(value), hi)
    nan = a.nan | b.nan | (a.num & b.num & (is_nan | ~points))
    out = whole(a.dtype, lo, hi, nan, a.num & b.num & ~is_nan)
    if op == "pow":  # pow(1, NaN) and pow(NaN, 0) are 1
        one = ((a.lo == 1) & (a.hi == 1) & a.num) | ((b.lo == 0) & (b.hi == 0) & b.num)
        vague = (a.nan | b.nan) & ((a.lo <= 1) & (a.hi >= 1) & a.num | _contains_zero(b) & b.num)
        unsure = hull(out, whole(a.dtype, np.ones(a.size), np.ones(a.size), False, True))
        out = _choose(vague | one, unsure, out)
    return widen(out, ULPS[a.dtype]) if op in ("pow", "atan2") else out


def _choose(condition: Array, a: Enclosure, b: Enclosure) -> Enclosure:
    no = np.zeros(condition.shape, np.bool_)
    return where(known(condition, DType.bool, no), a, b)


def fma(a: Enclosure, b: Enclosure, c: Enclosure) -> Enclosure:
    """``a*b + c`` with one rounding."""
    kind = numeric.numpy_dtype(a.dtype)
    product = _multiply(a, b)
    loose = add(product, c)
    points = a.is_point & b.is_point & c.is_point & a.num & b.num & c.num
    at = [np.where(points, e.lo, 0.0).astype(kind) for e in (a, b, c)]
    sharp = exactly(np.asarray(numeric.fma(*at, a.dtype)), a.dtype)
    return _choose(points, sharp, loose)


# ------------------------------------------------------------------------------------- casts


def cast(x: Enclosure, dtype: DType) -> Enclosure:
    """``x`` converted."""
    if x.dtype is dtype:
        return x
    if not x.dtype.is_float:
        return _cast_known(x, dtype)
    if dtype is DType.bool:
        zero = whole(x.dtype, np.zeros(x.size), np.zeros(x.size), False, True)
        return _compare("ne", x, zero)
    if dtype.is_float:
        return whole(dtype, round_to(x.lo, dtype), round_to(x.hi, dtype), x.nan, x.num)
    lo, hi = (np.asarray(numeric.cast(v, DType.f64, dtype)) for v in (x.lo, x.hi))
    wide = DType.i64 if dtype is DType.i64 else DType.i32
    same = numeric.cast(x.lo, DType.f64, wide) == numeric.cast(x.hi, DType.f64, wide)
    values = np.where(x.num, lo, 0)
    return known(values, dtype, (x.num & ~same) | (x.num & x.nan & (hi != 0)))


def _cast_known(x: Enclosure, dtype: DType) -> Enclosure:
    values = np.asarray(numeric.cast(x.lo, x.dtype, dtype))
    if not dtype.is_float:
        return known(values, dtype, x.open)
    out = exactly(values, dtype)
    limit = 1.0 if x.dtype is DType.bool else 2.0**x.dtype.bits
    out.lo = out.xlo = np.where(x.open, -limit, out.lo)
    out.hi = out.xhi = np.where(x.open, limit, out.hi)
    return out
