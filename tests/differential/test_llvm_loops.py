"""Reductions, loops, threads and buffers of hand-written nests against the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import Binary, Expr, Index, Select, binary, const, unary
from nestor.ir.loopnest import Alloc, LoopNest
from nestor.ir.monoid import (
    Monoid,
    argmax_of,
    logsumexp_of,
    max_of,
    online_softmax_of,
    state_vars,
    sum_of,
    welford_of,
)
from nestor.ir.program import Symbol
from nestor.ir.types import DType
from nestor.target.cpu import parse_target
from tests.helpers.llvm_native import NativeNest
from tests.helpers.nests import (
    F32,
    alloc,
    buffer,
    check_on_both,
    compute,
    load,
    loop,
    nest,
    point,
    tensor,
    v,
)

I64 = DType.i64


# --- reductions ----------------------------------------------------------------------------------


def split_reduction(monoid: Monoid, elements: tuple[Expr, ...], lanes: int, steps: int) -> LoopNest:
    """Lanes of partial states, merged as a tree; one row at a time."""
    dtypes = monoid.dtypes
    names = [f"p{c}" for c in range(len(dtypes))]
    finals = [f"s{c}" for c in range(len(dtypes))]
    parts = [buffer(n, lanes, dtype=d) for n, d in zip(names, dtypes)]
    whole = [buffer(n, dtype=d) for n, d in zip(finals, dtypes)]
    lane = {n: ["l"] for n in names}
    one: dict[str, list[str]] = {n: [] for n in finals}
    start = loop("l", lanes, "vector", compute("init", lane, *monoid.identity))
    step = compute("update", lane, *elements, monoid=monoid)
    first = compute("init", one, *monoid.identity)
    partial = [load(n, "l", dtype=d) for n, d in zip(names, dtypes)]
    merge = loop("l", lanes, "vector", compute("merge", one, *partial, monoid=monoid))
    end = [point(f"o{c}", ["r"], load(n, dtype=d)) for c, (n, d) in enumerate(zip(finals, dtypes))]
    body = alloc(
        [*parts, *whole], start, loop("k", steps, "serial", loop("l", lanes, "vector", step)),
        first, merge, *end,
    )  # fmt: skip
    outputs = [tensor(f"o{c}", 3, dtype=d, role="output") for c, d in enumerate(dtypes)]
    return nest([tensor("x", 3, steps * lanes), *outputs], loop("r", 3, "parallel", body))


@pytest.mark.parametrize("lanes", [1, 4, 12, 16, 40])
@pytest.mark.parametrize("name", ["sum", "max", "argmax", "welford", "logsumexp", "online_softmax"])
def test_reductions_split_over_lanes(name: str, lanes: int) -> None:
    at = v("k") * lanes + v("l")
    x = load("x", "r", at)
    one, zero = const(1.0, F32), const(0.0, F32)
    cases: dict[str, tuple[Monoid, tuple[Expr, ...]]] = {
        "sum": (sum_of(F32), (binary("mul", x, x),)),
        "max": (max_of(F32), (x,)),
        "argmax": (argmax_of(F32), (x, Index(value=at))),
        "welford": (welford_of(F32), (x, zero, one)),
        "logsumexp": (logsumexp_of(F32), (x, one)),
        "online_softmax": (online_softmax_of(F32), (x, one, binary("mul", x, x))),
    }
    monoid, elements = cases[name]
    check_on_both(split_reduction(monoid, elements, lanes, 5), rtol=3e-5, atol=1e-5)


def test_reductions_see_nan_and_infinities() -> None:
    whole = split_reduction(max_of(F32), (load("x", "r", v("k") * 16 + v("l")),), 16, 3)
    x = np.random.default_rng(0).standard_normal((3, 48)).astype(np.float32)
    x[0, 37], x[1, 5], x[2, :] = np.nan, np.inf, -np.inf
    check_on_both(whole, arrays={"x": x})
    at = v("k") * 16 + v("l")
    arg = split_reduction(argmax_of(F32), (load("x", "r", at), Index(value=at)), 16, 3)
    check_on_both(arg, arrays={"x": x})


def composition() -> Monoid:
    """Composition of x → p x + q: associative, not commutative."""
    p, q = state_vars("a", (F32, F32))
    r, s = state_vars("b", (F32, F32))
    return Monoid(
        name="affine",
        identity=(const(1.0, F32), const(0.0, F32)),
        combine=(binary("mul", p, r), binary("add", binary("mul", r, q), s)),
        commutative=False,
    )


@pytest.mark.parametrize("lanes", [2, 7, 16, 19])
def test_merges_keep_the_order_of_indices(lanes: int) -> None:
    values = (load("p", "l"), load("q", "l"))
    merge = compute("merge", {"a": [], "b": []}, *values, monoid=composition())
    start = compute("init", {"a": [], "b": []}, *composition().identity)
    tensors = [
        tensor("p", lanes),
        tensor("q", lanes),
        tensor("a", role="output"),
        tensor("b", role="output"),
    ]
    check_on_both(nest(tensors, start, loop("l", lanes, "vector", merge)), threads=(1,), atol=1e-4)


def test_a_merge_inside_a_vector_loop() -> None:
    parts, state = buffer("p", 5, 20), buffer("s", 20)
    i, k = v("i"), v("k")
    merge = compute("merge", {"s": [i]}, load("p", k, i), monoid=sum_of(F32))
    start = compute("init", {"s": [i]}, const(0.0, F32))
    end = point("y", [i], load("s", i))
    fill = loop("i", 20, "vector", point("p", [k, i], load("x", k, i)))
    sums = loop("i", 20, "vector", start, loop("k", 5, "vector", merge), end)
    body = alloc([parts, state], loop("k", 5, "serial", fill), sums)
    check_on_both(nest([tensor("x", 5, 20), tensor("y", 20, role="output")], body), threads=(1,))


def test_scan_runs_in_order() -> None:
    state = buffer("s", 20)
    i, k = v("i"), v("k")
    step = compute("update", {"s": [i]}, load("x", k, i), monoid=sum_of(F32))
    out = compute("final", {"y": [k, i]}, load("s", i))
    body = alloc(
        [state],
        loop("i", 20, "vector", compute("init", {"s": [i]}, const(0.0, F32))),
        loop("k", 9, "serial", loop("i", 20, "vector", step), loop("i", 20, "vector", out)),
    )
    check_on_both(nest([tensor("x", 9, 20), tensor("y", 9, 20, role="output")], body), threads=(1,))


def tiled_matmul(rows: int, vectors: int, lanes: int, k: int, dtype: DType = F32) -> LoopNest:
    """A register tile of ``rows × vectors`` vectors, with 2 × 3 tiles around."""
    m = v("mo") * rows + v("mi")
    n = v("no") * (vectors * lanes) + v("nv") * lanes + v("nl")
    at = ["mi", "nv", "nl"]
    acc = buffer("acc", rows, vectors, lanes, dtype=dtype)
    product = binary("mul", load("a", m, "k", dtype=dtype), load("b", "k", n, dtype=dtype))
    start = compute("init", {"acc": at}, const(0.0, dtype))
    update = compute("update", {"acc": at}, product, monoid=sum_of(dtype))
    end = compute("final", {"c": [m, n]}, load("acc", *at, dtype=dtype))

    def tile(c: object) -> object:
        return loop(
            "mi", rows, "unroll", loop("nv", vectors, "unroll", loop("nl", lanes, "vector", c))
        )  # type: ignore[arg-type]

    body = alloc([acc], tile(start), loop("k", k, "serial", tile(update)), tile(end))  # type: ignore[arg-type]
    tensors = [
        tensor("a", 2 * rows, k, dtype=dtype),
        tensor("b", k, 3 * vectors * lanes, dtype=dtype),
        tensor("c", 2 * rows, 3 * vectors * lanes, dtype=dtype, role="output"),
    ]
    return nest(tensors, loop("mo", 2, "parallel", loop("no", 3, "parallel", body)))


@pytest.mark.parametrize(
    "rows,vectors,lanes", [(8, 3, 16), (4, 2, 8), (3, 1, 12), (5, 2, 5), (2, 1, 1)]
)
def test_register_tiles(rows: int, vectors: int, lanes: int) -> None:
    for dtype in (F32, DType.f64, I64):
        check_on_both(tiled_matmul(rows, vectors, lanes, 11, dtype), rtol=1e-4, atol=1e-5)


# --- loops, threads, buffers ---------------------------------------------------------------------


def test_loop_bounds_are_max_and_min_of_affines() -> None:
    i, j = v("i"), v("j")
    body = point("y", [i, j], Index(value=i * 100 + j))
    inner = loop("j", i + 3, "serial", body, lower=i - 2, also=(affine(9),))
    clipped = inner.__class__(
        index="j", lower=(i - 2, affine(0)), upper=inner.upper, kind="serial", body=body
    )
    tensors = [tensor("y", 12, 12, dtype=I64, role="inout")]
    check_on_both(nest(tensors, loop("i", 12, "parallel", clipped)))


def test_triangular_parallel_loops_do_not_collapse() -> None:
    i, j = v("i"), v("j")
    body = point("y", [i, j], unary("exp", load("x", i, j)))
    inner = loop("j", i + 1, "parallel", body)
    tensors = [tensor("x", 90, 90), tensor("y", 90, 90, role="inout")]
    check_on_both(nest(tensors, loop("i", 90, "parallel", inner)))


def test_parallel_loops_collapse_and_start_anywhere() -> None:
    i, j, k = v("i"), v("j"), v("k")
    body = point("y", [i, j, k], unary("tanh", load("x", k, j, i)))
    loops = loop(
        "i",
        9,
        "parallel",
        loop("j", 20, "parallel", loop("k", 8, "parallel", body, lower=1), lower=3),
        lower=2,
    )
    tensors = [tensor("x", 8, 20, 9), tensor("y", 9, 20, 8, role="inout")]
    check_on_both(nest(tensors, loops), threads=(1, 2, 3))


def test_parallel_loops_inside_a_time_loop_with_buffers() -> None:
    t, i, r = v("t"), v("i"), v("r")
    history = buffer("h", 700, scope="local")
    row = buffer("w", 4, scope="local")
    start = loop("i", 700, "serial", point("h", [i], load("x", 0, i)))
    fill = loop(
        "r",
        4,
        "serial",
        point("w", [r], unary("exp", binary("sub", load("h", i), load("x", t, i)))),
    )
    use = point("y", [t, i], binary("add", load("w", 3), load("w", 0)))
    step = loop("i", 700, "parallel", alloc([row], fill, use))
    keep = loop("i", 700, "parallel", point("h", [i], binary("mul", load("h", i), load("x", t, i))))
    body = alloc([history], start, loop("t", 6, "serial", step, keep))
    check_on_both(
        nest([tensor("x", 6, 700), tensor("y", 6, 700, role="output")], body), rtol=1e-4, atol=1e-5
    )


def test_more_threads_than_iterations_and_empty_loops() -> None:
    body = loop(
        "i", "N", "parallel", loop("j", 3000, "serial", point("y", ["i", "j"], load("x", "i", "j")))
    )
    tensors = [tensor("x", "N", 3000), tensor("y", "N", 3000, role="inout")]
    whole = nest(tensors, body, symbols=[Symbol(name="N", lower=0)])
    for n in (0, 1, 2, 3):
        check_on_both(whole, symbols={"N": n}, threads=(1, 2, 4))


def test_small_and_empty_vector_and_unroll_loops() -> None:
    body = [
        loop("i", 0, "vector", point("y", ["i"], load("x", "i"))),
        loop("i", 1, "vector", point("y", ["i"], load("x", "i"))),
        loop("i", 0, "unroll", point("y", ["i"], load("x", "i"))),
        loop("i", 200, "unroll", point("z", ["i"], load("x", "i"))),
        loop("i", 999, "vector", point("w", ["i"], load("x", "i"))),
    ]
    tensors = [tensor("x", 999), tensor("y", 9, role="inout"), tensor("z", 200, role="output")]
    tensors.append(tensor("w", 999, role="output"))
    check_on_both(nest(tensors, *body), threads=(1,))


def test_a_buffer_inside_a_vector_loop_belongs_to_each_lane() -> None:
    i, u = v("i"), v("u")
    temp = buffer("t", 3)
    is_one = binary("eq", Index(value=u), const(1, I64))
    factor = Select(condition=is_one, a=const(2.0, F32), b=const(3.0, F32))
    fill = loop("u", 3, "unroll", point("t", [u], binary("mul", load("x", i), factor)))
    total = binary("add", binary("add", load("t", 0), load("t", 1)), load("t", 2))
    sums = Alloc(buffers=(temp,), body=loop("u", 1, "unroll", fill, point("y", [i], total)))
    check_on_both(
        nest([tensor("x", 21), tensor("y", 21, role="output")], loop("i", 21, "vector", sums)),
        threads=(1,),
    )


def test_aliases_share_bytes() -> None:
    tensors = [
        tensor("x", 4, 6, role="inout"),
        tensor("flat", 24, role="temp", alias_of="x"),
        tensor("y", 24, role="output"),
    ]
    body = [
        loop(
            "i",
            4,
            "serial",
            loop("j", 6, "vector", point("x", ["i", "j"], unary("neg", load("x", "i", "j")))),
        ),
        loop(
            "i", 24, "vector", point("y", ["i"], binary("add", load("flat", "i"), const(1.0, F32)))
        ),
        loop("i", 24, "vector", point("flat", ["i"], load("y", 23 - v("i")))),
    ]
    check_on_both(nest(tensors, *body), threads=(1,))


def test_values_are_evaluated_before_any_store() -> None:
    swap = compute("point", {"x": ["i"], "y": ["i"]}, load("y", "i"), load("x", "i"))
    tensors = [tensor("x", 21, role="inout"), tensor("y", 21, role="inout")]
    for kind in ("serial", "vector"):
        check_on_both(nest(tensors, loop("i", 21, kind, swap)), threads=(1,))


def test_contraction_can_be_refused() -> None:
    a, b, c = (load(n, "i") for n in "abc")
    value: Binary = binary("sub", binary("mul", a, b), c)
    tensors = [*(tensor(n, 64) for n in "abc"), tensor("y", 64, role="output")]
    whole = nest(tensors, loop("i", 64, "vector", point("y", ["i"], value)))
    rng = np.random.default_rng(0)
    a_, b_ = (rng.standard_normal(64).astype(np.float32) for _ in range(2))
    for contract in (True, False):
        arrays = {"a": a_, "b": b_, "c": a_ * b_, "y": np.ones(64, np.float32)}
        NativeNest(whole, parse_target("avx2"), fp_contract=contract).run(arrays)
        assert bool(arrays["y"].any()) == contract
