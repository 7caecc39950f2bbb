"""Scalar semantics, against PyTorch where it defines the result, else against the words."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from nestor.errors import IRError
from nestor.ir import numeric
from nestor.ir.expr import FLOAT_UNARY
from nestor.ir.numeric import NUMPY_DTYPE
from nestor.ir.types import DType

F = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 1e-40, 88.0, -100.0, np.inf, -np.inf,
     np.nan],
    np.float32,
)  # fmt: skip
TORCH_UNARY = {
    "asin": torch.asin, "acos": torch.acos, "atan": torch.atan, "round": torch.round,
    "sigmoid": torch.sigmoid, "reciprocal": torch.reciprocal, "neg": torch.neg, "abs": torch.abs,
    "sign": torch.sign, "isnan": torch.isnan, "isinf": torch.isinf, "lgamma": torch.lgamma,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():  # type: ignore[no-untyped-def]
    with numeric.quiet():
        yield


@pytest.mark.parametrize("op", sorted(FLOAT_UNARY | {"neg", "abs", "sign", "isnan", "isinf"}))
def test_float_unary_as_pytorch(op: str) -> None:
    reference = TORCH_UNARY.get(op) or getattr(torch, op)
    for kind in (np.float32, np.float64):
        x = F.astype(kind)
        dtype = DType.f32 if kind is np.float32 else DType.f64
        got = numeric.unary(op, x, dtype)
        want = reference(torch.tensor(x)).numpy()
        assert got.dtype == want.dtype
        np.testing.assert_allclose(
            got, want, rtol=4e-6 if kind is np.float32 else 1e-13, atol=1e-37
        )
        zeros = (got == 0) & (want == 0)
        np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(want[zeros]))


def test_round_is_to_even() -> None:
    np.testing.assert_array_equal(
        numeric.unary("round", np.array([0.5, 1.5, 2.5, -0.5]), DType.f64), [0, 2, 2, -0.0]
    )


PAIRS = [(a, b) for a in F for b in F]
A = np.array([a for a, _ in PAIRS], np.float32)
B = np.array([b for _, b in PAIRS], np.float32)
TORCH_BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow,
    "atan2": torch.atan2, "rem": torch.fmod, "mod": torch.remainder, "min": torch.minimum,
    "max": torch.maximum, "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge,
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(TORCH_BINARY))
def test_float_binary_as_pytorch(op: str) -> None:
    got = numeric.binary(op, A, B)
    want = TORCH_BINARY[op](torch.tensor(A), torch.tensor(B)).numpy()
    assert got.dtype == want.dtype
    usual = np.ones(len(A), bool)
    if op in ("rem", "mod"):
        # PyTorch's vectorised fmod gives NaN for a denormal divisor; C's does not.
        usual = (np.abs(B) > 1e-38) | (B == 0)
    np.testing.assert_allclose(got[usual], want[usual], rtol=1e-6, atol=1e-37)


INT_DTYPES = (DType.i8, DType.i16, DType.i32, DType.i64, DType.u8)


def ints(dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    info = np.iinfo(NUMPY_DTYPE[dtype])
    values = [0, 1, 2, 3, 5, 7, 8, 31, info.max, info.max - 1, info.min, info.min + 1]
    if dtype.is_signed:
        values += [-1, -2, -3, -7, -8]
    a, b = np.meshgrid(np.array(values, info.dtype), np.array(values, info.dtype))
    return a.ravel(), b.ravel()


def wrap(value: int, dtype: DType) -> int:
    value &= (1 << dtype.bits) - 1
    return value - (1 << dtype.bits) if dtype.is_signed and value >> (dtype.bits - 1) else value


def reference(op: str, a: int, b: int, dtype: DType) -> int:
    """Integer semantics with Python's unbounded integers."""
    bits = dtype.bits
    match op:
        case "add":
            out = a + b
        case "sub":
            out = a - b
        case "mul":
            out = a * b
        case "floordiv":
            out = a // b if b else 0
        case "mod":
            out = a % b if b else 0
        case "truncdiv":
            out = int(Fraction(a, b)) if b else 0
        case "rem":
            out = a - b * int(Fraction(a, b)) if b else 0
        case "shl":
            out = a << b if 0 <= b < bits else 0
        case "shr":
            out = a >> b if 0 <= b < bits else (-1 if a < 0 else 0)
        case "pow":
            if b >= 0:
                out = pow(a, b, 1 << bits)
            else:
                out = {1: 1, -1: -1 if b % 2 else 1}.get(a, 0)
        case "min":
            out = min(a, b)
        case "max":
            out = max(a, b)
        case "and":
            out = a & b
        case "or":
            out = a | b
        case _:
            out = a ^ b
    return wrap(out, dtype)


@pytest.mark.parametrize("dtype", INT_DTYPES)
@pytest.mark.parametrize(
    "op",
    "add sub mul floordiv mod truncdiv rem shl shr pow min max and or xor".split(),
)
def test_integers_in_words(op: str, dtype: DType) -> None:
    a, b = ints(dtype)
    got = numeric.binary(op, a, b)
    want = [reference(op, int(x), int(y), dtype) for x, y in zip(a, b, strict=True)]
    assert got.dtype == NUMPY_DTYPE[dtype]
    np.testing.assert_array_equal(got, want)
    for k in range(0, len(a), 17):
        assert int(numeric.binary(op, a[k], b[k])) == want[k], "scalars as arrays"


@pytest.mark.parametrize("dtype", INT_DTYPES)
def test_integer_unary_wraps(dtype: DType) -> None:
    a, _ = ints(dtype)
    for op, f in {"neg": lambda v: -v, "abs": abs, "not": lambda v: ~v}.items():
        want = [wrap(f(int(v)), dtype) for v in a]
        np.testing.assert_array_equal(numeric.unary(op, a, dtype), want)
    want = [(int(v) > 0) - (int(v) < 0) for v in a]
    np.testing.assert_array_equal(numeric.unary("sign", a, dtype), want)


def test_bool_operations() -> None:
    a, b = np.array([False, False, True, True]), np.array([False, True, False, True])
    assert numeric.binary("and", a, b).tolist() == [False, False, False, True]
    assert numeric.binary("max", a, b).tolist() == [False, True, True, True]
    assert numeric.binary("xor", a, b).tolist() == [False, True, True, False]
    assert numeric.binary("lt", a, b).tolist() == [False, True, False, False]
    assert numeric.unary("not", a, DType.bool).tolist() == [True, True, False, False]


def test_casts_saturate_at_the_edges() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -3e9, 1e19, -1e19, 2.9, -2.9])
    for dtype in (DType.i32, DType.i64):
        info = np.iinfo(NUMPY_DTYPE[dtype])
        want = [0 if math.isnan(v) else int(max(info.min, min(info.max, v))) for v in x.tolist()
                if not math.isinf(v)]  # fmt: skip
        want[1:1] = [info.max, info.min]
        np.testing.assert_array_equal(numeric.cast(x, DType.f64, dtype), want)
        single = numeric.cast(x.astype(np.float32), DType.f32, dtype)
        np.testing.assert_array_equal(single[[0, 1, 2, 7, 8]], [0, info.max, info.min, 2, -2])


@pytest.mark.parametrize("dtype", [DType.u8, DType.i8, DType.i16])
def test_casts_to_narrow_integers_as_pytorch(dtype: DType) -> None:
    torch_dtype = {DType.u8: torch.uint8, DType.i8: torch.int8, DType.i16: torch.int16}[dtype]
    x = np.array([0.0, -0.5, 1.9, 255.0, 256.0, 300.0, -1.0, -300.0, 70000.0], np.float32)
    want = torch.tensor(x).to(torch_dtype).numpy()
    np.testing.assert_array_equal(numeric.cast(x, DType.f32, dtype), want)
    for source in (DType.i64, DType.i32):
        y = np.array([0, -1, 255, 256, 300, -300, 70000]).astype(NUMPY_DTYPE[source])
        want = torch.tensor(y).to(torch_dtype).numpy()
        np.testing.assert_array_equal(numeric.cast(y, source, dtype), want)


def test_casts_to_storage_types_round_through_float32() -> None:
    x = np.random.default_rng(0).standard_normal(2000) * 100
    for dtype, kind in ((DType.bf16, torch.bfloat16), (DType.f16, torch.float16)):
        want = torch.tensor(x).to(kind).float().numpy()
        np.testing.assert_array_equal(numeric.cast(x, DType.f64, dtype).astype(np.float32), want)
    big = np.array([2**53 + 1, 2**40 + 1, -7])
    np.testing.assert_array_equal(
        numeric.cast(big, DType.i64, DType.f32), torch.tensor(big).float().numpy()
    )


def test_bool_casts() -> None:
    x = np.array([0.0, -0.0, np.nan, 0.3], np.float32)
    assert numeric.cast(x, DType.f32, DType.bool).tolist() == [False, False, True, True]
    assert numeric.cast(np.array([True, False]), DType.bool, DType.f32).tolist() == [1.0, 0.0]


def test_fma_rounds_once() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(500).astype(np.float32) for _ in range(2))
    c = (-a.astype(np.float64) * b * (1 + 2.0**-26 * rng.standard_normal(500))).astype(np.float32)
    got = numeric.fma(a, b, c, DType.f32)
    for x, y, z, r in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        near = [np.nextafter(r, np.float32(s * np.inf), dtype=np.float32) for s in (-1, 1)]
        error = abs(Fraction(float(r)) - exact)
        assert all(error <= abs(Fraction(float(n)) - exact) for n in near)
    d = numeric.fma(np.float64(1 + 2**-52), np.float64(1 - 2**-52), np.float64(-1), DType.f64)
    assert d == -(2.0**-104)


def test_philox_known_answers() -> None:
    """Vectors from the Random123 distribution (kat_vectors, philox4x32-10)."""
    ones = np.uint64(0xFFFFFFFF)
    zero = np.uint64(0)
    out = numeric.philox4x32((zero,) * 4, (zero, zero))
    assert [int(v) for v in out] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    out = numeric.philox4x32((ones,) * 4, (ones, ones))
    assert [int(v) for v in out] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_random_uniform_is_uniform_and_pure() -> None:
    index = np.arange(20000)
    for dtype in (DType.f32, DType.f64):
        u = numeric.random_uniform(np.int64(7), np.int64(-3), index, dtype)
        assert u.dtype == NUMPY_DTYPE[dtype]
        assert u.min() >= 0 and u.max() < 1
        assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
        again = numeric.random_uniform(np.int64(7), np.int64(-3), index[5], dtype)
        assert again == u[5]
        other = numeric.random_uniform(np.int64(8), np.int64(-3), index, dtype)
        assert np.mean(other == u) < 0.01


def test_unknown_operations_are_errors() -> None:
    for call in (
        lambda: numeric.unary("frob", F, DType.f32),
        lambda: numeric.binary("frob", F, F),
        lambda: numeric.call("frob", (), DType.f32),
    ):
        with pytest.raises(IRError, match="'frob'"):
            call()
