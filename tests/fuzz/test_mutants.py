"""Every planted fault is noticed by the cases that name it, and without faults nothing is."""

from __future__ import annotations

import pytest

from tests.fuzz import mutant_cases
from tests.fuzz.mutants import MUTANTS, Mutant


@pytest.fixture(autouse=True)
def real_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parallel loops run on threads however small they are."""
    monkeypatch.setattr("nestor.codegen.llvm.parallel.SERIAL_BELOW", 0)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert mutant_cases.faults() == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_fault_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name, value in mutant.patches():
        monkeypatch.setattr(owner, name, value)
    noticed = [name for name in mutant.cases if mutant_cases.faults((name,))]
    assert noticed == list(mutant.cases)


def test_there_are_faults_of_every_kind() -> None:
    kinds = [m.name.split(":")[0] for m in MUTANTS]
    assert len(MUTANTS) >= 25
    assert {"checker", "nest builder", "temp buffers", "simplify", "inline", "native"} <= set(kinds)
