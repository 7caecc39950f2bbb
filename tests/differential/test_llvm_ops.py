"""Every operation on every type, scalar and vector, on both targets, against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir import numeric
from nestor.ir.expr import (
    BITWISE,
    COMPARE,
    Binary,
    Call,
    Cast,
    Expr,
    Select,
    Unary,
    const,
)
from nestor.ir.types import DType
from nestor.target.cpu import parse_target
from tests.helpers.llvm_native import NativeNest
from tests.helpers.nests import LEVELS, load, loop, nest, point, tensor, v

ARITHMETIC = (DType.f64, DType.f32, DType.i64, DType.i32, DType.i16, DType.i8, DType.u8, DType.bool)
EXACT_UNARY = "neg abs sign not isnan isinf sqrt floor ceil trunc round reciprocal".split()
FLOAT_ONLY = {"isnan", "isinf", "sqrt", "floor", "ceil", "trunc", "round", "reciprocal", "div"}
INT_ONLY = {"not", *BITWISE}
EXACT_BINARY = "add sub mul div floordiv truncdiv mod rem min max".split()

SPECIAL_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, 7.25, -7.25, 1e-40, -1e-40,
                  300.0, -300.0, 2147483647.0, 2147483648.0, -2147483648.0, -2147483904.0, 9.3e18,
                  -9.3e18, 1e30, -1e30, 65504.0, 65520.0, 6e-8, 1.00048828125,
                  np.inf, -np.inf, np.nan)  # fmt: skip


def values(dtype: DType) -> np.ndarray:
    """Edge values of a type."""
    if dtype is DType.bool:
        return np.array([False, True])
    if dtype.is_float:
        out = np.array(SPECIAL_FLOATS, np.float32)
        return np.asarray(numeric.cast(out, DType.f32, dtype))
    info = np.iinfo(numeric.numpy_dtype(dtype))
    picks = [0, 1, 2, 3, 5, 7, 8, 15, 31, 32, 63, 64, 100, info.max, info.max - 1, info.min]
    picks += [-1, -2, -3, -7, -8, info.min + 1] if info.min < 0 else [200, 255]
    return np.array(sorted({p for p in picks if info.min <= p <= info.max}), dtype=info.dtype)


def pairs(dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.meshgrid(values(dtype), values(dtype))
    count = -(-a.size // 16) * 16 + 5
    return np.resize(a, count), np.resize(b, count)


def run_all(
    exprs: dict[str, Expr], inputs: dict[str, tuple[np.ndarray, DType]], kind: str, name: str
) -> dict[str, np.ndarray]:
    """One kernel with an output per expression, over all elements."""
    count = len(next(iter(inputs.values()))[0])
    tensors = [tensor(n, count, dtype=d) for n, (_, d) in inputs.items()]
    tensors += [tensor(n, count, dtype=e.dtype, role="output") for n, e in exprs.items()]
    body = [point(n, ["i"], e) for n, e in exprs.items()]
    native = NativeNest(nest(tensors, loop("i", count, kind, *body)), parse_target(name))
    arrays = {n: a for n, (a, _) in inputs.items()}
    arrays |= {n: numeric.garbage((count,), e.dtype) for n, e in exprs.items()}
    assert native.run(arrays) == 0
    return arrays


def assert_same(got: np.ndarray, want: np.ndarray, what: str, *inputs: np.ndarray) -> None:
    """Equal, where any NaN equals any other; the sign of zero counts except for min and max."""
    want = np.asarray(want)
    if want.dtype.kind != "f":
        bad = got != want
    else:
        bad = ~((got == want) | (np.isnan(got) & np.isnan(want)))
        if not what.startswith(("min", "max")):
            bad |= ~np.isnan(want) & (np.signbit(got) != np.signbit(want))
    examples = [tuple(x[bad][:3].tolist() for x in inputs), got[bad][:3], want[bad][:3]]
    assert not bad.any(), f"{what}: {examples}"


TARGETS = pytest.mark.parametrize("target", LEVELS)
KINDS = pytest.mark.parametrize("kind", ["serial", "vector"])


@TARGETS
@KINDS
@pytest.mark.parametrize("dtype", ARITHMETIC)
def test_exact_operations_agree_with_the_definition(target: str, kind: str, dtype: DType) -> None:
    a, b = pairs(dtype)
    x, y = load("x", "i", dtype=dtype), load("y", "i", dtype=dtype)
    binary = [*EXACT_BINARY, *sorted(COMPARE), *sorted(BITWISE), "pow"]
    if dtype is DType.bool:
        binary = ["min", "max", "and", "or", "xor", *sorted(COMPARE)]
        unary = ["not"]
    else:
        unary = [op for op in EXACT_UNARY if not dtype.is_float or op not in INT_ONLY]
        if dtype.is_float:
            binary = [op for op in binary if op not in INT_ONLY and op != "pow"]
        else:
            unary = [op for op in unary if op not in FLOAT_ONLY]
            binary = [op for op in binary if op not in FLOAT_ONLY]
    exprs: dict[str, Expr] = {f"u_{op}": Unary(op=op, x=x) for op in unary}
    exprs |= {f"b_{op}": Binary(op=op, a=x, b=y) for op in binary}
    exprs["select"] = Select(condition=Binary(op="lt", a=x, b=y), a=x, b=y)
    got = run_all(exprs, {"x": (a, dtype), "y": (b, dtype)}, kind, target)
    with numeric.quiet():
        for op in unary:
            assert_same(got[f"u_{op}"], numeric.unary(op, a, dtype), op, a)
        for op in binary:
            assert_same(got[f"b_{op}"], numeric.binary(op, a, b), op, a, b)
        assert_same(got["select"], np.where(a < b, a, b), "select", a, b)


@TARGETS
@KINDS
@pytest.mark.parametrize("source", list(DType))
def test_casts_agree_with_the_definition(target: str, kind: str, source: DType) -> None:
    rng = np.random.default_rng(0)
    a = values(source)
    if source.is_float:
        more = np.ldexp(rng.uniform(-2, 2, 3000), rng.integers(-30, 40, 3000)).astype(np.float32)
        if source is DType.f64:
            # Halfway cases of narrower types, and just beside them.
            near = np.concatenate(
                [more.astype(np.float64) * (1 + 2.0**-s) for s in (9, 12, 25, 40)]
            )
            a = np.concatenate([a, near])
        a = np.concatenate([a, np.asarray(numeric.cast(more, DType.f32, source))])
    elif source is not DType.bool:
        info = np.iinfo(a.dtype)
        a = np.concatenate([a, rng.integers(info.min, info.max, 1000, dtype=a.dtype)])
    x = load("x", "i", dtype=source)
    exprs: dict[str, Expr] = {f"to_{d.value}": Cast(x=x, dtype=d) for d in DType}
    got = run_all(exprs, {"x": (a, source)}, kind, target)
    with numeric.quiet():
        for d in DType:
            assert_same(got[f"to_{d.value}"], numeric.cast(a, source, d), f"{source} to {d}", a)


@TARGETS
@KINDS
def test_constants_and_indices(target: str, kind: str) -> None:
    from nestor.ir.expr import Index

    count = 37
    exprs: dict[str, Expr] = {
        "third": const(1 / 3, DType.f32),
        "half": const(0.1, DType.f16),
        "brain": const(0.1, DType.bf16),
        "wide": const(0.1, DType.f64),
        "least": const(-(1 << 63), DType.i64),
        "byte": const(255, DType.u8),
        "yes": const(True, DType.bool),
        "index": Index(value=v("i") * 3 + 5),
        "index32": Index(value=v("i") * 3 - 5, dtype=DType.i32),
        "index8": Index(value=v("i") * 30, dtype=DType.i8),
        "divided": Index(value=(v("i") - 20) // 7),
        "rest": Index(value=(v("i") * 5 - 20) % 7),
    }
    got = run_all(exprs, {"x": (np.zeros(count, np.float32), DType.f32)}, kind, target)
    i = np.arange(count)
    for name, e in exprs.items():
        if name.startswith(("index", "divided", "rest")):
            assert isinstance(e, Index)
            want = e.value.evaluate({"i": i}).astype(numeric.numpy_dtype(e.dtype))
        else:
            want = np.broadcast_to(numeric.constant(e.value, e.dtype), (count,))  # type: ignore[union-attr]
        assert_same(got[name], want, name)


@TARGETS
@KINDS
def test_storage_types_compute_through_float32(target: str, kind: str) -> None:
    for dtype in (DType.f16, DType.bf16):
        a = np.resize(values(dtype), 48)
        x = load("x", "i", dtype=dtype)
        as_single = Cast(x=x, dtype=DType.f32)
        product = Cast(x=Binary(op="mul", a=as_single, b=as_single), dtype=dtype)
        got = run_all({"y": product}, {"x": (a, dtype)}, kind, target)
        with numeric.quiet():
            single = numeric.cast(a, dtype, DType.f32)
            assert_same(got["y"], numeric.cast(single * single, DType.f32, dtype), "mul", a)


@TARGETS
@KINDS
def test_calls_agree_with_the_definition(target: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    seed, offset, index = (rng.integers(-(2**63), 2**63 - 1, 69) for _ in range(3))
    args = tuple(load(n, "i", dtype=DType.i64) for n in ("s", "o", "n"))
    a, b, c = (rng.standard_normal(69).astype(np.float32) for _ in range(3))
    floats = tuple(load(n, "i") for n in "abc")
    exprs: dict[str, Expr] = {
        "r32": Call(function="random_uniform", args=args, dtype=DType.f32),
        "r64": Call(function="random_uniform", args=args, dtype=DType.f64),
        "fma": Call(function="fma", args=floats, dtype=DType.f32),
    }
    inputs = {"s": (seed, DType.i64), "o": (offset, DType.i64), "n": (index, DType.i64)}
    inputs |= {n: (x, DType.f32) for n, x in (("a", a), ("b", b), ("c", c))}
    got = run_all(exprs, inputs, kind, target)
    with numeric.quiet():
        for name, dtype in (("r32", DType.f32), ("r64", DType.f64)):
            assert_same(got[name], numeric.random_uniform(seed, offset, index, dtype), name)
        assert_same(got["fma"], numeric.fma(a, b, c, DType.f32), "fma", a, b, c)
