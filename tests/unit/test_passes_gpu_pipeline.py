"""How a GPU's passes cut long reductions."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir.interpreter import run_program
from nestor.ir.program import Program
from nestor.passes.context import PassContext
from nestor.passes.gpu_pipeline import cut_for_programs
from nestor.target.gpu import parse_gpu_target
from tests.helpers import ir_programs as programs
from tests.helpers.ir_programs import (
    box,
    f32,
    load,
    program,
    reduce,
    statement,
    sum_of,
    tensor,
    write,
)
from tests.helpers.pass_checks import random_inputs


def sums(rows: int, columns: int) -> Program:
    """The sum of each row."""
    return program(
        "sums",
        [tensor("X", rows, columns), tensor("Y", rows, role="output")],
        statement(
            "S", box(i=rows, k=columns), write("Y", "i"), load("X", "i", "k"),
            reduction=reduce(sum_of(f32), "k"),
        ),
    )  # fmt: skip


def cut(before: Program) -> int:
    """How many parts each result gets; the values stay."""
    after = cut_for_programs(before, PassContext(target=parse_gpu_target("sm_90")))
    if after is before:
        return 1
    arrays = random_inputs(before)
    found, wanted = run_program(after, arrays), run_program(before, arrays)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-3)
    (part,) = (t for t in after.tensors if t.name.endswith("_part"))
    return part.shape[0].const


@pytest.mark.parametrize(
    ("rows", "columns", "parts"),
    [
        (1, 1 << 20, 264),
        (1, 1 << 17, 1),  # another kernel would take longer to start
        (4, 1 << 18, 66),
        (1000, 2000, 1),  # every row is a program's
    ],
)
def test_sums(rows: int, columns: int, parts: int) -> None:
    found = cut(sums(rows, columns))
    assert found == parts or (parts > 1 and parts <= found < 2 * parts)


def test_products() -> None:
    """A vector times a matrix of few columns is summed by many programs; a square one is not."""
    assert cut(programs.matmul(1, 128, 8192)) > 10
    assert cut(programs.matmul(1024, 1024, 64)) == 1
