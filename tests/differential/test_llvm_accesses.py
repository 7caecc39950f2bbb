"""Accesses against the interpreter: strides, layouts, predicates, guards, gathers, scatters."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import binary, const, unary
from nestor.ir.loopnest import Guard
from nestor.ir.monoid import (
    sum_of,
)
from nestor.ir.program import Layout, Symbol
from nestor.ir.types import DType
from nestor.target.cpu import parse_target
from tests.helpers.llvm_native import NativeNest
from tests.helpers.nests import (
    F32,
    LEVELS,
    alloc,
    buffer,
    check_on_both,
    compute,
    load,
    loop,
    nest,
    point,
    random_array,
    tensor,
    v,
)

I64 = DType.i64


# --- accesses ----------------------------------------------------------------------------------

ACCESSES = {
    "contiguous": v("r") * 64 + v("i"),
    "reversed": v("r") * 64 + 63 - v("i"),
    "broadcast": v("r") * 7 + 3,
    "stride2": v("r") * 64 + v("i") * 2,
    "stride-3": 190 - v("r") * 2 - v("i") * 3,
    "divided": v("r") * 5 + v("i") // 4,
    "modulo": v("r") * 5 + v("i") % 4,
    "swizzled": (v("i") % 4) * 8 + v("i") // 4 + v("r"),
    "across": (v("r") * 20 + v("i")) // 3,
    "wrapped": (v("r") * 20 + v("i") + 2) % 37,
    "signed": (v("i") - 9 + v("r")) // 3 + 20,
    "signed mod": (v("i") * 5 - 40 + v("r")) % 11,
}


@pytest.mark.parametrize("extent", [1, 3, 16, 23, 40])
@pytest.mark.parametrize("name", sorted(ACCESSES))
def test_loads_of_every_shape(name: str, extent: int) -> None:
    x = load("x", ACCESSES[name])
    body = point("y", ["r", "i"], binary("mul", x, const(2.0, F32)))
    check_on_both(
        nest(
            [tensor("x", 256), tensor("y", 3, extent, role="output")],
            loop("r", 3, "serial", loop("i", extent, "vector", body)),
        ),
        threads=(1,),
    )


@pytest.mark.parametrize("dtype", [DType.f64, DType.f16, DType.bf16, DType.i8, DType.bool, I64])
def test_accesses_of_every_element_size(dtype: DType) -> None:
    exprs = {"a": v("i"), "b": 36 - v("i"), "c": v("i") * 2, "d": affine(5)}
    body = [point(n, ["i"], load("x", a, dtype=dtype)) for n, a in exprs.items()]
    tensors = [tensor("x", 80, dtype=dtype)]
    tensors += [tensor(n, 37, dtype=dtype, role="output") for n in exprs]
    check_on_both(nest(tensors, loop("i", 37, "vector", *body)), threads=(1,))


@pytest.mark.parametrize("name", ["reversed", "stride2", "swizzled", "stride-3"])
def test_stores_of_every_shape(name: str) -> None:
    at = {"swizzled": (v("i") % 4) * 5 + v("i") // 4}.get(name) or ACCESSES[name].substitute(
        {"r": 1}
    )
    body = point("y", [at], load("x", "i"))
    check_on_both(
        nest([tensor("x", 20), tensor("y", 256, role="inout")], loop("i", 20, "vector", body)),
        threads=(1,),
    )


def test_layouts_change_addresses_only() -> None:
    blocked = Layout(
        physical=(v("d1") // 16, v("d0"), v("d1") % 16), shape=(affine(3), affine(6), affine(16))
    )
    at = v("n") * 16 + v("l")
    total = compute("update", {"y": ["m", at]}, load("w", "m", at), monoid=sum_of(F32))
    tensors = [
        tensor("w", 6, 40, role="parameter", layout=blocked),
        tensor("y", 6, 40, role="inout", layout=blocked),
    ]
    rows = loop("m", 6, "parallel", loop("n", 2, "serial", loop("l", 16, "vector", total)))
    tail = compute(
        "update", {"y": ["m", v("l") + 32]}, load("w", "m", v("l") + 32), monoid=sum_of(F32)
    )
    check_on_both(nest(tensors, rows, loop("m", 6, "serial", loop("l", 8, "vector", tail))))


def test_symbolic_shapes_and_strides() -> None:
    n, m = v("N"), v("M")
    copy = point("y", ["j", "i"], binary("add", load("x", "i", "j"), load("b", "j")))
    inner = point("z", ["i", v("j") * 4 + v("l")], load("x", "i", v("j") * 4 + v("l")))
    tail = Guard(conditions=(m - 1 - v("j") * 4 - v("l"),), body=inner)
    tensors = [
        tensor("x", "N", "M"),
        tensor("b", "M"),
        tensor("y", "M", "N", role="output"),
        tensor("z", "N", "M", role="output"),
    ]
    body = [
        loop("j", m, "parallel", loop("i", n, "parallel", copy)),
        loop("i", n, "parallel", loop("j", (m + 3) // 4, "serial", loop("l", 4, "vector", tail))),
    ]
    whole = nest(tensors, *body, symbols=[Symbol(name="N"), Symbol(name="M", upper=99)])
    for sizes in ({"N": 1, "M": 1}, {"N": 7, "M": 13}, {"N": 40, "M": 16}):
        check_on_both(whole, symbols=sizes)


def test_rows_of_symbolic_stride_in_vectors() -> None:
    body = point("y", ["j", "i"], load("x", "i", "j"))
    tensors = [tensor("x", 12, "N"), tensor("y", "N", 12, role="output")]
    whole = nest(
        tensors, loop("j", "N", "serial", loop("i", 12, "vector", body)), symbols=[Symbol(name="N")]
    )
    check_on_both(whole, symbols={"N": 5}, threads=(1,))


def test_unrolled_lanes_with_a_symbolic_stride() -> None:
    value = binary("add", load("x", v("u") + 1, "j"), load("x", 0, "j"))
    body = loop("u", 3, "unroll", loop("j", 8, "vector", point("y", ["u", "j"], value)))
    tensors = [tensor("x", 4, "N"), tensor("y", 3, "N", role="inout")]
    check_on_both(
        nest(tensors, body, symbols=[Symbol(name="N", lower=8)]), symbols={"N": 11}, threads=(1,)
    )


# --- predicates, guards, masks -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["serial", "vector"])
@pytest.mark.parametrize("other", [0.0, -0.0, 2.5])
def test_predicated_loads_read_nothing_outside(kind: str, other: float) -> None:
    i, r = v("i"), v("r")
    shapes = {
        "uniform": load("x", r - 1, i, predicate=(r - 1, 3 - r), other=const(other, F32)),
        "lanes": load("x", r * 0, i - 2, predicate=(i - 2, 21 - i), other=const(other, F32)),
        "both": load(
            "x", r - 1, i * 2 - 5, predicate=(r - 1, 3 - r, i * 2 - 5, 24 - i * 2),
            other=const(other, F32),
        ),
        "flipped": load("x", 0, 18 - i, predicate=(18 - i,), other=const(other, F32)),
        "scalar": load("x", r - 1, 3, predicate=(r - 1, 3 - r), other=const(other, F32)),
        "never": load("x", 0, 99, predicate=(i * 0 - 1,), other=const(other, F32)),
    }  # fmt: skip
    body = [point(n, ["r", "i"], e) for n, e in shapes.items()]
    tensors = [tensor("x", 3, 23), *(tensor(n, 5, 23, role="output") for n in shapes)]
    check_on_both(nest(tensors, loop("r", 5, "parallel", loop("i", 23, kind, *body))))


@pytest.mark.parametrize("kind", ["serial", "vector"])
def test_concatenation_by_nested_predicates(kind: str) -> None:
    i = v("i")
    inner = load(
        "b",
        i - 10,
        predicate=(i - 10, 16 - i),
        other=load("c", i - 17, predicate=(i - 17,), other=const(0.0, F32)),
    )
    value = load("a", i, predicate=(9 - i,), other=inner)
    tensors = [tensor("a", 10), tensor("b", 7), tensor("c", 13), tensor("y", 30, role="output")]
    check_on_both(nest(tensors, loop("i", 30, kind, point("y", ["i"], value))), threads=(1,))


@pytest.mark.parametrize("kind", ["serial", "vector"])
def test_the_other_value_may_load_without_a_predicate(kind: str) -> None:
    i = v("i")
    value = load("a", i, predicate=(9 - i,), other=load("b", i - 10))
    tensors = [tensor("a", 10), tensor("b", 20), tensor("y", 30, role="output")]
    whole = nest(tensors, loop("i", 30, kind, point("y", ["i"], value)))
    rng = np.random.default_rng(0)
    arrays = {t.name: random_array(rng, t, {}) for t in tensors}
    want = np.concatenate([arrays["a"], arrays["b"]])
    for name in LEVELS:
        got = {k: a.copy() for k, a in arrays.items()}
        assert NativeNest(whole, parse_target(name)).run(got) == 0
        np.testing.assert_array_equal(got["y"], want)


@pytest.mark.parametrize("kind", ["serial", "vector"])
def test_guards_branch_or_mask(kind: str) -> None:
    i, r = v("i"), v("r")
    then = point("y", ["r", "i"], load("x", r, i))
    otherwise = point("y", ["r", "i"], unary("neg", load("x", 0, "i")))
    tests = {"uniform": (r - 1, 2 - r), "lanes": (r * 5 - i,), "both": (r - 1, i - 3, 20 - i)}
    for conditions in tests.values():
        for orelse in (None, otherwise):
            g = Guard(conditions=conditions, body=then, orelse=orelse)
            tensors = [tensor("x", 4, 22), tensor("y", 4, 22, role="inout")]
            check_on_both(nest(tensors, loop("r", 4, "parallel", loop("i", 22, kind, g))))


def test_guard_masks_accumulators_gathers_and_scatters() -> None:
    i = v("i")
    acc = buffer("acc", 22)
    start = compute("init", {"acc": ["i"]}, const(1.0, F32))
    add = compute("update", {"acc": ["i"]}, load("x", v("k"), i), monoid=sum_of(F32))
    end = point("y", [21 - i], load("acc", "i"))
    strided = point("z", [i * 2], load("x", 0, (i * 7) % 22))
    body = [
        loop("i", 22, "vector", start),
        loop(
            "k", 4, "serial", loop("i", 22, "vector", Guard(conditions=(v("k") * 6 - i,), body=add))
        ),
        loop("i", 22, "vector", end),
        loop("i", 22, "vector", Guard(conditions=(i - 5, 15 - i), body=strided)),
    ]
    tensors = [tensor("x", 4, 22), tensor("y", 22, role="output"), tensor("z", 44, role="inout")]
    check_on_both(nest(tensors, alloc([acc], *body)), threads=(1,))


# --- data-dependent indices ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["serial", "vector", "parallel"])
@pytest.mark.parametrize("dtype", [I64, DType.i32, DType.u8])
def test_gathers(kind: str, dtype: DType) -> None:
    row = load("t", "i", dtype=dtype)
    value = load("x", row, v("j"))
    element = load("x", row, load("u", "i", dtype=I64))
    tensors = [
        tensor("t", 19, dtype=dtype),
        tensor("u", 19, dtype=I64),
        tensor("x", 4, 6),
        tensor("y", 19, 6, role="output"),
        tensor("z", 19, role="output"),
    ]
    outer, inner = ("parallel", "vector") if kind == "vector" else (kind, "serial")
    rows = loop("i", 19, outer, loop("j", 6, inner, point("y", ["i", "j"], value)))
    check_on_both(nest(tensors, rows, loop("i", 19, kind, point("z", ["i"], element))))


@pytest.mark.parametrize("kind", ["serial", "vector", "parallel"])
@pytest.mark.parametrize("bad", [-1, 4, 1 << 40, -(1 << 63), None])
def test_an_index_out_of_range_is_reported_and_clamped(kind: str, bad: int | None) -> None:
    tensors = [tensor("t", 5000, dtype=I64), tensor("x", 4), tensor("y", 5000, role="output")]
    value = unary("exp", load("x", load("t", "i", dtype=I64)))
    whole = nest(tensors, loop("i", 5000, kind, point("y", ["i"], value)))
    for name in LEVELS:
        native = NativeNest(whole, parse_target(name))
        index = np.resize(np.arange(4), 5000)
        if bad is not None:
            index[4217] = bad
        for threads in (1, 2):
            arrays = {"t": index, "x": np.ones(4, np.float32), "y": np.zeros(5000, np.float32)}
            assert native.run(arrays, threads=threads) == (0 if bad is None else 1)
            np.testing.assert_allclose(arrays["y"], np.e, rtol=1e-6)


@pytest.mark.parametrize("kind", ["serial", "vector"])
def test_indices_where_nothing_is_read_are_not_checked(kind: str) -> None:
    i = v("i")
    row = load("t", "i", dtype=I64)
    predicated = load("x", row, predicate=(9 - i,), other=const(0.0, F32))
    guarded = Guard(conditions=(9 - i,), body=point("z", ["i"], load("x", row)))
    tensors = [
        tensor("t", 20, dtype=I64),
        tensor("x", 4),
        tensor("y", 20, role="output"),
        tensor("z", 20, role="inout"),
    ]
    whole = nest(tensors, loop("i", 20, kind, point("y", ["i"], predicated), guarded))
    for name in LEVELS:
        arrays = {
            "t": np.where(np.arange(20) < 10, np.arange(20) % 4, 77),
            "x": np.arange(4, dtype=np.float32),
            "y": np.full(20, np.nan, np.float32),
            "z": np.full(20, 5, np.float32),
        }
        assert NativeNest(whole, parse_target(name)).run(arrays) == 0
        want = np.where(np.arange(20) < 10, np.arange(20) % 4, 0)
        np.testing.assert_array_equal(arrays["y"], want)
        np.testing.assert_array_equal(arrays["z"], np.where(np.arange(20) < 10, want, 5))


def test_an_empty_table_is_never_read() -> None:
    tensors = [tensor("t", 3, dtype=I64), tensor("x", 0), tensor("y", 3, role="output")]
    value = load("x", load("t", "i", dtype=I64))
    whole = nest(tensors, loop("i", 3, "serial", point("y", ["i"], value)))
    arrays = {"t": np.zeros(3, np.int64), "x": np.zeros(0, np.float32), "y": np.ones(3, np.float32)}
    assert NativeNest(whole, parse_target("native")).run(arrays) == 1


@pytest.mark.parametrize("kind", ["serial", "vector"])
def test_scatters(kind: str) -> None:
    row = load("t", "i", dtype=I64)
    last = point("y", [row], load("x", "i"))
    tensors = [tensor("t", 21, dtype=I64), tensor("x", 21), tensor("y", 4, role="inout")]
    check_on_both(nest(tensors, loop("i", 21, kind, last)), threads=(1,))


@pytest.mark.parametrize("kind", ["serial", "vector"])
def test_accumulating_scatters_take_turns(kind: str) -> None:
    add = compute("update", {"z": [load("t", "i", dtype=I64)]}, load("x", "i"), monoid=sum_of(F32))
    tensors = [tensor("t", 21, dtype=I64), tensor("x", 21), tensor("z", 4, role="inout")]
    whole = nest(tensors, loop("i", 21, kind, add))
    rng = np.random.default_rng(0)
    arrays = {t.name: random_array(rng, t, {}) for t in tensors}
    want = arrays["z"].copy()
    np.add.at(want, arrays["t"], arrays["x"])
    for name in LEVELS:
        got = {k: a.copy() for k, a in arrays.items()}
        assert NativeNest(whole, parse_target(name)).run(got) == 0
        np.testing.assert_allclose(got["z"], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [3, 4, 7, 8, 14, 16, 19])
@pytest.mark.parametrize("lanes", [8, 16, 40, 5])
def test_tiles_whose_rows_are_contiguous_are_transposed(rows: int, lanes: int) -> None:
    r, n, u = v("r"), v("n"), v("u")
    at = [u * lanes + n, r + 2]
    value = binary("add", load("x", r, u * lanes + n), load("b", u * lanes + n))
    store = loop("u", 2, "unroll", loop("n", lanes, "vector", point("y", at, value)))
    tensors = [
        tensor("x", rows, 2 * lanes),
        tensor("b", 2 * lanes),
        tensor("y", 2 * lanes, rows + 5, role="inout"),
    ]
    check_on_both(nest(tensors, loop("r", rows, "unroll", store)), threads=(1,))
    for dtype in (DType.f64, DType.i32, DType.f16):
        one = loop("n", lanes, "vector", point("y", [n, r], load("x", r, n, dtype=dtype)))
        tensors = [
            tensor("x", rows, lanes, dtype=dtype),
            tensor("y", lanes, rows, dtype=dtype, role="output"),
        ]
        check_on_both(nest(tensors, loop("r", rows, "unroll", one)), threads=(1,))


def test_a_tile_that_reads_what_it_stores_is_not_transposed() -> None:
    r, n = v("r"), v("n")
    shift = point("y", [n, r + 1], load("y", n, r))
    whole = loop("r", 8, "unroll", loop("n", 16, "vector", shift))
    check_on_both(nest([tensor("y", 16, 9, role="inout")], whole), threads=(1,))
