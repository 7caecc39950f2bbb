"""Random affine Programs under random steps on their schedule trees.

``pytest tests/fuzz/test_fuzz_affine.py --fuzz-seed 7 --fuzz-cases 5000`` tries other cases than the
default ones; ``--fuzz-first`` and ``--fuzz-only`` work as in ``test_fuzz_schedules``.
"""

from __future__ import annotations

import json
import time

import pytest

from nestor.ir import parse_program, print_program, verify_program
from nestor.ir.schedule import schedule_to_json
from nestor.ir.schedule_tree import print_tree
from tests.fuzz import affine_harness
from tests.fuzz.affine_harness import AffineCounts
from tests.fuzz.affine_programs import random_affine_case
from tests.fuzz.affine_schedules import random_tree_schedule
from tests.fuzz.conftest import AFFINE_COUNTS
from tests.fuzz.generate_programs import Case
from tests.fuzz.harness import Candidate
from tests.fuzz.shrink import Found, shrink

CHUNK = 25
ENOUGH = 200
"""Fewer cases say nothing about shares."""


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> AffineCounts:
    return request.config.stash.setdefault(AFFINE_COUNTS, AffineCounts())


def case_numbers(config: pytest.Config) -> range:
    """The cases that the options ask for."""
    first = config.getoption("--fuzz-first")
    return range(first, first + config.getoption("--fuzz-cases"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first_case" in metafunc.fixturenames:
        only = metafunc.config.getoption("--fuzz-only")
        starts = [only] if only is not None else case_numbers(metafunc.config)[::CHUNK]
        metafunc.parametrize("first_case", starts)


def test_steps_on_trees(
    first_case: int, fuzz_seed: int, request: pytest.FixtureRequest, counts: AffineCounts
) -> None:
    """Accepted schedules compute what the Program says; refused ones do not."""
    if request.config.getoption("--fuzz-only") is not None:
        run_case(first_case, counts)
        return
    last = case_numbers(request.config).stop
    for number in range(first_case, min(first_case + CHUNK, last)):
        run_case(fuzz_seed * 1_000_000 + number, counts)


def make_case(seed: int) -> tuple[Case, Candidate, int]:
    """Program and schedule, and how many steps were proposed that do not fit."""
    case = random_affine_case(seed)
    schedule, misfits, kind = random_tree_schedule(case.program, str(seed))
    return case, Candidate(schedule, kind), misfits


def run_case(seed: int, counts: AffineCounts) -> None:
    """Check one case; a failure is shrunk and explained."""
    started = time.monotonic()
    case, candidate, _ = make_case(seed)
    counts.features.update(case.features)
    verify_program(case.program)
    assert parse_program(print_program(case.program)) == case.program
    native = counts.verdicts["accepted"] % affine_harness.NATIVE_EVERY == 0
    with pytest.MonkeyPatch.context() as patch:
        if seed % 5:  # else small parallel loops run serially, as in the product
            patch.setattr("nestor.codegen.llvm.parallel.SERIAL_BELOW", 0)
        try:
            affine_harness.check_affine_case(case, candidate, counts, native=native)
        except Exception as failure:
            pytest.fail(explain(case, candidate, failure), pytrace=False)
    counts.seconds += time.monotonic() - started


def failure_kind(found: Found) -> str | None:
    """How a case fails; None if it does not, or is no proper case any more."""
    assert found.candidate is not None
    try:
        verify_program(found.case.program)
        affine_harness.check_affine_case(found.case, found.candidate, AffineCounts(), native=True)
    except Exception as failure:
        return str(getattr(failure, "kind", type(failure).__name__))
    return None


def explain(case: Case, candidate: Candidate, failure: Exception) -> str:
    """What failed, as small as it gets, and how to see it again."""
    small = shrink(Found(case, candidate), failure_kind)
    assert small.candidate is not None
    steps = small.candidate.schedule
    tree = getattr(steps[0], "tree", None) if steps else None
    return "\n".join(
        [
            f"case {case.seed} ({candidate.source}): {type(failure).__name__}: {failure}",
            f"again: pytest tests/fuzz/test_fuzz_affine.py --fuzz-only {case.seed}",
            f"at its smallest (symbols {small.case.symbols}):",
            print_program(small.case.program),
            print_tree(tree) if tree is not None else "",
            *map(repr, steps[1:]),
            json.dumps(schedule_to_json(steps)),
        ]
    )


def test_the_counts(request: pytest.FixtureRequest, counts: AffineCounts) -> None:
    """Enough is accepted, next to nothing right is refused, and everything occurs."""
    v = counts.verdicts
    if request.config.getoption("--fuzz-only") is not None or v["cases"] < ENOUGH:
        pytest.skip("too few cases to judge their counts")
    for seed, text in counts.legal:
        print(f"case {seed}: refused though legal by enumeration: {text}")
    for seed, text in counts.unknown:
        print(f"case {seed}: unknown: {text}")
    assert v["accepted"] >= 0.3 * v["cases"]
    assert v["does not apply"] <= 0.25 * v["cases"]
    assert v["unknown"] <= max(2, 0.02 * v["cases"])
    assert v["legal"] <= max(2, 0.02 * v["refused"])
    assert v["witnessed"] + v["too large"] >= v["refused"]
    assert v["too large"] <= max(2, 0.02 * v["refused"])
    missing = [s for s in STEPS if not counts.steps[s]]
    assert not missing, f"no accepted schedule has: {missing}"


STEPS = (
    "Arrange Tile Interchange Skew Shift Reverse Distribute Fuse Parallel Vectorize Unroll Promote "
    "SplitReduction"
).split()
"""What must occur among the accepted schedules."""
