"""In which order a default schedule takes the rows that statements share."""

from __future__ import annotations

import pytest

from nestor.ir.parser import parse_program
from nestor.ir.schedule import Parallel
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import FusedKernel
from nestor.passes.register_tile import VectorUnit

ATTENTION = """
program kernel {{
  input q: f32[2, 40, 3, 16]
  input k: f32[{heads}16, 64]
  temp x: f32[2, 3, 40, 64]
  temp m: f32[2, 3, 40]
  output y: f32[2, 40, 3, 64]

  statement X over {{ 0 <= b < 2, 0 <= h < 3, 0 <= i < 40, 0 <= j < 64, 0 <= d < 16 }}
    reduce sum(f32) over d
    s0 <- q[b, i, h, d] * k[{at}d, j]
    x[b, h, i, j] = s0
  statement M over {{ 0 <= b < 2, 0 <= h < 3, 0 <= i < 40, 0 <= j < 64 }}
    reduce max(f32) over j
    s0 <- x[b, h, i, j]
    m[b, h, i] = s0
  statement Y over {{ 0 <= b < 2, 0 <= h < 3, 0 <= i < 40, 0 <= j < 64 }}
    y[b, i, h, j] = exp(x[b, h, i, j] - m[b, h, i])
}}
"""


@pytest.mark.parametrize(
    ("heads", "at", "wanted"),
    [
        ("2, 3, ", "b, h, ", ["X.b", "X.h", "X.i.o"]),  # each head has its keys
        ("3, ", "h, ", ["X.h", "X.b", "X.i.o"]),  # samples share them
        ("", "", ["X.b", "X.i"]),  # all rows do: as the result lies, heads a tile
    ],
)
def test_rows_that_share_an_operand_run_one_after_the_other(
    heads: str, at: str, wanted: list[str]
) -> None:
    kernel = parse_program(ATTENTION.format(heads=heads, at=at))
    shared = dict.fromkeys(("X", "M", "Y"), ("b", "h", "i"))
    fused = FusedKernel(kernel=kernel, shared=shared)
    steps = default_schedule(fused, VectorUnit())
    assert [s.loop for s in steps if isinstance(s, Parallel)] == wanted
