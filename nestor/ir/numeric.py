"""Scalar semantics on NumPy values: the meaning of every operation, in code.

Each function takes NumPy arrays or NumPy scalars of the operand's storage type and returns one of
the result's type; nothing here broadcasts beyond what NumPy does. Values of types that NumPy lacks
live in ``float32`` arrays (``narrow_floats``). Call inside ``quiet()``: overflow, division by zero
and invalid operations are defined, so NumPy's warnings are off.

Functions that real arithmetic defines (``exp``, ``tanh``, …) are evaluated in double precision and
rounded once, so the interpreter is (nearly always) the correctly rounded float32 result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from nestor.errors import IRError
from nestor.ir import narrow_floats
from nestor.ir.types import DType

Value = Any
"""A NumPy array or a NumPy scalar."""

NUMPY_DTYPE: dict[DType, np.dtype[Any]] = {
    DType.f64: np.dtype(np.float64),
    DType.f32: np.dtype(np.float32),
    DType.f16: np.dtype(np.float16),
    **dict.fromkeys(narrow_floats.MEMORY, np.dtype(np.float32)),
    DType.i64: np.dtype(np.int64),
    DType.i32: np.dtype(np.int32),
    DType.i16: np.dtype(np.int16),
    DType.i8: np.dtype(np.int8),
    DType.u8: np.dtype(np.uint8),
    DType.bool: np.dtype(np.bool_),
}


def quiet() -> np.errstate:
    """A context in which NumPy reports no floating-point or overflow condition."""
    return np.errstate(all="ignore")


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy type that holds ``dtype`` in the interpreter; see ``narrow_floats``."""
    return NUMPY_DTYPE[dtype]


def constant(value: float | int | bool, dtype: DType) -> Value:
    """The NumPy scalar of a literal."""
    if dtype.is_int:
        return np.array(_wrap_python_int(int(value), dtype), dtype=NUMPY_DTYPE[dtype])[()]
    if dtype is DType.bool:
        return np.bool_(value)
    with quiet():
        return cast(np.float64(value), DType.f64, dtype)


def _wrap_python_int(value: int, dtype: DType) -> int:
    value &= (1 << dtype.bits) - 1
    if dtype.is_signed and value >> (dtype.bits - 1):
        value -= 1 << dtype.bits
    return value


def garbage(shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """An array of what undefined storage holds here: NaN, bytes 0xAB, or True."""
    if dtype.is_float:
        return np.full(shape, np.nan, NUMPY_DTYPE[dtype])
    if dtype is DType.bool:
        return np.ones(shape, np.bool_)
    out = np.empty(shape, NUMPY_DTYPE[dtype])
    out.reshape(-1).view(np.uint8)[...] = 0xAB
    return out


# ------------------------------------------------------------------------------------- casts


def cast(x: Value, source: DType, target: DType) -> Value:
    """Convert ``x`` of type ``source`` to ``target``."""
    if source is target:
        return x
    if target is DType.bool:
        return x != NUMPY_DTYPE[source].type(0)
    if target.is_storage_only:
        single = np.asarray(x).astype(np.float32)
        if target is DType.f16:
            return single.astype(np.float16)[()]
        return narrow_floats.round_to(single, target)
    if target.is_float or not source.is_float:
        return np.asarray(x).astype(NUMPY_DTYPE[target])[()]
    if target in (DType.i64, DType.i32):
        return _saturate(x, target)
    return _saturate(x, DType.i32).astype(NUMPY_DTYPE[target])


def _saturate(x: Value, target: DType) -> Value:
    """Truncate towards zero; out of range gives the nearest bound, NaN gives 0."""
    x = np.trunc(np.asarray(x, dtype=np.float64))
    low, high = -(2 ** (target.bits - 1)), 2 ** (target.bits - 1)
    inside = (x >= low) & (x < high)
    out = np.where(inside, x, 0.0).astype(NUMPY_DTYPE[target])
    out = np.where(x >= high, NUMPY_DTYPE[target].type(high - 1), out)
    return np.where(x < low, NUMPY_DTYPE[target].type(low), out)[()]


# ------------------------------------------------------------------------------------- unary


def _elementwise(f: Callable[[float], float]) -> Callable[[Value], Value]:
    """A double function of Python's ``math`` on arrays."""

    def apply(x: Value) -> Value:
        x = np.asarray(x, dtype=np.float64)
        flat = np.fromiter(map(f, x.ravel().tolist()), np.float64, count=x.size)
        return flat.reshape(x.shape)[()]

    return apply


def _lgamma(x: float) -> float:
    if math.isinf(x) or (x <= 0 and x == math.floor(x)):
        return math.inf
    try:
        return math.lgamma(x)
    except OverflowError:  # near the largest numbers, where Python raises what C calls infinity
        return math.inf


_THROUGH_DOUBLE: dict[str, Callable[[Value], Value]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": _elementwise(math.erf),
    "erfc": _elementwise(math.erfc),
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "lgamma": _elementwise(_lgamma),
}
_NATIVE: dict[str, Callable[[Value], Value]] = {
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "neg": np.negative,
    "abs": np.abs,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "not": np.invert,
}


def unary(op: str, x: Value, dtype: DType) -> Value:
    """``op(x)`` for an operand of type ``dtype``."""
    native = _NATIVE.get(op)
    if native is not None:
        return native(x)
    real = _THROUGH_DOUBLE.get(op)
    if real is not None:
        out = real(np.float64(x) if np.ndim(x) == 0 else x.astype(np.float64))
        return np.asarray(out).astype(NUMPY_DTYPE[dtype])[()]
    if op == "reciprocal":
        return NUMPY_DTYPE[dtype].type(1) / x
    if op == "sign":
        zero = NUMPY_DTYPE[dtype].type(0)
        kind = NUMPY_DTYPE[dtype]
        return np.subtract((x > zero).astype(kind), (x < zero).astype(kind))
    raise IRError(f"no unary operation is called {op!r}")


# ------------------------------------------------------------------------------------- binary


def _floordiv(a: Value, b: Value) -> Value:
    if a.dtype.kind != "f":
        return np.floor_divide(a, b)
    rest = np.fmod(a, b)
    quotient = (a - rest) / b
    quotient = np.where((rest != 0) & ((b < 0) != (rest < 0)), quotient - 1, quotient)
    low = np.floor(quotient)
    low = np.where(quotient - low > 0.5, low + 1, low)
    low = np.where(quotient != 0, low, np.copysign(0, a / b))
    return np.where(b == 0, a / b, low).astype(a.dtype)[()]


def _truncdiv(a: Value, b: Value) -> Value:
    if a.dtype.kind == "f":
        return np.trunc(a / b)
    low = np.floor_divide(a, b)
    rest = a - low * b
    up = (b != 0) & (rest != 0) & ((a < 0) != (b < 0))
    return low + up.astype(a.dtype)


def _mod(a: Value, b: Value) -> Value:
    if a.dtype.kind != "f":
        return np.remainder(a, b)
    rest = np.fmod(a, b)
    return np.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest).astype(a.dtype)[()]


def _pow(a: Value, b: Value) -> Value:
    if a.dtype.kind == "f":
        # For one exponent 0.5 NumPy takes roots, which gives NaN for -inf: so give it an array.
        a64, b64 = (np.array(x, np.float64) for x in np.broadcast_arrays(a, b))
        wide = np.power(np.atleast_1d(a64), np.atleast_1d(b64))
        return wide.reshape(a64.shape).astype(a.dtype)[()]
    return _integer_pow(a, b)


def _integer_pow(a: Value, b: Value) -> Value:
    """Wrapping power by squaring; a negative exponent gives 0, but ±1 for a base of ±1."""
    a, b = np.broadcast_arrays(a, b)
    kind = a.dtype
    out, square = np.ones(a.shape, kind), a.copy()
    bits = np.maximum(b, kind.type(0))
    while np.any(bits > 0):
        out = np.where(bits & 1, out * square, out).astype(kind)
        square = square * square
        bits = bits >> 1
    if kind.kind == "i":
        odd = (b & 1) == 1
        inverse = np.where(a == 1, 1, np.where(a == -1, np.where(odd, -1, 1), 0)).astype(kind)
        out = np.where(b < 0, inverse, out)
    return out[()]


def _atan2(a: Value, b: Value) -> Value:
    return np.asarray(np.arctan2(np.float64(a), np.float64(b))).astype(a.dtype)[()]


_BINARY: dict[str, Callable[[Value, Value], Value]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floordiv": _floordiv,
    "truncdiv": _truncdiv,
    "mod": _mod,
    "rem": np.fmod,
    "min": np.minimum,
    "max": np.maximum,
    "pow": _pow,
    "atan2": _atan2,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def binary(op: str, a: Value, b: Value) -> Value:
    """``a op b`` on operands of equal type."""
    f = _BINARY.get(op)
    if f is None:
        raise IRError(f"no binary operation is called {op!r}")
    return f(a, b)


# ------------------------------------------------------------------------------------- calls

_PHILOX_M = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_PHILOX_W = (0x9E3779B9, 0xBB67AE85)
_LOW32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(counter: tuple[Value, ...], key: tuple[Value, Value]) -> tuple[Value, ...]:
    """Ten rounds of Philox on four 32-bit counter words and two key words, all held in uint64.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _PHILOX_M[0] * c0, _PHILOX_M[1] * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW32, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW32
        k0 = (k0 + np.uint64(_PHILOX_W[0])) & _LOW32
        k1 = (k1 + np.uint64(_PHILOX_W[1])) & _LOW32
    return c0, c1, c2, c3


def random_uniform(seed: Value, offset: Value, index: Value, dtype: DType) -> Value:
    """Uniform numbers in [0, 1): a pure function of three int64 values.

    The key is ``seed`` (low word first), the counter is (index low, index high, offset low, offset
    high). A float32 is the top 24 bits of word 0 times 2⁻²⁴; a float64 the top 53 bits of
    ``word0·2³² + word1`` times 2⁻⁵³.
    """
    words = []
    for value in (index, offset, seed):
        bits = np.asarray(value, np.int64).astype(np.uint64)
        words += [bits & _LOW32, bits >> _32]
    c0, c1, _, _ = philox4x32(tuple(words[:4]), (words[4], words[5]))
    if dtype is DType.f32:
        return ((c0 >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24))[()]
    wide = ((c0 << _32) | c1) >> np.uint64(11)
    return (wide.astype(np.float64) * 2.0**-53)[()]


def fma(a: Value, b: Value, c: Value, dtype: DType) -> Value:
    """``a*b + c`` with one rounding."""
    if dtype is DType.f32:
        return _fma_single(a, b, c)
    a, b, c = np.broadcast_arrays(np.float64(a), np.float64(b), np.float64(c))
    triples = zip(a.ravel().tolist(), b.ravel().tolist(), c.ravel().tolist(), strict=True)
    out = np.fromiter((_fma_double(*t) for t in triples), np.float64, count=a.size)
    return out.reshape(a.shape)[()]


def _fma_single(a: Value, b: Value, c: Value) -> Value:
    """The product is exact in double; the sum is rounded to odd, so rounding again is exact."""
    product, c = np.float64(a) * np.float64(b), np.float64(c)
    total = np.asarray(product + c)
    back = total - product
    error = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
    away = (error > 0) == (total > 0)
    odd = np.where(inexact, bits + np.where(away, 1, -1), bits)
    return odd.astype(np.int64).view(np.float64).astype(np.float32)[()]


def _fma_double(a: float, b: float, c: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c
    try:
        return float(exact)
    except OverflowError:
        return math.copysign(math.inf, exact)


CALLS: dict[str, tuple[tuple[str, ...], Callable[..., Value]]] = {
    "random_uniform": (("i64", "i64", "i64"), random_uniform),
    "fma": (("float", "float", "float"), fma),
}
"""Functions of ``Call``: the argument kinds (``float``: the call's own type), and the meaning."""


def call(function: str, args: tuple[Value, ...], dtype: DType) -> Value:
    """``function(*args)`` with a result of type ``dtype``."""
    entry = CALLS.get(function)
    if entry is None:
        raise IRError(f"no function is called {function!r}; known: {', '.join(sorted(CALLS))}")
    return entry[1](*args, dtype)
