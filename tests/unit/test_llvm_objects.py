"""Objects and functions from outside: symbols, entry, registers, limits."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from nestor.codegen.llvm.compile import compile_assembly, compile_ir
from nestor.codegen.llvm.emit import emit_entry, emit_kernel
from nestor.codegen.llvm.jit import jit_load
from nestor.errors import InternalError
from nestor.ir.affine import variable
from nestor.ir.expr import FLOAT_UNARY, Cast, binary, const, unary
from nestor.ir.loopnest import LoopNest
from nestor.ir.monoid import sum_of
from nestor.ir.types import DType
from nestor.target.cpu import parse_target
from tests.helpers.llvm_native import services
from tests.helpers.nests import F32, alloc, buffer, compute, load, loop, nest, point, tensor

TARGETS = ("avx2", "avx512")


def undefined_symbols(data: bytes) -> set[str]:
    """Names that an ELF64 object leaves to others."""
    offset, size, count = (
        struct.unpack_from("<Q", data, 40)[0],
        *struct.unpack_from("<HH", data, 58),
    )
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]

    def symbols() -> Iterator[str]:
        for _, kind, _, _, start, length, link, _, _, _ in sections:
            if kind != 2:
                continue
            names = sections[link][4]
            for at in range(start, start + length, 24):
                name, _, _, section, _, _ = struct.unpack_from("<IBBHQQ", data, at)
                if section == 0 and name:
                    end = data.index(b"\0", names + name)
                    yield data[names + name : end].decode()

    return set(symbols())


def elementwise(dtype: DType, kind: str) -> LoopNest:
    """Every float function and every binary operation, and casts to and from half precision."""
    x, y = load("x", "i", dtype=dtype), load("y", "i", dtype=dtype)
    exprs = {f"u_{op}": unary(op, x) for op in sorted(FLOAT_UNARY)}
    exprs |= {
        f"b_{op}": binary(op, x, y) for op in ("rem", "mod", "floordiv", "pow", "atan2", "max")
    }  # type: ignore[dict-item]
    tensors = [tensor(n, 37, dtype=dtype) for n in "xy"]
    tensors += [tensor(n, 37, dtype=dtype, role="output") for n in exprs]
    body = [point(n, ["i"], e) for n, e in exprs.items()]
    for name, half in (("h", DType.f16), ("b", DType.bf16)):
        for wide in (DType.f64, DType.f32, DType.i64, DType.i8, DType.u8, DType.bool):
            n = f"{name}_{wide.value}"
            value = Cast(x=Cast(x=Cast(x=x, dtype=wide), dtype=half), dtype=DType.i64)
            tensors.append(tensor(n, 37, dtype=DType.i64, role="output"))
            body.append(point(n, ["i"], value))
    return nest(tensors, loop("i", 37, kind, *body))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["serial", "vector"])
@pytest.mark.parametrize("dtype", [DType.f32, DType.f64])
def test_objects_need_no_library(dtype: DType, kind: str) -> None:
    for name in TARGETS:
        target = parse_target(name)
        data = compile_ir(emit_kernel(elementwise(dtype, kind), target, function_name="f"), target)
        assert data[:4] == b"\x7fELF" and struct.unpack_from("<H", data, 16)[0] == 1
        assert undefined_symbols(data) <= {"memcpy", "memset", "memmove"}


def micro_kernel(rows: int, vectors: int, lanes: int) -> LoopNest:
    at = ["m", "j", "l"]
    n = variable("j") * lanes + variable("l")
    acc = buffer("acc", rows, vectors, lanes)
    product = binary("mul", load("a", "m", "k"), load("b", "k", n))

    def tile(c: object) -> object:
        inner = loop("j", vectors, "unroll", loop("l", lanes, "vector", c))  # type: ignore[arg-type]
        return loop("m", rows, "unroll", inner)

    body = alloc(
        [acc],
        tile(compute("init", {"acc": at}, const(0.0, F32))),  # type: ignore[arg-type]
        loop("k", 512, "serial", tile(compute("update", {"acc": at}, product, monoid=sum_of(F32)))),  # type: ignore[arg-type]
        tile(compute("final", {"c": ["m", n]}, load("acc", *at))),  # type: ignore[arg-type]
    )
    tensors = [tensor("a", rows, 512), tensor("b", 512, vectors * lanes)]
    return nest([*tensors, tensor("c", rows, vectors * lanes, role="output")], body)


@pytest.mark.parametrize(
    ("name", "rows", "vectors"),
    [("avx512", 8, 3), ("avx512", 14, 2), ("avx512", 6, 4), ("avx2", 6, 2), ("avx2", 4, 3)],
)
def test_a_register_tile_has_one_fma_per_vector_and_no_spill(
    name: str, rows: int, vectors: int
) -> None:
    target = parse_target(name)
    ir = emit_kernel(micro_kernel(rows, vectors, target.lanes(32)), target, function_name="f")
    blocks = re.split(r"\n\.LBB", compile_assembly(ir, target))
    inner = re.split(r"\n\tj", max(blocks, key=lambda b: b.count("vfmadd")))[0]
    assert inner.count("vfmadd") == rows * vectors
    assert "rsp" not in inner
    moves = re.findall(r"\tvmov[au]p[sd]\b.*", inner)
    assert len([m for m in moves if "(" in m]) <= vectors


def test_entry_calls_kernels_in_order_and_stops_at_the_first_failure() -> None:
    target = parse_target("avx2")
    log: list[tuple[int, ...]] = []
    kernel_type = ctypes.CFUNCTYPE(ctypes.c_int32, *([ctypes.c_void_p] * 3))

    def kernel(number: int, tensors: int, symbols: int, code: int) -> object:
        def run(args: int, values: int, _services: int) -> int:
            given = (ctypes.c_int64 * max(1, tensors)).from_address(args)
            sizes = (ctypes.c_int64 * max(1, symbols)).from_address(values)
            log.append((number, *list(given)[:tensors], *list(sizes)[:symbols]))
            return code

        return kernel_type(run)

    functions = [kernel(0, 2, 1, 0), kernel(1, 1, 2, 0), kernel(2, 0, 0, 7)]
    table = (ctypes.c_void_p * 3)(*(ctypes.cast(f, ctypes.c_void_p).value for f in functions))  # type: ignore[arg-type]
    tensors = (ctypes.c_int64 * 4)(100, 101, 102, 103)
    symbols = (ctypes.c_int64 * 3)(7, 8, 9)
    own = services(1)

    def run(calls: list[tuple[int, list[int], list[int]]]) -> int:
        log.clear()
        entry = jit_load(compile_ir(emit_entry("main", calls, target), target), "main", 4)
        pointers = (ctypes.addressof(x) for x in (table, tensors, symbols, own))
        return entry(*pointers)

    assert run([(0, [3, 1], [2]), (1, [3], [0, 1]), (0, [0, 0], [1])]) == 0
    assert log == [(0, 103, 101, 9), (1, 103, 7, 8), (0, 100, 100, 8)]
    assert run([(1, [2], [1, 1]), (2, [], []), (0, [0, 0], [0])]) == 7
    assert log == [(1, 102, 8, 8), (2,)]
    assert run([]) == 0


def test_large_frames_are_refused() -> None:
    body = alloc([buffer("t", 600, 600, scope="local")], point("t", [0, 0], const(0.0, F32)))
    with pytest.raises(InternalError, match="bytes of stack with t"):
        emit_kernel(nest([], body), parse_target("avx2"), function_name="f")


def test_malformed_nests_are_refused() -> None:
    bad_vector = loop("i", "N", "vector", point("y", ["i"], const(0.0, F32)))
    grid = loop("i", 4, "grid", point("y", ["i"], const(0.0, F32)))
    for body, message in ((bad_vector, "not constant"), (grid, "grid loop")):
        with pytest.raises(InternalError, match=message):
            emit_kernel(nest([tensor("y", 8)], body), parse_target("avx2"), function_name="f")


def test_broken_ir_is_our_fault() -> None:
    with pytest.raises(InternalError, match="LLVM rejects"):
        compile_ir("define i32 @f() { ret i64 0 }", parse_target("avx2"))


def test_the_same_nest_gives_the_same_text_and_object() -> None:
    target = parse_target("avx512")
    texts = {emit_kernel(elementwise(DType.f32, "vector"), target, function_name="f") for _ in "ab"}
    assert len(texts) == 1
    text = texts.pop()
    assert compile_ir(text, target) == compile_ir(text, target)


def test_large_parallel_loops_use_the_team_and_small_ones_do_not() -> None:
    def kernel(count: int) -> str:
        body = point("y", ["i"], unary("exp", load("x", "i")))
        tensors = [tensor("x", count), tensor("y", count, role="output")]
        whole = nest(tensors, loop("i", count, "parallel", body))
        return emit_kernel(whole, parse_target("avx2"), function_name="f")

    assert ".thread(" not in kernel(100)
    assert ".thread(" in kernel(100_000)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    body = point("y", ["i"], unary("exp", load("x", "i")))
    tensors = [tensor("x", 50_001), tensor("y", 50_001, role="output")]
    target = parse_target("native")
    whole = nest(tensors, loop("i", 50_001, "parallel", body))
    function = jit_load(compile_ir(emit_kernel(whole, target, function_name="f"), target), "f")
    x = np.random.default_rng(0).standard_normal(50_001).astype(np.float32)
    results = []
    for threads in (1, 2, 5):
        y = np.zeros_like(x)
        args = (ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data)
        own, nothing = services(threads), ctypes.c_int64(0)
        pointers = (ctypes.addressof(args), ctypes.addressof(nothing), ctypes.addressof(own))
        assert function(*pointers) == 0
        results.append(y)
    for y in results[1:]:
        np.testing.assert_array_equal(results[0], y)


def test_copies_of_a_buffer_share_its_place_in_the_frame() -> None:
    def one(index: int) -> object:
        fill = loop("i", 50_000, "serial", point("t", ["i"], load("x", "i")))
        use = loop("i", 50_000, "serial", point("y", [index, "i"], load("t", "i")))
        return alloc([buffer("t", 50_000, scope="local")], fill, use)

    tensors = [tensor("x", 50_000), tensor("y", 8, 50_000, role="output")]
    whole = nest(tensors, *(one(k) for k in range(8)))  # type: ignore[arg-type]
    assert emit_kernel(whole, parse_target("avx2"), function_name="f").count("alloca") == 1
