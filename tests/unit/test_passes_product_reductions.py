"""Which products count as only reduced: what is found, what is refused."""

from __future__ import annotations

import pytest

from nestor.ir.parser import parse_program
from nestor.passes.analysis import program_facts
from nestor.passes.product_reductions import find_reduced_product

PROGRAM = """program Head {
  parameter w: f32[5003, 48]
  input x: f32[96, 48]
  input kept: bool[5003]
  temp p: f32[96, 5003]
  temp m: f32[96]
  output l: f32[96]

  statement S_p over { 0 <= i < 96, 0 <= j < 5003, 0 <= k < 48 }
    reduce sum(f32) over k
    s0 <- x[i, k] * w[j, k]
    p[i, j] = s0
  statement S_m over { 0 <= i < 96, 0 <= j < 5003 }
    reduce max(f32) over j
    s0 <- OF_MAXIMUM
    m[i] = s0
  statement S_l over { 0 <= r < 96, 0 <= c < 5003 }
    reduce sum(f32) over c
    s0 <- exp(OF_SUM - m[r])
    l[r] = s0
}
"""


@pytest.mark.parametrize(
    ("of_maximum", "of_sum", "is_found"),
    [
        ("p[i, j]", "p[r, c]", True),
        ("select(kept[j], p[i, j], -inf:f32)", "select(kept[c], p[r, c], -inf:f32)", True),
        # A block in which nothing is kept would count for nothing, though its sum is not zero.
        ("select(kept[j], p[i, j], -inf:f32)", "p[r, c]", False),
        ("p[i, j] * 0.5:f32", "p[r, c]", False),
    ],
)
def test_a_sum_is_shifted_by_its_own_maximum(of_maximum: str, of_sum: str, is_found: bool) -> None:
    text = PROGRAM.replace("OF_MAXIMUM", of_maximum).replace("OF_SUM", of_sum)
    program = parse_program(text)
    found = find_reduced_product(program.statements[0], program, program_facts(program))
    assert (found is not None) == is_found
