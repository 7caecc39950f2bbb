"""Random Programs under random schedules: checker, interpreters and native code agree.

``pytest tests/fuzz --fuzz-seed 7 --fuzz-cases 2000`` tries other cases than the default ones;
``--fuzz-first 500 --fuzz-cases 250`` runs a part, cases 500 to 749; ``--fuzz-only CASE`` a single
case, the one that a failure names.
"""

from __future__ import annotations

import json

import pytest

from nestor.ir import parse_program, print_program
from nestor.ir.schedule import schedule_to_json
from tests.fuzz import harness
from tests.fuzz.conftest import COUNTS
from tests.fuzz.generate_programs import Case, random_case
from tests.fuzz.harness import Counts
from tests.fuzz.shrink import Found, shrink

CHUNK = 25
"""Cases of one test: enough to be quick to collect, few enough to see where a run stands."""

ONCE_WRONG = {
    477: "a refusal whose witness took hours to enumerate",
    1_000_633: "the default schedule of a product over a triangle",
    1_000_785: "a refusal of what only some contents of an index input show to be wrong",
    1_000_842: "a literal of u8 above 127, cast to float",
    1_000_897: "a sum of denormal products",
}
"""Cases of several seeds, and what they found in the product or in this harness."""

LEAST_CELLS = 0.5
"""Share of compared values that must be known exactly; the rest lies within derived bounds."""


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Counts:
    return request.config.stash.setdefault(COUNTS, Counts())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first_case" not in metafunc.fixturenames:
        return
    config = metafunc.config
    only = config.getoption("--fuzz-only")
    starts = [only] if only is not None else case_numbers(config)[::CHUNK]
    metafunc.parametrize("first_case", starts)


def test_schedules(first_case: int, fuzz_seed: int, request: pytest.FixtureRequest, counts) -> None:
    """Accepted schedules compute what the Program says; refused ones do not."""
    only = request.config.getoption("--fuzz-only")
    if only is not None:
        run_case(only, counts)
        return
    last = case_numbers(request.config).stop
    for number in range(first_case, min(first_case + CHUNK, last)):
        run_case(fuzz_seed * 1_000_000 + number, counts)


def case_numbers(config: pytest.Config) -> range:
    """The cases that the options ask for."""
    first = config.getoption("--fuzz-first")
    return range(first, first + config.getoption("--fuzz-cases"))


@pytest.mark.parametrize("seed", ONCE_WRONG)
def test_cases_that_once_failed(seed: int) -> None:
    """Judged apart from the others, so that their counts stay those of the default cases."""
    counts = Counts()
    run_case(seed, counts)
    assert not counts.schedules["legal"]


def run_case(seed: int, counts: Counts) -> None:
    """Check one case; a failure is shrunk and explained."""
    case = random_case(seed)
    assert parse_program(print_program(case.program)) == case.program
    with pytest.MonkeyPatch.context() as patch:
        if seed % 5:  # else small parallel loops run serially, as in the product
            patch.setattr("nestor.codegen.llvm.parallel.SERIAL_BELOW", 0)
        try:
            harness.check_case(case, counts)
        except Exception as failure:
            pytest.fail(explain(case, failure), pytrace=False)


def explain(case: Case, failure: Exception) -> str:
    """What failed, as small as it gets, and how to see it again."""
    lines = [
        f"case {case.seed}: {type(failure).__name__}: {failure}",
        f"again: pytest tests/fuzz/test_fuzz_schedules.py --fuzz-only {case.seed}",
        print_program(case.program),
    ]
    for candidate in (*harness.candidates(case, Counts()), None):
        small = shrink(Found(case, candidate))
        if small.case is case and small.candidate is candidate:
            continue
        lines += [
            f"a smaller one (symbols {small.case.symbols}):",
            print_program(small.case.program),
            json.dumps(schedule_to_json(small.candidate.schedule if small.candidate else ())),
        ]
        break
    return "\n".join(lines)


def test_the_counts(request: pytest.FixtureRequest, counts) -> None:
    """Enough is accepted, refusals are right, comparisons are sharp, and everything occurs."""
    s, cells = counts.schedules, counts.cells
    if request.config.getoption("--fuzz-only") is not None or s["tried"] < 300:
        pytest.skip("too few cases to judge their counts")
    for case, candidate, text in counts.legal:
        print(f"case {case.seed}: refused though legal: {candidate.schedule}\n{text}")
    assert s["accepted"] >= 0.3 * s["tried"]
    assert s["witnessed"] + s["too large"] == s["refused"]
    assert s["too large"] <= 0.01 * s["refused"]
    assert s["legal"] <= max(1, 0.01 * s["refused"])
    assert s["unknown"] <= 0.02 * s["tried"]
    assert cells["exact"] >= LEAST_CELLS * cells["all"]
    assert cells["vague"] <= 0.03 * cells["all"]
    missing = [f for f in FEATURES if not counts.features[f]]
    assert not missing, f"no case has: {missing}"


FEATURES = (
    "Accumulate ComputeAt Fuse Pack Parallel Reorder SplitReduction Tile Unroll Vectorize".split()
    + "f64 f32 f16 bf16 i64 i32 i16 i8 u8 bool".split()
    + "alias attention broadcast concatenate contraction convolution div empty".split()
    + "gather into jacobi large".split()
    + "layout mod pointwise predicate recurrence reverse scan softmax stencil stride".split()
    + "symbol triangle window".split()
    + ["final map", "in place", "joined product", "strided write", "two results", "seq into"]
    + [f"reduce {k}" for k in "simple arg welford lse softmax compose xor".split()]
    + [f"scatter {k}" for k in ("unique", "last", "into")]
)
"""What must occur among the default cases."""
