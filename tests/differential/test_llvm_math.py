"""Elementary functions: errors in ULP, against double precision and 50-digit arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np
import pytest

from nestor.ir import numeric
from nestor.ir.expr import Expr, binary, unary
from nestor.ir.types import DType
from nestor.target.cpu import parse_target
from tests.helpers.llvm_native import NativeNest
from tests.helpers.nests import LEVELS, load, loop, nest, point, tensor, v

BLOCK = 1 << 18
VECTOR = 16

LIMITS_F32 = {
    "exp": 1.1, "exp2": 1.0, "expm1": 1.6, "log": 1.0, "tanh": 2.5, "sigmoid": 2.5, "erf": 2.0,
    "sin": 1.6, "cos": 1.6, "rsqrt": 1.5, "log2": 0.51, "log1p": 0.51, "tan": 0.51, "asin": 0.51,
    "acos": 0.51, "atan": 0.51, "sinh": 0.51, "cosh": 0.51, "asinh": 0.51, "acosh": 0.51,
    "atanh": 0.51, "erfc": 0.51, "lgamma": 0.51,
}  # fmt: skip
LIMITS_F64 = {
    "exp": 1.5, "exp2": 1.5, "expm1": 2.0, "log": 1.5, "log2": 1.5, "log1p": 1.5, "tanh": 3.0,
    "sinh": 3.0, "cosh": 3.0, "asinh": 4.0, "acosh": 4.0, "atanh": 4.0, "sigmoid": 2.5,
    "erf": 3.0, "erfc": 3.0, "lgamma": 8.0, "sin": 1.5, "cos": 1.5, "tan": 3.0, "asin": 3.0,
    "acos": 3.0, "atan": 3.0, "rsqrt": 2.0,
}  # fmt: skip
ODD = ("tanh", "erf", "sin", "tan", "expm1", "asin", "atan", "sinh", "asinh", "atanh", "log1p")

EXACT: dict[str, Callable[..., mp.mpf]] = {
    "exp2": lambda x: mp.mpf(2) ** x,
    "log2": lambda x: mp.log(x, 2),
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "lgamma": lambda x: mp.loggamma(x).real,
    "rsqrt": lambda x: 1 / mp.sqrt(x),
    "pow": mp.power,
}


def compile_elementwise(
    value: Callable[..., Expr], dtype: DType, arguments: int, target: str, count: int
) -> NativeNest:
    """A kernel that applies a function to ``count`` elements in vectors of 16."""
    names = ["x", "y"][:arguments]
    at = v("i") * VECTOR + v("l")
    result = value(*(load(n, at, dtype=dtype) for n in names))
    tensors = [tensor(n, count, dtype=dtype) for n in names]
    tensors.append(tensor("z", count, dtype=dtype, role="output"))
    body = loop("l", VECTOR, "vector", point("z", [at], result))
    return NativeNest(
        nest(tensors, loop("i", count // VECTOR, "serial", body)), parse_target(target)
    )


def apply(native: NativeNest, *inputs: np.ndarray) -> np.ndarray:
    arrays = dict(zip(("x", "y"), inputs, strict=False))
    arrays["z"] = np.full_like(inputs[0], 123)
    assert native.run(arrays) == 0
    return arrays["z"]


def padded(x: np.ndarray, multiple: int) -> np.ndarray:
    return np.concatenate([x, np.ones(-len(x) % multiple, x.dtype)])


def worst_ulp_f32(got: np.ndarray, wide: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Greatest error in float32 ULP of the true value (given in float64), and where."""
    with np.errstate(all="ignore"):
        rounded = wide.astype(np.float32)
        unit = np.spacing(np.abs(rounded)).astype(np.float64)
        error = np.abs(got.astype(np.float64) - wide) / unit
        same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        error = np.where(np.isfinite(rounded), error, np.where(same, 0.0, np.inf))
        # Where the true value rounds to infinity or NaN, the nearest finite value is no excuse.
        error = np.where(np.isnan(got) & np.isfinite(rounded), np.inf, error)
    at = int(np.argmax(error))
    return float(error[at]), float(x[at])


def reference_f32(op: str, x: np.ndarray) -> np.ndarray:
    with numeric.quiet():
        wide = np.asarray(numeric.unary(op, x.astype(np.float64), DType.f64))
        if op == "sigmoid":
            wide = np.where(x < 0, np.exp(x.astype(np.float64)) * (1 - wide), wide)
    return wide


def sweep_f32(op: str, target: str, start: int, stride: int) -> tuple[float, float]:
    native = compile_elementwise(lambda x: unary(op, x), DType.f32, 1, target, BLOCK)
    worst, where = 0.0, 0.0
    for first in range(start, 1 << 32, stride * BLOCK):
        stop = min(1 << 32, first + stride * BLOCK)
        bits = np.arange(first, stop, stride, dtype=np.uint64).astype(np.uint32)
        x = padded(bits.view(np.float32), BLOCK)
        got, wide = apply(native, x), reference_f32(op, x)
        if op in ODD:
            zero = x == 0
            assert (np.signbit(got[zero]) == np.signbit(x[zero])).all()
        error, at = worst_ulp_f32(got, wide, x)
        if error > worst:
            worst, where = error, at
    return worst, where


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("op", sorted(LIMITS_F32))
def test_float32_functions_stay_within_their_stated_error(op: str, target: str) -> None:
    slow_reference = op in ("erf", "erfc", "lgamma")
    stride = 40009 if slow_reference else 8009
    worst, where = sweep_f32(op, target, 0 if target == "avx2" else 17, stride)
    assert worst <= LIMITS_F32[op], f"{op}({where!r}) is {worst} ULP off"
    edges = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38,
                      88.72283, 88.73, -103.97, -104.1, 0.5, -0.5, 2.0, 1.1754944e-38])  # fmt: skip
    x = padded(edges.astype(np.float32), VECTOR)
    native = compile_elementwise(lambda e: unary(op, e), DType.f32, 1, target, len(x))
    error, at = worst_ulp_f32(apply(native, x), reference_f32(op, x), x)
    assert error <= LIMITS_F32[op], f"{op}({at!r}) is {error} ULP off"


SWEEP_STRIDE = 16
"""Of the long test. With 1 it visits every float32, which takes some minutes a function."""


@pytest.mark.slow
@pytest.mark.parametrize("op", ["exp", "log", "tanh", "erf", "sigmoid"])
def test_float32_functions_on_a_dense_sweep(op: str) -> None:
    stride = SWEEP_STRIDE * 64 if op == "erf" else SWEEP_STRIDE
    worst, where = sweep_f32(op, "native", 5, stride)
    assert worst <= LIMITS_F32[op], f"{op}({where!r}) is {worst} ULP off"


def sample_f64(op: str, count: int) -> np.ndarray:
    """Arguments at many scales, near where the function is delicate, and the edges."""
    rng = np.random.default_rng(0)
    u = rng.uniform(-1, 1, count)
    parts = [u * np.exp2(rng.uniform(-60, 10, count)), u * 3, u * 40, u * 800]
    parts.append(u * np.exp2(rng.uniform(-1074, 1023, count)))
    if op in ("log", "log2"):
        parts = [np.abs(p) for p in parts] + [1 + u * 1e-3, 1 + u * 0.5]
    if op in ("asin", "acos", "atanh"):
        parts += [1 - np.abs(u) * 1e-6, u]
    if op == "acosh":
        parts = [np.abs(p) + 1 for p in parts] + [1 + np.abs(u) * 1e-6]
    if op == "erfc":
        parts = [np.clip(p, -40, 40) for p in parts]  # what computes the truth overflows beyond
    if op == "lgamma":
        parts = [np.minimum(np.abs(p), 1e300) for p in parts] + [1 + u * 1e-4, 2 + u * 1e-4]
    if op in ("sin", "cos", "tan"):
        quarters = [np.arange(-200, 200), rng.integers(1, 10**9, 200), rng.integers(1, 2**62, 200)]
        parts += [q * (np.pi / 2) for q in quarters]
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 5e-324, -5e-324]
    edges += [26.6, 27.3] if op == "erfc" else [1e300, 709.78, -745.1]
    return padded(np.concatenate([*parts, edges]).astype(np.float64), VECTOR)


def worst_ulp_f64(
    got: np.ndarray, near: np.ndarray, exact: Callable[..., mp.mpf], *inputs: np.ndarray
) -> tuple[float, tuple[float, ...]]:
    """Greatest error in ULP against 50-digit arithmetic; edges must equal NumPy's."""
    worst, where = 0.0, (0.0,)
    with mp.workdps(50):
        for y, r, *args in zip(got.tolist(), near.tolist(), *(x.tolist() for x in inputs)):
            if not np.isfinite([r, *args]).all() or any(a == 0 for a in args):
                same = (np.isnan(r) and np.isnan(y)) or (r == y)
                assert same and (np.isnan(r) or np.signbit(r) == np.signbit(y)), (args, y, r)
                continue
            value = exact(*(mp.mpf(a) for a in args))
            value = value.real if isinstance(value, mp.mpc) else value
            unit = np.spacing(abs(r)) if abs(r) < 1.7e308 else 2.0**971
            error = float(abs(mp.mpf(y) - value) / mp.mpf(float(unit)))
            if error > worst:
                worst, where = error, tuple(args)
    return worst, where


@pytest.mark.parametrize("op", sorted(LIMITS_F64))
def test_float64_functions_stay_within_their_stated_error(op: str) -> None:
    x = sample_f64(op, 150)
    with numeric.quiet():
        near = np.asarray(numeric.unary(op, x, DType.f64))
        if op == "sigmoid":
            near = np.where(x < -30, np.exp(x), near)
    for target in LEVELS:
        native = compile_elementwise(lambda e: unary(op, e), DType.f64, 1, target, len(x))
        worst, where = worst_ulp_f64(apply(native, x), near, EXACT.get(op) or getattr(mp, op), x)
        assert worst <= LIMITS_F64[op], f"{op}{where} is {worst} ULP off on {target}"


SPECIAL = (0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 1e-300,
           -1e-300, 1e30, -1e30, 2.0**53, 2.0**53 + 2)  # fmt: skip


def sample_pairs(op: str, dtype: DType, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    a, b = (g.ravel() for g in np.meshgrid(SPECIAL, SPECIAL))
    if op == "pow":
        more_a = [np.exp(rng.uniform(-300, 300, count)), rng.uniform(0.9, 1.1, count),
                  rng.uniform(-5, 5, count)]  # fmt: skip
        more_b = [rng.uniform(-2, 2, count), rng.uniform(-5000, 5000, count),
                  rng.integers(-9, 9, count)]  # fmt: skip
    else:
        scales = np.exp2(rng.uniform(-900, 900, (2, count)))
        whole = rng.integers(-40, 40, (2, count))
        more_a = [rng.standard_normal(count) * np.exp2(rng.uniform(-10, 60, count)),
                  rng.standard_normal(count) * scales[0], whole[0]]  # fmt: skip
        more_b = [rng.standard_normal(count), rng.standard_normal(count) * scales[1], whole[1]]
    kind = numeric.numpy_dtype(dtype)
    with numeric.quiet():
        x, y = (np.concatenate([s, *m]).astype(kind) for s, m in ((a, more_a), (b, more_b)))
    return padded(x, VECTOR), padded(y, VECTOR)


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("dtype", [DType.f32, DType.f64])
@pytest.mark.parametrize("op", ["rem", "mod", "floordiv"])
def test_remainders_are_exact(op: str, dtype: DType, target: str) -> None:
    x, y = sample_pairs(op, dtype, 1000)
    native = compile_elementwise(lambda a, b: binary(op, a, b), dtype, 2, target, len(x))
    got = apply(native, x, y)
    with numeric.quiet():
        want = numeric.binary(op, x, y)
    bad = ~((got == want) | (np.isnan(got) & np.isnan(want)))
    bad |= ~np.isnan(want) & (np.signbit(got) != np.signbit(want))
    assert not bad.any(), (op, x[bad][:3], y[bad][:3], got[bad][:3], want[bad][:3])


@pytest.mark.parametrize("dtype", [DType.f32, DType.f64])
@pytest.mark.parametrize("op", ["pow", "atan2"])
def test_functions_of_two_arguments(op: str, dtype: DType) -> None:
    x, y = sample_pairs(op, dtype, 300)
    exact = EXACT.get(op) or getattr(mp, op)
    with numeric.quiet():
        near = numeric.binary(op, x, y)
    for target in LEVELS:
        native = compile_elementwise(lambda a, b: binary(op, a, b), dtype, 2, target, len(x))
        got = apply(native, x, y)
        if dtype is DType.f64:
            worst, where = worst_ulp_f64(got, near, exact, x, y)
            assert worst <= 3.0, f"{op}{where} is {worst} ULP off on {target}"
        else:
            same = (got == near) | (np.isnan(got) & np.isnan(near))
            with numeric.quiet():
                close = np.abs(got - near) <= np.spacing(np.abs(near))
            bad = ~(same | (np.isfinite(near) & close))
            assert not bad.any(), (x[bad][:3], y[bad][:3], got[bad][:3], near[bad][:3])


@pytest.mark.parametrize("target", LEVELS)
def test_scalar_and_vector_code_give_the_same_values(target: str) -> None:
    x = np.random.default_rng(2).standard_normal(45).astype(np.float32)
    ops = sorted(LIMITS_F32)
    results = []
    for kind in ("serial", "vector"):
        tensors = [tensor("x", 45), *(tensor(f"o{op}", 45, role="output") for op in ops)]
        body = [point(f"o{op}", ["i"], unary(op, load("x", "i"))) for op in ops]
        native = NativeNest(nest(tensors, loop("i", 45, kind, *body)), parse_target(target))
        arrays = {"x": x, **{f"o{op}": np.zeros(45, np.float32) for op in ops}}
        assert native.run(arrays) == 0
        results.append(arrays)
    for op in ops:
        np.testing.assert_array_equal(results[0][f"o{op}"], results[1][f"o{op}"], err_msg=op)
