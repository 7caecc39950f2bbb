"""Whole kernels under their default schedules: native code against the nest interpreter."""

from __future__ import annotations

import pytest

from nestor.ir.program import Extern, Program
from nestor.ir.types import DType
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import partition_program
from nestor.passes.nest import apply_schedule
from nestor.passes.register_tile import VectorUnit
from nestor.target.cpu import parse_target
from tests.helpers import ir_programs as programs
from tests.helpers.nests import LEVELS, check_nest_native

PROGRAMS: dict[str, Program] = {
    "matmul": programs.matmul(),
    "matmul tails": programs.matmul(33, 100, 17),
    "matmul symbolic": programs.matmul("N", 70, 6),
    "matmul f64": programs.matmul(9, 20, 5, DType.f64),
    "conv2d": programs.conv2d(),
    "softmax": programs.softmax(5, 70),
    "softmax symbolic": programs.softmax("N", 33),
    "argmax": programs.argmax(3, 70),
    "layer_norm": programs.layer_norm(5, 100),
    "logsumexp": programs.logsumexp(3, 50),
    "attention": programs.attention(20, 33, 16),
    "attention causal": programs.attention(9, 33, 16, causal=True),
    "cumsum": programs.cumsum(20, 8),
    "embedding": programs.embedding(5, 10, 40),
    "scatter_add": programs.scatter_add(),
    "scatter_last": programs.scatter_last(),
    "lstm": programs.lstm(4, 2, 3, 20),
    "triangular_solve": programs.triangular_solve(),
    "bf16": programs.half_relu(40),
    "f16": programs.half_relu(40, DType.f16),
}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_default_schedules_run_natively(name: str) -> None:
    for level in LEVELS:
        target = parse_target(level)
        unit = VectorUnit(target.vector_bits, target.vector_registers)
        for part in partition_program(PROGRAMS[name], l2_bytes=1 << 20).parts:
            assert not isinstance(part, Extern)
            whole = apply_schedule(part.kernel, default_schedule(part, unit))
            symbols = {s.name: 5 for s in whole.symbols}
            check_nest_native(whole, target, symbols=symbols, rtol=3e-5, atol=3e-6)
