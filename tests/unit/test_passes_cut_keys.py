"""Attention of few queries in parts of its keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nestor.ir import verify_program
from nestor.ir.interpreter import run_program
from nestor.ir.program import Program, Statement
from nestor.passes.context import PassContext
from nestor.passes.cut_keys import cut_keys
from nestor.target.gpu import parse_gpu_target
from tests.helpers import ir_programs as programs
from tests.helpers.pass_checks import random_inputs


def run(before: Program) -> Program:
    """The Program after the pass, which leaves what it computes."""
    after = cut_keys(before, PassContext(target=parse_gpu_target("sm_90")))
    verify_program(after)
    arrays = random_inputs(before)
    found, wanted = run_program(after, arrays), run_program(before, arrays)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
    return after


def count(after: Program) -> int:
    """Parts of the keys."""
    return next((t.shape[0].const for t in after.tensors if t.name.startswith("O_part")), 1)


@pytest.mark.parametrize(
    ("queries", "keys", "parts"),
    [
        (1, 300, 1),  # combining would take longer
        (1, 1024, 4),
        (1, 1025, 4),
        (5, 600, 2),
        (2, 1100, 4),
    ],
)
def test_few_queries(queries: int, keys: int, parts: int) -> None:
    assert count(run(programs.attention(queries, keys, depth=2))) == parts


def test_enough_queries_stay() -> None:
    before = programs.attention(64 * 200, 2048, depth=2)
    assert cut_keys(before, PassContext(target=parse_gpu_target("sm_90"))) is before


def test_scores_that_others_read_stay() -> None:
    before = programs.attention(1, 1024, depth=2)
    kept = tuple(replace(t, role="output") if t.name == "S" else t for t in before.tensors)
    assert count(run(replace(before, tensors=kept))) == 1


def test_bounds_that_depend_on_queries_stay() -> None:
    assert count(run(programs.attention(2, 600, depth=2, causal=True))) == 1


def test_scores_and_sums_of_a_part_have_the_same_keys() -> None:
    after = run(programs.attention(1, 1025, depth=2))
    ranges = {
        s.name: {r.name: r.upper.const for r in s.domain.ranges}
        for s in after.statements
        if isinstance(s, Statement)
    }
    keys = [r["k"] for r in ranges.values() if "k" in r]
    assert sorted(keys) == [257, 257, 320, 320] or sorted(keys) == [65, 65, 320, 320]
