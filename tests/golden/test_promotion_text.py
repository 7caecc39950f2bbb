"""Promoted nests and their code, word for word."""

from __future__ import annotations

from collections.abc import Callable

from nestor.codegen.llvm import emit_kernel
from nestor.ir.printer import print_nest
from nestor.target.cpu import parse_target
from tests.legality import promoted

Golden = Callable[[str, str], None]


def test_nest(golden: Golden) -> None:
    golden("promotion_lu.txt", print_nest(promoted.lu()[1]))


def test_code(golden: Golden) -> None:
    text = emit_kernel(promoted.gemm()[1], parse_target("avx2"), function_name="gemm")
    golden("promotion_gemm_avx2.ll", text)
