"""Builtin monoids: identity, associativity, commutativity, and agreement with a plain fold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nestor.ir import numeric
from nestor.ir.folding import combine, identity
from nestor.ir.monoid import BUILTINS, Monoid, all_of, any_of, builtin_monoid, is_builtin
from nestor.ir.types import DType

FLOATS = (DType.f32, DType.f64)
INTS = (DType.i8, DType.i32, DType.i64, DType.u8)
CASES = [
    *(
        (name, d)
        for name in ("sum", "prod", "max", "min", "argmax", "argmin")
        for d in FLOATS + INTS
    ),
    *((name, d) for name in ("welford", "logsumexp", "online_softmax") for d in FLOATS),
    ("any", DType.bool),
    ("all", DType.bool),
]
CASE_IDS = [f"{name}-{d}" for name, d in CASES]


def states(name: str, dtype: DType) -> list[list[object]]:
    """Elements as a statement would make them, edge values among them."""
    kind = numeric.numpy_dtype(dtype)
    rng = np.random.default_rng(0)
    if dtype is DType.bool:
        values = [kind.type(v) for v in (True, False)]
    elif dtype.is_float:
        edges = [-np.inf, 0.0, 1.0, 1.0, -2.5] if name != "welford" else [0.0, 1.0, 1.0, -2.5]
        values = [kind.type(v) for v in [*edges, *rng.standard_normal(4)]]
        if name in ("max", "min", "argmax", "argmin", "sum"):
            values.append(kind.type(np.nan))
    else:
        values = [kind.type(v) for v in (0, 1, 1, 127, 3, 100)]
    one = kind.type(1)
    match name:
        case "argmax" | "argmin":
            return [[v, np.int64(k)] for k, v in enumerate(values)]
        case "welford":
            return [[v, kind.type(0), one] for v in values]
        case "logsumexp":
            return [[v, one] for v in values]
        case "online_softmax":
            return [[v, one, kind.type(k)] for k, v in enumerate(values)]
        case _:
            return [[v] for v in values]


def same(name: str, a: list[object], b: list[object]) -> None:
    exact = name in ("max", "min", "argmax", "argmin", "any", "all")
    for x, y in zip(a, b, strict=True):
        if exact or not np.issubdtype(np.asarray(x).dtype, np.floating):
            np.testing.assert_array_equal(x, y)
        else:
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def monoid(name: str, dtype: DType) -> Monoid:
    found = builtin_monoid(name, dtype)
    assert found is not None
    return found


@pytest.mark.parametrize("name,dtype", CASES, ids=CASE_IDS)
def test_laws(name: str, dtype: DType) -> None:
    m = monoid(name, dtype)
    elements = states(name, dtype)
    with numeric.quiet():
        empty = identity(m)
        if name in ("logsumexp", "online_softmax"):
            # A state whose maximum is -inf is empty, whatever else it holds: the fold starts from
            # the identity, which brings an element (-inf, 1) to its normal form (-inf, 0).
            elements = [combine(m, empty, x) for x in elements]
        for x in elements:
            same(name, combine(m, empty, x), x)
            same(name, combine(m, x, empty), x)
        same(name, combine(m, empty, empty), empty)
        for x, y in itertools.product(elements, repeat=2):
            same(name, combine(m, x, y), combine(m, y, x))
        for x, y, z in itertools.product(elements[:6] + elements[-1:], repeat=3):
            left = combine(m, combine(m, x, y), z)
            right = combine(m, x, combine(m, y, z))
            same(name, left, right)


def test_types_follow_the_first_component() -> None:
    for name, make in BUILTINS.items():
        m = make(DType.f64)
        assert m.dtypes[0] is DType.f64, name
        assert len(m.identity) == len(m.combine)
        assert is_builtin(m)


def test_builtins_are_told_from_namesakes() -> None:
    custom = Monoid(
        name="sum",
        identity=monoid("sum", DType.f32).identity,
        combine=monoid("prod", DType.f32).combine,
    )
    assert not is_builtin(custom)
    assert is_builtin(any_of()) and is_builtin(all_of())
    assert builtin_monoid("median", DType.f32) is None
    assert builtin_monoid("any", DType.i32) is None


def test_identity_and_combine_have_one_length() -> None:
    m = monoid("sum", DType.f32)
    with pytest.raises(ValueError, match="differ in length"):
        Monoid(name="broken", identity=m.identity, combine=m.combine * 2)
