"""Random schedules and random damage, judged by checker and oracle alike."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from nestor.errors import IllegalSchedule, IRError, LegalityUnknown
from nestor.ir.loopnest import LoopNest
from nestor.ir.program import Program
from nestor.passes.polyhedral import check_nest
from tests.legality import oracle
from tests.legality.confirm import confirm
from tests.legality.kernels import KERNELS
from tests.legality.mutations import mutate, random_schedule
from tests.legality.nests import NESTS

CASES = 1000
# Data-dependent indices are judged for all data, by the oracle for one choice of it.
ONE_SIDED = ("gather", "index_add", "scatter", "gathered_buffer", "index_added")


def random_case(seed: int, case: int) -> tuple[str, Program, LoopNest] | None:
    """A kernel and a nest that may be right: from a schedule or by hand, then perhaps damaged."""
    rng = Random(f"{seed}/{case}")
    families = [*KERNELS, *NESTS]
    name = families[case % len(families)]
    if name in NESTS:
        kernel, nest = NESTS[name]()
        damage = rng.choice([1, 1, 2, 3])
    else:
        kernel = KERNELS[name]()
        found = random_schedule(kernel, rng, rng.randrange(14))
        if found is None:
            return None
        nest = found[1]
        damage = rng.choice([0, 0, 1, 1, 2, 3])
    for _ in range(damage):
        nest = mutate(nest, rng) or nest
    return name, kernel, nest


def test_checker_and_oracle_agree(fuzz_seed):
    """Nothing wrong is accepted; every witness holds; next to nothing right is refused."""
    verdicts: Counter[str] = Counter()
    for case in range(CASES):
        found = random_case(fuzz_seed, case)
        if found is None:
            continue
        name, kernel, nest = found
        wrong = oracle.find_violation(kernel, nest)
        try:
            check_nest(kernel, nest)
        except IllegalSchedule as refusal:
            if wrong is None and name not in ONE_SIDED:
                verdicts["refused though right"] += 1
            if wrong is None or wrong.question != "malformed":
                confirm(kernel, nest, refusal)
            verdicts["refused"] += 1
            verdicts[refusal.question] += 1
        except (IRError, LegalityUnknown) as refusal:
            verdicts[type(refusal).__name__] += 1
        else:
            assert wrong is None, f"case {case} ({name}) of seed {fuzz_seed} is accepted: {wrong}"
            verdicts["accepted"] += 1
    assert verdicts["refused though right"] <= 0.01 * verdicts["refused"], verdicts
    assert verdicts["accepted"] >= 0.3 * CASES, verdicts
    assert verdicts["LegalityUnknown"] <= 0.02 * CASES, verdicts
    for question in ("value", "coverage", "dependence", "buffer", "bounds"):
        assert verdicts[question] >= 10, verdicts


@pytest.mark.parametrize("name", KERNELS)
def test_random_schedules_of_each_kernel_are_not_all_refused(name, fuzz_seed):
    kernel = KERNELS[name]()
    accepted = 0
    for case in range(12):
        found = random_schedule(kernel, Random(f"{name}{fuzz_seed}{case}"), 6)
        if found is None:
            continue
        try:
            check_nest(kernel, found[1])
        except (IllegalSchedule, IRError, LegalityUnknown):
            continue
        assert oracle.find_violation(kernel, found[1]) is None
        accepted += 1
    assert accepted >= 1
