"""Failing cases become small, and stay failing."""

from __future__ import annotations

import pytest

from tests.fuzz import harness
from tests.fuzz.generate_programs import random_case
from tests.fuzz.mutants import MUTANTS
from tests.fuzz.shrink import Found, failure_kind, shrink


def first_failure() -> Found:
    """The first random case and schedule that fail."""
    for seed in range(50):
        case = random_case(seed)
        for candidate in harness.candidates(case, harness.Counts()):
            found = Found(case, candidate)
            if failure_kind(found) is not None:
                return found
    raise AssertionError("no case fails")


def test_a_planted_fault_shrinks_to_one_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = next(m for m in MUTANTS if m.name == "native: masks are dropped")
    for owner, name, value in mutant.patches():
        monkeypatch.setattr(owner, name, value)
    found = first_failure()
    small = shrink(found)
    assert failure_kind(small) == failure_kind(found)
    assert small.candidate is not None and found.candidate is not None
    assert len(small.case.program.statements) == 1
    assert len(small.candidate.schedule) <= min(4, len(found.candidate.schedule))


def test_what_does_not_fail_does_not_shrink() -> None:
    case = random_case(0)
    candidate = next(harness.candidates(case, harness.Counts()))
    found = Found(case, candidate)
    assert failure_kind(found) is None
    assert shrink(found) is found
