"""Ask checker and oracle about one nest, and compare."""

from __future__ import annotations

import pytest

from nestor.errors import IllegalSchedule
from nestor.ir.loopnest import LoopNest
from nestor.ir.program import Program
from nestor.passes.polyhedral import CheckReport, check_nest
from tests.legality import oracle
from tests.legality.confirm import confirm


def accepted(kernel: Program, nest: LoopNest, *symbols: dict[str, int]) -> CheckReport:
    """The checker proves the nest, and enumeration agrees."""
    report = check_nest(kernel, nest)
    for values in symbols or (None,):
        assert oracle.find_violation(kernel, nest, values) is None
    return report


def refused(
    kernel: Program,
    nest: LoopNest,
    question: str,
    *words: str,
    symbols: dict[str, int] | None = None,
) -> IllegalSchedule:
    """The checker refuses with this question and these words; enumeration confirms the witness."""
    with pytest.raises(IllegalSchedule) as caught:
        check_nest(kernel, nest)
    refusal = caught.value
    assert refusal.question == question, str(refusal)
    for word in words:
        assert word in str(refusal), str(refusal)
    confirm(kernel, nest, refusal)
    assert oracle.find_violation(kernel, nest, symbols) is not None
    return refusal
