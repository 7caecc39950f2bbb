"""Expected LLVM IR of small kernels: a change of generated code shows here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nestor.codegen.llvm import emit_entry, emit_kernel
from nestor.ir.expr import binary, const, unary
from nestor.ir.loopnest import LoopNest
from nestor.ir.monoid import max_of, sum_of
from nestor.ir.types import DType
from nestor.target.cpu import parse_target
from tests.helpers.nests import F32, alloc, buffer, compute, load, loop, nest, point, tensor, v


def pointwise() -> LoopNest:
    """Rows on threads, vectors inside, and a tail of 5 lanes."""
    at = v("j") * 16 + v("l")
    tail = v("l") + 96
    main = loop(
        "j",
        6,
        "serial",
        loop("l", 16, "vector", point("y", ["i", at], unary("exp", load("x", "i", at)))),
    )
    rest = loop("l", 5, "vector", point("y", ["i", tail], unary("exp", load("x", "i", tail))))
    tensors = [tensor("x", 900, 101), tensor("y", 900, 101, role="output")]
    return nest(tensors, loop("i", 900, "parallel", main, rest))


def matmul() -> LoopNest:
    """A register tile of 2 rows and 2 vectors."""
    n = v("nv") * 16 + v("nl")
    at = ["m", "nv", "nl"]
    product = binary("mul", load("a", "m", "k"), load("b", "k", n))

    def tile(c: object) -> object:
        inner = loop("nv", 2, "unroll", loop("nl", 16, "vector", c))  # type: ignore[arg-type]
        return loop("m", 2, "unroll", inner)

    body = alloc(
        [buffer("acc", 2, 2, 16)],
        tile(compute("init", {"acc": at}, const(0.0, F32))),  # type: ignore[arg-type]
        loop("k", "K", "serial", tile(compute("update", {"acc": at}, product, monoid=sum_of(F32)))),  # type: ignore[arg-type]
        tile(compute("final", {"c": ["m", n]}, load("acc", *at))),  # type: ignore[arg-type]
    )
    from nestor.ir.program import Symbol

    tensors = [tensor("a", 2, "K"), tensor("b", "K", 32), tensor("c", 2, 32, role="output")]
    return nest(tensors, body, symbols=[Symbol(name="K")])


def reduction() -> LoopNest:
    """The greatest element of a row, in lanes and then across them."""
    lanes = {"p": ["l"]}
    x = load("x", v("k") * 16 + v("l"))
    body = alloc(
        [buffer("p", 16), buffer("s")],
        loop("l", 16, "vector", compute("init", lanes, *max_of(F32).identity)),
        loop(
            "k",
            8,
            "serial",
            loop("l", 16, "vector", compute("update", lanes, x, monoid=max_of(F32))),
        ),
        compute("init", {"s": []}, *max_of(F32).identity),
        loop("l", 16, "vector", compute("merge", {"s": []}, load("p", "l"), monoid=max_of(F32))),
        point("y", [], load("s")),
    )
    return nest([tensor("x", 128), tensor("y", role="output")], body)


def gather() -> LoopNest:
    """Rows of a table by index, checked."""
    row = load("t", "i", dtype=DType.i64)
    body = loop("j", 16, "vector", point("y", ["i", "j"], load("x", row, "j")))
    tensors = [tensor("t", 7, dtype=DType.i64), tensor("x", 50, 16)]
    return nest([*tensors, tensor("y", 7, 16, role="output")], loop("i", 7, "serial", body))


KERNELS = {"pointwise": pointwise, "matmul": matmul, "reduction": reduction, "gather": gather}


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernel_text(name: str, golden: Callable[[str, str], None]) -> None:
    text = emit_kernel(KERNELS[name](), parse_target("avx512"), function_name=name)
    golden(f"llvm_{name}.ll", text)


def test_entry_text(golden: Callable[[str, str], None]) -> None:
    golden("llvm_entry.ll", emit_entry("entry", [(0, [2, 0], [1]), (1, [2], []), (0, [0, 1], [0])]))
